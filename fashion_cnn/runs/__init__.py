"""Run directories: what they hold, where they lie and how each one stands. `python -m fashion_cnn.runs` lists them."""

from fashion_cnn.runs.files import as_typed, remove_abandoned, write_whole
from fashion_cnn.runs.finding import (
    STUDY_FILE,
    choose_directory,
    find_all,
    find_finished,
    find_measured,
    find_several,
    find_unfinished,
    newest_weights,
)
from fashion_cnn.runs.run import Run, State

__all__ = [
    "STUDY_FILE",
    "Run",
    "State",
    "as_typed",
    "choose_directory",
    "find_all",
    "find_finished",
    "find_measured",
    "find_several",
    "find_unfinished",
    "newest_weights",
    "remove_abandoned",
    "write_whole",
]
