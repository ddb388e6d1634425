"""Expected calibration error and the reliability diagram."""

import pytest
import torch
from matplotlib.figure import Figure
from torchmetrics.functional.classification import multiclass_calibration_error

from fashion_cnn.metrics.calibration import reliability_diagram
from fashion_cnn.metrics.predictions import Predictions
from fashion_cnn.plots.evaluation import plot_reliability


def random_predictions(count=500, classes=5):
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(count, classes, generator=generator)
    return Predictions(logits, torch.randint(classes, (count,), generator=generator), torch.arange(count))


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_expected_calibration_error_equals_torchmetrics(bins):
    predictions = random_predictions()
    expected = multiclass_calibration_error(predictions.probabilities, predictions.targets, 5, n_bins=bins, norm="l1")
    assert expected > 0.1, "the case is not trivial"
    assert reliability_diagram(predictions, bins).expected_calibration_error == pytest.approx(expected.item(), abs=1e-6)


def test_confident_correct_predictions_have_zero_calibration_error():
    confident = Predictions(100 * torch.eye(4), torch.arange(4), torch.arange(4))
    assert reliability_diagram(confident).expected_calibration_error == 0


@pytest.mark.parametrize("sharpening", [1.0, 1.2, 1.5])
def test_interval_holds_the_true_calibration_error(sharpening):
    # Labels follow the softmax; the predictions are sharper, and so are too confident by a known amount.
    generator = torch.Generator().manual_seed(0)

    def draw(count):
        logits = torch.randn(count, 10, generator=generator)
        logits[:, 0] += 5 * torch.rand(count, generator=generator)
        targets = logits.softmax(1).multinomial(1, generator=generator)[:, 0]
        return reliability_diagram(Predictions(sharpening * logits, targets, torch.arange(count)))

    true = draw(300_000).expected_calibration_error
    intervals = [draw(1_000).calibration_error_interval() for _ in range(100)]
    # 95% are expected; fewer than 90 of 100 would be rare (1.2%).
    assert sum(interval.low <= true <= interval.high for interval in intervals) >= 90
    assert all(interval.low <= interval.estimate <= interval.high for interval in intervals)
    assert all(interval.high - interval.low < 0.1 for interval in intervals), "the intervals say something"


def test_reliability_plot_shows_only_filled_bins():
    result = reliability_diagram(random_predictions(), 10)
    axes = Figure().subplots()
    plot_reliability(result, axes, title="t", color="red")
    line = next(line for line in axes.lines if line.get_label() == "accuracy")
    assert list(line.get_ydata()) == result.accuracy[result.counts > 0].tolist()
