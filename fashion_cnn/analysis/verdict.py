"""Verdict on a training run: underfitting, good fit, overfitting or memorising, with the rule and what to try next."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from omegaconf import DictConfig, OmegaConf

from fashion_cnn.analysis.history import History
from fashion_cnn.metrics.gap import accuracy_gap_of
from fashion_cnn.metrics.intervals import Interval
from fashion_cnn.runs.overrides import override_key

Kind = Literal["underfitting", "fits well", "overfitting", "memorising"]
# The thresholds suit data like Fashion-MNIST, with a few classes that people confuse too. All are fractions.
FITTED_ACCURACY = 0.99  # training accuracy from which nothing is left to learn
LOW_ACCURACY = 0.90  # training accuracy below which more can be learned
LARGE_GAP = 0.10  # accuracy gap
LOSS_RISE = 0.05  # rise of the validation loss above its minimum, relative to the minimum
LOSS_FALL = 0.02  # fall of the validation loss per epoch at the end, relative to the measured epoch before
LARGE_GAP_SHARE = 2 / 3  # accuracy gap relative to the validation error
SMALL_GAP_SHARE = 1 / 4  # accuracy gap relative to the validation error
WIDE_INTERVAL = 0.05  # width of the interval of the accuracy gap that too few images cause
_SIZES = ("tiny", "small", "medium")


@dataclass(frozen=True)
class Verdict:
    """Verdict on the curves of a training run.

    Attributes:
        kind: the verdict.
        rule: the rule that applied, with its values, and a caveat if there are few validation images.
        last_epoch: the last measured epoch, from 1.
        gap: the accuracy gap between train probe and validation after that epoch.
        loss_gap: the loss gap after that epoch.
        rising_since: the first epoch of a rise of the validation loss under falling training loss; None without one.
        lowest_at_end: True if the validation loss was lowest after the last measured epoch.
    """

    kind: Kind
    rule: str
    last_epoch: int
    gap: Interval
    loss_gap: float
    rising_since: int | None
    lowest_at_end: bool


def judge(history: History, train_count: int, val_count: int, train_share: float = 0.0) -> Verdict | None:
    """Judge a training run by its curves.

    Only epochs with a validation pass count. The first rule that applies gives the verdict:

    1. memorising: after the last epoch, training accuracy is at least 99% and the accuracy gap at least 10 points.
    2. overfitting: the validation loss ended at least 5% above its minimum while the training loss fell; or the gap is
       at least two thirds of the validation error, and its interval excludes zero.
    3. underfitting: the gap is less than a quarter of the validation error, or its interval contains zero, and there
       is more to learn: training accuracy is below 90%; or it is below 99%, and the validation loss still fell by at
       least 2% per epoch since the last but one, or only one epoch was measured.
    4. fits well: otherwise.

    Args:
        history: the metrics of the epochs.
        train_count: the number of images of the train probe.
        val_count: the number of images of the validation split.
        train_share: share of the training split that the train probe is, see `fashion_cnn.metrics.gap`.

    Returns:
        The verdict; None if no epoch has both a training and a validation loss.
    """
    train, val = history["train/loss"], history["val/loss"]
    measured = np.isfinite(train) & np.isfinite(val)
    if not measured.any():
        return None
    epochs, train, val = history.epochs[measured], train[measured], val[measured]
    train_accuracy, val_accuracy = (float(history[f"{name}/accuracy"][measured][-1]) for name in ("train", "val"))
    gap = accuracy_gap_of(train_accuracy, val_accuracy, train_count, val_count, train_share)
    gap_share = gap.estimate / max(1 - val_accuracy, 1 / val_count)
    lowest = int(val.argmin())
    rise = val[-1] / val[lowest] - 1
    rising = rise >= LOSS_RISE and train[-1] < train[lowest]
    step = int(epochs[-1] - epochs[-2]) if len(val) > 1 else 1
    fall_per_epoch = 1 - (val[-1] / val[-2]) ** (1 / step) if len(val) > 1 else np.inf
    small_gap = gap_share < SMALL_GAP_SHARE or gap.contains_zero

    points = f"{gap.estimate * 100:.1f} points"
    gap_text = f"the accuracy gap of {points} is {max(gap_share, 0):.0%} of the validation error"
    kind: Kind
    if train_accuracy >= FITTED_ACCURACY and gap.estimate >= LARGE_GAP:
        kind = "memorising"
        rule = f"training accuracy is {train_accuracy:.1%} (99% or more) and the accuracy gap {points} (10 or more)"
    elif rising:
        kind = "overfitting"
        rule = (
            f"validation loss ended {rise:.0%} above its minimum (5% or more) while training loss fell from "
            f"{train[lowest]:.4f} to {train[-1]:.4f}"
        )
    elif gap_share >= LARGE_GAP_SHARE and gap.low > 0:
        kind, rule = "overfitting", f"{gap_text} (two thirds or more)"
    elif small_gap and train_accuracy < LOW_ACCURACY:
        kind, rule = "underfitting", f"{gap_text}, and training accuracy is only {train_accuracy:.1%}"
    elif small_gap and fall_per_epoch >= LOSS_FALL and train_accuracy < FITTED_ACCURACY:
        if len(val) == 1:
            falling = "only one epoch was measured"
        else:
            last = "the last epoch" if step == 1 else f"the last {step} epochs"
            falling = f"validation loss fell by {1 - val[-1] / val[-2]:.0%} in {last}"
        kind, rule = "underfitting", f"{gap_text}, and {falling}"
    else:
        both_rose = "training loss did not fall while validation loss rose"
        losses = both_rose if rise >= LOSS_RISE else "validation loss did not rise"
        large = "two thirds or more, but its interval contains zero"
        size = large if gap_share >= LARGE_GAP_SHARE else "less than two thirds"
        kind, rule = "fits well", f"{losses}, and {gap_text} ({size})"
    return Verdict(
        kind=kind,
        rule=rule + _caveat(gap, val_count),
        last_epoch=int(epochs[-1]),
        gap=gap,
        loss_gap=float(val[-1] - train[-1]),
        rising_since=int(epochs[lowest + 1]) if rising else None,
        lowest_at_end=lowest == len(val) - 1,
    )


def _caveat(gap: Interval, val_count: int) -> str:
    if gap.high - gap.low <= WIDE_INTERVAL:
        return ""
    bounds = f"{gap.low * 100:+.1f} to {gap.high * 100:+.1f} points"
    return f"; with only {val_count:,} validation images, the 95% interval of the gap is {bounds}"


@dataclass(frozen=True)
class Advice:
    """Suggestion for the next run.

    Attributes:
        reason: what the overrides do and why.
        overrides: the overrides to add to the command.
    """

    reason: str
    overrides: tuple[str, ...]


def advise(verdict: Verdict, config: DictConfig, epochs: int) -> list[Advice]:
    """Suggest at most three changes that are possible with `config`, after a run of so many epochs."""
    overfits = verdict.kind in ("overfitting", "memorising")
    advice = _reduce_overfitting(verdict, config) if overfits else _improve_fit(verdict, config)
    if not overfits and verdict.lowest_at_end and epochs == OmegaConf.select(config, "trainer.max_epochs"):
        last = "last epoch" if verdict.last_epoch == epochs else "last measured epoch"
        reason = f"train longer, since validation loss was lowest after the {last}"
        advice.insert(0, Advice(reason, (f"trainer.max_epochs={2 * epochs}",)))
    return advice[:3]


def _reduce_overfitting(verdict: Verdict, config: DictConfig) -> list[Advice]:
    advice = []
    fraction = OmegaConf.select(config, "data.train_fraction")
    if fraction is not None and fraction < 1:
        advice.append(Advice("use all training images", ("data.train_fraction=1.0",)))
    augmentation = OmegaConf.select(config, "data.augmentation") or {}
    if not any(augmentation.values()):
        parts = ",".join(
            f"{name}:{{_target_:fashion_cnn.data.Random{name.capitalize()}}}" for name in ("flip", "erasing")
        )
        advice.append(Advice("add data augmentation", (f"data.augmentation={{{parts}}}",)))
    elif (augmentation.get("erasing") or {}).get("p", 1) < 0.75:
        advice.append(Advice("apply random erasing to more images", ("data.augmentation.erasing.p=0.75",)))
    if verdict.rising_since is not None and not OmegaConf.select(config, "callbacks.early_stopping"):
        early_stopping = [f"callbacks.early_stopping.{part}" for part in ("monitor=val/loss", "mode=min")]
        reason = "stop early, when validation loss no longer falls"
        advice.append(Advice(reason, ("callbacks=early_stopping", *early_stopping)))
    dropout = OmegaConf.select(config, "model.network.dropout")
    if dropout is not None and dropout <= 0.5:
        advice.append(Advice("increase dropout", (f"model.network.dropout={dropout + 0.2:g}",)))
    decay = OmegaConf.select(config, "optimizer.weight_decay")
    if decay is not None:
        advice.append(Advice("increase weight decay", (f"optimizer.weight_decay={decay * 4 if decay else 0.01:g}",)))
    return advice


def _improve_fit(verdict: Verdict, config: DictConfig) -> list[Advice]:
    advice = []
    dropout = OmegaConf.select(config, "model.network.dropout")
    if verdict.kind == "underfitting" and dropout:
        advice.append(Advice("disable dropout, which limits the fit", ("model.network.dropout=0.0",)))
    overrides = dict(override.partition("=")[::2] for override in config.get("overrides") or [])
    size = overrides.get("model", "small")
    if "experiment" not in overrides and size in _SIZES[:-1]:
        advice.append(Advice("train a larger model", (f"model={_SIZES[_SIZES.index(size) + 1]}",)))
    if verdict.kind == "fits well":
        advice.append(Advice("measure the variation over seeds", ("-m", "seed=0,1,2")))
    return advice


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
