"""Verdict on a training run: the width of the train/val gap, and the expected gains of remedies against it.

The gap is an estimate with an interval. The expected gains are predicted by a model that was fitted to a study of short
trainings: each was repeated with one remedy (conf/remedy) at a time and evaluated on images that no training had seen
(`scripts/verdict_study`, docs/overfitting.md).
"""

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf

from fashion_cnn.analysis.history import History
from fashion_cnn.metrics.gap import ValidationPasses, accuracy_gap_of, gap_share_of
from fashion_cnn.metrics.intervals import Z_95, Interval, normal_probability_above
from fashion_cnn.runs.overrides import override_key

Kind = Literal["underfitting", "still improving", "fits well", "overfitting", "memorising", "undecided"]
FITTED_ACCURACY = 0.99  # training accuracy from which nothing is left to learn
LARGE_GAP = 0.10  # accuracy gap that memorising has at least, with its whole interval
WORTHWHILE = 0.002  # gain in accuracy that is worth acting for
LIKELY, UNLIKELY = 0.5, 0.25  # probabilities of a worthwhile gain: from the first acting pays, below the second not
# Distance from the range of the study within which a run counts as similar, in standard deviations of its trainings.
_MARGIN = 0.5
# Beginning of a sentence on expected gains.
_BASIS = "Judging by the study's other trainings"
_STUDY = Path(__file__).with_name("remedies.json")
_DATA_OF_STUDY = "fashion_cnn.data.FashionMNISTDataModule"
# Each remedy (conf/remedy) as a noun and as advice. Those of _FITTING fit the training images more closely, the others
# narrow the gap.
REMEDIES = {
    "more_images": ("twice the images", "train on twice the images"),
    "augmentation": ("augmentation", "mirror, shift and erase training images"),
    "cutmix": ("CutMix", "mix training images by CutMix"),
    "erasing": ("more random erasing", "erase a part of three quarters of the training images"),
    "smoothing": ("label smoothing", "smooth the labels"),
    "dropout": ("more dropout", "increase dropout"),
    "more_decay": ("four times the weight decay", "increase weight decay fourfold"),
    "smaller": ("a narrower network", "train a narrower network"),
    "shorter": ("half the epochs", "train half as long"),
    "longer": ("twice the epochs", "train twice as long"),
    "larger": ("a wider network", "train a wider network"),
    "less_decay": ("a quarter of the weight decay", "reduce weight decay to a quarter"),
    "no_mixing": ("no mixing of images", "do not mix training images"),
    "no_smoothing": ("no label smoothing", "do not smooth the labels"),
}
_FITTING = ("longer", "larger", "less_decay", "no_mixing", "no_smoothing")


@dataclass(frozen=True)
class ExpectedGain:
    """Expected effect of a remedy on a run like the one judged.

    Attributes:
        remedy: a key of `REMEDIES`.
        gain: change of held-out accuracy, as a fraction, with a 95% prediction interval for one training.
        probability: probability that the gain exceeds 0.2 points.
    """

    remedy: str
    gain: Interval
    probability: float

    @property
    def may_help(self) -> bool:
        """True if the advice names the remedy: its expected gain is positive, and a worthwhile gain is not unlikely."""
        return self.gain.estimate > 0 and self.probability >= UNLIKELY

    @classmethod
    def normal(cls, remedy: str, mean: float, deviation: float) -> "ExpectedGain":
        """Return the expected gain of a remedy with normal errors of prediction.

        Args:
            remedy: a key of `REMEDIES`.
            mean: expected change of held-out accuracy, as a fraction.
            deviation: standard deviation of the gain of one training around it.
        """
        half = Z_95 * deviation
        probability = normal_probability_above(WORTHWHILE, mean, deviation)
        return cls(remedy, Interval(mean, mean - half, mean + half), probability)


@dataclass(frozen=True)
class Verdict:
    """Verdict on the curves of a training run.

    Attributes:
        kind: the verdict.
        rule: the measured gap and the expected gains, in a sentence or two without the final stop.
        last_epoch: the last measured epoch, from 1.
        gap: the accuracy gap between training and validation images after that epoch, or its forecast.
        gap_share: share of the validation error that the gap makes up; None for a forecast.
        loss_gap: the loss gap after that epoch; None for a forecast.
        loss_rise: rise of the validation loss from its lowest epoch to the last, in nats; None if the losses of the
            single images were not measured.
        rising_since: the first epoch of a rise that exceeds the noise, under falling training loss; None without one.
        gains: expected gains of the remedies that are possible, highest first; empty outside the study's range.
    """

    kind: Kind
    rule: str
    last_epoch: int
    gap: Interval
    gap_share: Interval | None
    loss_gap: float | None
    loss_rise: Interval | None
    rising_since: int | None
    gains: tuple[ExpectedGain, ...]


