"""Calibration: the temperature of logits, and the threshold below which an image is none of the classes."""

import pytest
import torch
from torch.nn import functional

from fashion_cnn.analysis.predictions import Predictions
from fashion_cnn.errors import UserError
from fashion_cnn.evaluation.temperature import Calibration, calibrate, fit_temperature, rejection_threshold


def predictions(logits, targets):
    return Predictions(logits.float(), targets, torch.arange(len(targets)))


@pytest.fixture
def drawn():
    """Logits whose softmax is true: each target is drawn by it."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(20_000, 10, generator=generator)
    targets = torch.multinomial(logits.softmax(dim=1), 1, generator=generator)[:, 0]
    return logits, targets


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_the_temperature_of_logits_that_were_made_too_sure_or_unsure_is_found(drawn, temperature):
    logits, targets = drawn
    assert fit_temperature(predictions(temperature * logits, targets)) == pytest.approx(temperature, rel=0.03)


def test_no_other_temperature_has_a_lower_cross_entropy(drawn):
    logits, targets = drawn
    fitted = fit_temperature(predictions(1.7 * logits, targets))

    def loss(temperature):
        return functional.cross_entropy(1.7 * logits.double() / temperature, targets)

    assert loss(fitted) < min(loss(fitted * 0.98), loss(fitted * 1.02))


def test_where_all_are_right_the_temperature_stays_within_its_bounds():
    logits = torch.eye(10)
    assert fit_temperature(predictions(logits, torch.arange(10))) == pytest.approx(0.05)
    assert fit_temperature(predictions(-logits, torch.arange(10))) == pytest.approx(20)


@pytest.mark.parametrize("share", [0.001, 0.01, 0.2])
def test_the_threshold_calls_that_share_none(drawn, share):
    made = predictions(*drawn)
    calibration = calibrate(made, reject=share)
    confidence = calibration.probabilities(made.logits).amax(dim=1)
    assert (confidence < calibration.threshold).sum() == round(share * len(made))


def test_a_share_of_nothing_names_every_class(drawn):
    assert calibrate(predictions(*drawn)).threshold == 0
    with pytest.raises(UserError, match=r"reject=1\.0 is not possible"):
        rejection_threshold(predictions(*drawn), 1.0, 1.0)


def test_probabilities_are_the_softmax_of_cooled_logits():
    logits = torch.tensor([[1.0, 2.0], [0.0, 0.0]])
    expected = (logits / 2).softmax(dim=1)
    assert torch.allclose(Calibration(temperature=2).probabilities(logits).float(), expected)
