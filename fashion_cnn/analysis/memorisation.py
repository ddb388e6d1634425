"""Memorised images, the test images that each one buys, and wrong labels, from trainings on random subsets.

The trainings are those of `sweep=memorisation`, or of any sweep with `keep=logits`. Cross-validation (`sweep=kfold`) of
ordinary runs gives the answers to held-out images alone: then there are out-of-sample predictions and label errors, and
no memorisation scores.
"""

import csv
import importlib.util
import io
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import OmegaConf

from fashion_cnn.analysis.comparison import chosen_images, read_fold_predictions
from fashion_cnn.analysis.settings import repeated_settings
from fashion_cnn.data import ImageDataModule
from fashion_cnn.errors import UserError, pluralize
from fashion_cnn.inference.network import TrainedNetwork
from fashion_cnn.metrics import memorisation as metrics
from fashion_cnn.metrics.memorisation import AnswerTotals, Floats, GapCheck, Integers, Mask, SubsetLogits, Tally
from fashion_cnn.runs import Run
from fashion_cnn.runs.damage import DamagedRunError, read_text
from fashion_cnn.runs.files import open_atomically

# Memorisation scores that come with the package, by name of the file.
SCORES = Path(__file__).parent / "memorisation_scores"
# Scores are stored as whole numbers of this unit.
_SCORE_UNIT = 1e-4
_UNKNOWN = -32768
# Score from which an image counts as memorised, as in Feldman and Zhang (2020).
MEMORISED = 0.25
# Score above which the reliability is stated.
RELIABLE_ABOVE = 0.1
# Shares of the images whose part of the gap is stated.
SHARES = (0.001, 0.01, 0.05, 0.1, 0.25)
# Columns of examples.csv.
_EXAMPLES_COLUMNS = (
    *("indices", "targets", "seen", "learned_epoch"),
    *("recognised", "forgotten", "confidence", "margin"),
)
_MAX_EXAMPLES_BYTES = 200_000_000


@dataclass(frozen=True)
class Answers:
    """Answers of all networks to the training and test images, added up.

    Attributes:
        runs: the runs.
        class_names: of the classes.
        targets: `(N,)`, labels of the training images that they were trained with.
        indices: `(N,)`, their positions in the data set, ascending.
        halves: number of correct networks inside and outside, over two disjoint halves of the runs.
        outside: answers of the networks that were not trained on an image.
        pairs: `(P, 2)`, rows of `trained`, see `complementary_pairs`.
        trained: `(T, N)` bool, the images that each network was trained on.
        test_correct: `(T, M)` bool, the test images that each classifies correctly.
        tests: answers to the test images; None if there are none.
        test_targets: `(M,)`, labels of the test images; empty where `read_answers` found no answers to them.
        test_indices: `(M,)`, their positions in the data set, likewise.
        gaps: for each half `(U, 1 + C)`, gap in accuracy of each pair of runs, or of each other run: over all images,
            and of each class.
        train_accuracy: mean accuracy on the images that a network was trained on; NaN if it is not known.
        held_out_accuracy: mean accuracy on the other training images.
    """

    runs: tuple[Run, ...]
    class_names: tuple[str, ...]
    targets: Integers
    indices: Integers
    halves: tuple[Tally, Tally]
    outside: AnswerTotals
    pairs: Integers
    trained: Mask
    test_correct: Mask
    tests: AnswerTotals | None
    test_targets: Integers
    test_indices: Integers
    gaps: tuple[Floats, Floats]
    train_accuracy: float
    held_out_accuracy: float

    @cached_property
    def total(self) -> Tally:
        """Number of correct networks inside and outside over all runs."""
        return self.halves[0] + self.halves[1]

    @property
    def has_scores(self) -> bool:
        """True if there are networks that were trained on the images, whose answers are known."""
        return bool(np.isfinite(self.total.score).any())

    @cached_property
    def out_of_sample(self) -> Floats:
        """Mean probabilities of the networks that were not trained on an image `(N, C)`; uniform without any."""
        return np.nan_to_num(self.outside.mean, nan=1 / len(self.class_names))


