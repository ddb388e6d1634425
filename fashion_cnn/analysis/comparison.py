"""Comparison of runs: groups that differ in their settings, with mean and standard deviation over seeds or folds."""

import functools
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fashion_cnn.analysis.history import read_history
from fashion_cnn.analysis.settings import (
    REPETITIONS,
    Setting,
    is_checkpoint_setting,
    is_setting,
    repeated_settings,
    to_setting,
)
from fashion_cnn.errors import UserError
from fashion_cnn.metrics.intervals import Z_95, Interval, MeanStd, mean_interval, paired_interval, t_quantile
from fashion_cnn.metrics.predictions import PREDICTION_FIELDS, Predictions, read_predictions
from fashion_cnn.runs import Run, common_folder, format_csv
from fashion_cnn.runs.finding import run_id
from fashion_cnn.runs.overrides import CONFIG_DIR, override_key

# Columns of the table by heading: metric in results.json, scale and number of digits.
COLUMNS: dict[str, tuple[str, float, int]] = {
    "train acc. %": ("train/accuracy", 100, 2),
    "val acc. %": ("val/accuracy", 100, 2),
    "test acc. %": ("test/accuracy", 100, 2),
    "gap, points": ("gap/accuracy", 100, 2),
    "train loss": ("train/loss", 1, 4),
    "val loss": ("val/loss", 1, 4),
    "gap in loss": ("gap/loss", 1, 4),
    "best epoch": ("best_epoch", 1, 1),
    "minutes": ("seconds", 1 / 60, 1),
}
_VERDICT = "verdict"
# Smallest number of pairs of equal seed, fold or subset whose differences give an interval.
_MIN_PAIRS = 3
# Standard deviation of the test accuracy over five seeds of experiment=tiny (docs/results.md).
_SEED_DEVIATION = 0.0016
# Settings that choose the validation images, with their defaults.
_VALIDATION = {
    "data": "none",
    "data.val_size": "none",
    "data.val_share": "none",
    "data.split_seed": 0,
    "data.folds": "none",
    "data.left_out": "none",
}
# Metrics with a band over the runs in TensorBoard.
BAND_METRICS = tuple(f"{split}/{name}" for name in ("accuracy", "loss") for split in ("val", "train", "gap"))
# Metric that gives the position of a model on an axis.
SIZE = "parameters"


