"""A LightningDataModule over images that fit in memory: splits, evaluation loaders, batches, augmentation."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from fashion_cnn.data.batches import (
    SINGLE_PROCESS,
    Batch,
    InMemoryDataset,
    Shard,
    array_to_tensor,
    batch_loader,
    channel_statistics,
)
from fashion_cnn.data.splits import (
    Correction,
    derive_seed,
    left_out_labels,
    read_exclusions,
    read_labels,
    renumber,
    stratified_order,
)
from fashion_cnn.errors import UserError, pluralize
from fashion_cnn.pictures import Preparation
from fashion_cnn.pictures.preparation import Invert

Augmentation = Callable[[Tensor], Tensor]
_MAX_BATCH_SIZE = 100_000


class ImageDataModule(LightningDataModule):
    """Train, validation and test splits of a data set that `load` reads as tensors or NumPy arrays.

    A subclass defines `class_names`, `image_shape`, `train_size` and `load`.

    Args:
        mean: mean of each channel, for pixels scaled to [0, 1]; None computes it from the training and validation
            images together, so that it does not depend on their split.
        std: standard deviation of each channel, for pixels scaled to [0, 1]; None computes it from the same images.
        val_size: images of the training set that are held out for validation, stratified. 0 trains on all.
        probe_size: training images that are evaluated like validation and test, all if there are fewer; None takes as
            many as for validation.
        train_fraction: fraction of the remaining images to train on, in (0, 1], stratified and nested.
        batch_size: images per training step in each process.
        eval_batch_size: images per evaluation step in each process.
        balanced: draw all classes equally often, the images of rare classes several times per epoch.
        seed: seed of the order of the training batches.
        split_seed: seed of the choice of the validation images.
        folds: number of stratified folds that the images are divided into, for cross-validation; None for none. One
            fold, `fold`, is the validation set in place of `val_size` images, and the others are trained on.
        fold: number of the fold to validate on, from 0; None for the first.
        subset_fraction: fraction of the images for training that are kept, in (0, 1], a random stratified subset; None
            keeps all. Unlike those of `train_fraction`, subsets of different seeds are independent.
        subset_seed: seed of that choice; None for 0.
        subset_pairs: make subsets of half the images complementary in pairs: the subset of seed 1 holds the images that
            are not in the subset of seed 0, that of seed 3 the images that are not in that of seed 2, and so on.
        exclude: CSV file with the positions of images that are not trained on, see `fashion_cnn.data.splits`.
        relabel: CSV file with positions of training images and their new labels.
        exclude_sha256: hash of the file `exclude` that an earlier module of the same training has read.
        relabel_sha256: hash of the file `relabel`.
        augmentation: functions of a uint8 batch `(B, C, H, W)`, applied in order in training. The names are labels;
            None instead of a function switches it off.
        left_out: names or labels of classes that no split holds; `class_names` and the targets are of the remaining
            classes. Their test images are in `left_out_split`, whose targets are the labels of the data set.
        download: whether missing files are downloaded, for data sets that can be; None leaves it to the data set.

    Attributes:
        class_names: names of the classes in the splits.
        all_class_names: names of all classes, also those that are left out, in the order of the data set's labels.
        image_shape: `(C, H, W)`.
        computed_statistics: the arguments `mean` and `std` that were None, once `setup` has computed them.
        train_size: number of images that training and validation share.
        corrections: hashes of the files `exclude` and `relabel`, by the name of their argument.
        training_targets: `(M,)` targets of all images that `read(train=True)` returns, with the new labels of those
            outside the validation set; -1 for classes that are left out.
        memorisation_scores: name of the file of memorisation scores that come with the package, see
            `fashion_cnn.analysis.memorisation.load_bundled_scores`; empty without one.
        about: description of the images for the model card.
        intended_use: sentence for the model card on what a network trained on these images is for.
        limits: sentences for the model card on what a network cannot learn from these images.
        hub_dataset: identifier of the data set on Hugging Face's hub; None if it is not there.
        background: the grey behind transparent pixels of a picture, 0 to 255.
        has_test: whether there are test images.
        cut_out: whether each image shows a single item on black, as large as the frame allows.

    Raises:
        UserError: if an argument leaves nothing to train on or to evaluate.
    """

    class_names: Sequence[str]
    image_shape: tuple[int, int, int]
    train_size: int
    about: str = ""
    intended_use: str = "Images of the same kind as the training data; nothing else was tested."
    limits: Sequence[str] = ()
    hub_dataset: str | None = None
    background = 255
    has_test = True
    cut_out = False
    memorisation_scores = ""

    def __init__(
        self,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        val_size: int = 5000,
        probe_size: int | None = None,
        train_fraction: float = 1.0,
        batch_size: int = 128,
        eval_batch_size: int = 1000,
        balanced: bool = False,
        seed: int = 0,
        split_seed: int = 0,
        folds: int | None = None,
        fold: int | None = None,
        subset_fraction: float | None = None,
        subset_seed: int | None = None,
        subset_pairs: bool | None = None,
        exclude: str | Path | None = None,
        relabel: str | Path | None = None,
        exclude_sha256: str | None = None,
        relabel_sha256: str | None = None,
        augmentation: Mapping[str, Augmentation | None] | None = None,
        left_out: Collection[str | int] | None = None,
        download: bool | None = None,
    ) -> None:
        super().__init__()
        self.download = download
        self.all_class_names = tuple(self.class_names)
        self.left_out = left_out_labels(left_out or (), self.class_names)
        if self.left_out:
            self.class_names = [name for label, name in enumerate(self.class_names) if label not in self.left_out]
        self.folds, self.fold = folds, fold or 0
        self.subset_fraction, self.subset_seed = 1 if subset_fraction is None else subset_fraction, subset_seed or 0
        self.subset_pairs = bool(subset_pairs)
        self._files = {"exclude": exclude, "relabel": relabel}
        self._hashes = {"exclude": exclude_sha256, "relabel": relabel_sha256}
        self.corrections: dict[str, str] = {}
        self._check_folds()
        # The exact size of a fold is known once the images are read.
        self.val_size = self.train_size // folds if folds else val_size
        self.probe_size = self.val_size if probe_size is None else probe_size
        self.train_fraction = train_fraction
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.balanced = balanced
        self.seed = seed
        self.split_seed = split_seed
        self.augmentation = [function for function in (augmentation or {}).values() if function is not None]
        self._augmentation_checked = False
        for name, values in (("mean", mean), ("std", std)):
            if values is not None:
                self._check_statistics(name, values)
        self.computed_statistics: dict[str, list[float]] = {}
        self._mean, self._std = mean, std
        if mean is not None and std is not None:
            self._set_normalisation(mean, std)
        self._check_sizes(self.train_size)

    @property
    def has_statistics(self) -> bool:
        """True if `mean` and `std` were given, or `setup` has computed them."""
        return hasattr(self, "pixel_mean")

    def _check_statistics(self, name: str, values: Sequence[float]) -> None:
        if len(values) != self.image_shape[0]:
            raise UserError(
                f"data.{name}={list(values)} has {pluralize(len(values), 'number')} for images of shape "
                f"{tuple(self.image_shape)}: give one for each of the {self.image_shape[0]} channels."
            )
        if not all(0 <= value <= 1 for value in values):
            raise UserError(f"data.{name}={list(values)} is not possible: it is of pixels from 0 to 1.")
        if name == "std" and (1 / torch.tensor(values)).isinf().any():
            raise UserError("data.std must be above 0 for every channel.")

    def _set_normalisation(self, mean: Sequence[float], std: Sequence[float]) -> None:
        # On the scale of the pixels, 0 to 255, so that normalising is one subtraction and one multiplication.
        self.pixel_mean = torch.tensor(mean).view(-1, 1, 1) * 255
        self.pixel_scale = 1 / (torch.tensor(std).view(-1, 1, 1) * 255)

    def load(self, *, train: bool) -> tuple[Tensor, Tensor]:
        """Read images `(N, C, H, W)` uint8 and targets `(N,)` of integers: the training set or the test set.

        A subclass may return tensors or NumPy arrays. Read them with `read`, which converts and checks them.
        """
        raise NotImplementedError

    def read(self, *, train: bool) -> tuple[Tensor, Tensor]:
        """Return images `(N, C, H, W)` uint8 and targets `(N,)` int64, as `load` reads them.

        Raises:
            UserError: if `load` returns anything else, or another number of images than `train_size`.
        """
        source = f"{type(self).__name__}.load(train={train})"
        loaded: Any = self.load(train=train)
        if not isinstance(loaded, tuple | list) or len(loaded) != 2:
            raise UserError(f"{source} returns {type(loaded).__name__}: return two arrays, images and class indices.")
        images, targets = (_as_tensor(array, source) for array in loaded)
        if images.dtype != torch.uint8:
            low, high = images.float().aminmax() if images.numel() else (0.0, 0.0)
            raise UserError(
                f"{source} returns images of {_dtype_name(images)} values from {low:.4g} to {high:.4g}: "
                "return uint8 from 0 to 255, which the data module normalises."
            )
        if images.ndim != 4 or images.shape[1:] != tuple(self.image_shape):
            raise UserError(
                f"{source} returns images of shape {tuple(images.shape)}, which do not fit image_shape="
                f"{tuple(self.image_shape)}: return the shape (N, C, H, W), with one channel too."
            )
        if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
            raise UserError(f"{source} returns labels of {_dtype_name(targets)}: return class indices, such as int64.")
        if targets.shape != images.shape[:1]:
            raise UserError(
                f"{source} returns labels of shape {tuple(targets.shape)} for {pluralize(len(images), 'image')}: "
                "return one class index for each."
            )
        targets, classes = targets.long(), len(self.all_class_names)
        if len(targets) and not (targets.min() >= 0 and targets.max() < classes):
            raise UserError(
                f"{source} returns labels from {targets.min()} to {targets.max()}: return 0 to {classes - 1}, the "
                f"positions in the {classes} class_names."
            )
        if train and (count := len(self.train_positions(targets))) != self.train_size:
            raise UserError(f"{source} returns {count:,} images: set train_size={count} (it is {self.train_size}).")
        return images, targets

    def train_positions(self, targets: Tensor) -> Tensor:
        """Return the positions `(N,)` of the images for training and validation.

        Args:
            targets: `(M,)`, all targets that `read(train=True)` returns.
        """
        return torch.arange(len(targets))

    def test_positions(self, targets: Tensor) -> Tensor:
        """Return the positions `(N,)` of the test images, as `train_positions` for `read(train=False)`."""
        return torch.arange(len(targets))

    def split_train_val(self, targets: Tensor, is_kept: Tensor) -> tuple[Tensor, Tensor]:
        """Return the positions of the training images, every prefix of them stratified, and of the validation images.

        Args:
            targets: `(M,)`, all targets that `read(train=True)` returns.
            is_kept: `(M,)` bool, false for classes that are left out.
        """
        # Leaving out classes keeps the order stratified, and the order within each other class.
        order = stratified_order(targets, self.split_seed)
        order = order[is_kept[order]]
        start = 0
        if self.folds:
            # Parts between two prefixes of a stratified order are stratified, too.
            start, end = (len(order) * number // self.folds for number in (self.fold, self.fold + 1))
            self.val_size = end - start
        self._check_sizes(len(order))
        end = start + self.val_size
        return torch.cat([order[end:], order[:start]]), order[start:end]

    def labelled_images(self, *, train: bool) -> tuple[Tensor, Tensor]:
        """Return all images `(N, C, H, W)` for training and validation, or for testing, with their targets `(N,)`.

        The order and the labels are those of the data set, including the classes that are left out.
        """
        images, targets = self.read(train=train)
        members = (self.train_positions(targets) if train else self.test_positions(targets)).sort().values
        return images[members], targets[members]

    @property
    def detected(self) -> dict[str, Any] | None:
        """Properties read from the images, stored in the config so that it describes the same data anywhere.

        None where the class itself determines them.
        """
        return None

    def preparation(self, invert: Invert = "auto") -> Preparation:
        """Return the conversion of any picture to what a network that was trained on these images expects."""
        return Preparation(self.image_shape, cut_out=self.cut_out, invert=invert, background=self.background)

    @property
    def num_classes(self) -> int:
        """Number of classes in the splits."""
        return len(self.class_names)

    def setup(self, stage: str | None = None) -> None:
        """Read the splits of `stage` into memory, once."""
        has_statistics = self.has_statistics
        if (stage in ("fit", "validate", None) and not hasattr(self, "train_split")) or not has_statistics:
            images, labels = self.read(train=True)
            targets = renumber(labels, self.left_out, self.num_classes)
            if not has_statistics:
                members = self.train_positions(labels)
                mean, std = channel_statistics(images, members[targets[members] >= 0])
                given = {name: value for name, value in (("mean", self._mean), ("std", self._std)) if value is not None}
                self.computed_statistics = {n: v for n, v in (("mean", mean), ("std", std)) if n not in given}
                self._set_normalisation(**(self.computed_statistics | given))
            train, val = self.split_train_val(labels, targets >= 0)
            order, size = self._subset(train, targets)
            train, count = order[:size], round(size * self.train_fraction)
            missing = {
                "subset_fraction": _class_after_prefix(targets[order], size),
                "train_fraction": _class_after_prefix(targets[train], count),
            }
            # The option, the label of the class that it leaves out, and the fraction that would hold that class.
            self._missing_class = next(((option, *outside) for option, outside in missing.items() if outside), None)
            # The splits are those of the data set: no correction moves an image into another one.
            train = self._without_excluded(train[:count], labels)
            self.training_targets = self._relabelled(targets, labels, val)
            self._check_corrected(train)
            self.train_split = InMemoryDataset(images, self.training_targets, train)
            self.val_split = InMemoryDataset(images, targets, val)
            # A prefix of a stratified order is a fixed, stratified sample of the training split.
            self.train_probe = InMemoryDataset(images, self.training_targets, train[: self.probe_size])
        if stage in ("test", None) and not hasattr(self, "test_split"):
            images, labels = self.read(train=False)
            targets, members = renumber(labels, self.left_out, self.num_classes), self.test_positions(labels)
            self.test_split = InMemoryDataset(images, targets, members[targets[members] >= 0])
            self.left_out_split = InMemoryDataset(images, labels, members[targets[members] < 0])

    def _subset(self, train: Tensor, targets: Tensor) -> tuple[Tensor, int]:
        """Choose the random subset of the training images.

        Returns:
            The training images, those of the subset first, every prefix of which is stratified; and its size.
        """
        if self.subset_fraction == 1:
            return train, len(train)
        seed, count = self.subset_seed, round(len(train) * self.subset_fraction)
        if self.subset_pairs and seed % 2:
            order = stratified_order(targets[train], derive_seed("subset", seed - 1))
            return train[order.roll(-count)], len(train) - count
        return train[stratified_order(targets[train], derive_seed("subset", seed))], count

    def _correction(self, name: str) -> Correction | None:
        """Read the file of a correction, whose hash is recorded or compared with the one of the training before."""
        path = self._files[name]
        if path is None:
            return None
        path = Path(path).expanduser()
        if self._hashes[name] is not None and not path.exists():
            raise UserError(f"data.{name}={path} is gone, with which the training began: restore the file.")
        file = Correction.read(f"data.{name}", path)
        self.corrections[name] = file.sha256
        if self._hashes[name] not in (None, self.corrections[name]):
            raise UserError(
                f"data.{name}={path} has changed since the training began (SHA-256 {self.corrections[name]}…, it was "
                f"{self._hashes[name]}…): restore the file, or start a new training with it."
            )
        return file

    def _without_excluded(self, train: Tensor, labels: Tensor) -> Tensor:
        if (file := self._correction("exclude")) is None:
            return train
        excluded = torch.zeros(len(labels), dtype=torch.bool)
        excluded[read_exclusions(file, self._is_training(labels))] = True
        return train[~excluded[train]]

    def _relabelled(self, targets: Tensor, labels: Tensor, val: Tensor) -> Tensor:
        if (file := self._correction("relabel")) is None:
            return targets
        positions, new = read_labels(file, self._is_training(labels), self.all_class_names)
        if left_out := sorted({*new.tolist()} & {*self.left_out}):
            raise UserError(
                f"{file.option} gives images the class {self.all_class_names[left_out[0]]}, which data.left_out "
                "leaves out: correct one of them."
            )
        relabelled = targets.clone()
        relabelled[positions] = renumber(new, self.left_out, self.num_classes)
        # Classes that are left out stay out, and validation images keep the labels of the data set.
        relabelled[targets < 0] = -1
        relabelled[val] = targets[val]
        return relabelled

    def _is_training(self, labels: Tensor) -> Tensor:
        is_training = torch.zeros(len(labels), dtype=torch.bool)
        is_training[self.train_positions(labels)] = True
        return is_training

    def _check_corrected(self, train: Tensor) -> None:
        """Raise UserError if the corrections leave a class without images."""
        if not self.corrections:
            return
        files = " and ".join(f"data.{name}={self._files[name]}" for name in self.corrections)
        counts = self.training_targets[train].bincount(minlength=self.num_classes)
        if not len(train):
            raise UserError(f"{files} leaves no image to train on: give fewer positions.")
        if (missing := (counts == 0).nonzero().flatten().tolist()) and self._missing_class is None:
            raise UserError(f"{files} leaves no training image of the class {self.class_names[missing[0]]}.")

    def check_classes(self) -> None:
        """Raise UserError if a fraction of the images leaves no training image of a class that has some."""
        self.setup("fit")
        if self._missing_class is not None:
            option, label, fraction = self._missing_class
            raise UserError(
                f"data.{option}={getattr(self, option)} leaves no image of the class {self.class_names[label]} to "
                f"train on: give at least {math.ceil(fraction * 1000) / 1000:g}."
            )

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return the shuffled training batches."""
        targets = self.train_split.targets
        return batch_loader(
            self.train_split,
            self.batch_size,
            shuffle_seed=self.seed,
            shard=self._shard,
            weights=1 / targets.bincount()[targets] if self.balanced else None,
        )

    def val_dataloader(self) -> dict[str, DataLoader[Batch]]:
        """Return the splits that each validation pass evaluates, by the prefix of their metrics."""
        splits = {"train": self.train_probe, "val": self.val_split}
        return {name: self._eval_loader(split) for name, split in splits.items() if len(split)}

    def test_dataloader(self) -> dict[str, DataLoader[Batch]]:
        """Return the test split, by the prefix of its metrics."""
        return {"test": self._eval_loader(self.test_split)}

    def _eval_loader(self, split: InMemoryDataset) -> DataLoader[Batch]:
        return batch_loader(split, self.eval_batch_size, shard=self._shard)

    @property
    def _shard(self) -> Shard:
        trainer = self.trainer
        return SINGLE_PROCESS if trainer is None else Shard(trainer.global_rank, trainer.world_size)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Augment (in training) and normalise a whole batch on its device."""
        images = batch.images
        if self.trainer is not None and self.trainer.training:
            for augment in self.augmentation:
                augmented = augment(images)
                if not self._augmentation_checked:
                    _check_augmented(images, augmented, getattr(augment, "__name__", type(augment).__name__))
                images = augmented
            self._augmentation_checked = True
        images = self.normalise(images)
        # With trainer.precision=bf16-true and the like the network's weights are not float32.
        return batch._replace(images=images if self.trainer is None else images.to(self.trainer.lightning_module.dtype))

    def normalise(self, images: Tensor) -> Tensor:
        """Normalise uint8 images `(B, C, H, W)` to zero mean and unit variance, as float32."""
        if self.pixel_mean.device != images.device:
            self.pixel_mean, self.pixel_scale = self.pixel_mean.to(images.device), self.pixel_scale.to(images.device)
        return (images - self.pixel_mean) * self.pixel_scale

    def _check_folds(self) -> None:
        """Raise UserError if there is no such fold, or the fraction of the subset is none."""
        if self.folds is not None and not 2 <= self.folds <= self.train_size:
            raise UserError(f"data.folds={self.folds} is not possible: give 2 or more, or null.")
        if not 0 <= self.fold < (self.folds or 1):
            numbers = f"0 to {self.folds - 1}" if self.folds else "data.folds too"
            raise UserError(
                f"data.fold={self.fold} is not possible with data.folds={self.folds or 'null'}: give {numbers}."
            )
        if not 0 < self.subset_fraction <= 1:
            raise UserError(
                f"data.subset_fraction={self.subset_fraction} is not a fraction of the images: give a number above 0, "
                "up to 1."
            )
        if self.subset_pairs and self.subset_fraction != 0.5:
            raise UserError(
                f"data.subset_pairs=true makes complementary halves, which data.subset_fraction={self.subset_fraction} "
                "is not: give 0.5."
            )

    def _check_sizes(self, available: int) -> None:
        """Raise UserError if `available` images, for training and validation together, are too few for the splits."""
        classes = self.num_classes
        if not (self.val_size == 0 or classes <= self.val_size <= available - classes):
            raise UserError(
                f"data.val_size={self.val_size} cannot be held out of {available:,} training images: "
                f"give {classes} to {available - classes:,}, or 0 to train on all of them."
            )
        if not 0 < self.train_fraction <= 1:
            raise UserError(
                f"data.train_fraction={self.train_fraction} is not a fraction of the images: give a number above 0, "
                "up to 1."
            )
        in_subset = round((available - self.val_size) * self.subset_fraction)
        if round(in_subset * self.train_fraction) < classes:
            option = "train_fraction" if in_subset >= classes else "subset_fraction"
            total = in_subset if in_subset >= classes else available - self.val_size
            raise UserError(
                f"data.{option}={getattr(self, option)} of {total:,} images leaves "
                f"fewer than one per class: give at least {classes / total:.2g}."
            )
        if self.probe_size < 0:
            raise UserError(f"data.probe_size={self.probe_size} is not possible: give 0 or more, or null.")
        for name in ("batch_size", "eval_batch_size"):
            size = getattr(self, name)
            if not isinstance(size, int) or isinstance(size, bool) or not 1 <= size <= _MAX_BATCH_SIZE:
                raise UserError(
                    f"data.{name}={size!r:.40} is not possible: give a whole number from 1 to {_MAX_BATCH_SIZE:,}."
                )


def _as_tensor(array: Any, source: str) -> Tensor:
    if isinstance(array, Tensor):
        return array
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf":
        kind = f"an array of {array.dtype}" if isinstance(array, np.ndarray) else type(array).__name__
        raise UserError(f"{source} returns {kind}: return NumPy arrays or tensors of numbers.")
    return array_to_tensor(array)


def _check_augmented(images: Tensor, augmented: Tensor, name: str) -> None:
    """Raise UserError if an augmentation changed the shape of a batch, or scaled its pixels to [0, 1]."""
    is_scaled = augmented.is_floating_point() and bool(augmented.max() <= 1 < images.max())
    if is_scaled or augmented.shape != images.shape:
        scale = " from 0 to 1" if is_scaled else ""
        raise UserError(
            f"data.augmentation: {name} returns pixels{scale} of shape {tuple(augmented.shape)}: return pixels from 0 "
            f"to 255 of the shape {tuple(images.shape)} that it is given."
        )


def _dtype_name(array: Tensor) -> str:
    return str(array.dtype).removeprefix("torch.")


def _class_after_prefix(targets: Tensor, count: int) -> tuple[int, float] | None:
    """Find the class that occurs last in `targets` `(N,)` if the first `count` targets do not hold it.

    Returns:
        Its label and the fraction of `targets` that holds every class, or None.
    """
    if count == len(targets):
        return None
    first = {label: int((targets == label).nonzero()[0]) for label in targets.unique().tolist()}
    label = max(first, key=first.__getitem__)
    return (label, (first[label] + 1) / len(targets)) if first[label] >= count else None