def read_answers(runs: Sequence[Run], class_names: Sequence[str]) -> Answers:
    """Read the answers of all finished runs, one run at a time.

    Args:
        runs: runs of one sweep.
        class_names: of the classes.

    Raises:
        UserError: if they were trained with different settings or labels, or hold no answers to held-out images.
    """
    sources = [(run, run.logits_file.exists()) for run in runs]
    read = [_read(run, "indices", "targets", "trained") if own else _read_fold(run) for run, own in sources]
    indices = np.unique(np.concatenate([part["indices"] for part in read]))
    targets = np.full(len(indices), -1)
    trained = np.zeros((len(runs), len(indices)), dtype=bool)
    for row, (run, part) in enumerate(zip(runs, read, strict=True)):
        places = np.searchsorted(indices, part["indices"])
        differing = (targets[places] >= 0) & (targets[places] != part["targets"])
        if differing.any():
            raise UserError(
                f"{run.path} has another label of image {part['indices'][differing][0]} than {runs[0].path}: give runs "
                "with the same labels (data.relabel)."
            )
        targets[places] = part["targets"]
        trained[row, places] = part["trained"]
    del read
    classes = len(class_names)
    pairs = metrics.complementary_pairs(trained) if all(own for _, own in sources) else np.zeros((0, 2), dtype=int)
    # Both networks of a pair are in one half of the runs, whose scores then have every image inside equally often.
    unit_of = {int(row): number for number, pair in enumerate(pairs) for row in pair}
    for row in range(len(runs)):
        unit_of.setdefault(row, len(pairs) + len(unit_of) - 2 * len(pairs))
    halves = (Tally.of_no_network(len(indices)), Tally.of_no_network(len(indices)))
    outside = AnswerTotals.of_no_network(len(indices), classes)
    gaps: tuple[dict[int, list[Floats]], ...] = ({}, {})
    tests: AnswerTotals | None = None
    test_correct: list[Mask] = []
    test_targets = test_indices = np.zeros(0, dtype=np.int64)
    accuracies = []
    for row, (run, own) in enumerate(sources):
        part = _read(run) if own else _read_fold(run)
        places = np.searchsorted(indices, part["indices"])
        logits = np.zeros((len(indices), classes), dtype=np.float32)
        if part["logits"].shape[1] != classes:
            raise UserError(
                f"{run.path} has {part['logits'].shape[1]} classes, not {classes}: give runs of one data set."
            )
        logits[places] = part["logits"]
        known = np.zeros(len(indices), dtype=bool)
        known[places] = True
        correct = logits.argmax(axis=1) == targets
        half = unit_of[row] % 2
        halves[half].add(trained[row], correct, known)
        outside.add(logits, known & ~trained[row])
        gap = _gaps(correct, trained[row] & known, known & ~trained[row], targets, classes)
        gaps[half].setdefault(unit_of[row], []).append(gap)
        accuracies.append([_mean(correct[trained[row] & known]), _mean(correct[known & ~trained[row]])])
        if own and len(part["test_logits"]):
            if tests is None:
                test_targets, test_indices = part["test_targets"], part["test_indices"]
                tests = AnswerTotals.of_no_network(len(test_targets), classes)
            if not np.array_equal(part["test_targets"], test_targets):
                raise UserError(f"{run.path} has other test images than {runs[0].path}: give runs of one data set.")
            tests.add(part["test_logits"], np.ones(len(test_targets), dtype=bool))
            test_correct.append(part["test_logits"].argmax(axis=1) == test_targets)
    first, second = (np.array([np.mean(unit, axis=0) for unit in half.values()]) for half in gaps)
    return Answers(
        runs=tuple(runs),
        class_names=tuple(class_names),
        targets=targets,
        indices=indices,
        halves=halves,
        outside=outside,
        pairs=pairs,
        trained=trained,
        test_correct=np.array(test_correct),
        tests=tests,
        test_targets=test_targets,
        test_indices=test_indices,
        gaps=(first.reshape(-1, 1 + classes), second.reshape(-1, 1 + classes)),
        train_accuracy=float(np.mean([pair[0] for pair in accuracies])),
        held_out_accuracy=float(np.mean([pair[1] for pair in accuracies])),
    )


