"""Pictures of drawings, from the font that comes with matplotlib and a list of a few emoji."""

import subprocess
import sys
from pathlib import Path

import matplotlib
import pytest
from conftest import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "scripts"))

from pictograms import debian, emoji
from pictograms.glyphs import Glyph, has

from fashion_cnn.errors import UserError

FONT = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
LIST = """\
# subgroup: face-smiling
1F600                                                  ; fully-qualified     # 😀 E1.0 grinning face
1F603                                                  ; fully-qualified     # 😃 E0.6 grinning face with big eyes
1F604                                                  ; fully-qualified     # 😄 E0.6 grinning face with smiling eyes
263A FE0F                                              ; fully-qualified     # ☺️ E0.6 smiling face
263A                                                   ; unqualified         # ☺ E0.6 smiling face
1F62E 200D 1F4A8                                       ; fully-qualified     # 😮‍💨 E13.1 face exhaling
# subgroup: sky & weather
2600 FE0F                                              ; fully-qualified     # ☀️ E0.6 sun
2601 FE0F                                              ; fully-qualified     # ☁️ E0.6 cloud
2602 FE0F                                              ; fully-qualified     # ☂️ E0.7 umbrella
1F525                                                  ; fully-qualified     # 🔥 E0.6 fire
1FAB7                                                  ; fully-qualified     # 🪷 E14.0 lotus{}s piñata (new)
# subgroup: arrow
2B06 FE0F                                              ; fully-qualified     # ⬆️ E0.6 up arrow
"""


@pytest.fixture
def emoji_list(tmp_path: Path) -> Path:
    file = tmp_path / "emoji-test.txt"
    file.write_text(LIST.format("\u2019"), encoding="utf-8")
    return file


def make_drawings(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPOSITORY / "scripts" / "make_drawings"), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY)


def test_the_list_gives_the_category_and_a_class_name_of_each_character(emoji_list):
    emojis = {item.slug: (item.character, item.category) for item in emoji.read(emoji_list)}
    assert emojis["smiling_face"] == ("☺", "faces")
    assert emojis["sun"] == ("☀", "weather")
    assert emojis["lotuss_pinata_new"] == ("\U0001fab7", "weather")
    # Sequences, other subgroups and what is no weather are left out.
    assert len(emojis) == 8
    emoji_list.write_text("nothing of the kind")
    with pytest.raises(UserError, match="lists no emoji"):
        emoji.read(emoji_list)


def test_characters_of_a_font_are_recognised():
    assert has(FONT, "☀")
    assert not has(FONT, "\U0001fab7")
    symbol = Glyph(FONT, "☀").symbol()
    assert symbol.one_colour
    assert symbol.elongation == pytest.approx(1, abs=0.1)
    with pytest.raises(UserError, match="not a readable font"):
        has(Path(__file__), "☀")


def test_training_and_test_have_different_drawings_of_a_category(emoji_list, script):
    drawings = emoji.read(emoji_list)
    faces, weather = script("make_drawings").by_category(drawings, FONT, seed=0)
    assert (faces.name, weather.name) == ("faces", "weather")
    for one in (faces, weather):
        assert {*one.train, *one.test} == {Glyph(FONT, d.character) for d in drawings if d.category == one.name}
        assert (len(one.train), len(one.test)) == (3, 1)


def test_each_drawing_is_a_class_and_skip_leaves_out_the_first(emoji_list, script):
    make_drawings = script("make_drawings")
    drawings = emoji.read(emoji_list)
    taken, left = (
        {one.name for one in make_drawings.by_drawing(drawings, FONT, make_drawings.Options(classes=4, skip=skip))}
        for skip in (0, 4)
    )
    assert taken | left == {one.slug for one in drawings}
    with pytest.raises(UserError, match="classes=30 skip=0: there are 8 drawings in all"):
        make_drawings.by_drawing(drawings, FONT, make_drawings.Options(classes=30))


def test_glyphs_have_one_training_picture_and_several_test_pictures(emoji_list, tmp_path):
    out = tmp_path / "glyphs"
    made = make_drawings(
        "kind=glyphs", "classes=3", f"out={out}", f"font={FONT}", f"emoji_test={emoji_list}", "size=32"
    )
    assert made.returncode == 0, made.stderr
    assert [len(list(folder.iterdir())) for folder in (out / "train").iterdir()] == [1, 1, 1]
    assert [len(list(folder.iterdir())) for folder in (out / "test").iterdir()] == [8, 8, 8]


def test_a_missing_package_is_reported_with_the_alternative(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="apt-get is not installed: give font=FILE"):
        debian.fetch("fonts-symbola", tmp_path / "fetched", "give font=FILE")
    (tmp_path / "fetched" / "fonts-symbola").mkdir(parents=True)
    assert debian.fetch("fonts-symbola", tmp_path / "fetched", "give font=FILE").is_dir()
