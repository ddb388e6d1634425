"""Trainings on tiny synthetic images: run files, reproducibility, resuming, errors."""

import csv
import errno
import itertools
import json
import logging
import math
import os
import shlex
import shutil
import threading
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
import torch
import yaml
from conftest import TINY_DATA
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from matplotlib.figure import Figure
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer.event_file_writer import _AsyncWriterThread
from tiny_images import TinyDataModule
from torch.nn import functional
from torch.utils.tensorboard import SummaryWriter

import fashion_cnn
from fashion_cnn.cli.main import compose
from fashion_cnn.errors import Interrupted, UserError
from fashion_cnn.evaluation.evaluate import evaluate_runs
from fashion_cnn.inference.network import read_checkpoint
from fashion_cnn.metrics.intervals import Interval
from fashion_cnn.models import ImageClassifier
from fashion_cnn.runs import Run
from fashion_cnn.runs.overrides import quote_override
from fashion_cnn.train import main, train
from fashion_cnn.training import build, leakage, session
from fashion_cnn.training import results as results_module
from fashion_cnn.training.callbacks import HEADER, ProgressBar, SlowdownNotice
from fashion_cnn.training.checkpoints import MovableModelCheckpoint

# Splits of an epoch line whose accuracies are printed, with the sign of the format.
CELLS = (("train", ""), ("val", ""), ("gap", "+"))
FILES = {
    ".lock",
    "ambiguous.csv",
    "checkpoints/best.ckpt",
    "checkpoints/last.ckpt",
    "config.yaml",
    "metrics.csv",
    "predictions.npz",
    "training_images.npy",
    "model_card.md",
    "report.md",
    "results.json",
    "examples.csv",
    "projector_config.pbtxt",
    *(f"projector/{name}" for name in ("metadata.tsv", "sprite.png", "tensors.tsv")),
    *(f"figures/{name}.png" for name in ("cartography", "curves", "gap", "label_errors")),
    *(f"figures/{name}.png" for name in ("confusion", "gap_by_class", "mistakes", "reliability")),
}


class StopAtEpoch(Callback):
    """Raises `error` at a batch of an epoch, the first by default."""

    def __init__(self, epoch, error, batch=None):
        self.epoch, self.error, self.batch = epoch, error, batch

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.current_epoch == self.epoch and batch_idx == (self.batch or 0):
            raise self.error


@pytest.fixture
def stop(monkeypatch):
    """A function that makes the next trainings stop with an error."""
    original = build._make_callbacks

    def arm(epoch, error, batch=None):
        stopper = StopAtEpoch(epoch, error, batch)
        monkeypatch.setattr(build, "_make_callbacks", lambda *args: [*original(*args), stopper])

    return arm


@pytest.fixture
def undrawn(monkeypatch):
    """Write plots of one pixel: another test draws those of the same trainings."""
    monkeypatch.setattr(Figure, "savefig", lambda figure, file, **_: Image.new("L", (1, 1)).save(file, "PNG"))


@pytest.fixture
def disarm(monkeypatch):
    original = build._make_callbacks
    return lambda: monkeypatch.setattr(build, "_make_callbacks", original)


def scalars(run):
    """All TensorBoard curves except throughput, as lists of (step, value), by subdirectory and tag."""
    curves = {}
    for folder in ("", "train", "val"):
        events = EventAccumulator(str(run.path / folder)).Reload()
        names = [name for name in events.Tags()["scalars"] if not name.startswith("throughput/")]
        curves |= {(folder, name): [(event.step, event.value) for event in events.Scalars(name)] for name in names}
    return curves


def read_metrics_csv(run):
    with run.metrics_file.open(newline="") as file:
        return list(csv.DictReader(file))


def only_run(config):
    (folder,) = Path(config.runs_dir).glob("*/*")
    return Run(folder)


def equal_results(first, second):
    # The advice contains the run directory.
    timed = {"seconds", "images_per_second", "finished", "run", "advice"}
    return {k: v for k, v in first.items() if k not in timed} == {k: v for k, v in second.items() if k not in timed}


@pytest.mark.slow
def test_a_run_writes_its_files_and_beats_chance(tiny):
    # Without a tie-breaker the first of equally accurate epochs is best, which makes best and last differ.
    config = tiny("callbacks=default", "trainer.max_epochs=6", "callbacks.best.tie=null")
    results = train(config)
    run = only_run(config)
    files = {path.relative_to(run.path).as_posix() for path in run.path.rglob("*") if path.is_file()}
    last = {f"figures/{name}_last.png" for name in ("confusion", "gap_by_class", "mistakes", "reliability")}
    assert results["best_epoch"] < results["epochs"]
    assert {name for name in files if "tfevents" not in name} == FILES | last
    events = Counter(name.rpartition("/")[0] for name in files if "tfevents" in name)
    assert events.pop("overfitting", 1) == 1
    assert events == {"": 2, "train": 1, "val": 1, "best": 1}, "one file of the training, one of the analysis"
    assert json.loads(run.results_file.read_text()) == {k: v for k, v in results.items() if k != "run"}
    assert results["test/accuracy"] > 0.5, "chance is a quarter"
    assert results["gap/loss"] == pytest.approx(results["val/loss"] - results["train/loss"], abs=1e-6)
    assert results["gap_test/accuracy"] == pytest.approx(results["train/accuracy"] - results["test/accuracy"])
    rows = read_metrics_csv(run)
    assert [int(row["epoch"]) for row in rows] == [0, 1, 2, 3, 4, 5]
    assert [int(row["step"]) for row in rows] == [8, 16, 24, 32, 40, 48]
    curves = scalars(run)
    for name, curve in curves.items():
        assert [step for step, _ in curve] == [1, 2, 3, 4, 5, 6], name
    for split in ("train", "val"):
        for metric in ("loss", "accuracy", "calibration_error"):
            values = [value for _, value in curves[split, metric]]
            assert values == pytest.approx([float(row[f"{split}/{metric}"]) for row in rows])
    gaps = [value for _, value in curves["", "gap/loss"]]
    assert gaps == [value for _, value in curves["", "gap_interval/loss"]]
    assert {("", "gap_interval/loss_low"), ("", "gap_interval/loss_high")} <= curves.keys()
    assert run.state == "finished"


def test_tensorboard_has_the_points_of_metrics_csv_with_essential_callbacks(tiny):
    results = train(tiny("trainer.max_epochs=2"))
    curves = scalars(Run(Path(results["run"])))
    assert [step for step, _ in curves["val", "loss"]] == [1, 2]
    assert [step for step, _ in curves["", "gap/accuracy"]] == [1, 2]
    assert not any("interval" in name for _, name in curves), "a chart with margins needs both bounds"
    assert ("", "epoch") not in curves


