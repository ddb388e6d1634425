"""Origin of recorded runs: the settings and the code that made them, compared with the present ones."""

import hashlib
import re
import subprocess
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

Status = Literal["same", "other", "unknown"]
# Files and folders of fashion_cnn that a training's metrics depend on. Its options are in the hash of the settings.
TRAINING_CODE = ("analysis/", "data/", "inference/network.py", "metrics/", "models/", "pictures/", "training/")
LEGEND = """\
settings: those of the record, compared with what its command composes now; unknown: recorded without a hash.
code: the modules of fashion_cnn that a training depends on, compared with the present files (other: its commits).
not counted: records of this row with other settings, and older ones of the same seed."""


def hash_code(repository: Path) -> str:
    """Return a hash of the present files of TRAINING_CODE, whether they are committed or not."""
    blobs = {}
    for path in (repository / "fashion_cnn").rglob("*.py"):
        content = path.read_bytes()
        # Git's own hash of a file, which can be looked up for any commit.
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False)
        blobs[path.relative_to(repository).as_posix()] = blob.hexdigest()
    return _combine(blobs)


@cache
def hash_committed_code(repository: Path, commit: str) -> str | None:
    """Return what `hash_code` returned at a commit; None if the commit is not in this clone."""
    tree = git(repository, "ls-tree", "-r", "--full-tree", commit, "fashion_cnn/")
    entries = [line.partition("\t") for line in tree.splitlines()]
    return _combine({name: entry.split()[2] for entry, _, name in entries}) if entries else None


def _combine(blobs: dict[str, str]) -> str:
    used = tuple(f"fashion_cnn/{part}" for part in TRAINING_CODE)
    names = sorted(name for name in blobs if name.startswith(used) and name.endswith(".py"))
    return hashlib.sha256("".join(f"{name} {blobs[name]}\n" for name in names).encode()).hexdigest()[:12]


def git(repository: Path, *arguments: str) -> str:
    """Return the output of a git command, empty if it fails."""
    answer = subprocess.run(["git", *arguments], cwd=repository, capture_output=True, text=True, check=False)
    return answer.stdout.strip()


def compare_settings(record: dict[str, Any], present: str | None) -> Status:
    """Compare the hash of a record's settings with the present one; None if its command cannot be composed now."""
    if "recipe" not in record:
        return "unknown"
    return "same" if record["recipe"] == present else "other"


def compare_code(record: dict[str, Any], present: str, repository: Path) -> Status:
    """Compare the code that made a record with the present code.

    Args:
        record: a line of the records. Without a hash of its code, the commit that it names is looked up.
        present: hash of the present code.
        repository: the clone.

    Returns:
        `unknown` if the record has no hash, and names no commit of this clone or one with changed files.
    """
    code = record.get("code")
    # "abc1234 with trainer.max_epochs=19" is the code of a commit with another setting.
    if code is None and (commit := re.match(r"[0-9a-f]{7,40}(?= with |$)", record.get("commit", ""))):
        code = hash_committed_code(repository, commit[0])
    if code is None:
        return "unknown"
    return "same" if code == present else "other"


def describe_origin(
    counted: Sequence[dict[str, Any]],
    left_out: Sequence[dict[str, Any]],
    *,
    present_settings: Callable[[str], str | None],
    present_code: str,
    repository: Path,
) -> dict[str, str]:
    """Describe the origin of a row's records.

    Args:
        counted: the records in the row's means.
        left_out: all other records of the row.
        present_settings: returns the hash of the settings that a recorded command composes now, or None.
        present_code: hash of the present code.
        repository: the clone.

    Returns:
        The cells of the columns `settings`, `code` and `not counted`; see LEGEND.
    """
    seeds = [record["results"]["seed"] for record in counted]
    settings = [compare_settings(record, present_settings(record["command"])) for record in counted]
    code = [compare_code(record, present_code, repository) for record in counted]
    commits = [record["commit"] for record, status in zip(counted, code, strict=True) if status != "same"]
    names = f" ({', '.join(dict.fromkeys(commits))})" if commits else ""
    others = [f"seed {record['results']['seed']} of {record['commit']}" for record in left_out]
    return {
        "settings": _by_status(settings, seeds),
        "code": _by_status(code, seeds) + names,
        "not counted": ", ".join(others) or "none",
    }


def _by_status(statuses: Sequence[Status], seeds: Sequence[int]) -> str:
    """Return the status, with its seeds if they have different ones: `same: seeds 2, 3; unknown: seeds 0, 1`."""
    groups: dict[Status, list[str]] = {}
    for status, seed in zip(statuses, seeds, strict=True):
        groups.setdefault(status, []).append(str(seed))
    if len(groups) == 1:
        return statuses[0]
    return "; ".join(f"{status}: seeds {', '.join(names)}" for status, names in groups.items())
