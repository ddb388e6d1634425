"""Print a table of all runs: `python -m fashion_cnn.runs`."""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from omegaconf.errors import OmegaConfBaseException

from fashion_cnn.cli.main import run_command
from fashion_cnn.cli.options import check_choice
from fashion_cnn.errors import UserError, printable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from omegaconf import DictConfig

    from fashion_cnn.runs.run import Run

# Metrics of the CSV, by their names in results.json.
_METRICS = ("test/accuracy", "val/accuracy", "train/accuracy", "gap/accuracy", "val/loss", "best_epoch", "seconds")
# Minimum width of the terminal for a column of settings; in a narrower one they are printed below the run.
_MIN_WIDTH_FOR_SETTINGS = 110
# Maximum length of a path that is not folded, and of the reason of a failure, in characters.
_MAX_PATH = 48
_MAX_REASON = 300
_NUMBER = re.compile(r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)")


class _Row(NamedTuple):
    """A run in the list.

    Attributes:
        path: its directory, relative to the folder of the runs.
        state: its state.
        reason: the reason of a failure, or the damaged file; empty otherwise.
        typed: the overrides that it was started with.
        settings: all settings that affect its results.
        results: its `results.json`.
    """

    path: str
    state: str
    reason: str
    typed: dict[str, str]
    settings: Mapping[str, object]
    results: dict[str, Any]

    @property
    def outcome(self) -> str:
        """The verdict of a finished run, else its state."""
        return str(self.results.get("verdict", self.state)) if self.state == "finished" else self.state

    def name_shows(self, setting: str, value: object) -> bool:
        """Return whether the directory's name contains a setting with its value, as the names of a sweep's jobs do."""
        return f"_{setting.rpartition('.')[2]}-{value}_" in f"_{Path(self.path).name}_"


def _list(config: DictConfig) -> None:
    from fashion_cnn.runs.finding import list_runs

    check_choice(config, "format", ("table", "csv"))
    runs = list_runs(Path(config.runs_dir))
    if not runs:
        raise UserError(f"There are no runs in {Path(config.runs_dir).resolve()}: give another runs_dir=DIR.")
    rows = [_read(run, os.path.relpath(run.path, config.runs_dir)) for run in runs]
    rows = [row for _, members in _group_jobs(rows) for row in members]
    (_print_csv if config.format == "csv" else _print_table)(rows, _differing_names(rows))


def _read(run: Run, path: str) -> _Row:
    from fashion_cnn.analysis.settings import checkpoint_settings, is_setting, run_settings
    from fashion_cnn.runs.overrides import affects_training, override_key

    if damage := run.damage:
        return _Row(path, run.state, f"{damage.file.name}: {damage.reason}", {}, {}, {})
    state, _, reason = run.describe_state().partition(" (")
    if state == "empty":
        return _Row(path, state, "", {}, {}, {})
    config = run.config()
    typed = {
        key: override.partition("=")[2] or "removed"
        for override in config.get("overrides") or []
        if is_setting(key := override_key(override)) and affects_training(override)
    }
    try:
        settings = run_settings(config) | checkpoint_settings(config)
    except OmegaConfBaseException as error:  # A reference to a key that is missing, or to another program's resolver.
        return _Row(path, state, str(error).partition("\n")[0], typed, {}, run.results())
    return _Row(path, state, reason.removesuffix(")"), typed, settings, run.results())


def _differing_names(rows: Sequence[_Row]) -> list[str]:
    """List the overrides that differ between runs, then the settings that differ between runs of equal overrides."""
    readable = [row for row in rows if row.settings]
    names = [name for name in _differing([row.typed for row in readable]) if _has_effect(name, readable)]
    groups: dict[tuple[str | None, ...], list[Mapping[str, object]]] = {}
    for row in readable:
        groups.setdefault(tuple(row.typed.get(name) for name in names), []).append(row.settings)
    return [*dict.fromkeys([*names, *(name for group in groups.values() for name in _differing(group))])]


def _has_effect(name: str, rows: Sequence[_Row]) -> bool:
    """Return whether an override has an effect: it has none if the runs without it have the same value by default."""
    held = [{key: value for key, value in row.settings.items() if f"{key}.".startswith(f"{name}.")} for row in rows]
    return not held[0] or any(settings != held[0] for settings in held)


def _differing(choices: Sequence[Mapping[str, object]]) -> list[str]:
    names = dict.fromkeys(name for choice in choices for name in choice)
    return [name for name in names if len({choice.get(name) for choice in choices}) > 1]


def _print_table(rows: Sequence[_Row], differing: Sequence[str]) -> None:
    from fashion_cnn.runs.overrides import round_value
    from fashion_cnn.terminal import print_table, print_text, table_console

    is_wide = table_console().width >= _MIN_WIDTH_FOR_SETTINGS
    headings = ["run", "settings that differ"] if is_wide else ["run, and the settings that differ"]
    common = {name: value for row in rows if row.settings for name, value in row.typed.items() if name not in differing}
    if common and len(rows) > 1:
        settings = (f"{name}={round_value(value)}" for name, value in common.items())
        print_text(" ".join(["Settings of all runs:", *settings]), indent="  ")
    cells = _table_cells(rows, differing, is_wide=is_wide)
    numbers = ("val", "test", "gap", "minutes")
    headings += ["outcome", *numbers]
    # Leave out metrics that no run has, such as those of the test set.
    kept = [
        column for column, name in enumerate(headings) if name not in numbers or any(cell[column] for cell in cells)
    ]
    # The paths stay whole, for copying.
    longest = max(len(line) for cell in cells for line in cell[0].splitlines()[:1])
    print_table(
        [headings[column] for column in kept],
        [[cell[column] for column in kept] for cell in cells],
        right=numbers,
        optional=("minutes", "test"),
        least_widths={headings[0]: min(longest, _MAX_PATH)},
        hint="format=csv has all.",
    )
    shown_headings = [headings[column] for column in kept]
    if accuracies := [name for name in ("val", "test") if name in shown_headings]:
        gap = " gap: accuracy on the train probe minus val, in points." if "gap" in shown_headings else ""
        print_text(f"{', '.join(accuracies)}: accuracy in %.{gap}")


