"""Learning rates against their closed forms."""

import math

import pytest
import torch

from fashion_cnn.errors import UserError
from fashion_cnn.models import optim


def rates(schedule, steps, **settings):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    scheduler = schedule(optimizer, steps, **settings)
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def test_constant_stays():
    assert rates(optim.constant, 5) == [2.0] * 5


def test_cosine_without_warmup_is_half_a_cosine():
    expected = [1 + math.cos(math.pi * step / 10) for step in range(10)]
    assert rates(optim.cosine, 10, warmup=0.0) == pytest.approx(expected)


def test_cosine_warms_up_to_the_peak_and_ends_near_nothing():
    seen = rates(optim.cosine, 100, warmup=0.1)
    assert seen.index(max(seen)) == 10
    assert max(seen) == pytest.approx(2.0)
    assert seen[:11] == sorted(seen[:11])
    assert seen[-1] < 0.01


def test_one_cycle_starts_peaks_and_ends_where_told():
    seen = rates(optim.one_cycle, 101, warmup=0.3, start_factor=0.1, final_factor=0.001)
    assert seen[0] == pytest.approx(0.2)
    assert max(seen) == pytest.approx(2.0, rel=1e-2)
    assert 27 <= seen.index(max(seen)) <= 31
    assert seen[-1] == pytest.approx(0.002)


def test_linear_rises_to_the_peak_and_falls_to_nothing_on_straight_lines():
    seen = rates(optim.linear, 10, warmup=0.2)
    assert seen == pytest.approx([2 / 3, 4 / 3, *(2 * (10 - step) / 8 for step in range(2, 10))])


@pytest.mark.parametrize("schedule", [optim.linear, optim.cosine])
@pytest.mark.parametrize("warmup", [5, -0.1])
def test_a_warmup_that_is_no_share_is_refused(schedule, warmup):
    with pytest.raises(UserError, match=f"schedule.warmup={warmup} is not possible"):
        rates(schedule, 10, warmup=warmup)


def test_linear_without_warmup_starts_at_the_peak():
    assert rates(optim.linear, 4, warmup=0.0) == pytest.approx([2.0, 1.5, 1.0, 0.5])
