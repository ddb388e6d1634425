"""Temperature scaling and the rejection threshold."""

import pytest
import torch
from torch.nn import functional

from fashion_cnn.metrics.calibration import Calibration, calibrate, fit_temperature, rejection_threshold
from fashion_cnn.metrics.predictions import Predictions


def predictions(logits, targets):
    return Predictions(logits.float(), targets, torch.arange(len(targets)))


@pytest.fixture
def calibrated_logits():
    """Calibrated logits: each target is sampled from their softmax."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(20_000, 10, generator=generator)
    targets = torch.multinomial(logits.softmax(dim=1), 1, generator=generator)[:, 0]
    return logits, targets


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_fitted_temperature_recovers_the_scale_of_the_logits(calibrated_logits, temperature):
    logits, targets = calibrated_logits
    assert fit_temperature(predictions(temperature * logits, targets)) == pytest.approx(temperature, rel=0.03)


def test_fitted_temperature_minimises_cross_entropy(calibrated_logits):
    logits, targets = calibrated_logits
    fitted = fit_temperature(predictions(1.7 * logits, targets))

    def loss(temperature):
        return functional.cross_entropy(1.7 * logits.double() / temperature, targets)

    assert loss(fitted) < min(loss(fitted * 0.98), loss(fitted * 1.02))


@pytest.mark.parametrize("margin", [0.5, 3.0, 10.0])
def test_a_dozen_correct_images_do_not_make_probabilities_extreme(margin):
    split = predictions(margin * torch.eye(3).repeat(4, 1), torch.arange(12) % 3)
    calibration = calibrate(split, reject=0.01)
    assert 0.4 < calibration.temperature <= 1
    undecided = calibration.probabilities(torch.tensor([[1.0, 0.8, 0.5]]))
    assert undecided.max() < 0.6, "0.41 without calibration"


def test_a_dozen_wrong_images_raise_the_temperature():
    logits = -3.0 * torch.eye(3).repeat(4, 1)
    assert 1 < fit_temperature(predictions(logits, torch.arange(12) % 3)) < 20


def test_temperature_stays_within_its_bounds_for_thousands_of_correct_or_wrong_images():
    logits = 0.25 * torch.eye(10).repeat(1_000, 1)
    targets = torch.arange(10).repeat(1_000)
    assert fit_temperature(predictions(logits, targets)) == pytest.approx(0.05)
    assert fit_temperature(predictions(-logits, targets)) == pytest.approx(20)


@pytest.mark.parametrize("fraction", [0.001, 0.01, 0.2])
def test_threshold_rejects_the_requested_fraction(calibrated_logits, fraction):
    split = predictions(*calibrated_logits)
    calibration = calibrate(split, reject=fraction)
    confidence = calibration.probabilities(split.logits).amax(dim=1)
    assert (confidence < calibration.threshold).sum() == round(fraction * len(split))


def test_threshold_rejects_every_number_of_hundredths_exactly():
    logits = torch.stack([torch.linspace(0, 5, 100), torch.zeros(100)], dim=1)
    predictions = Predictions(logits, torch.zeros(100, dtype=torch.long), torch.arange(100))
    confidence = predictions.logits.double().softmax(dim=1).amax(dim=1)
    thresholds = [rejection_threshold(predictions, 1.0, number / 100) for number in range(1, 100)]
    assert [int((confidence < threshold).sum()) for threshold in thresholds] == [*range(1, 100)]


def test_zero_rejection_gives_a_zero_threshold(calibrated_logits):
    assert calibrate(predictions(*calibrated_logits)).threshold == 0


def test_probabilities_are_the_softmax_of_scaled_logits():
    logits = torch.tensor([[1.0, 2.0], [0.0, 0.0]])
    expected = (logits / 2).softmax(dim=1)
    assert torch.allclose(Calibration(temperature=2).probabilities(logits).float(), expected)
