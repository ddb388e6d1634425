"""Files of Debian's archive, got without root."""

import shutil
import subprocess
import tempfile
from pathlib import Path

from fashion_cnn.errors import UserError


def fetch(package: str, into: Path, instead: str) -> Path:
    """The folder below `into` with the package's files, got through apt-get unless it is there.

    instead: what to say when it cannot be had. Raises UserError then.
    """
    folder = into / package
    if folder.exists():
        return folder
    missing = [program for program in ("apt-get", "dpkg-deb") if shutil.which(program) is None]
    if missing:
        raise UserError(f"{package} is a package of Debian, and {missing[0]} is not on this machine: {instead}")
    into.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=into, prefix=".") as name:
        unfinished = Path(name)
        try:
            _download(package, unfinished)
            (archive,) = unfinished.glob("*.deb")
            _call(unfinished, "dpkg-deb", "-x", archive.name, "unpacked")
        except (subprocess.CalledProcessError, ValueError) as error:
            said = (getattr(error, "stderr", "") or str(error)).strip().splitlines()
            raise UserError(f"apt-get could not get {package} ({said[-1]}). Check the network, or {instead}") from error
        (unfinished / "unpacked").replace(folder)
    return folder


def _download(package: str, into: Path) -> None:
    try:
        _call(into, "apt-get", "download", package)
    except subprocess.CalledProcessError:
        # The lists of packages may be missing, and updating the system's needs root: keep lists of our own.
        for name in ("lists/partial", "cache/archives/partial"):
            (into / name).mkdir(parents=True)
        own = ["-o", f"Dir::State::Lists={into.resolve()}/lists", "-o", f"Dir::Cache={into.resolve()}/cache"]
        _call(into, "apt-get", *own, "update")
        _call(into, "apt-get", *own, "download", package)


def _call(folder: Path, *command: str) -> None:
    subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
