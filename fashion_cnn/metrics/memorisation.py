"""Memorisation, influence, label errors, bias and variance, from the answers of networks trained on random subsets.

- Feldman and Zhang, "What Neural Networks Memorize and Why", 2020 (arXiv 2008.03703): memorisation of a training image
  is the probability that a network classifies it correctly if it was trained on it, minus that if it was not; influence
  of a training image on a test image is the same difference for the test image.
- Northcutt, Jiang and Chuang, "Confident Learning", 2021 (arXiv 1911.00068): the matrix of label noise.
- Patrini et al., "Making Deep Neural Networks Robust to Label Noise", 2017 (arXiv 1609.03683): the noise matrix from
  anchors, images whose class is beyond doubt.
- Benjamini and Hochberg, "Controlling the False Discovery Rate", 1995.
- Domingos, "A Unified Bias-Variance Decomposition", 2000: bias and variance of the 0-1 loss.
- Heskes, "Bias/Variance Decompositions for Likelihood-Based Estimators", 1998: those of the cross-entropy.

All functions take and return NumPy arrays. N is the number of training images, M that of test images, T that of
networks, P that of pairs of networks trained on complementary halves, and C that of classes.
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
# Largest number of pairs of images in memory at once.
_CHUNK = 20_000_000
_GOLDEN = (math.sqrt(5) - 1) / 2
_SMALL = 1e-12


@dataclass(frozen=True)
class SubsetLogits:
    """Answers of a network to all training and test images, with the images that it was trained on.

    Attributes:
        logits: `(N, C)` float16.
        targets: `(N,)` class indices, those that the network was trained with.
        indices: `(N,)` positions in the data set.
        trained: `(N,)` bool, the images that it was trained on.
        test_logits: `(M, C)` float16; no row if the data set has no test images.
        test_targets: `(M,)`.
        test_indices: `(M,)`.
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


def write_subset_logits(path: Path, answers: SubsetLogits) -> None:
    """Store the answers of a network in one .npz file, atomically."""
    with open_atomically(path) as file:
        np.savez_compressed(file, **{part.name: getattr(answers, part.name) for part in fields(answers)})


def read_subset_logits(path: Path, *names: str) -> SubsetLogits | dict[str, NDArray[Any]]:
    """Read a file of `write_subset_logits`.

    Args:
        path: the file.
        names: read these arrays alone, into a dict.

    Raises:
        ValueError: if it is damaged; the message is the reason.
        FileNotFoundError: if it does not exist.
    """
    if path.exists() and not path.is_file():  # A named pipe could block for ever.
        raise ValueError("it is not a regular file")
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            check_unpacked_size(file.zip, path)
            arrays = {name: file[name] for name in names or [part.name for part in fields(SubsetLogits)]}
    except FileNotFoundError:
        raise
    except Exception as error:  # NumPy, zipfile and zlib raise errors of many types
        raise ValueError(f"it holds no {error.args[0]}" if isinstance(error, KeyError) else str(error)) from error
    for name, array in arrays.items():
        if array.dtype.kind not in _KINDS.get(name.removeprefix("test_"), "iu"):
            raise ValueError(f"its array {name} is of {array.dtype}")
    return arrays if names else SubsetLogits(**arrays)


def probabilities(logits: Floats) -> Floats:
    """Softmax of logits `(N, C)` as float32."""
    shifted = logits.astype(np.float32)
    shifted -= shifted.max(axis=1, keepdims=True)
    np.exp(shifted, out=shifted)
    shifted /= shifted.sum(axis=1, keepdims=True)
    return shifted


