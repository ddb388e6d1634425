"""Read and write the files of a run: its config and results, as this and older versions store them."""

import csv
import errno
import hashlib
import io
import json
import math
import os
import platform
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import IO, Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fashion_cnn.errors import LockedError, UserError, unusable
from fashion_cnn.runs.damage import (
    KEY_REFERENCE,
    MAX_CONFIG_BYTES,
    MAX_RESULTS_BYTES,
    ConfigLoader,
    DamagedRunError,
    check_references,
    check_results,
    check_yaml,
    read_text,
)

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
# Partial files that were not written to for this long belong to no process.
_STALE_SECONDS = 24 * 3600
# Errors of opening a link, a folder or a socket in place of a lock file.
_NO_FILE = (errno.ELOOP, errno.EISDIR, errno.ENXIO)
# Marks the partial files of this machine, whose locks are visible here on any file system.
_MACHINE = hashlib.sha256(platform.node().encode()).hexdigest()[:4]


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
    _parse_config(file)


def _parse_config(file: Path) -> str:
    """Return the text of `config.yaml`, which can be loaded safely. Raises FileNotFoundError or DamagedRunError."""
    try:
        text = read_text(file, MAX_CONFIG_BYTES)
        check_yaml(text)
        config = yaml.load(text, Loader=ConfigLoader)
        if not isinstance(config, dict) or not isinstance(config.get("seed"), int):
            raise ValueError("settings are missing")
        overrides = config.get("overrides") or []
        if not isinstance(overrides, list) or not all(isinstance(override, str) for override in overrides):
            raise ValueError("overrides is no list of texts")
        check_references(config)
        # Parsing takes longer than reading. References to keys alone are always expressions.
        if "${" in KEY_REFERENCE.sub("", text):
            OmegaConf.create(config)
    except yaml.MarkedYAMLError as error:
        line = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise _damaged_config(file, f"{error.problem}{line}") from error
    except yaml.YAMLError as error:
        raise _damaged_config(file, "it is no text") from error
    except RecursionError as error:
        raise _damaged_config(file, "its references form too long a chain") from error
    except (OmegaConfBaseException, ValueError, ArithmeticError) as error:
        raise _damaged_config(file, str(error).partition("\n")[0]) from error
    return text


def read_config(file: Path) -> DictConfig:
    """Read `config.yaml`, with present class paths and keys. Raises DamagedRunError."""
    try:
        config = OmegaConf.load(io.StringIO(_parse_config(file)))
    except FileNotFoundError as error:
        raise _damaged_config(file, "it is missing") from error
    except DamagedRunError:
        raise
    # OmegaConf's own loader also refuses repeated keys.
    except (OmegaConfBaseException, yaml.YAMLError, ValueError, ArithmeticError) as error:
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
        return check_results(json.loads(read_text(file, MAX_RESULTS_BYTES)))
    except FileNotFoundError:
        return {}
    except RecursionError as error:
        raise DamagedRunError(file, "it is nested too deep", remedy) from error
    except ValueError as error:
        raise DamagedRunError(file, str(error), remedy) from error


def display_path(path: Path) -> Path:
    """Return the path relative to the working directory if it lies below, else the absolute path."""
    path = path.absolute()
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


