"""A LightningDataModule over images that fit in memory: splits, rulers, batches, augmentation."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from fashion_cnn.data.batches import WHOLE, Batch, InMemoryDataset, Share, batch_loader
from fashion_cnn.data.splits import left_out_labels, renumbered, stratified_order
from fashion_cnn.errors import UserError
from fashion_cnn.pictures import Preparation
from fashion_cnn.pictures.preparation import Invert

Augmentation = Callable[[Tensor], Tensor]


class ImageDataModule(LightningDataModule):
    """Train, validation and test splits of a data set that `load` reads as tensors.

    A subclass says `class_names`, `image_shape` `(C, H, W)`, `train_size` (the images that
    training and validation share) and `load`; `cut_out` where its images are such.

    val_size: images carved out of the training set for validation, stratified. 0 trains on all.
    probe_size: training images that are measured as validation and test are, or all where they are fewer; None takes as
        many as for validation.
    train_fraction: share of the remaining images to train on, in (0, 1], stratified and nested.
    batch_size, eval_batch_size: images a step when training and when measuring, in each process.
    balanced: draw as many training images of each class, those of rare classes more often than once an epoch.
    seed: order of the training batches. split_seed: choice of the validation images.
    mean, std: per channel, of pixels scaled to [0, 1].
    augmentation: functions of a uint8 batch `(B, C, H, W)`, applied in order when training.
        None in place of one switches it off.
    left_out: names or numbers of classes that no split holds; `class_names` and the targets are of the others alone.
        Their test images are `left_out_split`, whose targets are the data set's own.

    Raises UserError for a value that leaves nothing to train on or measure.
    """

    class_names: Sequence[str]
    image_shape: tuple[int, int, int]
    train_size: int
    # For the model card: what the images are, and what a network that knows them alone cannot do.
    about: str = ""
    limits: Sequence[str] = ()
    # The grey that transparent pixels of a picture show.
    background = 255
    # Whether there is anything to test on.
    has_test = True
    # Whether each image shows one item alone, on black and as large as the frame allows.
    cut_out = False

    def __init__(
        self,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        val_size: int = 5000,
        probe_size: int | None = None,
        train_fraction: float = 1.0,
        batch_size: int = 128,
        eval_batch_size: int = 1000,
        balanced: bool = False,
        seed: int = 0,
        split_seed: int = 0,
        augmentation: Mapping[str, Augmentation | None] | None = None,
        left_out: Collection[str | int] | None = None,
    ) -> None:
        super().__init__()
        # Those that are left out too, as `load` numbers them.
        self.all_class_names = tuple(self.class_names)
        self.left_out = left_out_labels(left_out or (), self.class_names)
        if self.left_out:
            self.class_names = [name for label, name in enumerate(self.class_names) if label not in self.left_out]
        self.val_size = val_size
        self.probe_size = val_size if probe_size is None else probe_size
        self.train_fraction = train_fraction
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.balanced = balanced
        self.seed = seed
        self.split_seed = split_seed
        self.augmentation = [part for part in (augmentation or {}).values() if part is not None]
        # In the pixels' own scale, 0 to 255, so that normalising is one subtraction and one product.
        self.pixel_mean = torch.tensor(mean).view(-1, 1, 1) * 255
        self.pixel_scale = 1 / (torch.tensor(std).view(-1, 1, 1) * 255)
        self._check(self.train_size)

    def load(self, *, train: bool) -> tuple[Tensor, Tensor]:
        """Read images `(N, C, H, W)` uint8 and targets `(N,)` int64: all for training, or the test set."""
        raise NotImplementedError

    def order(self, targets: Tensor) -> Tensor:
        """The positions `(N,)` of all images for training, validation included, in what `load` reads for training.

        targets: `(M,)`, of all that `load` reads.
        """
        return torch.arange(len(targets))

    def carve(self, targets: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
        """The positions of the images that validate and of those that train, of the latter every prefix stratified.

        targets: `(M,)`, of all that `load` reads for training. kept: `(M,)` bool, those whose class is not left out.
        """
        # Without some classes it is still stratified, and each of the others keeps its own order.
        order = stratified_order(targets, self.split_seed)
        order = order[kept[order]]
        self._check(len(order))
        return order[: self.val_size], order[self.val_size :]

    def test_order(self, targets: Tensor) -> Tensor:
        """The positions `(N,)` of the test images in what `load` reads for testing; targets: `(M,)`, of all of that."""
        return torch.arange(len(targets))

    def labelled(self, *, train: bool) -> tuple[Tensor, Tensor]:
        """All images `(N, C, H, W)` for training, validation included, or for testing, with their targets `(N,)`.

        In the data set's own order and numbers, of the classes that are left out too.
        """
        images, targets = self.load(train=train)
        members = (self.order(targets) if train else self.test_order(targets)).sort().values
        return images[members], targets[members]

    @property
    def detected(self) -> dict[str, Any] | None:
        """Properties read from the images, stored in the config so that it describes the same data anywhere.

        None where the class itself determines them.
        """
        return None

    def preparation(self, invert: Invert = "auto") -> Preparation:
        """What brings a picture of any kind to what a network that was trained on these images expects."""
        return Preparation(self.image_shape, cut_out=self.cut_out, invert=invert, background=self.background)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def setup(self, stage: str | None = None) -> None:
        """Read the splits of `stage` into memory, once."""
        if stage in ("fit", "validate", None) and not hasattr(self, "train_split"):
            images, targets = self.load(train=True)
            numbers = renumbered(targets, self.left_out, self.num_classes)
            val, train = self.carve(targets, numbers >= 0)
            targets = numbers
            part = round(len(train) * self.train_fraction)
            # None where each class has an image.
            self._needed = _of_each_class(targets[train], part)
            train = train[:part]
            self.train_split = InMemoryDataset(images, targets, train)
            self.val_split = InMemoryDataset(images, targets, val)
            # A prefix of a stratified order: a fixed, stratified sample of the training split.
            self.train_probe = InMemoryDataset(images, targets, train[: self.probe_size])
        if stage in ("test", None) and not hasattr(self, "test_split"):
            images, targets = self.load(train=False)
            numbers, members = renumbered(targets, self.left_out, self.num_classes), self.test_order(targets)
            self.test_split = InMemoryDataset(images, numbers, members[numbers[members] >= 0])
            self.left_out_split = InMemoryDataset(images, targets, members[numbers[members] < 0])

    def check_classes(self) -> None:
        """Raise UserError where `train_fraction` leaves none of a class that there are training images of."""
        self.setup("fit")
        if self._needed is not None:
            label, share = self._needed
            raise UserError(
                f"data.train_fraction={self.train_fraction} leaves no image of the class {self.class_names[label]} to "
                f"train on: give at least {math.ceil(share * 1000) / 1000:g}."
            )

    def train_dataloader(self) -> DataLoader[Batch]:
        targets = self.train_split.targets
        return batch_loader(
            self.train_split,
            self.batch_size,
            shuffle_seed=self.seed,
            share=self._share,
            weights=1 / targets.bincount()[targets] if self.balanced else None,
        )

    def val_dataloader(self) -> dict[str, DataLoader[Batch]]:
        """The two rulers of each validation pass, by the prefix of their metrics."""
        rulers = {"train": self.train_probe, "val": self.val_split}
        return {name: self._ruler(split) for name, split in rulers.items() if len(split)}

    def test_dataloader(self) -> dict[str, DataLoader[Batch]]:
        return {"test": self._ruler(self.test_split)}

    def _ruler(self, split: InMemoryDataset) -> DataLoader[Batch]:
        return batch_loader(split, self.eval_batch_size, share=self._share)

    @property
    def _share(self) -> Share:
        trainer = self.trainer
        return WHOLE if trainer is None else Share(trainer.global_rank, trainer.world_size)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Augment (when training) and normalise a whole batch on its device."""
        images = batch.images
        if self.trainer is not None and self.trainer.training:
            for augment in self.augmentation:
                images = augment(images)
        images = self.normalise(images)
        # With trainer.precision=bf16-true and its like the network's weights are no float32.
        return batch._replace(images=images if self.trainer is None else images.to(self.trainer.lightning_module.dtype))

    def normalise(self, images: Tensor) -> Tensor:
        """Bring uint8 images `(B, C, H, W)` to zero mean and unit variance, as float32."""
        if self.pixel_mean.device != images.device:
            self.pixel_mean, self.pixel_scale = self.pixel_mean.to(images.device), self.pixel_scale.to(images.device)
        return (images - self.pixel_mean) * self.pixel_scale

    def _check(self, available: int) -> None:
        """Refuse what `available` images, for training and validation together, cannot be cut into."""
        classes = self.num_classes
        if not (self.val_size == 0 or classes <= self.val_size <= available - classes):
            raise UserError(
                f"data.val_size={self.val_size} cannot be carved out of {available:,} training images: "
                f"give {classes} to {available - classes:,}, or 0 to train on all of them."
            )
        if not 0 < self.train_fraction <= 1:
            raise UserError(
                f"data.train_fraction={self.train_fraction} is not a share of the images: "
                "give a number above 0, up to 1."
            )
        if round((available - self.val_size) * self.train_fraction) < classes:
            raise UserError(
                f"data.train_fraction={self.train_fraction} of {available - self.val_size:,} images leaves "
                f"fewer than one a class: give at least {classes / (available - self.val_size):.2g}."
            )
        if self.probe_size < 0:
            raise UserError(f"data.probe_size={self.probe_size} is not possible: give 0 or more, or null.")
        for name in ("batch_size", "eval_batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"data.{name}={getattr(self, name)} is not possible: give 1 or more.")
        if (self.pixel_scale <= 0).any() or self.pixel_scale.isinf().any():
            raise UserError("data.std must be above 0 for every channel.")


def _of_each_class(targets: Tensor, part: int) -> tuple[int, float] | None:
    """Of targets `(N,)` the class that comes up last, and the share that holds it; None where the first `part` do."""
    if part == len(targets):
        return None
    firsts = {label: int((targets == label).nonzero()[0]) for label in targets.unique().tolist()}
    label, first = max(firsts.items(), key=lambda pair: pair[1])
    return (label, (first + 1) / len(targets)) if first >= part else None