@dataclass
class Tally:
    """Number of networks that were and were not trained on each image, and of those that classify it correctly.

    Attributes:
        inside: `(N,)`, networks trained on the image.
        outside: `(N,)`, the other networks.
        inside_correct: `(N,)`, correct ones among `inside`.
        outside_correct: `(N,)`, correct ones among `outside`.
    """

    inside: Integers
    outside: Integers
    inside_correct: Integers
    outside_correct: Integers

    @classmethod
    def of_no_network(cls, images: int) -> "Tally":
        """Return a tally of `images` images."""
        return cls(*(np.zeros(images, dtype=np.int64) for _ in range(4)))

    def add(self, trained: Mask, correct: Mask, known: Mask | None = None) -> None:
        """Count a network.

        Args:
            trained: `(N,)`, the images that it was trained on.
            correct: `(N,)`, those that it classifies correctly.
            known: `(N,)`, those whose answer is known; None for all.
        """
        known = np.ones(len(trained), dtype=bool) if known is None else known
        self.inside += trained & known
        self.outside += ~trained & known
        self.inside_correct += trained & correct & known
        self.outside_correct += ~trained & correct & known

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(*(getattr(self, part.name) + getattr(other, part.name) for part in fields(self)))

    @property
    def score(self) -> Floats:
        """Memorisation `(N,)`, in [-1, 1]; NaN where no network was, or none was not, trained on the image."""
        return _share(self.inside_correct, self.inside) - _share(self.outside_correct, self.outside)

    @property
    def standard_error(self) -> Floats:
        """Standard error of `score`, `(N,)`; NaN with fewer than two networks on either side."""
        variance = np.zeros(len(self.inside))
        for correct, count in ((self.inside_correct, self.inside), (self.outside_correct, self.outside)):
            share = _share(correct, count)
            with np.errstate(divide="ignore", invalid="ignore"):
                # n - 1 makes the estimated variance of a mean of n values unbiased.
                variance += np.where(count > 1, share * (1 - share) / (count - 1), np.nan)
        return np.sqrt(variance)


def _share(part: Integers, whole: Integers) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(whole > 0, part / whole, np.nan)


def complementary_pairs(trained: Mask) -> Integers:
    """Find the pairs of networks of which exactly one was trained on each image, `(P, 2)` rows of `trained` `(T, N)`.

    Images that no network was trained on are ignored.
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
    """The gap that one half of the networks predicts, and the gap of the other half.

    Attributes:
        images: number of images.
        predicted: mean memorisation of the images in the first half.
        measured: accuracy inside minus outside the training set, averaged over the networks of the second half.
        standard_error: of the difference.
    """

    images: int
    predicted: float
    measured: float
    standard_error: float

    @property
    def deviation(self) -> float:
        """The difference in standard errors."""
        return (self.predicted - self.measured) / self.standard_error if self.standard_error else math.nan


def gap_check(score: Floats, first_gaps: Sequence[float], second_gaps: Sequence[float]) -> GapCheck:
    """Compare the mean of the memorisation scores of one half of the networks with the gap of the other half.

    Args:
        score: `(N,)`, memorisation by the networks of the first half.
        first_gaps: gap of each independent unit of the first half, a pair of networks or a network, for the standard
            error of the prediction.
        second_gaps: gap of each unit of the second half.
    """
    spread = [np.var(gaps, ddof=1) / len(gaps) if len(gaps) > 1 else math.nan for gaps in (first_gaps, second_gaps)]
    return GapCheck(len(score), float(np.nanmean(score)), float(np.mean(second_gaps)), math.sqrt(sum(spread)))


def gap_shares(first: Floats, second: Floats, shares: Sequence[float]) -> list[float]:
    """Share of the gap that the most memorised images carry, without the optimism of choosing them.

    The images are ranked by one half of the networks and measured by the other, both ways.

    Args:
        first: `(N,)`, memorisation by one half of the networks.
        second: `(N,)`, that by the other half.
        shares: shares of the images, in (0, 1].

    Returns:
        For each share, the part of the sum of all scores.
    """
    first, second = np.nan_to_num(first), np.nan_to_num(second)
    results = []
    for share in shares:
        count = max(1, round(share * len(first)))
        carried = [
            measured[np.argsort(-ranking, kind="stable")[:count]].sum() / measured.sum()
            for ranking, measured in ((first, second), (second, first))
        ]
        results.append(float(np.mean(carried)))
    return results


def correlation(first: Floats, second: Floats) -> float:
    """Pearson's correlation over the positions where both are known; NaN without variation."""
    known = np.isfinite(first) & np.isfinite(second)
    first, second = first[known], second[known]
    if len(first) < 2 or first.std() == 0 or second.std() == 0:
        return math.nan
    return float(np.corrcoef(first, second)[0, 1])


def spearman(first: Floats, second: Floats) -> float:
    """Spearman's rank correlation, with mean ranks of ties."""
    known = np.isfinite(first) & np.isfinite(second)
    return correlation(*(midranks(torch.from_numpy(values[known])).numpy() for values in (first, second)))