@contextmanager
def open_atomically(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a file for writing that replaces `path` once the block ends without an error.

    After an error or a crash `path` holds what it held before. What a killed process left of an earlier attempt is
    removed.
    """
    remove_partial_files(path.parent, path.name)
    try:
        descriptor, partial = _create_partial(path)
        try:
            with os.fdopen(descriptor, mode, encoding=None if "b" in mode else "utf-8") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
                partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        # An error of writing names no file, one of creating the partial file names that.
        if error.errno is not None and (error.filename is None or _partial_prefix(path.name) in str(error.filename)):
            error.filename = str(path)
        raise


def _create_partial(path: Path) -> tuple[int, Path]:
    """Create a file beside `path` and lock it, which tells other processes that it is in use."""
    while True:
        partial = path.with_name(f"{_partial_prefix(path.name)}{_MACHINE}{secrets.token_hex(4)}.partial")
        # The system applies the umask.
        descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        # Before it is locked, another process may take it for abandoned.
        if _lock(descriptor) and partial.exists():
            return descriptor, partial
        os.close(descriptor)


def _partial_prefix(name: str) -> str:
    # The name alone may have the maximum length.
    return f".{name[:40]}-"


def flock(file: int | IO[Any], *, shared: bool = False, wait: bool = False) -> None:
    """Lock an open file until it is closed.

    Args:
        file: the file, or its descriptor.
        shared: whether several processes may hold the lock.
        wait: whether to wait for the lock.

    Raises:
        BlockingIOError: if another process holds the lock.
        OSError: if the system (Windows) or the file system has no such locks.
    """
    if sys.platform == "win32":
        raise OSError(errno.ENOSYS, "no locks of open files")
    import fcntl

    fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))


def _lock(descriptor: int) -> bool:
    """Lock a file until it is closed or this process ends; return False if another process holds the lock."""
    try:
        flock(descriptor)
    except BlockingIOError:
        return False
    except OSError:  # The file system has no locks.
        pass
    return True


def remove_partial_files(folder: Path, name: str | None = None) -> None:
    """Remove what killed processes left of the files that they wrote with `open_atomically`.

    Args:
        folder: the folder of the files; it need not exist.
        name: name of one file; None for all.
    """
    prefix = "." if name is None else _partial_prefix(name)
    # Another process may remove a file first, or the folder may not be readable.
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(prefix) and entry.name.endswith(".partial") and entry.is_file():
                with suppress(OSError):
                    _remove_abandoned(Path(entry.path))


def _remove_abandoned(partial: Path) -> None:
    """Remove a partial file or a temporary folder unless a process may be writing it."""
    is_old = time.time() - partial.stat().st_mtime > _STALE_SECONDS
    mark = partial.stem.rpartition("-")[2]
    # On some network file systems the locks of other machines are not visible here.
    if not is_old and not (len(mark) == 12 and mark.startswith(_MACHINE)):
        return
    is_folder = partial.is_dir()
    descriptor = os.open(partial, os.O_RDONLY if is_folder else os.O_RDWR)
    try:
        try:
            flock(descriptor)
        except OSError as error:
            # Some network file systems lock no folders.
            if isinstance(error, BlockingIOError) or not is_old:
                raise
        shutil.rmtree(partial) if is_folder else partial.unlink()
    finally:
        os.close(descriptor)


@contextmanager
def temporary_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """Create a folder in `parent` for the block. What killed processes left of such folders is removed.

    Args:
        parent: an existing folder.
        prefix: start of the names of these folders, such as `.unchecked-`; it ends with a hyphen.

    Yields:
        The folder.
    """
    for abandoned in parent.glob(f"{prefix}*"):
        # Another process may remove it first.
        with suppress(OSError):
            _remove_abandoned(abandoned)
    folder, descriptor = _create_locked_folder(parent, prefix)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def _create_locked_folder(parent: Path, prefix: str) -> tuple[Path, int]:
    while True:
        folder = parent / f"{prefix}{_MACHINE}{secrets.token_hex(4)}"
        folder.mkdir(mode=0o700)
        # Before it is locked, another process may take it for abandoned.
        with suppress(FileNotFoundError):
            descriptor = os.open(folder, os.O_RDONLY)
            if _lock(descriptor) and folder.exists():
                return folder, descriptor
            os.close(descriptor)


def check_links(folder: Path, *names: str) -> None:
    """Check before writing into a folder of someone else that no link in it leads the files elsewhere.

    Args:
        folder: the directory of a run, a sweep or a catalogue, which may itself be reached through a link.
        names: the files and folders in it that are written; all by default. None of them need exist.

    Raises:
        UserError: if it holds a link that leads out of it.
    """
    root = Path(os.path.realpath(folder))
    for top in [root / name for name in names] or [root]:
        below = (Path(parent, name) for parent, *entries in os.walk(top) for name in chain(*entries))
        for path in filter(Path.is_symlink, chain([top], below)):
            # Unlike `resolve`, it accepts a link to itself.
            target = Path(os.path.realpath(path))
            if not target.is_relative_to(root):
                place, around = display_path(folder / path.relative_to(root)), display_path(folder)
                raise UserError(f"{place} is a link that leads out of {around}, to {target}: put a copy in its place.")


def create_folder(folder: Path, option: str | None) -> None:
    """Create a folder for output.

    Args:
        folder: the folder; its parents are created too.
        option: the option to change if the folder cannot be used, such as `out`; None for a folder in a run that
            exists.

    Raises:
        UserError: if files cannot be written into the folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        instead = f"choose another {option}=DIR" if option else "copy the run to another directory and use the copy"
        raise unusable(error, folder, instead) from error


@contextmanager
def lock_file(
    path: Path, busy: str, *, timeout: float = -1, instead: str = "choose another directory"
) -> Iterator[None]:
    """Hold the lock of a file, which is created with its folder if it is missing.

    Args:
        path: the file.
        busy: message if another process holds the lock for longer than `timeout`.
        timeout: seconds to wait; negative for any time.
        instead: what the user can do if the disk cannot be repaired.

    Raises:
        LockedError: if the lock is held.
        UserError: if the file cannot be created, or is a link or a folder.
    """
    from filelock import FileLock, Timeout

    try:
        lock = FileLock(path, timeout=timeout).acquire()
    except Timeout:
        raise LockedError(busy) from None
    except OSError as error:
        if error.errno in _NO_FILE:
            # Removed here, it could be the file that another process has just made in its place.
            raise UserError(f"{path} is not a regular file: delete it, and run the command again.") from error
        raise unusable(error, path.parent, instead) from error
    with lock:
        yield


def is_locked(path: Path) -> bool:
    """Return whether a process holds the lock of a file, see `lock_file`; a file that does not exist is not locked."""
    # filelock uses flock, too, but only exclusively and on files that the process may write: here readers share the
    # lock, so that none takes another for the holder, and need no write permission.
    try:
        # A named pipe would block without O_NONBLOCK.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with os.fdopen(descriptor) as file:
            flock(file, shared=True)
    except OSError as error:
        return isinstance(error, BlockingIOError)
    return False


def csv_cell(value: Any) -> Any:
    """Return a value for a CSV file: a text that spreadsheets would take for a formula gets an apostrophe in front.

    Carriage returns are escaped. Class names and errors may come from the files of someone else.
    """
    text = str(value)
    if "\r" in text:  # Python's writer does not quote it, and it would end the row.
        value = text = text.replace("\r", "\\r")
    if len(text) < 2 or not text.startswith(("=", "+", "-", "@", "\t")):
        return value
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return value


def format_csv(rows: Iterable[Iterable[Any]]) -> str:
    """Format rows as CSV text with Unix line endings and without formulas."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(map(csv_cell, row) for row in rows)
    return text.getvalue()


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write `content` to `path`, which holds the old content or the new one at any time."""
    with open_atomically(path, "w" if isinstance(content, str) else "wb") as file:
        file.write(content)


def replace_non_finite(value: Any) -> Any:
    """Replace NaN and infinity, which JSON does not have, by None in nested containers."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(name): replace_non_finite(inner) for name, inner in value.items()}
    return [replace_non_finite(inner) for inner in value] if isinstance(value, list | tuple) else value


def format_json(values: Any) -> str:
    """Format plain values as JSON, NaN and infinity as null."""
    return json.dumps(replace_non_finite(values), indent=2, allow_nan=False)


def write_json(path: Path, values: Any) -> None:
    """Write plain values as a JSON file, see `format_json`, atomically."""
    write_atomically(path, format_json(values) + "\n")
