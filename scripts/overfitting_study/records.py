"""Records of the study: one compressed file in the repository, and the lines that have been added to it since."""

import json
import lzma
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from fashion_cnn.errors import UserError
from fashion_cnn.runs.files import open_atomically

SCRIPTS = Path(__file__).resolve().parent.parent
RECORDS = SCRIPTS / "verdict_records.jsonl.xz"


def read_records(added: Path | None = None) -> list[dict[str, Any]]:
    """Read the records of the repository, and those in the file `added`.

    Raises:
        UserError: if the records cannot be read.
    """
    records: list[dict[str, Any]] = []
    if RECORDS.exists():
        try:
            lines = lzma.decompress(RECORDS.read_bytes()).decode().splitlines()
        except (lzma.LZMAError, UnicodeDecodeError) as error:
            raise UserError(f"{RECORDS} is damaged ({error}): restore it with 'git checkout {RECORDS}'.") from error
        records += map(json.loads, lines)
    if added is not None and added.exists():
        for line in added.read_text().splitlines():
            with suppress(json.JSONDecodeError):  # A stopped process may have left half a line.
                records.append(json.loads(line))
    newest = {job_key(record): record for record in records}
    return [newest[key] for key in sorted(newest)]


def job_key(record: dict[str, Any]) -> tuple[int, str, int]:
    """Key of the job of a record, see `Job.key`."""
    return record["base"], record["arm"], record["seed"]


def append_record(added: Path, record: dict[str, Any]) -> None:
    """Append a record to a file of `read_records`."""
    with added.open("a") as file:
        # A stopped process may have left half a line, which must not damage this one. Blank lines are ignored.
        file.write(f"\n{json.dumps(record)}\n")


def write_records(records: Iterable[dict[str, Any]]) -> None:
    """Replace the compressed file by `records`."""
    text = "".join(json.dumps(record, separators=(",", ":")) + "\n" for record in records)
    with open_atomically(RECORDS) as file:
        file.write(lzma.compress(text.encode(), preset=9))
