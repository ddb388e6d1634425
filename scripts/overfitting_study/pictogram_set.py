"""Data of another kind for the study: 24,000 small grey pictures of the icons of 20 brands."""

from pathlib import Path

import numpy as np
import torch
from pictograms import icons
from pictograms.composing import compose
from pictograms.variation import draw
from torch import Tensor

from fashion_cnn.runs.files import create_folder, open_atomically

CLASSES, IMAGES_PER_CLASS, _SIDE = 20, 1_200, 28
_FILE = "pictograms_of_the_study.npz"


def make(folder: Path) -> None:
    """Draw the pictures into `folder`, in a few minutes, unless they exist; the same ones every time."""
    file = folder / _FILE
    if file.exists():
        return
    create_folder(folder, "data")
    pictures = np.empty((CLASSES, IMAGES_PER_CLASS, 1, _SIDE, _SIDE), np.uint8)
    for label, icon in enumerate(icons.choose(icons.fetch(folder), CLASSES, skip=0, seed=0)):
        symbol, rng = icon.symbol(), np.random.default_rng([0, label])
        for number in range(IMAGES_PER_CLASS):
            pictures[label, number, 0] = np.asarray(compose(symbol, draw(rng), _SIDE, rng).convert("L"))
    labels = np.arange(CLASSES).repeat(IMAGES_PER_CLASS)
    with open_atomically(file) as output:
        np.savez_compressed(output, images=pictures.reshape(-1, 1, _SIDE, _SIDE), labels=labels)


def read(folder: Path) -> tuple[Tensor, Tensor]:
    """Read images `(N, 1, 28, 28)` uint8 and labels `(N,)` int64."""
    with np.load(folder / _FILE) as content:
        return torch.from_numpy(content["images"]), torch.from_numpy(content["labels"]).long()
