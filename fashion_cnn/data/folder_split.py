"""Which pictures of a folder train, validate and test, where its own folders do not say so."""

from collections import Counter, defaultdict
from collections.abc import Sequence

import torch

from fashion_cnn.data.folder_files import FolderFile
from fashion_cnn.data.seeding import derive_seed


def things_shown(files: Sequence[FolderFile], contents: Sequence[str]) -> list[int]:
    """The thing that each picture shows, as the number of the first that shows it: pictures of one group or of one
    content, which copies have, show the same.
    """
    things = list(range(len(files)))

    def first(place: int) -> int:
        while things[place] != place:
            place = things[place]
        return place

    known: dict[tuple[str, str], int] = {}
    for place, (file, content) in enumerate(zip(files, contents, strict=True)):
        for kind, name in (("group", file.group), ("content", content)):
            if name is not None:
                # The earlier of the two stands for both.
                one, other = sorted((first(known.setdefault((kind, name), place)), first(place)))
                things[other] = one
    return [first(place) for place in range(len(files))]


def split_files(
    files: Sequence[FolderFile], things: Sequence[int], *, val_share: float, test_share: float, seed: int
) -> list[str]:
    """train, val or test for each file: as its folder says, else drawn, class by class and thing by thing.

    Each class gives up the share of its pictures, at least one where it has two, and no fewer because a group is large:
    the pictures of a thing go together, with the class of the first.
    """
    splits = [file.split or "train" for file in files]
    for name, share in (("test", test_share), ("val", val_share)):
        if not any(file.split == name for file in files):
            _draw(files, things, splits, name, share, seed)
    return splits


def _draw(
    files: Sequence[FolderFile], things: Sequence[int], splits: list[str], name: str, share: float, seed: int
) -> None:
    """Move so many of the files that train to another split."""
    groups: dict[int, list[int]] = defaultdict(list)
    for place, thing in enumerate(things):
        if splits[place] == "train":
            groups[thing].append(place)
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
