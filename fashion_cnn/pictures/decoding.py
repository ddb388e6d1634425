"""A picture out of a file of any kind: by its content, upright, eight bits a channel."""

import io
import logging
import math
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

# What Pillow tells by its first bytes. Others, such as EPS, would start a program of the machine; an ICO would be
# unpacked before its size is known.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "AVIF", "TIFF", "BMP", "JPEG2000", "PPM")
# The largest cameras have a little more than 100 million; a file of a few kilobytes can claim any number.
MAX_PIXELS = 120_000_000
# Larger ones are unpacked two at a time, so that a folder of them does not fill the memory.
_LARGE = 16_000_000
_TIFF_BITS_PER_SAMPLE = 258
_turn = threading.BoundedSemaphore(2)


class UnreadablePictureError(ValueError):
    """The file is no picture, or a damaged one; the message is the reason, to be read behind the file's name."""


class TooManyPixelsError(UnreadablePictureError):
    """The picture would fill too much memory."""


def decode(source: Path | bytes, *, enough: int | None = None, most: int = MAX_PIXELS) -> Image.Image:
    """The picture in a file or in memory, in mode L, LA, RGB or RGBA, turned as its EXIF orientation says.

    Of an animation the first frame. More than eight bits a channel are scaled to eight.
    enough: so many pixels do; a picture of many more is shrunk by a whole factor, a JPEG while it is decoded.
    most: so many pixels may be unpacked into memory at once; more are TooManyPixelsError.
    Raises UnreadablePictureError.
    """
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
            width, height = image.size
            if enough:
                factor = _factor(image, enough)
                image.draft(None, (width // factor, height // factor))
            # A JPEG that is stored in passes is unpacked whole, however small it is asked for.
            unpacked = width * height if image.info.get("progressive") else image.width * image.height
            if unpacked > most or width * height > MAX_PIXELS:
                least = min(most, MAX_PIXELS) / 1e6
                raise TooManyPixelsError(
                    f"is too large ({width:,} x {height:,} pixels; {least:g} million pixels are the most)"
                )
            with _turn if image.width * image.height > _LARGE else nullcontext():
                image.load()
                decoded = _eight_bit(_upright(image))
                return decoded.reduce(_factor(decoded, enough)) if enough else decoded.copy()
    except UnreadablePictureError:
        raise
    except UnidentifiedImageError:
        raise UnreadablePictureError(_what_else(source)) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise TooManyPixelsError(f"is too large ({most / 1e6:g} million pixels are the most)") from None
    except OSError as error:
        reason = f"cannot be read ({error.strerror})" if error.errno else f"is damaged ({error})"
        raise UnreadablePictureError(reason) from error
    except Exception as error:  # a damaged file leads Pillow into errors of all kinds
        raise UnreadablePictureError(f"is damaged ({str(error) or type(error).__name__})") from error


def is_picture(path: Path) -> bool:
    """Whether the file begins as a picture does."""
    try:
        with Image.open(path, formats=FORMATS):
            return True
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return True
    except Exception:
        return False


@contextmanager
def silence_pillow() -> Iterator[None]:
    """Leave out Pillow's warnings about odd files, in all threads: `decode` raises what matters of them."""
    logger = logging.getLogger("PIL")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")
            yield
    finally:
        logger.setLevel(before)


def _factor(image: Image.Image, enough: int) -> int:
    """The whole factor that shrinks both sides and leaves at least `enough` pixels."""
    return max(1, math.isqrt(image.width * image.height // enough))


def _upright(image: Image.Image) -> Image.Image:
    # Damaged EXIF says nothing about the pixels.
    with suppress(Exception):
        ImageOps.exif_transpose(image, in_place=True)
    return image


def _eight_bit(image: Image.Image) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        return _scaled(image)
    grey = image.mode in ("1", "L", "LA", "La")
    if image.has_transparency_data:
        return _in_mode(image, "LA" if grey else "RGBA")
    return _in_mode(image, "L" if grey else "RGB")


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    # Converted into the mode that it has it would be copied, and large pictures fill the memory as they are.
    return image if image.mode == mode else image.convert(mode)


def _scaled(image: Image.Image) -> Image.Image:
    """Integers of 16 or 32 bits, or floats, from their range to 0 to 255."""
    values = np.nan_to_num(np.asarray(image).astype(np.float32))
    low, high = float(values.min()), float(values.max())
    # Of the likely ranges the first that holds all values; where none does, their own.
    likely = (1, 255, 65535) if image.mode == "F" else (*_said_end(image), 255, 65535)
    end = next((end for end in likely if low >= 0 and high <= end), None)
    low, high = (0, end) if end else (low, high)
    # One value alone, which no range tells anything of, is black.
    return Image.fromarray(((values - low) * (255 / ((high - low) or 1))).round().astype(np.uint8))


def _said_end(image: Image.Image) -> list[int]:
    """The lightest value that integers of a TIFF can have, where it says one: 16 or 32 bits are those of the memory."""
    bits = int(np.max(getattr(image, "tag_v2", {}).get(_TIFF_BITS_PER_SAMPLE, 16)))
    return [2**bits - 1] if bits < 16 else []


def _what_else(source: Path | bytes) -> str:
    """What a file is that is no picture."""
    if isinstance(source, bytes):
        head = source[:512]
    else:
        with source.open("rb") as file:
            head = file.read(512)
    if not head:
        return "is empty"
    if head[4:8] == b"ftyp" and head[8:12] in (b"heic", b"heix", b"hevc", b"mif1", b"msf1"):
        return "is a HEIC picture, which is not read here: convert it to JPEG or PNG"
    if head.startswith((b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"II*\0", b"MM\0*")):
        return "is damaged, or of a rare kind (its header cannot be read)"
    if b"\0" not in head and head.isascii():
        return "is no picture: it holds text"
    return f"is no picture of a kind that is read here ({', '.join(FORMATS)})"