def judge(
    history: History,
    config: DictConfig,
    *,
    train_images: int,
    probe_count: int,
    val_count: int,
    parameters: int,
    passes: ValidationPasses | None = None,
) -> Verdict | None:
    """Judge a training run by its curves. Only epochs with a validation pass count.

    - memorising: training accuracy is at least 99%, and the whole interval of the gap is at least 10 points.
    - overfitting: the gap is significant, and one of two conditions holds. Either the validation loss has risen beyond
      the noise while the training loss fell; or the best likely remedy narrows the gap. A remedy is likely if it gains
      at least 0.2 points with a probability of at least 1/2; the best one has the highest expected gain.
    - still improving: the gap is significant, but the best likely remedy fits the training images more closely.
    - underfitting: the best likely remedy fits the training images more closely, and the gap is not significant.
    - fits well: the probability of a gain of 0.2 points is below 1/4 for every remedy.
    - undecided: otherwise, and for runs unlike those of the study.

    Twice the images decide nothing, since at equal epochs they are also twice the training steps.

    Args:
        history: the metrics of the epochs.
        config: the settings of the run.
        train_images: the number of training images.
        probe_count: the number of images of the train probe.
        val_count: the number of images of the validation split.
        parameters: the number of parameters of the network.
        passes: the measurements on each validation image, which show whether a rise of the loss exceeds the noise.

    Returns:
        The verdict; None if no epoch has both a training and a validation loss.
    """
    train, val = history["train/loss"], history["val/loss"]
    measured = np.isfinite(train) & np.isfinite(val)
    if not measured.any():
        return None
    epochs, train, val = history.epochs[measured], train[measured], val[measured]
    train_accuracy, val_accuracy = (float(history[f"{name}/accuracy"][measured][-1]) for name in ("train", "val"))
    measurements = train_accuracy, val_accuracy, probe_count, val_count, probe_count / train_images
    gap, gap_share = accuracy_gap_of(*measurements), gap_share_of(*measurements)
    lowest = int(val.argmin())
    rise = passes.loss_rise() if passes is not None and lowest < len(val) - 1 else None
    is_rising = rise is not None and rise.low > 0 and bool(train[-1] < train[lowest])
    features = run_features(
        train_accuracy,
        val_accuracy,
        images=train_images,
        epochs=int(history.epochs[-1]),
        parameters=parameters,
        config=config,
        val_loss_trend=loss_trend(epochs, val),
    )
    gains = expected_gains(features, config)
    parts = [_describe_gap(gap, gap_share)]
    if is_rising:
        assert rise is not None
        parts.append(_describe_rise(rise, val[lowest]))
    return Verdict(
        kind=_kind(train_accuracy, gap, gains, is_rising=is_rising),
        rule=f"{'; '.join(parts)}. {_describe_gains(gains, config)}",
        last_epoch=int(epochs[-1]),
        gap=gap,
        gap_share=gap_share,
        loss_gap=float(val[-1] - train[-1]),
        loss_rise=rise,
        rising_since=int(epochs[lowest + 1]) if is_rising else None,
        gains=gains,
    )


