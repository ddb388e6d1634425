"""Output of an image folder: out/train/<class>/*.jpg and out/test/<class>/*.jpg."""

import hashlib
import json
import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from rich.console import Console
from rich.progress import Progress

from fashion_cnn.errors import UserError
from pictograms.composing import compose
from pictograms.symbols import Symbol
from pictograms.variation import BEYOND, draw

SETTINGS_FILE = "made_with.json"


class Source(Protocol):
    """Source of a symbol; small, since it is sent to other processes."""

    def symbol(self) -> Symbol:
        """Draw the symbol in high resolution."""
        ...


@dataclass(frozen=True)
class ImageClass:
    """A class, and the sources of its training and test pictures, which take turns."""

    name: str
    train: Sequence[Source]
    test: Sequence[Source]


@dataclass(frozen=True)
class Amounts:
    """Numbers of pictures and their size.

    Attributes:
        train: training pictures per class.
        test: test pictures per class.
        beyond: share of the test pictures that vary beyond the ranges of the training pictures.
        size: side in pixels.
        seed: seed of the variations.
    """

    train: int
    test: int
    beyond: float
    size: int
    seed: int

    def __post_init__(self) -> None:
        for name in ("train", "test", "seed"):
            if getattr(self, name) < 0:
                raise UserError(f"{name}={getattr(self, name)} is not possible: give 0 or more.", status=2)
        if not 0 <= self.beyond <= 1:
            raise UserError(
                f"beyond={self.beyond} is not possible: give a share of the test pictures, 0 to 1.", status=2
            )
        if not 16 <= self.size <= 1024:
            raise UserError(f"size={self.size} is not possible: give 16 to 1024 pixels.", status=2)


@dataclass(frozen=True)
class Picture:
    """A picture to create: its split, its number, and the property in which it varies beyond the training pictures."""

    split: str
    number: int
    beyond: str | None

    def file(self, out: Path, class_name: str) -> Path:
        name = "-".join([f"{self.number:03d}", *([self.beyond] if self.beyond else [])])
        return out / self.split / class_name / f"{name}.jpg"


def write(classes: Sequence[ImageClass], out: Path, amounts: Amounts, sources: dict[str, Any]) -> int:
    """Create the missing pictures, on all cores.

    Each picture depends only on the seed, its class and its number.

    Args:
        classes: the classes.
        out: output folder.
        amounts: numbers of pictures and their size.
        sources: settings that identify the drawings, stored in the folder.

    Returns:
        The number of pictures created.

    Raises:
        UserError: the folder contains other pictures.
    """
    _check_settings(out, {**sources, **vars(amounts)})
    return sum(_on_all_cores(classes, out, amounts))


def _check_settings(out: Path, settings: dict[str, Any]) -> None:
    """Store the settings in the folder; raise UserError if it contains pictures with others."""
    file = out / SETTINGS_FILE
    if file.exists():
        before = json.loads(file.read_text())
        other = [name for name in {**settings, **before} if settings.get(name) != before.get(name)]
        if other:
            difference = ", ".join(f"{name}={before.get(name)} (now {settings.get(name)})" for name in other)
            raise UserError(f"{out} contains pictures with {difference}: give another out=DIR, or delete it.")
        return
    # A hidden file contains incomplete settings of a process that was killed.
    if out.exists() and any(not file.name.startswith(".") for file in out.iterdir()):
        raise UserError(f"{out} exists and was not created by this script: give another out=DIR.")
    out.mkdir(parents=True, exist_ok=True)
    _write_atomically(file, (json.dumps(settings, indent=2) + "\n").encode())


def _on_all_cores(classes: Sequence[ImageClass], out: Path, amounts: Amounts) -> Iterator[int]:
    """Create the pictures of each class; yields their number for each class that is complete."""
    workers = min(len(os.sched_getaffinity(0)), len(classes))
    console = Console(stderr=True)
    # A forked process with threads, such as that of the progress bar, may hang.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_ignore_interrupts)
    with pool, Progress(console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("classes", total=len(classes))
        running: list[Future[int]] = [pool.submit(make_class, image_class, out, amounts) for image_class in classes]
        try:
            for ready in as_completed(running):
                yield ready.result()
                progress.advance(task)
        except BrokenProcessPool as error:
            raise UserError(
                "a process was killed, possibly because of too little memory. Run the same command again to continue."
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def make_class(image_class: ImageClass, out: Path, amounts: Amounts) -> int:
    """Create the missing pictures of a class; returns their number."""
    missing = [
        picture for picture in planned(amounts, image_class.name) if not picture.file(out, image_class.name).exists()
    ]
    symbols: dict[Source, Symbol] = {}
    for item in missing:
        sources = image_class.train if item.split == "train" else image_class.test
        source = sources[item.number % len(sources)]
        if source not in symbols:
            symbols[source] = source.symbol()
        rng = _generator(amounts.seed, f"{item.split}/{image_class.name}/{item.number}")
        variation = draw(rng, item.beyond)
        picture = compose(symbols[source], variation, amounts.size, rng)
        file = item.file(out, image_class.name)
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_name(f".{file.name}")
        picture.save(unfinished, "JPEG", quality=variation.quality)
        unfinished.replace(file)
    return len(missing)


def planned(amounts: Amounts, class_name: str) -> list[Picture]:
    """List all pictures of a class; those beyond the training ranges are spread evenly over the test pictures."""
    kinds = list(_generator(amounts.seed, class_name).permutation(BEYOND))
    pictures = [Picture("train", number, None) for number in range(amounts.train)]
    for number in range(amounts.test):
        before, after = int(number * amounts.beyond), int((number + 1) * amounts.beyond)
        pictures.append(Picture("test", number, str(kinds[before % len(kinds)]) if after > before else None))
    return pictures


def _generator(seed: int, name: str) -> np.random.Generator:
    return np.random.default_rng([seed, int.from_bytes(hashlib.sha256(name.encode()).digest()[:8])])


def _write_atomically(file: Path, content: bytes) -> None:
    unfinished = file.with_name(f".{file.name}")
    unfinished.write_bytes(content)
    unfinished.replace(file)
