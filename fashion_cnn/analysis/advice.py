"""What to try next, in the form of the command to type."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from omegaconf import DictConfig, OmegaConf

from fashion_cnn.analysis.verdict import Verdict
from fashion_cnn.overrides import key_of

_SIZES = ("tiny", "small", "medium")


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


def command(typed: Sequence[str], changes: Sequence[str]) -> str:
    """The command that repeats a training, which was started with the overrides `typed`, with `changes` to it."""

    flags = [change for change in changes if change.startswith("-")]
    values = {key_of(override): override for override in [*typed, *changes] if override not in flags}
    if any(key_of(change) == "model" for change in changes):
        # Another network has other parts, and cannot start from these weights.
        values = {key: typed for key, typed in values.items() if not key.startswith(("model.network.", "init_from"))}
    return shlex.join(["python", "-m", "fashion_cnn.train", *flags, *values.values()])
