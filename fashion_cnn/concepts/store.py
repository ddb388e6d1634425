"""The concepts of a run, in its own directory: a file each, and the background that they were learned against."""

import re
import zlib
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fashion_cnn.concepts.concept import Background, Concept
from fashion_cnn.errors import UserError
from fashion_cnn.runs import Run

_BACKGROUND = "background.npz"


class Concepts:
    """What a run was taught. network: the identity of its network; concepts of another one are refused by UserError."""

    def __init__(self, run: Run, network: str) -> None:
        self._folder = run.concepts
        self._network = network

    def all(self) -> list[Concept]:
        """The concepts, by name."""
        found = [self._read(path) for path in self._folder.glob("concept-*.npz")]
        return sorted(found, key=lambda concept: concept.name)

    def direction(self, name: str) -> Tensor:
        """The unit vector `(D,)` that embeddings are the more of a concept the further they point along it.

        Raises UserError where there is none of this name.
        """
        background = self._known_background
        for concept in self._known:
            if concept.name == name and background is not None:
                return functional.normalize(background.whitener @ concept.direction, dim=0)
        raise UserError(f"concept={name}: there is no such concept. There are: {self._names()}.")

    def _names(self) -> str:
        return ", ".join(concept.name for concept in self._known) or "none"

    def recognise(self, embeddings: Tensor) -> list[list[tuple[str, float]]]:
        """The concepts that each of `(N, D)` embeddings is over the threshold of, with their scores, the best first."""
        background = self._known_background
        if not self._known or background is None:
            return [[] for _ in embeddings]
        whitened = background.whiten(embeddings)
        scores = torch.stack([concept.scores(whitened) for concept in self._known], dim=1)
        found = []
        for row in scores.tolist():
            named = [(one.name, score) for one, score in zip(self._known, row, strict=True) if score > one.threshold]
            found.append(sorted(named, key=lambda pair: -pair[1]))
        return found

    def load(self) -> None:
        """Have all in memory now, so that nothing can fail later. Raises UserError."""
        _ = self._known, self._known_background

    @cached_property
    def _known(self) -> list[Concept]:
        return self.all()

    @cached_property
    def _known_background(self) -> Background | None:
        return self.background()

    def background(self) -> Background | None:
        """What they were learned against; None before the first."""
        path = self._folder / _BACKGROUND
        if not path.exists():
            return None
        parts = ("mean", "whitener", "others")
        stored = self._load(path, needed=parts)
        return Background(*(torch.from_numpy(stored[name]) for name in parts))

    def save_background(self, background: Background) -> None:
        self._write(_BACKGROUND, {name: value.numpy() for name, value in vars(background).items()})

    def save(self, concept: Concept) -> bool:
        """Write a concept down; whether it takes the place of one of the same name."""
        there = (self._folder / _file_of(concept.name)).exists()
        described = {**asdict(concept), "direction": concept.direction.numpy()}
        if concept.recognised is None:
            del described["recognised"]
        self._write(_file_of(concept.name), described)
        return there

    def remove(self, name: str) -> None:
        """Forget a concept. Raises UserError where there is none of this name."""
        try:
            (self._folder / _file_of(name)).unlink()
        except FileNotFoundError:
            raise UserError(f"remove={name}: there is no such concept. There are: {self._names()}.") from None

    def _read(self, path: Path) -> Concept:
        stored = self._load(path, needed=("name", "direction", "threshold", "false_alarms", "examples"))
        return Concept(
            name=str(stored["name"]),
            direction=torch.from_numpy(stored["direction"]),
            threshold=float(stored["threshold"]),
            false_alarms=float(stored["false_alarms"]),
            examples=int(stored["examples"]),
            recognised=int(stored["recognised"]) if "recognised" in stored else None,
        )

    def _load(
        self, path: Path, *, needed: Sequence[str]
    ) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
        try:
            with np.load(path) as stored:
                values = dict(stored)
            if missing := [name for name in ("network", *needed) if name not in values]:
                raise ValueError(f"it holds no {missing[0]}")
        except (OSError, ValueError, TypeError, EOFError, BadZipFile, zlib.error) as error:
            raise UserError(f"{path} is damaged ({error}): delete it, and teach its concept again.") from error
        if str(values["network"]) != self._network:
            raise UserError(
                f"{path} was taught to another network than the one that lies in {self._folder.parent} now: delete "
                f"{self._folder}, and teach it again."
            )
        return values

    def _write(self, name: str, values: dict[str, object]) -> None:
        self._folder.mkdir(exist_ok=True)
        partial = self._folder / f".{name}"
        with partial.open("wb") as file:
            np.savez(file, network=self._network, **values)  # type: ignore[arg-type]
        partial.replace(self._folder / name)


def _file_of(name: str) -> str:
    """A file name for any name; two names never share one."""
    readable = re.sub(r"[^\w]+", "-", name.lower(), flags=re.ASCII).strip("-")[:40]
    return f"concept-{readable}-{sha256(name.encode()).hexdigest()[:8]}.npz"
