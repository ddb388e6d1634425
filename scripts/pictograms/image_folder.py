"""Writes a folder of pictures by class: out/train/<class>/*.jpg and out/test/<class>/*.jpg."""

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
    """What a symbol is made from; small, since it is sent to other processes."""

    def symbol(self) -> Symbol:
        """The symbol drawn large."""
        ...


@dataclass(frozen=True)
class ImageClass:
    """A class and what is on its pictures: on the first one the first source, and so on, in turn."""

    name: str
    train: Sequence[Source]
    test: Sequence[Source]


@dataclass(frozen=True)
class Amounts:
    """Pictures a class in training and test, the share of test pictures beyond the training's ranges, and their side.

    Raises UserError for values that make no sense.
    """

    train: int
    test: int
    beyond: float
    size: int
    seed: int

    def __post_init__(self) -> None:
        for name in ("train", "test", "seed"):
            if getattr(self, name) < 0:
                raise UserError(f"{name}={getattr(self, name)} is below 0.", status=2)
        if not 0 <= self.beyond <= 1:
            raise UserError(f"beyond={self.beyond} is no share of the test pictures: say 0 to 1.", status=2)
        if not 16 <= self.size <= 1024:
            raise UserError(f"size={self.size} is no size for these pictures: say 16 to 1024.", status=2)


@dataclass(frozen=True)
class Picture:
    """One to be made: its file below the class folder's split, and which held-back thing it has."""

    split: str
    number: int
    beyond: str | None

    def file(self, out: Path, class_name: str) -> Path:
        name = "-".join([f"{self.number:03d}", *([self.beyond] if self.beyond else [])])
        return out / self.split / class_name / f"{name}.jpg"


def write(classes: Sequence[ImageClass], out: Path, amounts: Amounts, made_of: dict[str, Any]) -> int:
    """Make the pictures that are missing, on all cores; the number made.

    made_of: what they are made of, kept in the folder, so that other pictures are never mixed in. Every picture depends
    on the seed, its class and its number alone. Raises UserError where the folder holds others.
    """
    _claim(out, {**made_of, **vars(amounts)})
    return sum(_on_all_cores(classes, out, amounts))


def _claim(out: Path, settings: dict[str, Any]) -> None:
    """Leave in the folder what is made there. Raises UserError where something else was."""
    file = out / SETTINGS_FILE
    if file.exists():
        before = json.loads(file.read_text())
        other = [name for name in {**settings, **before} if settings.get(name) != before.get(name)]
        if other:
            said = ", ".join(f"{name}={before.get(name)} (now {settings.get(name)})" for name in other)
            raise UserError(f"{out} holds pictures made with {said}. Give another out=, or delete it.")
        return
    # A hidden file is the settings of one that was killed before they were whole.
    if out.exists() and any(not file.name.startswith(".") for file in out.iterdir()):
        raise UserError(f"{out} is there and was not made by this script: give another out=.")
    out.mkdir(parents=True, exist_ok=True)
    _write_whole(file, (json.dumps(settings, indent=2) + "\n").encode())


def _on_all_cores(classes: Sequence[ImageClass], out: Path, amounts: Amounts) -> Iterator[int]:
    """The number of pictures made of each class, as they are ready."""
    workers = min(len(os.sched_getaffinity(0)), len(classes))
    console = Console(stderr=True)
    # Started anew: a fork of a process with threads, such as the progress bar's, may hang.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_leave_interrupts_to_the_parent)
    with pool, Progress(console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("classes", total=len(classes))
        running: list[Future[int]] = [pool.submit(make_class, one, out, amounts) for one in classes]
        try:
            for ready in as_completed(running):
                yield ready.result()
                progress.advance(task)
        except BrokenProcessPool as error:
            raise UserError("A process was killed, maybe for want of memory. The same command goes on.") from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _leave_interrupts_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def make_class(image_class: ImageClass, out: Path, amounts: Amounts) -> int:
    """Make a class's missing pictures; their number."""
    missing = [one for one in planned(amounts, image_class.name) if not one.file(out, image_class.name).exists()]
    symbols: dict[Source, Symbol] = {}
    for one in missing:
        sources = image_class.train if one.split == "train" else image_class.test
        source = sources[one.number % len(sources)]
        if source not in symbols:
            symbols[source] = source.symbol()
        rng = _generator(amounts.seed, f"{one.split}/{image_class.name}/{one.number}")
        variation = draw(rng, one.beyond)
        picture = compose(symbols[source], variation, amounts.size, rng)
        file = one.file(out, image_class.name)
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_name(f".{file.name}")
        picture.save(unfinished, "JPEG", quality=variation.quality)
        unfinished.replace(file)
    return len(missing)


def planned(amounts: Amounts, class_name: str) -> list[Picture]:
    """All pictures of a class; of those for testing, evenly spread, the share beyond the training's ranges."""
    kinds = list(_generator(amounts.seed, class_name).permutation(BEYOND))
    pictures = [Picture("train", number, None) for number in range(amounts.train)]
    for number in range(amounts.test):
        before, after = int(number * amounts.beyond), int((number + 1) * amounts.beyond)
        pictures.append(Picture("test", number, str(kinds[before % len(kinds)]) if after > before else None))
    return pictures


def _generator(seed: int, name: str) -> np.random.Generator:
    return np.random.default_rng([seed, int.from_bytes(hashlib.sha256(name.encode()).digest()[:8])])


def _write_whole(file: Path, content: bytes) -> None:
    unfinished = file.with_name(f".{file.name}")
    unfinished.write_bytes(content)
    unfinished.replace(file)
