"""Memorisation, influence, label errors, bias and variance, from networks that were trained on random subsets.

- Feldman and Zhang, "What Neural Networks Memorize and Why", 2020 (arXiv 2008.03703): the memorisation score of a
  training image is the probability that a network classifies it correctly if it was trained on it, minus the same
  probability if it was not. The influence of a training image on a test image is this difference for the test image.
- Northcutt, Jiang and Chuang, "Confident Learning", 2021 (arXiv 1911.00068): the noise matrix and out-of-sample
  predictions as the basis of label errors.
- Patrini et al., "Making Deep Neural Networks Robust to Label Noise", 2017 (arXiv 1609.03683): estimation of the noise
  matrix from anchor images, those with the highest predicted probability of a class.
- Benjamini and Hochberg, "Controlling the False Discovery Rate", 1995.
- Domingos, "A Unified Bias-Variance Decomposition", 2000: bias and variance of the 0-1 loss.
- Heskes, "Bias/Variance Decompositions for Likelihood-Based Estimators", 1998: bias and variance of the cross-entropy.

All functions take and return NumPy arrays. Their sizes are: N training images, M test images, T networks, P pairs of
networks trained on complementary halves, C classes.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fashion_cnn.metrics.predictions import check_unpacked_size
from fashion_cnn.metrics.ranking import midranks
from fashion_cnn.runs.files import open_atomically

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.integer[Any]]
Mask = NDArray[np.bool_]
# Maximum number of pairs of a training and a test image in memory at once.
_CHUNK = 20_000_000
_GOLDEN_SECTION = (math.sqrt(5) - 1) / 2
_EPSILON = 1e-12
# Maximum number of bins of equal size in isotonic regression, and minimum number of values in one.
_ISOTONIC_BINS, _MIN_BIN = 300, 20


@dataclass(frozen=True)
class SubsetLogits:
    """Logits of one network for all training and test images, and the subset that it was trained on.

    Attributes:
        logits: `(N, C)` floating point, logits of the training images; float16 in files.
        targets: `(N,)` integer, class indices that the network was trained with.
        indices: `(N,)` integer, positions of the images in the data set, ascending.
        trained: `(N,)` bool, True for the images in the training subset of the network.
        test_logits: `(M, C)` floating point, logits of the test images; M is 0 without test images.
        test_targets: `(M,)` integer, class indices of the test images.
        test_indices: `(M,)` integer, positions of the test images in their data set.

    Raises:
        ValueError: if the shapes do not match, or a logit is not finite; the message is the reason.
    """

    logits: Floats
    targets: Integers
    indices: Integers
    trained: Mask
    test_logits: Floats
    test_targets: Integers
    test_indices: Integers

    def __post_init__(self) -> None:
        for name in ("logits", "test_logits"):
            part = getattr(self, name)
            prefix = name.removesuffix("logits")
            sizes = {len(getattr(self, f"{prefix}{other}")) for other in ("targets", "indices")}
            if part.ndim != 2 or sizes != {len(part)} or not np.isfinite(part).all():
                raise ValueError(f"its array {name} is damaged")
        if self.trained.shape != (len(self.logits),) or self.logits.shape[1] != self.test_logits.shape[1]:
            raise ValueError("its arrays do not fit together")


_KINDS = {"logits": "f", "trained": "b"}


def write_subset_logits(path: Path, subset_logits: SubsetLogits) -> None:
    """Store the logits of a network in one .npz file, atomically; each attribute is an array of its name."""
    with open_atomically(path) as file:
        np.savez_compressed(file, **{part.name: getattr(subset_logits, part.name) for part in fields(subset_logits)})


def read_subset_logits(path: Path) -> SubsetLogits:
    """Read a file of `write_subset_logits`.

    Raises:
        ValueError: if it is damaged; the message is the reason.
        FileNotFoundError: if it does not exist.
    """
    return SubsetLogits(**read_subset_arrays(path, [part.name for part in fields(SubsetLogits)]))


def read_subset_arrays(path: Path, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Read some arrays of a file of `write_subset_logits`; the others are not decompressed.

    Args:
        path: the .npz file.
        names: attributes of `SubsetLogits`.

    Returns:
        The arrays by name.

    Raises:
        ValueError: if the file is damaged; the message is the reason.
        FileNotFoundError: if it does not exist.
    """
    if path.exists() and not path.is_file():  # A named pipe could block for ever.
        raise ValueError("it is not a regular file")
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            check_unpacked_size(file.zip, path)
            arrays = {name: file[name] for name in names}
    except FileNotFoundError:
        raise
    except Exception as error:  # NumPy, zipfile and zlib raise errors of many types
        raise ValueError(f"it holds no {error.args[0]}" if isinstance(error, KeyError) else str(error)) from error
    for name, array in arrays.items():
        if array.dtype.kind not in _KINDS.get(name.removeprefix("test_"), "iu"):
            raise ValueError(f"its array {name} is of {array.dtype}")
    return arrays