@dataclass(frozen=True)
class Group:
    """Finished runs that differ only in their seed, fold or subset of the images, the newest of each.

    Attributes:
        factors: the settings that distinguish the group from the others, by name.
        results: `results.json` of each run, with `fold`, the number of its fold, in cross-validation, and
            `subset_seed`, the seed of its subset of the training images, if it was trained on one.
        runs: the runs, in the same order.
    """

    factors: dict[str, Setting]
    results: tuple[dict[str, Any], ...]
    runs: tuple[Run, ...] = ()

    @cached_property
    def out_of_fold(self) -> Predictions | None:
        """Predictions of every image by the last weights of its fold, if the runs are all folds of one seed."""
        folds = {OmegaConf.select(run.config(), "data.folds") for run in self.runs}
        if len(folds) != 1 or [result.get("fold") for result in self.results] != [*range(folds.pop() or 0)]:
            return None
        try:
            parts = [read_fold_predictions(run) for run in self.runs]
        except (OSError, ValueError, KeyError):  # Some callbacks store none, and someone else's may be damaged.
            return None
        logits, targets, indices = (torch.cat([getattr(part, name) for part in parts]) for name in PREDICTION_FIELDS)
        if len(indices.unique()) < len(indices):
            return None
        order = indices.argsort()
        return Predictions(logits[order], targets[order], indices[order])

    @cached_property
    def test_ratio(self) -> float:
        """Number of validation images per training image in cross-validation; 0 if the runs are of one fold or none."""
        if _repetitions((self,)) != "folds":
            return 0.0
        counts = (OmegaConf.select(run.config(), "data.folds") for run in self.runs)
        return max((1 / (count - 1) for count in counts if isinstance(count, int) and count > 1), default=0.0)

    def values(self, name: str) -> tuple[float, ...]:
        """The values of a metric in results.json over the runs; empty if a run lacks it."""
        if not all(isinstance(result.get(name), int | float) for result in self.results):
            return ()
        return tuple(float(result[name]) for result in self.results)

    def bands(self) -> dict[str, tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]]:
        """Epochs, mean and standard deviation (n - 1) over the runs of each metric of `BAND_METRICS` by epoch.

        Only epochs that all runs have measured count; there is nothing for fewer than two runs.
        """
        try:
            histories = [read_history(run) for run in self.runs]
        except UserError:  # A run keeps no metrics by epoch, or they are damaged.
            return {}
        if len(histories) < 2:
            return {}
        epochs = functools.reduce(np.intersect1d, (history.epochs for history in histories))
        bands = {}
        for name in BAND_METRICS:
            rows = [history[name][np.isin(history.epochs, epochs)] for history in histories]
            values = np.array(rows)
            known = np.isfinite(values).all(axis=0)
            if known.any():
                bands[name] = epochs[known], values[:, known].mean(axis=0), values[:, known].std(axis=0, ddof=1)
        return bands

    @property
    def verdict(self) -> str:
        """The verdicts of the runs, the most frequent first, with their numbers if they differ."""
        counts = Counter(str(result["verdict"]) for result in self.results if "verdict" in result)
        if len(counts) < 2:
            return "".join(counts)
        return ", ".join(f"{verdict} {count}" for verdict, count in counts.most_common())

    @property
    def label(self) -> str:
        """The settings as `key=value`."""
        return ", ".join(f"{name}={value}" for name, value in self.factors.items())

    def metric(self, name: str) -> MeanStd | None:
        """Mean and standard deviation of a metric over the runs; None if a run lacks it."""
        values = self.values(name)
        return MeanStd.of(values) if values else None


@dataclass(frozen=True)
class Comparison:
    """Comparison of runs.

    Attributes:
        groups: the groups of the finished runs, ordered by their factors.
        factors: the names of the settings that differ.
        unfinished: the other runs, and those whose settings cannot be read.
        notes: limits of the comparison, a sentence or two each.
        name: the folder of the runs, such as that of a sweep.
    """

    groups: tuple[Group, ...]
    factors: tuple[str, ...]
    unfinished: tuple[Run, ...]
    notes: tuple[str, ...] = ()
    name: str = ""


class _Variant(NamedTuple):
    """Settings without seed, fold and subset, and the runs that have them."""

    settings: dict[str, Setting]
    runs: list[Run]

    @property
    def overrides(self) -> dict[str, str]:
        return _overrides(self.runs[0])


def compare(runs: Iterable[Run]) -> Comparison:
    """Group the finished runs by their settings, ignoring the seed, the fold and the seed of a subset of the images.

    Args:
        runs: the runs, in any order.

    Returns:
        The groups with the settings that distinguish them.

    Raises:
        UserError: if no run is finished.
    """
    runs = list(runs)
    variants = _variants(run for run in runs if run.state == "finished")
    if not variants:
        states = ", ".join(f"{run.path} ({run.state})" for run in runs[:3])
        raise UserError(f"nothing to compare: no finished run among {len(runs)}: {states or 'give runs=DIR'}.")
    # A single variant is compared with the settings of the unfinished runs.
    readable = (run for run in runs if run.state not in ("damaged", "empty"))
    compared = variants if len(variants) > 1 else _variants(readable)
    factors = _factor_names(compared)
    groups = [
        Group({name: _factor_value(variant, name) for name in factors}, *_results_by_repetition(variant.runs))
        for variant in variants
    ]
    compared_runs = {run for variant in variants for run in variant.runs}
    # The runs that the others are compared with come first.
    groups.sort(
        key=lambda group: [
            (name == "remedy" and value != "none", *_sort_key(value)) for name, value in group.factors.items()
        ]
    )
    results = [result for group in groups for result in group.results]
    lagging = sum("evaluation_lag" in result for result in results)
    notes = filter(None, (_validation_note(variants), lag_note(lagging, len(results)), *map(_out_of_fold_note, groups)))
    unfinished = tuple(run for run in runs if run not in compared_runs)
    return Comparison(tuple(groups), tuple(factors), unfinished, tuple(notes), _folder_name(runs))


