"""The built wheel: its content, its version, and the program `fashion-cnn` without a checkout."""

import ast
import email
import os
import re
import subprocess
import sys
import zipfile
from configparser import ConfigParser

import pytest
import yaml
from conftest import REPOSITORY, TINY_DATA

import fashion_cnn
from fashion_cnn import __main__ as commands
from fashion_cnn.errors import PROGRAM_VARIABLE, UserError, as_typed

# The script that pip writes for an entry point.
SCRIPT = "import sys\nfrom fashion_cnn.__main__ import console\nsys.exit(console())\n"


@pytest.fixture
def console(command, monkeypatch):
    """Return a function that runs `fashion-cnn` with some arguments."""
    monkeypatch.setenv(PROGRAM_VARIABLE, "")

    def start():
        sys.argv[0] = "/usr/bin/fashion-cnn"
        commands.console()

    return lambda *arguments: command(start, *arguments)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    typed = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(typed, cwd=REPOSITORY, check=True, capture_output=True)
    (file,) = folder.iterdir()
    with zipfile.ZipFile(file) as archive:
        yield archive


def metadata(wheel, name):
    (path,) = (path for path in wheel.namelist() if path.endswith(f".dist-info/{name}"))
    return wheel.read(path).decode()


@pytest.mark.slow
def test_the_wheel_contains_the_package_the_configs_the_trained_networks_the_scores_and_nothing_else(wheel):
    pattern = re.compile(r".*\.(py|json|html|css|js|svg)|.*/py\.typed")
    files = [path for path in (REPOSITORY / "fashion_cnn").rglob("*") if pattern.fullmatch(str(path))]
    expected = {str(path.relative_to(REPOSITORY)) for path in files}
    configs = (path for path in (REPOSITORY / "conf").rglob("*") if path.is_file())
    expected |= {f"fashion_cnn/{path.relative_to(REPOSITORY)}" for path in configs}
    for name in ("weights", "analysis/memorisation_scores"):
        data = (path for path in (REPOSITORY / "fashion_cnn" / name).rglob("*") if path.is_file())
        expected |= {str(path.relative_to(REPOSITORY)) for path in data}
    assert {path for path in wheel.namelist() if ".dist-info/" not in path} == expected


@pytest.mark.slow
def test_the_wheel_has_the_version_of_the_package_and_a_program(wheel):
    fields = email.message_from_string(metadata(wheel, "METADATA"))
    assert fields["Version"] == fashion_cnn.__version__
    assert fields.get_all("Requires-Python") == [">=3.11"]
    scripts = ConfigParser()
    scripts.read_string(metadata(wheel, "entry_points.txt"))
    assert dict(scripts["console_scripts"]) == {"fashion-cnn": "fashion_cnn.__main__:console"}


def test_the_citation_has_the_version_of_the_package():
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert citation["version"] == fashion_cnn.__version__


@pytest.mark.processes
def test_the_program_of_the_wheel_trains_in_any_folder(wheel, tmp_path):
    wheel.extractall(tmp_path / "site")
    script = tmp_path / "bin" / "fashion-cnn"
    script.parent.mkdir()
    script.write_text(SCRIPT)
    work = tmp_path / "work"
    work.mkdir()
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), str(REPOSITORY / "tests")])}

    def run(*words):
        ended = subprocess.run(
            [sys.executable, script, *words], cwd=work, env=variables, capture_output=True, text=True, check=False
        )
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    assert run("--version") == f"{fashion_cnn.__version__}\n"
    out = run("train", *TINY_DATA, "trainer.max_epochs=1")
    assert out.startswith("fashion-cnn train data._target_=tiny_images.TinyDataModule ")
    assert "  curves      fashion-cnn dashboard --logdir runs\n  all runs    fashion-cnn runs\n" in out
    assert "python -m" not in out
    assert "1 run" in run("runs") or "tiny" in run("runs")


def test_the_program_lists_its_commands_with_a_blank(console):
    status, out, err = console()
    assert (status, err) == (0, "")
    assert out.startswith("fashion-cnn COMMAND, with one of these commands:\n")
    assert "\n  train " in out
    assert "\n  dashboard " in out
    assert console("--help") == (status, out, err)


def test_a_mistyped_command_is_corrected(console):
    status, out, err = console("trian", "model=small")
    assert (status, out) == (2, "")
    assert err == "error: 'trian' is no command. Did you mean fashion-cnn train? fashion-cnn --help lists them.\n"


@pytest.mark.parametrize("name", ["train", "predict"])
def test_the_help_of_the_program_has_its_form(console, monkeypatch, name):
    # Another test may have imported it, of which runpy warns.
    monkeypatch.delitem(sys.modules, f"fashion_cnn.{name}", raising=False)
    status, out, err = console(name, "--help")
    assert (status, err) == (0, "")
    assert f"\nUsage: fashion-cnn {name} " in out
    assert "python -m" not in out


def test_a_command_runs_as_the_main_module(console, monkeypatch, tmp_path):
    """Then the processes of a distributed training, which Lightning starts, find the command."""
    started = []
    monkeypatch.setattr(commands.runpy, "run_module", lambda *given, **settings: started.append((given, settings)))
    for name in ("train", "dashboard"):
        assert console(name, "seed=1") == (0, "", "")
        assert sys.argv[1:] == ["seed=1"]
    settings = {"run_name": "__main__", "alter_sys": True}
    assert started == [(("fashion_cnn.train",), settings), (("fashion_cnn.analysis.dashboard",), settings)]


def test_messages_have_the_form_that_the_user_types(monkeypatch):
    text = "python -m fashion_cnn.train resume=runs/a, python -m fashion_cnn.analysis.dashboard, python -m fashion_cnn"
    monkeypatch.delenv(PROGRAM_VARIABLE, raising=False)
    assert as_typed(text) == str(UserError(text)) == text
    monkeypatch.setenv(PROGRAM_VARIABLE, "fashion-cnn")
    typed = "fashion-cnn train resume=runs/a, fashion-cnn dashboard, fashion-cnn"
    assert as_typed(text) == str(UserError(text)) == typed


def test_every_public_function_has_annotations():
    """The package has the marker py.typed, with which type checkers read its annotations."""
    for name in ("__init__.py", "inference/predictor.py", "data/image_datamodule.py", "metrics/gap.py"):
        for node in ast.walk(ast.parse((REPOSITORY / "fashion_cnn" / name).read_text())):
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                assert node.returns is not None, f"{name}: {node.name}"
