"""Verdict on a training: underfitting, good fit, overfitting or memorising, by which rule, and what to try next."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from omegaconf import DictConfig, OmegaConf

from fashion_cnn.analysis.history import History
from fashion_cnn.metrics.intervals import Interval, newcombe_interval, wilson_interval
from fashion_cnn.runs.overrides import override_key

Kind = Literal["underfitting", "fits well", "overfitting", "memorising"]
# Of Fashion-MNIST's kind: a few classes that people mix up too. The figures are shares, 0.1 for ten points.
LEARNED_ALL = 0.99  # accuracy on the training images, from which on there is nothing left to fit
LEARNED_LITTLE = 0.90  # below this accuracy on the training images there is more to fit
WIDE_GAP = 0.10  # of accuracy
RISE = 0.05  # of validation loss above its lowest, in relation to it
STILL_FALLING = 0.02  # of validation loss over the last epoch, in relation to it
MOSTLY_GAP = 2 / 3  # of the validation mistakes
HARDLY_GAP = 1 / 4  # of the validation mistakes
UNSURE = 0.05  # a gap whose interval is wider was measured on few images
_SIZES = ("tiny", "small", "medium")


@dataclass(frozen=True)
class Verdict:
    """What the curves of a training come to.

    kind: the verdict. rule: the rule that gave it, with the figures that met it, and a reservation where few images
    gave them. last_epoch: the last one measured,
    from 1. gap, loss_gap: train probe against validation after that epoch, of accuracy and (the estimate) of loss.
    rising_since: the first epoch of the validation loss's rise, while the training loss fell; None without one.
    lowest_at_end: whether the validation loss was at its lowest after the last epoch.
    """

    kind: Kind
    rule: str
    last_epoch: int
    gap: Interval
    loss_gap: float
    rising_since: int | None
    lowest_at_end: bool


def judge(history: History, train_count: int, val_count: int) -> Verdict | None:
    """Judge a training by its curves, of splits of so many images; None where no gap was measured.

    The rules, in their order:

    1. memorising: after the last epoch the training images are learned (99%) and the gap is ten points or more.
    2. overfitting: the validation loss ended 5% or more above its lowest while the training loss fell; or the gap
       makes up two thirds or more of the validation mistakes, and its interval leaves zero out.
    3. underfitting: the gap makes up less than a quarter of the validation mistakes, or its interval holds zero, and
       there was more to learn: less than 90% of the training images are recognised; or less than 99%, and the
       validation loss was still falling by 2% or more in the last epoch, or only one epoch was measured.
    4. fits well: anything else.
    """
    train, val = history["train/loss"], history["val/loss"]
    measured = np.isfinite(train) & np.isfinite(val)
    if not measured.any():
        return None
    epochs, train, val = history.epochs[measured], train[measured], val[measured]
    train_accuracy, val_accuracy = (float(history[f"{name}/accuracy"][measured][-1]) for name in ("train", "val"))
    gap = newcombe_interval(wilson_interval(train_accuracy, train_count), wilson_interval(val_accuracy, val_count))
    share = gap.estimate / max(1 - val_accuracy, 1 / val_count)
    lowest = int(val.argmin())
    rise = val[-1] / val[lowest] - 1
    rising = rise >= RISE and train[-1] < train[lowest]

    def verdict(kind: Kind, rule: str) -> Verdict:
        rising_since = int(epochs[lowest + 1]) if rising else None
        return Verdict(
            kind=kind,
            rule=rule + _reservation(gap, val_count),
            last_epoch=int(epochs[-1]),
            gap=gap,
            loss_gap=float(val[-1] - train[-1]),
            rising_since=rising_since,
            lowest_at_end=lowest == len(val) - 1,
        )

    gap_said = f"the gap of {gap.estimate * 100:.1f} points makes up {max(share, 0):.0%} of the validation mistakes"
    if train_accuracy >= LEARNED_ALL and gap.estimate >= WIDE_GAP:
        return verdict(
            "memorising",
            f"{train_accuracy:.1%} of the training images are learned (99% or more) and the gap is "
            f"{gap.estimate * 100:.1f} points (10 or more)",
        )
    if rising:
        return verdict(
            "overfitting",
            f"the validation loss ended {rise:.0%} above its lowest (5% or more) while the training loss fell from "
            f"{train[lowest]:.4f} to {train[-1]:.4f}",
        )
    if share >= MOSTLY_GAP and gap.low > 0:
        return verdict("overfitting", f"{gap_said} (two thirds or more)")
    small_gap = share < HARDLY_GAP or gap.contains_zero
    fell = 1 - val[-1] / val[-2] if len(val) > 1 else np.inf
    if small_gap and train_accuracy < LEARNED_LITTLE:
        return verdict(
            "underfitting", f"{gap_said}, and only {train_accuracy:.1%} of the training images are recognised"
        )
    if small_gap and fell >= STILL_FALLING and train_accuracy < LEARNED_ALL:
        falling = "only one epoch was measured" if len(val) == 1 else f"the validation loss still fell by {fell:.0%}"
        return verdict("underfitting", f"{gap_said}, and {falling}{' in the last epoch' * (len(val) > 1)}")
    why = "the validation loss did not rise" if rise < RISE else "the training loss did not fall as the other rose"
    measure = "two thirds or more, but its interval holds zero" if share >= MOSTLY_GAP else "less than two thirds"
    return verdict("fits well", f"{why}, and {gap_said} ({measure})")


def _reservation(gap: Interval, val_count: int) -> str:
    if gap.high - gap.low <= UNSURE:
        return ""
    return (
        f"; but {val_count:,} validation images tell little: with others the gap could be anything from "
        f"{gap.low * 100:+.1f} to {gap.high * 100:+.1f} points"
    )


@dataclass(frozen=True)
class Advice:
    """A reason, and the overrides that act on it."""

    reason: str
    overrides: tuple[str, ...]


def advise(verdict: Verdict, config: DictConfig, epochs: int) -> list[Advice]:
    """At most three things to try after so many epochs, each possible with `config` as it is."""
    too_much = verdict.kind in ("overfitting", "memorising")
    advice = _against_overfitting(verdict, config) if too_much else _towards_a_better_fit(verdict, config)
    if not too_much and verdict.lowest_at_end and epochs == OmegaConf.select(config, "trainer.max_epochs"):
        reason = "the validation loss was still at its lowest at the end: train longer"
        advice.insert(0, Advice(reason, (f"trainer.max_epochs={2 * epochs}",)))
    return advice[:3]


def _against_overfitting(verdict: Verdict, config: DictConfig) -> list[Advice]:
    advice = []
    fraction = OmegaConf.select(config, "data.train_fraction")
    if fraction is not None and fraction < 1:
        advice.append(Advice("more images are there to train on", ("data.train_fraction=1.0",)))
    augmentation = OmegaConf.select(config, "data.augmentation") or {}
    if not any(augmentation.values()):
        parts = ",".join(
            f"{name}:{{_target_:fashion_cnn.data.Random{name.capitalize()}}}" for name in ("flip", "erasing")
        )
        advice.append(Advice("augmentation makes new images of those there are", (f"data.augmentation={{{parts}}}",)))
    elif (augmentation.get("erasing") or {}).get("p", 1) < 0.75:
        advice.append(Advice("erase a part of more of the images", ("data.augmentation.erasing.p=0.75",)))
    if verdict.rising_since is not None and not OmegaConf.select(config, "callbacks.early_stopping"):
        advice.append(Advice("stop where validation no longer improves", ("callbacks=early_stopping",)))
    dropout = OmegaConf.select(config, "model.network.dropout")
    if dropout is not None and dropout <= 0.5:
        advice.append(Advice("drop some of the features at random", (f"model.network.dropout={dropout + 0.2:g}",)))
    decay = OmegaConf.select(config, "optimizer.weight_decay")
    if decay is not None:
        stronger = f"optimizer.weight_decay={decay * 4 if decay else 0.01:g}"
        advice.append(Advice("pull the weights towards zero harder", (stronger,)))
    return advice


def _towards_a_better_fit(verdict: Verdict, config: DictConfig) -> list[Advice]:
    advice = []
    dropout = OmegaConf.select(config, "model.network.dropout")
    if verdict.kind == "underfitting" and dropout:
        advice.append(Advice("dropout keeps it from fitting", ("model.network.dropout=0.0",)))
    typed = dict(override.partition("=")[::2] for override in config.get("overrides") or [])
    size = typed.get("model", "small")
    if "experiment" not in typed and size in _SIZES[:-1]:
        advice.append(Advice("a larger network fits more", (f"model={_SIZES[_SIZES.index(size) + 1]}",)))
    if verdict.kind == "fits well":
        advice.append(Advice("see how much of a difference is luck", ("-m", "seed=0,1,2")))
    return advice


def training_command(typed: Sequence[str], changes: Sequence[str]) -> str:
    """The command that repeats a training, which was started with the overrides `typed`, with `changes` to it."""

    flags = [change for change in changes if change.startswith("-")]
    values = {override_key(override): override for override in [*typed, *changes] if override not in flags}
    if any(override_key(change) == "model" for change in changes):
        # Another network has other parts, and cannot start from these weights.
        values = {key: typed for key, typed in values.items() if not key.startswith(("model.network.", "init_from"))}
    return shlex.join(["python", "-m", "fashion_cnn.train", *flags, *values.values()])