def read_fold_predictions(run: Run) -> Predictions:
    """Read the predictions of a fold's validation images by the weights of the last epoch.

    The best epoch was chosen on these images, and its predictions are no out-of-sample predictions.

    Raises:
        FileNotFoundError: if the run stored none.
        ValueError: if the file is damaged.
        KeyError: if it has none of validation images.
    """
    stored = read_predictions(run.predictions_file)
    # A run whose best epoch is the last one stores it once.
    return stored.get("last.val", stored["best.val"])


def _out_of_fold_note(group: Group) -> str:
    """Note on the accuracy of a cross-validation over all images; an empty text for other groups."""
    predictions = group.out_of_fold
    if predictions is None:
        return ""
    accuracy = mean_interval(predictions.correct)
    name = f"With {group.label}, over" if group.label else "Over"
    chosen = (
        ": the best epoch of each fold, which the table has, was chosen on the same images, which flatters its accuracy"
        if any(result.get("chosen_on_validation") for result in group.results)
        else ""
    )
    return (
        f"{name} all {len(predictions):,} images, each predicted by the network that was not trained on it, accuracy "
        f"is {accuracy.estimate:.2%} (95% interval {accuracy.low:.2%} to {accuracy.high:.2%}). These predictions, in "
        f"out_of_fold.npz, are of the last epoch{chosen}."
    )


def _folder_name(runs: Sequence[Run]) -> str:
    """Name of the folder that holds all runs; the folder of a sweep is named by its time, so its parent is added."""
    folder = common_folder(runs)
    return folder.name if run_id(folder) == folder.name else f"{folder.parent.name}/{folder.name}"


def lag_note(lagging: int, runs: int) -> str:
    """Note that the evaluation lags behind the training in `lagging` of `runs` runs; an empty text for none.

    See `fashion_cnn.analysis.history.evaluation_lag`.
    """
    if not lagging:
        return ""
    return (
        f"Evaluation lags behind the training in {lagging} of {runs} {'run' if runs == 1 else 'runs'}: its averages, "
        "of the weights (EMA) and in batch normalisation, need more training steps. Train longer, or turn EMA off "
        "(~callbacks.ema), before comparing settings."
    )


def _validation_note(variants: Sequence[_Variant]) -> str:
    """Note that the validation sets of the variants differ; an empty text if they do not."""
    differing = []
    for name, default in _VALIDATION.items():
        values = {str(variant.settings.get(name, default)) for variant in variants}
        if len(values) > 1:
            differing.append(f"{name}: {', '.join(sorted(values))}")
    if not differing:
        return ""
    return (
        f"The validation sets differ ({'; '.join(differing)}): accuracies and gaps are measured on different images, "
        "and a part of their differences may come from that."
    )


def _variants(runs: Iterable[Run]) -> list[_Variant]:
    variants: dict[tuple[tuple[str, Setting], ...], _Variant] = {}
    for run in runs:
        try:
            settings = repeated_settings(run.config())
        except OmegaConfBaseException:  # It refers to a key that it lacks, or to a resolver of another program.
            continue
        key = tuple(sorted(settings.items(), key=lambda item: item[0]))
        variants.setdefault(key, _Variant(dict(key), [])).runs.append(run)
    return list(variants.values())


