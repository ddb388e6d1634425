"""Read and write the files of a run: its config and results, as this and older versions store them."""

import csv
import io
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fashion_cnn.errors import UserError

# The loader in C, which PyYAML's wheels contain, is much faster; listing runs loads the config of each.
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_CALLBACKS = "fashion_cnn.training.callbacks"
# Class paths in the configs and checkpoints of older versions, and their present paths.
MOVED_CLASSES = {
    "fashion_cnn.analysis.histograms.Histograms": "fashion_cnn.analysis.tensorboard.Histograms",
    "fashion_cnn.analysis.predictions.PredictionCollector": "fashion_cnn.analysis.monitor.PredictionCollector",
    "fashion_cnn.data.image_folder.ImageFolderDataModule": "fashion_cnn.data.folder.ImageFolderDataModule",
    "fashion_cnn.data.variation.RandomAffine": "fashion_cnn.data.augmentation.RandomAffine",
    "fashion_cnn.data.variation.RandomBlur": "fashion_cnn.data.augmentation.RandomBlur",
    "fashion_cnn.data.variation.RandomColour": "fashion_cnn.data.augmentation.RandomColour",
    "fashion_cnn.models.contrastive.SupervisedContrastive": "fashion_cnn.models.losses.SupervisedContrastive",
    "fashion_cnn.models.dropout.Dropout": "fashion_cnn.models.layers.Dropout",
    "fashion_cnn.models.muon.Muon": "fashion_cnn.models.optim.Muon",
    "fashion_cnn.models.schedules.constant": "fashion_cnn.models.optim.constant",
    "fashion_cnn.models.schedules.cosine": "fashion_cnn.models.optim.cosine",
    "fashion_cnn.models.schedules.linear": "fashion_cnn.models.optim.linear",
    "fashion_cnn.models.schedules.one_cycle": "fashion_cnn.models.optim.one_cycle",
    "fashion_cnn.models.wide_resnet.WideResNet": "fashion_cnn.models.resnet.WideResNet",
    "fashion_cnn.sweeps.start.SweepStart": "fashion_cnn.cli.multirun.SweepStart",
    "fashion_cnn.training.averaging.WarmedEMAWeightAveraging": f"{_CALLBACKS}.WarmedEMAWeightAveraging",
    "fashion_cnn.training.divergence.StopOnDivergence": f"{_CALLBACKS}.StopOnDivergence",
    "fashion_cnn.training.early_stopping.ResumableEarlyStopping": f"{_CALLBACKS}.ResumableEarlyStopping",
    "fashion_cnn.training.progress.EpochLines": f"{_CALLBACKS}.EpochLines",
    "fashion_cnn.training.progress.ProgressBar": f"{_CALLBACKS}.ProgressBar",
}
# Keys of the section `data` in the configs of older versions, and their present names.
_RENAMED_DATA_KEYS = {"found": "detected"}
# Unfinished files that were not written to for this long belong to no process.
_STALE_SECONDS = 24 * 3600


class DamagedRunError(UserError):
    """A file of a run cannot be read, such as one that was copied or written in part.

    Attributes:
        file: the damaged file.
        reason: what is wrong with it.
    """

    def __init__(self, file: Path, reason: str, remedy: str) -> None:
        super().__init__(f"{file} is damaged ({reason}): {remedy}.")
        self.file = file
        self.reason = reason


def update_class_paths(part: Any) -> Any:
    """Replace the class paths of older versions in a part of a config.

    Args:
        part: plain containers; in each mapping `_target_` names a class. Anything else is returned unchanged.

    Returns:
        Plain containers of the same content, with the class paths of `MOVED_CLASSES` replaced.
    """
    if isinstance(part, list):
        return [update_class_paths(value) for value in part]
    if not isinstance(part, Mapping):
        return part
    updated = {key: update_class_paths(value) for key, value in part.items()}
    if isinstance(path := updated.get("_target_"), str):
        updated["_target_"] = MOVED_CLASSES.get(path, path)
    return updated


