"""Memorisation, influence and label errors from a sweep over random subsets of the training images.

The runs are those of `sweep=memorisation`, or of any sweep with `keep=logits`. Runs of cross-validation (`sweep=kfold`)
store predictions of held-out images only: they give out-of-sample predictions and label errors, but no memorisation
scores. The statistics are in `fashion_cnn.metrics.memorisation`.
"""

import csv
import importlib.util
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import OmegaConf

from fashion_cnn.analysis.comparison import fold_and_subset, read_fold_predictions
from fashion_cnn.analysis.settings import repeated_settings
from fashion_cnn.data import ImageDataModule
from fashion_cnn.errors import UserError, pluralize
from fashion_cnn.inference.network import TrainedNetwork
from fashion_cnn.metrics import memorisation as metrics
from fashion_cnn.metrics.memorisation import (
    CorrectCounts,
    Floats,
    GapCheck,
    Integers,
    Mask,
    PredictionTotals,
    SubsetLogits,
)
from fashion_cnn.runs import Run
from fashion_cnn.runs.damage import DamagedRunError, read_text
from fashion_cnn.runs.files import open_atomically

# Memorisation scores that come with the package, one .npz file for each data set.
SCORES_FOLDER = Path(__file__).parent / "memorisation_scores"
# Scores are stored as int16 multiples of this unit; NaN is stored as _NAN.
_SCORE_UNIT = 1e-4
_NAN = -32768
# Score from which an image counts as memorised (Feldman and Zhang, 2020).
MEMORISATION_THRESHOLD = 0.25
# The split-half reliability is also reported for the images above this score.
RELIABILITY_THRESHOLD = 0.1
# Fractions of the images, most memorised first, whose share of the gap is reported.
TOP_FRACTIONS = (0.001, 0.01, 0.05, 0.1, 0.25)
# Columns that are read from examples.csv.
_EXAMPLES_COLUMNS = (
    *("indices", "targets", "seen", "learned_epoch"),
    *("recognised", "forgotten", "confidence", "margin"),
)
_MAX_EXAMPLES_BYTES = 200_000_000


@dataclass(frozen=True)
class SubsetEnsemble:
    """Networks that were trained on subsets of the training images, with statistics of their predictions.

    Sizes: N training images, M test images, T runs, P pairs of runs, C classes.

    Attributes:
        runs: the runs, one for each network.
        class_names: names of the C classes.
        targets: `(N,)`, labels of the training images that the networks were trained with.
        indices: `(N,)`, positions of the training images in the data set, ascending.
        halves: networks and correct predictions by training image, for two disjoint halves of the runs.
        held_out: predictions of each training image by the networks that were not trained on it.
        pairs: `(P, 2)`, rows of `trained` that are complementary, see `complementary_pairs`.
        trained: `(T, N)` bool, True for the images that each network was trained on.
        test_correct: `(T, M)` bool, True for the test images that each network classifies correctly.
        test_totals: predictions of the test images by all networks; None if the runs store none.
        test_targets: `(M,)`, labels of the test images; empty if `read_ensemble` found no predictions of them.
        test_indices: `(M,)`, positions of the test images in their data set; empty likewise.
        gaps: for each half of the runs `(U, 1 + C)`, accuracy on training images minus accuracy on held-out images, as
            a fraction: over all images in column 0, over the images of each class in the others. A row is the mean of
            a complementary pair, or a run without partner.
        train_accuracy: mean accuracy of the networks on their training images; NaN if the runs store no predictions of
            these.
        held_out_accuracy: mean accuracy of the networks on the other training images.
    """

    runs: tuple[Run, ...]
    class_names: tuple[str, ...]
    targets: Integers
    indices: Integers
    halves: tuple[CorrectCounts, CorrectCounts]
    held_out: PredictionTotals
    pairs: Integers
    trained: Mask
    test_correct: Mask
    test_totals: PredictionTotals | None
    test_targets: Integers
    test_indices: Integers
    gaps: tuple[Floats, Floats]
    train_accuracy: float
    held_out_accuracy: float

    @cached_property
    def counts(self) -> CorrectCounts:
        """Networks and correct predictions by training image, over all runs."""
        return self.halves[0] + self.halves[1]

    @property
    def has_scores(self) -> bool:
        """True if at least one image has a memorisation score."""
        return bool(np.isfinite(self.counts.score).any())

    @cached_property
    def out_of_sample(self) -> Floats:
        """Mean probabilities of the networks that were not trained on an image, `(N, C)`; uniform without any."""
        return np.nan_to_num(self.held_out.mean, nan=1 / len(self.class_names))


