"""Verdict and advice on synthetic curves, with made and with the shipped expectations."""

import math
import shlex

import numpy as np
import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from fashion_cnn.analysis import verdict as verdict_module
from fashion_cnn.analysis.history import History
from fashion_cnn.analysis.verdict import (
    FEATURES,
    REMEDIES,
    UNLIKELY,
    advise,
    judge,
    judge_forecast,
    loss_trend,
    possible_remedies,
    training_command,
)
from fashion_cnn.cli.main import CONFIG_DIR, compose
from fashion_cnn.errors import UserError
from fashion_cnn.metrics.gap import ValidationPasses
from fashion_cnn.metrics.intervals import Interval
from fashion_cnn.metrics.predictions import Predictions
from fashion_cnn.training import build
from fashion_cnn.training.build import apply_remedy
from fashion_cnn.training.results import verdict_results


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


FALLING = curves([0.3, 0.15, 0.1], [0.3, 0.18, 0.155], 0.966, 0.949)
RISING = curves([0.3, 0.2, 0.1, 0.05], [0.35, 0.28, 0.3, 0.33], 0.98, 0.92)
MEMORISED = curves([1.5, 0.5, 0.001], [1.6, 1.8, 4.0], 1.0, 0.5)


def judged(history, overrides=(), *, val_count=5000, **settings):
    config = compose(overrides=overrides)
    return judge(
        history,
        config,
        train_images=settings.pop("train_images", 10_000),
        probe_count=settings.pop("probe_count", 5000),
        val_count=val_count,
        parameters=100_000,
        **settings,
    )


@pytest.fixture
def expect(monkeypatch):
    """A function that sets the expected gain of some remedies in points, with a standard deviation of 0.3 points.

    The model has shares of the validation error, which is 5.1% in `FALLING`.
    """

    def set_gains(low=-100.0, high=100.0, **gains):
        count = len(FEATURES)
        bounds = {"low": [low] * count, "high": [high] * count}
        remedies = {
            name: {"intercept": gain / 5.1, "coefficients": [0.0] * count, "deviation": 0.3 / 5.1, **bounds}
            for name, gain in gains.items()
        }
        study = {"mean": [0.0] * count, "scale": [1.0] * count, "remedies": remedies}
        monkeypatch.setattr(verdict_module, "_study", lambda: study)

    return set_gains


@pytest.mark.parametrize(
    ("kind", "gains"),
    [
        ("overfitting", {"cutmix": 0.6, "longer": 0.1}),
        ("still improving", {"cutmix": 0.3, "longer": 0.9}),
        ("still improving", {"more_images": 2.0, "longer": 0.9}),
        ("fits well", {"more_images": 2.0, "longer": -0.9}),
        ("still improving", {"cutmix": -0.5, "longer": 0.4}),
        ("fits well", {"cutmix": -0.5, "longer": -0.1}),
        ("undecided", {"cutmix": 0.15, "longer": -0.1}),
        ("undecided", {}),
    ],
)
def test_verdict_depends_on_what_a_remedy_is_expected_to_gain(kind, gains, expect):
    expect(**gains)
    verdict = judged(FALLING, ["data.train_fraction=0.4"])
    assert verdict.kind == kind
    assert [gain.remedy for gain in verdict.gains] == sorted(gains, key=lambda name: -gains[name])
    for gain in verdict.gains:
        assert gain.gain.estimate == pytest.approx(gains[gain.remedy] / 100)
        assert gain.gain.high - gain.gain.low == pytest.approx(2 * 1.959964 * 0.003)
        z = (gains[gain.remedy] / 100 - 0.002) / 0.003
        assert gain.probability == pytest.approx(0.5 * (1 + math.erf(z / math.sqrt(2))))


def test_verdict_says_what_was_seen_and_what_is_expected(expect):
    expect(cutmix=0.4, larger=0.24, dropout=-0.3)
    rule = judged(FALLING).rule
    assert rule.startswith("the accuracy gap is 1.7 points (95% interval +1.0 to +2.4), 33% of the validation error (")
    assert rule.endswith(
        ". Judging by the study's other trainings, runs like this one are expected to gain from CutMix by +0.4 points "
        "(-0.2 to +1.0) and a wider network by +0.2 points (-0.3 to +0.8); a gain of 0.2 points by "
        "anything else is unlikely"
    )
    expect(cutmix=-0.4)
    assert judged(FALLING).rule.endswith(
        ". Judging by the study's other trainings, no remedy is expected to gain 0.2 points in runs like this one"
    )


