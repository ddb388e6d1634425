"""Decode a picture file by its content: upright, with eight bits per channel."""

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

# Formats that Pillow decodes itself. It would start an external program for EPS, and decode an ICO before its size is
# known.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "AVIF", "TIFF", "BMP", "JPEG2000", "PPM")
# The largest cameras have a little more than 100 million; the header of a small file can claim any number.
MAX_PIXELS = 120_000_000
# At most two larger pictures are decoded at a time, to bound the memory.
_LARGE = 16_000_000
_TIFF_BITS_PER_SAMPLE = 258
_large_slots = threading.BoundedSemaphore(2)


class UnreadablePictureError(ValueError):
    """A file is not a picture, or damaged. The message continues a sentence that begins with the file's name."""


class TooManyPixelsError(UnreadablePictureError):
    """A picture would take too much memory."""


def decode(source: Path | bytes, *, min_pixels: int | None = None, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode a picture and rotate it as its EXIF orientation says.

    Animations give their first frame. More than eight bits per channel are scaled to eight.

    Args:
        source: a file, or its content.
        min_pixels: reduce a larger picture by an integer factor that leaves at least as many pixels; a JPEG is reduced
            while it is decoded, which saves time and memory.
        max_pixels: most pixels that may be held in memory, at most MAX_PIXELS.

    Returns:
        A picture of mode L, LA, RGB or RGBA.

    Raises:
        TooManyPixelsError: if the picture is larger than `max_pixels` allows.
        UnreadablePictureError: if it cannot be decoded for another reason.
    """
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
            width, height = image.size
            if min_pixels:
                factor = _reduction(image, min_pixels)
                image.draft(None, (width // factor, height // factor))
            # A progressive JPEG is held in memory in full size, however small the draft.
            in_memory = width * height if image.info.get("progressive") else image.width * image.height
            if in_memory > max_pixels or width * height > MAX_PIXELS:
                raise TooManyPixelsError(_too_large(f"{width:,} x {height:,} pixels; ", min(max_pixels, MAX_PIXELS)))
            with _large_slots if image.width * image.height > _LARGE else nullcontext():
                image.load()
                decoded = _to_eight_bits(_upright(image))
                return decoded.reduce(_reduction(decoded, min_pixels)) if min_pixels else decoded.copy()
    except UnreadablePictureError:
        raise
    except UnidentifiedImageError:
        raise UnreadablePictureError(_why_not_a_picture(source)) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise TooManyPixelsError(_too_large("", max_pixels)) from None
    except OSError as error:
        reason = f"cannot be read ({error.strerror})" if error.errno else f"is damaged ({error})"
        raise UnreadablePictureError(reason) from error
    except Exception as error:  # Pillow raises many kinds of errors on damaged files.
        raise UnreadablePictureError(f"is damaged ({str(error) or type(error).__name__})") from error


def _too_large(size: str, limit: int) -> str:
    return f"is too large ({size}{limit / 1e6:g} million pixels are the most)"


def is_picture(path: Path) -> bool:
    """Return whether the file has the header of a picture."""
    try:
        with Image.open(path, formats=FORMATS):
            return True
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return True
    except Exception:
        return False


@contextmanager
def silence_pillow() -> Iterator[None]:
    """Suppress Pillow's warnings about unusual files in all threads; `decode` raises what matters of them."""
    logger = logging.getLogger("PIL")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")
            yield
    finally:
        logger.setLevel(level)


def _reduction(image: Image.Image, min_pixels: int) -> int:
    """Return the largest integer factor by which both sides can shrink with at least `min_pixels` pixels left."""
    return max(1, math.isqrt(image.width * image.height // min_pixels))


def _upright(image: Image.Image) -> Image.Image:
    # Damaged EXIF does not make the pixels unreadable.
    with suppress(Exception):
        ImageOps.exif_transpose(image, in_place=True)
    return image


def _to_eight_bits(image: Image.Image) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        return _scale_to_eight_bits(image)
    mode = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
    if image.has_transparency_data:
        mode += "A"
    # `convert` copies even if the mode is the same, which large pictures have no memory for.
    return image if image.mode == mode else image.convert(mode)


def _scale_to_eight_bits(image: Image.Image) -> Image.Image:
    """Scale integers of 16 or 32 bits, or floats, to 0 to 255."""
    values = np.nan_to_num(np.asarray(image).astype(np.float32))
    low, high = float(values.min()), float(values.max())
    # First standard range that contains all values, else min-max.
    maxima = (1, 255, 65535) if image.mode == "F" else (*_tiff_maximum(image), 255, 65535)
    maximum = next((value for value in maxima if low >= 0 and high <= value), None)
    low, high = (0, maximum) if maximum else (low, high)
    # A picture of one value outside all ranges becomes black.
    return Image.fromarray(((values - low) * (255 / ((high - low) or 1))).round().astype(np.uint8))


def _tiff_maximum(image: Image.Image) -> list[int]:
    """Return the maximum of a TIFF's integers if its tag names fewer bits than the 16 or 32 of the memory."""
    bits = int(np.max(getattr(image, "tag_v2", {}).get(_TIFF_BITS_PER_SAMPLE, 16)))
    return [2**bits - 1] if bits < 16 else []


def _why_not_a_picture(source: Path | bytes) -> str:
    if isinstance(source, bytes):
        head = source[:512]
    else:
        with source.open("rb") as file:
            head = file.read(512)
    if not head:
        return "is empty"
    if head[4:8] == b"ftyp" and head[8:12] in (b"heic", b"heix", b"hevc", b"mif1", b"msf1"):
        return "is a HEIC picture, which is not supported: convert it to JPEG or PNG"
    if head.startswith((b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"II*\0", b"MM\0*")):
        return "is damaged or of a rare kind (its header cannot be read)"
    if b"\0" not in head and head.isascii():
        return "is not a picture: it holds text"
    return f"is not a picture of a supported format ({', '.join(FORMATS)})"