def read_ensemble(runs: Sequence[Run], class_names: Sequence[str]) -> SubsetEnsemble:
    """Read the logits of all runs, one run at a time, and aggregate them.

    Args:
        runs: finished runs of one sweep, see `choose_runs`.
        class_names: names of the C classes.

    Returns:
        The networks with the statistics of their predictions.

    Raises:
        UserError: if the runs differ in labels, classes or test images, or a file is missing or damaged.
    """
    indices, targets, trained = _read_subsets(runs)
    has_pairs = all(run.logits_file.exists() for run in runs)
    pairs = metrics.complementary_pairs(trained) if has_pairs else np.zeros((0, 2), dtype=int)
    units = _independent_units(pairs, len(runs))
    train = _TrainingStatistics(targets, len(class_names))
    test = _TestStatistics(len(class_names))
    for row, run in enumerate(runs):
        part = _read_logits(run)
        if part.logits.shape[1] != len(class_names):
            raise UserError(
                f"{run.path} has {part.logits.shape[1]} classes, not {len(class_names)}: give runs of one data set."
            )
        train.add(np.searchsorted(indices, part.indices), part.logits, trained[row], half=units[row] % 2)
        if not test.add(part):
            raise UserError(f"{run.path} has other test images than {runs[0].path}: give runs of one data set.")
    train_accuracy, held_out_accuracy = np.mean(train.accuracies, axis=0).tolist()
    return SubsetEnsemble(
        runs=tuple(runs),
        class_names=tuple(class_names),
        targets=targets,
        indices=indices,
        halves=train.halves,
        held_out=train.held_out,
        pairs=pairs,
        trained=trained,
        test_correct=np.array(test.correct),
        test_totals=test.totals,
        test_targets=test.targets,
        test_indices=test.indices,
        gaps=train.unit_gaps(units),
        train_accuracy=train_accuracy,
        held_out_accuracy=held_out_accuracy,
    )


def _read_subsets(runs: Sequence[Run]) -> tuple[Integers, Integers, Mask]:
    """Read the training subset of each run.

    Returns:
        Positions `(N,)` and labels `(N,)` of the images of all runs, and `(T, N)`, True for the images of each subset.
    """
    parts = [_read_subset(run) for run in runs]
    indices = np.unique(np.concatenate([part["indices"] for part in parts]))
    targets = np.full(len(indices), -1)
    trained = np.zeros((len(runs), len(indices)), dtype=bool)
    for row, (run, part) in enumerate(zip(runs, parts, strict=True)):
        places = np.searchsorted(indices, part["indices"])
        differing = (targets[places] >= 0) & (targets[places] != part["targets"])
        if differing.any():
            raise UserError(
                f"{run.path} has another label of image {part['indices'][differing][0]} than {runs[0].path}: give runs "
                "with the same labels (data.relabel)."
            )
        targets[places] = part["targets"]
        trained[row, places] = part["trained"]
    return indices, targets, trained


def _independent_units(pairs: Integers, count: int) -> Integers:
    """Number the independent units of `count` runs, `(T,)`: a pair is one unit, and so is a run without partner.

    Units of even numbers are the first half of the runs, the others the second. In each half, a pair counts every image
    once as a training image and once as a held-out image.
    """
    units = np.full(count, -1)
    units[pairs] = np.arange(len(pairs))[:, None]
    single = units < 0
    units[single] = len(pairs) + np.arange(single.sum())
    return units


