"""Which pictures of a folder train, validate and test, where its own folders do not say so."""

from collections import Counter, defaultdict
from collections.abc import Sequence

import torch

from fashion_cnn.data.folder_files import FolderFile
from fashion_cnn.data.seeding import derive_seed


def split_files(files: Sequence[FolderFile], *, val_share: float, test_share: float, seed: int) -> list[str]:
    """train, val or test for each file: as its folder says, else drawn, class by class and group by group.

    Each class gives up the share of its pictures, at least one where it has two, and no fewer because a group is large:
    groups go whole, with the class of their first picture.
    """
    splits = [file.split or "train" for file in files]
    for name, share in (("test", test_share), ("val", val_share)):
        if not any(file.split == name for file in files):
            _draw(files, splits, name, share, seed)
    return splits


def _draw(files: Sequence[FolderFile], splits: list[str], name: str, share: float, seed: int) -> None:
    """Move so many of the files that train to another split."""
    groups: dict[str, list[int]] = defaultdict(list)
    for place, file in enumerate(files):
        if splits[place] == "train":
            groups[file.group].append(place)
    # Of the pictures that no folder gives to another split, those that were drawn before among them.
    sizes = Counter(file.label for file in files if file.split in (None, "train"))
    by_class: dict[str, list[list[int]]] = defaultdict(list)
    for members in groups.values():
        by_class[files[members[0]].label].append(members)
    for label, candidates in by_class.items():
        wanted = max(round(share * sizes[label]), 1) if share else 0
        generator = torch.Generator().manual_seed(derive_seed(f"{name} of {label}", seed))
        # The last group stays, so that there is something to learn the class from.
        for index in torch.randperm(len(candidates), generator=generator).tolist()[:-1]:
            if wanted <= 0:
                break
            wanted -= len(candidates[index])
            for place in candidates[index]:
                splits[place] = name
