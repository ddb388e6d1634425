"""Checks of the files of a run before they are used: one may be damaged, or made to use up time and memory."""

import io
import math
import pickle
import pickletools
import re
import stat
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import yaml

from fashion_cnn.errors import UserError

# The loader in C, which PyYAML's wheels contain, is much faster; listing runs loads the config of each.
YAML_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# Limits of a config. Those of the presets have 5 KB, 250 nodes and 4 levels; each class of an image folder adds a node.
MAX_CONFIG_BYTES = 1_000_000
_MAX_NODES = 20_000
_MAX_LEVELS = 30
# Plain numbers of more characters take time to read; those of at most 18 digits have different hashes as keys.
_MAX_DIGITS, _MAX_KEY_DIGITS, _MAX_LONG_NUMBERS = 100, 18, 100
_NUMBER = re.compile(r"[-+.]?\d[\w:.+-]*")
_MAX_REFERENCES = 1000
# Largest number of nodes and characters that a config may have once its references are resolved.
_MAX_RESOLVED = 5_000_000
MAX_RESULTS_BYTES = 10_000_000
_MAX_NUMBER = 1e100
# Limits of the pickle in a checkpoint, without its tensors: one of a long training has 300 KB and 50,000 operations.
_MAX_PICKLE_BYTES, _MAX_OPERATIONS = 10_000_000, 1_000_000
_MAX_INTEGER = 2**64
# Callables that the pickle of a checkpoint may name; torch.load would also accept those that allocate any memory.
_CALLABLES = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_(tensor|tensor_v2|parameter)|"
    r"torch (Size|device|[a-z]+\d*|[A-Z][A-Za-z0-9]*Storage)"
)
# Start of a file in the format of torch before version 1.6: a pickle of the number that marks it.
_OLD_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
# Pickles after it: the version of the format, the system, the state dict, and the keys of its tensors.
_OLD_PICKLES = 4
# Types of the settings in a checkpoint.
_PLAIN_TYPES = (dict, list, tuple, str, int, float, bool, type(None))
# Entries of results.json that are numbers, beside the metrics, whose names contain a slash.
_NUMBERS = {
    *("seed", "epochs", "best_epoch", "train_images", "val_images", "parameters", "multiply_adds"),
    *("seconds", "teachers_seconds", "images_per_second"),
}
# References to other keys of the same config, such as ${data.root}. Everything else in ${} calls a resolver.
KEY_REFERENCE = re.compile(r"\$\{(\.*[\w.]+)\}")


class ConfigLoader(YAML_LOADER):  # type: ignore[misc,valid-type]
    """Loader that refuses the keys that OmegaConf refuses: repeated ones, and others than texts and numbers."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return a mapping. Raises ValueError if a key is repeated or is neither a text nor a number."""
        mapping: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        if len(mapping) < len(node.value):
            raise ValueError(f"it has a repeated key in line {node.start_mark.line + 1} or below")
        if wrong := [key for key in mapping if not isinstance(key, str | int | float)]:
            raise ValueError(f"it has the key {wrong[0]!r:.40}")
        return mapping


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


def read_regular(file: Path, max_bytes: int) -> bytes:
    """Read a file whole; a named pipe, from which reading could block for ever, is refused.

    Raises:
        FileNotFoundError: if it does not exist.
        ValueError: if it is no regular file, is larger than `max_bytes` or cannot be read; the message is the reason.
    """
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            raise ValueError("it is not a regular file")
        with file.open("rb") as opened:
            content = opened.read(max_bytes + 1)
    except NotADirectoryError as error:
        raise FileNotFoundError(error.errno, error.strerror, error.filename) from error
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ValueError(f"it cannot be read: {error.strerror}") from error
    if len(content) > max_bytes:
        raise ValueError(f"it is larger than {max_bytes / 1e6:g} MB")
    return content


def read_text(file: Path, max_bytes: int) -> str:
    """Read a text file in UTF-8, as `read_regular`."""
    try:
        return read_regular(file, max_bytes).decode()
    except UnicodeDecodeError as error:
        raise ValueError("it is no text") from error