def softmax(logits: Floats) -> Floats:
    """Softmax over the classes of logits `(N, C)`, as float32."""
    shifted = logits.astype(np.float32)
    shifted -= shifted.max(axis=1, keepdims=True)
    np.exp(shifted, out=shifted)
    shifted /= shifted.sum(axis=1, keepdims=True)
    return shifted


@dataclass
class CorrectCounts:
    """Numbers of networks and of correct predictions by image, separately for networks trained on the image or not.

    Attributes:
        trained: `(N,)`, number of networks trained on the image.
        held_out: `(N,)`, number of networks not trained on it.
        trained_correct: `(N,)`, number of the first that classify the image correctly.
        held_out_correct: `(N,)`, number of the second that classify it correctly.
    """

    trained: Integers
    held_out: Integers
    trained_correct: Integers
    held_out_correct: Integers

    @classmethod
    def zeros(cls, images: int) -> "CorrectCounts":
        """Return counts of zero for a number of images."""
        return cls(*(np.zeros(images, dtype=np.int64) for _ in range(4)))

    def add(self, trained: Mask, correct: Mask, available: Mask | None = None) -> None:
        """Count one network.

        Args:
            trained: `(N,)`, True for the images that it was trained on.
            correct: `(N,)`, True for the images that it classifies correctly.
            available: `(N,)`, True for the images whose prediction is stored; None for all.
        """
        available = np.ones(len(trained), dtype=bool) if available is None else available
        self.trained += trained & available
        self.held_out += ~trained & available
        self.trained_correct += trained & correct & available
        self.held_out_correct += ~trained & correct & available

    def __add__(self, other: "CorrectCounts") -> "CorrectCounts":
        return CorrectCounts(*(getattr(self, part.name) + getattr(other, part.name) for part in fields(self)))

    @property
    def train_accuracy(self) -> Floats:
        """Accuracy on the image of the networks trained on it, `(N,)`, in [0, 1]; NaN without any."""
        return _proportion(self.trained_correct, self.trained)

    @property
    def held_out_accuracy(self) -> Floats:
        """Accuracy on the image of the networks not trained on it, `(N,)`, in [0, 1]; NaN without any."""
        return _proportion(self.held_out_correct, self.held_out)

    @property
    def score(self) -> Floats:
        """Memorisation score (Feldman and Zhang, 2020), `(N,)`, in [-1, 1].

        The difference of `train_accuracy` and `held_out_accuracy`; NaN where one of them is.
        """
        return self.train_accuracy - self.held_out_accuracy

    @property
    def standard_error(self) -> Floats:
        """Standard error of `score`, as a difference of two independent proportions, `(N,)`.

        NaN where fewer than two networks were, or were not, trained on the image.
        """
        variance = np.zeros(len(self.trained))
        for accuracy, count in ((self.train_accuracy, self.trained), (self.held_out_accuracy, self.held_out)):
            with np.errstate(divide="ignore", invalid="ignore"):
                # n - 1 makes the estimated variance of a mean of n values unbiased.
                variance += np.where(count > 1, accuracy * (1 - accuracy) / (count - 1), np.nan)
        return np.sqrt(variance)


