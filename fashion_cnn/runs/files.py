"""Files of a run: its settings and results, as this and older versions store them; errors where a file is damaged."""

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fashion_cnn.errors import UserError

# In C where PyYAML was built so, as its wheels are: each run of a long list is looked at.
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_CALLBACKS = "fashion_cnn.training.callbacks"
# Class paths in the configs and checkpoints of older versions, and where these classes are now.
MOVED = {
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
# Seconds after which what nobody writes to was left by a process that was killed.
_ABANDONED = 24 * 3600


class DamagedRunError(UserError):
    """A file of a run that was half copied, say, or written on a full disk."""

    def __init__(self, file: Path, reason: str, remedy: str) -> None:
        super().__init__(f"{file} is damaged ({reason}): {remedy}.")
        self.file = file
        self.reason = reason


def current_targets(part: Any) -> Any:
    """A part of a config, its moved classes named as they are now.

    Args:
        part: plain containers; in each mapping `_target_` names a class. Anything else is returned as it is.

    Returns:
        Plain containers of the same content, with the class paths of `MOVED` replaced.
    """
    if isinstance(part, Mapping):
        return {
            key: MOVED.get(value, value) if key == "_target_" and isinstance(value, str) else current_targets(value)
            for key, value in part.items()
        }
    return [current_targets(value) for value in part] if isinstance(part, list) else part


def update_config(config: DictConfig) -> DictConfig:
    """Translate a training's config of an older version.

    Args:
        config: a whole config, as `conf/train.yaml` lists it.

    Returns:
        A copy with present class paths and keys, or the config itself where it has no others.
    """
    container = OmegaConf.to_container(config)
    current = current_targets(container)
    if isinstance(current.get("data"), dict):
        current["data"] = {_RENAMED_DATA_KEYS.get(key, key): value for key, value in current["data"].items()}
    if current == container:
        return config
    updated = OmegaConf.create(current)
    assert isinstance(updated, DictConfig)
    OmegaConf.set_struct(updated, OmegaConf.is_struct(config))
    return updated


def check_settings(file: Path) -> None:
    """Raise DamagedRunError where `config.yaml` does not hold a training's settings to their end."""
    try:
        settings = yaml.load(file.read_text(), Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise _damaged_settings(file, f"{error.problem}{line}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise _damaged_settings(file, "it is no text") from error
    if not isinstance(settings, dict) or "seed" not in settings:
        raise _damaged_settings(file, "it holds no settings, or not all")


def read_settings(file: Path) -> DictConfig:
    """The settings that `config.yaml` holds, with present class paths and keys. Raises DamagedRunError."""
    check_settings(file)
    try:
        settings = OmegaConf.load(file)
    except OmegaConfBaseException as error:
        raise _damaged_settings(file, str(error).partition("\n")[0]) from error
    assert isinstance(settings, DictConfig)
    return update_config(settings)


def _damaged_settings(file: Path, reason: str) -> DamagedRunError:
    return DamagedRunError(file, reason, "take it from a copy of the run, or train again")


def dotted_items(config: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Walk a nested config in its order.

    Args:
        config: plain containers; lists are values.
        prefix: put before each key, such as `callbacks.best.`.

    Yields:
        The dotted key and the value of each entry, groups too, each before its own entries.
    """
    for key, value in config.items():
        yield f"{prefix}{key}", value
        if isinstance(value, Mapping):
            yield from dotted_items(value, f"{prefix}{key}.")


def read_figures(file: Path) -> dict[str, Any]:
    """What `results.json` holds, `{}` where there is none. Raises DamagedRunError."""
    remedy = f"take it from a copy of the run, or measure anew with python -m fashion_cnn.train resume={file.parent}"
    try:
        figures = json.loads(file.read_text())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise DamagedRunError(file, str(error), remedy) from error
    if not isinstance(figures, dict):
        raise DamagedRunError(file, "it holds no figures", remedy)
    return figures


def as_typed(path: Path) -> Path:
    """The path as a person would type it: from here where it lies below, else in full."""
    path = path.absolute()
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def write_whole(path: Path, content: str | bytes) -> None:
    """Write `content` so that `path` holds the old content or the new, never half of it."""
    # A name may be as long as the system takes it.
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}-")
    with os.fdopen(handle, "w" if isinstance(content, str) else "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
        os.fchmod(file.fileno(), 0o644)
    Path(partial).replace(path)


def remove_abandoned(folder: Path, pattern: str) -> None:
    """Remove the unfinished files and folders of `pattern` that processes which were killed left in `folder`."""
    for left in folder.glob(pattern):
        # Another process may clear up too.
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > _ABANDONED:
                shutil.rmtree(left) if left.is_dir() else left.unlink()
