"""Getting the four Fashion-MNIST files, and knowing that they are the real ones."""

import gzip
import hashlib
import os
import shutil
import socket
import sys
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fashion_cnn.errors import UserError
from fashion_cnn.pictures.files import SUFFIXES

# SHA-256 of the unpacked files: the same content travels under several compressions.
SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
PACKAGE = "dataset-fashion-mnist"
PACKAGE_FOLDER = Path("usr/share/datasets/fashion-mnist")
DOWNLOAD_TIMEOUT = 20.0  # seconds without an answer


def raw_folder(root: Path) -> Path:
    """Where torchvision's FashionMNIST looks below `root`."""
    return root / "FashionMNIST" / "raw"


def ensure(root: Path, package_root: Path = Path("/")) -> None:
    """Have all four files, verified, under `root`, fetching those that are missing.

    They come from the Debian package installed below `package_root`, else by torchvision's download.
    Raises UserError naming the file where one is altered or cannot be had.
    """
    raw = raw_folder(root)
    for name in _missing(raw):
        _unpack(package_root / PACKAGE_FOLDER / f"{name}.gz", raw / name)
    reason = ""
    if missing := _missing(raw):
        reason = _download(root, missing)
    for name, expected in SHA256.items():
        _verify(raw / name, expected, reason)


def _missing(raw: Path) -> list[str]:
    return [name for name in SHA256 if not (raw / name).exists()]


def _unpack(archive: Path, target: Path) -> None:
    # A damaged archive is as good as none: the next way is tried.
    if archive.is_file():
        damaged = suppress(gzip.BadGzipFile, EOFError, zlib.error)
        with damaged, gzip.open(archive) as packed, _written_whole(target) as partial, partial.open("wb") as out:
            shutil.copyfileobj(packed, out)


def _download(root: Path, names: Iterable[str]) -> str:
    """Let torchvision download `names` into `root`. Returns why that failed, or nothing."""
    from torchvision.datasets import FashionMNIST

    print(
        f"Downloading Fashion-MNIST (30 MB) into {root}, giving up after {DOWNLOAD_TIMEOUT:.0f} s without an answer …",
        file=sys.stderr,
        flush=True,
    )
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)
    try:
        # Where nothing comes, a folder that was mistyped is not to be there afterwards.
        beside = next(folder for folder in (root, *root.absolute().parents) if folder.is_dir())
        with tempfile.TemporaryDirectory(dir=beside, prefix=".download-") as folder:
            FashionMNIST(folder, download=True)
            for name in names:
                with _written_whole(raw_folder(root) / name) as partial:
                    shutil.copyfile(raw_folder(Path(folder)) / name, partial)
    except (OSError, RuntimeError) as error:
        return f" (the download failed: {error})"
    finally:
        socket.setdefaulttimeout(before)
    return ""


@contextmanager
def _written_whole(target: Path) -> Iterator[Path]:
    """A temporary path beside `target` that takes its name once it is written without an error."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}-")
    except OSError as error:
        raise UserError(f"{target.parent} cannot be written ({error.strerror}): choose another data.root.") from error
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        partial.chmod(0o644)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def _verify(path: Path, expected: str, reason: str) -> None:
    ways = (
        f"Ways to get it: 'sudo apt-get install {PACKAGE}' (Debian, Ubuntu); scripts/train, which unpacks that "
        "package without root; a network that reaches torchvision's download; or data.root=DIR, "
        "a folder that holds FashionMNIST/raw/."
    )
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        if any(file.suffix.lower() in SUFFIXES for file in path.parents[2].glob("*/*")):
            ways = f"The pictures in {path.parents[2]} are learned with data=image_folder. {ways}"
        raise UserError(f"Fashion-MNIST is not complete: {path} is missing{reason}. {ways}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}). {ways}") from error
    if found != expected:
        raise UserError(
            f"{path} is truncated or altered: its SHA-256 is {found} ({path.stat().st_size:,} bytes), "
            f"expected {expected}. Delete it and start again. {ways}"
        )
