"""Data sets of torchvision that hold their images in memory, named in the config."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import get_class
from torch import Tensor

from fashion_cnn.data.batches import channel_statistics, fingerprint
from fashion_cnn.data.fashion_mnist import check_download, download_timeout
from fashion_cnn.data.image_datamodule import ImageDataModule
from fashion_cnn.errors import UserError
from fashion_cnn.runs.overrides import DEFAULT_ROOT


class TorchvisionDataModule(ImageDataModule):
    """A data set class of torchvision with the attributes `data` and `targets` (or `labels`), downloaded if missing.

    Args:
        dataset: path of the class, such as `torchvision.datasets.KMNIST`.
        root: folder of the data in torchvision's layout.
        download: whether missing files are downloaded, see `check_download`.
        train: arguments of the class for the training set, besides root and download.
        test: arguments of the class for the test set.
        class_names: needed for a class without the attribute `classes`.
        transposed: whether rows and columns are swapped, as in EMNIST's files.
        mean: see `ImageDataModule`; None computes it from the training set.
        std: see `ImageDataModule`; None computes it from the training set.
        detected: the property `detected` of an earlier module of the same data set; then the files need not exist.
        settings: further arguments of `ImageDataModule`.

    Raises:
        UserError: if the class is not of this kind, or its files cannot be downloaded.
    """

    def __init__(
        self,
        *,
        dataset: str | None,
        root: str | Path = DEFAULT_ROOT,
        download: bool | None = None,
        train: Mapping[str, Any] | None = None,
        test: Mapping[str, Any] | None = None,
        class_names: Sequence[str] | None = None,
        transposed: bool = False,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        detected: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        if dataset is None:
            raise UserError("data.dataset is missing: name a class, such as data.dataset=torchvision.datasets.CIFAR10.")
        self._dataset, self.root, self._transposed = dataset, Path(root).expanduser(), transposed
        self._arguments = {"train": dict(train or {"train": True}), "test": dict(test or {"train": False})}
        self.about = f"{dataset.rpartition('.')[2]} from torchvision."
        self.download = download  # read by _detect
        self._detected = dict(detected) if detected else self._detect(class_names)
        self.class_names = list(self._detected["class_names"])
        channels, height, width = self._detected["image_shape"]
        self.image_shape = (channels, height, width)
        self.train_size = self._detected["train_size"]
        super().__init__(
            mean=mean or self._detected["mean"], std=std or self._detected["std"], download=download, **settings
        )

    @property
    def detected(self) -> dict[str, Any]:
        """Properties read from the files: class names, image shape, size, statistics and fingerprints."""
        return self._detected

    def load(self, *, train: bool) -> tuple[Tensor, Tensor]:
        """Read the training set or the test set, see `ImageDataModule.load`.

        Raises:
            UserError: if its images differ from those that `detected` describes.
        """
        split = "train" if train else "test"
        images, targets = self._tensors(self._open(split))
        expected = self._detected.get("sha256", {}).get(split)
        if expected and expected != fingerprint(images, targets):
            raise UserError(
                f"{self._dataset} in {self.root} holds other images than before: give the previous folder with "
                "data.root=DIR, or train again."
            )
        return images, targets

    def _tensors(self, dataset: Any) -> tuple[Tensor, Tensor]:
        images = torch.as_tensor(np.asarray(dataset.data))
        if images.dtype != torch.uint8 or images.ndim not in (3, 4):
            raise UserError(
                f"data.dataset={self._dataset} holds {images.dtype} values of shape {tuple(images.shape)}: images of "
                "eight bits are needed."
            )
        if images.ndim == 3:
            images = images[:, None]
        elif images.shape[-1] in (1, 3):
            images = images.permute(0, 3, 1, 2)
        if self._transposed:
            images = images.transpose(2, 3)
        targets = dataset.targets if hasattr(dataset, "targets") else dataset.labels
        return images.contiguous(), torch.as_tensor(np.asarray(targets)).long()

    def _detect(self, class_names: Sequence[str] | None) -> dict[str, Any]:
        dataset = self._open("train")
        class_names = class_names or getattr(dataset, "classes", None)
        images, targets = self._tensors(dataset)
        if class_names is None or len(class_names) <= int(targets.max()):
            raise UserError(
                f"data.dataset={self._dataset} does not name its {int(targets.max()) + 1} classes: give "
                "data.class_names=[…]."
            )
        mean, std = channel_statistics(images, torch.arange(len(images)))
        return {
            "class_names": list(class_names),
            "image_shape": list(images.shape[1:]),
            "train_size": len(images),
            "mean": mean,
            "std": std,
            "sha256": {
                "train": fingerprint(images, targets),
                "test": fingerprint(*self._tensors(self._open("test"))),
            },
        }

    def _open(self, split: str) -> Any:
        """Return torchvision's data set, downloaded if it is missing."""
        try:
            class_ = get_class(self._dataset)
        except Exception as error:
            raise UserError(
                f"data.dataset={self._dataset} is no class: name one such as torchvision.datasets.KMNIST."
            ) from error
        arguments = self._arguments[split]
        try:
            return self._check_in_memory(class_(self.root, download=False, **arguments))
        except TypeError as error:
            raise UserError(f"data.dataset={self._dataset} does not take {arguments}: {error}") from error
        except (RuntimeError, OSError):  # The files are missing.
            pass
        check_download(self.root, self._dataset, self.download)
        print(f"Downloading {self._dataset} into {self.root} …", file=sys.stderr, flush=True)
        try:
            with download_timeout():
                return self._check_in_memory(class_(self.root, download=True, **arguments))
        except (RuntimeError, OSError) as error:
            raise UserError(
                f"{self._dataset} is not in {self.root} and cannot be downloaded ({error}): put its files there in "
                "torchvision's layout, or give the folder that holds them with data.root=DIR."
            ) from error

    def _check_in_memory(self, dataset: Any) -> Any:
        """Return the data set if it holds its images in memory. Raises UserError otherwise."""
        if not hasattr(dataset, "data") or not (hasattr(dataset, "targets") or hasattr(dataset, "labels")):
            raise UserError(
                f"data.dataset={self._dataset} does not hold its images in memory (data and targets): use "
                "data=image_folder for data sets of files."
            )
        return dataset
