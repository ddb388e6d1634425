"""Any data set of torchvision's that holds its images in memory, named in the config."""

import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import get_class
from torch import Tensor

from fashion_cnn.data.fashion_mnist import DOWNLOAD_TIMEOUT
from fashion_cnn.data.image_datamodule import ImageDataModule
from fashion_cnn.data.statistics import channel_statistics, fingerprint
from fashion_cnn.errors import UserError

_SETS = {True: "train", False: "test"}


class TorchvisionDataModule(ImageDataModule):
    """A class of torchvision's with `data` and `targets` (or `labels`), fetched where it is missing.

    dataset: the class, such as `torchvision.datasets.KMNIST`. root: the folder of the data, as torchvision lays it out.
    train, test: its arguments for either set, beside root and download. class_names: where the class has no `classes`.
    transposed: whether rows and columns are swapped, as in EMNIST's files.
    detected: the property `detected` of an earlier module of the same data set; then the files need not be there.
    mean, std: of the training set where they are None. Further arguments: those of `ImageDataModule`.

    Raises UserError for a class that is none of these, and where the files cannot be had.
    """

    def __init__(
        self,
        *,
        dataset: str | None,
        root: str | Path = "data",
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
        self._arguments = {True: dict(train or {"train": True}), False: dict(test or {"train": False})}
        self._class_names = class_names
        self.about = f"{dataset.rpartition('.')[2]}, as torchvision has it."
        self._detected = dict(detected) if detected else self._look()
        self.class_names = list(self._detected["class_names"])
        channels, height, width = self._detected["image_shape"]
        self.image_shape = (channels, height, width)
        self.train_size = self._detected["train_size"]
        super().__init__(mean=mean or self._detected["mean"], std=std or self._detected["std"], **settings)

    @property
    def detected(self) -> dict[str, Any]:
        return self._detected

    def load(self, *, train: bool) -> tuple[Tensor, Tensor]:
        images, targets = self._read(train)
        known = self._detected.get("sha256", {}).get(_SETS[train])
        if known and known != fingerprint(images, targets):
            raise UserError(
                f"{self._dataset} in {self.root} holds other images than before: name the folder of before with "
                "data.root=DIR, or train anew."
            )
        return images, targets

    def _read(self, train: bool) -> tuple[Tensor, Tensor]:
        dataset = self._made(train)
        images = torch.as_tensor(np.asarray(dataset.data))
        if images.dtype != torch.uint8 or images.ndim not in (3, 4):
            raise UserError(f"data.dataset={self._dataset} holds no images of eight bits: {tuple(images.shape)}.")
        if images.ndim == 3:
            images = images[:, None]
        elif images.shape[-1] in (1, 3):
            images = images.permute(0, 3, 1, 2)
        if self._transposed:
            images = images.transpose(2, 3)
        targets = dataset.targets if hasattr(dataset, "targets") else dataset.labels
        return images.contiguous(), torch.as_tensor(np.asarray(targets)).long()

    def _look(self) -> dict[str, Any]:
        names = self._class_names or getattr(self._made(True), "classes", None)
        images, targets = self._read(True)
        if names is None or len(names) <= int(targets.max()):
            raise UserError(
                f"data.dataset={self._dataset} does not name its {int(targets.max()) + 1} classes: say "
                "data.class_names=[…]."
            )
        mean, std = channel_statistics(images, torch.arange(len(images)))
        return {
            "class_names": list(names),
            "image_shape": list(images.shape[1:]),
            "train_size": len(images),
            "mean": mean,
            "std": std,
            "sha256": {_SETS[True]: fingerprint(images, targets), _SETS[False]: fingerprint(*self._read(False))},
        }

    def _made(self, train: bool) -> Any:
        """The data set itself, downloaded where it is missing."""
        try:
            made = get_class(self._dataset)
        except Exception as error:
            raise UserError(
                f"data.dataset={self._dataset} is no class: name one such as torchvision.datasets.KMNIST."
            ) from error
        arguments = self._arguments[train]
        try:
            return self._checked(made(self.root, download=False, **arguments))
        except TypeError as error:
            raise UserError(f"data.dataset={self._dataset} does not take {arguments}: {error}") from error
        except (RuntimeError, OSError):
            pass
        print(f"Downloading {self._dataset} into {self.root} …", file=sys.stderr, flush=True)
        before = socket.getdefaulttimeout()
        # Torchvision's own waits for ever.
        socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)
        try:
            return self._checked(made(self.root, download=True, **arguments))
        except (RuntimeError, OSError) as error:
            raise UserError(
                f"{self._dataset} is not in {self.root} and cannot be downloaded ({error}): put its files there, as "
                "torchvision lays them out, or name the folder that holds them with data.root=DIR."
            ) from error
        finally:
            socket.setdefaulttimeout(before)

    def _checked(self, dataset: Any) -> Any:
        if not hasattr(dataset, "data") or not (hasattr(dataset, "targets") or hasattr(dataset, "labels")):
            raise UserError(
                f"data.dataset={self._dataset} does not hold its images in memory (data and targets): use "
                "data=image_folder for data sets of files."
            )
        return dataset
