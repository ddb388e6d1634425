"""Training dynamics of each image, data map, likely label errors, and images with ambiguous predictions.

The dynamics are recorded in the training steps, without further forward passes.

- Toneva et al., "An Empirical Study of Example Forgetting", 2019 (arXiv 1812.05159): an image is forgotten when it was
  classified correctly in one epoch and is not in the next.
- Swayamdipta et al., "Dataset Cartography", 2020 (arXiv 2009.10795): mean and standard deviation over the epochs of
  the probability of the label. Fixed thresholds instead of thirds make the regions of two runs comparable.
- Pleiss et al., "Identifying Mislabeled Data using the Area Under the Margin Ranking", 2020 (arXiv 2001.10528): the
  mean margin.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from fashion_cnn.data import Batch
from fashion_cnn.metrics.predictions import Predictions
from fashion_cnn.runs import format_csv

# Smallest weight of an image in a mixed one (mixup, CutMix) that counts as a presentation of the image.
_MIN_MIX_LAMBDA = 0.9
# Columns of the table of an epoch, which has one row per image.
_COLUMNS = ("seen", "probability", "margin", "right", "other")
REGIONS = ("easy", "ambiguous", "hard")
# Thresholds of the regions: confidence of easy and of hard images, and variability of both.
_EASY_CONFIDENCE, _HARD_CONFIDENCE, _MAX_VARIABILITY = 0.75, 0.25, 0.25


@dataclass(frozen=True)
class Dynamics:
    """Training dynamics of the images that were presented at least once.

    The names of the attributes are columns of `examples.csv`.

    Attributes:
        indices: `(N,)` int64 positions in the data set, ascending.
        targets: `(N,)` int64 class indices.
        seen: `(N,)`, the number of epochs in which the image was presented.
        learned_epoch: `(N,)`, the first epoch, from 1, that classified the image correctly; 0 without one.
        recognised: `(N,)`, the number of epochs that classified the image correctly.
        forgotten: `(N,)`, the number of epochs that misclassified it after a correct classification.
        confidence: `(N,)`, the mean probability of the label.
        variability: `(N,)`, the standard deviation of the probability of the label.
        margin: `(N,)`, the mean of the logit of the label minus the highest other logit.
        other: `(N,)` int64, the most probable class besides the label in the latest epoch that presented the image.
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
    other: Tensor


