"""Calibration: the temperature of logits, and the threshold below which an image is none of the classes."""

import pytest
import torch
from torch.nn import functional

from fashion_cnn.metrics.calibration import Calibration, calibrate, fit_temperature
from fashion_cnn.metrics.predictions import Predictions


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


@pytest.mark.parametrize("margin", [0.5, 3.0, 10.0])
def test_a_dozen_images_that_are_all_right_make_nothing_as_good_as_certain(margin):
    made = predictions(margin * torch.eye(3).repeat(4, 1), torch.arange(12) % 3)
    calibration = calibrate(made, reject=0.01)
    assert 0.4 < calibration.temperature <= 1
    undecided = calibration.probabilities(torch.tensor([[1.0, 0.8, 0.5]]))
    assert undecided.max() < 0.6, "0.41 as the network says it"


def test_a_dozen_images_that_are_all_wrong_move_it_the_other_way():
    logits = -3.0 * torch.eye(3).repeat(4, 1)
    assert 1 < fit_temperature(predictions(logits, torch.arange(12) % 3)) < 20


def test_where_thousands_are_all_right_or_wrong_the_temperature_stays_within_its_bounds():
    logits = 0.25 * torch.eye(10).repeat(1_000, 1)
    targets = torch.arange(10).repeat(1_000)
    assert fit_temperature(predictions(logits, targets)) == pytest.approx(0.05)
    assert fit_temperature(predictions(-logits, targets)) == pytest.approx(20)


@pytest.mark.parametrize("share", [0.001, 0.01, 0.2])
def test_the_threshold_calls_that_share_none(drawn, share):
    made = predictions(*drawn)
    calibration = calibrate(made, reject=share)
    confidence = calibration.probabilities(made.logits).amax(dim=1)
    assert (confidence < calibration.threshold).sum() == round(share * len(made))


def test_a_share_of_nothing_names_every_class(drawn):
    assert calibrate(predictions(*drawn)).threshold == 0


def test_probabilities_are_the_softmax_of_cooled_logits():
    logits = torch.tensor([[1.0, 2.0], [0.0, 0.0]])
    expected = (logits / 2).softmax(dim=1)
    assert torch.allclose(Calibration(temperature=2).probabilities(logits).float(), expected)
