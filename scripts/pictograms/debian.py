"""Download of Debian packages without root."""

import shutil
import subprocess
import tempfile
from pathlib import Path

from fashion_cnn.errors import UserError


def fetch(package: str, into: Path, alternative: str) -> Path:
    """Download and unpack a package with apt-get, unless its folder exists.

    Args:
        package: name of the package.
        into: folder of the downloads.
        alternative: advice for the error message, beginning with a verb.

    Returns:
        The folder with the package's files.

    Raises:
        UserError: apt-get is missing or fails.
    """
    folder = into / package
    if folder.exists():
        return folder
    missing = [program for program in ("apt-get", "dpkg-deb") if shutil.which(program) is None]
    if missing:
        raise UserError(f"{package} is a Debian package, and {missing[0]} is not installed: {alternative}")
    into.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=into, prefix=".") as name:
        unfinished = Path(name)
        try:
            _download(package, unfinished)
            (archive,) = unfinished.glob("*.deb")
            _call(unfinished, "dpkg-deb", "-x", archive.name, "unpacked")
        except (subprocess.CalledProcessError, ValueError) as error:
            output = (getattr(error, "stderr", "") or str(error)).strip().splitlines()
            raise UserError(
                f"apt-get cannot download {package} ({output[-1]}): check the network, or {alternative}"
            ) from error
        (unfinished / "unpacked").replace(folder)
    return folder


def _download(package: str, into: Path) -> None:
    try:
        _call(into, "apt-get", "download", package)
    except subprocess.CalledProcessError:
        # The package lists may be missing, and updating those of the system needs root: use separate lists.
        for name in ("lists/partial", "cache/archives/partial"):
            (into / name).mkdir(parents=True)
        own = ["-o", f"Dir::State::Lists={into.resolve()}/lists", "-o", f"Dir::Cache={into.resolve()}/cache"]
        _call(into, "apt-get", *own, "update")
        _call(into, "apt-get", *own, "download", package)


def _call(folder: Path, *command: str) -> None:
    subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