def judge_forecast(
    train_accuracy: float, forecast: Interval, config: DictConfig, *, train_images: int, epochs: int, parameters: int
) -> Verdict:
    """Judge a training without validation images by the forecast of its accuracy on new ones.

    Args:
        train_accuracy: the accuracy on training images.
        forecast: the accuracy that is expected on new images, see `fashion_cnn.analysis.forecast`.
        config: the settings of the run.
        train_images: the number of training images.
        epochs: the number of epochs.
        parameters: the number of parameters of the network.
    """
    gap = Interval(train_accuracy - forecast.estimate, train_accuracy - forecast.high, train_accuracy - forecast.low)
    features = run_features(
        train_accuracy, forecast.estimate, images=train_images, epochs=epochs, parameters=parameters, config=config
    )
    gains = expected_gains(features, config)
    text = (
        f"an accuracy gap of {gap.estimate * 100:.1f} points (95% prediction interval {gap.low * 100:+.1f} to "
        f"{gap.high * 100:+.1f}) is forecast from the training images alone"
    )
    if elsewhere := _elsewhere(config):
        held, count = elsewhere["forecasts_in_interval"], elsewhere["forecasts"]
        text += f", as for Fashion-MNIST: on pictures of another kind the interval held {held} of {count} gaps"
    return Verdict(
        kind=_kind(train_accuracy, gap, gains, is_rising=False),
        rule=f"{text}. {_describe_gains(gains, config)}",
        last_epoch=epochs,
        gap=gap,
        gap_share=None,
        loss_gap=None,
        loss_rise=None,
        rising_since=None,
        gains=gains,
    )


def _kind(train_accuracy: float, gap: Interval, gains: Sequence[ExpectedGain], *, is_rising: bool) -> Kind:
    """Decide by the rules that `judge` lists."""
    if train_accuracy >= FITTED_ACCURACY and gap.low >= LARGE_GAP:
        return "memorising"
    has_gap = gap.low > 0
    if is_rising and has_gap:
        return "overfitting"
    # Highest expected gain first.
    deciding = [gain for gain in gains if gain.remedy != "more_images"]
    likely = [gain.remedy for gain in deciding if gain.probability >= LIKELY]
    if likely and likely[0] in _FITTING:
        return "still improving" if has_gap else "underfitting"
    if likely:
        return "overfitting" if has_gap else "undecided"
    return "fits well" if deciding and all(gain.probability < UNLIKELY for gain in deciding) else "undecided"


def _describe_gap(gap: Interval, share: Interval) -> str:
    bounds = f"95% interval {gap.low * 100:+.1f} to {gap.high * 100:+.1f}"
    if gap.contains_zero:
        return f"no accuracy gap is seen: {gap.estimate * 100:+.1f} points ({bounds})"
    if gap.high < 0:
        return f"accuracy is higher on validation images, by {-gap.estimate * 100:.1f} points (gap: {bounds})"
    return (
        f"the accuracy gap is {gap.estimate * 100:.1f} points ({bounds}), "
        f"{share.estimate:.0%} of the validation error ({share.low:.0%} to {share.high:.0%})"
    )


def _describe_rise(rise: Interval, lowest: float) -> str:
    estimate, low, high = (value / lowest for value in (rise.estimate, rise.low, rise.high))
    return f"validation loss rose by {estimate:.0%} ({low:.0%} to {high:.0%})"


def _describe_gains(gains: Sequence[ExpectedGain], config: DictConfig) -> str:
    if not gains:
        return "Whether a remedy would pay is not known: the study has no training like this one"
    helpful = [gain for gain in gains if gain.may_help]
    caution = _caution(config)
    if not helpful:
        return f"{_BASIS}, no remedy is expected to gain 0.2 points in runs like this one{caution}"
    texts = [
        f"{REMEDIES[gain.remedy][0]} by {gain.gain.estimate * 100:+.1f} points ({gain.gain.low * 100:+.1f} to "
        f"{gain.gain.high * 100:+.1f})"
        for gain in helpful[:2]
    ]
    rest = "; a gain of 0.2 points by anything else is unlikely" if len(helpful) <= len(texts) else ""
    return f"{_BASIS}, runs like this one are expected to gain from {' and '.join(texts)}{rest}{caution}"


def _caution(config: DictConfig) -> str:
    """Caution on the intervals of the study for a run on other data; an empty text for a run on its data."""
    if (elsewhere := _elsewhere(config)) is None:
        return ""
    share = elsewhere["in_interval"]
    return (
        f". The study is on Fashion-MNIST: on pictures of another kind its intervals held only {share:.0%} of the gains"
    )


def _elsewhere(config: DictConfig) -> dict[str, Any] | None:
    """Accuracy of the study's predictions on other data than its own; None for a run on its data."""
    is_data_of_study = OmegaConf.select(config, "data._target_") in (None, _DATA_OF_STUDY)
    return None if is_data_of_study else _study().get("elsewhere")


FEATURES = (
    *("gap_share", "log_val_error", "val_loss_trend"),
    *("log2_images", "log2_epochs", "log2_parameters", "augmentation", "mixing"),
)