def test_a_remedy_that_is_expected_to_lose_is_not_named(expect):
    expect(cutmix=-0.1)
    study = verdict_module._study()
    study["remedies"]["cutmix"]["deviation"] *= 3
    verdict = judged(FALLING)
    assert verdict.gains[0].probability > UNLIKELY
    assert verdict.rule.endswith("no remedy is expected to gain 0.2 points in runs like this one")
    assert [advice.overrides for advice in advise(verdict, compose(overrides=[]))] == [("-m", "seed=0,1,2")]


def test_validation_accuracy_above_that_of_training_is_no_gap(expect):
    expect(longer=0.6)
    wrong_labels = curves([0.9, 0.8], [0.4, 0.3], 0.80, 0.90)
    verdict = judged(wrong_labels)
    assert "accuracy is higher on validation images, by 10.0 points (gap: 95% interval -11.1 to -8.8)" in verdict.rule
    assert verdict.kind == "underfitting"
    rising = curves([0.9, 0.8, 0.7], [0.5, 0.300, 0.316], 0.80, 0.90)
    assert judged(rising, passes=passes(0.016, 5000)).kind == "underfitting", "a rise of the loss without a gap"


def test_forecast_on_other_data_says_how_far_it_holds_there():
    settings = {"train_images": 60_000, "epochs": 30, "parameters": 98_426}
    forecast = Interval(0.94, 0.93, 0.95)
    caution = "on pictures of another kind the interval held "
    assert caution not in judge_forecast(0.97, forecast, compose(overrides=[]), **settings).rule
    other = compose(overrides=["data=kmnist", "data.root=data"])
    assert caution in judge_forecast(0.97, forecast, other, **settings).rule


def test_verdict_on_other_data_says_how_far_the_study_holds_there():
    caution = "The study is on Fashion-MNIST: on pictures of another kind its intervals held "
    assert caution not in judged(FALLING).rule
    for data in ("kmnist", "image_folder"):
        rule = judged(FALLING, [f"data={data}", "data.root=data"]).rule
        assert caution in rule
        assert rule.endswith("% of the gains")


@pytest.mark.parametrize(
    ("epochs", "losses", "trend"),
    [
        ([1, 2, 3, 4], [0.9, 0.8, 0.5, 0.25], math.log(0.5)),
        ([8, 16, 24, 32, 40, 48, 56, 64], [1, 1, 1, 1, 1, 0.2, 0.3, 0.4], math.log(2)),
        ([1, 2], [0.5, 0.5], 0.0),
        ([10], [0.5], math.nan),
    ],
)
def test_trend_of_the_loss_is_its_change_in_the_last_quarter(epochs, losses, trend):
    assert loss_trend(np.array(epochs), np.array(losses, dtype=float)) == pytest.approx(trend, nan_ok=True)


def test_expected_gain_follows_the_trend_of_the_loss(expect):
    expect(longer=0.0)
    study = verdict_module._study()
    place = FEATURES.index("val_loss_trend")
    study["remedies"]["longer"]["coefficients"][place] = -1.0
    (falling,), (rising,) = judged(FALLING).gains, judged(RISING).gains
    assert falling.gain.estimate == pytest.approx(-math.log(0.155 / 0.18) * (1 - 0.949))
    assert rising.gain.estimate == pytest.approx(-math.log(0.33 / 0.3) * (1 - 0.92))
    study["remedies"]["longer"]["high"][place] = 0.02
    (steepest,) = judged(RISING).gains
    assert steepest.gain.estimate == pytest.approx(-0.02 * (1 - 0.92)), "a steeper trend counts as the study's steepest"
    single = judged(curves([0.1], [0.155], 0.966, 0.949))
    assert single.gains[0].gain.estimate == 0, "a trend that is not known counts as that of a mean run"


def test_nothing_is_expected_of_a_run_unlike_those_of_the_study(expect):
    expect(low=-1.0, high=1.0, cutmix=0.6)
    verdict = judged(FALLING)
    assert (verdict.kind, verdict.gains) == ("undecided", ())
    assert "the study has no training like this one" in verdict.rule


def test_gap_that_may_be_chance_is_called_so_and_is_no_overfitting(expect):
    expect(cutmix=0.6)
    verdict = judged(curves([0.3], [0.3], 0.92, 0.91), val_count=100)
    assert verdict.kind == "undecided"
    expect(longer=0.6)
    assert judged(curves([0.3], [0.3], 0.92, 0.91), val_count=100).kind == "underfitting"
    assert verdict.gap.contains_zero
    assert verdict.rule.startswith("no accuracy gap is seen: +1.0 points (95% interval ")


def test_network_with_perfect_training_accuracy_and_a_wide_gap_memorises(expect):
    expect(cutmix=0.6)
    assert judged(MEMORISED).kind == "memorising"
    few = curves([1.5, 0.001], [1.6, 4.0], 1.0, 0.88)
    assert judged(few).kind == "memorising"
    assert judged(few, val_count=50).kind == "overfitting", "the gap may be below 10 points"


