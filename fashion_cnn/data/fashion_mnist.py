"""Fashion-MNIST: 60,000 training and 10,000 test images of ten kinds of clothing, 28 x 28 grey.

Xiao, Rasul and Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning
Algorithms", 2017 (arXiv 1708.07747). The four files are fetched where they are missing, and checked by their SHA-256.
"""

import gzip
import hashlib
import os
import shutil
import socket
import sys
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from fashion_cnn.data.image_datamodule import ImageDataModule
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


class FashionMNISTDataModule(ImageDataModule):
    """`torchvision.datasets.FashionMNIST`, fetched where it is missing and held in memory.

    root: folder of the data, laid out as torchvision lays it out. The further arguments are
    those of `ImageDataModule`. Raises UserError where the files are missing, truncated or altered.
    """

    class_names = (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    )
    image_shape = (1, 28, 28)
    train_size = 60_000
    about = (
        "Fashion-MNIST (Xiao, Rasul and Vollgraf, 2017, arXiv 1708.07747): 60,000 training and 10,000 test images of "
        "ten kinds of clothing from Zalando's shop, 28 x 28 pixels, grey, the item light on black, centred, upright."
    )
    limits = (
        "28 x 28 grey pixels hold no colour, no fabric, no print and no brand.",
        "A photograph with a person, a background or several items is another kind of image than it was trained on.",
        "Some labels are open to question, above all between Shirt, T-shirt/top, Coat and Pullover: people disagree "
        "there too, and most of its mistakes lie there.",
    )
    cut_out = True

    def __init__(
        self,
        *,
        root: str | Path = "data",
        mean: Sequence[float] = (0.2860,),
        std: Sequence[float] = (0.3530,),
        **settings: Any,
    ) -> None:
        super().__init__(mean=mean, std=std, **settings)
        self.root = Path(root).expanduser()

    def prepare_data(self) -> None:
        ensure(self.root)

    def load(self, *, train: bool) -> tuple[Tensor, Tensor]:
        from torchvision.datasets import FashionMNIST

        dataset = FashionMNIST(self.root, train=train)
        return dataset.data.unsqueeze(1), dataset.targets
