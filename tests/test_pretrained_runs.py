"""Trained networks of the package: `run=pretrained:NAME`, `fashion_cnn.load("NAME")`, and how they get there."""

from pathlib import Path

import numpy as np
import pytest

import fashion_cnn
from fashion_cnn.errors import UserError
from fashion_cnn.predict import main as predict
from fashion_cnn.runs import Run, find_finished_run, find_run, pretrained
from fashion_cnn.train import train


@pytest.fixture
def packaged(script, shop_run, tmp_path, monkeypatch):
    """The network `shop` in a package folder of the test."""
    module = script("package_weights")
    for holder in (module, pretrained):
        monkeypatch.setattr(holder, "PACKAGED", tmp_path / "weights")
    if not shop_run.model_card_file.exists():
        shop_run.model_card_file.write_text("# Model card\n")
    module.package(module.Options(run=shop_run.path, name="shop"))
    return Run(tmp_path / "weights" / "shop")


def test_a_packaged_network_predicts_as_its_run(packaged, shop_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images = np.random.default_rng(0).integers(0, 255, (5, *fashion_cnn.load(shop_run.path).image_shape), np.uint8)
    expected = fashion_cnn.load(shop_run.path)
    for name in ("shop", "pretrained:shop"):
        network = fashion_cnn.load(name)
        assert np.array_equal(network.predict(images), expected.predict(images))
        np.testing.assert_allclose(network.predict_proba(images), expected.predict_proba(images), atol=1e-2)
    assert not (tmp_path / "runs").exists()


def test_a_packaged_network_holds_no_path_of_the_machine_and_no_optimizer(packaged, shop_run):
    texts = [file.read_text() for file in packaged.path.iterdir() if file.suffix in (".yaml", ".json", ".md", ".csv")]
    assert not [text for text in texts if str(shop_run.path.parent) in text]
    assert packaged.best_checkpoint.stat().st_size < 0.6 * shop_run.weights.stat().st_size


def test_commands_get_a_copy_of_the_network_below_runs_dir(packaged, tmp_path):
    run = find_run("pretrained:shop", tmp_path / "runs")
    assert run.path == tmp_path / "runs" / "pretrained" / "shop"
    assert run.state == "finished"
    before = sorted(packaged.path.rglob("*"))
    (run.path / "evaluation").mkdir()
    assert find_finished_run("pretrained:shop", tmp_path / "runs").path == run.path
    assert (run.path / "evaluation").is_dir()
    assert sorted(packaged.path.rglob("*")) == before


def test_a_copy_of_another_version_is_not_used(packaged, tmp_path):
    find_run("pretrained:shop", tmp_path / "runs").best_checkpoint.write_bytes(b"another version")
    with pytest.raises(UserError, match=r"is not the network pretrained:shop of this version.*move that folder away"):
        find_run("pretrained:shop", tmp_path / "runs")


def test_an_unknown_network_ends_in_one_message(packaged, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, output, errors = command(predict, "run=pretrained:shoop", "images=a.png")
    assert (status, output) == (2, "")
    assert errors.strip() == "error: pretrained:shoop does not exist: the trained networks are pretrained:shop."
    with pytest.raises(UserError, match="the trained networks are pretrained:shop"):
        fashion_cnn.load("pretrained:shoop")


def test_a_folder_of_the_name_of_a_network_is_the_run(packaged, shop_run, tmp_path, monkeypatch):
    (tmp_path / "shop").symlink_to(shop_run.path, target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    assert fashion_cnn.load("shop").run.resolve() == shop_run.path.resolve()


def test_a_training_starts_from_a_packaged_network(packaged, tiny, tmp_path):
    results = train(tiny("init_from=pretrained:shop", "trainer.max_epochs=1"))
    copied = tmp_path / "runs" / "pretrained" / "shop"
    assert Run(Path(results["run"])).config().init_from == str(copied.resolve())


def test_the_newest_run_is_never_a_network_of_the_package(packaged, tmp_path):
    find_run("pretrained:shop", tmp_path / "runs")
    with pytest.raises(UserError, match=r"or take a network of the package, run=pretrained:shop\.$"):
        find_run("latest", tmp_path / "runs")
