"""Overrides: paths as people type them, and what makes a training another one."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from fashion_cnn.runs.overrides import (
    affects_training,
    quote_override,
    quote_value,
    round_value,
    short_names,
    split_flags,
    unquote_override,
)


@pytest.mark.parametrize(
    "value",
    [
        "a,b",
        "x (1)",
        "a=b",
        "~/data",
        "é ü",
        "it's",
        "'tis",
        'say "hi"',
        "back\\slash",
        "end\\",
        "{x}",
        "a b",
        "C:\\d\\'q",
    ],
)
def test_paths_reach_the_config_unchanged(value):
    (override,) = OverridesParser.create().parse_overrides([quote_override(f"data.root={value}")])
    assert override.value() == value
    assert unquote_override(quote_override(f"data.root={value}")) == f"data.root={value}"


@pytest.mark.parametrize(
    "argument", ["data.root='a,b'", "data.root=null", "optimizer.lr=1,2", "runs_dir=", "runs=[]", "resume=${x}"]
)
def test_quoted_values_and_other_keys_are_not_quoted_again(argument):
    assert quote_override(argument) == argument


@pytest.mark.parametrize(
    ("typed", "paths"),
    [
        ("[a b,c(1)]", ["a b", "c(1)"]),
        ("[a=b.png, é.png]", ["a=b.png", "é.png"]),
        ("[x,there, too.png,y]", ["x", "there, too.png", "y"]),
        ("['p,q',\"it's\",r]", ["p,q", "it's", "r"]),
        ("[one]", ["one"]),
        ("[]", []),
    ],
)
def test_bracketed_paths_are_parsed_as_a_list(tmp_path, monkeypatch, typed, paths):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there, too.png").touch()
    (override,) = OverridesParser.create().parse_overrides([quote_override(f"images={typed}")])
    assert override.value() == paths


def test_an_existing_path_in_brackets_is_one_path(tmp_path):
    (tmp_path / "[a,b]").touch()
    (override,) = OverridesParser.create().parse_overrides([quote_override(f"images={tmp_path}/[a,b]")])
    assert override.value() == f"{tmp_path}/[a,b]"


@pytest.mark.parametrize("text", ['a\\"b', "a\\'b", "(x),[y]", ""])
def test_any_text_can_be_quoted(text):
    (override,) = OverridesParser.create().parse_overrides([f"key={quote_value(text)}"])
    assert override.value() == text


@pytest.mark.parametrize(
    ("override", "makes"),
    [
        ("seed=1", True),
        ("+trainer.max_time=1", True),
        ("~mixing", True),
        ("data.root=x", False),
        ("sweep=seeds", False),
        ("+sweep=seeds", False),
        ("tune.trials=3", False),
        ("resume=latest", False),
    ],
)
def test_locations_do_not_affect_the_training(override, makes):
    assert affects_training(override) == makes


def test_headings_and_values_of_settings_are_short_and_unambiguous():
    keys = ["optimizer.lr", "data.seed", "seed", "data.augmentation.erasing.p"]
    assert list(short_names(keys).values()) == ["lr", "data.seed", "seed", "data.augmentation.erasing.p"]
    values = ["0.037861878865426045", 0.1, "small", "a long text", "[32,48,64]"]
    assert [*map(round_value, values)] == ["0.03786", "0.1", "small", "a long text", "[32,48,64]"]


def test_flags_are_separated_from_overrides_with_their_values():
    typed = ["-cd", "conf=1", "seed=1", "--config-name", "own", "-m", "model=tiny"]
    assert split_flags(typed) == (["-cd", "conf=1", "--config-name", "own", "-m"], ["seed=1", "model=tiny"])
