"""Forecast of the train/val gap of a training that has no validation images, from its training images alone.

A network that has memorised its training images misclassifies slightly changed copies of them more often. These errors
and the settings of the training predict its error on new images: a linear model of the logarithm of that error, fitted
to the trainings of `scripts/verdict_study` (forecast.json, docs/overfitting.md).
"""

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig

from fashion_cnn.analysis.verdict import in_range, setting_features
from fashion_cnn.data import ImageDataModule
from fashion_cnn.evaluation.corruptions import corrupt
from fashion_cnn.inference.network import NetworkRunner
from fashion_cnn.metrics.intervals import Z_95, Interval
from fashion_cnn.metrics.predictions import Predictions

FEATURES = (
    *("log_train_error", "log_translated_error", "log_noisy_error"),
    *("log2_images", "log2_epochs", "log2_parameters", "augmentation", "mixing"),
)
# Corruptions of severity 1 whose errors are features, in the order of FEATURES.
CORRUPTIONS = ("translation", "shot_noise")
# Training images that are evaluated.
SAMPLE_SIZE = 5_000
# Added to errors before their logarithm, which a sample without errors would not have.
_OFFSET = 0.001
_MODEL = Path(__file__).with_name("forecast.json")


def forecast_features(
    accuracies: tuple[float, float, float], *, images: int, epochs: int, parameters: int, config: DictConfig
) -> NDArray[np.float64]:
    """Compute the features `(F,)` of a training, in the order of `FEATURES`.

    Args:
        accuracies: accuracy on a sample of the training images as they are, and with each of `CORRUPTIONS`.
        images: the number of training images.
        epochs: the number of epochs.
        parameters: the number of parameters of the network.
        config: the settings of the training.
    """
    errors = [math.log(1 - accuracy + _OFFSET) for accuracy in accuracies]
    return np.array([*errors, *setting_features(images, epochs, parameters, config)])


def measure_accuracies(network: NetworkRunner, data: ImageDataModule) -> tuple[float, float, float]:
    """Measure the accuracies that `forecast_features` takes, on at most 5,000 training images."""
    indices, targets = (part[:SAMPLE_SIZE] for part in (data.train_split.indices, data.train_split.targets))
    images = data.train_split.images_at(indices)
    original, translated, noisy = (
        Predictions(network.logits(changed), targets, indices).correct.double().mean().item()
        for changed in (images, *(corrupt(images, name, severity=1) for name in CORRUPTIONS))
    )
    return original, translated, noisy


@cache
def _model() -> dict[str, Any]:
    return json.loads(_MODEL.read_text())


def forecast_accuracy(features: NDArray[np.float64]) -> Interval | None:
    """Forecast the accuracy on new images, with a 95% prediction interval.

    Args:
        features: `(F,)`, see `forecast_features`.

    Returns:
        The accuracy as a fraction; None for a training outside the range of the study.
    """
    model = _model()
    mean, scale, low, high = (np.array(model[name]) for name in ("mean", "scale", "low", "high"))
    if not in_range(features, low, high, scale):
        return None
    log_error = model["intercept"] + float((features - mean) / scale @ np.array(model["coefficients"]))
    half = Z_95 * model["deviation"]
    error, low_error, high_error = (min(math.exp(log_error + step), 1.0) for step in (0, -half, half))
    return Interval(1 - error, 1 - high_error, 1 - low_error)