def _factor_value(variant: _Variant, name: str) -> Setting:
    """Value of a setting of a variant, also of a default; the parts of a section are joined, as in `flip+crop`."""
    if name in variant.settings:
        return variant.settings[name]
    config = variant.runs[0].config()
    if name == "model":
        return variant.overrides.get(name) or _model_name(config)
    value: Any = None
    with suppress(OmegaConfBaseException):  # A run of someone else may have a list where others have a section.
        value = OmegaConf.select(config, name)
    if OmegaConf.is_dict(value):
        if "_target_" in value:
            return str(value["_target_"]).rpartition(".")[2]
        value = "+".join(str(key) for key, part in value.items() if part is not None)
    if value is None or value == "" or value == []:
        typed = variant.overrides.get(name)
        return "none" if typed in (None, "null") else typed
    return to_setting(value)


def _model_name(config: DictConfig) -> str:
    """Name of the file of conf/model with the network of a run without `model=`, else the class of the network."""
    typed = {override_key(override) for override in config.get("overrides") or []}
    if not typed & {"experiment", "name"}:
        # A run is then named after its model.
        return str(config.get("name"))
    network = OmegaConf.select(config, "model.network")
    if not OmegaConf.is_dict(network):
        return "default"

    def architecture(network: Any) -> dict[str, Any]:
        return {str(key): value for key, value in network.items() if key != "dropout"}

    for file in sorted((CONFIG_DIR / "model").glob("*.yaml")):
        if architecture(OmegaConf.select(OmegaConf.load(file), "network") or {}) == architecture(network):
            return file.stem
    return str(network.get("_target_", "default")).rpartition(".")[2]


def _results_by_repetition(runs: Sequence[Run]) -> tuple[tuple[dict[str, Any], ...], tuple[Run, ...]]:
    """Results of the newest run of each seed, fold and subset, in their order, and these runs."""
    newest: dict[tuple[int, ...], tuple[Run, dict[str, int]]] = {}
    for run in sorted(runs, key=lambda run: run.started):
        config = run.config()
        images = fold_and_subset(config)
        newest[config.seed, *images.values()] = run, images
    chosen = [newest[key] for key in sorted(newest)]
    return tuple(run.results() | images for run, images in chosen), tuple(run for run, _ in chosen)


def fold_and_subset(config: DictConfig) -> dict[str, int]:
    """The number of a run's fold in cross-validation, and the seed of its subset of the images, if it has them."""
    options = {"fold": ("data.folds", "data.fold"), "subset_seed": ("data.subset_fraction", "data.subset_seed")}
    return {
        name: value if isinstance(value := OmegaConf.select(config, key), int) else 0
        for name, (condition, key) in options.items()
        if OmegaConf.select(config, condition)
    }


def _overrides(run: Run) -> dict[str, str]:
    """Overrides of the settings on the command line of a run."""
    pairs = (override.lstrip("+").partition("=")[::2] for override in run.config().get("overrides") or [])
    # A choice of these config groups is compared by its single settings.
    ignored = (*REPETITIONS, "init_from", "callbacks", "logger", "trainer")
    return {
        name: value
        for name, value in pairs
        if (is_setting(name) or is_checkpoint_setting(name)) and name not in ignored
    }


def _factor_names(variants: Sequence[_Variant]) -> list[str]:
    """Names of the overrides that distinguish the variants, if they suffice, else of the settings.

    Limits of the number of batches always count.
    """
    overrides = [variant.overrides for variant in variants]
    names = _differing(overrides)
    settings = _differing([variant.settings for variant in variants])
    if len({tuple(values.get(name) for name in names) for values in overrides}) == len(variants):
        return [*names, *(name for name in settings if name.startswith("trainer.limit_") and name not in names)]
    return settings


def _differing(choices: Sequence[dict[str, Any]]) -> list[str]:
    names = dict.fromkeys(name for choice in choices for name in choice)
    return [name for name in names if len({choice.get(name) for choice in choices}) > 1]


