"""A data module of the user's own pictures: a folder with a sub-folder for each class."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from fashion_cnn.data.batches import channel_statistics
from fashion_cnn.data.folder_files import (
    FolderFile,
    find_files,
    item_ids,
    split_files,
    warn_contradicting,
    warn_shared,
    warn_unreadable,
)
from fashion_cnn.data.image_datamodule import ImageDataModule
from fashion_cnn.data.picture_cache import (
    DecodedPictures,
    FileInfo,
    cache_folder,
    decode_cached,
    scan_files,
    unreadable_list,
)
from fashion_cnn.data.splits import stratified_order
from fashion_cnn.errors import UserError
from fashion_cnn.pictures import Preparation
from fashion_cnn.terminal import progress_bar

# Range of the default image size: a small network trains on these in reasonable time.
_MIN_SIZE, _MAX_SIZE = 28, 64


@dataclass(frozen=True)
class _Folder:
    """Images `(N, C, H, W)` uint8 and targets `(N,)` of all files, and the positions of each split."""

    images: Tensor
    targets: Tensor
    train: Tensor
    val: Tensor
    test: Tensor


class ImageFolderDataModule(ImageDataModule):
    """Pictures of any kind below `root`, decoded once and cached (data/picture_cache.py).

    Args:
        root: `<class>/…`, or `train/<class>/…` with `test/<class>/…` and optionally `val/<class>/…`; a file
            `groups.csv` in it (columns file and group) lists pictures of the same item, which stay in one split.
        image_size: side of the images in pixels; None takes the median of the pictures' longer sides, 28 to 64.
        channels: 1 for grey, 3 for colour; None takes 1 if all pictures are grey.
        background: the grey behind transparent pixels, 0 to 255.
        val_share: fraction of each class for validation if there is no folder `val`; groups stay together.
        test_share: fraction of each class for testing if there is no folder `test`.
        in_memory_share: fraction of the machine's memory; more pixels than that are read from the cache file.
        cache_gb: size of the cache of all folders, in GB, above which those that were used least recently are removed;
            None for no limit.
        split_seed: seed of the splits.
        mean: see `ImageDataModule`; None computes it from the training split.
        std: see `ImageDataModule`; None computes it from the training split.
        detected: the property `detected` of an earlier module of the same folder; then the folder is read only when its
            images are needed.
        settings: further arguments of `ImageDataModule`.

    Raises:
        UserError: if the folder cannot be trained on, or differs from `detected`.
    """

    def __init__(
        self,
        *,
        root: str | Path | None,
        image_size: int | None = None,
        channels: int | None = None,
        background: int = 255,
        val_share: float = 0.15,
        test_share: float = 0.15,
        in_memory_share: float = 0.25,
        cache_gb: float | None = 20,
        split_seed: int = 0,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        detected: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        if settings.get("folds"):
            raise UserError(
                f"data.folds={settings['folds']} is not possible with an image folder: data.val_share and the folder "
                "'val' hold out its validation pictures. Set data.folds=null."
            )
        if root is None:
            raise UserError("data.root is missing: give data.root=DIR, a folder with a sub-folder for each class.")
        if channels not in (None, 1, 3):
            raise UserError(f"data.channels={channels} is not possible: give 1 for grey, 3 for colour, or null.")
        if image_size is not None and image_size < 1:
            raise UserError(f"data.image_size={image_size} is not possible: give the pixels of a side, or null.")
        for name, share in (("val_share", val_share), ("test_share", test_share)):
            if not 0 <= share < 1:
                raise UserError(f"data.{name}={share} is not possible: give a fraction from 0 to below 1.")
        if cache_gb is not None and cache_gb < 0:
            raise UserError(f"data.cache_gb={cache_gb} is not possible: give a size in GB, or null for no limit.")
        self.root = Path(root).expanduser()
        self.about = f"The pictures in the folder {self.root.resolve().name}, with a sub-folder for each class."
        self._image_size, self._channels, self.background = image_size, channels, background
        self._val_share, self._test_share, self._split_seed = val_share, test_share, split_seed
        self._in_memory_share, self._cache_gb = in_memory_share, cache_gb
        self._folder: _Folder | None = None
        self._detected = dict(detected) if detected else self._detect()
        self.class_names = list(self._detected["class_names"])
        self.image_shape = (self._detected["channels"], self._detected["image_size"], self._detected["image_size"])
        self.train_size = self._detected["train_size"]
        self.has_test = self._detected["test_size"] > 0
        super().__init__(
            mean=mean or self._detected["mean"],
            std=std or self._detected["std"],
            val_size=self._detected["val_size"],
            split_seed=split_seed,
            **settings,
        )

    @property
    def detected(self) -> dict[str, Any]:
        """Properties read from the folder: class names, image size, channels, statistics, sizes and a fingerprint."""
        return self._detected

    def load(self, *, train: bool) -> tuple[Tensor, Tensor]:
        """Read images `(N, C, H, W)` uint8 and targets `(N,)` int64 of all files, whatever their split."""
        folder = self._read()
        return folder.images, folder.targets

    def train_positions(self, targets: Tensor) -> Tensor:
        """Return the positions of the images for training and validation."""
        folder = self._read()
        return torch.cat([folder.val, folder.train])

    def test_positions(self, targets: Tensor) -> Tensor:
        """Return the positions of the test images."""
        return self._read().test

    def split_train_val(self, targets: Tensor, is_kept: Tensor) -> tuple[Tensor, Tensor]:
        """Return the positions of the training and of the validation images, see `ImageDataModule`."""
        folder = self._read()
        train, val = folder.train[is_kept[folder.train]], folder.val[is_kept[folder.val]]
        return train[stratified_order(targets[train], self.split_seed)], val

    def _read(self) -> _Folder:
        if self._folder is None:
            before, now = self._detected, self._detect()
            differing = [key for key in before if before[key] != now[key]]
            if differing and before["pictures"] == now["pictures"]:
                raise UserError(
                    f"{self.root} holds the same pictures as before, but this version of fashion_cnn reads some "
                    f"otherwise ({', '.join(differing)} differ): train again."
                )
            if differing:
                raise UserError(
                    f"{self.root} holds other pictures than before ({', '.join(differing)} differ): train again with "
                    "them, or give the previous folder with data.root=DIR."
                )
        assert self._folder is not None
        return self._folder

    def _decode(self, files: Sequence[FolderFile]) -> tuple[list[FileInfo], DecodedPictures]:
        """Return the properties and the images of all files, from the cache if they are in it."""
        paths = [file.path for file in files]
        with progress_bar("scanning files") as progress:
            infos = scan_files(self.root, paths, cache_folder(), progress)
        pictures = [info for info, file in zip(infos, files, strict=True) if file.split != "test" and info.width]
        size = self._image_size or _usual_size(pictures)
        channels = self._channels or (1 if all(info.grey for info in pictures) else 3)
        preparation = Preparation((channels, size, size), cut_out=False, background=self.background)
        with progress_bar("decoding pictures") as progress:
            decoded = decode_cached(
                self.root,
                paths,
                infos,
                preparation,
                cache_folder(),
                max_bytes_in_memory=int(self._in_memory_share * _memory_bytes()),
                max_cache_bytes=None if self._cache_gb is None else int(self._cache_gb * 1e9),
                progress=progress,
            )
        warn_unreadable(self.root, paths, decoded.unreadable, unreadable_list(self.root, cache_folder()))
        return infos, decoded

    def _detect(self) -> dict[str, Any]:
        """Read the folder into `_folder`, and return its properties."""
        files = find_files(self.root)
        infos, decoded = self._decode(files)
        channels, size, _ = decoded.images.shape[1:]
        readable = [position for position in range(len(files)) if position not in decoded.unreadable]
        _require_examples(self.root, files, readable, decoded.unreadable)
        names = sorted({files[position].label for position in readable})
        if len(names) < 2:
            raise UserError(f"{self.root} holds readable pictures of {len(names)} classes: two or more are needed.")
        targets = torch.tensor([names.index(file.label) if file.label in names else -1 for file in files])

        readable_files = [files[position] for position in readable]
        contents = [infos[position].content for position in readable]
        items = item_ids(readable_files, contents)
        splits = split_files(
            readable_files, items, val_share=self._val_share, test_share=self._test_share, seed=self._split_seed
        )
        members = {
            name: torch.tensor(
                [position for position, split in zip(readable, splits, strict=True) if split == name], dtype=torch.long
            )
            for name in ("train", "val", "test")
        }
        self._check_val_size(len(members["val"]), len(names), any(file.split == "val" for file in files))
        self._folder = _Folder(decoded.images, targets, **members)
        warn_shared(readable_files, items, splits)
        warn_contradicting(readable_files, contents)
        mean, std = channel_statistics(decoded.images, members["train"])
        return {
            "class_names": names,
            "image_size": size,
            "channels": channels,
            "mean": mean,
            "std": std,
            "train_size": len(members["train"]) + len(members["val"]),
            "val_size": len(members["val"]),
            "test_size": len(members["test"]),
            "pictures": _fingerprint(
                [(f.path, content, split) for f, content, split in zip(readable_files, contents, splits, strict=True)]
            ),
        }

    def _check_val_size(self, val_size: int, classes: int, has_folder: bool) -> None:
        if 0 < val_size < classes:
            remedy = "put some of each class into its folder val."
            if not has_folder:
                remedy = f"give a larger data.val_share than {self._val_share}, or 0 to train on all."
            raise UserError(f"{self.root} has {val_size} validation pictures for {classes} classes: {remedy}")


def _require_examples(
    root: Path, files: Sequence[FolderFile], readable: Sequence[int], unreadable: Mapping[int, str]
) -> None:
    """Raise UserError if a class has no readable training picture."""
    trained = {files[position].label for position in readable if files[position].split in (None, "train")}
    for position, reason in sorted(unreadable.items()):
        name = files[position].label
        if name not in trained:
            raise UserError(
                f"No training picture of the class {name} in {root} can be read ({files[position].path}: {reason}): "
                "repair them, or remove that folder."
            )


def _usual_size(infos: Sequence[FileInfo]) -> int:
    """Return the median of the longer sides, rounded down to a multiple of four, between _MIN_SIZE and _MAX_SIZE."""
    longer = median([max(info.width, info.height) for info in infos]) if infos else _MIN_SIZE
    return min(max(int(longer) // 4 * 4, _MIN_SIZE), _MAX_SIZE)


def _memory_bytes() -> int:
    """Return the memory of this machine, or the limit of the container that this process runs in."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(machine, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # There is no limit.
        return machine


def _fingerprint(pictures: Sequence[tuple[str, str, str]]) -> str:
    """Return a hash of path, content and split of each picture."""
    return hashlib.sha256(json.dumps(pictures).encode()).hexdigest()[:16]