class _TrainingStatistics:
    """Statistics of the predictions of training images, updated one run at a time.

    Args:
        targets: `(N,)`, labels of the training images.
        classes: number of classes.

    Attributes:
        halves: see `SubsetEnsemble`.
        held_out: see `SubsetEnsemble`.
        accuracies: for each run its accuracy on training images and on held-out images.
    """

    def __init__(self, targets: Integers, classes: int) -> None:
        images = len(targets)
        self.targets = targets
        self.halves = (CorrectCounts.zeros(images), CorrectCounts.zeros(images))
        self.held_out = PredictionTotals.zeros(images, classes)
        self.accuracies: list[tuple[float, float]] = []
        self._groups = [np.ones(images, dtype=bool), *(targets == label for label in range(classes))]
        self._gaps: list[list[float]] = []

    def add(self, rows: Integers, logits: Floats, trained: Mask, *, half: int) -> None:
        """Add a run.

        Args:
            rows: `(n,)`, rows of the images whose logits it stores.
            logits: `(n, C)`.
            trained: `(N,)`, True for its training images.
            half: 0 or 1, the half of the runs that it belongs to.
        """
        stored = np.zeros((len(self.targets), logits.shape[1]), dtype=np.float32)
        stored[rows] = logits
        available = np.zeros(len(self.targets), dtype=bool)
        available[rows] = True
        correct = stored.argmax(axis=1) == self.targets
        inside, outside = available & trained, available & ~trained
        self.halves[half].add(trained, correct, available)
        self.held_out.add(stored, outside)
        self.accuracies.append((_accuracy(correct[inside]), _accuracy(correct[outside])))
        self._gaps.append(
            [_accuracy(correct[inside & group]) - _accuracy(correct[outside & group]) for group in self._groups]
        )

    def unit_gaps(self, units: Integers) -> tuple[Floats, Floats]:
        """Return the mean gap of each unit of both halves, `(U, 1 + C)`; units `(T,)` as in `_independent_units`."""
        gaps = np.array(self._gaps)
        first, second = (
            np.array([gaps[units == unit].mean(axis=0) for unit in np.unique(units[units % 2 == half])])
            for half in range(2)
        )
        return first.reshape(-1, gaps.shape[1]), second.reshape(-1, gaps.shape[1])


class _TestStatistics:
    """Statistics of the predictions of test images, updated one run at a time.

    Args:
        classes: number of classes.

    Attributes:
        totals: sum of the predictions; None before the first run that stores any.
        targets: `(M,)`, labels of the test images.
        indices: `(M,)`, their positions.
        correct: for each run `(M,)`, True for the images that it classifies correctly.
    """

    def __init__(self, classes: int) -> None:
        self.totals: PredictionTotals | None = None
        self.targets: Integers = np.zeros(0, dtype=np.int64)
        self.indices: Integers = np.zeros(0, dtype=np.int64)
        self.correct: list[Mask] = []
        self._classes = classes

    def add(self, part: SubsetLogits) -> bool:
        """Add a run, if it stores logits of test images; return False if these are others than those of the first."""
        if not len(part.test_logits):
            return True
        if self.totals is None:
            self.targets, self.indices = part.test_targets, part.test_indices
            self.totals = PredictionTotals.zeros(len(self.targets), self._classes)
        if not np.array_equal(part.test_targets, self.targets):
            return False
        self.totals.add(part.test_logits, np.ones(len(self.targets), dtype=bool))
        self.correct.append(part.test_logits.argmax(axis=1) == self.targets)
        return True


