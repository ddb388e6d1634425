"""Forecast of the gap of a training without validation images."""

import math

import numpy as np
import pytest

from fashion_cnn.analysis import forecast
from fashion_cnn.analysis.verdict import advise, judge_forecast
from fashion_cnn.cli.main import compose
from fashion_cnn.metrics.intervals import Interval
from fashion_cnn.train import train

CONFIG = ["model=tiny", "data.val_size=0"]


def features(accuracies, images=4000, epochs=16, parameters=98_426):
    return forecast.forecast_features(
        accuracies, images=images, epochs=epochs, parameters=parameters, config=compose(overrides=CONFIG)
    )


def test_features_are_those_of_the_shipped_model():
    model = forecast._model()
    assert model["features"] == list(forecast.FEATURES)
    assert len(features((0.99, 0.9, 0.95))) == len(model["coefficients"]) == len(forecast.FEATURES)


def test_network_that_changed_images_mislead_is_expected_to_err_more():
    sure, unsure = (forecast.forecast_accuracy(features((0.98, translated, 0.96))) for translated in (0.92, 0.75))
    assert sure.estimate > unsure.estimate
    for accuracy in (sure, unsure):
        assert 0 <= accuracy.low < accuracy.estimate < accuracy.high <= 1
    ratio = (1 - sure.low) / (1 - sure.estimate)
    assert math.log(ratio) == pytest.approx(1.959964 * forecast._model()["deviation"])


@pytest.mark.parametrize("unlike", [{"images": 50}, {"epochs": 2000}, {"parameters": 10**10}])
def test_training_unlike_those_of_the_study_has_no_forecast(unlike):
    assert forecast.forecast_accuracy(features((0.98, 0.9, 0.95), **unlike)) is None


def test_verdict_says_that_the_gap_is_a_forecast_and_advice_holds_out_images_to_compare_on():
    config = compose(overrides=CONFIG)
    config.overrides = CONFIG
    size = {"train_images": 4000, "epochs": 16, "parameters": 98_426}
    verdict = judge_forecast(0.97, Interval(0.9, 0.88, 0.92), config, **size)
    assert (verdict.gap.estimate, verdict.gap.low, verdict.gap.high) == pytest.approx((0.07, 0.05, 0.09))
    assert verdict.rule.startswith("an accuracy gap of 7.0 points (95% prediction interval +5.0 to +9.0) is forecast")
    sweep = advise(verdict, config)[-1].overrides
    assert sweep[0] == "sweep=remedies"
    assert sweep[-1] == "data.val_size=5000"


@pytest.mark.slow
@pytest.mark.training
def test_forecast_holds_the_gap_to_the_test_images(fashion_mnist_root, tmp_path):
    overrides = [
        *("model=tiny", "model.network.stem=[8]", "model.network.widths=[16,32,48]", "data.val_size=0"),
        *(f"data.train_fraction={1000 / 60_000}", "data.probe_size=1000", "data.batch_size=128"),
        *("trainer.max_epochs=24", "callbacks=essential", "flip_average=false", f"data.root='{fashion_mnist_root}'"),
    ]
    results = train(compose(overrides=overrides), directory=tmp_path / "run", quiet=True)
    low, high = results["gap_forecast/accuracy_low"], results["gap_forecast/accuracy_high"]
    assert low <= results["gap_forecast/accuracy"] <= high
    # The test images' own sampling error is less than 0.8 points.
    assert low - 0.008 <= results["gap_test/accuracy"] <= high + 0.008
    assert "is forecast from the training images alone" in results["verdict_rule"]
    report = (tmp_path / "run" / "report.md").read_text()
    assert f"**Verdict: {results['verdict']}.**" in report
    assert np.isfinite(results["expected_gains"]["longer"]["value"])
