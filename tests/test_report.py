"""The report, written from stored metrics."""

import numpy as np
import pytest

from fashion_cnn.analysis import report
from fashion_cnn.analysis.history import History, evaluation_lag, read_history
from fashion_cnn.analysis.report import describe_curves, describe_gap, results_summary, write_report
from fashion_cnn.plots.training import plot_curves
from fashion_cnn.runs import Run


def history(train, val):
    return History(
        epochs=np.arange(1, len(val) + 1),
        metrics={"train/loss": np.array(train), "val/loss": np.array(val), "running/loss": np.array(val) + 1},
    )


RESULTS = {
    "name": "small",
    "seed": 0,
    "epochs": 4,
    "best_epoch": 2,
    "chosen_on_validation": True,
    "train/loss": 0.1,
    "val/loss": 0.3,
    "test/loss": 0.31,
    "train/accuracy": 0.96,
    "val/accuracy": 0.94,
    "test/accuracy": 0.935,
    "gap/loss": 0.2,
    "gap/accuracy": 0.02,
    "gap_test/loss": 0.21,
    "gap_test/accuracy": 0.025,
    "gap/accuracy_low": 0.011,
    "gap/accuracy_high": 0.029,
    "gap/loss_low": 0.1,
    "gap/loss_high": 0.3,
    "gap_test/accuracy_low": -0.001,
    "gap_test/accuracy_high": 0.05,
    "gap_last/accuracy": 0.03,
    "gap_last/epoch": 4,
    "gap_last/accuracy_low": 0.02,
    "gap_last/accuracy_high": 0.04,
    "gap_carriers": ["Shirt", "Coat"],
    "verdict": "overfitting",
    "verdict_rule": "the rule",
    "rising_since": 3,
    "advice": ["python -m fashion_cnn.train callbacks=early_stopping"],
    "advice_reasons": ["stop earlier"],
    "seconds": 61.0,
    "images_per_second": 1000.0,
    "parameters": 7,
    "multiply_adds": 8,
    "precision": "32-true",
    "hardware": "CPU",
    "torch": "2",
    "lightning": "2",
}


def test_report_dates_the_rise_of_the_validation_loss():
    text = describe_curves(history([0.4, 0.3, 0.2, 0.1], [0.5, 0.4, 0.45, 0.5]), RESULTS)
    assert "lowest, 0.4000, after epoch 2 of 4, and ended at 0.5000" in text
    assert "from 0.3000 to 0.1000" in text
    assert "From epoch 3 to the last, validation loss rose while training loss fell." in text


def test_report_says_that_validation_loss_was_lowest_at_the_end():
    text = describe_curves(history([0.4, 0.3], [0.5, 0.4]), RESULTS)
    assert "lowest, 0.4000, after the last epoch (2)" in text


def test_report_names_the_last_measured_epoch_if_the_last_one_was_not_measured():
    nan = float("nan")
    text = describe_curves(history([nan, 0.4, nan, 0.3, nan], [nan, 0.5, nan, 0.4, nan]), RESULTS)
    assert "lowest, 0.4000, after the last measured epoch (4)" in text


def test_gap_is_described_in_images_with_its_interval_and_significance():
    text = describe_gap(RESULTS)
    assert "+2.00 points, 20 per 1,000 images (95% interval +1.10 to +2.90, which excludes zero)" in text
    chance = "which contains zero: it may be chance"
    assert f"+2.50 points, 25 per 1,000 images (95% interval -0.10 to +5.00, {chance})" in text
    assert "After the last measured epoch (4) the gap to validation was +3.00 points" in text
    assert "from Shirt and Coat" in text


def test_a_gap_that_may_be_chance_is_called_so_once():
    gaps = {f"{gap}/accuracy_low": -0.01 for gap in ("gap", "gap_test", "gap_last", "gap_best")}
    text = describe_gap(RESULTS | gaps | {"gap_best/accuracy": 0.015, "gap_best/accuracy_high": 0.03})
    assert text.count("contains zero: it may be chance") == 1
    last = {f"gap_last/accuracy{bound}": RESULTS[f"gap/accuracy{bound}"] for bound in ("", "_low", "_high")}
    assert "After the last measured epoch (4) the gap to validation was the same." in describe_gap(RESULTS | last)


@pytest.mark.parametrize(
    ("low", "since"), [([-1, 1, -1, 1], 4), ([1, 1, np.nan, 1], 1), ([-1, 1, np.nan, 1], 2), ([1, -1, 1, -1], None)]
)
def test_the_report_names_the_epoch_since_which_the_gap_is_significant(low, since):
    curves = history([0.4, 0.3, 0.2, 0.1], [0.5, 0.4, 0.45, 0.5])
    curves.metrics["gap/accuracy_low"] = np.array(low)
    text = results_summary(curves, RESULTS)
    assert ("excludes zero since epoch" in text) == (since is not None)
    assert since is None or f"The 95% interval of the accuracy gap excludes zero since epoch {since}." in text


def test_the_report_says_why_no_onset_is_marked():
    curves, results = history([0.4, 0.3, 0.2], [0.5, 0.4, 0.45]), RESULTS | {"rising_since": None}
    assert "was not measured on each image whether the rise exceeds the noise" in describe_curves(curves, results)
    measured = results | {"loss_rise": 0.05, "loss_rise_low": -0.01, "loss_rise_high": 0.11}
    assert "the rise is within the noise, or training loss did not fall" in describe_curves(curves, measured)