def choose_runs(runs: Iterable[Run]) -> tuple[list[Run], list[str]]:
    """Choose the finished runs that store predictions of held-out training images.

    Of several runs with the same seed, fold and subset the newest is chosen.

    Args:
        runs: runs of a sweep, in any order.

    Returns:
        The runs, sorted by seed, fold and subset; and notes on the runs that were left out.

    Raises:
        UserError: if there is no such run, or if the runs differ in their settings.
    """
    unfinished = 0
    groups: dict[tuple[tuple[str, Any], ...], dict[tuple[int, ...], Run]] = {}
    with_predictions: set[Run] = set()
    for run in sorted(runs, key=lambda run: run.started):
        if run.state != "finished":
            unfinished += 1
            continue
        config = run.config()
        settings = tuple(sorted(repeated_settings(config).items(), key=lambda item: item[0]))
        groups.setdefault(settings, {})[config.seed, *fold_and_subset(config).values()] = run
        if run.logits_file.exists() or OmegaConf.select(config, "data.folds"):
            with_predictions.add(run)
    if not groups:
        raise UserError(f"no run is finished yet ({pluralize(unfinished, 'run')} found): resume the sweep first.")
    if len(groups) > 1:
        first, second, *_ = (dict(settings) for settings in groups)
        factors = ", ".join(name for name in first | second if first.get(name) != second.get(name))
        raise UserError(
            f"the runs differ in their settings ({factors}), so their predictions cannot be averaged: give the runs of "
            "one sweep."
        )
    repetitions = next(iter(groups.values()))
    finished = [repetitions[key] for key in sorted(repetitions)]
    chosen = [run for run in finished if run in with_predictions]
    if not chosen:
        raise UserError(
            f"{finished[0].path} stores no predictions of held-out training images: train with sweep=memorisation, "
            "sweep=kfold or keep=logits."
        )
    notes = []
    if unfinished:
        notes.append(f"{pluralize(unfinished, 'run')} not finished: the analysis does not include them.")
    if skipped := len(finished) - len(chosen):
        notes.append(f"{pluralize(skipped, 'run')} without stored logits: the analysis does not include them.")
    return chosen, notes


def _read_subset(run: Run) -> dict[str, NDArray[Any]]:
    """Read `indices`, `targets` and `trained` of a run, see `SubsetLogits`."""
    names = ("indices", "targets", "trained")
    if run.logits_file.exists():
        with _raising_damaged_run(run):
            return metrics.read_subset_arrays(run.logits_file, names)
    fold = _read_fold(run)
    return {name: getattr(fold, name) for name in names}


def _read_logits(run: Run) -> SubsetLogits:
    if run.logits_file.exists():
        with _raising_damaged_run(run):
            return metrics.read_subset_logits(run.logits_file)
    return _read_fold(run)


@contextmanager
def _raising_damaged_run(run: Run) -> Iterator[None]:
    try:
        yield
    except (ValueError, OSError) as error:
        raise DamagedRunError(
            run.logits_file, str(error), "delete its run, and resume the sweep to train it anew"
        ) from error


def _read_fold(run: Run) -> SubsetLogits:
    """Read the predictions of a fold's validation images by the last epoch; none is a training image of the run."""
    try:
        part = read_fold_predictions(run)
    except (ValueError, OSError, KeyError) as error:
        reason = "it is missing" if isinstance(error, FileNotFoundError) else str(error)
        raise UserError(
            f"{run.predictions_file} cannot be read ({reason}): train the folds with callbacks=default, or keep=logits."
        ) from error
    logits, targets, indices = part.logits.numpy(), part.targets.numpy(), part.indices.numpy()
    trained = np.zeros(len(indices), dtype=bool)
    return SubsetLogits(logits, targets, indices, trained, logits[:0], targets[:0], indices[:0])


def _accuracy(correct: Mask) -> float:
    return float(correct.mean()) if len(correct) else math.nan