def check_yaml(text: str) -> None:
    """Check the size of a config before it is loaded.

    Aliases are refused: few of them can stand for gigabytes, or contain themselves, and no config of a run has any.

    Raises:
        ValueError: if it has aliases, tags, long numbers, too many nodes, levels or references; the message is the
            reason.
        YAMLError: if it is not YAML.
    """
    nodes = level = long_numbers = references = 0
    for event in yaml.parse(text, Loader=YAML_LOADER):
        nodes += isinstance(event, yaml.NodeEvent)
        level += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if getattr(event, "anchor", None) is not None:
            raise ValueError(f"it has a YAML alias in line {event.start_mark.line + 1}")
        if getattr(event, "tag", None) is not None:
            raise ValueError(f"it has a YAML tag in line {event.start_mark.line + 1}")
        if isinstance(event, yaml.ScalarEvent):
            is_number = event.implicit[0] and _NUMBER.fullmatch(event.value) is not None
            long_numbers += is_number and len(event.value) > _MAX_KEY_DIGITS
            references += event.value.count("${")
            if is_number and len(event.value) > _MAX_DIGITS:
                raise ValueError(f"it has a number of {len(event.value):,} digits in line {event.start_mark.line + 1}")
        if long_numbers > _MAX_LONG_NUMBERS:
            raise ValueError(f"it has more than {_MAX_LONG_NUMBERS} numbers of over {_MAX_KEY_DIGITS} digits")
        if references > _MAX_REFERENCES:
            raise ValueError(f"it has more than {_MAX_REFERENCES:,} references")
        if nodes > _MAX_NODES:
            raise ValueError(f"it has more than {_MAX_NODES:,} entries")
        if level > _MAX_LEVELS:
            raise ValueError(f"it is nested more than {_MAX_LEVELS} levels deep")


def check_checkpoint(file: Path) -> None:
    """Check the archive and the pickle of a checkpoint before torch loads it.

    Few bytes of a pickle can make `torch.load` allocate memory of any size, or compare keys of equal hashes for hours.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if it is no archive of `torch.save`, or its pickle is not one of a training; the message is the
            reason.
    """
    if file.exists() and not file.is_file():
        raise ValueError("it is not a regular file")
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            pickles = [entry for entry in entries if entry.filename.partition("/")[2] == "data.pkl"]
            unpacked = sum(entry.file_size for entry in entries)
            if len(pickles) != 1 or len({entry.filename for entry in entries}) != len(entries):
                raise ValueError("it is no archive of torch.save")
            # torch.save compresses nothing.
            if unpacked > file.stat().st_size or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise ValueError(f"{file.stat().st_size:,} bytes unpack to {unpacked:,}")
            if pickles[0].file_size > _MAX_PICKLE_BYTES:
                raise ValueError(f"its settings are larger than {_MAX_PICKLE_BYTES / 1e6:g} MB")
            content = archive.read(pickles[0])
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise ValueError(str(error) or "it is damaged") from error
    _check_pickle(io.BytesIO(content))


def check_weights(file: Path) -> None:
    """Check a file of published weights before torch loads it.

    Args:
        file: an archive, as `check_checkpoint` expects, or a file in the format of torch before version 1.6, in which
            torchvision still publishes some weights.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if it is neither, or its pickles are not those of a state dict; the message is the reason.
    """
    if zipfile.is_zipfile(file) or not file.is_file():
        check_checkpoint(file)
        return
    with file.open("rb") as opened:
        if opened.read(len(_OLD_MAGIC)) != _OLD_MAGIC:
            raise ValueError("it is no file of torch.save")
        content = io.BytesIO(opened.read(_MAX_PICKLE_BYTES))
    for _ in range(_OLD_PICKLES):
        _check_pickle(content)


@contextmanager
def unpickling_errors() -> Iterator[None]:
    """Raise ValueError for errors of torch's unpickler, whose text tells how to execute the code in a file."""
    try:
        yield
    except pickle.UnpicklingError as error:
        raise ValueError("its pickle holds other things than tensors and plain values") from error


def _check_pickle(content: IO[bytes]) -> None:
    """Check the next pickle in `content`. Raises ValueError."""
    try:
        _check_operations(content)
    except (IndexError, KeyError) as error:
        raise ValueError("its pickle is damaged") from error


def _check_operations(content: IO[bytes]) -> None:
    """Check each operation of a pickle, with the kinds of the objects on the unpickler's stack."""
    stack: list[str] = []
    marks: list[int] = []
    memo: dict[int, str] = {}
    value: Any
    for number, (operation, value, _) in enumerate(pickletools.genops(content)):
        name = operation.name
        if number >= _MAX_OPERATIONS:
            raise ValueError(f"its pickle has more than {_MAX_OPERATIONS:,} operations")
        if name == "GLOBAL" and not _CALLABLES.fullmatch(value):
            raise ValueError(f"its pickle calls {value}")
        if isinstance(value, int) and abs(value) > _MAX_INTEGER:
            raise ValueError("its pickle has a huge number")
        if name in ("LONG_BINPUT", "BINPUT"):
            memo[value] = stack[-1]
        elif name in ("LONG_BINGET", "BINGET"):
            stack.append(memo[value])
        elif name == "MARK":
            marks.append(len(stack))
        elif name in ("TUPLE", "APPENDS", "SETITEMS"):
            items = stack[(start := marks.pop()) :]
            del stack[start:]
            if name == "TUPLE":
                stack.append("TUPLE")
            elif name == "SETITEMS":
                _check_keys(items[::2])
        elif name == "SETITEM":
            _check_keys(stack[-2:-1])
            del stack[-2:]
        elif name == "REDUCE":
            arguments = stack.pop()
            # With arguments it would hash keys of any type.
            if stack.pop() == "collections OrderedDict" and arguments != "EMPTY_TUPLE":
                raise ValueError("its pickle makes a dict of a list")
            stack.append(name)
        elif name in ("APPEND", "BUILD", "POP"):
            stack.pop()
        elif name not in ("PROTO", "STOP"):
            if (taken := len(operation.stack_before)) > 0:
                del stack[-taken:]
            stack += [value if name == "GLOBAL" else name] * len(operation.stack_after)


