"""scripts/train and scripts/install on a simulated machine: set-up, downloads and error messages."""

import os
import pty
import re
import shutil
import subprocess
import sys
from contextlib import suppress

import pytest
from conftest import REPOSITORY

# A fake interpreter that logs its calls. It cannot download Fashion-MNIST.
PYTHON = """#!/bin/sh
echo "$*" >>"$(dirname "$0")/calls"
case "$*" in
  *find_spec*torch*) [ -e "$(dirname "$0")/torch" ] ;;
  "-m pip install"*) echo "Obtaining fashion_cnn"
    echo "  Downloading https://index.example/whl/torch-2.9-cp311-cp311-manylinux_2_28_x86_64.whl (190.1 MB)"
    [ ! -e "$(dirname "$0")/pip_fails" ] ;;
  "-m fashion_cnn.data"*) echo "error: torchvision: no network" >&2; exit 1 ;;
esac
"""
# A disk with 5 GB free.
DF = "#!/bin/sh\necho 'Filesystem blocks Used Available'\necho 'disk 9 4 5242880 50% /'\n"


@pytest.fixture
def machine(tmp_path):
    """Return a function that runs a script, scripts/train by default, and returns the process and the calls of python.

    Its attribute `write` adds a program to the machine.
    """
    for name in ("scripts/setup.sh", "scripts/train", "scripts/install", "scripts/constraints.txt", "pyproject.toml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(REPOSITORY / name, tmp_path / name)
    shutil.copytree(REPOSITORY / "conf" / "experiment", tmp_path / "conf" / "experiment")

    def write(name, text):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)

    def start(*words, script="train", stderr=subprocess.PIPE, **variables):
        calls = tmp_path / ".venv" / "bin" / "calls"
        calls.write_text("")
        environment = {**os.environ, "PATH": f"{tmp_path / 'programs'}:{os.environ['PATH']}", "PYTHON": sys.executable}
        environment.pop("TORCH_INDEX_URL", None)
        environment |= variables
        command = [str(tmp_path / "scripts" / script), *words]
        ended = subprocess.run(command, stdout=subprocess.PIPE, stderr=stderr, text=True, check=False, env=environment)
        return ended, calls.read_text().splitlines()

    write(".venv/bin/python", PYTHON)
    write("programs/df", DF)
    write("programs/apt-get", "#!/bin/sh\necho 'E: no apt here' >&2\nexit 100\n")
    write("programs/dpkg", "#!/bin/sh\necho \"dpkg-deb: error: failed to read archive '$2'\" >&2\nexit 2\n")
    start.write = write
    return start


def test_disk_space_is_checked_only_without_an_installed_torch(machine):
    refused, calls = machine("data=kmnist")
    assert refused.returncode == 1
    assert "5120 MB are free on this disk, the packages need about 7 GB." in refused.stderr
    machine.write(".venv/bin/torch", "")
    ended, calls = machine("data=kmnist")
    assert ended.returncode == 0
    assert any(call.startswith("-m pip install") for call in calls)
    assert calls[-1] == "-m fashion_cnn.train data=kmnist"
    assert not any("pip" in words for words in machine("data=kmnist")[1]), "what is done is not done again"


@pytest.mark.parametrize(
    ("words", "fetched"),
    [
        (["model=small"], True),
        (["init_from=latest"], True),
        (["data.root=mistyped"], False),
        (["data.root=new", "data.download=true"], True),
        (["data=image_folder", "data.root=photos"], False),
        (["experiment=logos"], False),
        (["resume=latest"], False),
        (["--help"], False),
        (["--cfg", "job", "data=fashion_mnist"], False),
        (["--cfg=job"], False),
    ],
)
def test_fashion_mnist_is_downloaded_only_for_trainings_on_it(machine, words, fetched):
    machine.write(".venv/bin/torch", "")
    ended, calls = machine(*words)
    assert any(call.startswith("-m fashion_cnn.data") for call in calls) == fetched
    assert (f"-m fashion_cnn.train {' '.join(words)}" in calls) != fetched
    assert ended.returncode == int(fetched)