@dataclass(frozen=True)
class Scores:
    """Memorisation scores of the training images, and statistics of them.

    Attributes:
        score: `(N,)`, memorisation scores in [-1, 1] (Feldman and Zhang, 2020); NaN where unknown.
        standard_error: `(N,)`, standard errors of the scores.
        reliability: split-half reliability, which is Pearson's correlation of the scores of two halves of the runs:
            over all images, and over those with a score above `RELIABILITY_THRESHOLD`.
        checks: predicted and measured gap, with the name of the images: `all`, then each class that has scores.
        gap_shares: share of the gap that the most memorised `TOP_FRACTIONS` of the images account for; empty without
            scores in both halves of the runs, or without a gap.
        class_shares: `(C,)`, share of the gap that each class accounts for.
        influences: significant influences of memorised training images on test images; None without complementary
            pairs of runs.
        tested: `(K,)`, rows of the memorised images, whose influence was tested.
    """

    score: Floats
    standard_error: Floats
    reliability: tuple[float, float]
    checks: tuple[tuple[str, GapCheck], ...]
    gap_shares: tuple[float, ...]
    class_shares: Floats
    influences: metrics.Influences | None
    tested: Integers

    @property
    def gap(self) -> float:
        """Mean of the scores, which is the expected accuracy gap as a fraction."""
        return float(np.nanmean(self.score))


def compute_scores(
    ensemble: SubsetEnsemble, *, threshold: float = MEMORISATION_THRESHOLD, false_discovery_rate: float = 0.05
) -> Scores | None:
    """Compute memorisation scores and influences.

    Args:
        ensemble: networks trained on subsets.
        threshold: score from which an image counts as memorised, and its influence is tested.
        false_discovery_rate: upper bound of the expected fraction of false discoveries, see `influences`.

    Returns:
        The scores; None if no image has predictions both by networks trained on it and by others, as in ordinary
        cross-validation.
    """
    if not ensemble.has_scores:
        return None
    counts = ensemble.counts
    score = counts.score
    first, second = (half.score for half in ensemble.halves)
    high = score > RELIABILITY_THRESHOLD
    has_halves = all(len(half) and np.isfinite(half[:, 0]).any() for half in ensemble.gaps)
    finite = np.nan_to_num(score)
    sums = np.bincount(ensemble.targets, weights=finite, minlength=len(ensemble.class_names)).astype(float)
    tested = np.flatnonzero(finite >= threshold)
    influences = None
    if len(ensemble.pairs) and len(ensemble.test_correct):
        rows, partners = ensemble.pairs.T
        influences = metrics.influences(
            ensemble.trained[np.ix_(rows, tested)],
            ensemble.test_correct[rows],
            ensemble.test_correct[partners],
            false_discovery_rate=false_discovery_rate,
        )
    return Scores(
        score=score,
        standard_error=counts.standard_error,
        reliability=(metrics.pearson(first, second), metrics.pearson(first[high], second[high])),
        checks=_gap_checks(ensemble) if has_halves else (),
        gap_shares=tuple(metrics.gap_shares(first, second, TOP_FRACTIONS)) if has_halves else (),
        class_shares=sums / sums.sum() if sums.sum() else sums,
        influences=influences,
        tested=tested,
    )


def _gap_checks(ensemble: SubsetEnsemble) -> tuple[tuple[str, GapCheck], ...]:
    """Compare the scores of the first half of the runs with the gap of the second: over all images and by class."""
    score = ensemble.halves[0].score
    groups = [("all", np.ones(len(score), dtype=bool))]
    groups += [(name, ensemble.targets == label) for label, name in enumerate(ensemble.class_names)]
    checks = []
    for column, (name, group) in enumerate(groups):
        if np.isfinite(score[group]).any():
            first_gaps, second_gaps = (gaps[:, column].tolist() for gaps in ensemble.gaps)
            checks.append((name, metrics.gap_check(score[group], first_gaps, second_gaps)))
    return tuple(checks)


