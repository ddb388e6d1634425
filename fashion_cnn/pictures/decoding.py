"""Decode a picture file by its content: upright, with eight bits per channel, within limits of memory and work."""

import io
import logging
import math
import re
import stat
import struct
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import (
    Image,
    ImageFile,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    TiffImagePlugin,
    TiffTags,
    UnidentifiedImageError,
)

# Formats that Pillow decodes itself. It would start an external program for EPS, and decode an ICO before its size is
# known.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "AVIF", "TIFF", "BMP", "JPEG2000", "PPM")
# The largest cameras have a little more than 100 million; the header of a small file can claim any number.
MAX_PIXELS = 120_000_000
# Maximum memory in bytes of all pictures that are decoded at the same time, and therefore of each of them.
MAX_BYTES = 600_000_000
# Maximum number of scans of a JPEG, each of which visits all pixels: an ordinary progressive one has about ten.
MAX_SCANS = 100
_MAX_SCANNED_PIXELS = 12 * MAX_PIXELS
# Limits of the rare formats that Pillow decodes in Python.
_MAX_PIXELS_IN_PYTHON, _MAX_BYTES_IN_PYTHON, _MAX_COMMENTS = 1_000_000, 4_000_000, 1000
# Maximum number of blocks of a GIF before its first frame, and of their parts: an ordinary file has a few hundred.
_MAX_GIF_PARTS = 100_000
# Maximum number of chunks of a PNG, each of which Pillow reads by itself: encoders write one per few kilobytes.
_MAX_PNG_CHUNKS = 100_000
# Maximum number of strips or tiles of an uncompressed TIFF, each of which Pillow decodes by itself.
_MAX_TILES = 200_000
# Maximum size in bytes of a tag of TIFF or EXIF with numbers, for each of which Pillow creates an object.
_MAX_TAG_BYTES = 2_000_000
# Maximum number of parts of the EXIF data: files have a few, and Pillow copies all earlier parts for each further one.
_MAX_EXIF_PARTS = 100
# Maximum number of markers and boxes in the header of a JPEG 2000 (ordinary files have about ten), and of its different
# coding styles (ordinary files have one), in total and over all tiles.
_MAX_MARKERS, _MAX_STYLES, _MAX_STYLES_OF_TILES = 1000, 100, 100_000
# Maximum number of precincts and code blocks of a JPEG 2000, which the decoder allocates before it reads pixels; large
# pictures may have one more per `_MIN_SAMPLES_PER_PART`. Blocks of 64 x 64 or 32 x 32 samples are common.
_MAX_PARTS, _MIN_SAMPLES_PER_PART = 100_000, 150
# Memory that the decoder allocates for each of these parts, and for each tile.
_BYTES_PER_PART, _BYTES_PER_TILE = 320, 12_000
# Maximum number of compressed bytes of a JPEG 2000 that are decoded; seven million take a second.
_MAX_JPEG2000_BYTES = 50_000_000
# Maximum number of compressed bytes that a sample takes.
_MAX_BYTES_PER_SAMPLE = 4
# Pictures are converted in bands of about this many pixels, since there is no memory for copies of large pictures.
_BAND_PIXELS = 4_000_000
# Further memory for each column of a picture with millions of columns.
_BYTES_PER_COLUMN = 24
# Further memory for each value of more than eight bits in a band.
_BYTES_PER_VALUE = 12
# Pictures that take less memory, in bytes, do not wait for it.
_SMALL = 16_000_000
_JPEG = b"\xff\xd8\xff"
_GIF = b"GIF8"
_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG2000 = (b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  ")
# Markers of the coding style of a JPEG 2000: that of all channels, and that of one.
_COD, _COC = 0xFF52, 0xFF53
# Marker at the start of each scan of a JPEG.
_SCAN = b"\xff\xda"
TOO_LONG = "takes too long to decode: save it as an ordinary JPEG or PNG file"
_ORIENTATION = 0x0112
_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class UnreadablePictureError(ValueError):
    """A file is not a picture, or damaged. The message continues a sentence that begins with the file's name."""


class TooManyPixelsError(UnreadablePictureError):
    """A picture would take too much memory."""


def _limit_tags() -> None:
    """Let Pillow refuse tags of TIFF and EXIF, in files of any format, with far more numbers than pictures need."""
    handlers = TiffImagePlugin.ImageFileDirectory_v2._load_dispatch
    for kind, (size, handler) in handlers.items():
        # Bytes and texts stay one object.
        if kind not in (TiffTags.BYTE, TiffTags.ASCII, TiffTags.UNDEFINED):
            handlers[kind] = size, partial(_read_numbers, handler)


def _read_numbers(read: Callable[..., Any], directory: Any, data: bytes, *arguments: Any) -> Any:
    if len(data) > _MAX_TAG_BYTES:
        raise UnreadablePictureError(TOO_LONG)
    return read(directory, data, *arguments)


_limit_tags()


class _Memory:
    """Memory for pictures, shared by all threads: what does not fit waits until others are done."""

    def __init__(self, size: int) -> None:
        self._free = size
        self._freed = threading.Condition()

    @contextmanager
    def reserve(self, size: int) -> Iterator[None]:
        if size <= _SMALL:
            yield
            return
        with self._freed:
            self._freed.wait_for(lambda: self._free >= size)
            self._free -= size
        try:
            yield
        finally:
            with self._freed:
                self._free += size
                self._freed.notify_all()


_memory = _Memory(MAX_BYTES)


def decode(source: Path | bytes, *, min_pixels: int | None = None, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode a picture and rotate it as its EXIF orientation says.

    Animations give their first frame. More than eight bits per channel are scaled to eight.

    Args:
        source: a file, or its content.
        min_pixels: reduce a larger picture by an integer factor that leaves at least as many pixels; a JPEG or
            JPEG 2000 is reduced while it is decoded, which saves time and memory.
        max_pixels: maximum number of pixels in memory, at most MAX_PIXELS.

    Returns:
        A picture of mode L, LA, RGB or RGBA.

    Raises:
        TooManyPixelsError: if the picture is larger than `max_pixels` or MAX_BYTES allows.
        UnreadablePictureError: if it cannot be decoded for another reason.
    """
    try:
        source = _with_content(source)
        with open_picture(source) as image:
            width, height = image.size
            pixels, memory = _configure(image, source, _reduction(image.size, min_pixels))
            if pixels > max_pixels or width * height > MAX_PIXELS:
                raise TooManyPixelsError(_too_large(f"{width:,} x {height:,} pixels; ", min(max_pixels, MAX_PIXELS)))
            if memory > MAX_BYTES:
                needed = f"{width:,} x {height:,} pixels of this kind take {memory / 1e6:,.0f} MB"
                raise TooManyPixelsError(f"is too large ({needed}; {MAX_BYTES / 1e6:g} MB are the most)")
            with _memory.reserve(memory):
                image.load()
                return _finish(image, min_pixels)
    except UnreadablePictureError:
        raise
    except UnidentifiedImageError:
        raise UnreadablePictureError(_why_not_a_picture(source)) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise TooManyPixelsError(_too_large("", max_pixels)) from None
    except MemoryError:
        raise TooManyPixelsError("is too large (there is not enough memory to decode it)") from None
    except OSError as error:
        reason = f"cannot be read ({error.strerror})" if error.errno else f"is damaged ({error})"
        raise UnreadablePictureError(reason) from error
    except Exception as error:  # Pillow raises many kinds of errors on damaged files.
        raise UnreadablePictureError(f"is damaged ({str(error) or type(error).__name__})") from error


def open_picture(source: Path | bytes) -> ImageFile.ImageFile:
    """Open a picture, which reads its header, not its pixels. Pillow's errors pass through."""
    source = _with_content(source)
    if isinstance(source, bytes) and source.startswith(_JPEG):
        # This number is an upper bound, since it includes thumbnails; compressed pixels never contain the marker.
        if (scans := source.count(_SCAN)) > MAX_SCANS:
            raise UnreadablePictureError(f"takes too long to decode ({scans:,} scans; {MAX_SCANS} are the most)")
        if source.count(b"Exif\0\0") > _MAX_EXIF_PARTS:
            raise UnreadablePictureError("is damaged (its EXIF data has too many parts)")
    if isinstance(source, bytes) and source.startswith(_GIF):
        _check_gif(source)
    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
        if file.read(len(_PNG)) == _PNG:
            _check_png(file)
    return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)


def _check_png(file: BinaryIO) -> None:
    """Refuse a PNG with a great many chunks. The file is read from its first one."""
    for _ in range(_MAX_PNG_CHUNKS):
        head = file.read(8)
        if len(head) < 8 or head[4:] == b"IEND":
            return
        file.seek(int.from_bytes(head[:4]) + 4, io.SEEK_CUR)
    raise UnreadablePictureError(TOO_LONG)


def _check_gif(content: bytes) -> None:
    """Refuse a GIF with a great many comments and other blocks before its first frame: Pillow reads each by itself."""
    flags = content[10] if len(content) > 10 else 0
    position, in_block = 13 + (3 * (2 << (flags & 7)) if flags & 128 else 0), False
    for _ in range(_MAX_GIF_PARTS):
        byte = content[position : position + 1]
        if in_block:
            position += 1 + (byte[0] if byte else 0)
            in_block = byte not in (b"", b"\0")
        elif byte == b"!":
            position, in_block = position + 2, True
        elif byte in (b"", b",", b";"):
            return
        else:
            position += 1
    raise UnreadablePictureError(TOO_LONG)


def is_picture(path: Path) -> bool:
    """Return whether a regular file has the header of a picture."""
    try:
        if not path.is_file():  # A named pipe could block for ever.
            return False
        with open_picture(path):
            return True
    except (UnreadablePictureError, Image.DecompressionBombError, Image.DecompressionBombWarning):
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


def _too_large(size: str, limit: int) -> str:
    return f"is too large ({size}{limit / 1e6:g} million pixels are the most)"


def _with_content(source: Path | bytes) -> Path | bytes:
    """Return the content of a JPEG, JPEG 2000 or GIF file, whose structure is looked through; other files as is."""
    if isinstance(source, bytes):
        return source
    if not stat.S_ISREG(source.stat().st_mode):  # Reading a named pipe could block for ever.
        raise UnreadablePictureError("is not a regular file")
    if (size := source.stat().st_size) > MAX_BYTES:
        raise TooManyPixelsError(f"is too large ({size / 1e6:,.0f} MB; {MAX_BYTES / 1e6:g} MB are the most)")
    with source.open("rb") as file:
        head = file.read(12)
        return head + file.read() if head.startswith((_JPEG, _GIF, *_JPEG2000)) else source


def _content(source: Path | bytes) -> bytes:
    return source if isinstance(source, bytes) else source.read_bytes()


def _size(source: Path | bytes) -> int:
    return len(source) if isinstance(source, bytes) else source.stat().st_size


def _reduction(size: tuple[int, int], min_pixels: int | None) -> int:
    """Return the largest integer factor by which both sides can shrink with at least `min_pixels` pixels left."""
    return max(1, math.isqrt(size[0] * size[1] // min_pixels)) if min_pixels else 1


# Work and memory, known before pixels are decoded


def _configure(image: ImageFile.ImageFile, source: Path | bytes, factor: int) -> tuple[int, int]:
    """Let the decoder reduce the picture if it can, and refuse files that take far more work than their pixels.

    Returns:
        The pixels that are held in memory, and an estimate of the bytes that decoding takes.
    """
    pixels = image.width * image.height
    areas = [(right - left) * (bottom - top) for _, (left, top, right, bottom), *_ in image.tile]  # type: ignore[misc]
    # A TIFF may name the same bytes for any number of strips.
    if sum(areas) > 8 * pixels:
        raise UnreadablePictureError("is damaged (its tiles overlap)")
    if len(areas) > _MAX_TILES:
        raise UnreadablePictureError(TOO_LONG)
    if isinstance(image, JpegImagePlugin.JpegImageFile):
        return _configure_jpeg(image, _content(source), factor)
    if isinstance(image, Jpeg2KImagePlugin.Jpeg2KImageFile):
        return _configure_jpeg2000(image, _content(source), factor)
    memory = pixels * _bytes_per_pixel(image.mode)
    # The buffers of decoders and the bands of the conversion hold whole rows.
    if image.width > _BAND_PIXELS:
        memory += _BYTES_PER_COLUMN * image.width
    band = min(pixels, image.width * factor)
    if band > _BAND_PIXELS and (image.mode == "F" or image.mode.startswith("I")):
        memory += _BYTES_PER_VALUE * band
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return pixels, memory + _check_tiff(image, source, memory)
    if image.format in ("WEBP", "AVIF"):
        # Two canvases, or planes of 16 bits, and the pixels as bytes.
        return pixels, memory + 16 * pixels
    if image.tile and image.tile[0][0] in ("ppm", "ppm_plain", "bmp_rle"):
        if _size(source) > _MAX_BYTES_IN_PYTHON or pixels > _MAX_PIXELS_IN_PYTHON:
            raise UnreadablePictureError(TOO_LONG)
        # Pillow copies a block of a megabyte for each comment.
        if image.tile[0][0] == "ppm_plain" and _content(source).count(b"#") > _MAX_COMMENTS:
            raise UnreadablePictureError(TOO_LONG)
    return pixels, memory


def _bytes_per_pixel(mode: str) -> int:
    return 1 if mode in ("1", "L", "P") else 2 if mode.startswith("I;16") else 4


def _configure_jpeg(image: JpegImagePlugin.JpegImageFile, content: bytes, factor: int) -> tuple[int, int]:
    full = image.width * image.height
    several_scans = _has_several_scans(content, image.layers)
    if several_scans and content.count(_SCAN) * full > _MAX_SCANNED_PIXELS:
        raise UnreadablePictureError(TOO_LONG)
    if factor > 1:
        image.draft(None, (image.width // factor, image.height // factor))
    pixels = image.width * image.height
    memory = pixels * _bytes_per_pixel(image.mode)
    if not several_scans:
        return pixels, memory
    # Coefficients of 16 bits are held in full size, however small the draft; channels of colour usually have fewer.
    samples = [max(1, across) * max(1, down) for _, across, down, _ in image.layer]
    return full, memory + 2 * full * sum(samples) // max(samples)


def _has_several_scans(jpeg: bytes, layers: int) -> bool:
    """Return whether a JPEG is progressive or has a scan for each channel: its first scan is not a whole picture."""
    position, progressive = 2, False
    while (position := jpeg.find(b"\xff", position)) >= 0 and position + 5 <= len(jpeg):
        marker = jpeg[position + 1]
        if marker == 0xDA:
            return progressive or jpeg[position + 4] < layers
        progressive |= marker in (0xC2, 0xC6, 0xCA, 0xCE)
        has_length = marker > 0x01 and marker != 0xFF and not 0xD0 <= marker <= 0xD9
        position += 2 + int.from_bytes(jpeg[position + 2 : position + 4]) if has_length else 1
    return progressive


def _configure_jpeg2000(image: Jpeg2KImagePlugin.Jpeg2KImageFile, content: bytes, factor: int) -> tuple[int, int]:
    levels, structures = _read_jpeg2000_header(image, content)
    # Leave out the finest resolutions, as far as the file has coarser ones.
    power = min(levels, factor.bit_length() - 1)
    width, height = (-(-side >> power) for side in image.size)
    if power:
        image.reduce = power
        # Pillow rounds the reduced size; the decoder rounds it up.
        image._size = (width << power, height << power)
    if min(len(content), _MAX_BYTES_PER_SAMPLE * width * height * len(image.getbands())) > _MAX_JPEG2000_BYTES:
        raise UnreadablePictureError(TOO_LONG)
    # Coefficients of 32 bits, and samples of 8 or 16.
    channel = 6 if image.mode == "I;16" else 5
    memory = width * height * (_bytes_per_pixel(image.mode) + channel * len(image.getbands()))
    return width * height, memory + structures


def _read_jpeg2000_header(image: Image.Image, content: bytes) -> tuple[int, int]:
    """Return how many times the resolution can be halved, and the bytes that tiles, precincts and blocks take."""
    try:
        position = _find_jpeg2000_codestream(content)
        start, length, _, right, bottom, left, top, *tile, channels = struct.unpack_from(
            ">IHHIIIIIIIIH", content, position
        )
        if start != 0xFF4FFF51 or length != 38 + 3 * channels or not (tile[0] and tile[1]):
            raise UnreadablePictureError("is damaged (its header cannot be read)")
        if (right - left, bottom - top) != image.size or channels > 4:
            raise UnreadablePictureError("is damaged (it names two sizes)")
        levels = _jpeg2000_levels(content, position + 4 + length)
    except struct.error:
        raise UnreadablePictureError("is damaged (its header ends early)") from None
    tiles = -(-(right - tile[2]) // tile[0]) * -(-(bottom - tile[3]) // tile[1])
    sides = min(tile[0], image.width), min(tile[1], image.height)
    styles = _jpeg2000_styles(content)
    counts = [_count_jpeg2000_parts(sides, style) for _, style in styles] or [(0, 0)]
    parts, precincts = (max(numbers) * channels for numbers in zip(*counts, strict=True))
    if parts * tiles > _MAX_PARTS + image.width * image.height * channels // _MIN_SAMPLES_PER_PART:
        raise UnreadablePictureError(TOO_LONG)
    # The decoder marks the packets that it has read: one of each layer for each precinct.
    packets = (1 + max((layers for layers, _ in styles), default=0)) * precincts
    return 0 if left or top else levels, tiles * _BYTES_PER_TILE + parts * _BYTES_PER_PART + 2 * packets


def _find_jpeg2000_codestream(content: bytes) -> int:
    """Return the position after the header of the first box with pixels; a file may also begin with them."""
    if content.startswith(_JPEG2000[0]):
        return 0
    position = 0
    for _ in range(_MAX_MARKERS):
        length, kind = struct.unpack_from(">I4s", content, position)
        if kind == b"jp2c":
            return position + (16 if length == 1 else 8)
        if length == 1:
            (length,) = struct.unpack_from(">Q", content, position + 8)
        if length < 8:
            raise UnreadablePictureError("is damaged (it has no pixels)")
        position += length
    raise UnreadablePictureError(TOO_LONG)


def _jpeg2000_levels(content: bytes, position: int) -> int:
    """Return the levels that all channels have, by the markers before the first tile."""
    levels = [32]
    for _ in range(_MAX_MARKERS):
        marker, length = struct.unpack_from(">HH", content, position)
        if marker == 0xFF90 or length < 2:  # the first tile
            return min(levels) if len(levels) > 1 else 0
        if marker in (_COD, _COC):
            levels.append(content[position + (9 if marker == _COD else 6)])
        position += 2 + length
    raise UnreadablePictureError(TOO_LONG)


def _jpeg2000_styles(content: bytes) -> set[tuple[int, bytes]]:
    """Return layers and parameters (from the levels on) of all coding styles, also of tiles and single channels.

    Any place is looked at, since a tile may have its own; in compressed pixels such bytes are most unlikely.
    """
    styles: set[tuple[int, bytes]] = set()
    for number, match in enumerate(re.finditer(rb"(?s)\xff(?=([\x52\x53])\0([\x09-\x2d])(.{7,43}))", content)):
        if number > _MAX_STYLES_OF_TILES or len(styles) > _MAX_STYLES:
            raise UnreadablePictureError(TOO_LONG)
        kind, (length,), data = match.groups()
        before = 4 if kind == b"\x52" else 1
        layers = int.from_bytes(data[2:4]) if kind == b"\x52" else 1
        flags, style = data[0 if kind == b"\x52" else 1], data[before + 1 : length - 2]
        if len(style) < 5 or style[0] > 32 or len(style) != (5 + style[0] + 1 if flags & 1 else 5):
            continue
        if max(style[1:3]) <= 8 and style[1] + style[2] <= 8:
            styles.add((layers, style))
    return styles


def _count_jpeg2000_parts(size: tuple[int, int], style: bytes) -> tuple[int, int]:
    """Return the precincts and code blocks of a channel of a tile, and those precincts if all levels had the most."""
    levels, block_width, block_height, _, _, *precincts = style
    parts = most = 0
    for resolution in range(levels + 1):
        precinct = precincts[resolution] if precincts else 0xFF
        exponents = ((precinct & 15, block_width + 2), (precinct >> 4, block_height + 2))
        count, blocks, bands = 1, 1, 3 if resolution else 1
        for side, (exponent, block) in zip(size, exponents, strict=True):
            length = -(-side >> (levels - resolution))
            count *= -(-length >> exponent)
            # Bands of details have half the side, and so have their precincts.
            halved = int(bands == 3)
            blocks *= -(-length >> halved + min(block, max(0, exponent - halved)))
        parts += count + bands * blocks
        most = max(most, count)
    return parts, (levels + 1) * most


def _check_tiff(image: TiffImagePlugin.TiffImageFile, source: Path | bytes, memory: int) -> int:
    """Refuse a TIFF whose strips or tiles share bytes, and return the memory beside its pixels."""
    tags = image.tag_v2
    # Pillow rotates a TIFF while it loads it, which takes a second copy.
    further = memory if tags.get(_ORIENTATION, 1) != 1 else 0
    if not image.use_load_libtiff:
        return further
    width, height = tags[TiffImagePlugin.IMAGEWIDTH], tags[TiffImagePlugin.IMAGELENGTH]
    if TiffImagePlugin.TILEOFFSETS in tags:
        columns, rows = tags[TiffImagePlugin.TILEWIDTH], tags[TiffImagePlugin.TILELENGTH]
        counts = tags.get(TiffImagePlugin.TILEBYTECOUNTS, ())
    else:
        columns, rows = width, min(tags.get(TiffImagePlugin.ROWSPERSTRIP, height), height)
        counts = tags.get(TiffImagePlugin.STRIPBYTECOUNTS, ())
    strips = -(-height // max(1, rows)) * -(-width // max(1, columns))
    if (strips > 1 and not counts) or sum(counts if isinstance(counts, tuple) else (counts,)) > 2 * _size(source):
        raise UnreadablePictureError("is damaged (its strips overlap)")
    if image.info["compression"] in ("jpeg", "tiff_jpeg"):
        scans = _content(source).count(_SCAN)
        if scans * width * height > strips * _MAX_SCANNED_PIXELS:
            raise UnreadablePictureError(TOO_LONG)
    bits = int(np.sum(tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,))))
    return further + columns * rows * max(4, -(-bits // 8))


# Decoded pixels


def _finish(image: Image.Image, min_pixels: int | None) -> Image.Image:
    """Return a loaded picture upright, with eight bits per channel, and reduced; in bands if it is large."""
    factor, orientation = _reduction(image.size, min_pixels), _orientation(image)
    limits = _value_limits(image) if image.mode == "F" or image.mode.startswith("I") else None

    def finish(part: Image.Image) -> Image.Image:
        part = _scale_to_eight_bits(part, *limits) if limits else _to_eight_bits(part)
        if orientation in _TRANSPOSITIONS:
            part = part.transpose(_TRANSPOSITIONS[orientation])
        # Not `part.reduce`, which is a setting of JPEG 2000 files.
        return Image.Image.reduce(part, factor)

    width, height = image.size if orientation < 5 else image.size[::-1]
    rows = max(1, _BAND_PIXELS // (width * factor)) * factor
    if rows >= height:
        return finish(image)
    finished = None
    for top in range(0, height, rows):
        start, end = top, min(top + rows, height)
        if orientation in (3, 4, 7, 8):  # the picture begins at the bottom or at the right
            start, end = height - end, height - start
        part = finish(image.crop((0, start, width, end) if orientation < 5 else (start, 0, end, width)))
        if finished is None:
            finished = Image.new(part.mode, (part.width, -(-height // factor)))
        finished.paste(part, (0, top // factor))
    assert finished is not None
    return finished


def _orientation(image: Image.Image) -> int:
    """Return how the camera was held, 1 to 8; damaged EXIF does not make the pixels unreadable."""
    with suppress(Exception):
        orientation = image.getexif().get(_ORIENTATION, 1)
        return orientation if orientation in _TRANSPOSITIONS else 1
    return 1


def _to_eight_bits(image: Image.Image) -> Image.Image:
    mode = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
    if image.has_transparency_data:
        mode += "A"
    # `convert` copies even if the mode is the same.
    return image if image.mode == mode else image.convert(mode)


def _value_limits(image: Image.Image) -> tuple[float, float]:
    """Return the values of black and white of a picture with integers of 16 or 32 bits, or floats."""
    rows = max(1, _BAND_PIXELS // image.width)
    bands = [
        (values.min(), values.max())
        for top in range(0, image.height, rows)
        for values in (_floats(image.crop((0, top, image.width, min(top + rows, image.height)))),)
    ]
    low, high = float(min(low for low, _ in bands)), float(max(high for _, high in bands))
    # First standard range that contains all values, else min-max.
    maxima = (1, 255, 65535) if image.mode == "F" else (*_tiff_maximum(image), 255, 65535)
    maximum = next((value for value in maxima if low >= 0 and high <= value), None)
    return (0, maximum) if maximum else (low, high)


def _scale_to_eight_bits(image: Image.Image, low: float, high: float) -> Image.Image:
    # A picture of one value outside all ranges becomes black.
    return Image.fromarray(((_floats(image) - low) * (255 / ((high - low) or 1))).round().astype(np.uint8))


def _floats(image: Image.Image) -> NDArray[np.float32]:
    return np.nan_to_num(np.asarray(image).astype(np.float32))


def _tiff_maximum(image: Image.Image) -> list[int]:
    """Return the maximum of a TIFF's integers if its tag names fewer bits than the 16 or 32 of the memory."""
    bits = int(np.max(getattr(image, "tag_v2", {}).get(TiffImagePlugin.BITSPERSAMPLE, 16)))
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
