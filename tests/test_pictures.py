"""Picture files of any kind: which are meant, how they are decoded, what a network is shown of them."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from fashion_cnn.errors import UserError
from fashion_cnn.pictures import Preparation, TooManyPixelsError, UnreadablePictureError, decode, find_pictures
from fashion_cnn.pictures.preparation import _tensor as pixels_of

FRAME = (1, 28, 28)


def encoded(picture, kind="PNG", **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def png_that_claims(width, height):
    """A PNG of a hundred bytes whose header says so many pixels."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def garment(size=(600, 800), ground=(255, 255, 255), colour=(40, 60, 120), inset=0.25):
    """A dress of one colour: narrow above, wide below."""
    picture = Image.new("RGB", size, ground)
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
        (png_that_claims(1, 1), "is damaged"),
        (b"\xff\xd8\xff" + bytes(40), "is damaged, or of a rare kind"),
        (png_that_claims(50_000, 50_000), "too large"),
        (png_that_claims(12_000, 11_000), r"too large \(12,000 x 11,000 pixels"),
        (b"\0\0\0\x18ftypheic" + bytes(100), "HEIC picture"),
        (bytes(range(256)), "no picture of a kind that is read here"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no picture"),
    ],
    ids=["empty", "text", "cut JPEG", "cut PNG", "no rows", "header", "bomb", "too large", "HEIC", "noise", "EPS"],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_what_is_no_picture_has_its_reason(tmp_path, content, reason):
    path = tmp_path / "picture.png"
    path.write_bytes(content)
    for source in (path, content):
        with pytest.raises(UnreadablePictureError, match=reason):
            decode(source)


def test_a_picture_is_known_by_its_content_and_not_by_its_name(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_bytes(encoded(garment(), "GIF"))
    assert decode(path).size == (600, 800)


@pytest.mark.parametrize(
    ("made", "mode"),
    [("1", "L"), ("L", "L"), ("LA", "LA"), ("P", "RGB"), ("RGB", "RGB"), ("RGBA", "RGBA"), ("CMYK", "RGB")],
)
def test_each_mode_comes_out_in_eight_bits_with_its_colours(made, mode):
    kind = "TIFF" if made == "CMYK" else "PNG"
    decoded = decode(encoded(Image.new("RGB", (4, 4), (255, 255, 255)).convert(made), kind))
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
def test_more_than_eight_bits_are_scaled_not_cut(values, expected):
    decoded = decode(encoded(Image.fromarray(values), "TIFF"))
    assert decoded.mode == "L"
    assert np.asarray(decoded)[0].tolist() == expected


@pytest.mark.parametrize("tag", [281, 341], ids=["MaxSampleValue", "SMaxSampleValue"])
def test_the_lightest_value_that_a_tiff_has_is_not_the_lightest_it_can_have(tag):
    values = np.array([[0, 500, 1000]], np.uint16)
    decoded = decode(encoded(Image.fromarray(values), "TIFF", tiffinfo={tag: 1000}))
    assert np.asarray(decoded).max() == round(1000 * 255 / 65535)


def test_a_tiff_of_twelve_bits_is_scaled_from_twelve():
    rows = bytes([0x00, 0x07, 0xFF, 0xFF, 0xF0, 0x00])  # 0, 2047, 4095, 0
    tags = [(256, 3, 4), (257, 3, 1), (258, 3, 12), (259, 3, 1), (262, 3, 1), (273, 4, 122), (277, 3, 1), (278, 3, 1)]
    tags.append((279, 4, len(rows)))
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    tiff = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0)
    assert np.asarray(decode(tiff.ljust(122, b"\0") + rows))[0].tolist() == [0, 127, 255, 0]


def test_a_colour_that_stands_for_transparent_is(tmp_path):
    picture = Image.new("P", (4, 4), 1)
    picture.putpalette([255, 0, 0, 0, 0, 255])
    picture.putpixel((0, 0), 0)
    decoded = decode(encoded(picture, "GIF", transparency=0))
    assert decoded.mode == "RGBA"
    assert decoded.getpixel((0, 0))[3] == 0
    assert decoded.getpixel((1, 0)) == (0, 0, 255, 255)


