"""Whether images that are kept for validation or test here are ones that another run learned from."""

from typing import NamedTuple

from omegaconf import DictConfig, OmegaConf

_KEPT_FOR_VALIDATION = ("split_seed", "val_size", "val_share", "test_share")
_KEPT_FOR_TEST = ("test_share", "split_seed")
# What says that two runs cut the same images into splits; a folder may have grown.
_SAME_IMAGES = ("_target_", "dataset", "detected.class_names")


class Difference(NamedTuple):
    """An option of the data by which two runs keep other images unseen: what it is there, and here."""

    key: str
    theirs: object
    ours: object
    kept_for: str

    def __str__(self) -> str:
        differing = f"data.{self.key} is {self.theirs} there, and {self.ours} here"
        return f"images that are kept for {self.kept_for} here ({differing})"


def find_leakage(theirs: DictConfig, ours: DictConfig) -> Difference | None:
    """By which option a run with the data `theirs` learned from what `ours` keeps unseen of them; None by none."""
    pictures = OmegaConf.select(ours, "detected.pictures")
    if pictures is not None and pictures == OmegaConf.select(theirs, "detected.pictures"):
        return None  # The same files, cut in the same way.
    keeps = {
        "validation": (_KEPT_FOR_VALIDATION, ("val_size", "val_share", "detected.val_size")),
        "test": (_KEPT_FOR_TEST, ("test_share",)),
    }
    for kept_for, (keys, sizes) in keeps.items():
        if any(OmegaConf.select(ours, size) for size in sizes):
            for key in keys:
                has, asked = OmegaConf.select(theirs, key), OmegaConf.select(ours, key)
                # The first so many of one order are kept: who kept more kept these too.
                kept_more = key == "val_size" and has is not None and has > asked
                if has != asked and not kept_more:
                    return Difference(key, has, asked, kept_for)
    return None


def is_same_data_set(theirs: DictConfig, ours: DictConfig) -> bool:
    """Whether two runs' `data` are of one data set, or of folders with the same classes."""
    return all(OmegaConf.select(theirs, key) == OmegaConf.select(ours, key) for key in _SAME_IMAGES)
