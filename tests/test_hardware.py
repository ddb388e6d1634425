"""Precision of networks against that of Lightning's Trainer with the same settings."""

import warnings

import pytest
import torch
from lightning.pytorch import Trainer

from fashion_cnn.cli.main import compose
from fashion_cnn.inference import network
from fashion_cnn.models.hardware import first_gpu, precision_context, resolve_precision, select_device
from fashion_cnn.training import build


def lightning_precision(precision):
    """The precision of Lightning's Trainer on a CPU, and the dtype of a matrix product under it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = Trainer(accelerator="cpu", precision=precision, logger=False, enable_checkpointing=False)
    with trainer.precision_plugin.forward_context():
        return trainer.precision, (torch.ones(2, 2) @ torch.ones(2, 2)).dtype


@pytest.mark.parametrize("precision", ["32-true", 32, "32", None, "bf16-mixed", "bf16", "16-mixed", 16, "16"])
def test_precision_equals_that_of_lightnings_trainer_on_a_cpu(precision):
    name, dtype = lightning_precision(precision)
    assert resolve_precision(precision, "cpu") == name
    with precision_context(precision, "cpu"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


def test_the_automatic_precision_is_one_of_lightnings():
    assert lightning_precision(resolve_precision("auto", "cpu"))[0] == resolve_precision("auto", "cpu")


@pytest.mark.parametrize(
    ("devices", "available", "index"),
    [
        ([1], 2, 1),
        ("1,", 2, 1),
        ("3,2", 4, 3),
        ([1, 0], 2, 1),
        ([1], 1, 0),
        (1, 2, 0),
        (2, 2, 0),
        (-1, 2, 0),
        ("auto", 2, 0),
        ("1", 2, 0),
        ([-1], 2, 0),
    ],
)
def test_the_first_gpu_is_the_first_that_the_trainer_lists(devices, available, index):
    assert first_gpu(devices, available) == index


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)


def test_devices_select_the_gpu(two_gpus):
    assert select_device("auto", [1]) == torch.device("cuda", 1)
    assert select_device("gpu", 1) == torch.device("cuda", 0)
    assert select_device("cpu", [1]) == torch.device("cpu")


def test_a_training_is_evaluated_on_its_own_gpu(two_gpus, monkeypatch):
    settings = {}
    monkeypatch.setattr(build, "_make_trainer", lambda config, **given: settings.update(given))
    build.evaluation_trainer(compose(overrides=["trainer.accelerator=gpu", "trainer.devices=[1]"]), None)
    assert settings["devices"] == [1]


def test_a_trained_network_computes_on_the_gpu_of_its_training(shop_run, two_gpus, monkeypatch):
    chosen = []
    monkeypatch.setattr(network.NetworkRunner, "__init__", lambda self, module, data, **given: chosen.append(given))
    config = shop_run.config()
    config.trainer.accelerator, config.trainer.devices = "gpu", [1]
    monkeypatch.setattr(type(shop_run), "config", lambda run: config)
    network.TrainedNetwork(shop_run)
    assert chosen[0]["device"] == torch.device("cuda", 1)