def test_of_an_animation_the_first_frame_counts():
    frames = [Image.new("L", (4, 4), value) for value in (10, 200)]
    decoded = decode(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert decoded.convert("L").getpixel((0, 0)) == 10


def test_a_photograph_is_turned_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned, so its left column is the top row
    picture = Image.new("L", (60, 40))
    picture.paste(255, (0, 0, 20, 40))
    decoded = decode(encoded(picture, "JPEG", exif=exif))
    assert decoded.size == (40, 60)
    assert decoded.getpixel((20, 5)) > 250
    assert decoded.getpixel((20, 50)) < 5


def test_damaged_exif_turns_nothing():
    picture = garment((60, 40))
    assert decode(encoded(picture, "JPEG", exif=b"Exif\0\0MM nothing of the kind")).size == (60, 40)


def test_large_pictures_are_shrunk_to_what_is_enough():
    for kind in ("PNG", "JPEG"):
        decoded = decode(encoded(garment((1200, 1600)), kind), enough=150 * 200)
        assert 150 * 200 <= decoded.width * decoded.height <= 4 * 150 * 200
        assert decoded.width / decoded.height == 0.75
    assert decode(encoded(garment((60, 80))), enough=100 * 100).size == (60, 80)


# Preparation


def prepared(picture, **settings):
    return Preparation(FRAME, **settings)(picture)[0]


def item_box(image):
    rows, columns = (image > 12).any(1).nonzero()[:, 0], (image > 12).any(0).nonzero()[:, 0]
    return columns[0].item(), rows[0].item(), columns[-1].item() + 1, rows[-1].item() + 1


@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_of_the_networks_size_is_taken_pixel_for_pixel(channels):
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 100, (28, 28), dtype=np.uint8)
    grey = Image.fromarray(pixels)
    preparation = Preparation((channels, 28, 28))
    for same in (grey, grey.convert("RGB"), grey.convert("LA"), grey.convert("RGBA")):
        assert preparation(same).shape == (channels, 28, 28)
        assert (preparation(same).numpy() == pixels).all()
    assert (preparation(Image.fromarray(255 - pixels)).numpy() == pixels).all(), "light ground is seen to be negated"
    never = Preparation((channels, 28, 28), invert="never")
    assert (never(Image.fromarray(255 - pixels)).numpy() == 255 - pixels).all()
    assert (Preparation((channels, 28, 28), invert="always")(grey).numpy() == 255 - pixels).all()


@pytest.mark.parametrize("ground", [255, 225, 128, 40, 0])
@pytest.mark.parametrize("inset", [0, 0.2, 0.4])
def test_the_item_fills_the_frame_as_a_contrast_to_its_ground_light_or_dark(ground, inset):
    colour = 120 if ground in (255, 225, 0) else 230
    image = prepared(garment(ground=(ground,) * 3, colour=(colour,) * 3, inset=inset))
    left, top, right, bottom = item_box(image)
    assert (top, bottom) == (0, 28)
    assert 8 <= right - left <= 14
    assert 0 <= left - (28 - right) <= 1, "in the middle, an odd pixel to the left"
    assert image[10:20, 13:15].float().mean() > 200
    assert image[:, :5].max() <= 12


def test_where_it_lies_and_its_colours_change_nothing_that_matters():
    reference = prepared(garment(), sharpening=0).float()
    shifted = Image.new("RGB", (1500, 900), (255, 255, 255))
    shifted.paste(garment(), (850, 90))
    assert (prepared(shifted, sharpening=0) - reference).abs().mean() < 6
    red = garment(colour=(150, 30, 20))
    assert (prepared(red, sharpening=0) - reference).abs().mean() < 6
    clear = Image.merge("RGBA", (*garment().split(), garment().convert("L").point(lambda value: 255 * (value < 255))))
    assert (prepared(clear, sharpening=0) - reference).abs().mean() < 6


def cut_out(colour):
    """A garment of that colour; around it all is transparent, and of a colour that nobody sees."""
    item = garment(ground=(0, 255, 0), colour=colour)
    return Image.merge("RGBA", (*item.split(), garment().convert("L").point(lambda value: 255 * (value < 255))))


@pytest.mark.parametrize("colour", [(255, 255, 255), (225, 230, 235), (120, 40, 30), (0, 0, 0)])
def test_an_item_that_is_cut_out_is_seen_whatever_its_colour(colour):
    reference = prepared(garment(), sharpening=0).float()
    assert (prepared(cut_out(colour), sharpening=0) - reference).abs().mean() < 6
    small = cut_out(colour).resize((28, 28))
    _, top, _, bottom = item_box(prepared(small))
    assert 5 <= top < bottom <= 23, "of the network's size it keeps its frame"


def test_a_light_card_with_round_corners_keeps_them_light():
    card = garment(colour=(200, 60, 40), inset=0.2)
    plain = prepared(card)
    mask = Image.new("L", card.size)
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, 599, 799), 60, fill=255)
    card.putalpha(mask)
    assert (prepared(card) - plain.int()).abs().max() <= 2


def test_what_was_not_cut_out_shows_the_ground_that_was_said():
    preparation = Preparation((3, 30, 20), cut_out=False, background=40)
    assert preparation(cut_out((255, 255, 255)))[:, 0, 0].tolist() == [40, 40, 40]
    assert Preparation((3, 30, 20), cut_out=False)(cut_out((255, 255, 255))).min() == 255


def test_noise_of_a_camera_does_not_hide_the_item():
    noise = 6 * np.random.default_rng(0).standard_normal((1000, 800, 3), dtype=np.float32)
    noisy = (np.asarray(garment((800, 1000), ground=(225,) * 3)) + noise).clip(0, 255).astype(np.uint8)
    left, top, right, bottom = item_box(prepared(Image.fromarray(noisy)))
    assert (top, bottom) == (0, 28)
    assert right - left <= 14


