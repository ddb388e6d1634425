"""Real images through the real command line, in processes of their own."""

import json
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import REPOSITORY

from fashion_cnn.runs import Run

COMMAND = [sys.executable, "-m", "fashion_cnn.train"]


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
    return subprocess.run([*COMMAND, *arguments], cwd=cwd, capture_output=True, text=True, timeout=300, check=False)


def the_run(folder: Path) -> Run:
    (config,) = folder.rglob("config.yaml")
    return Run(config.parent)


def start_and_stop(arguments, cwd, sign, after):
    """Start a training, send `sign` once it has printed a line that begins with `after`, and wait for its end."""
    process = subprocess.Popen(
        [*COMMAND, *arguments], cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for line in process.stdout:
        if line.startswith(after):
            os.kill(process.pid, sign)
            break
    _, err = process.communicate(timeout=120)
    return process.returncode, err


def test_a_killed_or_stopped_training_on_real_images_goes_on_to_the_same_end(arguments, tmp_path):
    whole = run(arguments, tmp_path)
    assert whole.returncode == 0, whole.stderr
    assert whole.stderr == ""
    results = the_run(tmp_path / "runs").results()
    assert results["test/accuracy"] > 0.6, "a tenth would be chance"
    metrics = the_run(tmp_path / "runs").metrics_file.read_bytes()

    for sign, after, status in (
        (signal.SIGKILL, "epoch", -signal.SIGKILL),
        (signal.SIGINT, "1/3", 130),
        (signal.SIGTERM, "2/3", 143),
    ):
        folder = tmp_path / sign.name
        stopped, said = start_and_stop([*arguments, f"runs_dir={folder}"], tmp_path, sign, after)
        assert stopped == status
        assert (sign == signal.SIGKILL) or f"resume={the_run(folder).path}" in said
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
    assert json.dumps(list(elsewhere.iterdir())) == "[]"
