"""Run directories: their files, states and listing. `python -m fashion_cnn.runs` prints a table of them."""

from fashion_cnn.runs.files import (
    check_links,
    create_folder,
    display_path,
    format_csv,
    format_json,
    replace_non_finite,
    temporary_folder,
    write_atomically,
    write_json,
)
from fashion_cnn.runs.finding import (
    common_folder,
    find_finished_run,
    find_finished_runs,
    find_run,
    find_runs,
    find_unfinished_run,
    list_runs,
    new_run,
    newest_weights,
)
from fashion_cnn.runs.run import STUDIES_FOLDER, STUDY_FILE, Run, State

__all__ = [
    "STUDIES_FOLDER",
    "STUDY_FILE",
    "Run",
    "State",
    "check_links",
    "common_folder",
    "create_folder",
    "display_path",
    "find_finished_run",
    "find_finished_runs",
    "find_run",
    "find_runs",
    "find_unfinished_run",
    "format_csv",
    "format_json",
    "list_runs",
    "new_run",
    "newest_weights",
    "replace_non_finite",
    "temporary_folder",
    "write_atomically",
    "write_json",
]
