"""What is said of a picture."""

from dataclasses import dataclass
from pathlib import Path

NONE_OF_THESE = "none of these"


@dataclass(frozen=True)
class Answer:
    """What a network says of one file.

    classes: the likeliest with their probabilities, the likeliest first. none_of_these: whether even that one is too
    unlikely to be named. taught: the concepts that it was taught and recognises here, with their scores, the best first
    (see `Concept.scores`). error: why the file could not be read; then there are no classes.
    """

    path: Path
    classes: tuple[tuple[str, float], ...] = ()
    none_of_these: bool = False
    taught: tuple[tuple[str, float], ...] = ()
    error: str | None = None

    @property
    def said(self) -> str | None:
        """The concept or the class, or that it is none of these; None of a file that could not be read."""
        if self.error is not None:
            return None
        if self.taught:
            return self.taught[0][0]
        return NONE_OF_THESE if self.none_of_these else self.classes[0][0]
