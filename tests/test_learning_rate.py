"""The learning rate range test: its schedule, its suggestion, and the command."""

import json
import math
import shlex
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from conftest import TINY_DATA
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from fashion_cnn.cli.main import compose
from fashion_cnn.errors import UserError
from fashion_cnn.find_learning_rate import main
from fashion_cnn.models.optim import Muon, exponential
from fashion_cnn.runs import list_runs
from fashion_cnn.training.learning_rate import evaluate_range, smooth

FACTORS = np.geomspace(0.01, 100, 400)


def losses(noise=0.0):
    """A loss that falls from 2.3 around the factor 1, steepest there, and explodes around the factor 50."""
    position = np.log(FACTORS)
    values = 0.5 + 1.8 / (1 + np.exp(2 * position)) + np.exp(4 * (position - np.log(50)))
    return [*(values + noise * np.random.default_rng(0).normal(size=len(values)))]


@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_the_suggestion_is_between_the_steepest_descent_and_the_lowest_loss(noise):
    test = evaluate_range([*FACTORS], losses(noise))
    # The moving average lags by about 20 of the 400 steps.
    assert 1 <= test.steepest < 3
    assert test.steepest < test.lowest < 50
    assert test.suggested**2 == pytest.approx(test.steepest * test.lowest)


def test_a_moving_average_of_equal_values_is_that_value():
    assert smooth([2.5] * 50) == pytest.approx([2.5] * 50)


def test_losses_after_the_first_infinite_one_do_not_count():
    values = losses()
    cut = evaluate_range([*FACTORS], [*values[:300], math.nan, *values[301:]])
    assert cut == evaluate_range([*FACTORS[:300]], values[:300])


def test_losses_that_suggest_nothing_are_refused():
    with pytest.raises(UserError, match="The loss does not fall in the range test"):
        evaluate_range([*FACTORS], [*np.linspace(1, 2, len(FACTORS))])
    with pytest.raises(UserError, match="The loss diverged after 3 steps"):
        evaluate_range([*FACTORS[:5]], [2.3, 2.3, 2.3, math.inf, math.inf])


def test_rates_that_do_not_rise_in_each_step_are_refused():
    # A step that the scaler of half precision skips leaves the schedule where it is.
    with pytest.raises(UserError, match="learning rate did not rise in each step"):
        evaluate_range([*np.repeat(FACTORS, 2)], [*np.repeat(losses(), 2)])


def test_the_rates_of_all_groups_rise_by_the_same_factor():
    parameters = [torch.nn.Parameter(torch.zeros(2, 2, 3, 3)), torch.nn.Parameter(torch.zeros(2))]
    optimizer = Muon(
        [{"params": parameters}], lr=0.05, momentum=0.8, other_lr=0.01, betas=(0.9, 0.95), weight_decay=0.0
    )
    schedule = exponential(optimizer, 11, lowest=0.01, highest=100)
    rates = [schedule.get_last_lr()]
    for _ in range(10):
        optimizer.step()
        schedule.step()
        rates.append(schedule.get_last_lr())
    filters, others = np.array(rates).T
    np.testing.assert_allclose(filters / others, 5)
    np.testing.assert_allclose(filters[1:] / filters[:-1], 10**0.4)
    assert (filters[0], filters[-1]) == pytest.approx((0.0005, 5))


def find(command, tmp_path, *arguments):
    typed = [*TINY_DATA, f"runs_dir='{tmp_path}'", "range_test.steps=80", *arguments]
    status, out, err = command(main, *typed)
    assert (status, err) == (0, "")
    (file,) = (tmp_path / "learning_rate").glob("*/learning_rate.json")
    assert file.with_suffix(".png").stat().st_size > 1000
    return out, json.loads(file.read_text())


@pytest.mark.slow
def test_the_command_suggests_rates_and_prints_the_training_with_them(command, tmp_path):
    out, record = find(command, tmp_path, "schedule=onecycle", "data.batch_size=32")
    rates, configured = record["suggestion"], record["configured"]
    assert configured == {"optimizer.lr": 0.05, "optimizer.other_lr": 0.01}
    factor = (record["steepest"] * record["lowest"]) ** 0.5
    assert rates == pytest.approx({key: rate * factor for key, rate in configured.items()}, rel=0.05)
    assert len(record["losses"]) == len(record["factors"]) <= 80
    assert f"optimizer.lr={rates['optimizer.lr']:g}" in out
    module, *overrides = shlex.split(out.strip().splitlines()[-1])[2:]
    assert module == "fashion_cnn.train"
    config = compose(overrides=overrides)
    assert (config.optimizer.lr, config.optimizer.other_lr) == tuple(rates.values())
    assert (config.data.batch_size, config.schedule._target_) == (32, "fashion_cnn.models.optim.one_cycle")
    assert "range_test" not in config
    assert list_runs(tmp_path) == [], "there is no run that latest could name"


@pytest.mark.slow
def test_a_step_of_accumulated_batches_has_the_mean_of_their_losses(command, tmp_path):
    _, record = find(command, tmp_path, "trainer.accumulate_grad_batches=3", "model.label_smoothing=0")
    factors = np.array(record["factors"])
    assert len(record["losses"]) == len(factors) <= 80
    # An epoch has eight batches: its third step has two of them.
    np.testing.assert_allclose(factors[1:] / factors[:-1], 10 ** (4 / 79), rtol=1e-6)
    assert record["losses"][:3] == pytest.approx([math.log(4)] * 3, rel=0.2)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [["optimizer=adamw", "mixing=cutmix"], ["optimizer=sgd", "loss=weighted"]])
def test_any_optimizer_and_training_step_has_a_suggestion(command, tmp_path, settings):
    _, record = find(command, tmp_path, *settings)
    assert set(record["suggestion"]) == {"optimizer.lr"}
    assert 0.01 <= record["steepest"] <= record["lowest"] <= 100


@pytest.mark.parametrize(("stop", "expected"), [(KeyboardInterrupt, 130), (SIGTERMException, 143)])
def test_a_stopped_test_keeps_nothing(command, tmp_path, monkeypatch, stop, expected):
    monkeypatch.setattr(Trainer, "fit", Mock(side_effect=stop))
    status, out, err = command(main, *TINY_DATA, f"runs_dir='{tmp_path}'")
    assert (status, out) == (expected, "")
    assert "Stopped; nothing was kept." in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["range_test.steps=5"], "range_test.steps=5 is not possible: give 20 or more."),
        (["range_test.lowest=2", "range_test.highest=1"], "range_test.lowest=2 and range_test.highest=1 are not"),
        (["resume=latest"], "resume continues trainings"),
        (["range_test.step=30"], "unknown option 'range_test.step' of fashion_cnn.find_learning_rate. Did you mean"),
        (["trainer.devices=2"], "A range test trains on one device, not on 2: set trainer.devices=1"),
    ],
)
def test_impossible_settings_are_refused_in_one_message(command, tmp_path, arguments, message):
    status, out, err = command(main, *TINY_DATA, f"runs_dir='{tmp_path}'", *arguments)
    assert (status, out) == (2, "")
    assert message in err
    assert not list(tmp_path.iterdir())
