"""Training on real images through the command line, in separate processes."""

import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from conftest import PATIENCE, REPOSITORY
from lightning.pytorch import Callback

from fashion_cnn.runs import Run
from fashion_cnn.train import main

pytestmark = pytest.mark.processes
COMMAND = [sys.executable, "-m", "fashion_cnn.train"]


class WaitForSignal(Callback):
    """Waits in an epoch, the first time, until a signal stops the training."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        marker = Path(trainer.default_root_dir) / "waited"
        if trainer.current_epoch == self.epoch and batch_idx == 1 and not marker.exists():
            marker.touch()
            print("waiting", flush=True)
            while not trainer.received_sigterm:
                time.sleep(0.01)


@pytest.fixture
def arguments(fashion_mnist_root, tmp_path):
    return [
        f"data.root={fashion_mnist_root}",
        f"runs_dir={tmp_path / 'runs'}",
        "model=tiny",
        "trainer.accelerator=cpu",
        "trainer.max_epochs=3",
        "data.batch_size=32",
        "trainer.limit_train_batches=30",
        "trainer.limit_val_batches=2",
        "trainer.limit_test_batches=2",
    ]


def run(arguments, cwd):
    return subprocess.run([*COMMAND, *arguments], cwd=cwd, capture_output=True, text=True, check=False)


def only_run(folder: Path) -> Run:
    (config,) = folder.rglob("config.yaml")
    return Run(config.parent)


def start_and_stop(arguments, cwd, sign, epoch):
    """Start a training, send `sign` while it waits in epoch `epoch`, and wait for its end."""
    waits = ["+callbacks.wait._target_=test_end_to_end.WaitForSignal", f"+callbacks.wait.epoch={epoch}"]
    # A coverage measurement has a handler of its own for SIGTERM, and Lightning installs none beside another.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    process = subprocess.Popen(
        [*COMMAND, *arguments, *waits],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if line == "waiting\n":
            os.kill(process.pid, sign)
            break
    _, err = process.communicate(timeout=PATIENCE)
    return process.returncode, err


def test_killed_or_stopped_training_resumes_to_the_same_results(arguments, tmp_path, command):
    uninterrupted = run(arguments, tmp_path)
    assert uninterrupted.returncode == 0, uninterrupted.stderr
    assert uninterrupted.stderr == ""
    results = only_run(tmp_path / "runs").results()
    assert results["test/accuracy"] > 0.6, "chance is a tenth"
    metrics = only_run(tmp_path / "runs").metrics_file.read_bytes()

    for sign, epoch, status in (
        (signal.SIGKILL, 0, -signal.SIGKILL),
        (signal.SIGINT, 1, 130),
        (signal.SIGTERM, 2, 143),
    ):
        folder = tmp_path / sign.name
        returncode, err = start_and_stop([*arguments, f"runs_dir={folder}"], tmp_path, sign, epoch)
        assert returncode == status
        assert (f"resume={only_run(folder).path}" in err) == (sign != signal.SIGKILL)
        assert not only_run(folder).results_file.exists()
        returncode, _, err = command(main, f"resume={only_run(folder).path}")
        assert returncode == 0, err
        assert only_run(folder).metrics_file.read_bytes() == metrics
        resumed_results = only_run(folder).results()
        assert {name: resumed_results[name] for name in resumed_results if "/" in name} == {
            n: results[n] for n in results if "/" in n
        }
    assert not (tmp_path / "outputs").exists()


def test_wheel_contains_conf_and_works_from_any_directory(tmp_path):
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "-q",
            "--no-deps",
            "--no-build-isolation",
            "--no-index",
            "-w",
            str(tmp_path),
            str(REPOSITORY),
        ],
        check=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "installed")
    packaged = {name.removeprefix("fashion_cnn/conf/") for name in names if name.startswith("fashion_cnn/conf/")}
    assert packaged == {
        path.relative_to(REPOSITORY / "conf").as_posix() for path in (REPOSITORY / "conf").rglob("*.yaml")
    }
    directory = tmp_path / "elsewhere"
    directory.mkdir()
    process = subprocess.run(
        [*COMMAND, "--cfg", "job", "model=medium"],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "installed"), "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "ResNet" in process.stdout
    assert not list(directory.iterdir())
