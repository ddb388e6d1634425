"""How the error falls as the training images grow in number, and what more of them would bring.

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
    """error = scale * n ** -exponent + floor, of n training images."""

    scale: float
    exponent: float
    floor: float

    def __call__(self, sizes: Floats) -> Floats:
        return self.scale * sizes**-self.exponent + self.floor


@dataclass(frozen=True)
class LearningCurve:
    """The validation error at each number of training images, and the power law through the means.

    sizes: `(K,)`, ascending. errors: K sequences, the error of each seed, as shares of 1. resampled: the laws through
    means drawn anew, the spread of the law; empty where there is one seed a size.
    """

    sizes: Floats
    errors: tuple[Floats, ...]
    law: PowerLaw
    resampled: tuple[PowerLaw, ...]

    def interval(self, sizes: Floats) -> tuple[Floats, Floats] | None:
        """The 95% interval of the law at `sizes` over the choice of the seeds."""
        if not self.resampled:
            return None
        drawn = np.array([law(sizes) for law in self.resampled])
        low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
        return low, high


def fit_learning_curve(sizes: Sequence[float], errors: Sequence[Sequence[float]]) -> LearningCurve:
    """Fit the law to the mean error of each size; `sizes` ascending, at least two of them."""
    ascending = np.array(sizes, dtype=np.float64)
    raw = tuple(np.array(values, dtype=np.float64) for values in errors)
    law = fit_power_law(ascending, np.array([values.mean() for values in raw]))
    return LearningCurve(ascending, raw, law, tuple(fit_power_law(ascending, means) for means in _means_anew(raw)))


def _means_anew(errors: Sequence[Floats]) -> list[Floats]:
    """Means that other seeds might have had; none where there is one seed a size.

    A few seeds do not say how much they spread: the errors' relative deviation is taken to be the same at all sizes,
    and its own uncertainty is drawn too (of all degrees of freedom together).
    """
    counts = np.array([len(values) for values in errors])
    freedom = int((counts - 1).sum())
    if not freedom:
        return []
    means = np.array([values.mean() for values in errors])
    squares = sum(float(np.square(values / mean - 1).sum()) for values, mean in zip(errors, means, strict=True))
    random = np.random.default_rng(0)
    deviations = np.sqrt(squares / random.chisquare(freedom, _RESAMPLES))
    relative = deviations[:, None] / np.sqrt(counts) * random.standard_normal((_RESAMPLES, len(means)))
    return list(means * np.exp(relative))


def fit_power_law(sizes: Floats, errors: Floats) -> PowerLaw:
    """Least squares of the logarithms. Below four sizes the floor is taken as 0: it could not be told from the rest."""
    floors = np.linspace(0, 0.99, 100) * errors.min() if len(sizes) > 3 else np.zeros(1)

    def fit(floor: float) -> tuple[float, PowerLaw]:
        slope, intercept = np.polyfit(np.log(sizes), np.log(np.maximum(errors - floor, 1e-9)), 1)
        law = PowerLaw(float(np.exp(intercept)), -float(slope), floor)
        return float(np.square(np.log(np.maximum(law(sizes), 1e-9)) - np.log(np.maximum(errors, 1e-9))).sum()), law

    return min((fit(float(floor)) for floor in floors), key=lambda pair: pair[0])[1]


def describe_learning_curve(curve: LearningCurve) -> str:
    """What twice and ten times the images would bring, if the law holds."""
    said = []
    for times in (2, 10):
        size = np.array([curve.sizes[-1] * times])
        band = curve.interval(size)
        spread = "" if band is None else f" ({band[0][0] * 100:.2f} to {band[1][0] * 100:.2f})"
        said.append(f"{times} times as many a validation error of {curve.law(size)[0] * 100:.2f}%{spread}")
    at_most = f"{curve.sizes[-1]:,.0f}"
    return (
        f"If the power law through the {len(curve.sizes)} sizes up to {at_most} images holds beyond them, "
        f"{' and '.join(said)}. An extrapolation, no measurement: the law ends where labels are ambiguous."
    )
