"""Detection of held-out images that another run was trained on, by the settings and by hashes of the images.

Each run stores hashes of the images that its weights depend on: of its own training images, and of those of the runs
that it started from (`init_from`) or that were its teachers (`distillation`). Equal images have equal hashes, whichever
data module reads them.
"""

import hashlib
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf

from fashion_cnn.data import ImageDataModule, InMemoryDataset
from fashion_cnn.errors import UserError
from fashion_cnn.inference.network import load_data
from fashion_cnn.runs import Run, write_atomically

# 64-bit hashes of images.
Hashes = NDArray[np.uint64]
_IMAGES_PER_CHUNK = 10_000

# For each held-out split: the options that select its images, and those of which one is non-zero if it has images.
_SPLIT_OPTIONS = {
    "validation": (
        ("split_seed", "folds", "fold", "val_size", "val_share", "test_share"),
        ("val_size", "val_share", "detected.val_size", "folds"),
    ),
    "test": (("test_share", "split_seed"), ("test_share",)),
}
# Options that identify the data set. Images may have been added to a folder between two runs.
_DATA_SET_OPTIONS = ("_target_", "dataset", "detected.class_names")


class Leakage(NamedTuple):
    """Difference in an option of `data` by which another run was trained on held-out images of this run.

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
        source: `data` config of a finished run, whose weights or predictions are used.
        target: `data` config of the run to be trained.

    Returns:
        The first option by which `source` was trained on held-out images of `target`; None without leakage.
    """
    files = OmegaConf.select(target, "detected.pictures")
    if files is not None and files == OmegaConf.select(source, "detected.pictures"):
        return None  # Both runs have the same files in the same splits.
    for split, (options, sizes) in _SPLIT_OPTIONS.items():
        if any(OmegaConf.select(target, size) for size in sizes):
            for key in options:
                source_value, value = _option(source, key), _option(target, key)
                # Validation images are the first of one stratified order: a larger set contains a smaller one.
                contains = key == "val_size" and source_value is not None and source_value > value
                if source_value != value and not contains:
                    return Leakage(split, key, source_value, value)
    return None


def _option(settings: DictConfig, key: str) -> Any:
    """Value of an option of `data`. In cross-validation `fold` is 0 by default, and `val_size` has no effect."""
    value = OmegaConf.select(settings, key)
    if OmegaConf.select(settings, "folds"):
        return {"fold": value or 0, "val_size": None}.get(key, value)
    return value


def is_same_data_set(source: DictConfig, target: DictConfig) -> bool:
    """Return whether two `data` configs name one data set, or image folders with the same classes."""
    return all(OmegaConf.select(source, key) == OmegaConf.select(target, key) for key in _DATA_SET_OPTIONS)


def check_leakage(sources: Sequence[tuple[str, Run]], config: DictConfig, data: ImageDataModule) -> None:
    """Check that neither the given runs nor their ancestors were trained on held-out images of this run.

    Args:
        sources: runs whose weights or predictions are used, each with the option that names it.
        config: settings of the run to be trained.
        data: its data, with the training images loaded.

    Raises:
        UserError: if one of them was.
    """
    for option, source in sources:
        for run in _lineage(source):
            settings = run.config().data
            if is_same_data_set(settings, config.data) and (leakage := find_leakage(settings, config.data)):
                origin = "" if run is source else f" started from {run.path}, which"
                raise UserError(f"{option}={source.path}{origin} {leakage}. Use the same value.")
    known = [(option, source, hashes) for option, source in sources if (hashes := training_images(source)) is not None]
    for split, dataset in _held_out_splits(data) if known else ():
        held_out = _hash_images(dataset)
        for option, source, trained_on in known:
            seen = held_out[np.isin(held_out, trained_on)]
            # An image may occur twice in a data set. Training on the other copy is not leakage.
            if len(seen) and (leaked := int((~np.isin(seen, _hashes_in_training(data))).sum())):
                raise UserError(
                    f"{option}={source.path} was trained on {leaked:,} of the {len(held_out):,} images of this run's "
                    f"{split} set, itself or in a run that it started from: hold out the same images in all of them, "
                    "or start from another run."
                )