def update_config(config: DictConfig) -> DictConfig:
    """Translate a training's config of an older version.

    Args:
        config: a whole config, as `conf/train.yaml` lists it.

    Returns:
        A copy with present class paths and keys, or the config itself where it has no others.
    """
    container = OmegaConf.to_container(config)
    current = update_class_paths(container)
    if isinstance(current.get("data"), dict):
        current["data"] = {_RENAMED_DATA_KEYS.get(key, key): value for key, value in current["data"].items()}
    if current == container:
        return config
    updated = OmegaConf.create(current)
    assert isinstance(updated, DictConfig)
    OmegaConf.set_struct(updated, OmegaConf.is_struct(config))
    return updated


def check_config(file: Path) -> None:
    """Raise DamagedRunError if `config.yaml` does not hold the complete config of a training."""
    try:
        config = yaml.load(file.read_text(), Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise _damaged_config(file, f"{error.problem}{line}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise _damaged_config(file, "it is no text") from error
    if not isinstance(config, dict) or "seed" not in config:
        raise _damaged_config(file, "settings are missing")


def read_config(file: Path) -> DictConfig:
    """Read `config.yaml`, with present class paths and keys. Raises DamagedRunError."""
    check_config(file)
    try:
        config = OmegaConf.load(file)
    except OmegaConfBaseException as error:
        raise _damaged_config(file, str(error).partition("\n")[0]) from error
    assert isinstance(config, DictConfig)
    return update_config(config)


def _damaged_config(file: Path, reason: str) -> DamagedRunError:
    return DamagedRunError(file, reason, "restore it from a copy of the run, or train again")


def dotted_items(config: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Walk a nested config in its order.

    Args:
        config: plain containers; lists are values.
        prefix: put before each key, such as `callbacks.best.`.

    Yields:
        The dotted key and the value of each entry, groups included, each before its own entries.
    """
    for key, value in config.items():
        yield f"{prefix}{key}", value
        if isinstance(value, Mapping):
            yield from dotted_items(value, f"{prefix}{key}.")


def read_results(file: Path) -> dict[str, Any]:
    """Read `results.json`; return `{}` if it does not exist. Raises DamagedRunError."""
    remedy = f"restore it from a copy, or write it again with python -m fashion_cnn.train resume={file.parent}"
    try:
        results = json.loads(file.read_text())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise DamagedRunError(file, str(error), remedy) from error
    if not isinstance(results, dict):
        raise DamagedRunError(file, "it holds no results", remedy)
    return results


def display_path(path: Path) -> Path:
    """Return the path relative to the working directory if it lies below, else the absolute path."""
    path = path.absolute()
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


@contextmanager
def open_atomically(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a file for writing that replaces `path` once the block ends without an error.

    After an error or a crash `path` holds what it held before.
    """
    # The name of `path` alone may have the maximum length.
    prefix = f".{path.name[:40]}-"
    with tempfile.NamedTemporaryFile(mode, dir=path.parent, prefix=prefix, suffix=".partial", delete=False) as file:
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.fchmod(file.fileno(), 0o644)
            Path(file.name).replace(path)
        finally:
            Path(file.name).unlink(missing_ok=True)


def create_folder(folder: Path, option: str) -> None:
    """Create a folder for output.

    Args:
        folder: the folder; its parents are created too.
        option: the option to change if the folder cannot be used, such as `out`.

    Raises:
        UserError: if files cannot be written into the folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}): choose another {option}=DIR.") from error


def format_csv(rows: Iterable[Iterable[Any]]) -> str:
    """Format rows as CSV text with Unix line endings."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write `content` to `path`, which holds the old content or the new one at any time."""
    with open_atomically(path, "w" if isinstance(content, str) else "wb") as file:
        file.write(content)


def write_json(path: Path, values: Any) -> None:
    """Write plain values as a JSON file, atomically."""
    write_atomically(path, json.dumps(values, indent=2) + "\n")


def remove_stale_files(folder: Path, pattern: str) -> None:
    """Remove the files and folders of `pattern` in `folder` that killed processes left unfinished a day ago."""
    for path in folder.glob(pattern):
        # Another process may remove it first.
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
