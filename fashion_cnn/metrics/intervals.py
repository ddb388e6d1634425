"""Estimates with 95% confidence intervals, and mean with standard deviation over repeated runs."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

Z_95 = 1.959964  # 97.5% quantile of the standard normal distribution
# 97.5% quantiles of Student's t distribution with 1 to 30 degrees of freedom.
_T = (
    *(12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281),
    *(2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860),
    *(2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423),
)


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95% confidence interval.

    Attributes:
        estimate: the point estimate.
        low: the lower bound.
        high: the upper bound.
    """

    estimate: float
    low: float
    high: float

    @property
    def contains_zero(self) -> bool:
        """True if zero lies within the bounds."""
        return self.low <= 0 <= self.high


@dataclass(frozen=True)
class MeanStd:
    """Mean and standard deviation of a metric over repeated runs.

    Attributes:
        mean: the arithmetic mean.
        std: the sample standard deviation (n - 1); None of a single value.
        count: the number of values.
    """

    mean: float
    std: float | None
    count: int

    @classmethod
    def of(cls, values: Iterable[float]) -> "MeanStd":
        """Compute both from one value or more."""
        values = list(values)
        if not all(map(math.isfinite, values)):  # A run diverged.
            return cls(math.nan, math.nan if len(values) > 1 else None, len(values))
        std = statistics.stdev(values) if len(values) > 1 else None
        return cls(statistics.fmean(values), std, len(values))

    def format(self, scale: float, digits: int) -> str:
        """Format as `mean ± standard deviation`, both multiplied by `scale`."""
        deviation = "" if self.std is None else f" ± {self.std * scale:.{digits}f}"
        return f"{self.mean * scale:.{digits}f}{deviation}"


def wilson_interval(proportion: float, count: float) -> Interval:
    """Wilson score interval of a proportion (Wilson 1927).

    Args:
        proportion: the observed proportion, in [0, 1].
        count: the number of trials, at least 1; infinite for a proportion that is known exactly.
    """
    centre = (proportion + Z_95**2 / (2 * count)) / (1 + Z_95**2 / count)
    half = Z_95 / (1 + Z_95**2 / count) * math.sqrt(proportion * (1 - proportion) / count + Z_95**2 / (4 * count**2))
    # The min and max correct rounding at 0 and 1, where one bound is the proportion itself.
    low, high = max(0.0, min(centre - half, proportion)), min(1.0, max(centre + half, proportion))
    return Interval(proportion, low, high)


def newcombe_interval(first: Interval, second: Interval) -> Interval:
    """Hybrid score interval of the difference `first - second` of two independent proportions.

    Newcombe, "Interval estimation for the difference between independent proportions", 1998, method 10. It stays valid
    for proportions near 1.

    Args:
        first: a proportion with its Wilson interval.
        second: the proportion to subtract, with its Wilson interval.
    """
    estimate = first.estimate - second.estimate
    return Interval(
        estimate,
        low=estimate - math.hypot(first.estimate - first.low, second.high - second.estimate),
        high=estimate + math.hypot(first.high - first.estimate, second.estimate - second.low),
    )


def ratio_interval(first: Interval, second: Interval) -> Interval:
    """Interval of the ratio `first / second` of two independent proportions, from their Wilson intervals.

    Method of variance estimates recovery: Donner and Zou, "Closed-form confidence intervals for functions of the normal
    mean and standard deviation", 2012, section 4. It stays valid for proportions near 0.

    Args:
        first: a proportion with its interval.
        second: the proportion to divide by, with its interval. The upper bound is infinite if its lower bound is 0.
    """
    p, q = first.estimate, second.estimate

    def coefficients(first_bound: float, second_bound: float) -> tuple[float, float, float]:
        """Coefficients of the equation square * ratio² - 2 * p * q * ratio + constant = 0, and the sum in its roots."""
        constant, square = first_bound * (2 * p - first_bound), second_bound * (2 * q - second_bound)
        return constant, square, p * q + math.sqrt(max(0.0, (p * q) ** 2 - constant * square))

    # The smaller root as a quotient that stays finite where `square` is 0 or below, with few successes in `second`.
    constant, _, root_sum = coefficients(first.low, second.high)
    low = constant / root_sum if root_sum else 0.0
    _, square, root_sum = coefficients(first.high, second.low)
    high = root_sum / square if square > 0 else math.inf
    return Interval(p / q if q else math.inf, low, high)


