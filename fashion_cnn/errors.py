"""Errors that end a command with a message, and helpers for the wording of messages."""

import difflib
import errno
import importlib.util
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

# Remedy for each error of a disk.
_DISK_REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EFBIG: "raise the limit of file sizes (ulimit -f)",
    errno.EROFS: "make it writable",
    errno.EACCES: "change its permissions",
    errno.EPERM: "change its permissions",
    errno.EIO: "check the disk",
}
# Error number in a message of LanceDB, such as `(os error 28)`, or of Arrow, such as `[errno 28]`.
_ERROR_NUMBER = re.compile(r"\b(?:os error|errno) (\d+)", re.IGNORECASE)


# Control characters but tab and line feed, marks that reverse the direction of text, and parts of damaged characters.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """Escape the control characters in a text from a file, which a terminal would obey."""
    return _CONTROL.sub(lambda control: ascii(control[0])[1:-1], text)


# Environment variable with the name of the program that starts the commands, which processes that it starts inherit.
PROGRAM_VARIABLE = "FASHION_CNN_PROGRAM"
# A command as messages, files and documents write it. The module of the dashboard is in a package.
_COMMAND = re.compile(r"\bpython -m fashion_cnn(?:\.(?:analysis\.)?(\w+))?")


def as_typed(text: str) -> str:
    """Write the commands in a text in the form that the user types: `fashion-cnn train` if that program was started."""
    program = os.environ.get(PROGRAM_VARIABLE)
    if not program:
        return text
    return _COMMAND.sub(lambda command: f"{program} {command[1]}" if command[1] else program, text)


class UserError(ValueError):
    """A mistake in a config, a file or a command line.

    The commands print the message without a traceback. Its control characters are escaped, and commands in it have the
    form that the user types.

    Attributes:
        status: exit status of the command.
    """

    def __init__(self, message: str, *, status: int = 1) -> None:
        super().__init__(as_typed(printable(message)))
        self.status = status


class OmissionsError(UserError):
    """A command has done its work but left out a part of its input, such as unreadable pictures: exit status 3."""

    def __init__(self, message: str) -> None:
        super().__init__(message, status=3)


class LockedError(UserError):
    """Another process holds a lock."""


class Pruned(Exception):  # noqa: N818 # not an error
    """A hyperparameter search ended a training that was worse than others."""


class Interrupted(KeyboardInterrupt):
    """The user or the system stopped the command. The message says how to continue.

    Attributes:
        status: exit status of the command.
    """

    def __init__(self, message: str, status: int = 130) -> None:
        super().__init__(as_typed(message))
        self.status = status


def causes_of(error: BaseException | None) -> Iterator[BaseException]:
    """Yield the error and its chain of causes, each once.

    OmegaConf makes the chain cyclic when a debugger or a coverage tool traces the program.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__


def unusable(error: OSError, path: str | os.PathLike[str], instead: str = "choose another directory") -> UserError:
    """Describe an error of writing a file or a folder.

    Args:
        error: the error; the file that it names may be a temporary one.
        path: the place to name.
        instead: what to do where the place cannot be mended.
    """
    remedy = f"{_DISK_REMEDIES[error.errno]}, or " if error.errno in _DISK_REMEDIES else ""
    return UserError(f"{path} cannot be used ({f'{error.strerror or error}'.lower()}): {remedy}{instead}.")


def disk_error(error: BaseException, path: str | os.PathLike[str] | None = None) -> UserError | None:
    """Describe an error of the disk, such as a full one or one that is read-only.

    Args:
        error: what a library raised: an OSError, or an error with the number of one in its message.
        path: the place to name if the error names no file.

    Returns:
        The message; None for any other error.
    """
    for cause in causes_of(error):
        number, file = _error_number(cause), _file_of(cause) or path
        if number in _DISK_REMEDIES and (file is not None or not isinstance(cause, PermissionError)):
            return unusable(OSError(number, os.strerror(number)), file or "The disk")
    return None


@contextmanager
def disk_errors_at(path: str | os.PathLike[str]) -> Iterator[None]:
    """Raise UserError for the errors of the disk in the block. They name `path` unless they name a file themselves."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if (refused := disk_error(error, path)) is not None:
            raise refused from error
        raise


def _file_of(error: BaseException) -> str | None:
    """The file that an error names; TensorBoard names it in bytes."""
    file = getattr(error, "filename", None)
    return os.fsdecode(file) if isinstance(file, str | bytes | os.PathLike) else None


def missing_file(error: BaseException, folder: Path) -> Path | None:
    """Return the file in `folder` whose absence caused the error, if that is the cause."""
    for cause in causes_of(error):
        file = _file_of(cause) if isinstance(cause, FileNotFoundError) else None
        if file and Path(file).absolute().is_relative_to(folder.absolute()):
            return Path(file)
    return None


def missing_data_root(root: Path, name: str | None = None) -> UserError:
    """Describe a folder of images that does not exist.

    Args:
        root: the option `data.root`.
        name: name of the data set that could be downloaded into it; None for a folder of pictures.
    """
    if name is None:
        return UserError(f"data.root={root} is no folder: give one with a sub-folder of pictures for each class.")
    return UserError(
        f"data.root={root} does not exist: correct it, or add data.download=true to download {name} into it."
    )


def _error_number(error: BaseException) -> int | None:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    in_message = _ERROR_NUMBER.search(str(error))
    return int(in_message[1]) if in_message else None


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Return " Did you mean …?" with the choices most similar to `word`, or an empty text.

    A choice is similar as a whole, or in the last part of its dotted key, as `optimizer.lr` to `lr`.
    """
    choices = list(choices)
    near = difflib.get_close_matches(word, choices, n=1, cutoff=0.6)
    near += [choice for choice in choices if choice.rpartition(".")[2] == word.rpartition(".")[2]]
    if not near:
        # Such as `trainer.max_epochs` for `epochs`.
        last = [choice.rpartition(".")[2] for choice in choices]
        nearest = difflib.get_close_matches(word.rpartition(".")[2], last, n=1, cutoff=0.7)
        near = [choice for choice, part in zip(choices, last, strict=True) if part in nearest]
    return f" Did you mean {' or '.join(dict.fromkeys(near))}?" if near else ""


def require(extra: str, *packages: str) -> None:
    """Raise UserError with the command that installs the optional extra `extra` if one of its packages is missing."""
    if missing := [package for package in packages if not _is_installed(package)]:
        raise UserError(f"This needs {', '.join(missing)}: {install_command(extra)}", status=1)


def install_command(extra: str) -> str:
    """Return the shell command that installs an optional extra into the environment of this Python."""
    checkout = Path(__file__).parents[1]
    if (checkout / ".venv").resolve() == Path(sys.prefix).resolve():
        return f"scripts/install {extra}"
    if (checkout / "pyproject.toml").is_file():
        return f"{sys.executable} -m pip install -c scripts/constraints.txt -e '.[{extra}]'"
    return f"{sys.executable} -m pip install 'fashion_cnn[{extra}]'"


def _is_installed(package: str) -> bool:
    """Return whether a package can be imported; a folder of its name, such as W&B's `wandb/`, is none."""
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


def pluralize(count: int, noun: str) -> str:
    """Return count and noun, such as `1 product` or `2,000 products`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
