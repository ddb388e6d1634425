"""Temperature scaling: one number that makes a network as sure as it is right."""

import math

from torch.nn import functional

from fashion_cnn.analysis.predictions import Predictions

_COLDEST, _HOTTEST = 0.05, 20.0
_GOLDEN = (math.sqrt(5) - 1) / 2


def fit_temperature(predictions: Predictions) -> float:
    """What to divide logits by, so that these images' cross-entropy is least: between 0.05 and 20, to 0.01%.

    Above 1 where the network is surer than it is right. Fit it on other images than those that it is judged by. Guo et
    al., "On Calibration of Modern Neural Networks", 2017 (arXiv 1706.04599).
    """
    logits, targets = predictions.logits.double(), predictions.targets

    def loss(log_temperature: float) -> float:
        return functional.cross_entropy(logits / math.exp(log_temperature), targets).item()

    # The loss is convex in the inverse of the temperature, so it has one valley: golden-section search.
    low, high = math.log(_COLDEST), math.log(_HOTTEST)
    while high - low > 1e-4:
        left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        if loss(left) < loss(right):
            high = right
        else:
            low = left
    return math.exp((low + high) / 2)
