"""Whole batches out of memory: one indexing operation a batch, no work per image."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from fashion_cnn.data.splits import derive_seed


class Batch(NamedTuple):
    """What every step gets.

    images: `(B, C, H, W)`, uint8 as stored, normalised floats once it is on the device.
    targets: `(B,)`, int64 class indices.
    indices: `(B,)`, int64 positions in the data set that the split was cut from.
    """

    images: Tensor
    targets: Tensor
    indices: Tensor


class InMemoryDataset(Dataset[Batch]):
    """A split of the tensors `images` `(N, C, H, W)` uint8 and `targets` `(N,)` int64.

    `members` `(M,)` selects the split out of the N images and gives its order.
    """

    def __init__(self, images: Tensor, targets: Tensor, members: Tensor) -> None:
        # Several splits share them, and they may be a file mapped into memory.
        self._images = images
        self.targets = targets[members]
        self.indices = members

    @property
    def images(self) -> Tensor:
        """All images of the split `(M, C, H, W)` uint8, copied."""
        return self._images[self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """The batch of these positions: what a DataLoader calls in place of one call an image."""
        chosen = torch.tensor(indices)
        places = self.indices[chosen]
        return Batch(self._images[places], self.targets[chosen], places)

    def images_at(self, indices: Tensor) -> Tensor:
        """The images `(K, C, H, W)` at these positions `(K,)` of the data set that the split was cut from."""
        return self._images[indices]


class Share(NamedTuple):
    """The part of a split that one of the processes of a distributed training sees."""

    process: int
    processes: int


WHOLE = Share(process=0, processes=1)


class EpochSampler(Sampler[int]):
    """A random order that depends on `seed` and the epoch alone, so a resumed run repeats it.

    Of n processes each takes every n-th image of that order: batch for batch, all of them together see what one process
    would with batches n times as large. What cannot be dealt out evenly is left for another epoch.

    weights: `(size,)`; with them as many images as there are, each drawn by its weight, again and again.
    """

    def __init__(self, size: int, seed: int, share: Share = WHOLE, weights: Tensor | None = None) -> None:
        self.size = size
        self.seed = seed
        self.share = share
        self.weights = weights
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next; Lightning calls this before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size // self.share.processes

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(derive_seed("order", self.seed, self.epoch))
        if self.weights is None:
            order = torch.randperm(self.size, generator=generator)
        else:
            order = torch.multinomial(self.weights, self.size, replacement=True, generator=generator)
        return iter(order[self.share.process :: self.share.processes][: len(self)].tolist())


def batch_loader(
    dataset: InMemoryDataset,
    batch_size: int,
    *,
    shuffle_seed: int | None = None,
    share: Share = WHOLE,
    weights: Tensor | None = None,
) -> DataLoader[Batch]:
    """Load `dataset` in batches: in order, or shuffled anew each epoch where `shuffle_seed` is given.

    weights: how often each image is drawn when shuffled, see `EpochSampler`.

    Shuffled batches are all of one size (the images left over change from epoch to epoch), unless
    the data set is smaller than one batch. In order, each image comes up in one process, once.
    """
    sampler = (
        range(share.process, len(dataset), share.processes)
        if shuffle_seed is None
        else EpochSampler(len(dataset), shuffle_seed, share, weights)
    )
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        drop_last=shuffle_seed is not None and len(sampler) >= batch_size,
        collate_fn=_already_a_batch,
        # Of its own, since the iterator draws a seed that would otherwise move the global one.
        generator=torch.Generator(),
    )


def _already_a_batch(batch: Any) -> Any:
    return batch