def test_an_epoch_logged_after_the_last_checkpoint_is_in_no_curve_twice(tiny):
    class Kill(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            # Callbacks that write checkpoints come last.
            if trainer.current_epoch == 1:
                raise KeyboardInterrupt

    config = tiny()
    with pytest.raises(Interrupted):
        train(config, callbacks=[Kill()])
    run = only_run(config)
    assert [step for step, _ in scalars(run)["val", "loss"]] == [1, 2]
    train(tiny("resume=latest"))
    assert {tuple(step for step, _ in curve) for curve in scalars(run).values()} == {(1, 2, 3)}


def test_a_run_with_training_steps_in_tensorboard_resumes_with_epochs(tiny, stop, disarm):
    config = tiny("trainer.max_epochs=4")
    stop(2, KeyboardInterrupt())
    with pytest.raises(Interrupted):
        train(config)
    disarm()
    run = only_run(config)
    # The events of an older version: no subdirectories, and the number of training steps as step.
    for file in run.path.rglob("*tfevents*"):
        file.unlink()
    for split in ("train", "val"):
        (run.path / split).rmdir()
    writer = SummaryWriter(str(run.path))
    for row in read_metrics_csv(run):
        for name in ("val/loss", "gap/loss"):
            writer.add_scalar(name, float(row[name]), int(row["step"]))
    writer.close()
    # Files are read in the order of their names, which in the same second is not that of their numbers.
    (older,) = run.path.glob("*tfevents*")
    older.rename(older.with_name("events.out.tfevents.1000000000.older"))
    train(tiny("resume=latest"))
    curves = scalars(run)
    rows = read_metrics_csv(run)
    expected = [(epoch, pytest.approx(float(row["val/loss"]))) for epoch, row in enumerate(rows, start=1)]
    assert curves["val", "loss"] == expected
    assert [step for step, _ in curves["", "gap/loss"]] == [1, 2, 3, 4]


def test_every_logger_but_tensorboard_gets_the_hyperparameters_at_the_start(tiny):
    received = []

    class Recorder(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            (logger,) = (logger for logger in trainer.loggers if isinstance(logger, CSVLogger))
            received.append(dict(logger.experiment.hparams))

    other = "+logger.other={_target_:lightning.pytorch.loggers.CSVLogger,name:other,version:''}"
    results = train(tiny(other, "trainer.max_epochs=1", "optimizer.lr=0.02", "seed=3"), callbacks=[Recorder()])
    assert received[0]["optimizer.lr"] == 0.02
    assert received[0]["seed"] == 3
    stored = yaml.safe_load((Path(results["run"]) / "other" / "hparams.yaml").read_text())
    assert stored == received[0]
    assert stored["model.network"] == "ResNet"
    tensors = EventAccumulator(results["run"]).Reload().Tags()["tensors"]
    assert not any("hparams" in name for name in tensors), "callbacks=essential makes no analysis"


def test_the_module_is_never_moved_in_inference_mode(tiny, monkeypatch):
    # Buffers moved in inference mode, for example to a GPU, could not be loaded into afterwards.
    moved = []
    for name in ("cpu", "to", "cuda"):
        method = getattr(ImageClassifier, name)

        def move(self, *settings, method=method, **others):
            moved.append(torch.is_inference_mode_enabled())
            return method(self, *settings, **others)

        monkeypatch.setattr(ImageClassifier, name, move)
    results = train(tiny("trainer.max_epochs=1"))
    moved_in_training = len(moved)
    evaluation = evaluate_runs([Run(Path(results["run"]))], "test", data_root=None)
    evaluation.network.logits(evaluation.images[:5])
    assert len(moved) > moved_in_training > 0
    assert not any(moved)


def test_results_equal_an_evaluation_of_the_best_checkpoint(tiny):
    config = tiny()
    results = train(config)
    module = fashion_cnn.load(results["run"]).module
    rows = read_metrics_csv(Run(Path(results["run"])))
    assert float(rows[results["best_epoch"] - 1]["val/accuracy"]) == max(float(row["val/accuracy"]) for row in rows)
    data = build.data(config)
    data.setup("test")
    splits = {"train": data.train_probe, "val": data.val_split, "test": data.test_split}
    precision = torch.autocast("cpu", torch.bfloat16, enabled=results["precision"] == "bf16-mixed")
    for name, split in splits.items():
        with torch.no_grad(), precision:
            # In the batch size of the evaluation: bfloat16 results depend on it.
            logits = torch.cat([module(data.normalise(images)).float() for images in split.images.split(20)])
        assert results[f"{name}/accuracy"] == pytest.approx((logits.argmax(1) == split.targets).float().mean().item())
        assert results[f"{name}/loss"] == pytest.approx(
            functional.cross_entropy(logits, split.targets).item(), rel=1e-6
        )


def test_flip_averaged_metrics_are_recorded_beside_the_plain_ones(tiny):
    config = tiny("trainer.max_epochs=6", "trainer.precision=32-true")
    results = train(config)
    module = fashion_cnn.load(results["run"]).module
    data = build.data(config)
    data.setup("test")
    images, targets = data.normalise(data.test_split.images), data.test_split.targets
    with torch.no_grad():
        single, mirrored = module(images), module(images.flip(-1))
    averaged = functional.cross_entropy((single + mirrored) / 2, targets).item()
    assert results["test_flip/loss"] == pytest.approx(averaged, rel=1e-5)
    assert results["test/loss"] == pytest.approx(functional.cross_entropy(single, targets).item(), rel=1e-5)
    assert abs(results["test/loss"] - averaged) > 1e-5, "the two views must differ"
    assert "val_flip/accuracy" in results
    assert "flip-averaged" in Run(Path(results["run"])).report_file.read_text()


def test_flip_average_false_records_no_flip_averaged_metrics(tiny):
    results = train(tiny("trainer.max_epochs=1", "flip_average=false"))
    assert not [name for name in results if "flip" in name]
    assert "flip-averaged" not in Run(Path(results["run"])).report_file.read_text()


@pytest.mark.parametrize(
    ("overrides", "is_averaged"),
    [
        ([], True),
        (["data.augmentation.flip=null"], False),
        (["data.augmentation.flip.p=0"], False),
        (["data.augmentation=null"], False),
        (["data.augmentation=null", "remedy=augmentation"], True),
        (["data.augmentation=null", "flip_average=true"], True),
    ],
)
def test_flip_averaged_metrics_are_measured_for_trainings_that_mirror_their_images(tiny, overrides, is_averaged):
    results = train(tiny("trainer.max_epochs=1", *overrides))
    assert bool([name for name in results if "flip" in name]) == is_averaged
    assert ("flip-averaged" in Run(Path(results["run"])).report_file.read_text()) == is_averaged


def test_impossible_values_of_flip_average_are_refused_before_the_training(tiny):
    with pytest.raises(UserError, match="flip_average=2 is not possible: choose auto, true or false"):
        train(tiny("flip_average=2"))
    assert not Path(tiny().runs_dir).exists()


@pytest.mark.training
@pytest.mark.usefixtures("undrawn")
def test_the_same_seed_repeats_all_metrics_and_another_seed_does_not(tiny):
    first, second, other = (train(tiny("callbacks=default", f"seed={seed}")) for seed in (0, 0, 1))
    texts = [Run(Path(results["run"])).metrics_file.read_text() for results in (first, second, other)]
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]
    assert equal_results(first, second)
    assert first["run"] != second["run"]


@pytest.mark.training
@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("epoch", "batch", "error"),
    [(2, 3, KeyboardInterrupt()), (0, 4, KeyboardInterrupt()), (1, 0, RuntimeError("the disk fell out"))],
    ids=["mid-epoch", "before the first epoch's end", "failed"],
)
def test_a_resumed_run_equals_an_uninterrupted_one(tiny, stop, disarm, tmp_path, capsys, epoch, batch, error):
    settings = ["callbacks=default", "trainer.max_epochs=4"]
    settings += ["model.network.dropout=0.2", "data.augmentation.erasing.p=0.9"]
    whole = train(tiny(*settings, f"runs_dir='{tmp_path / 'whole'}'"))
    config = tiny(*settings)
    stop(epoch, error, batch)
    with pytest.raises((Interrupted, RuntimeError)):
        train(config)
    run = only_run(config)
    assert not run.results_file.exists()
    assert run.state == ("failed" if isinstance(error, RuntimeError) else "stopped")
    disarm()
    capsys.readouterr()
    resumed = train(tiny("resume=latest", *settings))
    message = f"continuing after epoch {epoch} of 4" if epoch else "from the start: no epoch was finished"
    assert f"  resuming   {message}\n" in capsys.readouterr().out
    assert resumed["run"] == str(run.path)
    assert equal_results(whole, resumed)
    assert run.metrics_file.read_bytes() == Run(Path(whole["run"])).metrics_file.read_bytes()
    assert scalars(run) == scalars(Run(Path(whole["run"])))
    assert run.state == "finished"