def choose_runs(runs: Iterable[Run]) -> tuple[list[Run], list[str]]:
    """Choose the finished runs that hold answers to images that they were not trained on.

    Returns:
        The runs, and notes on what was left out.

    Raises:
        UserError: if none does, or if they differ in their settings.
    """
    unfinished = 0
    groups: dict[tuple[tuple[str, Any], ...], dict[tuple[int, ...], Run]] = {}
    with_answers: set[Run] = set()
    for run in sorted(runs, key=lambda run: run.started):
        if run.state != "finished":
            unfinished += 1
            continue
        config = run.config()
        settings = tuple(sorted(repeated_settings(config).items(), key=lambda item: item[0]))
        # The newest of each seed, fold and subset.
        groups.setdefault(settings, {})[config.seed, *chosen_images(config).values()] = run
        if run.logits_file.exists() or OmegaConf.select(config, "data.folds"):
            with_answers.add(run)
    if not groups:
        raise UserError(f"no run is finished yet ({pluralize(unfinished, 'run')} found): resume the sweep first.")
    if len(groups) > 1:
        first, second, *_ = (dict(settings) for settings in groups)
        factors = ", ".join(name for name in first | second if first.get(name) != second.get(name))
        raise UserError(
            f"the runs differ in their settings ({factors}), so their answers have no common mean: give the runs of "
            "one sweep."
        )
    repetitions = next(iter(groups.values()))
    finished = [repetitions[key] for key in sorted(repetitions)]
    chosen = [run for run in finished if run in with_answers]
    if not chosen:
        raise UserError(
            f"{finished[0].path} keeps no answers to images outside its training set: train with sweep=memorisation, "
            "sweep=kfold or keep=logits."
        )
    notes = []
    if unfinished:
        notes.append(f"{pluralize(unfinished, 'run')} not finished: the analysis does not include them.")
    if skipped := len(finished) - len(chosen):
        notes.append(f"{pluralize(skipped, 'run')} without answers: the analysis does not include them.")
    return chosen, notes


def _read(run: Run, *names: str) -> dict[str, NDArray[Any]]:
    try:
        part = metrics.read_subset_logits(run.logits_file, *names)
    except (ValueError, OSError) as error:
        raise DamagedRunError(
            run.logits_file, str(error), "delete its run, and resume the sweep to train it anew"
        ) from error
    return vars(part) if isinstance(part, SubsetLogits) else part


def _read_fold(run: Run) -> dict[str, NDArray[Any]]:
    """Read the last answers of an ordinary run to its validation images, none of which it was trained on."""
    try:
        part = read_fold_predictions(run)
    except (ValueError, OSError, KeyError) as error:
        reason = "it is missing" if isinstance(error, FileNotFoundError) else str(error)
        raise UserError(
            f"{run.predictions_file} cannot be read ({reason}): train the folds with callbacks=default, or keep=logits."
        ) from error
    indices, targets = part.indices.numpy(), part.targets.numpy()
    return {
        "indices": indices,
        "targets": targets,
        "logits": part.logits.numpy(),
        "trained": np.zeros(len(indices), dtype=bool),
    }


def _gaps(correct: Mask, inside: Mask, outside: Mask, targets: Integers, classes: int) -> Floats:
    """Accuracy inside minus outside the training set over all images, and of each class, `(1 + C,)`."""
    groups = [np.ones(len(targets), dtype=bool), *(targets == label for label in range(classes))]
    return np.array([_mean(correct[inside & group]) - _mean(correct[outside & group]) for group in groups])


def _mean(values: Mask) -> float:
    return float(values.mean()) if len(values) else math.nan


