"""scripts/train and scripts/install on a simulated machine: set-up, downloads and error messages."""

import os
import pty
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from contextlib import suppress
from hashlib import sha256

import pytest
from conftest import REPOSITORY
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

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
    scripts = ("setup.sh", "train", "install", "constraints.txt", "requirements.lock")
    for name in (*(f"scripts/{script}" for script in scripts), "pyproject.toml"):
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
        "Installing setuptools into .venv …",
        "Installing the core packages into .venv …",
        "Installing fashion_cnn into .venv …",
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
    assert "Installing the packages for: search into .venv" in shown
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
        last = [call.rpartition(" ")[2] for call in calls if call.startswith("-m pip install")]
        return [word for word in last if word.startswith(".[")]

    machine.write(".venv/bin/torch", "")
    assert installed(machine("search", script="install")[1]) == [".[search]"]
    assert installed(machine("explain", "export", script="install")[1]) == [".[search,explain,export]"]
    ended, calls = machine("search", script="install")
    assert (ended.returncode, installed(calls)) == (0, [])
    assert "source .venv/bin/activate" in ended.stdout
    assert not any("pip" in call for call in machine("data=kmnist")[1]), "a training needs none of them"
    ended, calls = machine("serch", script="install")
    assert (ended.returncode, installed(calls)) == (1, [])
    assert "There is no extra 'serch'. Choose from: sweeps cluster" in ended.stderr
    ended, calls = machine("--quiet", script="install")
    assert (ended.returncode, installed(calls)) == (1, [])
    assert "There is no extra '--quiet'." in ended.stderr


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_lists_the_extras_and_installs_nothing(machine, option):
    ended, calls = machine(option, script="install")
    assert (ended.returncode, calls, ended.stderr) == (0, [], "")
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert all(re.search(rf"^  {extra} +\S", ended.stdout, re.MULTILINE) for extra in extras)
    assert re.search(r"^  PYTHON=.*\n  TORCH_INDEX_URL=", ended.stdout, re.MULTILINE)


LOCK = REPOSITORY / "scripts" / "requirements.lock"


def locked_packages(lock):
    """The requirements of a lock file by name, each with its lines of hashes."""
    packages, lines = {}, []
    for line in lock.read_text().splitlines():
        if not line.startswith(("#", " ")):
            requirement = Requirement(line.rstrip(" \\"))
            packages[canonicalize_name(requirement.name)] = requirement, (lines := [])
        elif line.startswith(" "):
            lines.append(line.strip(" \\"))
    return packages


def test_the_core_packages_are_locked_to_the_tested_versions_with_hashes():
    packages = locked_packages(LOCK)
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    needed = [*project["project"]["dependencies"], *project["build-system"]["requires"], "editables"]
    for requirement in map(Requirement, needed):
        (pin,) = packages[canonicalize_name(requirement.name)][0].specifier
        assert pin.operator == "=="
        assert requirement.specifier.contains(pin.version), requirement
    lines = (REPOSITORY / "scripts" / "constraints.txt").read_text().splitlines()
    tested = {canonicalize_name(pin.name): str(pin.specifier) for pin in map(Requirement, lines[1:])}
    for name, (requirement, hashes) in packages.items():
        assert tested.get(name, str(requirement.specifier)) == str(requirement.specifier), name
        assert hashes, name
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", line) for line in hashes), name
    assert "://" not in LOCK.read_text(), "the package index is the choice of the user"


def test_the_core_packages_are_installed_from_the_lock_with_checked_hashes(machine, tmp_path):
    machine.write(".venv/bin/torch", "")
    _, calls = machine("data=kmnist")
    locked = [call for call in calls if "--require-hashes" in call]
    assert len(locked) == 2
    assert all("--no-deps" in call and "constraints.txt" not in call for call in locked)
    installed = locked_packages(tmp_path / ".venv" / "requirements.lock")
    assert installed == locked_packages(LOCK)
    (project,) = (call for call in calls if call.endswith(" -e ."))
    assert "--no-deps" in project


@pytest.mark.parametrize("moment", ["now", "earlier"])
def test_with_an_index_of_torch_its_packages_are_left_out_of_the_lock(machine, tmp_path, moment):
    machine.write(".venv/bin/torch", "")
    if moment == "now":
        machine("data=kmnist", TORCH_INDEX_URL="https://index.example/cpu")
    else:
        machine.write(".venv/lib/python3.11/site-packages/torch-2.14.1+cpu.dist-info/METADATA", "")
        machine("search", script="install")
    left_out = locked_packages(LOCK).keys() - locked_packages(tmp_path / ".venv" / "requirements.lock").keys()
    assert {"torch", "torchvision", "triton"} < left_out
    assert all(name.startswith(("torch", "triton", "nvidia-", "cuda-")) for name in left_out)
    assert "torchmetrics" not in left_out


def test_uv_installs_where_it_is_asked_for_and_there(machine, tmp_path):
    machine.write(".venv/bin/torch", "")
    machine.write("programs/uv", f'#!/bin/sh\necho "$*" >>{tmp_path}/uv_calls\n')
    ended, calls = machine("search", script="install")
    assert ended.returncode == 0
    assert not (tmp_path / "uv_calls").exists()
    (tmp_path / ".venv" / ".installed").unlink()
    ended, calls = machine("search", script="install", USE_UV="1")
    assert (ended.returncode, [call for call in calls if "pip install" in call]) == (0, [])
    uv_calls = (tmp_path / "uv_calls").read_text().splitlines()
    assert all(call.startswith("pip install") and f"--python {tmp_path}/.venv/bin/python" in call for call in uv_calls)
    assert [call.rpartition(" ")[2] for call in uv_calls][-2:] == [".", ".[search]"]


def test_an_altered_file_is_named_as_the_reason(machine):
    machine.write(".venv/bin/torch", "")
    message = "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE."
    machine.write(".venv/bin/python", PYTHON.replace('echo "Obtaining fashion_cnn"', f'echo "{message}"; exit 1'))
    ended, _ = machine("data=kmnist")
    assert ended.returncode == 1
    assert "is not the one that scripts/requirements.lock names by its hash" in ended.stderr


@pytest.mark.slow
def test_pip_refuses_a_wheel_that_was_altered_after_it_was_locked(tmp_path):
    wheel = tmp_path / "tiny_parts-1.0-py3-none-any.whl"

    def build(code):
        info = "tiny_parts-1.0.dist-info"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr("tiny_parts.py", code)
            archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny_parts\nVersion: 1.0\n")
            archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            archive.writestr(f"{info}/RECORD", f"tiny_parts.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")

    def install(folder):
        options = ["--no-index", "--find-links", str(tmp_path), "--require-hashes", "--no-deps", "--no-cache-dir"]
        typed = [sys.executable, "-m", "pip", "install", *options, "--target", str(folder), "-r", str(lock)]
        environment = {**os.environ, "PIP_CONFIG_FILE": os.devnull}
        return subprocess.run(typed, capture_output=True, text=True, check=False, env=environment)

    build("value = 1\n")
    lock = tmp_path / "requirements.lock"
    lock.write_text(f"tiny-parts==1.0 --hash=sha256:{sha256(wheel.read_bytes()).hexdigest()}\n")
    assert install(tmp_path / "first").returncode == 0
    assert (tmp_path / "first" / "tiny_parts.py").exists()
    build("value = 2\n")
    refused = install(tmp_path / "second")
    assert refused.returncode == 1
    assert "DO NOT MATCH THE HASHES" in refused.stderr
    assert not (tmp_path / "second" / "tiny_parts.py").exists()
