"""Which images of a split a trained network gets most wrong, and which ones it cannot decide."""

import csv
import io
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fashion_cnn.analysis.predictions import Predictions


def most_confident_mistakes(predictions: Predictions, most: int) -> Tensor:
    """The positions in `predictions` of the mistakes that it is surest of, at most `most` of them, `(K,)`."""
    wrong = (~predictions.correct).nonzero()[:, 0]
    return wrong[predictions.confidence[wrong].argsort(descending=True, stable=True)][:most]


def entropy(predictions: Predictions) -> Tensor:
    """How undecided the network is on each image, in nats, `(N,)`: 0 where it is sure, log C where it is at a loss."""
    return torch.special.entr(predictions.probabilities).sum(dim=1)


def ambiguity_table(splits: Mapping[str, Predictions], class_names: Sequence[str]) -> str:
    """The images of all splits as CSV, the one that the network is least decided on first."""
    rows = []
    for split, predictions in splits.items():
        top = predictions.probabilities.topk(2, dim=1)
        columns = (
            entropy(predictions),
            predictions.indices,
            predictions.targets,
            top.indices[:, 0],
            top.indices[:, 1],
            *top.values.unbind(1),
            predictions.losses,
        )
        rows += [(split, *row) for row in zip(*(column.tolist() for column in columns), strict=True)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["split", "index", "entropy", "label", "first", "second", "first_probability", "second_probability", "loss"]
    )
    for split, undecided, index, target, first, second, *figures in sorted(rows, key=lambda row: -row[1]):
        names = (class_names[label] for label in (target, first, second))
        writer.writerow([split, index, round(undecided, 5), *names, *(round(figure, 5) for figure in figures)])
    return text.getvalue()