@dataclass(frozen=True)
class LabelErrors:
    """Likely label errors among the training images.

    Attributes:
        probability: `(N,)`, probability of a label error in [0, 1], see `label_error_probability`; 0 where the given
            label is the predicted class.
        proposed: `(N,)`, the predicted class, which replaces the label of a likely error.
        temperature: temperature of the calibration of the out-of-sample probabilities.
        noise: `(C, C)`, noise matrix P(given label | true class) from anchor images, true classes in rows.
        listed: `(K,)`, rows of the likely label errors, most probable first, with an expected precision of at least
            `precision`.
        precision: smallest expected precision, in (0, 1].
        confident_noise: `(C, C)`, noise matrix by confident learning; None without cleanlab.
        issues: `(N,)` bool, label issues by confident learning; None without cleanlab.
    """

    probability: Floats
    proposed: Integers
    temperature: float
    noise: Floats
    listed: Integers
    precision: float
    confident_noise: Floats | None = None
    issues: Mask | None = None


def find_label_errors(out_of_sample: Floats, targets: Integers, *, precision: float) -> LabelErrors:
    """Find likely label errors.

    The probabilities are calibrated by a temperature and by isotonic regression, and a noise matrix is estimated from
    anchor images. Beside this, the result has the label issues of confident learning (Northcutt et al., 2021), if
    cleanlab is installed.

    Args:
        out_of_sample: `(N, C)`, probabilities by networks that were not trained on the image.
        targets: `(N,)`, given labels.
        precision: smallest expected precision of the list of errors, in (0, 1].

    Returns:
        The probability of an error for each label, and the list of likely errors.
    """
    temperature = metrics.fit_temperature(out_of_sample, targets)
    calibrated = metrics.calibrate(out_of_sample, temperature)
    noise = metrics.anchor_noise_matrix(calibrated, targets)
    isotonic = metrics.calibrate_isotonically(calibrated, targets)
    probability = metrics.label_error_probability(isotonic, targets, noise)
    proposed = calibrated.argmax(axis=1)
    probability = np.where(proposed == targets, 0.0, probability)
    confident_noise, issues = _confident_learning(calibrated, targets)
    return LabelErrors(
        probability=probability,
        proposed=proposed,
        temperature=temperature,
        noise=noise,
        listed=metrics.select_at_precision(probability, precision),
        precision=precision,
        confident_noise=confident_noise,
        issues=issues,
    )


def has_cleanlab() -> bool:
    """Return whether cleanlab is installed."""
    return importlib.util.find_spec("cleanlab") is not None


def _confident_learning(calibrated: Floats, targets: Integers) -> tuple[Floats | None, Mask | None]:
    """Noise matrix and label issues by cleanlab; None if it is not installed, or a class has no image."""
    if not has_cleanlab() or len(np.unique(targets)) < calibrated.shape[1]:
        return None, None
    from cleanlab.count import compute_confident_joint, estimate_latent
    from cleanlab.filter import find_label_issues

    joint = compute_confident_joint(targets, calibrated)
    _, noise, _ = estimate_latent(joint, targets)
    # n_jobs=1: worker processes would import all packages again.
    issues = find_label_issues(targets, calibrated, confident_joint=joint, n_jobs=1)
    return np.asarray(noise).T, np.asarray(issues, dtype=bool)


@dataclass(frozen=True)
class Duplicates:
    """K near-duplicates across the splits: test images that are very similar to a training image.

    Attributes:
        test_rows: `(K,)`, rows of the test images.
        train_rows: `(K,)`, rows of the most similar training images.
        similarity: `(K,)`, Pearson's correlation of the pixels, highest first; 1 for identical images.
        equal: `(K,)` bool, True if all pixels are equal.
    """

    test_rows: Integers
    train_rows: Integers
    similarity: Floats
    equal: Mask


