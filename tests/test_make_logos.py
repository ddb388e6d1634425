"""Pictures of logos, from three hand-drawn icons in place of the package."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY
from PIL import Image

sys.path.insert(0, str(REPOSITORY / "scripts"))

from pictograms import icons
from pictograms.colours import contrast_of, luminance, readable
from pictograms.composing import compose
from pictograms.covering import cover
from pictograms.image_folder import Amounts, ImageClass, make_class, planned
from pictograms.variation import BEYOND, draw

needs_renderer = pytest.mark.skipif(
    importlib.util.find_spec("resvg_py") is None,
    reason="resvg-py is not installed: the extra `logos`",
)

SHAPES = {
    "triangle": "M12 2 22 22H2z",
    "cross": "M9 0h6v9h9v6h-9v9h-6v-9H0v-6h9z",
    "bar": "M0 10h24v4H0z",
}
FEW = Amounts(train=3, test=4, beyond=0.5, size=32, seed=0)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    folder = tmp_path / "package"
    (folder / "icons").mkdir(parents=True)
    (folder / "data").mkdir()
    for name, path in SHAPES.items():
        write_icon(folder, name, path)
    brands = [{"title": "Triangle", "slug": "triangle", "hex": "FF8800"}]
    (folder / "data" / "simple-icons.json").write_text(json.dumps(brands))
    return folder


def write_icon(package: Path, name: str, path: str) -> None:
    svg = f'<svg viewBox="0 0 24 24" xmlns="http://www.w3.org/2000/svg"><title>{name}</title><path d="{path}"/></svg>'
    (package / "icons" / f"{name}.svg").write_text(svg)


def make_logos(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPOSITORY / "scripts" / "make_logos"), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY)


def _contents(out: Path) -> dict[str, bytes]:
    return {str(file.relative_to(out)): file.read_bytes() for file in sorted(out.rglob("*.*")) if file.is_file()}


@pytest.mark.slow
@needs_renderer
def test_make_logos_creates_an_image_folder_and_continues_after_a_stop(package, tmp_path):
    out = tmp_path / "logos, (1)"
    typed = [f"out={out}", f"simple_icons={package}", "brands=2", "train=3", "test=4", "size=32"]
    made = make_logos(*typed)
    assert made.returncode == 0, made.stderr
    assert made.stdout.startswith("14 pictures of 2 brands")
    before = _contents(out)
    assert len(before) == 14 + 1
    for brand in (out / "train").iterdir():
        assert sorted(file.name for file in brand.iterdir()) == ["000.jpg", "001.jpg", "002.jpg"]
        of_test = [file.stem for file in sorted((out / "test" / brand.name).iterdir())]
        assert of_test[0::2] == ["000", "002"]
        assert [name.partition("-")[2] in BEYOND for name in of_test[1::2]] == [True, True]
    first, second, *others = out.rglob("*.jpg")
    with Image.open(first) as picture:
        assert picture.size == (32, 32)

    first.unlink()
    second.rename(second.with_name(f".{second.name}"))  # as a killed one leaves it
    untouched = {file: file.stat().st_mtime_ns for file in others}
    assert make_logos(*typed).stdout.startswith("2 pictures")
    assert _contents(out) == before
    assert untouched == {file: file.stat().st_mtime_ns for file in others}

    refused = make_logos(*typed, "seed=1")
    assert refused.returncode == 1
    assert "contains pictures with" in refused.stderr
    assert "seed=0 (now 1)" in refused.stderr
    assert _contents(out) == before


@needs_renderer
def test_a_picture_depends_only_on_seed_class_and_number(package, tmp_path):
    triangle, cross = (icons.Icon(package / "icons" / f"{name}.svg", None) for name in ("triangle", "cross"))
    classes = [ImageClass(icon.slug, [icon], [icon]) for icon in (triangle, cross)]
    more, other_seed = Amounts(5, 4, 0.5, 32, 0), Amounts(3, 4, 0.5, 32, 1)
    for folder, amounts, order in [("a", FEW, classes), ("b", more, classes[::-1]), ("c", other_seed, classes)]:
        for one in order:
            make_class(one, tmp_path / folder, amounts)
    a, b, c = (_contents(tmp_path / folder) for folder in "abc")
    assert a.items() < b.items()
    assert len(b) == len(a) + 4
    assert not set(a.values()) & set(c.values())
    assert len(set(a.values())) == len(a), "no two pictures are the same"


def test_skipped_brands_are_the_first_of_the_same_seed(package):
    orders = {tuple(icon.slug for icon in icons.choose(package, 3, 0, seed)) for seed in range(8)}
    assert len(orders) > 1
    for seed in range(8):
        taken, left = icons.choose(package, 2, 0, seed), icons.choose(package, 1, 2, seed)
        assert {icon.slug for icon in taken} | {icon.slug for icon in left} == SHAPES.keys()


def test_duplicate_drawings_and_icons_named_by_a_number_are_left_out(package):
    write_icon(package, "another_bar", SHAPES["bar"])
    write_icon(package, "42", "M0 0h5v5z")
    colours = {icon.slug: icon.colour for icon in icons.find(package)}
    assert colours == {"another_bar": None, "cross": None, "triangle": (255, 136, 0)}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["brand=3"], "unknown option 'brand'. Did you mean brands?"),
        (["brands=many"], "brands takes a whole number"),
        (["size"], "size takes a whole number"),
        (["brands=0"], "brands=0 skip=0 is not possible"),
        (["beyond=2"], "give a share of the test pictures"),
        (["size=4"], "give 16 to 1024 pixels"),
        (["train=-1"], "train=-1 is not possible: give 0 or more"),
    ],
)
def test_invalid_options_are_reported_in_one_line(words, message, script, capsys, monkeypatch):
    make_logos = script("make_logos")
    monkeypatch.setattr(sys, "argv", ["make_logos", *words])
    with pytest.raises(SystemExit) as exit_:
        make_logos.arguments.run(make_logos.main, make_logos.Options, make_logos.__doc__)
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


@needs_renderer
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["simple_icons={tmp}/nowhere"], "contains no icons/*.svg"),
        (["simple_icons={tmp}/package", "brands=4"], "has only 3 different icons"),
        (["simple_icons={tmp}/package", "brands=3", "out={tmp}/file/below"], "Not a directory"),
        (["simple_icons={tmp}/package", "brands=3", "out={tmp}/package"], "was not created by this script"),
        ([], "npm, which downloads the icons, is not installed"),
    ],
)
def test_missing_icons_and_unwritable_folders_are_reported_in_one_line(
    words, message, package, tmp_path, script, capsys, monkeypatch
):
    make_logos = script("make_logos")
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(make_logos, "DOWNLOADS", tmp_path / "fetched")
    monkeypatch.setattr(sys, "argv", ["make_logos", *(word.format(tmp=tmp_path) for word in words)])
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit):
        make_logos.arguments.run(make_logos.main, make_logos.Options, make_logos.__doc__)
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@needs_renderer
@pytest.mark.parametrize("text", ["no SVG", '<svg viewBox="0 0 24 24" xmlns="http://www.w3.org/2000/svg"/>'])
def test_an_empty_icon_is_reported_by_name(text, tmp_path):
    file = tmp_path / "empty.svg"
    file.write_text(text)
    with pytest.raises(icons.UserError, match=r"empty\.svg"):
        icons.Icon(file, None).symbol()


def test_beyond_changes_exactly_one_property_out_of_the_training_range():
    # By kind: what is measured, and what it never is above in training.
    measures = {
        "turned": (lambda one: abs(one.angle), 20),
        "small": (lambda one: -one.scale, -0.4),
        "tilted": (lambda one: one.tilt, 0.08),
        "covered": (lambda one: one.covered, 0.15),
        "coarse": (lambda one: -one.quality, -35),
        "blurred": (lambda one: one.blur, 0.012),
        "cluttered": (lambda one: one.background == "clutter", False),
    }
    assert tuple(measures) == BEYOND
    rng = np.random.default_rng(0)
    for kind in (None, *BEYOND):
        for drawn in (draw(rng, kind) for _ in range(200)):
            outside = {name for name, (measure, most) in measures.items() if measure(drawn) > most}
            assert outside == ({kind} if kind else set())


def test_the_kinds_beyond_are_spread_evenly():
    names = [one.beyond for one in planned(Amounts(0, 14, 0.5, 32, 0), "any") if one.beyond]
    assert sorted(names) == sorted(BEYOND)
    assert not any(one.beyond for one in planned(Amounts(5, 9, 0, 32, 0), "any"))
    assert all(one.beyond for one in planned(Amounts(0, 9, 1, 32, 0), "any"))


def test_ink_is_changed_only_if_its_contrast_is_too_low():
    assert luminance((255, 255, 255)) == pytest.approx(1)
    assert contrast_of((0, 0, 0), (255, 255, 255)) == pytest.approx(21)
    assert readable((200, 0, 0), (255, 255, 255), 2.4) == (200, 0, 0)
    for background in [(255, 255, 255), (90, 90, 90), (0, 0, 0), (250, 220, 0)]:
        assert contrast_of(background, readable(background, background, 2.4)) >= 2.4


@pytest.mark.parametrize("share", [0.05, 0.3])
def test_a_cover_hides_the_given_share_of_the_symbol(share):
    mask = Image.new("L", (100, 100))
    mask.paste(255, (20, 30, 70, 90))
    for seed in range(6):
        grey = Image.new("RGB", mask.size, (1, 2, 3))
        covered = np.asarray(cover(grey, mask, share, np.random.default_rng(seed)))
        hidden = (covered != (1, 2, 3)).any(axis=-1)[30:90, 20:70]
        assert hidden.mean() == pytest.approx(share, abs=0.04)


@needs_renderer
def test_the_symbol_is_visible_on_every_background(package):
    symbol = icons.Icon(package / "icons" / "cross.svg", (128, 128, 128)).symbol()
    for seed in range(40):
        rng = np.random.default_rng(seed)
        variation = draw(rng)
        picture = np.asarray(compose(symbol, variation, 48, rng), dtype=float)
        assert picture.shape == (48, 48, 3)
        assert picture.std(axis=(0, 1)).max() > 5, variation
