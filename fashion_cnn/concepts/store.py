"""Concepts in the directory of their run: one file per concept, and the background that they were learned with."""

import re
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fashion_cnn.concepts.concept import Background, Concept, with_common_margin
from fashion_cnn.errors import UserError, disk_error
from fashion_cnn.metrics.predictions import check_unpacked_size
from fashion_cnn.pictures import PREPARATION_VERSION
from fashion_cnn.runs import Run
from fashion_cnn.runs.files import open_atomically

_BACKGROUND_FILE = "background.npz"


class Concepts:
    """Concepts that were taught to the network of a run. Files are read at first use.

    Args:
        run: the run.
        network: `TrainedNetwork.identity`; reading concepts of another network raises UserError.

    Attributes:
        network: that identity.
    """

    def __init__(self, run: Run, network: str) -> None:
        self._folder = run.concepts
        self.network = network

    @cached_property
    def all(self) -> list[Concept]:
        """All concepts, sorted by name, with thresholds that keep the false positive rate of all together.

        Raises:
            UserError: if a file is damaged, or its pictures were prepared in another way than those of today.
        """
        read = sorted((self._read(path) for path in self._folder.glob("concept-*.npz")), key=lambda pair: pair[0].name)
        if outdated := [concept.name for concept, version in read if version != PREPARATION_VERSION]:
            raise UserError(
                f"{self._folder}: an older version prepared the example pictures of {', '.join(outdated)} in another "
                f"way. Teach again with name='{outdated[0]}' images=PATH, or delete with remove='{outdated[0]}'."
            )
        concepts = [concept for concept, _ in read]
        size = None if self.background is None else len(self.background.mean)
        for concept in concepts:
            if size is not None and concept.direction.shape != (size,):
                error = ValueError(f"its direction has {len(concept.direction)} values, those of the others {size}")
                raise _damaged(self._folder / _file_name(concept.name), error)
        return concepts if self.background is None else with_common_margin(concepts, self.background)

    @cached_property
    def background(self) -> Background | None:
        """Background that the concepts were learned with; None before the first concept."""
        path = self._folder / _BACKGROUND_FILE
        if not path.exists():
            return None
        parts = ("mean", "whitener", "others")
        arrays = self._load_arrays(path, required=parts)
        try:
            mean, whitener, others = (_vectors(arrays[name]) for name in parts)
            size = len(mean)
            if mean.ndim != 1 or whitener.shape != (size, size) or others.ndim != 2 or others.shape[1] != size:
                raise ValueError("its arrays do not fit together")
            if not len(others):
                raise ValueError("it has no known images")
        except ValueError as error:
            raise _damaged(path, error) from error
        return Background(mean, whitener, others)

    def load(self) -> None:
        """Read all files now, so that no later call can fail. Raises UserError."""
        _ = self.all, self.background

    def direction(self, name: str) -> Tensor:
        """Return the unit vector `(D,)` of embeddings along which the score of a concept grows.

        Raises:
            UserError: if there is no concept of this name.
        """
        background = self.background
        for concept in self.all:
            if concept.name == name and background is not None:
                return functional.normalize(background.whitener @ concept.direction, dim=0)
        raise UserError(f"concept={name}: there is no such concept. There are: {self._names()}.")

    def recognise(self, embeddings: Tensor) -> list[list[tuple[str, float]]]:
        """Return for each of `(N, D)` embeddings the concepts above their threshold with scores, the best first."""
        background = self.background
        if not self.all or background is None:
            return [[] for _ in embeddings]
        if embeddings.shape[1:] != background.mean.shape:
            error = ValueError(f"the network has embeddings of {embeddings.shape[1]} values")
            raise _damaged(self._folder / _BACKGROUND_FILE, error)
        whitened = background.whiten(embeddings)
        scores = torch.stack([concept.scores(whitened) for concept in self.all], dim=1)
        above = [
            [(concept.name, score) for concept, score in zip(self.all, row, strict=True) if score > concept.threshold]
            for row in scores.tolist()
        ]
        return [sorted(pairs, key=lambda pair: -pair[1]) for pairs in above]

    def save_background(self, background: Background) -> None:
        """Store the background."""
        self._write(_BACKGROUND_FILE, {name: value.numpy() for name, value in vars(background).items()})
        self.background = background

    def save(self, concept: Concept) -> bool:
        """Store a concept, and return whether it replaced one of the same name."""
        replaced = (self._folder / _file_name(concept.name)).exists()
        values = {**asdict(concept), "direction": concept.direction.numpy(), "preparation": PREPARATION_VERSION}
        if concept.recognised is None:
            del values["recognised"]
        self._write(_file_name(concept.name), values)
        self.__dict__.pop("all", None)
        return replaced

    def remove(self, name: str) -> None:
        """Delete a concept, and with the last one the background, so that the next is learned with a new one.

        Raises:
            UserError: if there is none of this name.
        """
        try:
            (self._folder / _file_name(name)).unlink()
        except FileNotFoundError:
            raise UserError(f"remove={name}: there is no such concept. There are: {self._names()}.") from None
        self.__dict__.pop("all", None)
        if not any(self._folder.glob("concept-*.npz")):
            (self._folder / _BACKGROUND_FILE).unlink(missing_ok=True)
            self.__dict__.pop("background", None)

    def _names(self) -> str:
        return ", ".join(concept.name for concept in self.all) or "none"

    def _read(self, path: Path) -> tuple[Concept, int]:
        """Read a concept and the version of the preparation of its pictures, 0 before it was stored."""
        arrays = self._load_arrays(path, required=("name", "direction", "threshold", "false_alarms", "examples"))
        try:
            direction = _vectors(arrays["direction"])
            if direction.ndim != 1:
                raise ValueError("its direction is no vector")
            concept = Concept(
                name=str(arrays["name"]),
                direction=direction,
                threshold=float(arrays["threshold"]),
                false_alarms=float(arrays["false_alarms"]),
                examples=int(arrays["examples"]),
                recognised=int(arrays["recognised"]) if "recognised" in arrays else None,
            )
            return concept, int(arrays.get("preparation", 0))
        except (ValueError, TypeError, ArithmeticError) as error:
            raise _damaged(path, error) from error

    def _load_arrays(self, path: Path, *, required: Sequence[str]) -> dict[str, Any]:
        try:
            if path.exists() and not path.is_file():
                raise ValueError("it is not a regular file")
            with path.open("rb") as file, np.load(file) as stored:
                check_unpacked_size(stored.zip, path)
                if missing := [name for name in ("network", *required) if name not in stored]:
                    raise ValueError(f"it holds no {missing[0]}")
                expected = ("network", *required, "recognised", "preparation")
                arrays = {name: stored[name] for name in expected if name in stored}
        except Exception as error:  # NumPy, zipfile and zlib raise errors of many types
            raise _damaged(path, error) from error
        if str(arrays["network"]) != self.network:
            raise UserError(
                f"{path} was taught to another network than that of {self._folder.parent}: delete {self._folder}, and "
                "teach its concepts again."
            )
        return arrays

    def _write(self, name: str, values: dict[str, object]) -> None:
        self._folder.mkdir(exist_ok=True)
        with open_atomically(self._folder / name) as file:
            np.savez(file, network=self.network, **values)  # type: ignore[arg-type]


def _vectors(array: Any) -> Tensor:
    """Return an array as a tensor. Raises ValueError unless it holds finite numbers in float32."""
    if array.dtype != np.float32 or not np.isfinite(array).all():
        raise ValueError("its vectors are not of finite numbers in float32")
    return torch.from_numpy(array)


def _damaged(path: Path, error: Exception) -> UserError:
    return disk_error(error, path) or UserError(f"{path} is damaged ({error}): delete it, and teach its concept again.")


def _file_name(concept: str) -> str:
    """Return a readable file name that is unique for each name of a concept."""
    readable = re.sub(r"[^\w]+", "-", concept.lower(), flags=re.ASCII).strip("-")[:40]
    return f"concept-{readable}-{sha256(concept.encode()).hexdigest()[:8]}.npz"