def _sort_key(value: Setting) -> tuple[bool, float, str]:
    return (isinstance(value, str), 0.0 if isinstance(value, str) else float(value), str(value))


def conclude(comparison: Comparison) -> str:
    """Conclude in a few sentences which setting is better, see `_conclusions`."""
    return " ".join(_conclusions(comparison))


def _conclusions(comparison: Comparison) -> list[str]:
    """Sentences that tell which setting is better, with 95% intervals of the paired differences.

    In a sweep of remedies, each one is compared with the runs without it.
    """
    groups = [group for group in comparison.groups if group.values("val/accuracy") and group.values("gap/accuracy")]
    if len(groups) < 2:
        return ["There is a single group of settings with validation accuracy and gap: nothing is compared."]
    baseline = _baseline(groups)
    sentences = []
    if baseline:
        compared = [(baseline, group) for group in groups if group is not baseline]
    else:
        groups.sort(key=lambda group: statistics.fmean(group.values("val/accuracy")), reverse=True)
        compared = [(groups[1], groups[0])]
        sentences.append(f"{groups[0].label} has the highest validation accuracy.")
    sentences += [_conclude_pair(*pair) for pair in compared]
    if few := [pair for pair in compared if 0 < len(_pairs(*pair)) < _MIN_PAIRS]:
        sentences.append(_describe_noise(few))
    return sentences


def _baseline(groups: Iterable[Group]) -> Group | None:
    """The runs without a remedy in a sweep of remedies."""
    return next((group for group in groups if group.factors == {"remedy": "none"}), None)


def _describe_noise(compared: Sequence[tuple[Group, Group]]) -> str:
    """Describe by how much the seeds, folds or subsets alone may change the differences of groups with few pairs."""
    pairs = min(len(_pairs(*pair)) for pair in compared)
    repetitions = _repetitions(group for pair in compared for group in pair)
    groups = {id(group): group for pair in compared for group in pair}.values()
    stds = [MeanStd.of(group.values("val/accuracy")) for group in groups]
    degrees = sum(metric.count - 1 for metric in stds)
    squares = sum(metric.std**2 * (metric.count - 1) for metric in stds if metric.std is not None)
    pooled = math.sqrt(squares / degrees) if degrees else 0.0
    if pooled > _SEED_DEVIATION:
        deviation, quantile = pooled, t_quantile(degrees)
        source = f"these runs have a standard deviation of {pooled * 100:.2f} points over their {repetitions}"
    else:
        deviation, quantile = _SEED_DEVIATION, Z_95
        why = (
            f"these runs have a smaller standard deviation, {pooled * 100:.2f} points"
            if degrees
            else "each row has one run"
        )
        source = f"five seeds of experiment=tiny have one of {_SEED_DEVIATION * 100:.2f} points; {why}"
    noise = quantile * math.sqrt(2 / pairs) * deviation * 100
    count = f"One {repetitions.removesuffix('s')}" if pairs == 1 else f"{pairs} {repetitions}"
    return (
        f"{count} cannot measure the variation over {repetitions}, which alone makes such a difference up to "
        f"{noise:.1f} points in validation accuracy (95%; {source})."
    )