def _proportion(part: Integers, whole: Integers) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(whole > 0, part / whole, np.nan)


def complementary_pairs(trained: Mask) -> Integers:
    """Find pairs of networks that were trained on complementary halves of the images.

    Args:
        trained: `(T, N)`, True for the images that each network was trained on. Images in no training set are ignored.

    Returns:
        `(P, 2)`, rows of `trained`.
    """
    used = trained[:, trained.any(axis=0)]
    waiting: dict[bytes, list[int]] = {}
    pairs = []
    for row, mask in enumerate(used):
        if partners := waiting.get(np.packbits(~mask).tobytes()):
            pairs.append((partners.pop(0), row))
        else:
            waiting.setdefault(np.packbits(mask).tobytes(), []).append(row)
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


@dataclass(frozen=True)
class GapCheck:
    """Accuracy gap predicted from one half of the networks, and the measured gap of the other half.

    Attributes:
        images: number of images.
        predicted: mean memorisation score by the first half, as a fraction in [-1, 1].
        measured: accuracy on training images minus accuracy on held-out images, averaged over the networks of the
            second half, as a fraction in [-1, 1].
        standard_error: standard error of `predicted - measured`.
    """

    images: int
    predicted: float
    measured: float
    standard_error: float

    @property
    def deviation(self) -> float:
        """The difference `predicted - measured` in standard errors (z-score); NaN if that error is 0."""
        return (self.predicted - self.measured) / self.standard_error if self.standard_error else math.nan


def gap_check(score: Floats, first_gaps: Sequence[float], second_gaps: Sequence[float]) -> GapCheck:
    """Compare the mean memorisation score by one half of the networks with the gap of the other half.

    Args:
        score: `(N,)`, memorisation scores by the first half.
        first_gaps: gap of each independent unit of the first half, which is a complementary pair or a single network;
            their spread gives the standard error of the prediction.
        second_gaps: gap of each unit of the second half.

    Returns:
        Both gaps and the standard error of their difference; NaN with fewer than two units in a half.
    """
    spread = [np.var(gaps, ddof=1) / len(gaps) if len(gaps) > 1 else math.nan for gaps in (first_gaps, second_gaps)]
    return GapCheck(len(score), float(np.nanmean(score)), float(np.mean(second_gaps)), math.sqrt(sum(spread)))


def gap_shares(first: Floats, second: Floats, fractions: Sequence[float]) -> list[float]:
    """Share of the gap that the most memorised images account for, without selection bias (cross-fitting).

    The images are ranked by the scores of one half of the networks, and their share is computed from the scores of the
    other half. The result is the mean of both directions.

    Args:
        first: `(N,)`, memorisation scores by one half of the networks.
        second: `(N,)`, scores by the other half.
        fractions: fractions of the images, most memorised first, in (0, 1].

    Returns:
        For each fraction, the sum of the scores of these images over the sum of all scores. Empty if the networks of a
        half have no gap.
    """
    first, second = np.nan_to_num(first), np.nan_to_num(second)
    if min(first.sum(), second.sum()) <= 0:
        return []
    results = []
    for fraction in fractions:
        count = max(1, round(fraction * len(first)))
        shares = [
            measured[np.argsort(-ranking, kind="stable")[:count]].sum() / measured.sum()
            for ranking, measured in ((first, second), (second, first))
        ]
        results.append(float(np.mean(shares)))
    return results