def loss_trend(epochs: NDArray[Any], losses: NDArray[np.float64]) -> float:
    """Return the logarithm of the last loss over the loss at three quarters of the epochs.

    It is negative while the loss falls.

    Args:
        epochs: `(E,)`, measured epochs from 1, ascending.
        losses: `(E,)`, validation losses after them.

    Returns:
        The trend; NaN if nothing was measured in the first three quarters.
    """
    before = losses[epochs <= 0.75 * epochs[-1]]
    return math.log(max(losses[-1], 1e-6) / max(before[-1], 1e-6)) if len(before) else math.nan


def run_features(
    train_accuracy: float,
    val_accuracy: float,
    *,
    images: int,
    epochs: int,
    parameters: int,
    config: DictConfig,
    val_loss_trend: float = math.nan,
) -> NDArray[np.float64]:
    """Compute the features `(F,)` of a run that expected gains depend on, in the order of `FEATURES`.

    Args:
        train_accuracy: accuracy on the train probe after the last measured epoch.
        val_accuracy: accuracy on the validation set after that epoch.
        images: the number of training images.
        epochs: the number of epochs.
        parameters: the number of parameters of the network.
        config: the settings of the run.
        val_loss_trend: `loss_trend` of the validation loss; NaN if it is not known.
    """
    train_error, val_error = (max(1 - accuracy, 1e-4) for accuracy in (train_accuracy, val_accuracy))
    settings = setting_features(images, epochs, parameters, config)
    return np.array([1 - train_error / val_error, math.log(val_error), val_loss_trend, *settings])


def setting_features(images: int, epochs: int, parameters: int, config: DictConfig) -> list[float]:
    """Compute the features of the settings of a run, the last five of `FEATURES`. Arguments as for `run_features`."""
    augmentation = OmegaConf.select(config, "data.augmentation") or {}
    return [
        math.log2(images),
        math.log2(epochs),
        math.log2(parameters),
        float(any(augmentation.values())),
        float(bool(config.get("mixing"))),
    ]


@cache
def _study() -> dict[str, Any]:
    return json.loads(_STUDY.read_text())


def expected_gains(features: NDArray[np.float64], config: DictConfig) -> tuple[ExpectedGain, ...]:
    """Predict the gains of the remedies that are possible with `config`, highest first.

    Args:
        features: `(F,)`, see `run_features`; an unknown one is NaN and replaced by the mean of the study.
        config: the settings of the run.

    Returns:
        The gains, without remedies that the study has not tried on similar runs.
    """
    study = _study()
    mean, scale = (np.array(study[name]) for name in ("mean", "scale"))
    val_error = math.exp(features[FEATURES.index("log_val_error")])
    gains = []
    for remedy in possible_remedies(config):
        if (model := study["remedies"].get(remedy)) is None:
            continue
        low, high = (np.array(model[bound]) for bound in ("low", "high"))
        # The trend of the loss is clipped to the range of the study; runs beyond it are not rejected.
        clipped = np.where(np.array(FEATURES) == "val_loss_trend", features.clip(low, high), features)
        if not in_range(clipped, low, high, scale):
            continue
        # The model predicts shares of the validation error.
        standardised = np.nan_to_num((clipped - mean) / scale)
        share = model["intercept"] + float(standardised @ np.array(model["coefficients"]))
        gains.append(ExpectedGain.normal(remedy, share * val_error, model["deviation"] * val_error))
    return tuple(sorted(gains, key=lambda gain: -gain.gain.estimate))


def in_range(
    features: NDArray[np.float64], low: NDArray[np.float64], high: NDArray[np.float64], scale: NDArray[np.float64]
) -> bool:
    """Return whether the features of a run are within the range of the study, with a margin.

    Args:
        features: `(F,)` of the run.
        low: `(F,)`, the lowest features of the study's trainings.
        high: `(F,)`, their highest features.
        scale: `(F,)`, their standard deviations; the margin is half of one.
    """
    # Comparisons with NaN are false: a feature that is not known is in range.
    return not ((features < low - _MARGIN * scale) | (features > high + _MARGIN * scale)).any()


