"""Verdict and advice on synthetic curves of each kind."""

import shlex

import numpy as np
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from fashion_cnn.analysis.history import History
from fashion_cnn.analysis.verdict import advise, judge, training_command
from fashion_cnn.cli.main import compose


def curves(train_loss, val_loss, train_accuracy, val_accuracy):
    """History whose accuracies are constant over the epochs."""
    epochs = len(val_loss)
    return History(
        epochs=np.arange(1, epochs + 1),
        metrics={
            "train/loss": np.array(train_loss),
            "val/loss": np.array(val_loss),
            "train/accuracy": np.full(epochs, train_accuracy),
            "val/accuracy": np.full(epochs, val_accuracy),
        },
    )


CURVES = {
    "one epoch": ("underfitting", curves([0.42], [0.43], 0.86, 0.855)),
    "flat and bad": ("underfitting", curves([0.9, 0.8, 0.795], [0.9, 0.8, 0.796], 0.70, 0.695)),
    "still falling": ("underfitting", curves([0.4, 0.3, 0.25], [0.4, 0.31, 0.27], 0.93, 0.925)),
    "a good fit": ("fits well", curves([0.3, 0.15, 0.1], [0.3, 0.18, 0.155], 0.966, 0.949)),
    "all learned, no gap": ("fits well", curves([0.3, 0.01], [0.3, 0.01], 1.0, 1.0)),
    "a small fluctuation": ("fits well", curves([0.3, 0.15, 0.14], [0.3, 0.200, 0.204], 0.96, 0.94)),
    "rising": ("overfitting", curves([0.3, 0.2, 0.1, 0.05], [0.35, 0.28, 0.3, 0.33], 0.98, 0.92)),
    "all gap": ("overfitting", curves([0.3, 0.1, 0.03], [0.3, 0.2, 0.2], 0.99, 0.94)),
    "memorised at the limit": ("memorising", curves([1.5, 0.5, 0.001], [1.6, 1.8, 4.0], 0.99, 0.5)),
    "memorised": ("memorising", curves([1.5, 0.5, 0.001], [1.6, 1.8, 4.0], 1.0, 0.5)),
}


@pytest.mark.parametrize(("kind", "history"), CURVES.values(), ids=CURVES)
def test_each_kind_of_curves_gets_its_verdict(kind, history):
    verdict = judge(history, 5000, 5000)
    assert verdict.kind == kind
    assert len(verdict.rule) > 30


def test_rising_since_is_the_first_epoch_of_the_rise():
    verdict = judge(CURVES["rising"][1], 5000, 5000)
    assert verdict.rising_since == 3
    assert "18% above its minimum" in verdict.rule
    good_fit = judge(CURVES["a good fit"][1], 5000, 5000)
    assert good_fit.rising_since is None
    assert good_fit.lowest_at_end
    assert advise(good_fit, compose(overrides=["trainer.max_epochs=3"]), epochs=3)[0].overrides == (
        "trainer.max_epochs=6",
    )
    stopped_early = compose(overrides=["trainer.max_epochs=30"])
    suggestions = advise(good_fit, stopped_early, epochs=3)
    assert suggestions
    assert all("max_epochs" not in advice.overrides[0] for advice in suggestions)


def test_rising_training_and_validation_loss_is_not_overfitting():
    assert judge(curves([0.3, 0.2, 0.4], [0.3, 0.22, 0.42], 0.92, 0.91), 5000, 5000).kind != "overfitting"


def test_gap_whose_interval_contains_zero_is_not_overfitting():
    history = curves([0.3, 0.1, 0.03], [0.3, 0.2, 0.2], 0.98, 0.94)
    assert judge(history, 5000, 5000).kind == "overfitting"
    few = judge(history, 50, 50)
    assert few.kind == "fits well"
    assert "(two thirds or more, but its interval contains zero)" in few.rule


def test_verdict_on_few_images_has_a_caveat():
    history = CURVES["all gap"][1]
    assert "validation images" not in judge(history, 5000, 5000).rule
    assert "; with only 50 validation images, the 95% interval of the gap is" in judge(history, 5000, 50).rule