@pytest.mark.usefixtures("undrawn")
def test_the_sanity_check_of_lightning_is_no_pass_of_the_gap(tiny):
    results = train(tiny("callbacks=default", "trainer.max_epochs=2", "trainer.num_sanity_val_steps=1"))
    state = read_checkpoint(Run(Path(results["run"])).last_checkpoint)["callbacks"]["GapMonitor"]
    assert [int(epoch) for epoch in state["epochs"]] == [1, 2]


@pytest.mark.training
@pytest.mark.usefixtures("undrawn")
def test_resuming_a_run_stopped_after_training_evaluates_it(tiny, monkeypatch):
    from fashion_cnn.training import session

    config = tiny("callbacks=default")

    def interrupt(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(session, "collect_results", interrupt)
        with pytest.raises(Interrupted):
            train(config)
    resumed = train(tiny("callbacks=default", "resume=latest"))
    assert equal_results(resumed, train(config))


@pytest.mark.training
@pytest.mark.usefixtures("undrawn")
def test_fast_cnn_muon_and_linear_schedule_resume_exactly(stop, disarm, tmp_path):
    data = [part for part in TINY_DATA if part.startswith("data")]
    network = ["model=fast", "model.network.whitened=8", "model.network.widths=[8,16]"]
    settings = [*data, *network, "optimizer=muon", "schedule=linear", "trainer.accelerator=cpu", "trainer.max_epochs=3"]
    whole = train(compose(overrides=[*settings, f"runs_dir='{tmp_path / 'whole'}'"]))
    stop(1, KeyboardInterrupt(), 3)
    with pytest.raises(Interrupted):
        train(compose(overrides=[*settings, f"runs_dir='{tmp_path / 'parted'}'"]))
    disarm()
    resumed = train(compose(overrides=["resume=latest", f"runs_dir='{tmp_path / 'parted'}'"]))
    assert equal_results(whole, resumed)
    assert fashion_cnn.load(resumed["run"]).module.network.whitening.fitted


@pytest.mark.training
@pytest.mark.usefixtures("undrawn")
def test_a_moved_run_resumes_with_its_best_score(tiny, stop, disarm, tmp_path):
    settings = ["callbacks=default", "trainer.max_epochs=4"]
    whole = train(tiny(*settings, f"runs_dir='{tmp_path / 'whole'}'"))
    config = tiny(*settings)
    stop(3, KeyboardInterrupt())
    with pytest.raises(Interrupted, match="resume="):
        train(config)
    moved = tmp_path / "elsewhere, with spaces"
    shutil.move(only_run(config).path, moved)
    disarm()
    resumed = train(tiny(*settings, f"resume='{moved}'"))
    assert equal_results(whole, resumed)


@pytest.mark.training
def test_ties_in_val_accuracy_keep_the_epoch_with_lowest_loss(tiny, stop, disarm):
    settings = ("trainer.max_epochs=6", "data.val_size=4", "optimizer.lr=0.02")
    results = train(tiny(*settings))
    rows = read_metrics_csv(Run(Path(results["run"])))
    accuracies = [float(row["val/accuracy"]) for row in rows]
    best = [number for number, accuracy in enumerate(accuracies, start=1) if accuracy == max(accuracies)]
    assert len(best) > 1, "several epochs must reach the same accuracy"
    assert results["best_epoch"] == min(best, key=lambda epoch: float(rows[epoch - 1]["val/loss"])) != best[0]
    stop(5, KeyboardInterrupt())
    with pytest.raises(Interrupted):
        train(tiny(*settings))
    disarm()
    assert equal_results(results, train(tiny(*settings, "resume=latest")))


def test_a_finished_run_is_not_resumed(tiny):
    results = train(tiny())
    with pytest.raises(UserError, match="finished"):
        train(tiny(f"resume='{results['run']}'"))
    with pytest.raises(UserError, match="no unfinished run"):
        train(tiny("resume=latest"))


@pytest.mark.slow
def test_a_run_locked_by_another_process_is_not_resumed(tiny, stop, disarm):
    config = tiny()
    stop(1, KeyboardInterrupt())
    with pytest.raises(Interrupted):
        train(config)
    disarm()
    run = only_run(config)
    with run.locked():
        assert run.state == "running"
        with pytest.raises(UserError, match="another process"):
            train(tiny(f"resume='{run.path}'"))
    assert run.state == "stopped"


def test_overrides_that_change_a_resumed_run_are_refused(tiny, stop, disarm, tmp_path):
    config = tiny("experiment=baseline", *TINY_DATA)
    stop(1, KeyboardInterrupt())
    with pytest.raises(Interrupted):
        train(config)
    disarm()
    resume = ["resume=latest", f"runs_dir='{config.runs_dir}'"]
    with pytest.raises(UserError, match=r"trainer\.max_epochs cannot change \(it is 3\)"):
        train(compose(overrides=[*resume, "trainer.max_epochs=60"]))
    assert train(compose(overrides=[*resume, "experiment=baseline"]))["epochs"] == 3, "the stored config must stand"


def test_a_given_directory_resumes_with_the_stored_settings(tiny, stop, disarm):
    config = tiny("trainer.max_epochs=3")
    stop(1, KeyboardInterrupt())
    with pytest.raises(Interrupted):
        train(config)
    disarm()
    directory = only_run(config).path
    assert train(tiny("trainer.max_epochs=2"), directory=directory)["epochs"] == 3, "a job of a sweep is not checked"


@pytest.mark.parametrize("process", ["first", "further"])
def test_data_root_of_a_resumed_run_reaches_every_process(tiny, stop, monkeypatch, process):
    config = tiny()
    stop(1, KeyboardInterrupt())
    with pytest.raises(Interrupted):
        train(config)
    if process == "further":
        monkeypatch.setenv("FASHION_CNN_RUN", str(only_run(config).path))

    def raise_with_data_root(config):
        raise FileNotFoundError(config.data.root)

    monkeypatch.setattr(build, "data", raise_with_data_root)
    with pytest.raises(FileNotFoundError, match="moved"):
        train(tiny("resume=latest", "data.root=moved"))


def test_a_data_root_given_on_resuming_is_written_into_the_run(tiny, stop, disarm):
    config = tiny("data.root=before")
    stop(1, KeyboardInterrupt())
    with pytest.raises(Interrupted):
        train(config)
    disarm()
    run = only_run(config)
    started, stored = run.started, run.config()
    train(tiny("resume=latest", "data.root=moved"))
    assert run.config().data.root == "moved"
    assert "data.root=moved" in run.config().overrides
    assert "data.root=before" not in run.config().overrides
    assert run.started == started, "the newest run stays the newest"
    stored.data.root, stored.overrides = run.config().data.root, run.config().overrides
    assert stored == run.config(), "nothing else changes"


def test_a_run_keeps_its_number_of_threads_unless_resuming_gives_another(tiny, stop, disarm, monkeypatch):
    used = []
    monkeypatch.setattr(session, "resolve_threads", lambda threads, precision: used.append(threads) or 1)
    config = tiny()
    stop(1, KeyboardInterrupt())
    before = torch.get_num_threads()
    with pytest.raises(Interrupted):
        train(config)
    run = only_run(config)
    assert (used, run.config().threads) == (["auto"], 1)
    with pytest.raises(Interrupted):
        train(tiny("resume=latest"))
    with pytest.raises(Interrupted):
        train(tiny("resume=latest", "threads=2"))
    assert used == ["auto", 1, 2]
    disarm()
    monkeypatch.setattr(session, "resolve_threads", lambda threads, precision: threads)
    train(tiny("resume=latest", "threads=2"))
    assert run.config().threads == 2
    assert torch.get_num_threads() == before


def test_training_that_becomes_slow_says_so_once_and_how_to_use_fewer_threads(tiny, monkeypatch, capsys):
    found = itertools.chain([None] * 4, itertools.repeat(6.0))
    monkeypatch.setattr(SlowdownNotice, "add", lambda self, seconds: next(found))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    train(tiny("trainer.enable_progress_bar=false"))
    printed = capsys.readouterr().out
    line = "Training has become 6 times slower: other programs use the processor. To use fewer threads, stop it with "
    assert printed.count("times slower") == 1
    assert f"{line}Ctrl-C, and add threads=1 to the command it prints." in printed


@pytest.mark.training
def test_an_unreadable_checkpoint_is_refused_on_resume(tiny, stop, disarm):
    config = tiny()
    stop(1, KeyboardInterrupt())
    with pytest.raises(Interrupted):
        train(config)
    disarm()
    checkpoint = only_run(config).last_checkpoint
    stored = torch.load(checkpoint, weights_only=True)
    for damage in (
        lambda: checkpoint.write_bytes(b"half a checkpoint"),
        lambda: torch.save([1, 2], checkpoint),
        lambda: torch.save({**stored, "state_dict": 3}, checkpoint),
        lambda: torch.save({**stored, "state_dict": {"a": 3}}, checkpoint),
        lambda: torch.save({**stored, "global_step": "x"}, checkpoint),
        lambda: os.mkfifo(checkpoint),
    ):
        checkpoint.unlink()
        damage()
        with pytest.raises(UserError, match=r"last\.ckpt is not a readable checkpoint .* Delete it to restart"):
            train(tiny("resume=latest"))
    checkpoint.unlink()
    assert train(tiny("resume=latest"))["epochs"] == 3


@pytest.mark.training
@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe",
        b"epoch\n0\n",
        b"step,epoch\n8,x\n",
        b"step,epoch\n8,0,1\n",
        b"step,epoch,a\n8,0\n",
        b"step,epoch,a\n8,0,b",
    ],
)
def test_damaged_metrics_are_refused_on_resume_and_the_remedy_works(tiny, stop, disarm, content):
    config = tiny("trainer.max_epochs=2")
    stop(1, KeyboardInterrupt())
    with pytest.raises(Interrupted):
        train(config)
    disarm()
    run = only_run(config)
    run.metrics_file.write_bytes(content)
    with pytest.raises(UserError, match=r"metrics\.csv is damaged .* or delete it and .*last\.ckpt to restart the run"):
        train(tiny("resume=latest"))
    run.metrics_file.unlink()
    run.last_checkpoint.unlink()
    assert train(tiny("resume=latest"))["epochs"] == 2


