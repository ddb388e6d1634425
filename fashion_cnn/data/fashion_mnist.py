"""Fashion-MNIST: 60,000 training and 10,000 test images of ten kinds of clothing, 28 x 28 grey.

Xiao, Rasul and Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning
Algorithms", 2017 (arXiv 1708.07747). Missing files are fetched; all files are checked by their SHA-256.
"""

import gzip
import hashlib
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
from fashion_cnn.errors import UserError, missing_data_root
from fashion_cnn.pictures.files import SUFFIXES
from fashion_cnn.runs.files import create_folder, open_atomically
from fashion_cnn.runs.overrides import DEFAULT_ROOT

# SHA-256 of the uncompressed files, since their sources compress them differently.
SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
PACKAGE = "dataset-fashion-mnist"
PACKAGE_FOLDER = Path("usr/share/datasets/fashion-mnist")
_TIMEOUT_SECONDS = 20.0
_REMEDIES = (
    f"Ways to get it: 'sudo apt-get install {PACKAGE}' (Debian, Ubuntu); scripts/train, which unpacks that package "
    "without root; a network connection for torchvision's download; or data.root=DIR, a folder that holds "
    "FashionMNIST/raw/."
)


def raw_folder(root: Path) -> Path:
    """Return the folder of the files below `root`, as torchvision's FashionMNIST expects it."""
    return root / "FashionMNIST" / "raw"


def ensure_files(root: Path, package_root: Path = Path("/")) -> None:
    """Fetch the missing files and verify all four.

    Args:
        root: the folder of the data.
        package_root: the root of an installed or unpacked Debian package, which is tried before the download.

    Raises:
        UserError: if a file is altered, cannot be fetched or cannot be written.
    """
    raw = raw_folder(root)
    for name in _missing(raw):
        _unpack(package_root / PACKAGE_FOLDER / f"{name}.gz", raw / name)
    missing = _missing(raw)
    reason = _download(root, missing) if missing else ""
    for name, expected in SHA256.items():
        _verify(raw / name, expected, reason)


def check_download(root: Path, name: str, download: bool | None) -> None:
    """Check that missing files of a data set may be downloaded into `root`, which may be mistyped.

    Args:
        root: the folder of the data.
        name: name of the data set.
        download: whether they may be; None allows it in the default folder and in folders that exist.

    Raises:
        UserError: if they may not be downloaded.
    """
    if download is None and root != DEFAULT_ROOT and not root.exists():
        raise missing_data_root(root, name)
    if download is False:
        raise UserError(
            f"{name} is not complete in {root}: give its folder with data.root=DIR, or add data.download=true."
        )


def _missing(raw: Path) -> list[str]:
    return [name for name in SHA256 if not (raw / name).exists()]


def _unpack(archive: Path, target: Path) -> None:
    if not archive.is_file():
        return
    create_folder(target.parent, "data.root")
    # A damaged archive is skipped, and the download is tried next.
    with (
        suppress(gzip.BadGzipFile, EOFError, zlib.error),
        gzip.open(archive) as source,
        open_atomically(target) as file,
    ):
        shutil.copyfileobj(source, file)


def _download(root: Path, names: Iterable[str]) -> str:
    """Download `names` with torchvision into `root`. Return the reason of a failure, or an empty text."""
    from torchvision.datasets import FashionMNIST

    print(
        f"Downloading Fashion-MNIST (30 MB) into {root}, giving up after {_TIMEOUT_SECONDS:.0f} s without an answer …",
        file=sys.stderr,
        flush=True,
    )
    # A failed download must not leave the folder of a mistyped path.
    existing = next(folder for folder in (root, *root.absolute().parents) if folder.is_dir())
    try:
        with download_timeout(), tempfile.TemporaryDirectory(dir=existing, prefix=".download-") as temporary:
            FashionMNIST(temporary, download=True)
            create_folder(raw_folder(root), "data.root")
            for name in names:
                source = raw_folder(Path(temporary)) / name
                with source.open("rb") as content, open_atomically(raw_folder(root) / name) as file:
                    shutil.copyfileobj(content, file)
    except (OSError, RuntimeError) as error:
        return f" (the download failed: {error})"
    return ""


@contextmanager
def download_timeout() -> Iterator[None]:
    """Give up torchvision's downloads, which would wait for ever, after a time without an answer."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _verify(path: Path, expected: str, reason: str) -> None:
    if path.exists() and not path.is_file():  # Reading a named pipe or a device could never end.
        raise UserError(f"{path} is not a regular file: delete it and start again. {_REMEDIES}")
    try:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        root = path.parents[2]
        hint = ""
        if any(file.suffix.lower() in SUFFIXES for file in root.glob("*/*")):
            hint = f"To train on the pictures in {root}, use data=image_folder. "
        raise UserError(f"Fashion-MNIST is not complete: {path} is missing{reason}. {hint}{_REMEDIES}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}). {_REMEDIES}") from error
    if sha256 != expected:
        raise UserError(
            f"{path} is truncated or altered: its SHA-256 is {sha256} ({path.stat().st_size:,} bytes), "
            f"expected {expected}. Delete it and start again. {_REMEDIES}"
        )


class FashionMNISTDataModule(ImageDataModule):
    """Fashion-MNIST, fetched if it is missing and held in memory.

    Args:
        root: folder of the data in torchvision's layout.
        mean: see `ImageDataModule`; by default the mean of the 60,000 training images.
        std: see `ImageDataModule`; by default the standard deviation of the same images.
        settings: further arguments of `ImageDataModule`; see `check_download` for `download`.
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
    hub_dataset = "zalando-datasets/fashion_mnist"
    intended_use = "Research and teaching, and visual product search over images of the same kind."
    limits = (
        "28 x 28 grey pixels show no colour, no fabric, no print and no brand.",
        "Photographs with a person, a background or several items differ from the images that it was trained on.",
        "Some labels are ambiguous, above all between Shirt, T-shirt/top, Coat and Pullover: people disagree there "
        "too, and most of its errors lie there.",
    )
    cut_out = True
    memorisation_scores = "fashion_mnist.npz"

    def __init__(
        self,
        *,
        root: str | Path = DEFAULT_ROOT,
        mean: Sequence[float] = (0.2860,),
        std: Sequence[float] = (0.3530,),
        **settings: Any,
    ) -> None:
        super().__init__(mean=mean, std=std, **settings)
        self.root = Path(root).expanduser()

    def prepare_data(self) -> None:
        """Fetch and verify the files. Raises UserError if that fails."""
        if _missing(raw_folder(self.root)):
            check_download(self.root, "Fashion-MNIST", self.download)
        ensure_files(self.root)

    def load(self, *, train: bool) -> tuple[Tensor, Tensor]:
        """Read images `(N, 1, 28, 28)` uint8 and targets `(N,)` of the training set or the test set."""
        from torchvision.datasets import FashionMNIST

        dataset = FashionMNIST(self.root, train=train)
        return dataset.data.unsqueeze(1), dataset.targets
