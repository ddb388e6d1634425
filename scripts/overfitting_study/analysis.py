"""Gains of the arms over their bases, and a model that predicts them, evaluated with whole bases left out."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from overfitting_study.records import job_key

Floats = NDArray[np.float64]
# A gain that is worth acting for, as a fraction.
WORTHWHILE = 0.002
# Strength of the ridge penalty on standardised features, in observations.
RIDGE = 10.0
FEATURES: dict[str, Callable[[Mapping[str, Any]], float]] = {
    "gap_share": lambda run: 1 - (1 - run["last_train_accuracy"]) / (1 - run["last_val_accuracy"]),
    "log_val_error": lambda run: math.log(1 - run["last_val_accuracy"]),
    "log_images": lambda run: math.log2(run["settings"]["images"]),
    "log_epochs": lambda run: math.log2(run["settings"]["epochs"]),
    "loss_rise": lambda run: run["last_val_loss"] / min(p["val_loss"] for p in run["passes"]) - 1,
    "loss_fall": lambda run: 1 - run["passes"][-1]["val_loss"] / run["passes"][len(run["passes"]) // 2 - 1]["val_loss"],
    "augmentation": lambda run: float(run["settings"]["augmentation"]),
    "cutmix": lambda run: float(run["settings"]["cutmix"]),
}
# The advice of version 1, by its reason in results.json: the arm that it stands for, None for no change.
FORMER_ADVICE = {
    "use all training images": "more_images",
    "add data augmentation": "augmentation",
    "apply random erasing to more images": "more_erasing",
    "stop early, when validation loss no longer falls": None,
    "increase dropout": "dropout",
    "increase weight decay": "more_decay",
    "disable dropout, which limits the fit": None,
    "train a larger model": "larger",
    "measure the variation over seeds": None,
}


@dataclass(frozen=True)
class Gain:
    """What an arm gained over its base, on the judge.

    Attributes:
        base: number of the base.
        seed: seed of both trainings.
        arm: name of the change.
        features: `(F,)` of the base's training.
        accuracy: gain in accuracy, as a fraction.
        loss: fall of the loss.
        gap: change of the accuracy gap to validation.
    """

    base: int
    seed: int
    arm: str
    features: Floats
    accuracy: float
    loss: float
    gap: float


def gains(records: Iterable[Mapping[str, Any]]) -> list[Gain]:
    """Pair every arm with its base of the same seed."""
    by_key = {job_key(record): record for record in records}
    found = []
    for (number, arm, seed), run in by_key.items():
        base = by_key.get((number, "base", seed))
        if arm == "base" or base is None:
            continue
        gap_change = _gap(run) - _gap(base)
        found.append(
            Gain(
                number,
                seed,
                arm,
                np.array([feature(base) for feature in FEATURES.values()]),
                run["last_judge_accuracy"] - base["last_judge_accuracy"],
                base["last_judge_loss"] - run["last_judge_loss"],
                gap_change,
            )
        )
    return found


def _gap(run: Mapping[str, Any]) -> float:
    return run["last_train_accuracy"] - run["last_val_accuracy"]


@dataclass(frozen=True)
class GainModel:
    """Linear model of the gain of one arm.

    Attributes:
        mean: `(F,)` of the features.
        scale: `(F,)`, their standard deviations.
        intercept: gain at the mean of the features.
        coefficients: `(F,)` of the standardised features.
        deviation: standard deviation of a new gain around the prediction.
    """

    mean: Floats
    scale: Floats
    intercept: float
    coefficients: Floats
    deviation: float

    def predict(self, features: Floats) -> Floats:
        """Predict gains from features `(N, F)`."""
        return self.intercept + (features - self.mean) / self.scale @ self.coefficients

    def probability(self, features: Floats, threshold: float = WORTHWHILE) -> Floats:
        """Probability that the gain exceeds `threshold`."""
        z = (self.predict(features) - threshold) / self.deviation
        return np.array([0.5 * (1 + math.erf(value / math.sqrt(2))) for value in np.atleast_1d(z)])


def fit(features: Floats, values: Floats, ridge: float = RIDGE) -> GainModel:
    """Fit by ridge regression; the deviation is that of leave-one-out residuals.

    Args:
        features: `(N, F)`.
        values: `(N,)` gains.
        ridge: penalty on the squared standardised coefficients, in units of the residual variance.
    """
    mean, scale = features.mean(0), np.maximum(features.std(0), 1e-9)
    design = (features - mean) / scale
    inverse = np.linalg.inv(design.T @ design + ridge * np.eye(design.shape[1]))
    intercept = values.mean()
    coefficients = inverse @ design.T @ (values - intercept)
    leverage = np.einsum("nf,fg,ng->n", design, inverse, design) + 1 / len(values)
    residuals = (values - intercept - design @ coefficients) / np.maximum(1 - leverage, 0.1)
    return GainModel(mean, scale, float(intercept), coefficients, float(max(residuals.std(), 1e-4)))


def leave_bases_out(found: Sequence[Gain], ridge: float = RIDGE) -> dict[tuple[int, int, str], tuple[float, float]]:
    """Predict each gain by a model of its arm that saw no training of its base.

    Returns:
        The predicted gain and the probability that it is worthwhile, by base, seed and arm.
    """
    predictions: dict[tuple[int, int, str], tuple[float, float]] = {}
    for arm in sorted({gain.arm for gain in found}):
        of_arm = [gain for gain in found if gain.arm == arm]
        for base in {gain.base for gain in of_arm}:
            train = [gain for gain in of_arm if gain.base != base]
            if len(train) < 3:
                continue
            model = fit(np.array([g.features for g in train]), np.array([g.accuracy for g in train]), ridge)
            for gain in of_arm:
                if gain.base == base:
                    expected = float(model.predict(gain.features[None])[0])
                    predictions[base, gain.seed, arm] = expected, float(model.probability(gain.features[None])[0])
    return predictions