@dataclass(frozen=True)
class Influences:
    """Pairs of a training and a test image with significant influence, the largest first.

    Attributes:
        rows: `(K,)`, rows of the training images among those tested.
        tests: `(K,)`, rows of the test images.
        values: `(K,)`, influence in [-1, 1].
        p_values: `(K,)`, of the exact test.
        threshold: largest p-value that is significant; 0 if none is.
        tested: number of pairs tested.
        chance: number of pairs below the threshold among equally many with random membership.
    """

    rows: Integers
    tests: Integers
    values: Floats
    p_values: Floats
    threshold: float
    tested: int
    chance: int


def influences(
    first_trained: Mask, first_correct: Mask, second_correct: Mask, *, false_discovery_rate: float = 0.05, seed: int = 0
) -> Influences:
    """Test the influence of each training image on each test image.

    Of the two networks of a pair exactly one was trained on the image. The null hypothesis of a pair of images is that
    it makes no difference which of the two: the halves are drawn at random, so that among the D pairs of networks of
    which one alone classifies the test image correctly, the number whose correct network was trained on the image is
    binomial with probability 1/2. The two-sided p-value is exact (McNemar's test). Significance controls the false
    discovery rate over all pairs of images (Benjamini and Hochberg, 1995); `chance` counts the findings of the same
    threshold for images whose membership is drawn anew, for which the hypothesis is true.

    Args:
        first_trained: `(P, N)`, whether the first network of a pair was trained on the image, or else the second.
        first_correct: `(P, M)`, whether the first network classifies the test image correctly.
        second_correct: `(P, M)`, whether the second does.
        false_discovery_rate: expected share of false pairs among the significant ones, at most.
        seed: seed of the random membership.
    """
    pairs, images = first_trained.shape
    differences = first_correct.astype(np.float32) - second_correct
    discordant = np.abs(differences).sum(axis=0).astype(np.int64)
    p_values = sign_test_p_values(pairs)
    counts = np.zeros(p_values.size, dtype=np.int64)
    for _, excess in _excesses(first_trained, differences):
        # There are few different p-values: they are counted, however many pairs there are.
        counts += np.bincount((discordant * len(p_values) + np.abs(excess)).ravel(), minlength=p_values.size)
    threshold = benjamini_hochberg(p_values.ravel(), counts, false_discovery_rate)
    found: list[tuple[Integers, Integers, Integers]] = []
    for start, excess in _excesses(first_trained, differences):
        rows, tests = np.nonzero(p_values[discordant, np.abs(excess)] <= threshold)
        found.append((rows + start, tests, excess[rows, tests]))
    rows, tests, excess = (
        np.concatenate([part[place] for part in found]) if found else np.zeros(0, dtype=np.int64) for place in range(3)
    )
    random = np.random.default_rng(seed).random((pairs, images)) < 0.5
    chance = sum(
        int((p_values[discordant, np.abs(other)] <= threshold).sum()) for _, other in _excesses(random, differences)
    )
    order = np.argsort(-excess, kind="stable")
    rows, tests, excess = rows[order], tests[order], excess[order]
    return Influences(
        rows=rows,
        tests=tests,
        values=excess / max(pairs, 1),
        p_values=p_values[discordant[tests], np.abs(excess)],
        threshold=threshold,
        tested=images * len(discordant),
        chance=chance if threshold else 0,
    )


