"""Training dynamics: how each image was learned, which ones are hard, and which labels are likely wrong.

Recorded from the training steps themselves, for next to nothing. Toneva et al., "An Empirical Study of Example
Forgetting", 2019 (arXiv 1812.05159): an image is forgotten when it was recognised in one epoch and is not in the next.
Swayamdipta et al., "Dataset Cartography", 2020 (arXiv 2009.10795): the mean and the standard deviation, over the
epochs, of the probability that the network gives the label; fixed limits in place of thirds make the regions of two
runs comparable. Pleiss et al., "Identifying Mislabeled Data using the Area Under the Margin Ranking", 2020
(arXiv 2001.10528): the mean margin.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from fashion_cnn.data import Batch
from fashion_cnn.metrics.predictions import Predictions

# Of a mixed image: more of another one, were it of the same class, makes it another picture.
_LEAST_OWN_SHARE = 0.9
# What an epoch tells of an image, column by column.
_COLUMNS = ("seen", "probability", "margin", "right")
REGIONS = ("easy", "ambiguous", "hard")
_SURE, _UNSURE, _STEADY = 0.75, 0.25, 0.25


@dataclass(frozen=True)
class Dynamics:
    """The training of each image, told by what the network said each time that it saw it.

    indices, targets: `(N,)` int64, in ascending order of the positions in the data set.
    seen: `(N,)`, in how many epochs the image came up; images never seen are left out.
    learned_epoch: `(N,)`, from 1, the first epoch that recognised it; 0 where none did.
    recognised, forgotten: `(N,)`, in how many epochs it was recognised, and how often it no longer was.
    confidence, variability: `(N,)`, mean and standard deviation of the label's probability.
    margin: `(N,)`, mean of the label's logit less the highest other one; negative for images that look like another
    class for most of the training.
    """

    indices: Tensor
    targets: Tensor
    seen: Tensor
    learned_epoch: Tensor
    recognised: Tensor
    forgotten: Tensor
    confidence: Tensor
    variability: Tensor
    margin: Tensor


class TrainingDynamics(Callback):
    """Follows each training image through the epochs, as the training saw it: augmented, under moving weights.

    Where images are mixed, one that is less than nine tenths of what was shown has not come up in that epoch.
    Its state is part of the checkpoints, so that a resumed run knows the epochs before.
    """

    def __init__(self) -> None:
        self._totals: dict[str, Tensor] = {}
        self._epoch = torch.empty(0)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        split = trainer.datamodule.train_split  # type: ignore[attr-defined]
        self._indices, order = split.indices.sort()
        self._targets = split.targets[order]
        size = int(self._indices[-1]) + 1
        # By position in the data set: a batch then needs no look-up. The row behind them takes what does not count.
        self._epoch = torch.zeros(size + 1, len(_COLUMNS), device=pl_module.device)
        if not self._totals:
            counted = ("seen", "learned_epoch", "recognised", "forgotten", "right_before")
            summed = ("probability", "probability_squared", "margin")
            self._totals = {name: torch.zeros(size, dtype=torch.int32) for name in counted}
            self._totals |= {name: torch.zeros(size) for name in summed}

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._epoch.zero_()

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        logits, targets = outputs["logits"], batch.targets[:, None]
        own = logits.gather(1, targets)
        others = logits.scatter(1, targets, -torch.inf).amax(dim=1, keepdim=True)
        probability = (own - logits.logsumexp(dim=1, keepdim=True)).exp()
        places = batch.indices
        if "mix_lambda" in outputs:
            # Choosing by a mask would have the host wait for a GPU at every step.
            places = torch.where(outputs["mix_lambda"] >= _LEAST_OWN_SHARE, places, len(self._epoch) - 1)
        self._epoch[places] = torch.cat([torch.ones_like(own), probability, own - others, own > others], dim=1)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        epoch = trainer.strategy.reduce(self._epoch, reduce_op="sum")[:-1].cpu()
        # Where images are drawn again and again, several processes may have seen one: the mean counts.
        epoch = epoch / epoch[:, :1].clamp(min=1)
        self._add_epoch(trainer.current_epoch + 1, dict(zip(_COLUMNS, epoch.T, strict=True)))

    def _add_epoch(self, number: int, epoch: dict[str, Tensor]) -> None:
        totals = self._totals
        seen, right = epoch["seen"].bool(), epoch["right"] > 0.5
        totals["seen"] += seen
        totals["recognised"] += right
        totals["forgotten"] += seen & ~right & totals["right_before"].bool()
        totals["learned_epoch"][right & (totals["learned_epoch"] == 0)] = number
        totals["right_before"] = torch.where(seen, right.int(), totals["right_before"])
        totals["probability"] += epoch["probability"]
        totals["probability_squared"] += epoch["probability"].square()
        totals["margin"] += epoch["margin"]

    def result(self) -> Dynamics:
        """What was recorded so far, of all images that were seen."""
        known = self._totals["seen"][self._indices] > 0
        indices = self._indices[known]
        totals = {name: values[indices] for name, values in self._totals.items()}
        seen = totals["seen"].float()
        mean = totals["probability"] / seen
        return Dynamics(
            indices=indices,
            targets=self._targets[known],
            seen=totals["seen"],
            learned_epoch=totals["learned_epoch"],
            recognised=totals["recognised"],
            forgotten=totals["forgotten"],
            confidence=mean,
            variability=(totals["probability_squared"] / seen - mean.square()).clamp(min=0).sqrt(),
            margin=totals["margin"] / seen,
        )

    def state_dict(self) -> dict[str, Any]:
        return dict(self._totals)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._totals = dict(state_dict)


def regions(dynamics: Dynamics) -> Tensor:
    """The region of each image as a position in `REGIONS`, `(N,)`.

    Easy: the label's probability is 0.75 or more in the mean and varies by less than 0.25. Hard: 0.25 or less, just
    as steady. All others are ambiguous.
    """
    steady = dynamics.variability < _STEADY
    region = torch.full_like(dynamics.targets, REGIONS.index("ambiguous"))
    region[steady & (dynamics.confidence >= _SURE)] = REGIONS.index("easy")
    region[steady & (dynamics.confidence <= _UNSURE)] = REGIONS.index("hard")
    return region


def likely_label_errors(dynamics: Dynamics) -> Tensor:
    """The positions of all images in `dynamics`, the likeliest label error first, `(N,)`.

    Ranked by the share of the epochs that recognised the image: one whose label is wrong looks like another class until
    the network has learned it by heart, which comes late. Among equals by the mean margin.
    """
    by_margin = dynamics.margin.argsort(stable=True)
    recognised = dynamics.recognised / dynamics.seen
    return by_margin[recognised[by_margin].argsort(stable=True)]


def examples_csv(dynamics: Dynamics, class_names: Sequence[str]) -> str:
    """All that is known of each image, as CSV, a row an image, the likeliest label error first."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [field.name for field in fields(Dynamics)]
    writer.writerow([*names, "label", "region", "label_error_rank"])
    region, targets = regions(dynamics).tolist(), dynamics.targets.tolist()
    columns = [getattr(dynamics, name).tolist() for name in names]
    for rank, place in enumerate(likely_label_errors(dynamics).tolist(), start=1):
        values = [column[place] for column in columns]
        rounded = [round(value, 5) if isinstance(value, float) else value for value in values]
        writer.writerow([*rounded, class_names[targets[place]], REGIONS[region[place]], rank])
    return text.getvalue()


def most_confident_errors(predictions: Predictions, most: int) -> Tensor:
    """The positions in `predictions` of the mistakes that it is surest of, at most `most` of them, `(K,)`."""
    wrong = (~predictions.correct).nonzero()[:, 0]
    return wrong[predictions.confidence[wrong].argsort(descending=True, stable=True)][:most]


def prediction_entropy(predictions: Predictions) -> Tensor:
    """How undecided the network is on each image, in nats, `(N,)`: 0 where it is sure, log C where it is at a loss."""
    return torch.special.entr(predictions.probabilities).sum(dim=1)


def ambiguous_images_csv(splits: Mapping[str, Predictions], class_names: Sequence[str]) -> str:
    """The images of all splits as CSV, the one that the network is least decided on first."""
    rows = []
    for split, predictions in splits.items():
        top = predictions.probabilities.topk(2, dim=1)
        columns = (
            prediction_entropy(predictions),
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