def training_images(run: Run, descendants: tuple[Path, ...] = ()) -> Hashes | None:
    """Return the hashes of the images that the weights of a run and of its ancestors were trained on.

    For a run of an older version they are computed from its data set.

    Args:
        run: the run.
        descendants: paths of the runs that were derived from it, none of which is visited again in a cycle.

    Returns:
        The hashes `(N,)`, ascending; None if a data set or an ancestor no longer exists.

    Raises:
        UserError: if the file is damaged.
    """
    if run.training_images_file.exists():
        try:
            return _read_hashes(run.training_images_file)
        except ValueError as error:
            raise UserError(
                f"{run.training_images_file} is damaged: delete it, and its content is computed anew."
            ) from error
    if run.path in descendants or not run.config_file.exists():
        return None
    try:
        own = _hash_images(load_data(run).train_split)
    except (UserError, OSError):
        return None
    return _union(own, [training_images(parent, (*descendants, run.path)) for parent in _parents(run.config())])


def _read_hashes(file: Path) -> Hashes:
    if not file.is_file():  # A named pipe could block for ever.
        raise ValueError("it is not a regular file")
    try:
        # np.load leaves a damaged file open if it opens the file itself.
        with file.open("rb") as opened:
            hashes: Hashes = np.load(opened, allow_pickle=False)
        kind, dimensions = hashes.dtype, hashes.ndim
    except Exception as error:  # NumPy and zipfile raise errors of many types
        raise ValueError(str(error)) from error
    if kind != np.uint64 or dimensions != 1:
        raise ValueError(f"{kind} of {dimensions} dimensions")
    return hashes


def write_training_images(run: Run, config: DictConfig, data: ImageDataModule) -> None:
    """Store the hashes of the images that a new run is trained on, unless those of a parent are unknown.

    Args:
        run: the run, whose directory exists.
        config: its settings.
        data: its data, with the training images loaded.
    """
    hashes = _union(_hash_images(data.train_split), [training_images(parent) for parent in _parents(config)])
    if hashes is not None:
        content = io.BytesIO()
        np.save(content, hashes, allow_pickle=False)
        write_atomically(run.training_images_file, content.getvalue())


def _union(own: Hashes, inherited: Sequence[Hashes | None]) -> Hashes | None:
    """Return all hashes, ascending and each once; None if the hashes of an ancestor are unknown."""
    known = [hashes for hashes in inherited if hashes is not None]
    return np.unique(np.concatenate([own, *known])) if len(known) == len(inherited) else None


def _parents(config: DictConfig) -> list[Run]:
    """The runs whose weights or predictions a run uses; their directories may be gone."""
    teachers = OmegaConf.select(config, "distillation.teachers") or ()
    paths = [config.get("init_from"), *([teachers] if isinstance(teachers, str) else teachers)]
    return [Run(Path(path)) for path in paths if path is not None]


def _lineage(source: Run) -> list[Run]:
    """The run and its ancestors whose settings can be read."""
    lineage = {source.path: source}
    waiting = [source]
    while waiting:
        for parent in _parents(waiting.pop().config()):
            if parent.path not in lineage and parent.config_file.exists() and parent.damage is None:
                lineage[parent.path] = parent
                waiting.append(parent)
    return list(lineage.values())


def _held_out_splits(data: ImageDataModule) -> Iterator[tuple[str, InMemoryDataset]]:
    if data.val_size:
        yield "validation", data.val_split
    if data.has_test:
        data.setup("test")
        yield "test", data.test_split


def _hashes_in_training(data: ImageDataModule) -> Hashes:
    """Hashes of all images that are neither validation nor test images, whatever `train_fraction` is."""
    images, targets = data.read(train=True)
    members = InMemoryDataset(images, targets, data.train_positions(targets))
    training = Counter(_hash_images(members).tolist()) - Counter(_hash_images(data.val_split).tolist())
    return np.array([*training], dtype=np.uint64)


def _hash_images(dataset: InMemoryDataset) -> Hashes:
    """Hash the bytes of each image; `(N,)`, in the order of the data set."""
    digests = [
        hashlib.blake2b(image, digest_size=8).digest()
        for indices in dataset.indices.split(_IMAGES_PER_CHUNK)
        for image in dataset.images_at(indices).flatten(1).numpy()
    ]
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)