class TrainingDynamics(Callback):
    """Records the dynamics of each training image in the training steps, with augmentation and changing weights.

    A mixed image (mixup, CutMix) counts for the image that makes up at least 90% of it, if any. The state is part of
    the checkpoints, so a resumed run includes the earlier epochs.
    """

    def __init__(self) -> None:
        self._totals: dict[str, Tensor] = {}
        self._epoch = torch.empty(0)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Allocate the table of an epoch, and the totals unless a checkpoint restored them."""
        split = trainer.datamodule.train_split  # type: ignore[attr-defined]
        self._indices, order = split.indices.sort()
        self._targets = split.targets[order]
        size = int(self._indices[-1]) + 1
        # Rows are positions in the data set, so a batch needs no look-up. The last row collects mixed images.
        self._epoch = torch.zeros(size + 1, len(_COLUMNS), device=pl_module.device)
        if not self._totals:
            counted = ("seen", "learned_epoch", "recognised", "forgotten", "right_before")
            summed = ("probability", "probability_squared", "margin")
            self._totals = {name: torch.zeros(size, dtype=torch.int32) for name in counted}
            self._totals |= {name: torch.zeros(size) for name in summed}
        # Missing in checkpoints of older versions.
        self._totals.setdefault("other", torch.zeros(size, dtype=torch.int32))

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Clear the table of the epoch."""
        self._epoch.zero_()

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Enter the probability and the margin of each image of the batch."""
        logits, targets = outputs["logits"], batch.targets[:, None]
        target_logits = logits.gather(1, targets)
        others, other = logits.scatter(1, targets, -torch.inf).max(dim=1, keepdim=True)
        probability = (target_logits - logits.logsumexp(dim=1, keepdim=True)).exp()
        rows = batch.indices
        if "mix_lambda" in outputs:
            # Indexing with a mask would synchronise with the GPU in every step.
            rows = torch.where(outputs["mix_lambda"] >= _MIN_MIX_LAMBDA, rows, len(self._epoch) - 1)
        columns = [torch.ones_like(probability), probability, target_logits - others, target_logits > others, other]
        self._epoch[rows] = torch.cat(columns, dim=1)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the epoch to the totals."""
        # Class indices have no mean. The reduction works in place.
        other = trainer.strategy.reduce(self._epoch[:, _COLUMNS.index("other")].clone(), reduce_op="max")[:-1].cpu()
        epoch = trainer.strategy.reduce(self._epoch, reduce_op="sum")[:-1].cpu()
        # Several processes may have presented an image if it is sampled with replacement.
        epoch = epoch / epoch[:, :1].clamp(min=1)
        self._add_epoch(trainer.current_epoch + 1, {**dict(zip(_COLUMNS, epoch.T, strict=True)), "other": other})

    def _add_epoch(self, number: int, epoch: dict[str, Tensor]) -> None:
        totals = self._totals
        seen, correct = epoch["seen"].bool(), epoch["right"] > 0.5
        totals["seen"] += seen
        totals["recognised"] += correct
        totals["forgotten"] += seen & ~correct & totals["right_before"].bool()
        totals["learned_epoch"][correct & (totals["learned_epoch"] == 0)] = number
        totals["right_before"] = torch.where(seen, correct.int(), totals["right_before"])
        totals["probability"] += epoch["probability"]
        totals["probability_squared"] += epoch["probability"].square()
        totals["margin"] += epoch["margin"]
        totals["other"] = torch.where(seen, epoch["other"].round().int(), totals["other"])

    def result(self) -> Dynamics:
        """Compute the dynamics over the epochs so far."""
        presented = self._totals["seen"][self._indices] > 0
        indices = self._indices[presented]
        totals = {name: values[indices] for name, values in self._totals.items()}
        seen = totals["seen"].float()
        mean = totals["probability"] / seen
        return Dynamics(
            indices=indices,
            targets=self._targets[presented],
            seen=totals["seen"],
            learned_epoch=totals["learned_epoch"],
            recognised=totals["recognised"],
            forgotten=totals["forgotten"],
            confidence=mean,
            variability=(totals["probability_squared"] / seen - mean.square()).clamp(min=0).sqrt(),
            margin=totals["margin"] / seen,
            other=totals["other"].long(),
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the totals for the checkpoint."""
        return dict(self._totals)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the totals from the checkpoint."""
        self._totals = dict(state_dict)


def regions(dynamics: Dynamics) -> Tensor:
    """Assign each image to a region of the data map.

    Easy images have a confidence of at least 0.75 and a variability below 0.25, hard ones a confidence of at most 0.25
    and a variability below 0.25. All others are ambiguous.

    Returns:
        `(N,)`, indices into `REGIONS`.
    """
    steady = dynamics.variability < _MAX_VARIABILITY
    region = torch.full_like(dynamics.targets, REGIONS.index("ambiguous"))
    region[steady & (dynamics.confidence >= _EASY_CONFIDENCE)] = REGIONS.index("easy")
    region[steady & (dynamics.confidence <= _HARD_CONFIDENCE)] = REGIONS.index("hard")
    return region


def likely_label_errors(dynamics: Dynamics) -> Tensor:
    """Rank all images by how likely their label is wrong.

    The images are sorted by the fraction of the epochs that classified them correctly, then by the mean margin: the
    network classifies an image with a wrong label as another class until it memorises the image late in training.

    Returns:
        `(N,)`, rows of `dynamics`, most likely error first.
    """
    by_margin = dynamics.margin.argsort(stable=True)
    recognised = dynamics.recognised / dynamics.seen
    return by_margin[recognised[by_margin].argsort(stable=True)]


def examples_csv(
    dynamics: Dynamics, class_names: Sequence[str], memorisation: Mapping[int, float] | None = None
) -> str:
    """Format the dynamics as CSV, one row per image, most likely label error first.

    Args:
        dynamics: training dynamics of the training images.
        class_names: names of all classes.
        memorisation: memorisation scores by position in the data set, see `fashion_cnn.analysis.memorisation`; None
            leaves their column out.
    """
    names = [field.name for field in fields(Dynamics)]
    further = ["label", "other_class", "region", "label_error_rank"]
    table: list[list[Any]] = [[*names, *further, *([] if memorisation is None else ["memorisation"])]]
    region, targets, others = (values.tolist() for values in (regions(dynamics), dynamics.targets, dynamics.other))
    columns = [getattr(dynamics, name).tolist() for name in names]
    for rank, row in enumerate(likely_label_errors(dynamics).tolist(), start=1):
        values = [column[row] for column in columns]
        rounded = [round(value, 5) if isinstance(value, float) else value for value in values]
        classes = [class_names[targets[row]], class_names[others[row]]]
        score = [] if memorisation is None else [memorisation.get(columns[0][row], "")]
        table.append([*rounded, *classes, REGIONS[region[row]], rank, *score])
    return format_csv(table)


def most_confident_errors(predictions: Predictions, count: int) -> Tensor:
    """Select the rows of at most `count` misclassified images, highest confidence first, `(K,)`."""
    wrong = (~predictions.correct).nonzero()[:, 0]
    return wrong[predictions.confidence[wrong].argsort(descending=True, stable=True)][:count]


def prediction_entropy(predictions: Predictions) -> Tensor:
    """Entropy of the predicted probabilities of each image in nats, `(N,)`, from 0 to log C."""
    return torch.special.entr(predictions.probabilities).sum(dim=1)


def ambiguous_images_csv(splits: Mapping[str, Predictions], class_names: Sequence[str]) -> str:
    """Format the images of all splits as CSV, highest entropy of the prediction first."""
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
    heading = "split index entropy label first second first_probability second_probability loss"
    table: list[list[Any]] = [heading.split()]
    for split, entropy, index, target, first, second, *metrics in sorted(rows, key=lambda row: -row[1]):
        names = (class_names[label] for label in (target, first, second))
        table.append([split, index, round(entropy, 5), *names, *(round(metric, 5) for metric in metrics)])
    return format_csv(table)