def _table_cells(rows: Sequence[_Row], differing: Sequence[str], *, is_wide: bool) -> list[list[str]]:
    """Write the cells of each row of the table: path, settings that differ, outcome and metrics.

    Args:
        rows: the runs.
        differing: names of the settings that differ.
        is_wide: whether the settings have a cell of their own, not further lines in that of the path.
    """
    from fashion_cnn.runs.overrides import round_value, short_names

    # Where no override tells runs apart, the settings do.
    untyped = [name for name in differing if not any(name in row.typed for row in rows)]
    names = short_names(differing)

    def cells_of(
        path: str, settings: Mapping[str, object], outcome: str, results: dict[str, Any], reason: str
    ) -> list[str]:
        parts = [f"{names[name]}={round_value(value)}" for name, value in settings.items()]
        lines = [" ".join(parts)] if parts else []
        if reason:
            lines.append(reason[:_MAX_REASON])
        indent = " " * (len(path) - len(path.lstrip()) + 2)
        text = [path, "\n".join(lines)] if is_wide else ["\n".join([path, *(f"{indent}{line}" for line in lines)])]
        return [*text, outcome, *_format_metrics(results)]

    cells = []
    for folder, members in _group_jobs(rows):
        shown = [
            {
                name: value
                for name, value in (row.typed | {n: row.settings[n] for n in untyped if n in row.settings}).items()
                if name in differing
            }
            for row in members
        ]
        if folder is None:
            cells.append(cells_of(members[0].path, shown[0], members[0].outcome, members[0].results, members[0].reason))
            continue
        # A damaged run has no settings.
        known = [settings for settings in shown if settings] or [{}]
        shared = {name: value for name, value in known[0].items() if all(s.get(name) == value for s in known)}
        cells.append(cells_of(f"{folder}/", shared, f"{len(members)} runs", {}, ""))
        for row, settings in zip(members, shown, strict=True):
            own = {
                name: value
                for name, value in settings.items()
                if name not in shared and not row.name_shows(name, value)
            }
            cells.append(cells_of(f"  {Path(row.path).name}", own, row.outcome, row.results, row.reason))
    return cells


def _group_jobs(rows: Sequence[_Row]) -> list[tuple[str | None, list[_Row]]]:
    """Group the jobs of each sweep and the trials of each search below their folder; every other run is by itself.

    Returns:
        The folder, None for a run by itself, and its runs, in the order of the first run of each. Jobs, which may have
        run at the same time, are in the order of their names.
    """
    from fashion_cnn.runs.finding import run_id
    from fashion_cnn.runs.run import STUDIES_FOLDER

    folders = [Path(row.path).parent for row in rows]
    # The folder of a sweep is named after a time, as that of a run is.
    has_jobs = [run_id(folder) != folder.name or folder.parent.name == STUDIES_FOLDER for folder in folders]
    jobs = Counter(folder for folder, job in zip(folders, has_jobs, strict=True) if job)
    groups: dict[str, tuple[str | None, list[_Row]]] = {}
    for row, folder in zip(rows, folders, strict=True):
        key, heading = (str(folder), str(folder)) if jobs[folder] > 1 else (row.path, None)
        groups.setdefault(key, (heading, []))[1].append(row)
    return [(heading, sorted(members, key=_name_key)) for heading, members in groups.values()]


def _name_key(row: _Row) -> list[str | float]:
    """Return a key that sorts names by the numbers in them, such as `lr-0.1_seed-2` before `lr-0.1_seed-10`."""
    parts = _NUMBER.split(Path(row.path).name)
    return [float(part) if position % 2 else part for position, part in enumerate(parts)]


def _format_metrics(results: Mapping[str, Any]) -> list[str]:
    accuracies = [f"{results[name] * 100:.2f}" if name in results else "" for name in ("val/accuracy", "test/accuracy")]
    gap = f"{results['gap/accuracy'] * 100:+.2f}" if "gap/accuracy" in results else ""
    return [*accuracies, gap, f"{results['seconds'] / 60:.1f}" if "seconds" in results else ""]


def _print_csv(rows: Sequence[_Row], differing: Sequence[str]) -> None:
    from fashion_cnn.runs.files import format_csv

    lines: list[list[Any]] = [["run", "state", "reason", "verdict", *_METRICS, *differing]]
    for row in rows:
        results = [row.results.get(name) for name in ("verdict", *_METRICS)]
        settings = [row.typed.get(name, row.settings.get(name)) for name in differing]
        lines.append([row.path, row.state, row.reason, *results, *settings])
    text = format_csv(lines)
    print(printable(text) if sys.stdout.isatty() else text, end="")


def main() -> None:
    """Run the command."""
    run_command("runs", _list)


if __name__ == "__main__":
    main()