def mean_interval(values: Tensor) -> Interval:
    """Interval of the mean of values `(N,)` in [0, 1], such as a metric of each of N queries.

    Wilson's if all values are 0 or 1, else that of the central limit theorem, clipped to [0, 1].
    """
    values = values.double()
    mean = values.mean().item()
    if ((values == 0) | (values == 1)).all():
        return wilson_interval(mean, len(values))
    half = Z_95 * (values.var() / len(values)).sqrt().item() if len(values) > 1 else math.inf
    return Interval(mean, max(0.0, mean - half), min(1.0, mean + half))


def normal_interval(values: Tensor) -> Interval:
    """Interval of the mean of values `(N,)` of any range, by the central limit theorem; unbounded for a single one."""
    mean = values.double().mean().item()
    half = Z_95 * math.sqrt(_variance_of_mean(values.double()))
    return Interval(mean, mean - half, mean + half)


def welch_interval(first: Tensor, second: Tensor, *, second_share: float = 0.0) -> Interval:
    """Interval of the difference of two means, `first.mean() - second.mean()`, of unequal variances (Welch 1947).

    Uses normal instead of t quantiles. The interval is unbounded if either tensor holds a single value.

    Args:
        first: values `(N,)`.
        second: values `(M,)`.
        second_share: share of the finite population that `second` is; its variance is corrected for it (Cochran,
            "Sampling Techniques", 1977, section 2.6).
    """
    first, second = first.double(), second.double()
    estimate = (first.mean() - second.mean()).item()
    half = Z_95 * math.sqrt(_variance_of_mean(first) + _variance_of_mean(second, second_share))
    return Interval(estimate, estimate - half, estimate + half)


def normal_probability_above(threshold: float, mean: float, deviation: float) -> float:
    """Probability that a normal variable of this mean and standard deviation exceeds `threshold`."""
    return 0.5 * (1 + math.erf((mean - threshold) / deviation / math.sqrt(2)))


def t_quantile(degrees: int) -> float:
    """97.5% quantile of Student's t distribution with `degrees` degrees of freedom, at least 1.

    Tabulated up to 30 degrees; above, the first term of its expansion around the normal quantile, whose error is below
    0.004 (Abramowitz and Stegun, "Handbook of Mathematical Functions", 26.7.5).
    """
    return _T[degrees - 1] if degrees <= len(_T) else Z_95 + (Z_95**3 + Z_95) / (4 * degrees)


def paired_interval(differences: Sequence[float], test_ratio: float = 0.0) -> Interval:
    """Interval of the mean of paired differences, such as those of two settings with equal seeds (Student's t).

    The folds of a cross-validation share training images, so that their differences are not independent. The corrected
    resampled t-test adds the ratio of test to training images to 1 / n in the variance of the mean (Nadeau
    and Bengio, "Inference for the Generalization Error", Machine Learning 52, 2003).

    Args:
        differences: one per pair. The interval is unbounded with a single one.
        test_ratio: number of test images per training image of a fold; 0 for independent pairs.
    """
    mean_std = MeanStd.of(differences)
    if mean_std.std is None:
        return Interval(mean_std.mean, -math.inf, math.inf)
    half = t_quantile(mean_std.count - 1) * mean_std.std * math.sqrt(1 / mean_std.count + test_ratio)
    return Interval(mean_std.mean, mean_std.mean - half, mean_std.mean + half)


def _variance_of_mean(values: Tensor, share: float = 0.0) -> float:
    if share == 1:
        return 0.0
    return (1 - share) * values.var().item() / len(values) if len(values) > 1 else math.inf


def to_json_dict(instance: Any) -> dict[str, Any]:
    """Convert a dataclass to a dictionary for JSON files, which name the estimate of an `Interval` `value`."""
    return asdict(
        instance, dict_factory=lambda pairs: {"value" if key == "estimate" else key: item for key, item in pairs}
    )
