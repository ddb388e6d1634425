"""Predictions on standard output: a table for people, JSON or CSV for programs."""

import csv
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from fashion_cnn.errors import printable
from fashion_cnn.inference.prediction import NONE_OF_THESE, Prediction
from fashion_cnn.runs.files import csv_cell
from fashion_cnn.terminal import wide_console

# Minimum number of files for a progress bar.
_MIN_FILES = 500


def print_table(predictions: Iterable[Prediction], top_k: int) -> None:
    """Print a table with a row for each readable picture.

    Args:
        predictions: the predictions, all of which are computed first.
        top_k: number of classes in each of them.
    """
    table = Table()
    table.add_column("file", overflow="fold")
    table.add_column("class", overflow="fold")
    table.add_column("probability", justify="right")
    if top_k > 1:
        table.add_column("next", overflow="fold")
    for prediction in predictions:
        if prediction.error is None:
            (name, probability), *others = prediction.classes
            label = f"{NONE_OF_THESE} (most like {name})" if prediction.none_of_these else name
            if prediction.concepts:
                concepts = ", ".join(f"{concept} (taught, score {score:.1f})" for concept, score in prediction.concepts)
                label = f"{concepts}; else {name}"
            cells = [_printable(prediction.path), label, f"{probability:.1%}"]
            if top_k > 1:
                cells.append(", ".join(f"{other} {share:.1%}" for other, share in others))
            table.add_row(*map(Text, cells))
    if table.rows:
        wide_console().print(table)


def print_json(predictions: Iterable[Prediction], top_k: int) -> None:
    """Print a JSON array, one line for each file, as soon as its prediction is there."""
    separator = "["
    for prediction in predictions:
        record = {
            "file": str(prediction.path),
            "answer": prediction.label,
            "classes": [{"class": name, "probability": round(share, 6)} for name, share in prediction.classes],
            "taught": [{"concept": name, "score": round(score, 3)} for name, score in prediction.concepts],
            "error": prediction.error,
        }
        line = json.dumps(record, ensure_ascii=False)
        if encodable(printable(line)) != line:
            line = json.dumps(record)
        print(f"{separator}\n{line}", end="")
        separator = ","
    print("\n]")


def print_csv(predictions: Iterable[Prediction], top_k: int) -> None:
    """Print a CSV table, one line for each file, as soon as its prediction is there."""
    columns = [f"{name}_{rank}" for rank in range(1, top_k + 1) for name in ("class", "probability")]
    writer = csv.DictWriter(sys.stdout, ["file", "answer", *columns, "error"], restval="", lineterminator="\n")
    writer.writeheader()
    for prediction in predictions:
        file = encodable(str(prediction.path)).replace("\r", "\\r")
        row = {"answer": prediction.label, "error": prediction.error}
        for rank, (name, probability) in enumerate(prediction.classes, start=1):
            row |= {f"class_{rank}": name, f"probability_{rank}": f"{probability:.6f}"}
        # Spreadsheets compute cells that begin like a formula; a path with `./` in front still names the file.
        row = {"file": file if csv_cell(file) == file else f"./{file}"} | {k: csv_cell(v) for k, v in row.items()}
        if sys.stdout.isatty():
            row = {key: value and printable(value) for key, value in row.items()}
        writer.writerow(row)


PRINTERS: dict[str, Callable[[Iterable[Prediction], int], None]] = {
    "table": print_table,
    "json": print_json,
    "csv": print_csv,
}


def _printable(path: Path) -> str:
    """Return the path with control characters escaped."""
    return encodable(printable(str(path)).replace("\n", "\\n").replace("\t", "\\t"))


def encodable(text: str) -> str:
    """Escape the characters of a text that standard output cannot encode, as in some file names."""
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def with_progress(predictions: Iterable[Prediction], total: int, output_format: str) -> Iterator[Prediction]:
    """Yield the predictions with a progress bar on stderr.

    There is none for few files, and none where the predictions themselves appear line by line on the same terminal.

    Args:
        predictions: the predictions.
        total: their number.
        output_format: a key of PRINTERS.
    """
    console = Console(stderr=True)
    visible = console.is_terminal and total >= _MIN_FILES and (output_format == "table" or not sys.stdout.isatty())
    columns = (TextColumn("pictures"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # Standard output is for the predictions alone.
    with Progress(*columns, console=console, transient=True, redirect_stdout=False, disable=not visible) as progress:
        yield from progress.track(predictions, total=total)