def possible_remedies(config: DictConfig) -> list[str]:
    """List the remedies (conf/remedy) that change something in a training with `config`."""

    def value(key: str) -> Any:
        return OmegaConf.select(config, key)

    augmentation = value("data.augmentation") or {}
    has_mixing, smoothing = bool(config.get("mixing")), value("model.label_smoothing") or 0
    possible = {
        "more_images": (value("data.train_fraction") or 1) <= 0.5,
        "augmentation": not any(augmentation.values()),
        "cutmix": not has_mixing,
        "erasing": (augmentation.get("erasing") or {}).get("p", 0) < 0.75,
        "smoothing": not smoothing,
        "dropout": value("model.network.dropout") is not None and value("model.network.dropout") <= 0.5,
        "more_decay": bool(value("optimizer.weight_decay")),
        "smaller": bool(value("model.network.widths")),
        "shorter": value("trainer.max_epochs") > 1,
        "longer": True,
        "larger": bool(value("model.network.widths")),
        "less_decay": bool(value("optimizer.weight_decay")),
        "no_mixing": has_mixing,
        "no_smoothing": bool(smoothing),
    }
    return [remedy for remedy in REMEDIES if possible[remedy]]


@dataclass(frozen=True)
class Advice:
    """Suggestion for the next run.

    Attributes:
        reason: what the overrides do and why.
        overrides: the overrides to add to the command.
    """

    reason: str
    overrides: tuple[str, ...]


def advise(verdict: Verdict, config: DictConfig) -> list[Advice]:
    """Suggest the two best remedies if they may help, and one command that tries both over three seeds.

    Args:
        verdict: the verdict on the run.
        config: the settings of the run.

    Returns:
        The suggestions, best first; only to measure the variation over seeds, if no remedy may help.
    """
    typed = next((o.partition("=")[2] for o in config.get("overrides") or [] if override_key(o) == "remedy"), "")
    applied = [name for name in typed.strip("[]").split(",") if name not in ("", "none")]

    def choice(*remedies: str) -> str:
        names = [*applied, *remedies]
        return names[0] if len(names) == 1 else f"[{','.join(names)}]"

    helpful = [gain for gain in verdict.gains if gain.may_help][:2]
    if not helpful:
        return [Advice("measure the variation over seeds", ("-m", "seed=0,1,2"))]
    advice = [
        Advice(
            f"{REMEDIES[gain.remedy][1]}: {gain.gain.estimate * 100:+.1f} points expected, a gain of 0.2 or more with "
            f"probability {_describe_probability(gain.probability)}",
            (f"remedy={choice(gain.remedy)}",),
        )
        for gain in helpful
    ]
    compared = [choice() if applied else "none", *(choice(gain.remedy) for gain in helpful)]
    tried = " and ".join(REMEDIES[gain.remedy][0] for gain in helpful)
    sweep = ("sweep=remedies", f"remedy={','.join(compared)}", *_validation_overrides(config))
    return [*advice, Advice(f"try {tried} over three seeds", sweep)]


def _describe_probability(probability: float) -> str:
    # The prediction intervals are too inexact for probabilities near 1.
    return "above 95%" if probability > 0.95 else f"{probability:.0%}"


def _validation_overrides(config: DictConfig) -> list[str]:
    """Overrides that hold out validation images, on which remedies are compared, if the run has none."""
    defaults = {"data.val_size": 5000, "data.val_share": 0.15}
    if OmegaConf.select(config, "data.folds"):
        return []
    return [f"{key}={value}" for key, value in defaults.items() if OmegaConf.select(config, key) == 0]


def training_command(config: Mapping[str, Any] | DictConfig, changes: Sequence[str] = ()) -> str:
    """Command that repeats a training run with changes.

    Args:
        config: the settings of the run, of which `overrides` and `flags` are read.
        changes: overrides and flags to add; an override replaces one of the same key.
    """
    overrides, flags = config.get("overrides") or [], config.get("flags") or []
    flags = [*flags, *(change for change in changes if change.startswith("-"))]
    values = {override_key(override): override for override in [*overrides, *changes] if override not in flags}
    if any(override_key(change) == "model" for change in changes):
        # Overrides of the network and the initial weights do not fit another model.
        dropped = ("model.network.", "init_from")
        values = {k: value for k, value in values.items() if k != "model.network" and not k.startswith(dropped)}
    return shlex.join(["python", "-m", "fashion_cnn.train", *flags, *values.values()])