def _check_keys(kinds: Iterable[str]) -> None:
    # Numbers of any size and tuples can have equal hashes.
    texts = {"BINUNICODE", "SHORT_BINSTRING"}
    if not {*kinds} <= texts | {"BININT", "BININT1", "BININT2", "NEWTRUE", "NEWFALSE", "NONE"}:
        raise ValueError("its pickle has keys that are neither texts nor small numbers")


def check_containers(settings: Any, source: Path) -> None:
    """Check type and size of the settings in a checkpoint, whose containers may hold each other many times.

    Only the built-in types themselves are accepted: an instance of `OrderedDict` can hide its content from a check.

    Raises:
        DamagedRunError: if they have another type, or too many nodes or levels.
    """
    nodes, pending = 0, [(settings, 0)]
    while pending:
        part, level = pending.pop()
        nodes += 1
        if nodes > _MAX_NODES or level > _MAX_LEVELS:
            raise DamagedRunError(source, "its settings are too large", "take it from a copy of the run")
        if type(part) not in _PLAIN_TYPES:
            reason = f"its settings hold a {type(part).__name__}"
            raise DamagedRunError(source, reason, "take it from a copy of the run")
        if type(part) is dict:
            pending += ((value, level + 1) for pair in part.items() for value in pair)
        elif type(part) in (list, tuple):
            pending += ((value, level + 1) for value in part)


def check_references(config: Mapping[Any, Any]) -> None:
    """Check that references such as `${data.root}` neither expand a config to gigabytes nor refer to themselves.

    Args:
        config: plain containers, with the references unresolved.

    Raises:
        ValueError: if they do; the message is the reason.
    """
    sizes: dict[tuple[str, ...], int | None] = {}

    def size(part: Any, path: tuple[str, ...]) -> int:
        if path in sizes:
            known = sizes[path]
            if known is None:
                raise ValueError(f"{'.'.join(path)} refers to itself")
            return known
        sizes[path] = None
        total = 1
        for key, value in _items(part):
            total += size(value, (*path, key))
        if isinstance(part, str):
            total += len(part)
            for name in _references(part):
                target = _resolve(name, path)
                total += size(_select(config, target), target)
        if total > _MAX_RESOLVED:
            raise ValueError(f"the references in {'.'.join(path)} make it too large")
        sizes[path] = total
        return total

    size(config, ())


def _items(part: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(part, Mapping):
        yield from ((str(key), value) for key, value in part.items())
    elif isinstance(part, list):
        yield from ((str(position), value) for position, value in enumerate(part))


def _references(text: str) -> list[str]:
    """Dotted names that a text refers to; any word of an expression with a resolver may be one."""
    if "${" not in text:
        return []
    return re.findall(r"\.*[\w.]+", text) if "${" in KEY_REFERENCE.sub("", text) else KEY_REFERENCE.findall(text)


def _resolve(name: str, path: tuple[str, ...]) -> tuple[str, ...]:
    """Return the path that a reference in the value at `path` names; each leading dot is one level up."""
    level = len(name) - len(name.lstrip("."))
    return (*(path[:-level] if level else ()), *filter(None, name.split(".")))


def _select(config: Any, path: tuple[str, ...]) -> Any:
    part = config
    for name in path:
        if isinstance(part, Mapping):
            part = part.get(name)
        else:
            part = part[int(name)] if isinstance(part, list) and name.isdecimal() and int(name) < len(part) else None
    return part


def check_results(results: Any) -> dict[str, Any]:
    """Return the content of results.json if it has the types that other commands rely on.

    Metrics that are null become NaN: JSON has no other value for NaN and infinity. Accuracies are always finite.

    Raises:
        ValueError: if an entry has another type; the message is the reason.
    """
    if not isinstance(results, dict) or not results:
        raise ValueError("it holds no results")
    checked = dict(results)
    for name, value in results.items():
        is_bounded = name in _NUMBERS or name.endswith("/accuracy")
        if value is None and "/" in name and not is_bounded:
            checked[name] = math.nan
        elif ("/" in name or is_bounded) and not (
            _is_number(value) and not (is_bounded and abs(value) == float("inf"))
        ):
            raise ValueError(f"{name} is {value!r:.40}, no number")
    return checked


def _is_number(value: Any) -> bool:
    """Return whether a value is a number that can be computed with; NaN and infinity are results of a diverged run."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and (not abs(value) > _MAX_NUMBER or value in (float("inf"), float("-inf")))