def test_the_summary_names_the_last_measured_epoch():
    curves = history([0.4, 0.3, 0.2], [0.5, 0.4, 0.45])
    text = results_summary(curves, RESULTS | {"gap_last/epoch": 2})
    assert text.startswith("**Verdict: overfitting.** After epoch 2, the last measured, the rule.")


def test_label_smoothing_is_named_beside_the_running_average():
    figure = plot_curves(history([0.4, 0.3], [0.5, 0.4]), title="t", label_smoothing=0.1)
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert "running training average, label smoothing 0.1" in labels


def test_summary_starts_with_the_verdict_and_ends_with_the_advice():
    text = results_summary(history([0.4, 0.3, 0.2, 0.1], [0.5, 0.4, 0.45, 0.5]), RESULTS)
    assert text.startswith("**Verdict: overfitting.** After the last epoch, the rule.")
    assert text.endswith("- stop earlier:\n  `python -m fashion_cnn.train callbacks=early_stopping`")


@pytest.mark.parametrize(
    ("running", "train", "lags"), [(0.43, 0.15, True), (0.43, 0.42, False), (0.87, 0.95, False), (0.43, np.nan, False)]
)
def test_an_evaluation_behind_the_training_is_reported(running, train, lags):
    course = History(
        np.array([1, 2]),
        {"running/accuracy": np.array([0.9, running]), "train/accuracy": np.array([0.1, train])},
    )
    lag = evaluation_lag(course, 1000, 1000)
    assert (lag.low > 0) == lags
    results = RESULTS | {"running/accuracy": running} | ({"evaluation_lag": lag.estimate} if lags else {})
    text = results_summary(history([1, 2], [3, 4]), results)
    assert ("accuracy was 43.0% on the augmented training batches and 15.0% on the train probe" in text) == lags


def test_summary_without_validation_has_no_verdict():
    without = History(epochs=np.array([1, 2]), metrics={"running/loss": np.array([2.0, 1.0])})
    assert "no validation pass was made" in results_summary(without, {})


def test_curves_plot_shows_loss_above_accuracy_for_both_splits():
    curves = history([0.4, 0.3], [0.5, 0.4])
    loss, accuracy = plot_curves(curves, title="t", best_epoch=2, rising_since=2).axes
    assert (loss.get_ylabel(), accuracy.get_ylabel()) == ("loss (cross-entropy, nats)", "accuracy (%)")
    lines = {line.get_label(): list(line.get_ydata()) for line in loss.lines}
    assert lines["train probe"] == [0.4, 0.3]
    assert lines["validation"] == [0.5, 0.4]
    assert "best epoch (2)" in lines
    assert "validation loss rises from epoch 2 on" in [text.get_text() for text in loss.get_legend().get_texts()]


def test_a_loss_of_ones_own_has_its_name_and_an_axis_of_its_own():
    curves = history([0.4, 0.3], [0.5, 0.4])
    curves.metrics["running/loss"] = np.array([40.0, 30.0])
    loss, _, right = plot_curves(curves, title="t", training_loss="FocalLoss").axes
    assert right.get_ylabel() == "training loss (FocalLoss)"
    assert [list(line.get_ydata()) for line in right.lines] == [[40.0, 30.0]]
    assert loss.get_ylim()[1] < 1
    assert "running average of FocalLoss (right axis)" in [text.get_text() for text in loss.get_legend().get_texts()]


@pytest.mark.parametrize("chosen", [True, False])
def test_curves_mark_the_best_epoch_only_if_validation_chose_it(tmp_path, monkeypatch, chosen):
    run = Run(tmp_path)
    run.metrics_file.write_text("epoch,step,running/loss,train/loss,val/loss\n0,8,0.4,0.4,0.5\n1,16,0.3,0.3,0.4\n")
    labels = []

    def keep_labels(figure, path):
        labels.extend(line.get_label() for axes in figure.axes for line in axes.lines)

    monkeypatch.setattr(report, "save_figure", keep_labels)
    write_report(run, RESULTS | {"chosen_on_validation": chosen})
    assert ("best epoch (2)" in labels) == chosen
    assert "running training average" in labels


@pytest.mark.parametrize("missing", ["", "test"])
def test_report_is_written_from_the_files_of_the_run(tmp_path, missing):
    run = Run(tmp_path)
    run.metrics_file.write_text("epoch,step,train/loss,val/loss\n0,8,0.4,0.5\n1,16,0.3,\n")
    assert np.isnan(read_history(run)["val/loss"][1])
    assert np.isnan(read_history(run)["never/measured"]).all()
    results = {name: value for name, value in RESULTS.items() if not missing or missing not in name}
    write_report(run, results)
    assert (run.plots / "curves.png").stat().st_size > 10_000
    assert "figures/curves.png" in run.report_file.read_text()
    assert "figures/confusion.png" not in run.report_file.read_text(), "the run has no such plot"
    text = run.report_file.read_text()
    assert "| train probe | 0.1000 | 96.00 % |" in text
    assert "| gap, train to validation | +0.2000 (+0.1000 to +0.3000) | +2.00 points (+1.10 to +2.90) |" in text
    assert ("| test | not measured |" in text) == bool(missing)
