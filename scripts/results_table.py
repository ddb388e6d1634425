"""Markdown table of recorded runs."""

from typing import Any

from fashion_cnn.analysis.comparison import Group

# Metrics that are averaged only over runs without other load on the machine.
TIMES = ("seconds", "wall_seconds", "images_per_second")
BESIDE, RESUMED = ", beside ", ", resumed"
# Key in results.json, factor and number of digits of each column.
COLUMNS = {
    "test %": ("test/accuracy", 100, 2),
    "flip-averaged %": ("test_flip/accuracy", 100, 2),
    "val %": ("val/accuracy", 100, 2),
    "train probe %": ("train/accuracy", 100, 2),
    "gap to test, points": ("gap_test/accuracy", 100, 2),
    "running acc. %": ("running/accuracy", 100, 2),
    "running loss": ("running/loss", 1, 4),
    "test loss": ("test/loss", 1, 4),
    "minutes of training": ("seconds", 1 / 60, 1),
    "seconds in all": ("wall_seconds", 1, 1),
}
ABLATION_COLUMNS = {
    "val %": ("val/accuracy", 100, 2),
    "val, flip-averaged %": ("val_flip/accuracy", 100, 2),
    "train probe %": ("train/accuracy", 100, 2),
    "images/s": ("images_per_second", 1, 0),
    "seconds in all": ("wall_seconds", 1, 1),
}


def print_table(
    rows: dict[str, list[dict[str, Any]]],
    columns: dict[str, tuple[str, float, int]],
    notes: dict[str, dict[str, str]],
) -> None:
    """Print mean ± standard deviation over the records of each row.

    Args:
        rows: the records of each row.
        columns: key in results.json, factor and number of digits by heading.
        notes: further cells of each row by heading, the same headings for all.
    """
    headings = [*next(iter(notes.values()), {})]
    print(f"| {' | '.join(['', 'seeds', *columns, *headings])} |")
    print(f"| {' | '.join(['---', *['---:'] * (len(columns) + 1), *['---'] * len(headings)])} |")
    for row, records in rows.items():
        all_runs, timed = (
            Group({}, tuple(record["results"] for record in part)) for part in (records, without_other_load(records))
        )
        metrics = [(timed if name in TIMES else all_runs).metric(name) for name, _, _ in columns.values()]
        cells = [
            metric.format(scale, digits) if metric else "not measured"
            for metric, (_, scale, digits) in zip(metrics, columns.values(), strict=True)
        ]
        print(f"| {' | '.join([row, str(len(records)), *cells, *notes[row].values()])} |")


def without_other_load(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the records of runs that were neither resumed nor trained beside other work."""
    return [record for record in records if not any(word in record["machine"] for word in (BESIDE, RESUMED))]