@dataclass(frozen=True)
class Scores:
    """Memorisation of the training images, and what is derived from it.

    Attributes:
        score: `(N,)`.
        standard_error: `(N,)`.
        reliability: correlation of the scores of two halves of the runs over all images, and over those above
            `RELIABLE_ABOVE`.
        checks: the gap of one half of the runs against the scores of the other, with the name of the images: `all`,
            then each class that has scores.
        shares: part of the gap that the most memorised `SHARES` of the images carry.
        class_shares: `(C,)`, part of the gap that each class carries.
        influences: pairs of memorised training and test images; None without pairs of complementary halves.
        tested: `(K,)`, rows of the training images whose influence was tested.
    """

    score: Floats
    standard_error: Floats
    reliability: tuple[float, float]
    checks: tuple[tuple[str, GapCheck], ...]
    shares: tuple[float, ...]
    class_shares: Floats
    influences: metrics.Influences | None
    tested: Integers

    @property
    def gap(self) -> float:
        """The expected gap in accuracy, the mean of the scores."""
        return float(np.nanmean(self.score))


def compute_scores(
    answers: Answers, *, memorised: float = MEMORISED, false_discovery_rate: float = 0.05
) -> Scores | None:
    """Compute memorisation and influence.

    Args:
        answers: of all runs.
        memorised: score from which the influence of an image is tested.
        false_discovery_rate: of the influences, see `influences`.

    Returns:
        The scores; None if there are none, as of ordinary runs.
    """
    if not answers.has_scores:
        return None
    total = answers.total
    score = total.score
    first, second = (half.score for half in answers.halves)
    high = score > RELIABLE_ABOVE
    groups = [np.ones(len(score), dtype=bool), *(answers.targets == label for label in range(len(answers.class_names)))]
    names = ("all", *answers.class_names)
    has_halves = all(len(half) and np.isfinite(half[:, 0]).any() for half in answers.gaps)
    checks = (
        [
            (name, metrics.gap_check(first[group], *(half[:, column].tolist() for half in answers.gaps)))
            for column, (name, group) in enumerate(zip(names, groups, strict=True))
            if np.isfinite(first[group]).any()
        ]
        if has_halves
        else []
    )
    known = np.nan_to_num(score)
    sums = np.array([known[group].sum() for group in groups[1:]])
    tested = np.flatnonzero(known >= memorised)
    found = None
    if len(answers.pairs) and len(answers.test_correct):
        rows, partners = answers.pairs.T
        found = metrics.influences(
            answers.trained[np.ix_(rows, tested)],
            answers.test_correct[rows],
            answers.test_correct[partners],
            false_discovery_rate=false_discovery_rate,
        )
    return Scores(
        score=score,
        standard_error=total.standard_error,
        reliability=(metrics.correlation(first, second), metrics.correlation(first[high], second[high])),
        checks=tuple(checks),
        shares=tuple(metrics.gap_shares(first, second, SHARES)) if has_halves else (),
        class_shares=sums / sums.sum() if sums.sum() else sums,
        influences=found,
        tested=tested,
    )


