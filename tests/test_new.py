"""`python -m fashion_cnn.new`: the package that it writes passes its tests and trains."""

import os
import subprocess
import sys

import pytest
from conftest import REPOSITORY

from fashion_cnn import evaluate, new, train
from fashion_cnn.runs import find_runs


@pytest.fixture
def project(command, tmp_path, monkeypatch):
    """A written package, in whose folder the test runs."""
    for module in [name for name in sys.modules if name.partition(".")[0] == "my_stripes"]:
        monkeypatch.delitem(sys.modules, module)
    folder = tmp_path / "my-stripes"
    status, out, err = command(new.main, str(folder))
    assert (status, err) == (0, "")
    assert "python -m fashion_cnn.train --config-dir conf experiment=my_stripes\n" in out
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    return folder


@pytest.mark.processes
def test_the_package_passes_its_own_tests(project):
    variables = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    typed = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    ended = subprocess.run(typed, capture_output=True, text=True, check=False, env=variables)
    assert ended.returncode == 0, ended.stdout
    assert "5 passed" in ended.stdout


@pytest.mark.slow
def test_the_package_trains_resumes_and_is_evaluated(project, command):
    small = ["trainer.accelerator=cpu", "trainer.max_epochs=1", "callbacks=essential"]
    typed = ["--config-dir", "conf", "experiment=my_stripes", *small]
    status, out, err = command(train.main, *typed)
    assert (status, err) == (0, "")
    assert "  network    Network, " in out
    (run,) = find_runs(str(project / "runs"))
    assert {"val/confident_mistakes", "gap/confident_mistakes", "verdict"} <= run.results().keys()
    status, out, err = command(evaluate.main, f"run={run.path}", "trust=my_stripes", "data.root=null")
    assert status == 0, err
    run.results_file.unlink()
    status, out, err = command(train.main, "trust=my_stripes", f"resume={run.path}")
    assert status == 0, err
    assert "after epoch 1 of 1" in out


def test_nothing_is_overwritten(project, command):
    before = {file: file.read_bytes() for file in project.rglob("*") if file.is_file()}
    (project / "my_stripes" / "network.py").write_text("mine")
    status, _, err = command(new.main, str(project))
    assert status == 2
    assert "is not empty, and nothing is overwritten" in err
    assert (project / "my_stripes" / "network.py").read_text() == "mine"
    assert {file for file in project.rglob("*") if file.is_file()} == before.keys()


def test_the_directory_may_exist_without_files(command, tmp_path, monkeypatch):
    # Python takes a folder in its path for a namespace package.
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "empty_stripes").mkdir()
    status, _, err = command(new.main, str(tmp_path / "empty_stripes"))
    assert (status, err) == (0, "")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("1st", "1st is no name of a package"),
        ("my project", "my project is no name of a package"),
        ("class", "class is no name of a package"),
        ("json", "There is a package json already"),
        ("torch", "There is a package torch already"),
    ],
)
def test_names_that_cannot_be_imported_are_refused(command, tmp_path, name, message):
    status, _, err = command(new.main, str(tmp_path / name))
    assert (status, err.count("\n")) == (2, 1)
    assert message in err
    assert not (tmp_path / name).exists()