def measured_every(step, epochs, train_loss, val_loss, train_accuracy, val_accuracy):
    """History of which every `step`-th epoch was measured."""
    rows = curves(train_loss, val_loss, train_accuracy, val_accuracy)
    sparse = {name: np.full(epochs, np.nan) for name in rows.metrics}
    for name, values in rows.metrics.items():
        sparse[name][step - 1 :: step] = values
    return History(epochs=np.arange(1, epochs + 1), metrics=sparse)


def test_a_fall_between_measurements_is_named_with_its_epochs_and_judged_per_epoch():
    losses = [0.4, 0.3, 0.25], [0.4, 0.31, 0.27]
    verdict = judge(measured_every(5, 16, *losses, 0.93, 0.925), 5000, 5000)
    assert (verdict.kind, verdict.last_epoch) == ("underfitting", 15)
    assert verdict.rule.endswith("validation loss fell by 13% in the last 5 epochs")
    advice = advise(verdict, compose(overrides=["trainer.max_epochs=16"]), epochs=16)[0]
    assert advice.reason.endswith("validation loss was lowest after the last measured epoch")
    slower = [0.4, 0.3, 0.28], [0.4, 0.31, 0.295]
    assert judge(measured_every(1, 3, *slower, 0.93, 0.925), 5000, 5000).kind == "underfitting"
    assert judge(measured_every(5, 15, *slower, 0.93, 0.925), 5000, 5000).kind == "fits well", "1% per epoch"


def test_a_probe_that_is_the_whole_training_split_narrows_the_interval_of_the_gap():
    history = CURVES["a good fit"][1]
    part, whole = judge(history, 500, 5000).gap, judge(history, 500, 5000, train_share=1.0).gap
    assert whole.estimate == part.estimate
    assert part.contains_zero
    assert not whole.contains_zero


def test_early_stopping_is_advised_on_the_loss_that_rises():
    verdict = judge(CURVES["rising"][1], 5000, 5000)
    (overrides,) = (
        advice.overrides
        for advice in advise(verdict, compose(), epochs=20)
        if "callbacks=early_stopping" in advice.overrides
    )
    config = compose(overrides=overrides)
    assert (config.callbacks.early_stopping.monitor, config.callbacks.early_stopping.mode) == ("val/loss", "min")


def test_history_without_validation_has_no_verdict():
    without_validation = History(epochs=np.array([1]), metrics={"running/loss": np.array([1.0])})
    assert judge(without_validation, 0, 0) is None


@pytest.mark.parametrize("name", CURVES)
@pytest.mark.parametrize(
    "overrides", [[], ["experiment=overfit"], ["experiment=regularised"], ["model=baseline", "optimizer=sgd"]]
)
def test_advice_is_a_command_that_composes(name, overrides):
    config = compose(overrides=overrides)
    verdict = judge(CURVES[name][1], 5000, 5000)
    suggestions = advise(verdict, config, epochs=config.trainer.max_epochs)
    assert 1 <= len(suggestions) <= 3
    for advice in suggestions:
        python, _, module, *arguments = shlex.split(training_command(config, advice.overrides))
        assert (python, module) == ("python", "fashion_cnn.train")
        changes = [part for part in arguments if part != "-m"]
        OverridesParser.create().parse_overrides(changes)
        assert set(overrides) - set(changes) == set(), "the earlier overrides stay"
        if "-m" not in arguments:
            assert compose(overrides=changes) != config


def test_later_override_replaces_one_of_the_same_key():
    typed = {"overrides": ["seed=1", "optimizer.lr=0.1"]}
    assert training_command(typed, ["optimizer.lr=0.2"]).endswith("train seed=1 optimizer.lr=0.2")
    assert training_command({"overrides": ["seed=1"]}, ["-m", "seed=0,1"]).endswith("train -m seed=0,1")


def test_commands_repeat_the_folder_of_a_users_configs():
    typed = {"overrides": ["seed=1"], "flags": ["--config-dir", "/my conf"]}
    assert training_command(typed, ["-m", "seed=0,1"]).endswith("train --config-dir '/my conf' -m seed=0,1")


def test_change_of_model_drops_overrides_of_the_network():
    overrides = ["model=medium", "model.network.widths=[64,64,64]", "model.label_smoothing=0.2", "init_from=run"]
    changed = training_command({"overrides": overrides}, ["model=small"])
    assert changed.endswith("train model=small model.label_smoothing=0.2")