@dataclass(frozen=True)
class LabelErrors:
    """Likely label errors among the training images.

    Attributes:
        probability: `(N,)`, that the label is wrong, see `wrong_label_probability`.
        proposed: `(N,)`, the most probable class.
        temperature: of the calibration of the out-of-sample probabilities.
        noise: `(C, C)`, probability of each given label by true class, from anchors.
        listed: rows of the list whose expected precision is at least `precision`.
        precision: the promised precision.
        confident_noise: `(C, C)`, the noise matrix of confident learning, None without cleanlab.
        issues: `(N,)` bool, label issues by confident learning (cleanlab); None without it.
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
    """Find likely label errors from out-of-sample probabilities `(N, C)` and labels `(N,)`.

    Confident learning (cleanlab) is used where it is installed.
    """
    temperature = metrics.fit_temperature(out_of_sample, targets)
    calibrated = metrics.calibrate(out_of_sample, temperature)
    noise = metrics.anchor_noise_matrix(calibrated, targets)
    probability = metrics.wrong_label_probability(calibrated, targets, noise)
    proposed = calibrated.argmax(axis=1)
    # The same class is no correction.
    probability = np.where(proposed == targets, 0.0, probability)
    confident_noise, issues = _confident_learning(calibrated, targets)
    return LabelErrors(
        probability=probability,
        proposed=proposed,
        temperature=temperature,
        noise=noise,
        listed=metrics.longest_list(probability, precision),
        precision=precision,
        confident_noise=confident_noise,
        issues=issues,
    )


def has_cleanlab() -> bool:
    """Return whether cleanlab is installed."""
    return importlib.util.find_spec("cleanlab") is not None


def _confident_learning(calibrated: Floats, targets: Integers) -> tuple[Floats | None, Mask | None]:
    """The noise matrix and the label issues by cleanlab, None where it is missing or a class has no image."""
    if not has_cleanlab() or len(np.unique(targets)) < calibrated.shape[1]:
        return None, None
    from cleanlab.count import compute_confident_joint, estimate_latent
    from cleanlab.filter import find_label_issues

    joint = compute_confident_joint(targets, calibrated)
    _, noise, _ = estimate_latent(joint, targets)
    # In this process: others would import everything anew.
    issues = find_label_issues(targets, calibrated, confident_joint=joint, n_jobs=1)
    return np.asarray(noise).T, np.asarray(issues, dtype=bool)


@dataclass(frozen=True)
class Duplicates:
    """Test images that nearly repeat a training image.

    Attributes:
        tests: `(K,)`, rows of the test images.
        rows: `(K,)`, rows of the most similar training images.
        similarity: `(K,)`, correlation of their pixels, the highest first; 1 for equal images.
        equal: `(K,)` bool, whether all pixels are equal.
    """

    tests: Integers
    rows: Integers
    similarity: Floats
    equal: Mask


def find_duplicates(train: torch.Tensor, test: torch.Tensor, *, above: float) -> Duplicates:
    """Find near-duplicates across the splits.

    Args:
        train: `(N, C, H, W)` uint8.
        test: `(M, C, H, W)` uint8.
        above: smallest correlation of the pixels of near-duplicates.
    """
    pixels, queries = (images.flatten(1).numpy() for images in (train, test))
    nearest, similarity = metrics.nearest_images(queries, pixels)
    tests = np.flatnonzero(similarity >= above)
    tests = tests[np.argsort(-similarity[tests], kind="stable")]
    rows = nearest[tests]
    return Duplicates(tests, rows, similarity[tests], (pixels[rows] == queries[tests]).all(axis=1))


@dataclass(frozen=True)
class Proxy:
    """How well a measurement of one ordinary run predicts memorisation.

    Attributes:
        name: of the measurement.
        correlation: Spearman's rank correlation with the memorisation score.
        images: number of images.
    """

    name: str
    correlation: float
    images: int


def compare_proxies(run: Run, data: ImageDataModule, answers: Answers, score: Floats) -> list[Proxy]:
    """Correlate the measurements that an ordinary run makes of its training images with memorisation.

    Args:
        run: an ordinary run with `examples.csv`.
        data: data of the trainings on subsets, with the training images in memory.
        answers: of these trainings.
        score: `(N,)`, memorisation.

    Raises:
        UserError: if it has no such file, or one of another data set.
    """
    try:
        rows = list(csv.DictReader(io.StringIO(read_text(run.examples_file, _MAX_EXAMPLES_BYTES))))
        columns = {
            name: np.array([float(row[name]) for row in rows])
            for name in (
                "indices",
                "targets",
                "seen",
                "learned_epoch",
                "recognised",
                "forgotten",
                "confidence",
                "margin",
            )
        }
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise UserError(
            f"run={run.path}: {run.examples_file.name} cannot be read ({error}): give an ordinary run with "
            "callbacks=default."
        ) from error
    indices = columns["indices"].astype(np.int64)
    places = np.searchsorted(answers.indices, indices).clip(max=len(answers.indices) - 1)
    if (
        not len(rows)
        or (answers.indices[places] != indices).any()
        or (answers.targets[places] != columns["targets"]).any()
    ):
        raise UserError(f"run={run.path} was trained on other images or labels: give a run on the same data set.")
    # An image that no epoch recognised was learned after the last one.
    learned = np.where(columns["recognised"] > 0, columns["learned_epoch"], columns["seen"].max() + 1)
    proxies = {
        "epoch learned": learned,
        "forgetting": np.where(columns["recognised"] > 0, columns["forgotten"], columns["seen"].max() + 1),
        "share of the epochs that misclassify it": 1 - columns["recognised"] / np.maximum(columns["seen"], 1),
        "mean margin, negative": -columns["margin"],
        "mean probability of the label, negative": -columns["confidence"],
        "loss at the end": _losses(run, data, indices, answers.targets[places]),
    }
    return [
        Proxy(name, metrics.spearman(values, score[places]), len(values))
        for name, values in proxies.items()
        if np.isfinite(values).any()
    ]


def _losses(run: Run, data: ImageDataModule, indices: Integers, targets: Integers) -> Floats:
    """Cross-entropy of the run's network on training images; NaN if its weights cannot be read."""
    try:
        network = TrainedNetwork(run)
        logits = network.logits(data.train_split.images_at(torch.from_numpy(indices)))
    except UserError:
        return np.full(len(indices), np.nan)
    losses = torch.nn.functional.cross_entropy(logits, torch.from_numpy(targets).long(), reduction="none")
    return losses.numpy().astype(np.float64)