def test_a_failed_download_of_the_debian_package_is_explained(machine):
    machine.write(".venv/bin/torch", "")
    assert "no network (E: no apt here)" in machine()[0].stderr
    # Offline, an update fails to fetch and yet ends well.
    machine.write(
        "programs/apt-get",
        '#!/bin/sh\ncase "$*" in\n'
        "  *update) echo 'W: Failed to fetch http://mirror.example/x  Could not resolve mirror.example' ;;\n"
        "  *) echo 'E: Unable to locate package dataset-fashion-mnist' >&2; exit 100 ;;\nesac\n",
    )
    error = machine()[0].stderr
    assert "no network (W: Failed to fetch http://mirror.example/x  Could not resolve mirror.example)" in error
    machine.write("programs/apt-get", "#!/bin/sh\ntouch dataset-fashion-mnist_1_all.deb\n")
    assert "(dpkg-deb: error: failed to read archive 'dataset-fashion-mnist_1_all.deb')" in machine()[0].stderr


def test_the_output_of_pip_is_printed_only_after_a_failure(machine):
    machine.write(".venv/bin/torch", "")
    ended, _ = machine("data=kmnist", TORCH_INDEX_URL="https://index.example/cpu")
    assert ended.returncode == 0
    assert ended.stderr.splitlines() == [
        "Setting up .venv, which takes some minutes the first time (log: .venv/install.log)",
        "Installing torch and torchvision from https://index.example/cpu into .venv …",
        "Installing fashion_cnn and its dependencies into .venv …",
    ]
    machine.write(".venv/bin/pip_fails", "")
    ended, _ = machine("search", script="install")
    assert ended.returncode == 1
    assert "Obtaining fashion_cnn\n" in ended.stderr
    assert "(190.1 MB)\nerror: pip failed" in ended.stderr


def test_a_terminal_shows_what_pip_does(machine):
    machine.write(".venv/bin/torch", "")
    reader, terminal = pty.openpty()
    ended, _ = machine("search", script="install", stderr=terminal)
    os.set_blocking(reader, False)
    shown = ""
    with suppress(BlockingIOError):
        while True:
            shown += os.read(reader, 10_000).decode()
    assert ended.returncode == 0
    assert "Installing fashion_cnn and its dependencies for: search into .venv" in shown
    assert "0:00  Downloading torch-2.9 (190.1 MB)" in shown
    assert "Obtaining" not in shown
    assert shown.endswith("\r\x1b[K"), "the line is removed at the end"


@pytest.mark.parametrize("has_terminal", [True, False])
def test_the_installed_packages_are_counted_instead_of_listed(machine, tmp_path, has_terminal):
    (tmp_path / ".venv" / "file").write_bytes(os.urandom(3_000_000))
    (tmp_path / "pip").write_text("Installing collected packages: nvidia-cusparselt-cu13, mpmath, cuda-toolkit\n")
    reader, terminal = pty.openpty()
    ended = subprocess.run(
        ["bash", "-c", ". scripts/setup.sh; progress_seconds=0; { cat pip; sleep 1.5; } | show_progress"],
        cwd=tmp_path,
        stderr=terminal if has_terminal else subprocess.PIPE,
        check=True,
    )
    shown = os.read(reader, 10_000).decode() if has_terminal else ended.stderr.decode()
    end = "\r" if has_terminal else r", \.venv has [34] MB so far\n"
    assert re.search(r"0:0\d  Installing 3 packages" + end, shown)
    assert "mpmath" not in shown


def test_an_unreachable_package_index_of_torch_is_named(machine):
    machine.write(".venv/bin/torch", "")
    machine.write(".venv/bin/pip_fails", "")
    ended, _ = machine(TORCH_INDEX_URL="https://index.example/cpu")
    assert ended.returncode == 1
    assert "torchvision cannot be installed from TORCH_INDEX_URL=https://index.example/cpu (see" in ended.stderr
    assert "Obtaining fashion_cnn" not in ended.stderr, "the output of pip is in the file that the message names"


def test_extras_are_installed_into_the_environment_beside_earlier_ones(machine):
    def installed(calls):
        return [call.rpartition(" ")[2] for call in calls if call.startswith("-m pip install")]

    machine.write(".venv/bin/torch", "")
    assert installed(machine("search", script="install")[1]) == [".[search]"]
    assert installed(machine("explain", "export", script="install")[1]) == [".[search,explain,export]"]
    ended, calls = machine("search", script="install")
    assert (ended.returncode, installed(calls)) == (0, [])
    assert "source .venv/bin/activate" in ended.stdout
    assert installed(machine("data=kmnist")[1]) == [], "a training needs none of them"
    ended, calls = machine("serch", script="install")
    assert (ended.returncode, installed(calls)) == (1, [])
    assert "There is no extra 'serch'. Choose from: sweeps cluster" in ended.stderr