def passes(rise, count, noise=0.3):
    """Passes whose mean loss falls to 0.3 and then rises by `rise` at the last epoch."""
    generator = torch.Generator().manual_seed(0)
    base = torch.rand(count, generator=generator)
    means = torch.tensor([0.5, 0.3, 0.3 + rise])
    losses = means[:, None] + base - base.mean() + noise * torch.randn(3, count, generator=generator)
    correct = torch.rand(3, count, generator=generator) < 0.9
    return ValidationPasses(torch.tensor([1, 2, 3]), torch.full((3,), 0.95), correct, losses)


def test_gap_with_a_rise_of_the_loss_is_overfitting_whatever_a_remedy_gains(expect):
    expect(longer=0.9)
    wide, none = (curves([0.5, 0.2, 0.1], [0.5, 0.300, 0.316], train, 0.95) for train in (0.98, 0.95))
    assert judged(wide).kind == "still improving"
    assert judged(wide, passes=passes(0.016, 5000)).kind == "overfitting", "TensorBoard marks its onset, too"
    assert judged(none, passes=passes(0.016, 5000)).kind == "underfitting", "a loss alone is no overfitting"


def test_rise_of_the_loss_must_exceed_its_noise():
    history = curves([0.5, 0.2, 0.1], [0.5, 0.300, 0.316], 0.95, 0.95)
    few = judged(history, val_count=50, passes=passes(0.016, 50))
    assert few.loss_rise.contains_zero
    assert few.rising_since is None
    assert "rose" not in few.rule
    many = judged(history, passes=passes(0.016, 5000))
    assert many.rising_since == 3
    assert "validation loss rose by " in many.rule
    both = curves([0.3, 0.1, 0.2], [0.5, 0.300, 0.316], 0.95, 0.95)
    assert judged(both, passes=passes(0.016, 5000)).rising_since is None, "training loss did not fall"
    assert judged(history).loss_rise is None, "not measured on each image"


@pytest.mark.parametrize(
    ("overrides", "best_epoch", "chosen", "corrected"),
    [
        ([], 2, True, True),
        (["callbacks.best.monitor=val/loss", "callbacks.best.mode=min"], 3, True, False),
        (["callbacks.best.monitor=val/loss", "callbacks.best.mode=min"], 2, True, False),
        # Earlier passes than those of a resumed run may have chosen the epoch.
        ([], 1, True, False),
        (["callbacks.best=null"], 3, False, False),
    ],
)
def test_optimism_is_subtracted_only_if_validation_accuracy_chose_the_epoch(
    overrides, best_epoch, chosen, corrected, tiny
):
    config = tiny(*overrides)
    data = build.data(config)
    data.setup("fit")
    splits = {"train": data.train_probe, "val": data.val_split}
    predictions = {
        name: Predictions(torch.nn.functional.one_hot(split.targets, 4).float(), split.targets, split.indices)
        for name, split in splits.items()
    }
    # Accuracy is highest after epoch 2, loss lowest after epoch 3.
    correct = torch.arange(32) < torch.tensor([20, 30, 25])[:, None]
    losses = torch.tensor([0.3, 0.18, 0.155])[:, None].expand(3, 32)
    passes = ValidationPasses(torch.arange(1, 4), torch.full((3,), 0.966), correct, losses)
    results = {"parameters": 100_000, "best_epoch": best_epoch, "chosen_on_validation": chosen}
    entries = verdict_results(config, FALLING, results, predictions, data, passes)
    names = {"gap_best/accuracy", "gap_best/accuracy_low", "gap_best/accuracy_high"}
    assert names & entries.keys() == (names if corrected else set())


def test_only_measured_epochs_count():
    sparse = {name: np.full(16, np.nan) for name in FALLING.metrics}
    for name, values in FALLING.metrics.items():
        sparse[name][4::5] = values
    assert judged(History(epochs=np.arange(1, 17), metrics=sparse)).last_epoch == 15


def test_a_probe_that_is_the_whole_training_split_narrows_the_interval_of_the_gap():
    part, whole = (judged(FALLING, probe_count=500, train_images=images).gap for images in (10**9, 500))
    assert whole.estimate == part.estimate
    assert part.contains_zero
    assert not whole.contains_zero


def test_history_without_validation_has_no_verdict():
    without_validation = History(epochs=np.array([1]), metrics={"running/loss": np.array([1.0])})
    assert judged(without_validation) is None