@pytest.mark.training
def test_a_full_disk_at_any_write_is_reported_and_the_run_resumes(tiny, monkeypatch, tmp_path):
    """The disk is full from the n-th file on that is written whole, for each n."""
    settings, sync = ["trainer.max_epochs=1", "flip_average=false"], os.fsync

    def fill_disk_after(files):
        remaining = [None] * files

        def write(descriptor):
            if not remaining:
                raise OSError(errno.ENOSPC, "No space left on device")
            remaining.pop()
            sync(descriptor)

        monkeypatch.setattr(os, "fsync", write)

    expected = train(tiny(*settings, f"runs_dir='{tmp_path / 'whole'}'"))
    for files in itertools.count():
        config = tiny(*settings, f"runs_dir='{tmp_path / str(files)}'")
        fill_disk_after(files)
        try:
            train(config)
            break
        except UserError as error:
            message = str(error)
        finally:
            monkeypatch.setattr(os, "fsync", sync)
        assert "cannot be used (no space left on device): free some space" in message
        run = only_run(config)
        assert not list(run.path.rglob("*.partial"))
        assert not run.error_file.exists()
        if not run.config_file.exists():
            assert run.state == "empty"
            continue
        assert run.state == "stopped"
        assert "Then resume with:\n  python -m fashion_cnn.train" in message
        assert message.endswith(f"resume={run.path}")
        assert equal_results(train(tiny(f"resume='{run.path}'")), expected)
    assert files > 5, "config, metrics, checkpoints, figures, model card, results"


@pytest.mark.training
@pytest.mark.parametrize("epoch", [0, 1])
def test_a_run_directory_removed_during_the_training_is_reported_and_stays_removed(tiny, monkeypatch, capsys, epoch):
    class Remove(Callback):
        def on_train_epoch_start(self, trainer, module):
            if trainer.current_epoch == epoch:
                # TensorBoard's threads may write a file while the folder is being removed.
                while Path(trainer.default_root_dir).exists():
                    shutil.rmtree(trainer.default_root_dir, ignore_errors=True)

    original = build._make_callbacks
    monkeypatch.setattr(build, "_make_callbacks", lambda *args: [*original(*args), Remove()])
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    config = tiny("callbacks=default", "trainer.max_epochs=4")
    with pytest.raises(
        UserError, match=r"runs/\S+ was removed during the training: train again, or restore it"
    ) as error:
        train(config)
    assert "b'" not in str(error.value)
    assert "Resume" not in str(error.value)
    assert not list(Path(config.runs_dir).glob("*/*"))
    assert capsys.readouterr().err == ""
    # TensorBoard's threads end before the original hook is back, which would report their errors in a later test.
    for thread in threading.enumerate():
        if isinstance(thread, _AsyncWriterThread):
            while thread.is_alive() and not thread._queue.empty():
                thread.join(0.1)
            thread.join(0.2)


