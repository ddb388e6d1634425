"""Learning rate schedules against their closed forms."""

import math

import pytest
import torch

from fashion_cnn.errors import UserError
from fashion_cnn.models import optim


def learning_rates(schedule, steps, **settings):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    scheduler = schedule(optimizer, steps, **settings)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_constant_keeps_the_learning_rate():
    assert learning_rates(optim.constant, 5) == [2.0] * 5


def test_cosine_without_warmup_is_half_a_cosine():
    expected = [1 + math.cos(math.pi * step / 10) for step in range(10)]
    assert learning_rates(optim.cosine, 10, warmup=0.0) == pytest.approx(expected)


def test_cosine_warms_up_to_the_peak_and_ends_near_zero():
    rates = learning_rates(optim.cosine, 100, warmup=0.1)
    assert rates.index(max(rates)) == 10
    assert max(rates) == pytest.approx(2.0)
    assert rates[:11] == sorted(rates[:11])
    assert rates[-1] < 0.01


def test_one_cycle_starts_peaks_and_ends_at_its_factors():
    rates = learning_rates(optim.one_cycle, 101, warmup=0.3, start_factor=0.1, final_factor=0.001)
    assert rates[0] == pytest.approx(0.2)
    assert max(rates) == pytest.approx(2.0, rel=1e-2)
    assert 27 <= rates.index(max(rates)) <= 31
    assert rates[-1] == pytest.approx(0.002)


def test_linear_rises_to_the_peak_and_falls_to_zero_linearly():
    rates = learning_rates(optim.linear, 10, warmup=0.2)
    assert rates == pytest.approx([2 / 3, 4 / 3, *(2 * (10 - step) / 8 for step in range(2, 10))])


@pytest.mark.parametrize("schedule", [optim.linear, optim.cosine])
@pytest.mark.parametrize("warmup", [5, -0.1])
def test_a_warmup_that_is_no_fraction_is_refused(schedule, warmup):
    with pytest.raises(UserError, match=f"schedule.warmup={warmup} is not possible"):
        learning_rates(schedule, 10, warmup=warmup)


def test_one_cycle_without_a_step_that_falls_is_refused():
    with pytest.raises(UserError, match="warmup=1 leaves no step"):
        learning_rates(optim.one_cycle, 10, warmup=1, start_factor=0.1, final_factor=0.001)


def test_linear_without_warmup_starts_at_the_peak():
    assert learning_rates(optim.linear, 4, warmup=0.0) == pytest.approx([2.0, 1.5, 1.0, 0.5])
