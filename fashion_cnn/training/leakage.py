"""Detection of held-out images that another run was trained on."""

from typing import NamedTuple

from omegaconf import DictConfig, OmegaConf

# By held-out split: the options that select its images, and the options any of which is non-zero where it has images.
_SPLIT_OPTIONS = {
    "validation": (
        ("split_seed", "val_size", "val_share", "test_share"),
        ("val_size", "val_share", "detected.val_size"),
    ),
    "test": (("test_share", "split_seed"), ("test_share",)),
}
# Options that are equal for runs on one data set; an image folder may have grown in between.
_DATA_SET_OPTIONS = ("_target_", "dataset", "detected.class_names")


class Leakage(NamedTuple):
    """An option of `data` by which another run was trained on images that this run holds out.

    Attributes:
        split: the held-out split, "validation" or "test".
        key: name of the option, without `data.`.
        source_value: its value in the other run.
        value: its value in this run.
    """

    split: str
    key: str
    source_value: object
    value: object

    def __str__(self) -> str:
        return (
            f"was trained on images of this run's {self.split} set "
            f"(data.{self.key} is {self.source_value} there, {self.value} here)"
        )


def find_leakage(source: DictConfig, target: DictConfig) -> Leakage | None:
    """Compare the splits of two runs on one data set.

    Args:
        source: `data` config of a finished run, whose weights or answers are used.
        target: `data` config of the run to be trained.

    Returns:
        The first option by which `source` was trained on held-out images of `target`; None without leakage.
    """
    files = OmegaConf.select(target, "detected.pictures")
    if files is not None and files == OmegaConf.select(source, "detected.pictures"):
        return None  # The same files in the same splits.
    for split, (options, sizes) in _SPLIT_OPTIONS.items():
        if any(OmegaConf.select(target, size) for size in sizes):
            for key in options:
                source_value, value = OmegaConf.select(source, key), OmegaConf.select(target, key)
                # Validation images are the first of one stratified order: a larger set contains a smaller one.
                contains = key == "val_size" and source_value is not None and source_value > value
                if source_value != value and not contains:
                    return Leakage(split, key, source_value, value)
    return None


def is_same_data_set(source: DictConfig, target: DictConfig) -> bool:
    """Return whether two `data` configs name one data set, or image folders with the same classes."""
    return all(OmegaConf.select(source, key) == OmegaConf.select(target, key) for key in _DATA_SET_OPTIONS)