def test_an_error_of_tensorboards_threads_is_left_to_the_message_of_the_training(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    run = Run(tmp_path / "run")
    run.create()
    file = os.fsencode(run.path / "val" / "events")
    read_only = OSError(errno.EROFS, "Read-only file system", file)

    def fail():
        raise read_only

    def fail_in_thread():
        thread = threading.Thread(target=fail)
        thread.start()
        thread.join()

    @session._record_failure(run, [])
    def fail_in_both():
        fail_in_thread()
        fail()

    with pytest.raises(UserError, match=r"val/events cannot be used \(read-only file system\): make it writable"):
        fail_in_both()
    fail_in_thread()
    assert capsys.readouterr().err == ""
    with session._record_failure(run, []):
        fail_in_thread()
    out = capsys.readouterr().err
    assert out.count("\n") == 1
    assert f"{run.path}/val/events cannot be used" in out


def test_a_user_error_of_a_part_reaches_python_as_it_is(tmp_path):
    places = [f"runs_dir='{tmp_path}'", "trainer.accelerator=cpu", "trainer.max_epochs=1"]
    with pytest.raises(UserError, match=r"^data\.root is missing"):
        train(compose(overrides=["data=image_folder", *places]))
    network = ["data._target_=tiny_images.TinyDataModule", "data.val_size=32", "model=torchvision"]
    with pytest.raises(UserError, match=r"^model\.network\.name=none is not a network of torchvision"):
        train(compose(overrides=[*network, "model.network.name=none", *places]))


def test_a_checkpoint_of_another_network_is_refused_on_resume(tiny, stop, disarm, tmp_path):
    other = train(tiny("model.network.widths=[16,32]", f"runs_dir='{tmp_path / 'other'}'"))
    config = tiny()
    stop(1, KeyboardInterrupt())
    with pytest.raises(Interrupted):
        train(config)
    disarm()
    shutil.copy(Run(Path(other["run"])).last_checkpoint, only_run(config).last_checkpoint)
    with pytest.raises(UserError, match="another network"):
        train(tiny("resume=latest"))


class SameImages(TinyDataModule):
    """The images of TinyDataModule, from another data module."""


class HeldOutImages(TinyDataModule):
    """The test images of TinyDataModule for training."""

    train_size = 40

    def load(self, *, train):
        return super().load(train=not train)


class OtherImages(TinyDataModule):
    """Images of other classes."""

    class_names = ("red", "green", "blue", "yellow")

    def load(self, *, train):
        images, targets = super().load(train=train)
        return 255 - images, targets


class RepeatedImages(TinyDataModule):
    """Each image occurs twice, so that validation images occur in the training split."""

    def load(self, *, train):
        images, targets = super().load(train=train)
        half = len(images) // 2
        return torch.cat([images[:half]] * 2), torch.cat([targets[:half]] * 2)


def from_data(name):
    return f"data._target_=test_training.{name}"


BRIEF = ("trainer.max_epochs=1", "test=false")


@pytest.mark.training
@pytest.mark.parametrize("old", [False, True], ids=["recorded", "computed for an older run"])
def test_init_from_finds_validation_images_that_another_data_module_read(tiny, old):
    source = train(tiny(*BRIEF, from_data("SameImages"), "data.val_size=0"))["run"]
    if old:
        Run(Path(source)).training_images_file.unlink()
    with pytest.raises(UserError, match=r"was trained on 32 of the 32 images of this run's validation set"):
        train(tiny(*BRIEF, f"init_from='{source}'"))
    assert "val/loss" not in train(tiny(*BRIEF, "data.val_size=0", f"init_from='{source}'"))


def test_init_from_the_same_split_of_another_data_module_is_accepted(tiny):
    source = train(tiny(*BRIEF, from_data("SameImages")))["run"]
    assert "val/loss" in train(tiny(*BRIEF, f"init_from='{source}'"))


@pytest.mark.training
@pytest.mark.parametrize("gone", [False, True], ids=["first run present", "first run deleted"])
def test_init_from_finds_validation_images_over_two_runs(tiny, gone):
    first = train(tiny(*BRIEF, from_data("SameImages"), "data.val_size=0"))["run"]
    second = train(tiny(*BRIEF, from_data("OtherImages"), f"init_from='{first}'"))["run"]
    if gone:
        shutil.rmtree(first)
    with pytest.raises(UserError, match=r"32 of the 32 images .* validation set, itself or in a run that it started"):
        train(tiny(*BRIEF, f"init_from='{second}'"))


def test_init_from_finds_test_images(tiny):
    source = train(tiny(*BRIEF, from_data("HeldOutImages"), "data.val_size=8"))["run"]
    with pytest.raises(UserError, match=r"was trained on 32 of the 40 images of this run's test set"):
        train(tiny(*BRIEF, f"init_from='{source}'"))


def test_init_from_another_fold_is_leakage(tiny):
    folds = [*BRIEF, "data.folds=4"]
    source = train(tiny(*folds))["run"]
    with pytest.raises(UserError, match=r"data.fold is 0 there, 1 here"):
        train(tiny(*folds, "data.fold=1", f"init_from='{source}'"))
    with pytest.raises(UserError, match=r"data.folds is 4 there, None here"):
        train(tiny(*BRIEF, f"init_from='{source}'"))
    # The fold is the validation set, whatever the size that one without folds would have.
    assert "val/loss" in train(tiny(*folds, "data.fold=0", "data.val_size=3", f"init_from='{source}'"))


@pytest.mark.parametrize("fraction", [1.0, 0.25])
def test_images_that_the_data_set_holds_twice_are_no_leakage(tiny, fraction):
    settings = [*BRIEF, from_data("RepeatedImages")]
    source = train(tiny(*settings))["run"]
    assert "val/loss" in train(tiny(*settings, f"data.train_fraction={fraction}", f"init_from='{source}'"))


@pytest.mark.training
def test_settings_are_compared_where_the_images_of_an_older_run_are_gone(tiny, monkeypatch):
    def gone(run):
        raise UserError("the data set is missing")

    first = train(tiny(*BRIEF, "data.val_size=0"))["run"]
    second = train(tiny(*BRIEF, from_data("OtherImages"), f"init_from='{first}'"))["run"]
    for run in (first, second):
        Run(Path(run)).training_images_file.unlink()
    monkeypatch.setattr(leakage, "load_data", gone)
    with pytest.raises(UserError, match=r"started from .*, which was trained .* \(data.val_size is 0 there, 32 here\)"):
        train(tiny(*BRIEF, f"init_from='{second}'"))
    third = train(tiny(*BRIEF, "data.val_size=0", f"init_from='{second}'"))["run"]
    assert not Run(Path(third)).training_images_file.exists(), "an incomplete list would be taken for a complete one"


@pytest.mark.parametrize("shape", [None, (), (2**70,), (True,)])
def test_no_content_of_a_list_of_training_images_ends_in_a_traceback(tmp_path, shape):
    run = Run(tmp_path)
    with run.training_images_file.open("wb") as file:
        if shape is None:
            np.savez(file, a=np.zeros(2))
        elif shape == ():
            file.write(b"PK\x03\x04, the start of an archive")
        else:
            np.lib.format.write_array_header_1_0(file, {"descr": "<u8", "fortran_order": False, "shape": shape})
            file.write(bytes(16))
    with pytest.raises(UserError, match=r"training_images.npy is damaged: delete it"):
        leakage.training_images(run)


def test_a_damaged_list_of_training_images_is_reported(tiny):
    source = train(tiny(*BRIEF))["run"]
    file = Run(Path(source)).training_images_file
    for damage in (lambda: file.write_bytes(b"\x93NUMPY"), lambda: os.mkfifo(file)):
        file.unlink()
        damage()
        with pytest.raises(UserError, match=r"training_images.npy is damaged: delete it"):
            train(tiny(*BRIEF, f"init_from='{source}'"))


def test_teachers_may_not_have_been_trained_on_validation_images_in_an_earlier_run(tiny):
    first = train(tiny(*BRIEF, from_data("SameImages"), "data.val_size=0"))["run"]
    teacher = Run(Path(train(tiny(*BRIEF))["run"]))
    teacher.training_images_file.write_bytes(Run(Path(first)).training_images_file.read_bytes())
    with pytest.raises(UserError, match=r"distillation.teachers=.* was trained on 32 of the 32 images"):
        train(tiny(*BRIEF, "distillation=soft_labels", f"distillation.teachers='{teacher.path}'"))


def test_init_from_keeps_the_new_classifier_for_as_many_other_classes(tiny, capsys):
    source = train(tiny(*BRIEF, from_data("OtherImages")))["run"]
    trained, config = fashion_cnn.load(source).module, tiny(*BRIEF, f"init_from='{source}'")
    capsys.readouterr()
    _, _, module = session.prepare(config, None, lambda config: None)
    assert "has other classes (red, green, blue …): its last layer is not used" in capsys.readouterr().err
    assert torch.equal(module.network.trunk[0][0].weight, trained.network.trunk[0][0].weight)
    assert not torch.equal(module.network.classifier.weight, trained.network.classifier.weight)
    _, _, module = session.prepare(tiny(*BRIEF, from_data("OtherImages"), f"init_from='{source}'"), None, print)
    assert capsys.readouterr().err == ""
    assert torch.equal(module.network.classifier.weight, trained.network.classifier.weight)


@pytest.mark.training
def test_init_from_starts_with_the_weights_of_another_run(tiny):
    first = train(tiny("trainer.max_epochs=8"))
    second = train(tiny("init_from=latest", "trainer.max_epochs=1", "optimizer.lr=1e-6"))
    assert second["val/accuracy"] == pytest.approx(first["val/accuracy"], abs=0.1)
    cold = train(tiny("trainer.max_epochs=1", "optimizer.lr=1e-6"))
    assert cold["val/loss"] > second["val/loss"] + 0.1
    config = Run(Path(second["run"])).config()
    assert config.init_from == first["run"]
    assert f"init_from={first['run']}" in config.overrides, "suggested commands repeat the overrides"


def test_init_from_keeps_the_new_classifier_for_other_classes(tiny):
    from fashion_cnn.inference.network import initialise_from

    results = train(tiny())
    config = tiny()
    module = build.module(config, build.data(config))
    module = ImageClassifier(network=config_network(config, 7), image_shape=(1, 20, 20), num_classes=7)
    head = module.network.classifier.weight.clone()
    initialise_from(module, Run(Path(results["run"])), [f"class {label}" for label in range(7)])
    trained = fashion_cnn.load(results["run"]).module
    assert torch.equal(module.network.classifier.weight, head)
    assert torch.equal(module.network.trunk[0][0].weight, trained.network.trunk[0][0].weight)


def config_network(config, classes):
    from hydra.utils import instantiate

    return instantiate(config.model.network, in_channels=1, num_classes=classes, _convert_="all")


def test_init_from_another_network_is_refused_before_a_run_directory_exists(tiny, tmp_path):
    results = train(tiny())
    with pytest.raises(UserError, match="another network"):
        train(tiny(f"init_from='{results['run']}'", f"runs_dir='{tmp_path / 'other'}'", "model.network.widths=[16,32]"))
    assert not (tmp_path / "other").exists()


@pytest.mark.training
def test_init_from_weights_trained_on_validation_images_is_refused(tiny):
    brief = ["trainer.max_epochs=1"]
    on_all = train(tiny(*brief, "data.val_size=0"))["run"]
    with pytest.raises(UserError, match=r"images of this run's validation set \(data.val_size is 0 there, 32 here\)"):
        train(tiny(*brief, f"init_from='{on_all}'"))
    assert "val/loss" not in train(tiny(*brief, "data.val_size=0", f"init_from='{on_all}'"))
    # A larger validation set of the same split contains this run's.
    larger_val_set = train(tiny(*brief, "data.val_size=48"))["run"]
    assert "val/loss" in train(tiny(*brief, f"init_from='{larger_val_set}'"))


def test_the_suggested_command_starts_from_the_runs_weights(tiny, capsys):
    overrides = ["trainer.max_epochs=1", "model.network.widths=[4,8]"]
    results = train(tiny(*overrides))
    run = Run(Path(results["run"]))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "go further" in line]
    changes = shlex.split(line)[5:]
    assert changes[-1] == f"init_from={run.path}"
    again = train(compose(overrides=[quote_override(change) for change in changes]))
    assert again["parameters"] == results["parameters"]


