"""Costs of a training in addition to its epochs: start-up, memory, validation, checkpoints."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback
from omegaconf import DictConfig, OmegaConf

from benchmarks.ways import fit
from fashion_cnn.data import ImageDataModule

SCRIPTS = Path(__file__).parent.parent


class EndAfterFirstStep(Callback):
    """Ends the process after the first training step."""

    def on_train_batch_end(self, *_: Any) -> None:
        os._exit(0)


def start_to_first_step(overrides: list[str]) -> float:
    """Measure seconds from the start of `python -m fashion_cnn.train` to the end of its first step."""
    seconds, _ = _time_command([*overrides, "+callbacks.first._target_=benchmarks.costs.EndAfterFirstStep"])
    return seconds


def peak_memory(overrides: list[str]) -> float:
    """Measure the peak resident memory, in bytes, of one epoch with validation, test and report."""
    return _time_command([*overrides, "trainer.max_epochs=1"])[1]


def _time_command(overrides: list[str]) -> tuple[float, float]:
    """Measure seconds and peak resident memory, in bytes, of one training."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "fashion_cnn.train", *overrides, f"runs_dir={folder}"]
        environment = {**os.environ, "PYTHONPATH": str(SCRIPTS)}
        started = time.perf_counter()
        process = subprocess.Popen(command, cwd=SCRIPTS.parent, env=environment, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
    if status:
        raise SystemExit("error: the training failed; see its output above.")
    return seconds, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def validation_and_checkpoint(config: DictConfig, data: ImageDataModule) -> tuple[float, float]:
    """Measure seconds of one evaluation of train probe and validation set, and of one checkpoint."""
    config = OmegaConf.merge(config, {"trainer": {"limit_train_batches": 10}})
    clock = _Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = fit(config, data, clock, Path(folder))
        started = time.perf_counter()
        trainer.save_checkpoint(Path(folder) / "timed.ckpt")
        return clock.seconds, time.perf_counter() - started


class _Clock(Callback):
    def on_validation_start(self, *_: Any) -> None:
        self.started = time.perf_counter()

    def on_validation_end(self, *_: Any) -> None:
        self.seconds = time.perf_counter() - self.started