def _conclude_pair(first: Group, second: Group) -> str:
    """Compare the gap and the validation accuracy of `second` with those of `first`."""
    pairs = _pairs(first, second)
    repetitions = _repetitions((first, second))
    repetition = repetitions.removesuffix("s")
    if not pairs:
        return (
            f"{second.label} and {first.label} have no {repetition} in common: train both with the same {repetitions} "
            "to compare them."
        )
    gap = _paired_difference("gap/accuracy", first, second)
    accuracy = _paired_difference("val/accuracy", first, second)
    better, other = (_label_of_difference(*pair) for pair in ((second, first), (first, second)))
    has_interval = len(pairs) >= _MIN_PAIRS
    smaller = _describe_difference(gap, "smaller", "larger", has_interval=has_interval)
    lower = _describe_difference(accuracy, "lower", "higher", has_interval=has_interval)
    shared = ", ".join(f"{name}={value}" for name, value in second.factors.items() if first.factors[name] == value)
    text = (
        f"With {better} instead of {other},{f' at {shared},' if shared else ''} the gap is {smaller}, and validation "
        f"accuracy is {lower}"
    )
    choice = " (both corrected for the choice of the best epoch)" if _is_optimism_known(pairs) else ""
    intervals = f"; {len(pairs)} pairs of equal {repetition}, 95% intervals" if has_interval else ""
    return f"{text}{choice}{intervals}."


def _label_of_difference(group: Group, other: Group) -> str:
    """The settings of a group that another one does not have, as `key=value`."""
    return ", ".join(f"{name}={value}" for name, value in group.factors.items() if other.factors[name] != value)