def test_infinite_weights_after_the_last_step_are_not_saved(tiny):
    # With one step an epoch, the only loss is that of the initial weights.
    config = tiny("optimizer=sgd", "optimizer.lr=1e39", "schedule=constant", "data.batch_size=128")
    with pytest.raises(UserError, match=r"The largest weight became (nan|inf) with step 1 .*Try"):
        train(config)
    assert not only_run(config).last_checkpoint.exists()


def test_divergence_stops_the_run_and_names_step_and_learning_rate(tiny):
    config = tiny("optimizer=sgd", "optimizer.lr=1e12", "schedule=constant")
    with pytest.raises(UserError, match=r"at step \d+ \(epoch 1, learning rate 1e\+12.*Try"):
        train(config)
    run = only_run(config)
    assert run.state == "failed"
    assert "learning rate" in run.error_file.read_text()


def test_without_validation_set_the_last_weights_are_evaluated_without_gap(tiny):
    results = train(tiny("callbacks=default", "data.val_size=0"))
    assert "val/loss" not in results
    assert "gap/loss" not in results
    assert math.isfinite(results["test/loss"])
    run = Run(Path(results["run"]))
    assert run.weights == run.last_checkpoint
    assert "not measured" in run.report_file.read_text()


def test_a_train_probe_without_validation_set_gives_the_gap_to_the_test_set(tiny):
    results = train(tiny("data.val_size=0", "data.probe_size=24"))
    assert "val/loss" not in results
    assert results["gap_test/accuracy"] == pytest.approx(results["train/accuracy"] - results["test/accuracy"])
    assert (results["train/accuracy"] * 24) % 1 == pytest.approx(0, abs=1e-4)


def test_resuming_a_run_with_damaged_results_evaluates_it_again(tiny):
    results = train(tiny("trainer.max_epochs=1"))
    run = Run(Path(results["run"]))
    run.results_file.write_text('{"seed": ')
    again = train(tiny(f"resume='{run.path}'"))
    assert again["weights_sha256"] == results["weights_sha256"]
    assert run.results()["test/accuracy"] == results["test/accuracy"]


def test_test_false_does_not_evaluate_the_test_set(tiny):
    results = train(tiny("test=false"))
    assert not [name for name in results if "test" in name]


@pytest.mark.training
def test_early_stopping_ends_a_run_without_improvement(tiny):
    results = train(tiny("callbacks=early_stopping", "callbacks.early_stopping.patience=1", "optimizer.lr=0.0"))
    assert results["epochs"] == 2


