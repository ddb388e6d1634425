"""Learning curve: validation error over the number of training images, with a power law and its extrapolation.

Hestness et al., "Deep Learning Scaling is Predictable, Empirically", 2017 (arXiv 1712.00409): error = a * n^-b + c.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_RESAMPLES = 500


@dataclass(frozen=True)
class PowerLaw:
    """Error as a function of the number of training images n: `scale * n ** -exponent + floor`.

    Attributes:
        scale: the factor of the power.
        exponent: the rate at which the error falls.
        floor: the irreducible error.
    """

    scale: float
    exponent: float
    floor: float

    def __call__(self, sizes: Floats) -> Floats:
        """Evaluate the law at numbers of training images."""
        return self.scale * sizes**-self.exponent + self.floor


@dataclass(frozen=True)
class LearningCurve:
    """Validation errors over the number of training images, and a power law fitted to their means.

    Attributes:
        sizes: `(K,)`, numbers of training images, ascending.
        errors: for each size the validation errors of its seeds, as fractions.
        law: the power law through the mean errors.
        resampled: laws through resampled means; empty with one seed per size.
    """

    sizes: Floats
    errors: tuple[Floats, ...]
    law: PowerLaw
    resampled: tuple[PowerLaw, ...]

    def interval(self, sizes: Floats) -> tuple[Floats, Floats] | None:
        """95% interval of the law at `sizes` over the seeds; None with one seed per size."""
        if not self.resampled:
            return None
        low, high = np.quantile([law(sizes) for law in self.resampled], [0.025, 0.975], axis=0)
        return low, high


def fit_learning_curve(sizes: Sequence[float], errors: Sequence[Sequence[float]]) -> LearningCurve:
    """Fit a power law to the mean error of each size.

    Args:
        sizes: at least two numbers of training images, ascending.
        errors: for each size the validation errors of its seeds, as fractions.

    Returns:
        The errors, the law, and laws fitted to resampled means.
    """
    counts = np.array(sizes, dtype=np.float64)
    by_size = tuple(np.array(values, dtype=np.float64) for values in errors)
    law = fit_power_law(counts, np.array([values.mean() for values in by_size]))
    resampled = tuple(fit_power_law(counts, means) for means in _resample_means(by_size))
    return LearningCurve(counts, by_size, law, resampled)


def _resample_means(errors: Sequence[Floats]) -> list[Floats]:
    """Sample the mean errors of other seeds by a parametric bootstrap.

    The relative standard deviation of the errors is assumed equal at all sizes. It is estimated from all seeds. Since a
    few seeds determine it poorly, each sample draws it anew from its scaled inverse chi distribution. Runs of the same
    seed share validation images and nested training subsets. If all sizes have equally many seeds, in the same order,
    the correlation of their errors between the sizes is estimated, and the samples have it too.

    Args:
        errors: for each of K sizes the validation errors of its seeds.

    Returns:
        Samples `(K,)` of the mean errors; none if every size has one seed.
    """
    counts = np.array([len(values) for values in errors])
    means = np.array([values.mean() for values in errors])
    # A size without any error tells nothing about relative deviations.
    has_errors = means > 0
    degrees_of_freedom = int((counts[has_errors] - 1).sum())
    if not degrees_of_freedom:
        return []
    relative = [values / mean - 1 for values, mean in zip(errors, means, strict=True) if mean > 0]
    squares = sum(float(np.square(values).sum()) for values in relative)
    random = np.random.default_rng(0)
    correlation = _correlation(relative)
    # Correlated errors determine the deviation less well than independent ones.
    effective = degrees_of_freedom / (1 + correlation * (len(relative) - 1))
    deviations = np.sqrt(squares / degrees_of_freedom * effective / random.chisquare(effective, _RESAMPLES))
    shared, own = random.standard_normal((_RESAMPLES, 1)), random.standard_normal((_RESAMPLES, len(means)))
    draws = np.sqrt(correlation) * shared + np.sqrt(1 - correlation) * own
    return list(means * np.exp(deviations[:, None] / np.sqrt(counts) * draws))


def _correlation(relative: Sequence[Floats]) -> float:
    """Mean correlation of the deviations of the same seed between sizes, from 0 to 1."""
    if len(relative) < 2 or len({len(values) for values in relative}) > 1:
        return 0.0
    covariances = np.stack(relative) @ np.stack(relative).T
    variance = np.trace(covariances) / len(relative)
    between = (covariances.sum() - np.trace(covariances)) / (len(relative) * (len(relative) - 1))
    return float(np.clip(between / variance, 0, 1)) if variance else 0.0


def fit_power_law(sizes: Floats, errors: Floats) -> PowerLaw:
    """Fit a power law `(sizes, errors)`, both `(K,)`, by least squares of the logarithms.

    The floor is the best of 100 fractions of the lowest error. It is 0 with fewer than four sizes, which do not
    determine it.
    """
    floors = np.linspace(0, 0.99, 100) * errors.min() if len(sizes) > 3 else np.zeros(1)

    def fit(floor: float) -> tuple[float, PowerLaw]:
        slope, intercept = np.polyfit(np.log(sizes), np.log(np.maximum(errors - floor, 1e-9)), 1)
        law = PowerLaw(float(np.exp(intercept)), -float(slope), floor)
        return float(np.square(np.log(np.maximum(law(sizes), 1e-9)) - np.log(np.maximum(errors, 1e-9))).sum()), law

    return min((fit(float(floor)) for floor in floors), key=lambda pair: pair[0])[1]


def describe_learning_curve(curve: LearningCurve) -> str:
    """Describe the validation error that the law predicts for 2 and 10 times the training images."""
    predictions = []
    for times in (2, 10):
        size = np.array([curve.sizes[-1] * times])
        band = curve.interval(size)
        interval = "" if band is None else f" ({band[0][0] * 100:.2f} to {band[1][0] * 100:.2f})"
        predictions.append(f"{curve.law(size)[0] * 100:.2f}%{interval} with {times} times as many images")
    seeds = "" if curve.resampled else " Without a second seed there is no interval."
    return (
        f"The power law through {len(curve.sizes)} sizes up to {curve.sizes[-1]:,.0f} training images predicts a "
        f"validation error of {' and '.join(predictions)}. This is an extrapolation: ambiguous labels limit the error."
        f"{seeds}"
    )
