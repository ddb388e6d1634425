"""Precision of networks against that of Lightning's Trainer with the same settings."""

import warnings

import pytest
import torch
from lightning.pytorch import Trainer

from fashion_cnn.cli.main import compose
from fashion_cnn.errors import UserError
from fashion_cnn.inference import network
from fashion_cnn.models import hardware
from fashion_cnn.models.hardware import (
    fastest_threads,
    first_gpu,
    precision_context,
    resolve_precision,
    resolve_threads,
    select_device,
)
from fashion_cnn.training import build
from fashion_cnn.training.callbacks import SlowdownNotice


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


@pytest.mark.parametrize(
    ("throughputs", "fastest"),
    [
        ({4: 3.0, 2: 2.0, 1: 1.0}, 4),
        ({4: 0.2, 2: 1.9, 1: 1.0}, 2),
        ({2: 0.3, 1: 1.6}, 1),
        ({2: 1.0, 1: 1.05}, 2),
        ({6: 1.0, 3: 5.0, 1: 2.0}, 3),
        ({1: 1.0}, 1),
    ],
)
def test_fewer_threads_than_the_default_are_used_where_they_are_clearly_faster(throughputs, fastest):
    assert fastest_threads(max(throughputs), throughputs.__getitem__) == fastest


def test_a_slow_moment_of_the_machine_reaches_all_numbers_of_threads():
    # The machine becomes ten times slower in the middle, which would mislead measurements one after the other.
    calls = iter(range(100))
    assert fastest_threads(2, lambda threads: threads * (1.0 if next(calls) < 4 else 0.1)) == 2


def test_automatic_threads_are_measured_unless_the_environment_gives_them(monkeypatch):
    monkeypatch.setattr(hardware, "DEFAULT_THREADS", 2)
    monkeypatch.setattr(hardware, "_throughput_of_threads", lambda precision: {2: 0.2, 1: 1.0}.__getitem__)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert resolve_threads("auto") == 2
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert resolve_threads("auto") == 1


def test_the_device_names_the_threads_in_use_and_the_possible_ones(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(hardware, "DEFAULT_THREADS", 2)
    assert hardware.describe_device(torch.device("cpu")).startswith("CPU, 1 of 2 threads, ")
    monkeypatch.setattr(hardware, "DEFAULT_THREADS", 1)
    assert hardware.describe_device(torch.device("cpu")).startswith("CPU, 1 thread, ")


def test_the_throughput_of_threads_is_measured_and_their_number_restored():
    before = torch.get_num_threads()
    assert hardware._throughput_of_threads("32-true")(2) > 0
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("threads", [0, -1, 100_000, 1.5, "two", True])
def test_impossible_numbers_of_threads_are_refused(threads):
    with pytest.raises(UserError, match=f"threads={threads} is not possible on this machine: give auto, or 1 to "):
        resolve_threads(threads)


def test_a_slowdown_is_noticed_from_the_median_of_many_steps():
    notice = SlowdownNotice(factor=5, steps=4, seconds=2)
    usual = [3.0, 3.0, 3.0, 3.0, *[0.1] * 4, *[0.1] * 10]
    assert not any(notice.add(seconds) for seconds in usual), "the first steps of a training are slow"
    assert not any(notice.add(seconds) for seconds in (60.0, *[0.1] * 10)), "one slow step is no slowdown"
    assert [notice.add(0.7) for _ in range(4)][-1] == pytest.approx(7)
    quick = SlowdownNotice(factor=5, steps=4, seconds=2)
    assert not any(quick.add(seconds) for seconds in (*[0.01] * 8, *[0.1] * 4)), "less than the seconds in all"