def pearson(first: Floats, second: Floats) -> float:
    """Pearson's correlation coefficient over the positions where both arrays `(N,)` are finite.

    NaN with fewer than two of these positions, or without variation.
    """
    finite = np.isfinite(first) & np.isfinite(second)
    first, second = first[finite], second[finite]
    if len(first) < 2 or first.std() == 0 or second.std() == 0:
        return math.nan
    return float(np.corrcoef(first, second)[0, 1])


def spearman(first: Floats, second: Floats) -> float:
    """Spearman's rank correlation, with mean ranks of ties; positions as in `pearson`."""
    finite = np.isfinite(first) & np.isfinite(second)
    return pearson(*(midranks(torch.from_numpy(values[finite])).numpy() for values in (first, second)))


@dataclass(frozen=True)
class Influences:
    """K pairs of a training and a test image with significant influence, the largest influence first.

    Attributes:
        train_rows: `(K,)`, rows of the training images among those tested.
        test_rows: `(K,)`, rows of the test images.
        values: `(K,)`, influence (Feldman and Zhang, 2020), in [-1, 1]: how much the accuracy of the networks on the
            test image is higher with the training image than without it.
        p_values: `(K,)`, two-sided p-values of the exact test.
        threshold: largest significant p-value; 0 if none is significant.
        tested: number of pairs of images that were tested.
        null_discoveries: number of equally many pairs with randomly drawn membership whose p-value is at most
            `threshold`.
    """

    train_rows: Integers
    test_rows: Integers
    values: Floats
    p_values: Floats
    threshold: float
    tested: int
    null_discoveries: int


def influences(
    first_trained: Mask, first_correct: Mask, second_correct: Mask, *, false_discovery_rate: float = 0.05, seed: int = 0
) -> Influences:
    """Test the influence of each training image on each test image by McNemar's exact test.

    Exactly one of the two networks of a complementary pair was trained on the image. A pair of networks is discordant
    if exactly one of them classifies the test image correctly. The null hypothesis is that the training image has no
    influence on the test image: since the halves are random, the number of discordant pairs whose correct network was
    trained on the image is then binomial with probability 1/2. The two-sided p-values are exact. Significance controls
    the false discovery rate over all pairs of images (Benjamini and Hochberg, 1995). As a check, `null_discoveries`
    counts the pairs at the same threshold for randomly drawn membership, for which the null hypothesis holds.

    Args:
        first_trained: `(P, N)`, True if the first network of the pair was trained on the image, False if the second.
        first_correct: `(P, M)`, True if the first network classifies the test image correctly.
        second_correct: `(P, M)`, True if the second network classifies it correctly.
        false_discovery_rate: upper bound of the expected fraction of false discoveries, in (0, 1).
        seed: seed of the random membership.

    Returns:
        The significant pairs of images.
    """
    pairs, images = first_trained.shape
    differences = first_correct.astype(np.float32) - second_correct
    discordant = np.abs(differences).sum(axis=0).astype(np.int64)
    p_values = sign_test_p_values(pairs)
    counts = np.zeros(p_values.size, dtype=np.int64)
    for _, excess in _excesses(first_trained, differences):
        # There are few distinct p-values, so they are counted instead of stored for each pair of images.
        counts += np.bincount((discordant * len(p_values) + np.abs(excess)).ravel(), minlength=p_values.size)
    threshold = benjamini_hochberg(p_values.ravel(), counts, false_discovery_rate)
    significant: list[tuple[Integers, Integers, Integers]] = []
    for start, excess in _excesses(first_trained, differences):
        rows, test_rows = np.nonzero(p_values[discordant, np.abs(excess)] <= threshold)
        significant.append((rows + start, test_rows, excess[rows, test_rows]))
    train_rows, test_rows, excess = (
        np.concatenate([part[place] for part in significant]) if significant else np.zeros(0, dtype=np.int64)
        for place in range(3)
    )
    random = np.random.default_rng(seed).random((pairs, images)) < 0.5
    null_discoveries = sum(
        int((p_values[discordant, np.abs(null_excess)] <= threshold).sum())
        for _, null_excess in _excesses(random, differences)
    )
    order = np.argsort(-excess, kind="stable")
    train_rows, test_rows, excess = train_rows[order], test_rows[order], excess[order]
    return Influences(
        train_rows=train_rows,
        test_rows=test_rows,
        values=excess / max(pairs, 1),
        p_values=p_values[discordant[test_rows], np.abs(excess)],
        threshold=threshold,
        tested=images * len(discordant),
        null_discoveries=null_discoveries if threshold else 0,
    )


