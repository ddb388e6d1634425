"""Runs of older versions, whose configs and checkpoints name classes by paths that have moved since."""

import importlib
import json
import shutil

import pytest
import torch
from omegaconf import OmegaConf

import fashion_cnn
from fashion_cnn.cli.main import compose
from fashion_cnn.evaluate import main as evaluate
from fashion_cnn.models import ImageClassifier
from fashion_cnn.models.optim import Muon
from fashion_cnn.runs import Run
from fashion_cnn.runs.files import MOVED_CLASSES, update_class_paths
from fashion_cnn.train import main as train_main
from fashion_cnn.train import train

OLD_PATHS = {new: old for old, new in MOVED_CLASSES.items()}


def with_old_paths(part):
    """Replace present class paths in containers by the old ones."""
    if isinstance(part, dict):
        return {
            key: OLD_PATHS.get(value, value) if key == "_target_" else with_old_paths(value)
            for key, value in part.items()
        }
    return [with_old_paths(value) for value in part] if isinstance(part, list) else part


def class_paths_in(part):
    """Return all class paths in containers."""
    if isinstance(part, dict):
        paths = {part["_target_"]} if isinstance(part.get("_target_"), str) else set()
        return paths.union(*map(class_paths_in, part.values()))
    return set().union(*map(class_paths_in, part)) if isinstance(part, list) else set()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of two epochs, as an older version would have left it."""
    from conftest import TINY_DATA

    folder = tmp_path_factory.mktemp("old")
    overrides = ["callbacks=early_stopping", "callbacks.histograms.every_n_epochs=1", "trainer.max_epochs=2"]
    chosen = [override for override in TINY_DATA if not override.startswith(("callbacks=", "trainer.max_epochs="))]
    run = Run(folder / "run")
    train(compose(overrides=[*chosen, *overrides, f"runs_dir='{folder}'"]), directory=run.path)
    settings = with_old_paths(OmegaConf.to_container(OmegaConf.load(run.config_file)))
    run.config_file.write_text(OmegaConf.to_yaml(OmegaConf.create(settings)))
    for file in (run.best_checkpoint, run.last_checkpoint):
        checkpoint = torch.load(file, weights_only=True)
        checkpoint["hyper_parameters"] = with_old_paths(checkpoint["hyper_parameters"])
        torch.save(checkpoint, file)
    return run


@pytest.fixture
def old_run(trained, tmp_path):
    """A copy of it."""
    return Run(shutil.copytree(trained.path, tmp_path / "run"))


def test_the_fixture_names_classes_by_their_old_paths(old_run):
    settings = class_paths_in(OmegaConf.to_container(OmegaConf.load(old_run.config_file)))
    described = class_paths_in(torch.load(old_run.weights, weights_only=True)["hyper_parameters"])
    assert "fashion_cnn.training.averaging.WarmedEMAWeightAveraging" in settings
    assert "fashion_cnn.training.early_stopping.ResumableEarlyStopping" in settings
    assert "fashion_cnn.analysis.histograms.Histograms" in settings
    assert {"fashion_cnn.models.muon.Muon", "fashion_cnn.models.schedules.linear"} <= settings & described


@pytest.mark.parametrize(("old", "new"), MOVED_CLASSES.items())
def test_moved_classes_exist_at_their_new_path_only(old, new):
    module, _, name = new.rpartition(".")
    assert hasattr(importlib.import_module(module), name)
    module, _, name = old.rpartition(".")
    with pytest.raises((ImportError, AttributeError)):
        getattr(importlib.import_module(module), name)


@pytest.mark.training
def test_an_old_run_is_evaluated(old_run, command):
    status, _, err = command(evaluate, f"run={old_run.path}", "split=test", "format=json")
    assert status == 0, err
    stored = json.loads((old_run.evaluation / "test" / "evaluation.json").read_text())
    assert stored["accuracy"] == old_run.results()["test/accuracy"]


@pytest.mark.training
def test_an_old_run_is_resumed(old_run, command):
    settings = OmegaConf.load(old_run.config_file)
    settings.trainer.max_epochs = 3
    old_run.config_file.write_text(OmegaConf.to_yaml(settings))
    old_run.results_file.unlink()
    status, _, err = command(train_main, f"resume={old_run.path}")
    assert status == 0, err
    assert old_run.results()["epochs"] == 3


def test_an_old_run_is_loaded(old_run):
    network = fashion_cnn.load(old_run.path).module
    assert network(torch.zeros(1, *network.image_shape)).shape == (1, network.num_classes)


def test_an_old_checkpoint_is_loaded_with_its_optimizer(old_run):
    module = ImageClassifier.load_from_checkpoint(old_run.weights, map_location="cpu", weights_only=True)
    optimizer, _ = module.make_optimizer(total_steps=10)
    assert isinstance(optimizer, Muon)
    assert module.hparams["optimizer"]["_target_"] == "fashion_cnn.models.optim.Muon"


def test_a_config_that_names_an_old_path_trains(tmp_path):
    from conftest import TINY_DATA

    ema = "callbacks.ema={_target_:fashion_cnn.training.averaging.WarmedEMAWeightAveraging,decay:0.9}"
    config = compose(overrides=[*TINY_DATA, "trainer.max_epochs=1", "test=false", ema, f"runs_dir='{tmp_path}'"])
    run = Run(tmp_path / "run")
    train(config, directory=run.path)
    assert run.config().callbacks.ema._target_ == "fashion_cnn.training.callbacks.WarmedEMAWeightAveraging"


def test_values_other_than_class_paths_are_unchanged():
    part = {"name": "fashion_cnn.models.muon.Muon", "layers": [{"_target_": "torch.nn.ReLU"}], "rate": 0.1}
    assert update_class_paths(part) == part


def test_an_old_run_with_the_former_key_of_detected_is_evaluated(picture_folder, tmp_path, command):
    chosen = ["data=image_folder", f"data.root='{picture_folder}'", "data.batch_size=8", "model=tiny"]
    short = ["trainer.max_epochs=1", "trainer.accelerator=cpu", "callbacks=essential", f"runs_dir='{tmp_path}'"]
    run = Run(tmp_path / "run")
    train(compose(overrides=[*chosen, *short]), directory=run.path)
    settings = OmegaConf.to_container(OmegaConf.load(run.config_file))
    detected = settings["data"].pop("detected")
    assert detected["class_names"] == ["dark", "light"]
    settings["data"]["found"] = detected
    run.config_file.write_text(OmegaConf.to_yaml(OmegaConf.create(settings)))
    assert run.config().data.detected == detected
    assert "found" not in run.config().data
    status, _, err = command(evaluate, f"run={run.path}", "format=json")
    assert status == 0, err
