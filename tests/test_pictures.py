"""Finding, decoding and preparing picture files."""

import glob
import io
import os
import struct
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFile, ImageOps

from fashion_cnn.errors import UserError
from fashion_cnn.pictures import (
    Preparation,
    TooManyPixelsError,
    UnreadablePictureError,
    decode,
    decoding,
    find_pictures,
)
from fashion_cnn.pictures.decoding import is_picture
from fashion_cnn.pictures.isolation import PictureProcess

FRAME = (1, 28, 28)


def encoded(picture, kind="PNG", **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def png_with_header_size(width, height):
    """A PNG of a hundred bytes whose header claims this size."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def garment(size=(600, 800), background=(255, 255, 255), colour=(40, 60, 120), inset=0.25):
    """A dress of one colour: narrow above, wide below."""
    picture = Image.new("RGB", size, background)
    width, height = size
    box = [(0.4, 0), (0.6, 0), (0.75, 1), (0.25, 1)]
    points = [((inset + x * (1 - 2 * inset)) * width, (inset + y * (1 - 2 * inset)) * height) for x, y in box]
    ImageDraw.Draw(picture).polygon(points, fill=colour)
    return picture


# Decoding


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"only a text\n", "it holds text"),
        (encoded(garment(), "JPEG")[:3000], "is damaged .*truncated"),
        (encoded(garment())[:1000], "is damaged"),
        (png_with_header_size(1, 1), "is damaged"),
        (b"\xff\xd8\xff" + bytes(40), "is damaged or of a rare kind"),
        (png_with_header_size(50_000, 50_000), "too large"),
        (png_with_header_size(12_000, 11_000), r"too large \(12,000 x 11,000 pixels"),
        (b"\0\0\0\x18ftypheic" + bytes(100), "HEIC picture"),
        (bytes(range(256)), "not a picture of a supported format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture"),
    ],
    ids=["empty", "text", "cut JPEG", "cut PNG", "no rows", "header", "bomb", "too large", "HEIC", "noise", "EPS"],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_unreadable_files_raise_with_a_reason(tmp_path, content, reason):
    path = tmp_path / "picture.png"
    path.write_bytes(content)
    for source in (path, content):
        with pytest.raises(UnreadablePictureError, match=reason):
            decode(source)


def test_the_format_is_detected_by_content_not_by_name(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_bytes(encoded(garment(), "GIF"))
    assert decode(path).size == (600, 800)


@pytest.mark.parametrize(
    ("source_mode", "mode"),
    [("1", "L"), ("L", "L"), ("LA", "LA"), ("P", "RGB"), ("RGB", "RGB"), ("RGBA", "RGBA"), ("CMYK", "RGB")],
)
def test_each_mode_is_decoded_to_eight_bits_with_its_colours(source_mode, mode):
    kind = "TIFF" if source_mode == "CMYK" else "PNG"
    decoded = decode(encoded(Image.new("RGB", (4, 4), (255, 255, 255)).convert(source_mode), kind))
    assert decoded.mode == mode
    assert np.asarray(decoded.convert("RGB")).min() == 255


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 32896, 65535]], np.uint16), [0, 128, 255]),
        (np.array([[0, 32896, 65535]], np.int32), [0, 128, 255]),
        (np.array([[0.0, 0.5, 1.0]], np.float32), [0, 128, 255]),
        (np.array([[0.0, 128.0, 255.0]], np.float32), [0, 128, 255]),
        (np.array([[-5.0, 0.0, 5.0]], np.float32), [0, 128, 255]),
        (np.array([[np.nan, 1.0, 0.0]], np.float32), [0, 255, 0]),
        (np.array([[0, 0, 0]], np.int32), [0, 0, 0]),
        (np.array([[0, 128, 255]], np.int32), [0, 128, 255]),
        (np.array([[0, 128, 255]], np.uint16), [0, 128, 255]),
        (np.array([[300, 300, 300]], np.float32), [1, 1, 1]),
        (np.array([[-5, -5, -5]], np.float32), [0, 0, 0]),
        (np.array([[100_000, 100_000]], np.int32), [0, 0]),
    ],
)
def test_more_than_eight_bits_are_scaled_not_clipped(values, expected):
    decoded = decode(encoded(Image.fromarray(values), "TIFF"))
    assert decoded.mode == "L"
    assert np.asarray(decoded)[0].tolist() == expected


def gif(blocks):
    """A GIF of one pixel with blocks before its frame."""
    head = b"GIF89a\1\0\1\0\x80\0\0" + b"\0\0\0\xff\xff\xff"
    return head + blocks + b",\0\0\0\0\1\0\1\0\0\2\2D\1\0;"


def test_a_gif_with_ordinary_comments_is_decoded(tmp_path):
    content = gif((b"!\xfe\xff" + b"x" * 255 + b"\3yes\0") * 500)
    (tmp_path / "a.gif").write_bytes(content)
    assert decode(content).size == decode(tmp_path / "a.gif").size == (1, 1)


@pytest.mark.parametrize("tag", [281, 341], ids=["MaxSampleValue", "SMaxSampleValue"])
def test_tags_of_the_sample_maximum_do_not_change_the_range_of_a_tiff(tag):
    values = np.array([[0, 500, 1000]], np.uint16)
    decoded = decode(encoded(Image.fromarray(values), "TIFF", tiffinfo={tag: 1000}))
    assert np.asarray(decoded).max() == round(1000 * 255 / 65535)


def test_a_twelve_bit_tiff_is_scaled_from_twelve_bits():
    rows = bytes([0x00, 0x07, 0xFF, 0xFF, 0xF0, 0x00])  # 0, 2047, 4095, 0
    tags = [(256, 3, 4), (257, 3, 1), (258, 3, 12), (259, 3, 1), (262, 3, 1), (273, 4, 122), (277, 3, 1), (278, 3, 1)]
    tags.append((279, 4, len(rows)))
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    tiff = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0)
    assert np.asarray(decode(tiff.ljust(122, b"\0") + rows))[0].tolist() == [0, 127, 255, 0]


def test_a_transparent_palette_colour_becomes_transparent(tmp_path):
    picture = Image.new("P", (4, 4), 1)
    picture.putpalette([255, 0, 0, 0, 0, 255])
    picture.putpixel((0, 0), 0)
    decoded = decode(encoded(picture, "GIF", transparency=0))
    assert decoded.mode == "RGBA"
    assert decoded.getpixel((0, 0))[3] == 0
    assert decoded.getpixel((1, 0)) == (0, 0, 255, 255)


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("L", (4, 4), value) for value in (10, 200)]
    decoded = decode(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert decoded.convert("L").getpixel((0, 0)) == 10


def test_a_photograph_is_rotated_by_its_exif_orientation():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned, so its left column is the top row
    picture = Image.new("L", (60, 40))
    picture.paste(255, (0, 0, 20, 40))
    decoded = decode(encoded(picture, "JPEG", exif=exif))
    assert decoded.size == (40, 60)
    assert decoded.getpixel((20, 5)) > 250
    assert decoded.getpixel((20, 50)) < 5


def test_damaged_exif_is_ignored():
    picture = garment((60, 40))
    assert decode(encoded(picture, "JPEG", exif=b"Exif\0\0MM nothing of the kind")).size == (60, 40)


def test_large_pictures_are_reduced_to_at_least_min_pixels():
    for kind in ("PNG", "JPEG"):
        decoded = decode(encoded(garment((1200, 1600)), kind), min_pixels=150 * 200)
        assert 150 * 200 <= decoded.width * decoded.height <= 4 * 150 * 200
        assert decoded.width / decoded.height == 0.75
    assert decode(encoded(garment((60, 80))), min_pixels=100 * 100).size == (60, 80)


@pytest.fixture
def not_loaded(monkeypatch):
    """Fails if pixels are decoded."""
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("pixels are decoded"))


def scans(count, size=(64, 48)):
    """A progressive JPEG whose last scan is repeated up to this number of scans, and whose header claims a size."""
    jpeg = encoded(garment((64, 48)), "JPEG", progressive=True)
    last = jpeg.rindex(b"\xff\xda")
    content = jpeg[:last] + (count - jpeg.count(b"\xff\xda") + 1) * jpeg[last:-2] + jpeg[-2:]
    frame = content.index(b"\xff\xc2") + 5
    return content[:frame] + struct.pack(">HH", size[1], size[0]) + content[frame + 4 :]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (scans(101), "takes too long to decode .101 scans; 100 are the most"),
        (scans(1009), "1,009 scans"),
        (scans(100, size=(4000, 4000)), "takes too long to decode: save it as"),
    ],
)
def test_a_jpeg_of_many_scans_is_refused_before_it_is_decoded(not_loaded, content, reason):
    assert len(content) < 200_000
    with pytest.raises(UnreadablePictureError, match=reason):
        decode(content)


def test_ordinary_scans_are_decoded():
    for content in (scans(100), encoded(garment((640, 480)), "JPEG", progressive=True)):
        assert decode(content).mode == "RGB"


def test_a_jpeg_of_many_exif_parts_is_refused_before_it_is_opened():
    jpeg = encoded(garment((64, 48)), "JPEG")
    part = b"\xff\xe1\x00\x09Exif\0\0."
    assert decode(jpeg[:2] + 3 * part + jpeg[2:]).size == (64, 48)
    with pytest.raises(UnreadablePictureError, match="EXIF data has too many parts"):
        decode(jpeg[:2] + 100_000 * part + jpeg[2:])


def tiff(tags, data=b"", kind=4):
    """A little-endian TIFF with whole numbers as tags; `data` begins at byte 1000."""
    entries, values, position = b"", b"", 10 + 12 * len(tags) + 4
    for tag, value in sorted(tags.items()):
        numbers = value if isinstance(value, list) else [value]
        packed = struct.pack(f"<{len(numbers)}I", *numbers)
        if len(numbers) > 1:
            entries += struct.pack("<HHII", tag, kind, len(numbers), position + len(values))
            values += packed
        else:
            entries += struct.pack("<HHI", tag, kind, 1) + packed
    content = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + values
    return content.ljust(1000, b"\0") + data


DEFLATE = 8
GREY = {258: 8, 262: 1, 277: 1}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        # 100 rows of a deflated strip that all name the same bytes; then without the sizes of the strips.
        (
            tiff({256: 9, 257: 100, 259: DEFLATE, 278: 1, 273: [1000] * 50, 279: [500] * 50, **GREY}, bytes(500)),
            "strips overlap",
        ),
        (tiff({256: 9, 257: 9, 259: DEFLATE, 278: 1, 273: [1000] * 9, **GREY}, bytes(500)), "strips overlap"),
        # 100 times the whole picture, not compressed.
        (tiff({256: 10, 257: 10, 259: 1, 278: 9, 273: [1000] * 100, **GREY}, bytes(100)), "tiles overlap"),
        # A strip for each pixel.
        (
            tiff({256: 1, 257: 300_000, 259: 1, 278: 1, 273: [1000] * 300_000, 279: [1] * 300_000, **GREY}),
            "takes too long",
        ),
        # A tile of 30,000 x 30,000 pixels.
        (
            tiff(
                {256: 9, 257: 9, 259: DEFLATE, 322: 30_000, 323: 30_000, 324: 1000, 325: 50, **GREY},
                zlib.compress(bytes(100)),
            ),
            "pixels of this kind take 3,600 MB",
        ),
        # A million numbers, of which Pillow would make objects.
        (tiff({256: 9, 257: 9, 273: [1000] * 1_000_000, **GREY}), "takes too long"),
        (b"P3 10 10 255 " + b"#\n" * 2000 + b"1 " * 300, "takes too long"),
        (b"P6 2000 2000 100 ", "takes too long"),
        # Comments, parts of one comment, and bytes of no meaning before the first frame.
        (gif(b"!\xfe\1x\0" * 100_000), "takes too long"),
        (gif(b"!\xfe" + b"\1x" * 200_000 + b"\0"), "takes too long"),
        (gif(b"\0" * 200_000), "takes too long"),
        (b"P2 2000 2000 255 ", "takes too long"),
        # Rows of many millions of pixels, of which decoders hold a few.
        (png_with_header_size(80_000_000, 1), "pixels of this kind take"),
        (b"P5 800000 100 65535 ", "pixels of this kind take 1,280 MB"),
    ],
)
def test_a_few_bytes_cannot_claim_much_work(not_loaded, content, reason):
    with pytest.raises(UnreadablePictureError, match=reason):
        decode(content, min_pixels=784)


def png_with_chunks(before=0, behind=0):
    content = encoded(Image.new("L", (20, 20)))
    chunk = struct.pack(">I", 0) + b"aaAa" + struct.pack(">I", zlib.crc32(b"aaAa"))
    return content[:33] + before * chunk + content[33:-12] + behind * chunk + content[-12:]


@pytest.mark.parametrize(("before", "behind"), [(100_000, 0), (0, 100_000)])
def test_a_png_of_many_chunks_is_refused_before_it_is_opened(tmp_path, monkeypatch, before, behind):
    content, file = png_with_chunks(before, behind), tmp_path / "a.png"
    file.write_bytes(content)
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("Pillow opens the file"))
    for source in (content, file):
        with pytest.raises(UnreadablePictureError, match="takes too long"):
            decode(source)
    assert is_picture(file)


def test_a_png_of_ordinary_chunks_is_decoded():
    assert decode(png_with_chunks(100, 100)).size == (20, 20)


def test_the_compressed_bytes_of_a_jpeg_2000_are_limited(monkeypatch):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8))
    whole, levels = (encoded(noise, "JPEG2000", irreversible=False, num_resolutions=count) for count in (1, 4))
    monkeypatch.setattr("fashion_cnn.pictures.decoding._MAX_JPEG2000_BYTES", 20_000)
    assert decode(levels, min_pixels=32 * 32).size == (32, 32)
    for content, min_pixels in ((whole, 32 * 32), (whole, None), (levels, None)):
        with pytest.raises(UnreadablePictureError, match="takes too long"):
            decode(content, min_pixels=min_pixels)


def test_exif_of_a_million_numbers_is_not_read():
    picture, exif = garment(), tiff({274: [6] * 1_000_000})
    content = encoded(picture, "PNG", exif=exif)
    assert decode(content).size == picture.size
    with pytest.raises(UnreadablePictureError, match="takes too long"):
        decode(encoded(picture, "AVIF", exif=b"Exif\0\0" + exif))


def test_a_file_of_gigabytes_is_not_read(tmp_path, not_loaded):
    file = tmp_path / "large.jpg"
    file.write_bytes(encoded(garment(), "JPEG"))
    os.truncate(file, 3_000_000_000)
    with pytest.raises(TooManyPixelsError, match=r"is too large \(3,000 MB; 600 MB are the most\)"):
        decode(file)


def test_plain_and_uncommon_pictures_of_ordinary_size_are_decoded():
    assert decode(b"P3 2 1 100 # red, then green\n 100 0 0 0 100 0").getpixel((1, 0)) == (0, 255, 0)
    for compression in ("raw", "tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits"):
        content = encoded(garment(), "TIFF", compression=compression)
        assert decode(content, min_pixels=784).size[0] < 100


@pytest.mark.parametrize(
    ("kind", "mode", "options", "megabytes"),
    [
        ("PNG", "L", {}, 0.12),
        ("PNG", "I;16", {}, 0.24),
        ("PNG", "RGBA", {}, 0.48),
        ("GIF", "L", {}, 0.12),
        ("JPEG", "RGB", {}, 0.48),
        ("JPEG", "RGB", {"progressive": True}, 0.84),
        ("JPEG", "RGB", {"progressive": True, "subsampling": 0}, 1.2),
        ("TIFF", "RGB", {}, 0.48),
        ("WEBP", "RGB", {}, 2.4),
        ("JPEG2000", "RGB", {}, 2.3535121),
    ],
)
def test_the_memory_of_a_picture_is_limited_by_its_format_and_mode(monkeypatch, kind, mode, options, megabytes):
    content = encoded(Image.new(mode, (400, 300)), kind, **options)
    monkeypatch.setattr(decoding, "MAX_BYTES", int(megabytes * 1e6))
    decode(content)
    monkeypatch.setattr(decoding, "MAX_BYTES", int(megabytes * 1e6) - 1)
    with pytest.raises(TooManyPixelsError, match="400 x 300 pixels of this kind take"):
        decode(content)


@pytest.mark.parametrize("size", [(1200, 800), (1201, 803), (1999, 33)])
def test_a_jpeg_2000_is_decoded_in_reduced_resolution(monkeypatch, size):
    content = encoded(garment(size), "JPEG2000")
    decoded, expected = (decode(each, min_pixels=3000) for each in (content, encoded(garment(size))))
    assert 3000 <= decoded.width * decoded.height < 3000 * 4
    assert decoded.width / decoded.height == pytest.approx(size[0] / size[1], rel=0.1)
    difference = np.asarray(decoded.resize(expected.size), np.float32) - np.asarray(expected, np.float32)
    assert np.abs(difference).mean() < 6
    monkeypatch.setattr(decoding, "MAX_BYTES", 19 * size[0] * size[1] // 2)
    assert decode(content, min_pixels=3000, max_pixels=size[0] * size[1] // 2).size == decoded.size
    with pytest.raises(TooManyPixelsError):
        decode(content)
    single = encoded(garment(size), "JPEG2000", num_resolutions=1)
    with pytest.raises(TooManyPixelsError):
        decode(single, min_pixels=3000)


def test_a_jpeg_2000_that_names_two_sizes_is_damaged(not_loaded):
    content = encoded(garment((64, 48)), "JPEG2000")
    header = content.index(b"ihdr") + 4
    with pytest.raises(UnreadablePictureError, match="names two sizes"):
        decode(content[:header] + struct.pack(">II", 4, 4) + content[header + 8 :])


def jpeg2000(size, *, style, tile=None, before=b"", further=b"", levels=0):
    """A grey JPEG 2000 codestream without pixels; `style` has the layers and all that follows the levels."""

    def marker(code, data):
        return struct.pack(">BBH", 0xFF, code, 2 + len(data)) + data

    limits = struct.pack(">H8IH", 0, *size, 0, 0, *(tile or size), 0, 0, 1) + b"\7\1\1"
    layers, *blocks = style
    coding = struct.pack(">BBHBB", len(blocks) > 4, 0, layers, 0, levels) + bytes(blocks)
    header = b"\xff\x4f" + marker(0x51, limits) + before + marker(0x52, coding) + further
    start = header + marker(0x5C, b"\x40" + b"\x48" * (3 * levels + 1))
    return start + b"\xff\x90" + struct.pack(">HHIBB", 10, 0, 64, 0, 1) + b"\xff\x93" + b"\x80" * 50 + b"\xff\xd9"


ORDINARY = (1, 4, 4, 0, 1)


@pytest.mark.parametrize(
    "content",
    [
        jpeg2000((1000, 1000), style=(*ORDINARY, 0)),  # precincts of 1 x 1
        jpeg2000((3000, 3000), style=(1, 0, 0, 0, 1)),  # blocks of 4 x 4
        jpeg2000((3000, 3000), style=(1, 0, 0, 0, 1), levels=5),
        jpeg2000((3000, 3000), style=ORDINARY, further=b"\xff\x53\0\x0a\0\1\0\4\4\0\1\x11"),  # precincts of a channel
        jpeg2000((3000, 3000), style=ORDINARY) + b"\xff\x52\0\x0d\1\0\0\1\0\0\4\4\0\1\0",  # precincts of a tile
        jpeg2000((2550, 2550), style=ORDINARY, tile=(2, 2)),
        jpeg2000((9000, 9000), style=(65535, 4, 4, 0, 1, 0x77)),  # 65535 layers of 4900 precincts
        jpeg2000((99, 99), style=ORDINARY, before=b"\xff\x64\0\2" * 2000),  # comments
    ],
)
def test_the_parts_of_a_jpeg_2000_are_limited(not_loaded, content):
    with pytest.raises(UnreadablePictureError, match=r"takes too long|take .* MB"):
        decode(content)


def test_each_byte_of_a_jpeg_2000_header_is_visited_once(not_loaded, monkeypatch):
    size = jpeg2000((64, 64), style=ORDINARY)[:45]
    content = (size + b"\xff\x64" + struct.pack(">H", 2 + len(size))) * 10_000 + size
    unpack, calls = struct.unpack_from, []
    monkeypatch.setattr(struct, "unpack_from", lambda *args: calls.append(args) or unpack(*args))
    with pytest.raises(UnreadablePictureError, match="takes too long"):
        decode(content, min_pixels=784)
    assert len(calls) < 3000


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"no_jp2": True},
        {"num_resolutions": 1},
        {"codeblock_size": (16, 16)},
        {"precinct_size": (128, 128)},
        {"tile_size": (64, 64)},
        {"quality_layers": [40, 20, 10], "irreversible": True},
    ],
)
def test_ordinary_jpeg_2000_files_are_decoded(options):
    content = encoded(garment((900, 700)), "JPEG2000", **options)
    assert decode(content).size == (900, 700)


NOISE = np.random.default_rng(0).integers(0, 256, (75, 101, 4), dtype=np.uint8)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
@pytest.mark.parametrize("min_pixels", [None, 500, 4000])
def test_bands_give_the_same_pixels_as_the_whole_picture(monkeypatch, orientation, mode, min_pixels):
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = Image.fromarray(NOISE)
    picture = (
        Image.fromarray(NOISE[..., :2].copy().view(np.uint16)[..., 0]) if mode == "I;16" else picture.convert(mode)
    )
    content = encoded(picture, exif=exif)
    whole = decode(content, min_pixels=min_pixels)
    if mode in ("L", "RGB") and not min_pixels:
        upright = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
        assert np.array_equal(np.asarray(whole), np.asarray(upright))
    assert (whole.width > whole.height) == (orientation < 5)
    monkeypatch.setattr(decoding, "_BAND_PIXELS", 300)
    in_bands = decode(content, min_pixels=min_pixels)
    assert in_bands.mode == whole.mode
    assert np.array_equal(np.asarray(in_bands), np.asarray(whole))


def test_large_pictures_wait_for_each_others_memory(monkeypatch):
    monkeypatch.setattr(decoding, "_memory", decoding._Memory(800_000))
    monkeypatch.setattr(decoding, "_SMALL", 400_000)
    load, lock, sizes, peaks = ImageFile.ImageFile.load, threading.Lock(), [], []

    def recorded(image):
        with lock:
            sizes.append(image.width)
            peaks.append(sum(size > 100 for size in sizes))
        time.sleep(0.01)
        result = load(image)
        with lock:
            sizes.remove(image.width)
        return result

    monkeypatch.setattr(ImageFile.ImageFile, "load", recorded)
    pictures = [encoded(garment((400, 300))), encoded(garment((50, 40)))] * 4
    with ThreadPoolExecutor(8) as threads:
        assert [each.width for each in threads.map(decode, pictures)] == [400, 50] * 4
    assert max(peaks) == 1


# In a process of their own


@pytest.fixture(scope="module")
def picture_process():
    process = PictureProcess(max_pixels=16_000_000, seconds=60)
    yield process
    process.close()


@pytest.mark.processes
def test_another_process_prepares_pictures_as_this_one_does(picture_process):
    for preparation in (Preparation(FRAME), Preparation((3, 20, 30), cut_out=False, background=0)):
        contents = [encoded(garment()), encoded(garment((300, 200)), "JPEG"), encoded(cut_out((250, 250, 250)))]
        for content, array in zip(contents, picture_process.prepare(contents, preparation), strict=True):
            assert torch.from_numpy(array).equal(preparation(decode(content, min_pixels=preparation.min_pixels)))


@pytest.mark.processes
def test_the_first_unreadable_picture_ends_the_answer_of_the_process(picture_process):
    array, error = picture_process.prepare([encoded(garment()), b"text", encoded(garment())], Preparation(FRAME))
    assert array.shape == FRAME
    assert str(error) == "is not a picture: it holds text"
    (error,) = picture_process.prepare([png_with_header_size(6000, 6000)], Preparation(FRAME))
    assert isinstance(error, TooManyPixelsError)
    assert "16 million pixels are the most" in str(error)
    (error,) = picture_process.prepare([b""], Preparation(FRAME))
    assert str(error) == "is empty"


@pytest.mark.processes
def test_the_process_finds_items_without_preparing_the_whole_picture(picture_process):
    picture = Image.new("RGB", (320, 240), "white")
    for left, side in ((40, 80), (180, 60)):
        picture.paste((90, 90, 90), (left, 60, left + side, 60 + side))
    # A prepared picture of this size would exceed the memory of the process.
    preparation = Preparation((3, 20_000, 20_000), cut_out=False, photograph=True)
    assert picture_process.find_items(encoded(picture), preparation) == preparation.find_items(picture)
    assert len(preparation.find_items(picture)) == 2


@pytest.mark.processes
def test_a_picture_that_takes_too_long_ends_the_process_and_the_next_one_starts_another():
    process = PictureProcess(max_pixels=16_000_000, seconds=0.02)
    slow = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (1000, 4000), dtype=np.uint8)))
    (error,) = process.prepare([slow] * 4, Preparation(FRAME))[-1:]
    assert "takes too long to decode" in str(error)
    process.seconds = 60
    assert process.prepare([encoded(garment())], Preparation(FRAME))[0].shape == FRAME
    process.close()
    assert process.prepare([encoded(garment())], Preparation(FRAME))[0].shape == FRAME
    process.close()


@pytest.mark.processes
def test_the_process_imports_neither_torch_nor_what_needs_it():
    code = "import sys, fashion_cnn.pictures.isolation; print({'torch', 'hydra', 'lightning'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


# Preparation


def prepared(picture, **settings):
    return Preparation(FRAME, **settings)(picture)[0]


def item_box(image):
    rows, columns = (image > 12).any(1).nonzero()[:, 0], (image > 12).any(0).nonzero()[:, 0]
    return columns[0].item(), rows[0].item(), columns[-1].item() + 1, rows[-1].item() + 1


@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_of_the_networks_size_keeps_its_pixels(channels):
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 100, (28, 28), dtype=np.uint8)
    grey = Image.fromarray(pixels)
    preparation = Preparation((channels, 28, 28))
    for same in (grey, grey.convert("RGB"), grey.convert("LA"), grey.convert("RGBA")):
        assert preparation(same).shape == (channels, 28, 28)
        assert (preparation(same).numpy() == pixels).all()
    assert (preparation(Image.fromarray(255 - pixels)).numpy() == pixels).all(), "a light background is negated"
    never = Preparation((channels, 28, 28), invert="never")
    assert (never(Image.fromarray(255 - pixels)).numpy() == 255 - pixels).all()
    assert (Preparation((channels, 28, 28), invert="always")(grey).numpy() == 255 - pixels).all()


@pytest.mark.parametrize("background", [255, 225, 128, 40, 0])
@pytest.mark.parametrize("inset", [0, 0.2, 0.4])
def test_the_item_fills_the_frame_on_a_light_or_dark_background(background, inset):
    colour = 120 if background in (255, 225, 0) else 230
    image = prepared(garment(background=(background,) * 3, colour=(colour,) * 3, inset=inset))
    left, top, right, bottom = item_box(image)
    assert (top, bottom) == (0, 28)
    assert 8 <= right - left <= 14
    assert 0 <= left - (28 - right) <= 1, "centred, an odd pixel to the left"
    assert image[10:20, 13:15].float().mean() > 200
    assert image[:, :5].max() <= 12


def test_position_and_colours_of_the_item_hardly_change_the_result():
    reference = prepared(garment(), sharpening=0).float()
    shifted = Image.new("RGB", (1500, 900), (255, 255, 255))
    shifted.paste(garment(), (850, 90))
    assert (prepared(shifted, sharpening=0) - reference).abs().mean() < 6
    red = garment(colour=(150, 30, 20))
    assert (prepared(red, sharpening=0) - reference).abs().mean() < 6
    clear = Image.merge("RGBA", (*garment().split(), garment().convert("L").point(lambda value: 255 * (value < 255))))
    assert (prepared(clear, sharpening=0) - reference).abs().mean() < 6


def cut_out(colour):
    """A garment of that colour on transparent green."""
    item = garment(background=(0, 255, 0), colour=colour)
    return Image.merge("RGBA", (*item.split(), garment().convert("L").point(lambda value: 255 * (value < 255))))


@pytest.mark.parametrize("colour", [(255, 255, 255), (225, 230, 235), (120, 40, 30), (0, 0, 0)])
def test_an_item_on_transparency_is_visible_in_any_colour(colour):
    reference = prepared(garment(), sharpening=0).float()
    assert (prepared(cut_out(colour), sharpening=0) - reference).abs().mean() < 6
    small = cut_out(colour).resize((28, 28))
    _, top, _, bottom = item_box(prepared(small))
    assert 5 <= top < bottom <= 23, "a picture of the network's size keeps its frame"


def test_transparent_corners_of_a_light_card_stay_light():
    card = garment(colour=(200, 60, 40), inset=0.2)
    plain = prepared(card)
    mask = Image.new("L", card.size)
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, 599, 799), 60, fill=255)
    card.putalpha(mask)
    assert (prepared(card) - plain.int()).abs().max() <= 2


def test_without_cut_out_transparency_shows_the_background_setting():
    preparation = Preparation((3, 30, 20), cut_out=False, background=40)
    assert preparation(cut_out((255, 255, 255)))[:, 0, 0].tolist() == [40, 40, 40]
    assert Preparation((3, 30, 20), cut_out=False)(cut_out((255, 255, 255))).min() == 255


def test_camera_noise_does_not_hide_the_item():
    noise = 6 * np.random.default_rng(0).standard_normal((1000, 800, 3), dtype=np.float32)
    noisy = (np.asarray(garment((800, 1000), background=(225,) * 3)) + noise).clip(0, 255).astype(np.uint8)
    left, top, right, bottom = item_box(prepared(Image.fromarray(noisy)))
    assert (top, bottom) == (0, 28)
    assert right - left <= 14


def test_a_scene_without_a_plain_background_is_kept_whole():
    scene = Image.linear_gradient("L").convert("RGB").resize((400, 300))
    image = prepared(scene)
    assert item_box(image)[0] == 0
    assert item_box(image)[2] == 28
    assert image[:3].max() == 0, "the sides of the frame are black"
    column = image[5:23, 14].int()
    assert (column.diff() < 0).all(), "a light background is negated"


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (28, 29), (8000, 8000), (5000, 1)])
def test_a_picture_of_one_colour_becomes_black(size):
    assert prepared(Image.new("L", size, 200)).max() == 0


def test_without_cut_out_colours_and_background_are_kept():
    preparation = Preparation((3, 20, 30), cut_out=False)
    image = preparation(garment((100, 100), background=(250, 200, 150)))
    assert image.shape == (3, 20, 30)
    assert image[:, 0, 0].tolist() == [250, 200, 150]
    assert image[:, 12, 15].tolist() == [40, 60, 120]
    assert (preparation(garment((30, 20))).permute(1, 2, 0).numpy() == np.asarray(garment((30, 20)))).all()


def test_outlines_are_as_sharp_as_in_the_training_images():
    edges = []
    for tenth in range(10):
        image = prepared(garment((600, 803 + 7 * tenth), inset=0.1 + 0.013 * tenth)).float()
        for row in image[8:24]:
            start = int((row > 12).nonzero()[0])
            edges.append(row[start : start + 2] / row[start + 2 : start + 5].median())
    outermost, second = torch.stack(edges).median(dim=0).values.tolist()
    # Medians over 20,000 training images of tops and dresses: 0.64 to 0.73 and 1.05 to 1.11.
    assert outermost == pytest.approx(0.7, abs=0.12)
    assert second == pytest.approx(1.08, abs=0.06)


# Files


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name in ("b 1.png", "a,b (1)=é.png", "deep/c.JPG", ".hidden.png", "no name"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(garment((30, 40))))
    (tmp_path / "photos" / "text.png").write_text("no picture")
    (tmp_path / "photos" / "notes.md").write_text("no picture")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(files):
    return [str(path) for path in files.paths]


def test_a_folder_gives_files_that_are_pictures_or_named_like_one(folder):
    files = find_pictures("photos")
    assert names(files) == [
        "photos/a,b (1)=é.png",
        "photos/b 1.png",
        "photos/no name",
        "photos/text.png",
        "photos/deep/c.JPG",
    ]
    assert files.skipped == 1


def test_globs_and_lists_give_each_file_once(folder):
    assert names(find_pictures("photos/*.png")) == ["photos/a,b (1)=é.png", "photos/b 1.png", "photos/text.png"]
    assert names(find_pictures("photos/**/c.*")) == ["photos/deep/c.JPG"]
    assert names(find_pictures(["photos/notes.md", "photos/deep", f"{folder}/photos/deep/c.JPG"])) == [
        "photos/notes.md",
        "photos/deep/c.JPG",
    ], "a named file is always included"


def test_folders_and_files_without_permission_are_reported_as_unreadable(folder, monkeypatch):
    scandir, stat, open_file = os.scandir, os.stat, io.open

    def refuse(path):
        if os.fspath(path).endswith(("deep", "b 1.png")):
            raise PermissionError(13, "Permission denied", str(path))

    def refusing(function):
        return lambda path, *args, **kwargs: refuse(path) or function(path, *args, **kwargs)

    # Permissions do not apply to root, so they are simulated.
    monkeypatch.setattr("os.scandir", lambda path: refuse(path) if str(path).endswith("deep") else scandir(path))
    monkeypatch.setattr("os.stat", refusing(stat))
    monkeypatch.setattr("builtins.open", refusing(open_file))
    monkeypatch.setattr("io.open", refusing(open_file))
    files = find_pictures("photos")
    assert {"photos/deep", "photos/b 1.png", "photos/no name"} <= {*names(files)}
    for unreadable in ("photos/deep", "photos/b 1.png"):
        with pytest.raises(UnreadablePictureError, match=r"cannot be read \(Permission denied\)"):
            decode(Path(unreadable))


@pytest.mark.parametrize("name", ["pipe.png", "pipe"])
def test_a_named_pipe_is_not_read(folder, name):
    os.mkfifo(folder / "photos" / name)
    assert not [found for found in names(find_pictures("photos")) if "pipe" in found]
    assert len(find_pictures("photos/*").paths) == 5
    with pytest.raises(UserError, match="neither a file nor a folder"):
        find_pictures(f"photos/{name}")
    with pytest.raises(UserError, match="matches no picture"):
        find_pictures("photos/pip*")
    with pytest.raises(UnreadablePictureError, match="is not a regular file"):
        decode(folder / "photos" / name)


def test_linked_folders_are_searched_once_even_in_a_cycle(folder):
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere" / "e.png").write_bytes(encoded(garment((30, 40))))
    (folder / "photos" / "linked").symlink_to(folder / "elsewhere")
    (folder / "photos" / "deep" / "round").symlink_to(folder / "photos")
    (folder / "photos" / "nowhere.png").symlink_to(folder / "gone")
    assert names(find_pictures("photos"))[3:] == ["photos/text.png", "photos/deep/c.JPG", "photos/linked/e.png"]


def test_globs_of_any_depth_end_though_links_lead_upwards(folder):
    for name in ("round", "again"):
        (folder / "photos" / "deep" / name).symlink_to(folder / "photos")
    assert names(find_pictures("photos/**/b*.png")) == ["photos/b 1.png"]
    assert names(find_pictures("ph*/**/round/[a-c]?1.png")) == ["photos/deep/round/b 1.png"]
    assert len(find_pictures("**").paths) == 5


@pytest.mark.parametrize(
    "pattern",
    [
        *("**/*.png", "photos/**/.h*", "photos/**/.*/*", "photos/**/[!.]*.png", "**/deep/**/*.*", "**/c.JPG"),
        *("*/**/d*/*", "**/*/*.png", "photos/**/.hidden.png", "**/x/**", "**/x", "**/**/y.png"),
    ],
)
def test_globs_of_any_depth_match_as_in_a_shell(folder, pattern):
    for name in (".secret/s.png", "deep/x/y.png", "deep/x/.z.png", "deep/x/z/y.png"):
        path = folder / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(garment((30, 40))))
    matches = map(Path, glob.glob(pattern, recursive=True))  # noqa: PTH207
    expected = {file for match in matches for file in (find_pictures(str(match)).paths if match.is_dir() else [match])}
    assert find_pictures(pattern).paths == tuple(sorted(expected))


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("nowhere", "nowhere does not exist"),
        ("*.bmp", r"\*.bmp matches no picture \(0 other files\)"),
        ("photos/*.md", r"matches no picture \(1 other file\)"),
        ("empty", r"empty holds no picture \(0 other files\)"),
        ("/dev/null", "neither a file nor a folder"),
        ([], r"images=\[\] names no picture"),
    ],
)
def test_a_reference_without_pictures_raises(folder, reference, message):
    (folder / "empty").mkdir()
    with pytest.raises(UserError, match=message):
        find_pictures(reference)


def test_a_picture_above_max_pixels_is_not_decoded(tmp_path):
    photograph = garment((1200, 1000))
    limits = {"min_pixels": 784, "max_pixels": 1_000_000}
    assert decode(encoded(photograph, "JPEG"), **limits).size[0] < 100, "a JPEG is reduced while it is decoded"
    for content in (encoded(photograph), encoded(photograph, "JPEG", progressive=True)):
        with pytest.raises(TooManyPixelsError, match="1,200 x 1,000 pixels; 1 million"):
            decode(content, **limits)
        assert decode(content, min_pixels=784).size[0] < 100
