"""Answers on standard output: a table for people, JSON or CSV for programs; the rest of what is said on stderr."""

import csv
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import zip_longest
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from fashion_cnn.inference.predictor import NONE_OF_THESE, Answer
from fashion_cnn.terminal import wide_console

# Fewer files are answered before a bar says anything.
_MANY = 500


def print_table(answers: Iterable[Answer], top_k: int) -> None:
    """A row a picture, once all are answered."""
    table = Table()
    table.add_column("file", overflow="fold")
    table.add_column("class", overflow="fold")
    table.add_column("probability", justify="right")
    if top_k > 1:
        table.add_column("next", overflow="fold")
    for answer in answers:
        if answer.error is None:
            (likeliest, probability), *others = answer.classes
            said = f"{NONE_OF_THESE} (most like {likeliest})" if answer.none_of_these else likeliest
            if answer.taught:
                taught = ", ".join(f"{name} (taught, score {score:.1f})" for name, score in answer.taught)
                said = f"{taught}; else {likeliest}"
            following = ", ".join(f"{name} {share:.1%}" for name, share in others)
            cells = [_shown(answer.path), said, f"{probability:.1%}", *([following] if top_k > 1 else [])]
            table.add_row(*map(Text, cells))
    if table.rows:
        wide_console().print(table)


def print_json(answers: Iterable[Answer], top_k: int) -> None:
    """A JSON array, one line a file, each as soon as it is known."""
    before = "["
    for answer in answers:
        record = {
            "file": str(answer.path),
            "answer": answer.said,
            "classes": [{"class": name, "probability": round(share, 6)} for name, share in answer.classes],
            "taught": [{"concept": name, "score": round(score, 3)} for name, score in answer.taught],
            "error": answer.error,
        }
        line = json.dumps(record, ensure_ascii=False)
        if encodable(line) != line:
            line = json.dumps(record)
        print(f"{before}\n{line}", end="")
        before = ","
    print("\n]")


def print_csv(answers: Iterable[Answer], top_k: int) -> None:
    """A heading and a line a file, each as soon as it is known."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    places = range(1, top_k + 1)
    writer.writerow(["file", "answer", *(f"{name}_{n}" for n in places for name in ("class", "probability")), "error"])
    for answer in answers:
        classes = [cell for name, share in answer.classes for cell in (name, f"{share:.6f}")]
        padded = [cell for cell, _ in zip_longest(classes, range(2 * top_k), fillvalue="")]
        writer.writerow([encodable(str(answer.path)), answer.said or "", *padded, answer.error or ""])


PRINTERS: dict[str, Callable[[Iterable[Answer], int], None]] = {
    "table": print_table,
    "json": print_json,
    "csv": print_csv,
}


def _shown(path: Path) -> str:
    """The path with nothing in it that a terminal would obey."""
    return encodable("".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in str(path)))


def encodable(text: str) -> str:
    """Escaped where a file's name is no text in the encoding of standard output."""
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def with_progress(answers: Iterable[Answer], total: int, form: str) -> Iterator[Answer]:
    """The same answers, with a bar on stderr where many are waited for and no lines come by on the same terminal."""
    console = Console(stderr=True)
    wanted = console.is_terminal and total >= _MANY and (form == "table" or not sys.stdout.isatty())
    columns = (TextColumn("pictures"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # Standard output is for the answers alone.
    with Progress(*columns, console=console, transient=True, redirect_stdout=False, disable=not wanted) as progress:
        yield from progress.track(answers, total=total)