def write_scores(path: Path, answers: Answers, scores: Scores, recipe: str) -> None:
    """Write the memorisation scores alone, a compact file that can come with the package.

    Args:
        path: the .npz file.
        answers: of the runs.
        scores: computed from them.
        recipe: the command of the trainings.
    """
    about = {"recipe": recipe, "networks": len(answers.runs), "unit": _SCORE_UNIT, "classes": list(answers.class_names)}
    with open_atomically(path) as file:
        np.savez_compressed(
            file,
            index=answers.indices.astype(np.int32),
            label=answers.targets.astype(np.int16),
            memorisation=_packed(scores.score),
            standard_error=_packed(scores.standard_error),
            about=np.frombuffer(json.dumps(about).encode(), dtype=np.uint8),
        )


def _packed(values: Floats) -> NDArray[np.int16]:
    """Whole numbers of `_SCORE_UNIT`."""
    return np.where(np.isfinite(values), np.round(values / _SCORE_UNIT), _UNKNOWN).astype(np.int16)


def shipped_scores(data: ImageDataModule, folder: Path | None = None) -> dict[int, float] | None:
    """Return the memorisation scores of a data set that come with the package, by position; None without any.

    Args:
        data: the data, with the training images in memory. Images whose label differs from that of the scores, as with
            `data.relabel`, have none.
        folder: the folder of the files; None for that of the package.
    """
    path = (folder or SCORES) / data.memorisation_scores
    if not data.memorisation_scores or not path.is_file():
        return None
    with np.load(path, allow_pickle=False) as file:
        index, label, packed = file["index"], file["label"], file["memorisation"]
        classes = json.loads(file["about"].tobytes())["classes"]
    targets = np.full(max(int(index.max()) + 1, len(data.training_targets)), -1)
    targets[: len(data.training_targets)] = data.training_targets.numpy()
    # Classes may be left out, which renumbers the others.
    names = [*data.class_names]
    labels = np.array([names.index(name) if name in names else -2 for name in classes])[label]
    known = (packed != _UNKNOWN) & (targets[index] == labels)
    return dict(zip(index[known].tolist(), (packed[known] * _SCORE_UNIT).round(4).tolist(), strict=True)) or None