def _excesses(first_trained: Mask, differences: Floats) -> Iterator[tuple[int, Integers]]:
    """Yield for chunks of the training images the first row, and `(n, M)`: pairs in favour minus pairs against."""
    rows = max(1, _CHUNK // max(1, differences.shape[1]))
    for start in range(0, first_trained.shape[1], rows):
        signs = np.where(first_trained[:, start : start + rows], np.float32(1), np.float32(-1))
        # Sums of up to 2^24 ones are exact in float32.
        yield start, (signs.T @ differences).astype(np.int32)


def sign_test_p_values(size: int) -> Floats:
    """Two-sided p-values of the sign test, by number of discordant pairs and absolute excess, `(size + 1, size + 1)`.

    Impossible combinations have 1.
    """
    table = np.ones((size + 1, size + 1))
    log_factorials = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, size + 1)))])
    for count in range(1, size + 1):
        wins = np.arange(count + 1)
        logs = log_factorials[count] - log_factorials[wins] - log_factorials[count - wins] - count * math.log(2)
        # The tail of at least k wins, summed from its end, where the terms are smallest.
        tails = np.cumsum(np.exp(logs)[::-1])[::-1]
        excess = np.arange(1, count + 1)
        table[count, 1 : count + 1] = np.minimum(1, 2 * tails[(count + excess + 1) // 2])
    return table


def benjamini_hochberg(p_values: Floats, counts: Integers, rate: float) -> float:
    """Largest p-value that is significant at a false discovery rate; 0 if none is.

    Args:
        p_values: `(K,)`, different values or not.
        counts: `(K,)`, number of hypotheses with each.
        rate: false discovery rate, in (0, 1).
    """
    order = np.argsort(p_values, kind="stable")
    p_values, ranks = p_values[order], np.cumsum(counts[order])
    significant = (p_values * ranks[-1] <= rate * ranks) & (counts[order] > 0)
    return float(p_values[significant].max()) if significant.any() else 0.0


@dataclass
class AnswerTotals:
    """Sums over networks of their answers to images.

    Attributes:
        probability: `(N, C)`, sum of the probabilities.
        log_probability: `(N, C)`, sum of their logarithms.
        votes: `(N, C)`, number of networks by predicted class.
    """

    probability: Floats
    log_probability: Floats
    votes: Integers = field(repr=False)

    @classmethod
    def of_no_network(cls, images: int, classes: int) -> "AnswerTotals":
        """Return sums of zero."""
        shape = (images, classes)
        return cls(np.zeros(shape), np.zeros(shape), np.zeros(shape, dtype=np.int64))

    def add(self, logits: Floats, rows: Mask) -> None:
        """Add the answers `(N, C)` of a network to the images `rows` `(N,)`."""
        answers = probabilities(logits[rows]).astype(np.float64)
        self.probability[rows] += answers
        self.log_probability[rows] += np.log(np.maximum(answers, _SMALL))
        self.votes[np.flatnonzero(rows), logits[rows].argmax(axis=1)] += 1

    @property
    def networks(self) -> Integers:
        """Number of networks that answered each image, `(N,)`."""
        return self.votes.sum(axis=1)

    @property
    def mean(self) -> Floats:
        """Mean probabilities, `(N, C)`; NaN without a network."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.probability / self.networks[:, None]

    @property
    def agreement(self) -> Floats:
        """Share of the networks that predict the most frequent class, `(N,)`; NaN without a network."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.votes.max(axis=1) / self.networks


@dataclass(frozen=True)
class Decomposition:
    """Error of the networks on each image, as bias and variance.

    Attributes:
        error: `(M,)`, share of the networks that misclassify the image.
        bias: `(M,)`, 1 where the most frequent prediction, the main prediction, is wrong, else 0 (Domingos, 2000).
        variance: `(M,)`, share of the networks whose prediction is not the main one. Without bias, the error is the
            variance; with bias it is 1 minus the share of the networks that predict the label.
        loss: `(M,)`, mean cross-entropy of the label.
        loss_bias: `(M,)`, cross-entropy of the label under the normalised geometric mean of the probabilities.
        loss_variance: `(M,)`, mean Kullback-Leibler divergence of the networks from that mean. The sum of both is
            `loss` (Heskes, 1998).
    """

    error: Floats
    bias: Floats
    variance: Floats
    loss: Floats
    loss_bias: Floats
    loss_variance: Floats


def decompose(totals: AnswerTotals, targets: Integers) -> Decomposition:
    """Decompose the errors on images with targets `(M,)`; with one label an image the bias includes the noise."""
    rows = np.arange(len(targets))
    shares = totals.votes / totals.networks[:, None]
    main = shares.argmax(axis=1)
    logs = totals.log_probability / totals.networks[:, None]
    loss = -logs[rows, targets]
    top = logs.max(axis=1, keepdims=True)
    variance = -(top[:, 0] + np.log(np.exp(logs - top).sum(axis=1)))
    return Decomposition(
        error=1 - shares[rows, targets],
        bias=(main != targets).astype(np.float64),
        variance=1 - shares[rows, main],
        loss=loss,
        loss_bias=loss - variance,
        loss_variance=variance,
    )


def fit_temperature(mean: Floats, targets: Integers) -> float:
    """Temperature in [1/8, 8] that minimises the cross-entropy of probabilities `(N, C)` on targets `(N,)`.

    The probabilities are raised to the power 1/temperature and normalised (Guo et al., 2017, arXiv 1706.04599).
    """
    rows = np.arange(len(targets))

    def loss(log_temperature: float) -> float:
        calibrated = calibrate(mean, math.exp(log_temperature))
        return float(-np.log(np.maximum(calibrated[rows, targets], _SMALL)).mean())

    low, high = -math.log(8), math.log(8)
    # Golden-section search: the loss has one minimum in the inverse temperature.
    for _ in range(40):
        width = _GOLDEN * (high - low)
        if loss(high - width) < loss(low + width):
            high = low + width
        else:
            low = high - width
    return math.exp((low + high) / 2)


def calibrate(mean: Floats, temperature: float) -> Floats:
    """Raise probabilities `(N, C)` to the power 1/temperature, and normalise them."""
    logs = np.log(np.maximum(mean, _SMALL)) / temperature
    return probabilities(logs).astype(np.float64)


def anchor_noise_matrix(calibrated: Floats, targets: Integers, share: float = 0.2) -> Floats:
    """Probability of each given label (column) for each true class (row), `(C, C)`, from images beyond doubt.

    A wrong label that none of the anchors of a class has is still possible: each class gets as many further anchors as
    there are classes, whose labels are wrong as often as those of all anchors together, in any way.

    Args:
        calibrated: `(N, C)`, out-of-sample probabilities.
        targets: `(N,)`, the given labels.
        share: share of the images that are predicted as a class that are its anchors, those of highest probability.
    """
    classes = calibrated.shape[1]
    predicted = calibrated.argmax(axis=1)
    counts = np.zeros((classes, classes))
    for label in range(classes):
        members = np.flatnonzero(predicted == label)
        number = math.ceil(share * len(members))
        anchors = members[np.argsort(-calibrated[members, label], kind="stable")[:number]]
        counts[label] = np.bincount(targets[anchors], minlength=classes)
    wrong = 1 - np.trace(counts) / max(counts.sum(), 1)
    prior = np.full((classes, classes), wrong / max(classes - 1, 1))
    np.fill_diagonal(prior, 1 - wrong)
    counts += classes * prior
    noise: Floats = counts / counts.sum(axis=1, keepdims=True)
    return noise


def wrong_label_probability(calibrated: Floats, targets: Integers, noise: Floats) -> Floats:
    """Probability that the given label of each image is not its true class, `(N,)`.

    The labels are taken as noise that depends on the true class alone: P(given s | x) = sum over k of noise[k, s] *
    P(true k | x). The true probabilities follow by the inverse matrix, and those of a wrong label by Bayes' rule. An
    image that looks like two classes is not called wrong for it.

    Args:
        calibrated: `(N, C)`, out-of-sample probabilities of the given labels.
        targets: `(N,)`, the given labels.
        noise: `(C, C)`, see `anchor_noise_matrix`.
    """
    rows = np.arange(len(targets))
    true = np.maximum(calibrated @ np.linalg.pinv(noise), 0)
    true /= np.maximum(true.sum(axis=1, keepdims=True), _SMALL)
    right = true[rows, targets] * np.diag(noise)[targets]
    given = (true * noise[:, targets].T).sum(axis=1)
    return np.clip(1 - right / np.maximum(given, _SMALL), 0, 1)


def longest_list(probability: Floats, precision: float) -> Integers:
    """Rows of the longest list, most probable first, whose mean probability is at least `precision`."""
    order = np.argsort(-probability, kind="stable")
    means = np.cumsum(probability[order]) / np.arange(1, len(order) + 1)
    enough = np.flatnonzero(means >= precision)
    return order[: enough[-1] + 1] if len(enough) else order[:0]


def average_precision(wrong: Mask, ranking: Integers) -> float:
    """Mean over the wrong images of the precision at the place of each in a ranking of rows; NaN without any."""
    hits = wrong[ranking]
    precisions = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    return float(precisions[hits].mean()) if hits.any() else math.nan


def nearest_images(queries: Floats, images: Floats, chunk: int = 500) -> tuple[Integers, Floats]:
    """Find for each query the image of highest correlation of the pixels.

    Args:
        queries: `(M, D)`.
        images: `(N, D)`.
        chunk: number of queries at a time.

    Returns:
        Rows of the images `(M,)`, and the correlations `(M,)`.
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
    return centred / np.maximum(norms, _SMALL)
