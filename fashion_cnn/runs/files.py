"""A run's settings and figures as its files hold them, and what is said where one of them is damaged."""

import json
import os
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fashion_cnn.errors import UserError

# In C where PyYAML was built so, as its wheels are: each run of a long list is looked at.
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# Seconds after which what nobody writes to was left by a process that was killed.
_ABANDONED = 24 * 3600


class DamagedRunError(UserError):
    """A file of a run that was half copied, say, or written on a full disk."""

    def __init__(self, file: Path, reason: str, remedy: str) -> None:
        super().__init__(f"{file} is damaged ({reason}): {remedy}.")
        self.file = file
        self.reason = reason


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
    """What `config.yaml` holds. Raises DamagedRunError."""
    check_settings(file)
    try:
        settings = OmegaConf.load(file)
    except OmegaConfBaseException as error:
        raise _damaged_settings(file, str(error).partition("\n")[0]) from error
    assert isinstance(settings, DictConfig)
    return settings


def _damaged_settings(file: Path, reason: str) -> DamagedRunError:
    return DamagedRunError(file, reason, "take it from a copy of the run, or train again")


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
