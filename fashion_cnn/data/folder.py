"""A person's own pictures: a folder with a sub-folder for each class."""

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

from fashion_cnn.data.folder_files import (
    FolderFile,
    find_files,
    split_files,
    tell_contradicting,
    tell_shared,
    tell_unreadable,
    things_shown,
)
from fashion_cnn.data.image_datamodule import ImageDataModule
from fashion_cnn.data.picture_cache import Looked, cache_folder, decoded, listing_of, look_at
from fashion_cnn.data.splits import stratified_order
from fashion_cnn.data.statistics import channel_statistics
from fashion_cnn.errors import UserError
from fashion_cnn.pictures import Preparation
from fashion_cnn.terminal import progress_bar

# Unless an image size is asked for: the pictures' own, within what a small network takes in good time.
_SMALLEST, _LARGEST = 28, 64


@dataclass(frozen=True)
class _Folder:
    """What was read: images `(N, C, H, W)` uint8 and targets `(N,)` of all files, and the positions of each split."""

    images: Tensor
    targets: Tensor
    train: Tensor
    val: Tensor
    test: Tensor


class ImageFolderDataModule(ImageDataModule):
    """Pictures of any kind below `root`, decoded once and cached (data/picture_cache.py).

    root: `<class>/…`, or `train/<class>/…` with `test/<class>/…` and perhaps `val/<class>/…`; a `groups.csv` in it
        (columns file and group) says which pictures show the same thing and belong into the same split.
    image_size: of the sides in pixels; None takes the median of the pictures' longer sides, 28 to 64.
    channels: 1 for grey, 3 for colour; None takes 1 where all pictures are grey.
    background: the grey behind transparent pixels, 0 to 255.
    val_share, test_share: of the pictures, where no folder `val` or `test` holds some; of each class, groups whole.
    in_memory_share: of the machine's memory; pixels that take more stay in the cache's file.
    detected: the property `detected` of an earlier module of the same folder; then the folder is read only when its
        images are needed.
    mean, std: of the training split where they are None. Further arguments: those of `ImageDataModule`.

    Raises UserError for a folder that cannot be learned from, or that is another one than was found.
    """

    about = "A folder of pictures with a sub-folder for each class."

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
        split_seed: int = 0,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        detected: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        if root is None:
            raise UserError("data.root is missing: say data.root=DIR, a folder with a sub-folder for each class.")
        if channels not in (None, 1, 3):
            raise UserError(f"data.channels={channels} is not possible: give 1 for grey, 3 for colour, or null.")
        if image_size is not None and image_size < 1:
            raise UserError(f"data.image_size={image_size} is not possible: give the pixels of a side, or null.")
        for name, share in (("val_share", val_share), ("test_share", test_share)):
            if not 0 <= share < 1:
                raise UserError(f"data.{name}={share} is not a share of the pictures: give 0 up to, but not, 1.")
        self.root = Path(root).expanduser()
        self._image_size, self._channels, self.background = image_size, channels, background
        self._shares, self._split_seed = (val_share, test_share), split_seed
        self._in_memory_share = in_memory_share
        self._folder: _Folder | None = None
        self._detected = dict(detected) if detected else self._look()
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
        return self._detected

    def load(self, *, train: bool) -> tuple[Tensor, Tensor]:
        folder = self._read()
        return folder.images, folder.targets

    def order(self, targets: Tensor) -> Tensor:
        folder = self._read()
        return torch.cat([folder.val, folder.train])

    def carve(self, targets: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
        folder = self._read()
        val, train = folder.val[kept[folder.val]], folder.train[kept[folder.train]]
        return val, train[stratified_order(targets[train], self.split_seed)]

    def test_order(self, targets: Tensor) -> Tensor:
        return self._read().test

    def _read(self) -> _Folder:
        if self._folder is None:
            before, now = self._detected, self._look()
            if differing := [key for key in before if before[key] != now[key]]:
                if before["pictures"] == now["pictures"]:
                    raise UserError(
                        f"{self.root} holds the same pictures as before, but this version of fashion_cnn reads some "
                        f"otherwise ({', '.join(differing)} differ): train anew."
                    )
                raise UserError(
                    f"{self.root} holds other pictures than before ({', '.join(differing)} differ): train anew with "
                    "them, or name the folder of before with data.root=DIR."
                )
        assert self._folder is not None
        return self._folder

    def _look(self) -> dict[str, Any]:
        """Read the folder, and say what was found."""
        files = find_files(self.root)
        paths = [file.path for file in files]
        with progress_bar("looking at files") as progress:
            looked = look_at(self.root, paths, cache_folder(), progress)
        shown = [one for one, file in zip(looked, files, strict=True) if file.split != "test" and one.width]
        size = self._image_size or _usual_size(shown)
        channels = self._channels or (1 if all(one.grey for one in shown) else 3)
        preparation = Preparation((channels, size, size), cut_out=False, background=self.background)
        with progress_bar("decoding") as progress:
            pictures = decoded(
                self.root,
                paths,
                looked,
                preparation,
                cache_folder(),
                in_memory_up_to=int(self._in_memory_share * _memory()),
                progress=progress,
            )
        tell_unreadable(self.root, paths, pictures.unreadable, listing_of(self.root, cache_folder()))
        kept = [place for place in range(len(files)) if place not in pictures.unreadable]
        _require_examples(self.root, files, kept, pictures.unreadable)
        names = sorted({files[place].label for place in kept})
        if len(names) < 2:
            raise UserError(f"{self.root} holds pictures that can be read of {len(names)} classes: two are needed.")
        targets = torch.tensor([names.index(file.label) if file.label in names else -1 for file in files])
        val_share, test_share = self._shares
        read, contents = [files[place] for place in kept], [looked[place].content for place in kept]
        things = things_shown(read, contents)
        splits = split_files(read, things, val_share=val_share, test_share=test_share, seed=self._split_seed)
        members = {
            name: torch.tensor(
                [place for place, split in zip(kept, splits, strict=True) if split == name], dtype=torch.long
            )
            for name in ("train", "val", "test")
        }
        if 0 < len(members["val"]) < len(names):
            raise UserError(
                f"{self.root} has {len(members['val'])} pictures to validate on for {len(names)} classes: "
                + (
                    "put some of each class into its folder val."
                    if any(file.split == "val" for file in files)
                    else f"give a larger data.val_share than {val_share}, or 0 to train on all."
                )
            )
        self._folder = _Folder(pictures.images, targets, **members)
        tell_shared(read, things, splits)
        tell_contradicting(read, contents)
        mean, std = channel_statistics(pictures.images, members["train"])
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
                [(paths[place], looked[place].content, one) for place, one in zip(kept, splits, strict=True)]
            ),
        }


def _require_examples(
    root: Path, files: Sequence[FolderFile], kept: Sequence[int], unreadable: Mapping[int, str]
) -> None:
    """Raises UserError where no picture can be read that a class could be learned from."""
    learned = {files[place].label for place in kept if files[place].split in (None, "train")}
    for place, reason in sorted(unreadable.items()):
        name = files[place].label
        if name not in learned:
            raise UserError(
                f"No training picture of the class {name} in {root} can be read ({files[place].path}: {reason}): mend "
                "them, or take that folder away."
            )


def _usual_size(looked: Sequence[Looked]) -> int:
    """The median of the longer sides, a multiple of four within what a small network takes in good time."""
    longer = median([max(one.width, one.height) for one in looked]) if looked else _SMALLEST
    return min(max(int(longer) // 4 * 4, _SMALLEST), _LARGEST)


def _memory() -> int:
    """Bytes that this machine, or the container that this process runs in, has."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(machine, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # there is no limit
        return machine


def _fingerprint(described: Sequence[tuple[str, str, str]]) -> str:
    """Of path, content and split of each picture."""
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()[:16]