@pytest.mark.parametrize(
    "overrides",
    [[], ["experiment=overfit"], ["experiment=regularised"], ["remedy=longer"], ["model=baseline", "optimizer=sgd"]],
)
def test_advice_is_a_command_that_composes(overrides, expect):
    expect(**dict.fromkeys(REMEDIES, 0.5))
    config = compose(overrides=overrides)
    *single, sweep = advise(judged(FALLING, overrides), config)
    assert len(single) == 2
    for advice in (*single, sweep):
        python, _, module, *changes = shlex.split(training_command(config, advice.overrides))
        assert (python, module) == ("python", "fashion_cnn.train")
        OverridesParser.create().parse_overrides(changes)
        if advice is not sweep:
            assert compose(overrides=changes) != config
            assert "% of the validation" not in advice.reason
    assert sweep.overrides[0] == "sweep=remedies"


def test_advice_adds_to_a_remedy_that_was_applied(expect):
    expect(cutmix=0.6, larger=0.5)
    config = compose(overrides=["remedy=longer"])
    first, _, sweep = advise(judged(FALLING, ["remedy=longer"]), config)
    assert first.overrides == ("remedy=[longer,cutmix]",)
    assert sweep.overrides == ("sweep=remedies", "remedy=longer,[longer,cutmix],[longer,larger]")
    first, _, sweep = advise(judged(FALLING, ["remedy=none"]), compose(overrides=["remedy=none"]))
    assert first.overrides == ("remedy=cutmix",), "the runs of a sweep that the others are compared with"
    assert sweep.overrides == ("sweep=remedies", "remedy=none,cutmix,larger")
    expect(cutmix=-0.6)
    (only,) = advise(judged(FALLING), compose())
    assert only.overrides == ("-m", "seed=0,1,2")


@pytest.mark.slow
def test_every_possible_remedy_changes_the_training():
    shrunk = ["data.train_fraction=0.4", "optimizer=adamw", "model.network.dropout=0.1"]
    plain = [*shrunk, "data.augmentation=null", "model.label_smoothing=0.0"]
    mixed = [*shrunk, "mixing=mixup"]
    tried = set()
    for overrides in (plain, mixed):
        before = compose(overrides=overrides)
        for remedy in possible_remedies(before):
            config = compose(overrides=[*overrides, f"remedy={remedy}"])
            apply_remedy(config)
            assert config.remedy is None
            assert OmegaConf.to_container(config) != OmegaConf.to_container(before) | {"remedy": None}, remedy
            tried.add(remedy)
    files = {file.stem for file in (CONFIG_DIR / "remedy").glob("*.yaml")}
    assert tried == set(REMEDIES) == files - {"none", "equal_steps"}


def test_equal_steps_repeat_fewer_images_in_more_epochs():
    config = compose(overrides=["model=tiny", "trainer.max_epochs=3", "data.train_fraction=0.2", "remedy=equal_steps"])
    apply_remedy(config)
    assert (config.trainer.max_epochs, config.trainer.check_val_every_n_epoch) == (15, 5)
    # Without a validation pass after the last epoch, the point would be one of fewer steps.
    config = compose(overrides=["trainer.max_epochs=2", "data.train_fraction=0.4", "remedy=equal_steps"])
    apply_remedy(config)
    assert (config.trainer.max_epochs, config.trainer.check_val_every_n_epoch) == (5, 1)
    config = compose(overrides=["trainer.max_epochs=6", "trainer.check_val_every_n_epoch=2", "remedy=shorter"])
    apply_remedy(config)
    assert (config.trainer.max_epochs, config.trainer.check_val_every_n_epoch) == (3, 1)
    config = compose(overrides=["data.train_fraction=0", "remedy=equal_steps"])
    with pytest.raises(UserError, match="is not possible: they are"):
        apply_remedy(config)


def test_remedies_change_values_relative_to_those_of_the_run():
    overrides = ["model=tiny", "trainer.max_epochs=5", "remedy=[longer,larger,dropout,cutmix]"]
    config = compose(overrides=overrides)
    apply_remedy(config)
    assert config.trainer.max_epochs == 10
    assert list(config.model.network.widths) == [48, 96, 144]
    assert config.model.network.dropout == pytest.approx(0.2)
    assert config.mixing._target_.endswith("CutMix")
    apply_remedy(config)
    assert config.trainer.max_epochs == 10, "applied once"


def test_shipped_expectations_fit_the_features_and_the_remedies():
    study = verdict_module._study()
    assert tuple(study["features"]) == FEATURES
    assert study["remedies"].keys() <= REMEDIES.keys()
    assert len(study["remedies"]) >= 10
    for model in study["remedies"].values():
        numbers = [*model["coefficients"], *model["low"], *model["high"], model["intercept"], model["deviation"]]
        assert np.isfinite(numbers).all()
        assert len(model["coefficients"]) == len(FEATURES)


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
