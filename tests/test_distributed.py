"""Distributed training: images split between processes, metrics over all of them, one run directory."""

import csv
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import PATIENCE, TINY_DATA

from fashion_cnn.data import InMemoryDataset, batch_loader
from fashion_cnn.data.batches import Shard
from fashion_cnn.metrics.predictions import read_predictions
from fashion_cnn.runs import Run
from fashion_cnn.train import main
from fashion_cnn.training.results import images_per_epoch


@pytest.fixture
def dataset():
    return InMemoryDataset(torch.zeros(103, 1, 2, 2, dtype=torch.uint8), torch.zeros(103).long(), torch.arange(103))


def indices_of(dataset, batch_size, processes, **settings):
    """The indices of each batch, by process."""
    loaders = [batch_loader(dataset, batch_size, shard=Shard(i, processes), **settings) for i in range(processes)]
    return [[batch.indices for batch in loader] for loader in loaders]


def test_the_batches_of_all_processes_together_are_those_of_one_process(dataset):
    (alone,) = indices_of(dataset, 32, 1, shuffle_seed=3)
    shares = indices_of(dataset, 8, 4, shuffle_seed=3)
    for step, batch in enumerate(alone):
        assert torch.equal(torch.cat([share[step] for share in shares]).sort().values, batch.sort().values)
    assert {len(share) for share in shares} == {len(alone)}, "all processes must have as many batches"
    indices = torch.cat([batch for share in shares for batch in share])
    assert len(indices.unique()) == len(indices)


def test_evaluation_visits_each_image_once_over_all_processes(dataset):
    shares = indices_of(dataset, 10, 4)
    indices = torch.cat([batch for share in shares for batch in share])
    assert sorted(indices.tolist()) == list(range(103))


def test_an_epoch_trains_on_the_images_of_all_processes():
    # Each of two processes has 63 of the 127 images: seven batches of eight.
    data = SimpleNamespace(train_split=range(127), batch_size=8)
    assert images_per_epoch(SimpleNamespace(num_training_batches=7, world_size=2), data) == 2 * 7 * 8


def train(folder, *overrides):
    command = [sys.executable, "-m", "fashion_cnn.train", *TINY_DATA, f"runs_dir={folder}", *overrides]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=PATIENCE, check=False)


@pytest.mark.processes
def test_training_in_two_processes_matches_one_process(tmp_path, command, monkeypatch):
    # Neither 33 validation images nor 127 training images can be halved.
    settings = ["callbacks=default", "data.val_size=33", "trainer.precision=32-true", "trainer.max_epochs=4"]
    several = train(tmp_path, *settings, "trainer=ddp", "trainer.devices=2", "data.batch_size=8", "name=two")
    assert several.returncode == 0, several.stderr
    assert "sync_dist" not in several.stderr
    monkeypatch.chdir(tmp_path)
    alone = [*TINY_DATA, *settings, "data.batch_size=16", "name=one"]
    assert command(main, *alone, f"runs_dir={tmp_path}")[0] == 0
    (config,) = (tmp_path / "two").rglob("config.yaml")
    two, one = Run(config.parent), Run(next((tmp_path / "one").iterdir()))
    names = [sorted(path.name.partition(".tfevents")[0] for path in run.path.iterdir()) for run in (one, two)]
    assert names[0] == names[1], "only one process may write"

    lines = [line for line in several.stdout.splitlines() if line.startswith("4/4")]
    assert len(lines) == 1, "only one process may print"
    with two.metrics_file.open() as file:
        last = list(csv.DictReader(file))[-1]
    stored = read_predictions(two.predictions_file)
    last_predictions = stored.get("last.val", stored["best.val"])
    assert float(last["val/accuracy"]) == pytest.approx(last_predictions.correct.float().mean().item())
    assert float(last["val/loss"]) == pytest.approx(last_predictions.losses.mean().item(), rel=1e-4)
    assert two.results()["val/accuracy"] == pytest.approx(one.results()["val/accuracy"], abs=0.1)
    assert two.results()["val/accuracy"] > 0.8
    with two.examples_file.open() as file:
        epochs_seen = [int(row["seen"]) for row in csv.DictReader(file)]
    assert max(epochs_seen) <= 4
    assert sum(epochs_seen) == 4 * 7 * 16, "seven batches of sixteen an epoch"