@pytest.mark.training
@pytest.mark.parametrize(("criterion", "epochs"), [("patience=1", 2), ("stopping_threshold=0.0", 1)])
def test_a_run_stopped_early_does_not_train_on_when_resumed(tiny, monkeypatch, criterion, epochs):
    from fashion_cnn.training import session

    settings = ["callbacks=early_stopping", f"++callbacks.early_stopping.{criterion}", "optimizer.lr=0.0"]

    def interrupt(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(session, "collect_results", interrupt)
        with pytest.raises(Interrupted):
            train(tiny(*settings, "trainer.max_epochs=6"))
    assert train(tiny(*settings, "trainer.max_epochs=6", "resume=latest"))["epochs"] == epochs


@pytest.mark.training
def test_validation_every_other_epoch_repeats_no_metric(tiny, capsys):
    results = train(tiny("callbacks=default", "trainer.max_epochs=5", "trainer.check_val_every_n_epoch=2"))
    run = Run(Path(results["run"]))
    rows = read_metrics_csv(run)
    assert [bool(row["val/loss"]) for row in rows] == [False, True, False, True, False]
    assert all(row["running/loss"] for row in rows)
    assert results["gap_last/epoch"] == 4
    assert math.isfinite(results["gap_last/loss"])
    out = capsys.readouterr().out
    assert "no validation after epoch 4 of 5 (trainer.check_val_every_n_epoch=2)" in " ".join(out.split())
    lines = [line for line in out.splitlines() if line.startswith(("3/5", "4/5"))]
    assert [line.split()[1] == "-" for line in lines] == [True, False]
    tags = EventAccumulator(str(run.path)).Reload().Tags()
    assert tags["histograms"]
    assert "custom_scalars__config__" in tags["tensors"]


def test_epoch_lines_are_in_percent_and_points_and_count_from_one(tiny, capsys):
    results = train(tiny("trainer.max_epochs=2"))
    rows = read_metrics_csv(Run(Path(results["run"])))
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith(("1/2", "2/2"))]
    for row, line in zip(rows, lines, strict=True):
        accuracies = [f"{float(row[f'{name}/accuracy']) * 100:{sign}.2f}" for name, sign in CELLS]
        assert line[1:4] == accuracies
        assert line[4:7] == [f"{float(row[f'{name}/loss']):.4f}" for name in ("train", "val", "running")]
    assert all(max(map(len, line.splitlines())) < 80 for line in (HEADER, *map(" ".join, lines)))


def test_the_progress_bar_counts_epochs_from_one():
    bar = ProgressBar()
    bar._trainer = SimpleNamespace(max_epochs=3)
    assert [bar._get_train_description(epoch).strip() for epoch in range(3)] == ["Epoch 1/3", "Epoch 2/3", "Epoch 3/3"]