def _pairs(first: Group, second: Group) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Results of both groups with the same seed, fold and subset."""
    names = ("seed", "fold", "subset_seed")
    others = {tuple(map(result.get, names)): result for result in second.results}
    keys = [tuple(map(result.get, names)) for result in first.results]
    return [(result, others[key]) for key, result in zip(keys, first.results, strict=True) if key in others]


def _paired_difference(name: str, first: Group, second: Group) -> Interval:
    """Mean difference of a metric, `second` minus `first`, over their pairs.

    A longer training chooses its best epoch among more epochs, so its validation accuracy is more optimistic. If all
    runs have measured this optimism, the differences are without it.
    """
    pairs = _pairs(first, second)
    corrected = _is_optimism_known(pairs)
    differences = [
        _metric_value(name, other, corrected) - _metric_value(name, result, corrected) for result, other in pairs
    ]
    return paired_interval(differences, max(first.test_ratio, second.test_ratio))


def _is_optimism_known(pairs: Iterable[tuple[dict[str, Any], dict[str, Any]]]) -> bool:
    return all(result.get("gap_best/accuracy") is not None for pair in pairs for result in pair)


def _metric_value(name: str, result: dict[str, Any], corrected: bool) -> float:
    """Gap or validation accuracy of a run; without the optimism of choosing the best epoch if `corrected`."""
    if not corrected:
        return float(result[name])
    gap = float(result["gap_best/accuracy"])
    return gap if name == "gap/accuracy" else float(result["train/accuracy"]) - gap


def _describe_difference(difference: Interval, less: str, more: str, *, has_interval: bool) -> str:
    """Describe a difference of fractions in points, such as `1.90 points lower (1.00 to 2.80)`."""
    size, low, high = (value * 100 for value in (difference.estimate, difference.low, difference.high))
    if not has_interval:
        return f"{abs(size):.2f} points {less if size < 0 else more}"
    if difference.contains_zero:
        return f"not seen to differ ({size:+.2f} points, {low:+.2f} to {high:+.2f})"
    bounds = sorted((abs(low), abs(high)))
    return f"{abs(size):.2f} points {less if size < 0 else more} ({bounds[0]:.2f} to {bounds[1]:.2f})"


def comparison_table(comparison: Comparison) -> list[list[str]]:
    """Format the headings and one row per group: factors, number of seeds, verdict, mean ± std of each metric.

    Metrics that no run has, such as those of the test set, are left out.
    """
    columns = _columns(comparison)
    headings = [*(comparison.factors or ["runs"]), _repetitions(comparison.groups), _VERDICT, *columns]
    rows = [_row(group, columns.values()) for group in comparison.groups]
    shown = [number for number in range(len(headings)) if any(row[number] for row in rows)]
    return [[row[number] for number in shown] for row in (headings, *rows)]


def _with_gains(comparison: Comparison) -> list[list[str]]:
    """`comparison_table`; a sweep of remedies has the paired differences to the runs without one after the remedy."""
    headings, *rows = comparison_table(comparison)
    baseline = _baseline(comparison.groups)
    gains = [_gain(baseline, group) if baseline else "" for group in comparison.groups]
    if not any(gains):
        return [headings, *rows]
    interval = " (95%)" if any(" " in gain for gain in gains) else ""
    heading = f"validation gain against none, points{interval}"
    return [[row[0], gain, *row[1:]] for row, gain in zip((headings, *rows), (heading, *gains), strict=True)]


def _gain(baseline: Group, group: Group) -> str:
    """Mean paired difference of the validation accuracy in points, with its interval if there are enough pairs."""
    pairs = _pairs(baseline, group)
    if group is baseline or not pairs or not (baseline.values("val/accuracy") and group.values("val/accuracy")):
        return ""
    gain = _paired_difference("val/accuracy", baseline, group)
    bounds = f" ({gain.low * 100:+.2f} to {gain.high * 100:+.2f})" if len(pairs) >= _MIN_PAIRS else ""
    return f"{gain.estimate * 100:+.2f}{bounds}"


def _repetitions(groups: Iterable[Group]) -> str:
    """Return the kind of repetition in which the runs of a group differ: `folds`, `subsets` or `seeds`."""
    results = [result for group in groups for result in group.results]
    if len({result.get("fold") for result in results}) > 1:
        return "folds"
    return "subsets" if len({result.get("subset_seed") for result in results}) > 1 else "seeds"


def _columns(comparison: Comparison) -> dict[str, tuple[str, float, int]]:
    """`COLUMNS`, and the further metrics of the runs on validation."""
    results = [result for group in comparison.groups for result in group.results]
    further = dict.fromkeys(name for result in results for name in result.get("metrics", ()))
    return COLUMNS | {f"val {name}": (f"val/{name}", 1, 4) for name in further}


def _row(group: Group, columns: Iterable[tuple[str, float, int]]) -> list[str]:
    row = [*(map(str, group.factors.values()) if group.factors else ["all"]), str(len(group.results)), group.verdict]
    for name, scale, digits in columns:
        metric = group.metric(name)
        row.append(metric.format(scale, digits) if metric else "")
    return row


def comparison_csv(comparison: Comparison) -> str:
    """Format one row per group: factors, number of seeds, mean and standard deviation of each metric, unrounded."""
    names = [name for name, _, _ in _columns(comparison).values()]
    rows: list[list[Any]] = [
        [
            *comparison.factors,
            _repetitions(comparison.groups),
            _VERDICT,
            *(f"{name} {part}" for name in names for part in ("mean", "sd")),
        ]
    ]
    for group in comparison.groups:
        metrics = [group.metric(name) for name in names]
        parts = [part for metric in metrics for part in ((metric.mean, metric.std) if metric else (None, None))]
        rows.append([*group.factors.values(), len(group.results), group.verdict, *parts])
    return format_csv(rows)


def comparison_markdown(comparison: Comparison, plots: Sequence[str], remarks: Sequence[str]) -> str:
    """Format the table, the unfinished runs, the remarks (one paragraph each) and the plots (file names)."""
    headings, *rows = _with_gains(comparison)
    lines = [f"| {' | '.join(row)} |" for row in (headings, ["---"] * len(headings), *rows)]
    parts = ["# Comparison", "\n".join(f"- {text}" for text in _conclusions(comparison)), "\n".join(lines)]
    parts.append(f"Mean ± standard deviation over the {_repetitions(comparison.groups)} of each row.")
    if comparison.unfinished:
        runs = "\n".join(f"- {run.path}: {run.describe_state()}" for run in comparison.unfinished)
        parts.append(f"Unfinished runs, not included:\n\n{runs}")
    parts += [*comparison.notes, *remarks]
    parts += [f"![{name}]({name})" for name in plots]
    return "\n\n".join(parts) + "\n"
