"""The verdict on made-up curves of each kind, and the advice that follows from it."""

import shlex

import numpy as np
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from fashion_cnn.analysis.history import History
from fashion_cnn.analysis.verdict import advise, judge, training_command
from fashion_cnn.cli.main import compose


def curves(train_loss, val_loss, train_accuracy, val_accuracy):
    """A history whose accuracies are those of its last epoch throughout."""
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


MADE_UP = {
    "one epoch": ("underfitting", curves([0.42], [0.43], 0.86, 0.855)),
    "flat and bad": ("underfitting", curves([0.9, 0.8, 0.795], [0.9, 0.8, 0.796], 0.70, 0.695)),
    "still falling": ("underfitting", curves([0.4, 0.3, 0.25], [0.4, 0.31, 0.27], 0.93, 0.925)),
    "a usual good run": ("fits well", curves([0.3, 0.15, 0.1], [0.3, 0.18, 0.155], 0.966, 0.949)),
    "all learned, nothing lost": ("fits well", curves([0.3, 0.01], [0.3, 0.01], 1.0, 1.0)),
    "a wobble": ("fits well", curves([0.3, 0.15, 0.14], [0.3, 0.200, 0.204], 0.96, 0.94)),
    "rising": ("overfitting", curves([0.3, 0.2, 0.1, 0.05], [0.35, 0.28, 0.3, 0.33], 0.98, 0.92)),
    "all gap": ("overfitting", curves([0.3, 0.1, 0.03], [0.3, 0.2, 0.2], 0.99, 0.94)),
    "by heart": ("memorising", curves([1.5, 0.5, 0.001], [1.6, 1.8, 4.0], 1.0, 0.5)),
}


@pytest.mark.parametrize(("kind", "history"), MADE_UP.values(), ids=MADE_UP)
def test_each_kind_of_curve_gets_its_verdict(kind, history):
    verdict = judge(history, 5000, 5000)
    assert verdict.kind == kind
    assert len(verdict.rule) > 30


def test_the_rise_is_dated_by_its_first_epoch():
    verdict = judge(MADE_UP["rising"][1], 5000, 5000)
    assert verdict.rising_since == 3
    assert "18% above its lowest" in verdict.rule
    good = judge(MADE_UP["a usual good run"][1], 5000, 5000)
    assert good.rising_since is None
    assert good.lowest_at_end
    assert advise(good, compose(overrides=["trainer.max_epochs=3"]), epochs=3)[0].overrides == ("trainer.max_epochs=6",)
    stopped_early = compose(overrides=["trainer.max_epochs=30"])
    pieces = advise(good, stopped_early, epochs=3)
    assert pieces
    assert all("max_epochs" not in piece.overrides[0] for piece in pieces)


def test_a_loss_that_rises_on_both_sides_is_no_overfitting():
    assert judge(curves([0.3, 0.2, 0.4], [0.3, 0.22, 0.42], 0.92, 0.91), 5000, 5000).kind != "overfitting"


def test_a_gap_that_few_images_cannot_show_is_no_overfitting():
    history = curves([0.3, 0.1, 0.03], [0.3, 0.2, 0.2], 0.98, 0.94)
    assert judge(history, 5000, 5000).kind == "overfitting"
    few = judge(history, 50, 50)
    assert few.kind == "fits well"
    assert "(two thirds or more, but its interval holds zero)" in few.rule


def test_a_verdict_by_few_images_says_so():
    history = MADE_UP["all gap"][1]
    assert "tell little" not in judge(history, 5000, 5000).rule
    assert (
        "but 50 validation images tell little: with others the gap could be anything" in judge(history, 5000, 50).rule
    )


def test_without_a_measured_gap_there_is_no_verdict():
    nothing = History(epochs=np.array([1]), metrics={"running/loss": np.array([1.0])})
    assert judge(nothing, 0, 0) is None


@pytest.mark.parametrize("name", MADE_UP)
@pytest.mark.parametrize(
    "overrides", [[], ["experiment=overfit"], ["experiment=regularised"], ["model=baseline", "optimizer=sgd"]]
)
def test_the_advice_is_a_command_that_composes(name, overrides):
    config = compose(overrides=overrides)
    verdict = judge(MADE_UP[name][1], 5000, 5000)
    pieces = advise(verdict, config, epochs=config.trainer.max_epochs)
    assert 1 <= len(pieces) <= 3
    for piece in pieces:
        python, _, module, *typed = shlex.split(training_command(config.overrides, piece.overrides))
        assert (python, module) == ("python", "fashion_cnn.train")
        changes = [part for part in typed if part != "-m"]
        OverridesParser.create().parse_overrides(changes)
        assert set(overrides) - set(changes) == set(), "what was typed before stays"
        if "-m" not in typed:
            assert compose(overrides=changes) != config


def test_a_later_override_replaces_the_one_it_repeats():
    assert training_command(["seed=1", "optimizer.lr=0.1"], ["optimizer.lr=0.2"]).endswith(
        "train seed=1 optimizer.lr=0.2"
    )
    assert training_command(["seed=1"], ["-m", "seed=0,1"]).endswith("train -m seed=0,1")


def test_another_model_leaves_the_parts_of_this_one_behind():
    typed = ["model=medium", "model.network.widths=[64,64,64]", "model.label_smoothing=0.2", "init_from=run"]
    assert training_command(typed, ["model=small"]).endswith("train model=small model.label_smoothing=0.2")
