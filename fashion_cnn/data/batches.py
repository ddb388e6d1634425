"""Images in memory: their statistics, and batches by one indexing operation, without work per image."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from fashion_cnn.data.splits import derive_seed


class Batch(NamedTuple):
    """A batch of labelled images.

    Attributes:
        images: `(B, C, H, W)`, uint8 as stored, normalised floats once it is on the device.
        targets: `(B,)`, int64 class indices.
        indices: `(B,)`, int64 positions in the data set that the split belongs to.
    """

    images: Tensor
    targets: Tensor
    indices: Tensor


class InMemoryDataset(Dataset[Batch]):
    """A split of a data set that is held in memory.

    Args:
        images: `(N, C, H, W)` uint8, all images of the data set.
        targets: `(N,)` int64.
        members: `(M,)` int64, the positions of the split's images, in its order.

    Attributes:
        targets: `(M,)`, of the split.
        indices: `(M,)`, the argument `members`.
    """

    def __init__(self, images: Tensor, targets: Tensor, members: Tensor) -> None:
        # Not indexed here: several splits share the images, which may be a file mapped into memory.
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
        """Return the batch of these positions in the split; a DataLoader calls it once per batch."""
        rows = torch.tensor(indices)
        positions = self.indices[rows]
        return Batch(self._images[positions], self.targets[rows], positions)

    def images_at(self, indices: Tensor) -> Tensor:
        """Return the images `(K, C, H, W)` at the positions `(K,)` of the data set, inside or outside the split."""
        return self._images[indices]


class Shard(NamedTuple):
    """The part of a split that one process of a distributed training reads.

    Attributes:
        rank: number of the process, from 0.
        world_size: number of processes.
    """

    rank: int
    world_size: int


SINGLE_PROCESS = Shard(rank=0, world_size=1)


class EpochSampler(Sampler[int]):
    """A random order that depends on the seed and the epoch only, so that a resumed run repeats it.

    Of n processes each takes every n-th image of that order: their batches together are the batches that one process
    would read with an n times larger batch size. A remainder that cannot be divided evenly is left out in this epoch.

    Args:
        size: number of images in the split.
        seed: seed of the order.
        shard: the part of the order to yield.
        weights: `(size,)`; if given, `size` images are drawn with replacement and these weights.
    """

    def __init__(self, size: int, seed: int, shard: Shard = SINGLE_PROCESS, weights: Tensor | None = None) -> None:
        self.size = size
        self.seed = seed
        self.shard = shard
        self.weights = weights
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order is iterated next; Lightning calls this before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size // self.shard.world_size

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(derive_seed("order", self.seed, self.epoch))
        if self.weights is None:
            order = torch.randperm(self.size, generator=generator)
        else:
            order = torch.multinomial(self.weights, self.size, replacement=True, generator=generator)
        return iter(order[self.shard.rank :: self.shard.world_size][: len(self)].tolist())


def batch_loader(
    dataset: InMemoryDataset,
    batch_size: int,
    *,
    shuffle_seed: int | None = None,
    shard: Shard = SINGLE_PROCESS,
    weights: Tensor | None = None,
) -> DataLoader[Batch]:
    """Return a DataLoader over `dataset`.

    Shuffled batches all have the same size (each epoch leaves out another remainder), unless the data set is smaller
    than one batch. Without shuffling each image is read once, by one process.

    Args:
        dataset: the split to load.
        batch_size: images per batch in this process.
        shuffle_seed: None keeps the order of the split; a seed shuffles it anew in each epoch.
        shard: the part that this process reads.
        weights: how often each image is drawn when shuffled, see `EpochSampler`.
    """
    sampler = (
        range(shard.rank, len(dataset), shard.world_size)
        if shuffle_seed is None
        else EpochSampler(len(dataset), shuffle_seed, shard, weights)
    )
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        drop_last=shuffle_seed is not None and len(sampler) >= batch_size,
        collate_fn=_keep_batch,
        # The iterator draws a seed, by default from the global generator.
        generator=torch.Generator(),
    )


def _keep_batch(batch: Any) -> Any:
    return batch


def array_to_tensor(array: NDArray[np.generic]) -> Tensor:
    """Return a tensor of a NumPy array of numbers, which shares its memory where torch can."""
    # torch takes neither read-only arrays, such as those of np.load with mmap_mode, nor reversed ones.
    return torch.from_numpy(array if array.flags.writeable and min(array.strides, default=0) >= 0 else array.copy())


def channel_statistics(images: Tensor, members: Tensor) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of each channel, of pixels scaled to [0, 1], rounded to four digits.

    Args:
        images: `(N, C, H, W)` uint8.
        members: `(M,)`, the positions of the images to include.
    """
    total, squares = torch.zeros(2, images.shape[1], dtype=torch.float64)
    count = 0
    # Small parts stay in the processor's cache; single precision is exact enough within a picture.
    for part in members.split(64):
        pixels = images[part].float()
        total += pixels.sum(dim=(2, 3)).double().sum(dim=0)
        squares += pixels.square_().sum(dim=(2, 3)).double().sum(dim=0)
        count += pixels[:, 0].numel()
    mean = total / count / 255
    # Avoids a division by zero for pictures of one colour.
    std = (squares / count / 255**2 - mean.square()).clamp(min=1e-6).sqrt()
    return [round(value, 4) for value in mean.tolist()], [round(value, 4) for value in std.tolist()]


def fingerprint(images: Tensor, targets: Tensor) -> str:
    """Return the SHA-256 of images `(N, C, H, W)` uint8 and targets `(N,)`, which depends on their order."""
    digest = hashlib.sha256(images.contiguous().numpy().data)
    digest.update(targets.contiguous().numpy().data)
    return digest.hexdigest()
