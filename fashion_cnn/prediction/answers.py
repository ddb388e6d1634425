"""What is said of a picture."""

from dataclasses import dataclass
from pathlib import Path

NONE_OF_THESE = "none of these"


@dataclass(frozen=True)
class Answer:
    """What a network says of one file.

    classes: the likeliest with their probabilities, the likeliest first. none_of_these: whether even that one is too
    unlikely to be named. error: why the file could not be read; then there are no classes.
    """

    path: Path
    classes: tuple[tuple[str, float], ...] = ()
    none_of_these: bool = False
    error: str | None = None

    @property
    def said(self) -> str | None:
        """The class, or that it is none of these; None of a file that could not be read."""
        if self.error is not None:
            return None
        return NONE_OF_THESE if self.none_of_these else self.classes[0][0]