def _excesses(first_trained: Mask, differences: Floats) -> Iterator[tuple[int, Integers]]:
    """Yield chunks of the training images, as first row and excess `(n, M)`.

    The excess is the number of discordant pairs whose correct network was trained on the image, minus the others.
    """
    rows = max(1, _CHUNK // max(1, differences.shape[1]))
    for start in range(0, first_trained.shape[1], rows):
        signs = np.where(first_trained[:, start : start + rows], np.float32(1), np.float32(-1))
        # Sums of up to 2^24 ones are exact in float32.
        yield start, (signs.T @ differences).astype(np.int32)


def sign_test_p_values(size: int) -> Floats:
    """Table of the exact two-sided p-values of the sign test.

    Args:
        size: maximum number of discordant pairs.

    Returns:
        `(size + 1, size + 1)`, by number of discordant pairs and absolute excess. Entries have a meaning only if the
        excess is at most this number, and both are even or both odd.
    """
    table = np.ones((size + 1, size + 1))
    log_factorials = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, size + 1)))])
    for count in range(1, size + 1):
        wins = np.arange(count + 1)
        logs = log_factorials[count] - log_factorials[wins] - log_factorials[count - wins] - count * math.log(2)
        # Upper tail probabilities, summed from the smallest terms.
        tails = np.cumsum(np.exp(logs)[::-1])[::-1]
        excess = np.arange(1, count + 1)
        table[count, 1 : count + 1] = np.minimum(1, 2 * tails[(count + excess + 1) // 2])
    return table


def benjamini_hochberg(p_values: Floats, counts: Integers, rate: float) -> float:
    """Largest significant p-value by the step-up procedure of Benjamini and Hochberg (1995).

    Args:
        p_values: `(K,)`, p-values in any order; repeated values are allowed.
        counts: `(K,)`, number of hypotheses with each p-value.
        rate: false discovery rate, in (0, 1).

    Returns:
        The threshold; 0 if no hypothesis is rejected.
    """
    order = np.argsort(p_values, kind="stable")
    p_values, ranks = p_values[order], np.cumsum(counts[order])
    significant = (p_values * ranks[-1] <= rate * ranks) & (counts[order] > 0)
    return float(p_values[significant].max()) if significant.any() else 0.0


@dataclass
class PredictionTotals:
    """Predictions of several networks on the same images, summed over the networks.

    Attributes:
        probability: `(N, C)`, sum of the softmax probabilities.
        log_probability: `(N, C)`, sum of their natural logarithms.
        votes: `(N, C)`, number of networks by predicted class.
    """

    probability: Floats
    log_probability: Floats
    votes: Integers = field(repr=False)

    @classmethod
    def zeros(cls, images: int, classes: int) -> "PredictionTotals":
        """Return sums of zero for a number of images and of classes."""
        shape = (images, classes)
        return cls(np.zeros(shape), np.zeros(shape), np.zeros(shape, dtype=np.int64))

    def add(self, logits: Floats, mask: Mask) -> None:
        """Add the predictions of one network.

        Args:
            logits: `(N, C)`.
            mask: `(N,)`, True for the images whose predictions count.
        """
        probability = softmax(logits[mask]).astype(np.float64)
        self.probability[mask] += probability
        self.log_probability[mask] += np.log(np.maximum(probability, _EPSILON))
        self.votes[np.flatnonzero(mask), logits[mask].argmax(axis=1)] += 1

    @property
    def networks(self) -> Integers:
        """Number of networks whose prediction of each image was added, `(N,)`."""
        return self.votes.sum(axis=1)

    @property
    def mean(self) -> Floats:
        """Mean probabilities over the networks, `(N, C)`; NaN without a network."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.probability / self.networks[:, None]

    @property
    def agreement(self) -> Floats:
        """Fraction of the networks that predict the most frequent class, `(N,)`; NaN without a network."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.votes.max(axis=1) / self.networks


@dataclass(frozen=True)
class Decomposition:
    """Bias-variance decomposition of 0-1 loss (Domingos, 2000) and cross-entropy (Heskes, 1998), by image.

    Attributes:
        error: `(M,)`, fraction of the networks that misclassify the image.
        bias: `(M,)`, 1 where the main prediction, which is the most frequent one, is wrong, else 0.
        variance: `(M,)`, fraction of the networks whose prediction is not the main one. It equals `error` where the
            bias is 0.
        loss: `(M,)`, mean cross-entropy of the label, in nats: the sum of `loss_bias` and `loss_variance`.
        loss_bias: `(M,)`, cross-entropy of the label under the normalised geometric mean of the probabilities.
        loss_variance: `(M,)`, mean over the networks of the Kullback-Leibler divergence KL(that geometric mean ||
            probabilities of the network).
    """

    error: Floats
    bias: Floats
    variance: Floats
    loss: Floats
    loss_bias: Floats
    loss_variance: Floats


def decompose(totals: PredictionTotals, targets: Integers) -> Decomposition:
    """Decompose the error of the networks into bias and variance.

    With one label for each image, the bias includes the label noise.

    Args:
        totals: predictions of at least one network for each of the M images.
        targets: `(M,)`, labels of the images.

    Returns:
        The terms of both decompositions.
    """
    rows = np.arange(len(targets))
    fractions = totals.votes / totals.networks[:, None]
    main = fractions.argmax(axis=1)
    logs = totals.log_probability / totals.networks[:, None]
    loss = -logs[rows, targets]
    top = logs.max(axis=1, keepdims=True)
    variance = -(top[:, 0] + np.log(np.exp(logs - top).sum(axis=1)))
    return Decomposition(
        error=1 - fractions[rows, targets],
        bias=(main != targets).astype(np.float64),
        variance=1 - fractions[rows, main],
        loss=loss,
        loss_bias=loss - variance,
        loss_variance=variance,
    )


def fit_temperature(mean: Floats, targets: Integers) -> float:
    """Fit the temperature of `calibrate` (Guo et al., 2017, arXiv 1706.04599).

    Args:
        mean: `(N, C)`, mean probabilities.
        targets: `(N,)`, labels.

    Returns:
        The temperature in [1/8, 8] with the lowest cross-entropy of the calibrated probabilities.
    """
    rows = np.arange(len(targets))

    def loss(log_temperature: float) -> float:
        calibrated = calibrate(mean, math.exp(log_temperature))
        return float(-np.log(np.maximum(calibrated[rows, targets], _EPSILON)).mean())

    low, high = -math.log(8), math.log(8)
    # Golden-section search: the loss has one minimum, since it is convex in the inverse temperature.
    for _ in range(40):
        width = _GOLDEN_SECTION * (high - low)
        if loss(high - width) < loss(low + width):
            high = low + width
        else:
            low = high - width
    return math.exp((low + high) / 2)


def calibrate(mean: Floats, temperature: float) -> Floats:
    """Raise probabilities `(N, C)` to the power 1/temperature, and normalise them over the classes."""
    logs = np.log(np.maximum(mean, _EPSILON)) / temperature
    return softmax(logs).astype(np.float64)


def calibrate_isotonically(probabilities: Floats, targets: Integers) -> Floats:
    """Calibrate probabilities by the frequency of the labels, as a monotone function (isotonic regression).

    After Zadrozny and Elkan, "Transforming classifier scores into accurate multiclass probability estimates", 2002,
    with one function for the most probable class of each image, and one for all other classes. A temperature cannot
    calibrate the small probabilities of classes that hardly occur among the labels of such images.

    Args:
        probabilities: `(N, C)`.
        targets: `(N,)`, labels.

    Returns:
        `(N, C)`, calibrated probabilities, which sum to 1 for each image.
    """
    rows = np.arange(len(targets))
    is_label, is_top = np.zeros_like(probabilities, dtype=bool), np.zeros_like(probabilities, dtype=bool)
    is_label[rows, targets] = True
    is_top[rows, probabilities.argmax(axis=1)] = True
    calibrated = np.empty_like(probabilities)
    for part in (is_top, ~is_top):
        calibrated[part] = _fit_isotonically(probabilities[part], is_label[part])
    result: Floats = calibrated / np.maximum(calibrated.sum(axis=1, keepdims=True), _EPSILON)
    return result


def _fit_isotonically(values: Floats, outcomes: Mask) -> Floats:
    """Return the frequency of the outcomes as a non-decreasing function of the values, for each value `(n,)`."""
    size = len(values)
    order = np.argsort(values, kind="stable")
    # Values are pooled in bins of equal size, and in smaller ones among the largest values, which matter most.
    bins = max(1, min(_ISOTONIC_BINS, size // _MIN_BIN))
    smaller = size - np.geomspace(1, size, bins).astype(int)
    edges = np.unique(np.concatenate([np.linspace(0, size, bins + 1).astype(int), smaller]))
    sizes = np.diff(edges)
    centres = np.add.reduceat(values[order], edges[:-1]) / sizes
    frequencies = np.add.reduceat(outcomes[order], edges[:-1], dtype=np.float64) / sizes
    # Pool adjacent violators: blocks of mean frequency, size and number of bins.
    blocks: list[tuple[float, int, int]] = []
    for mean, weight in zip(frequencies.tolist(), sizes.tolist(), strict=True):
        pooled = 1
        while blocks and blocks[-1][0] >= mean:
            other, other_weight, other_bins = blocks.pop()
            mean = (other * other_weight + mean * weight) / (other_weight + weight)
            weight, pooled = other_weight + weight, other_bins + pooled
        blocks.append((mean, weight, pooled))
    means, _, numbers = zip(*blocks, strict=True)
    interpolated: Floats = np.interp(values, centres, np.repeat(means, numbers))
    return interpolated


def anchor_noise_matrix(calibrated: Floats, targets: Integers, fraction: float = 0.5) -> Floats:
    """Estimate the noise matrix P(given label | true class) from anchor images (after Patrini et al., 2017).

    The anchor images of a class and a label are those of the images predicted as the class whose probability of the
    label is lowest. They are taken as members of the class, and the frequency of the label among them is an entry of
    the matrix. To the images of each class and label, C pseudo-images are added with the frequency of all classes and
    labels, so that an error that no anchor image has remains possible.

    Args:
        calibrated: `(N, C)`, calibrated out-of-sample probabilities.
        targets: `(N,)`, given labels.
        fraction: fraction of the images predicted as a class that are its anchor images for a label, in (0, 1].

    Returns:
        `(C, C)`, true classes in rows and given labels in columns; each row sums to 1.
    """
    classes = calibrated.shape[1]
    predicted = calibrated.argmax(axis=1)
    errors, anchors = np.zeros((classes, classes)), np.zeros((classes, classes))
    for true in range(classes):
        members = np.flatnonzero(predicted == true)
        number = math.ceil(fraction * len(members))
        for given in set(range(classes)) - {true}:
            chosen = members[np.argsort(calibrated[members, given], kind="stable")[:number]]
            errors[true, given], anchors[true, given] = (targets[chosen] == given).sum(), number
    rate = errors.sum() / max(anchors.sum(), 1)
    noise: Floats = (errors + classes * rate) / (anchors + classes)
    np.fill_diagonal(noise, 0)
    # An estimate from very few images may exceed 1.
    noise /= np.maximum(noise.sum(axis=1, keepdims=True), 1)
    np.fill_diagonal(noise, 1 - noise.sum(axis=1))
    return noise


def label_error_probability(calibrated: Floats, targets: Integers, noise: Floats) -> Floats:
    """Probability that the given label of each image is not its true class.

    Label noise is assumed to depend on the true class only (class-conditional noise, as in Northcutt et al., 2021):
    P(given s | x) = sum over k of noise[k, s] * P(true k | x). The inverse of the noise matrix gives P(true k | x), and
    Bayes' rule gives P(true k | x, given s). The unlikely label of an ambiguous image, which may belong to either
    of two classes, counts as ambiguity, not as an error.

    Args:
        calibrated: `(N, C)`, calibrated out-of-sample probabilities of the given labels.
        targets: `(N,)`, given labels.
        noise: `(C, C)`, see `anchor_noise_matrix`.

    Returns:
        `(N,)`, probabilities in [0, 1].
    """
    rows = np.arange(len(targets))
    true = np.maximum(calibrated @ np.linalg.pinv(noise), 0)
    true /= np.maximum(true.sum(axis=1, keepdims=True), _EPSILON)
    correct = true[rows, targets] * np.diag(noise)[targets]
    given = (true * noise[:, targets].T).sum(axis=1)
    return np.clip(1 - correct / np.maximum(given, _EPSILON), 0, 1)


def select_at_precision(probability: Floats, precision: float) -> Integers:
    """Select as many rows as possible at an expected precision, the most probable first.

    Args:
        probability: `(N,)`, probability that a row is relevant, in [0, 1].
        precision: smallest expected precision, which is the mean probability of the selected rows.

    Returns:
        `(K,)`, rows by descending probability.
    """
    order = np.argsort(-probability, kind="stable")
    means = np.cumsum(probability[order]) / np.arange(1, len(order) + 1)
    sufficient = np.flatnonzero(means >= precision)
    return order[: sufficient[-1] + 1] if len(sufficient) else order[:0]


def average_precision(relevant: Mask, ranking: Integers) -> float:
    """Average precision of a ranking: the mean of the precision at the rank of each relevant row.

    Args:
        relevant: `(N,)`, True for the relevant rows.
        ranking: `(N,)`, rows, best first.

    Returns:
        A fraction in [0, 1]; NaN without a relevant row.
    """
    hits = relevant[ranking]
    precisions = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    return float(precisions[hits].mean()) if hits.any() else math.nan


def nearest_images(queries: Floats, images: Floats, chunk: int = 500) -> tuple[Integers, Floats]:
    """Find the nearest neighbour of each query by Pearson's correlation of the pixels.

    Args:
        queries: `(M, D)`, flattened images.
        images: `(N, D)`, flattened images.
        chunk: number of queries that are compared at a time.

    Returns:
        Rows of the nearest images `(M,)`, and their correlations `(M,)` in [-1, 1].
    """
    images = _standardised(images)
    nearest, similarity = np.zeros(len(queries), dtype=np.int64), np.zeros(len(queries), dtype=np.float32)
    for start in range(0, len(queries), chunk):
        products = _standardised(queries[start : start + chunk]) @ images.T
        best = products.argmax(axis=1)
        nearest[start : start + chunk] = best
        similarity[start : start + chunk] = products[np.arange(len(best)), best]
    return nearest, similarity


def _standardised(images: Floats) -> Floats:
    centred = images.astype(np.float32)
    centred -= centred.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(centred, axis=1, keepdims=True)
    return centred / np.maximum(norms, _EPSILON)
