"""The scripts that measure teaching: what they print, and the mistakes that they tell."""

from pathlib import Path

import pytest
from conftest import TINY_DATA
from PIL import Image
from tiny_images import TinyDataModule

from fashion_cnn.cli.main import compose
from fashion_cnn.runs import Run
from fashion_cnn.train import train


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A network of the four tiny classes."""
    return Run(Path(train(compose(overrides=[*TINY_DATA, f"runs_dir='{tmp_path_factory.mktemp('runs')}'"]))["run"]))


@pytest.fixture
def measure(script, command):
    """Run one of the scripts, or a module of it, with words; its exit status and what it printed."""

    def measure(script_or_name, *words):
        module = script(script_or_name) if isinstance(script_or_name, str) else script_or_name
        return command(lambda: module.arguments.run(module.main, module.Options, module.__doc__), *words)

    return measure


@pytest.fixture
def folder(tmp_path):
    """Six training and two test pictures of `square` and four and two of `bar`, which the network never saw."""
    images, _ = TinyDataModule(mean=[0.3], std=[0.3], val_size=32).load(train=False)
    for name, split, count in (("square", "train", 6), ("square", "test", 2), ("bar", "train", 4), ("bar", "test", 2)):
        (tmp_path / split / name).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(images[number][0].numpy()).save(tmp_path / split / name / f"{number}.png")
    return tmp_path


def test_measure_new_classes_prints_the_number_of_examples(measure, run, folder):
    words = (f"folder={folder}", f"run={run.path}")
    status, out, err = measure("measure_new_classes", *words)
    assert (status, err) == (0, "")
    assert "2 classes, 4 to 5 examples each, 4 test pictures:\n  taught: " in out
    assert "2 classes, 1 example each, 4 test pictures:" in measure("measure_new_classes", *words, "examples=1")[1]


def flat(folder):
    for split in ("train", "test"):
        for path in (folder / split).iterdir():
            path.rename(folder / f"{path.name} of {split}")
        (folder / split).rmdir()


def without_test(folder):
    for path in (folder / "test" / "bar").iterdir():
        path.unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (flat, "has no sub-folders train and test"),
        (without_test, "test has no picture of the class bar"),
        (lambda folder: (folder / "train" / "bar" / "1.png").write_text("text"), "1.png: is not a picture"),
        (lambda folder: [(folder / s / "bar").rename(folder / s / "top") for s in ("train", "test")], "trained on top"),
    ],
)
def test_an_unsuitable_folder_is_reported_in_one_line(measure, run, folder, spoil, message):
    spoil(folder)
    status, out, err = measure("measure_new_classes", f"folder={folder}", f"run={run.path}")
    assert (status, out) == (1, "")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("measure_new_classes", ["folder=x", "examples=0"], "examples=0 is not possible: give 1 or more."),
        ("measure_teaching", ["examples=0"], "examples=0 is not possible: give 1 or more."),
        ("measure_teaching", ["draws=0"], "draws=0 is not possible: give 1 or more."),
        ("measure_teaching", ["false_alarms=2"], "false_alarms=2.0 is not possible: give a share above 0 and below 1."),
        (
            "measure_teaching",
            ["experiment=speedrun_39"],
            "experiment=speedrun_39 does not exist. Did you mean speedrun",
        ),
    ],
)
def test_invalid_options_of_measuring_scripts_are_reported_in_one_line(measure, name, words, message):
    status, out, err = measure(name, *words)
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize(("examples", "has_estimate"), [(1, 0), (4, 1)])
def test_the_estimate_is_empty_for_one_example(measure, script, run, monkeypatch, examples, has_estimate):
    module = script("measure_teaching")

    class Everything(TinyDataModule):
        def __init__(self, root):
            super().__init__(root=root, mean=[0.3], std=[0.3], val_size=32)

    monkeypatch.setattr(TinyDataModule, "root", "", raising=False)
    monkeypatch.setattr(module, "FashionMNISTDataModule", Everything)
    monkeypatch.setattr(module, "trained_without", lambda label, experiment, seed: run)
    status, out, err = measure(module, f"examples={examples}", "draws=2")
    assert (status, err) == (0, "")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines()[2:]]
    assert [row[0] for row in rows] == ["top", "middle", "low", "bottom", "mean"]
    for _, recognised, false_alarms, last in rows:
        assert 0 <= float(recognised) <= 100
        assert 0 <= float(false_alarms) <= 100
        assert bool(last) == bool(has_estimate)


def test_a_failed_training_is_reported_in_one_line(measure, script, monkeypatch, tmp_path):
    module = script("measure_teaching")
    monkeypatch.setattr(module, "REPOSITORY", tmp_path)
    monkeypatch.setattr(module.sys, "executable", "false")
    status, _, err = measure(module)
    assert status == 1
    assert "experiment=speedrun_93 seed=0" in err
    assert "failed" in err
    assert err.count("\n") == 1