def test_metrics_logged_by_a_callback_are_a_column_of_metrics_csv(tiny):
    class CustomMetric(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            pl_module.log("custom", 10.0 + trainer.current_epoch)

    results = train(tiny("trainer.max_epochs=2"), callbacks=[CustomMetric()])
    rows = read_metrics_csv(Run(Path(results["run"])))
    assert [row["custom"] for row in rows] == ["10.0", "11.0"]
    assert [row["step"] for row in rows] == ["8", "16"]
    assert all(row["running/loss"] for row in rows)
    assert math.isfinite(results["running/loss"])


@pytest.mark.training
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_true_half_and_double_precision_train_and_are_evaluated(tiny, precision, optimizer):
    results = train(tiny("trainer.max_epochs=1", f"trainer.precision={precision}", f"optimizer={optimizer}"))
    assert results["precision"] == precision
    assert math.isfinite(results["test/loss"])
    evaluation = evaluate_runs([Run(Path(results["run"]))], "test", data_root=None)
    assert evaluation.network.logits(evaluation.images[:5]).shape == (5, 4)


@pytest.mark.training
@pytest.mark.parametrize("name", ["gap/accuracy_high", "val/calibration_error", "gap_by_class/top", "running/loss"])
def test_every_logged_metric_can_be_monitored(tiny, name):
    overrides = ["callbacks=early_stopping", f"callbacks.early_stopping.monitor={name}", "trainer.max_epochs=1"]
    assert train(tiny(*overrides))["epochs"] == 1
    without = tiny(*overrides, "data.val_size=0")
    if name == "running/loss":
        assert train(without)["epochs"] == 1
    else:
        with pytest.raises(UserError, match=f"monitors {name}, which needs validation images"):
            train(without)


@pytest.mark.training
@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon"])
def test_gradients_are_clipped_in_mixed_precision(tiny, optimizer):
    settings = (f"optimizer={optimizer}", "trainer.max_epochs=1", "trainer.precision=bf16-mixed")
    free, clipped = (train(tiny(*settings, f"trainer.gradient_clip_val={most}")) for most in ("null", 0.01))
    assert free["running/loss"] != clipped["running/loss"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_run_trained_on_a_listed_gpu_is_evaluated_on_a_cpu(tiny):
    results = train(tiny("trainer.max_epochs=1"))
    run = Run(Path(results["run"]))
    config = run.config()
    config.trainer.accelerator, config.trainer.devices = "auto", [5]
    run.write_config(config)
    assert evaluate_runs([run], "test", data_root=None).metrics["test/loss"] == pytest.approx(results["test/loss"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["callbacks=early_stopping", "callbacks.early_stopping.monitor=val/acc"], "Did you mean val/accuracy"),
        (["callbacks=early_stopping", "trainer.limit_val_batches=0"], "needs validation images: set trainer.limit_val"),
        (
            ["data.val_size=0", "callbacks.best.monitor=running/loss", "callbacks.best.mode=min"],
            "callbacks.best monitors running/loss, which selects no epoch without validation images",
        ),
        (["callbacks.best.monitor=val/los"], "monitor=val/los is not a logged metric"),
        (["callbacks.best.tie=val/los"], "tie=val/los is not a logged metric"),
        (["callbacks.last.filename=newest"], "other commands read last.ckpt"),
        (["+callbacks.last.every_n_epochs=2"], "callbacks.last writes the weights of each epoch: leave out"),
        (["+callbacks.last.every_n_train_steps=5"], "callbacks.last writes the weights of each epoch: leave out"),
        (["callbacks.best.filename=top"], "other commands read best.ckpt"),
        (["data.augmentation.erasing.scale=[0.02]"], "scale=[0.02] must be two"),
        (["optimizer=adamw", "optimizer.betas=[0.9]"], "optimizer or schedule"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_wrong_settings_are_refused_before_a_run_directory_exists(command, tmp_path, overrides, message):
    status, _, err = command(main, *TINY_DATA, f"runs_dir={tmp_path}", *overrides)
    assert status in (1, 2)
    assert message in err
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_scores_on_different_devices_are_compared(tmp_path):
    class ScoreOnOtherDevice:
        """A score on another device: `item` works, comparisons do not."""

        def item(self):
            return 0.5

    callback = MovableModelCheckpoint(dirpath=tmp_path, monitor="val/accuracy", mode="max", tie="val/loss")
    callback.best_model_score, callback._lowest = torch.tensor(0.5), 1.0
    callback.best_k_models = {"best.ckpt": torch.tensor(0.5)}
    callback.kth_best_model_path, callback.kth_value = "best.ckpt", torch.tensor(0.5)
    trainer = SimpleNamespace(callback_metrics={"val/loss": torch.tensor(0.9)})
    with patch.object(ModelCheckpoint, "check_monitor_top_k", return_value=False):
        assert callback.check_monitor_top_k(trainer, ScoreOnOtherDevice())


def test_an_unfinished_epoch_has_running_metrics(tiny):
    with pytest.warns(UserWarning, match="monitor"):  # no validation pass came
        results = train(tiny("+trainer.max_steps=5"))
    (row,) = read_metrics_csv(Run(Path(results["run"])))
    assert row["step"] == "5"
    assert math.isfinite(results["running/loss"])


@pytest.mark.training
def test_a_run_with_a_limit_of_steps_resumes(tiny, stop, disarm):
    config = tiny("+trainer.max_steps=20")
    stop(1, KeyboardInterrupt())
    with pytest.raises(Interrupted):
        train(config)
    disarm()
    train(tiny("resume=latest"))
    rows = read_metrics_csv(only_run(config))
    assert [(row["epoch"], row["step"], bool(row["val/loss"])) for row in rows] == [
        ("0", "8", True),
        ("1", "16", True),
        ("2", "20", False),
    ]


@pytest.mark.slow
def test_the_report_mentions_a_missing_validation_pass(tiny):
    results = train(tiny("callbacks=default", "trainer.max_epochs=1", "trainer.check_val_every_n_epoch=2"))
    report = Run(Path(results["run"])).report_file.read_text()
    assert "no validation pass was made during training" in report
    assert "the weights of the last epoch (1)" in report


def test_the_report_names_the_last_weights_without_a_best_checkpoint(tiny):
    results = train(tiny("callbacks.best=null"))
    report = Run(Path(results["run"])).report_file.read_text()
    assert report.count(f"the weights of the last epoch ({results['epochs']})") == 2
    assert "best on validation" not in report


def test_throughput_excludes_validation(monkeypatch):
    from fashion_cnn.training import callbacks

    watch = callbacks.Stopwatch()
    assert watch.images_per_second == 0, "before the first step"
    batch, trainer = SimpleNamespace(targets=range(10)), SimpleNamespace(world_size=1)
    calls = [
        (0, lambda: watch.on_train_epoch_start(trainer, None)),
        (3, lambda: watch.on_train_batch_end(trainer, None, None, batch, 0)),
        (5, lambda: watch.on_validation_start(trainer, None)),
        (7, lambda: watch.on_validation_end(trainer, None)),
        (9, lambda: watch.on_train_batch_end(trainer, None, None, batch, 1)),
        (12, lambda: watch.on_validation_start(trainer, None)),
        (13, lambda: watch.on_validation_end(trainer, None)),
        (15, lambda: watch.on_train_epoch_end(trainer, None)),
    ]
    for now, call in calls:
        monkeypatch.setattr(callbacks.time, "perf_counter", lambda now=now: float(now))
        call()
    assert watch.images_per_second == pytest.approx(20 / 12)
    assert watch.seconds == 15


def test_a_checkpoint_of_ones_own_needs_no_validation_images(tiny):
    own = "_target_:lightning.pytorch.callbacks.ModelCheckpoint,monitor:running/loss,filename:own"
    config = tiny("data.val_size=0", f"+callbacks.own={{{own}}}")
    trainer = build.trainer(config, build.data(config), Path(config.runs_dir))
    assert sorted(callback.filename for callback in trainer.checkpoint_callbacks) == ["last", "own"]


def test_fast_dev_run_needs_no_test_images(tiny, monkeypatch):
    monkeypatch.setattr(TinyDataModule, "has_test", False)
    results = train(tiny("trainer.fast_dev_run=true"))
    assert "val/loss" in results
    assert "test/loss" not in results


def test_fast_dev_run_keeps_nothing(tiny, capsys):
    config = tiny("trainer.fast_dev_run=true")
    assert "test/loss" in train(config)
    assert "test/loss" not in train(tiny("trainer.fast_dev_run=true", "test=false"))
    assert not Path(config.runs_dir).exists()
    assert "nothing was kept" in capsys.readouterr().out


def test_overfit_batches_works_as_in_lightning(tiny):
    with pytest.warns(UserWarning, match="You requested to overfit"):
        results = train(tiny("trainer.overfit_batches=2", "trainer.max_epochs=10"))
    assert results["running/accuracy"] > 0.5


def test_a_profiler_works_as_in_lightning(tiny):
    messages = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logger = logging.getLogger("lightning.pytorch.profilers")
    logger.addHandler(handler)
    try:
        train(tiny("trainer.profiler=simple", "trainer.max_epochs=1"))
    finally:
        logger.removeHandler(handler)
    assert "run_training_batch" in "".join(messages)


def test_parts_are_dropped_by_name(tiny):
    config = tiny("~callbacks.ema", "~logger.tensorboard", "callbacks.bar=null")
    assert not build.trainer(config, build.data(config), Path(config.runs_dir)).progress_bar_callback
    results = train(config)
    run = Run(Path(results["run"]))
    assert not list(run.path.glob("*tfevents*"))
    assert "current_model_state" not in torch.load(run.best_checkpoint, weights_only=True)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.max_epochs=-3", r"max_epochs=-3"),
        ("data.val_size=60000", r"val_size=60000"),
        ("seed=-1", "seed=-1"),
        ("model.label_smoothing=2", "label_smoothing=2"),
    ],
)
def test_an_impossible_value_is_refused_before_a_run_directory_exists(tiny, override, message):
    config = tiny(override)
    with pytest.raises(Exception, match=message):
        train(config)
    assert not Path(config.runs_dir).exists()


def test_a_checkpoint_rebuilds_its_module(tiny):
    results = train(tiny())
    for name in ("best_checkpoint", "last_checkpoint"):
        module = ImageClassifier.load_from_checkpoint(getattr(Run(Path(results["run"])), name))
        assert module(torch.zeros(3, 1, 20, 20)).shape == (3, 4)


@pytest.mark.slow
def test_a_training_writes_nothing_outside_its_run_directory(tiny, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    train(tiny("trainer.max_epochs=1", "callbacks=default"))
    assert not list((tmp_path / "here").iterdir())


def test_the_model_card_names_the_data(tiny):
    card = (Path(train(tiny("trainer.max_epochs=1"))["run"]) / "model_card.md").read_text()
    assert "A network (ResNet) that classifies images of 20 x 20 pixels" in card
    assert "**Training data.** The data set of TinyDataModule. Trained on 128 images" in card
    assert "**Intended use.** Images of the same kind as the training data; nothing else was tested. Not for" in card


def test_advice_starts_with_longer_training_where_evaluation_lags(tiny, monkeypatch, capsys):
    monkeypatch.setattr(results_module, "evaluation_lag", lambda *_: Interval(0.3, 0.2, 0.4))
    results = train(tiny("trainer.max_epochs=1"))
    assert "trainer.max_epochs=2" in results["advice"][0]
    assert "~callbacks.ema" in results["advice"][1]
    assert len(results["advice"]) > 2, "the advice of the verdict follows"
    out = capsys.readouterr().out
    assert out.index("first train longer: evaluation lags behind") < out.index("or turn the average")
    without = train(tiny("trainer.max_epochs=1", "~callbacks.ema"))
    assert not any("EMA" in reason for reason in without["advice_reasons"])
