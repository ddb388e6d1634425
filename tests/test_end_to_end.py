"""Real images through the real command line, in processes of their own."""

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

pytestmark = pytest.mark.processes
COMMAND = [sys.executable, "-m", "fashion_cnn.train"]


class WaitForSignal(Callback):
    """Has a training wait after an epoch, the first time, until a signal stops it."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        waited = Path(trainer.default_root_dir) / "waited"
        if trainer.current_epoch == self.epoch and batch_idx == 1 and not waited.exists():
            waited.touch()
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
        "trainer.limit_train_batches=30",
        "trainer.limit_val_batches=2",
        "trainer.limit_test_batches=2",
    ]


def run(arguments, cwd):
    return subprocess.run([*COMMAND, *arguments], cwd=cwd, capture_output=True, text=True, check=False)


def the_run(folder: Path) -> Run:
    (config,) = folder.rglob("config.yaml")
    return Run(config.parent)


def start_and_stop(arguments, cwd, sign, epoch):
    """Start a training, send `sign` while it waits in epoch `epoch`, and wait for its end."""
    waits = ["+callbacks.wait._target_=test_end_to_end.WaitForSignal", f"+callbacks.wait.epoch={epoch}"]
    process = subprocess.Popen(
        [*COMMAND, *arguments, *waits],
        cwd=cwd,
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


def test_a_killed_or_stopped_training_on_real_images_goes_on_to_the_same_end(arguments, tmp_path):
    whole = run(arguments, tmp_path)
    assert whole.returncode == 0, whole.stderr
    assert whole.stderr == ""
    results = the_run(tmp_path / "runs").results()
    assert results["test/accuracy"] > 0.6, "a tenth would be chance"
    metrics = the_run(tmp_path / "runs").metrics_file.read_bytes()

    for sign, epoch, status in (
        (signal.SIGKILL, 0, -signal.SIGKILL),
        (signal.SIGINT, 1, 130),
        (signal.SIGTERM, 2, 143),
    ):
        folder = tmp_path / sign.name
        stopped, said = start_and_stop([*arguments, f"runs_dir={folder}"], tmp_path, sign, epoch)
        assert stopped == status
        assert (f"resume={the_run(folder).path}" in said) == (sign != signal.SIGKILL)
        assert not the_run(folder).results_file.exists()
        resumed = run([f"resume={the_run(folder).path}"], tmp_path)
        assert resumed.returncode == 0, resumed.stderr
        assert the_run(folder).metrics_file.read_bytes() == metrics
        again = the_run(folder).results()
        assert {name: again[name] for name in again if "/" in name} == {n: results[n] for n in results if "/" in n}
    assert not (tmp_path / "outputs").exists()


def test_the_wheel_carries_conf_and_works_from_any_directory(tmp_path):
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
    packed = {name.removeprefix("fashion_cnn/conf/") for name in names if name.startswith("fashion_cnn/conf/")}
    assert packed == {
        path.relative_to(REPOSITORY / "conf").as_posix() for path in (REPOSITORY / "conf").rglob("*.yaml")
    }
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    answer = subprocess.run(
        [*COMMAND, "--cfg", "job", "model=medium"],
        cwd=elsewhere,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "installed"), "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "ResNet" in answer.stdout
    assert not list(elsewhere.iterdir())