def find_duplicates(train: torch.Tensor, test: torch.Tensor, *, above: float) -> Duplicates:
    """Find test images that are near-duplicates of training images.

    Args:
        train: `(N, C, H, W)` uint8, training images.
        test: `(M, C, H, W)` uint8, test images.
        above: smallest Pearson correlation of the pixels of a near-duplicate, in [-1, 1].

    Returns:
        The near-duplicates, each with its most similar training image.
    """
    pixels, queries = (images.flatten(1).numpy() for images in (train, test))
    nearest, similarity = metrics.nearest_images(queries, pixels)
    test_rows = np.flatnonzero(similarity >= above)
    test_rows = test_rows[np.argsort(-similarity[test_rows], kind="stable")]
    train_rows = nearest[test_rows]
    equal = (pixels[train_rows] == queries[test_rows]).all(axis=1)
    return Duplicates(test_rows, train_rows, similarity[test_rows], equal)


@dataclass(frozen=True)
class Proxy:
    """Rank correlation of the memorisation score with a metric of a single run (a proxy of memorisation).

    Attributes:
        name: name of the metric.
        correlation: Spearman's rank correlation, in [-1, 1].
        images: number of images.
    """

    name: str
    correlation: float
    images: int


def compare_proxies(run: Run, data: ImageDataModule, ensemble: SubsetEnsemble, score: Floats) -> list[Proxy]:
    """Correlate the training dynamics of a single run with the memorisation scores.

    Args:
        run: an ordinary run on the same data set, with `examples.csv`.
        data: data of the networks trained on subsets, with the training images in memory.
        ensemble: these networks.
        score: `(N,)`, memorisation scores.

    Returns:
        One entry for each metric of the run: epoch learned, number of forgetting events (Toneva et al., 2019), fraction
        of the epochs that misclassify the image, margin (Pleiss et al., 2020), probability of the label, and loss of
        the trained network. All are larger for images that are harder to learn.

    Raises:
        UserError: if the run has no such file, or was trained on another data set.
    """
    columns = _read_examples(run)
    indices = columns["indices"].astype(np.int64)
    rows = np.searchsorted(ensemble.indices, indices).clip(max=len(ensemble.indices) - 1)
    if (
        not len(indices)
        or (ensemble.indices[rows] != indices).any()
        or (ensemble.targets[rows] != columns["targets"]).any()
    ):
        raise UserError(f"run={run.path} was trained on other images or labels: give a run on the same data set.")
    proxies = _proxies(columns)
    proxies["loss of the trained network"] = _losses(run, data, indices, ensemble.targets[rows])
    return _correlate(proxies, score[rows])


def correlate_bundled_scores(run: Run) -> list[Proxy]:
    """Correlate the training dynamics of a run with the memorisation scores that come with the package.

    Args:
        run: a run with `examples.csv`.

    Returns:
        One entry for each metric, see `compare_proxies`; empty if the file has no column `memorisation`.
    """
    with run.examples_file.open() as file:
        if "memorisation" not in next(csv.reader(file), []):
            return []
    columns = _read_examples(run, (*_EXAMPLES_COLUMNS, "memorisation"))
    return _correlate(_proxies(columns), columns["memorisation"])


def _proxies(columns: Mapping[str, Floats]) -> dict[str, Floats]:
    """Return the metrics of training dynamics that grow with memorisation, from the columns of `examples.csv`."""
    never_learned = columns["recognised"] == 0
    after_last_epoch = columns["seen"].max() + 1
    return {
        "epoch learned": np.where(never_learned, after_last_epoch, columns["learned_epoch"]),
        "forgetting events": np.where(never_learned, after_last_epoch, columns["forgotten"]),
        "fraction of epochs misclassified": 1 - columns["recognised"] / np.maximum(columns["seen"], 1),
        "mean margin, negative": -columns["margin"],
        "mean probability of the label, negative": -columns["confidence"],
    }


def _correlate(proxies: Mapping[str, Floats], score: Floats) -> list[Proxy]:
    """Correlate metrics `(N,)` with scores `(N,)`, over the images that have both."""
    return [
        Proxy(name, metrics.spearman(values, score), int(known.sum()))
        for name, values in proxies.items()
        if (known := np.isfinite(values) & np.isfinite(score)).any()
    ]