def test_a_scene_without_a_plain_ground_is_shown_whole():
    scene = Image.linear_gradient("L").convert("RGB").resize((400, 300))
    image = prepared(scene)
    assert item_box(image)[0] == 0
    assert item_box(image)[2] == 28
    assert image[:3].max() == 0, "the sides of the frame are black"
    column = image[5:23, 14].int()
    assert (column.diff() < 0).all(), "light ground is seen to be negated"


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (28, 29), (8000, 8000), (5000, 1)])
def test_nothing_on_its_ground_is_black(size):
    assert prepared(Image.new("L", size, 200)).max() == 0


def test_what_was_not_cut_out_keeps_its_colours_and_its_ground():
    preparation = Preparation((3, 20, 30), cut_out=False)
    image = preparation(garment((100, 100), ground=(250, 200, 150)))
    assert image.shape == (3, 20, 30)
    assert image[:, 0, 0].tolist() == [250, 200, 150]
    assert image[:, 12, 15].tolist() == [40, 60, 120]
    assert pixels_of(garment((30, 20))).equal(preparation(garment((30, 20))))


def test_outlines_are_as_steep_as_in_the_training_images():
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


def names(found):
    return [str(path) for path in found.paths]


def test_a_folder_is_what_is_a_picture_or_says_so(folder):
    found = find_pictures("photos")
    assert names(found) == [
        "photos/a,b (1)=é.png",
        "photos/b 1.png",
        "photos/no name",
        "photos/text.png",
        "photos/deep/c.JPG",
    ]
    assert found.left_out == 1


def test_globs_and_lists_name_each_file_once(folder):
    assert names(find_pictures("photos/*.png")) == ["photos/a,b (1)=é.png", "photos/b 1.png", "photos/text.png"]
    assert names(find_pictures("photos/**/c.*")) == ["photos/deep/c.JPG"]
    assert names(find_pictures(["photos/notes.md", "photos/deep", f"{folder}/photos/deep/c.JPG"])) == [
        "photos/notes.md",
        "photos/deep/c.JPG",
    ], "a file that is named itself is tried"


def test_what_cannot_be_looked_into_is_told_as_a_file_that_cannot_be_read(folder, monkeypatch):
    listed, looked, opened = os.scandir, os.stat, io.open

    def refuse(path):
        if os.fspath(path).endswith(("deep", "b 1.png")):
            raise PermissionError(13, "Permission denied", str(path))

    def refusing(ask):
        return lambda path, *further, **named: refuse(path) or ask(path, *further, **named)

    # As for anyone but root.
    monkeypatch.setattr("os.scandir", lambda path: refuse(path) if str(path).endswith("deep") else listed(path))
    monkeypatch.setattr("os.stat", refusing(looked))
    monkeypatch.setattr("builtins.open", refusing(opened))
    found = find_pictures("photos")
    assert {"photos/deep", "photos/b 1.png", "photos/no name"} <= {*names(found)}
    for refused in ("photos/deep", "photos/b 1.png"):
        with pytest.raises(UnreadablePictureError, match=r"cannot be read \(Permission denied\)"):
            decode(Path(refused))


def test_linked_folders_are_looked_into_once_however_they_lie(folder):
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere" / "e.png").write_bytes(encoded(garment((30, 40))))
    (folder / "photos" / "linked").symlink_to(folder / "elsewhere")
    (folder / "photos" / "deep" / "round").symlink_to(folder / "photos")
    (folder / "photos" / "nowhere.png").symlink_to(folder / "gone")
    assert names(find_pictures("photos"))[3:] == ["photos/text.png", "photos/deep/c.JPG", "photos/linked/e.png"]


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("nowhere", "nowhere does not exist"),
        ("*.bmp", r"\*.bmp matches no picture, no file at all"),
        ("photos/*.md", "matches no picture, one file that is none"),
        ("empty", "empty holds no picture, no file at all"),
        ("/dev/null", "neither a file nor a folder"),
        ([], r"images=\[\] names no picture"),
    ],
)
def test_what_names_no_picture_is_said(folder, reference, said):
    (folder / "empty").mkdir()
    with pytest.raises(UserError, match=said):
        find_pictures(reference)


def test_a_large_picture_is_unpacked_only_where_it_fits(tmp_path):
    photograph = garment((1200, 1000))
    limits = {"enough": 784, "most": 1_000_000}
    assert decode(encoded(photograph, "JPEG"), **limits).size[0] < 100, "a JPEG shrinks as it is unpacked"
    for content in (encoded(photograph), encoded(photograph, "JPEG", progressive=True)):
        with pytest.raises(TooManyPixelsError, match="1,200 x 1,000 pixels; 1 million"):
            decode(content, **limits)
        assert decode(content, enough=784).size[0] < 100