def _read_examples(run: Run, names: Sequence[str] = _EXAMPLES_COLUMNS) -> dict[str, Floats]:
    """Read columns of `examples.csv`; an empty cell is NaN."""
    try:
        rows = list(csv.DictReader(io.StringIO(read_text(run.examples_file, _MAX_EXAMPLES_BYTES))))
        return {name: np.array([float(row[name] or "nan") for row in rows]) for name in names}
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise UserError(
            f"run={run.path}: {run.examples_file.name} cannot be read ({error}): give an ordinary run with "
            "callbacks=default."
        ) from error


def _losses(run: Run, data: ImageDataModule, indices: Integers, targets: Integers) -> Floats:
    """Cross-entropy of the run's network on training images, `(n,)`; NaN if its weights cannot be read."""
    try:
        network = TrainedNetwork(run)
        logits = network.logits(data.train_split.images_at(torch.from_numpy(indices)))
    except UserError:
        return np.full(len(indices), np.nan)
    losses = torch.nn.functional.cross_entropy(logits, torch.from_numpy(targets).long(), reduction="none")
    return losses.numpy().astype(np.float64)


def write_scores(path: Path, ensemble: SubsetEnsemble, scores: Scores, recipe: str) -> None:
    """Write memorisation scores and standard errors as a compact file, which can be bundled with the package.

    The file has the arrays `index` `(N,)` int32, `label` `(N,)` int16, `memorisation` and `standard_error` `(N,)` int16
    in units of 0.0001, and `about`, which is JSON in UTF-8: recipe, number of networks, unit and class names.

    Args:
        path: the .npz file.
        ensemble: networks trained on subsets.
        scores: scores that were computed from them.
        recipe: command of the first training.
    """
    names = list(ensemble.class_names)
    about = {"recipe": recipe, "networks": len(ensemble.runs), "unit": _SCORE_UNIT, "classes": names}
    with open_atomically(path) as file:
        np.savez_compressed(
            file,
            index=ensemble.indices.astype(np.int32),
            label=ensemble.targets.astype(np.int16),
            memorisation=_pack(scores.score),
            standard_error=_pack(scores.standard_error),
            about=np.frombuffer(json.dumps(about).encode(), dtype=np.uint8),
        )


def _pack(values: Floats) -> NDArray[np.int16]:
    """Quantise values to multiples of `_SCORE_UNIT`."""
    return np.where(np.isfinite(values), np.round(values / _SCORE_UNIT), _NAN).astype(np.int16)


def load_bundled_scores(data: ImageDataModule, folder: Path | None = None) -> dict[int, float] | None:
    """Load the memorisation scores of a data set that come with the package.

    Args:
        data: the data, with the training images in memory. Images whose label differs from that of the scores, as with
            `data.relabel`, have no score.
        folder: folder of the files; None for that of the package.

    Returns:
        Scores by position in the data set; None if there are none.
    """
    path = (folder or SCORES_FOLDER) / data.memorisation_scores
    if not data.memorisation_scores or not path.is_file():
        return None
    with np.load(path, allow_pickle=False) as file:
        index, label, packed = file["index"], file["label"], file["memorisation"]
        classes = json.loads(file["about"].tobytes())["classes"]
    targets = np.full(max(int(index.max()) + 1, len(data.training_targets)), -1)
    targets[: len(data.training_targets)] = data.training_targets.numpy()
    # The data may leave classes out, which changes the class indices.
    names = [*data.class_names]
    labels = np.array([names.index(name) if name in names else -2 for name in classes])[label]
    known = (packed != _NAN) & (targets[index] == labels)
    return dict(zip(index[known].tolist(), (packed[known] * _SCORE_UNIT).round(4).tolist(), strict=True)) or None
