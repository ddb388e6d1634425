"""The gap and its intervals, against published figures and against resampling."""

import pytest
import torch

from fashion_cnn.metrics.gap import (
    accuracy_gap,
    accuracy_gap_by_class,
    gap_by_class_metrics,
    largest_gap_classes,
    loss_gap,
    metric_name,
)
from fashion_cnn.metrics.intervals import newcombe_interval, wilson_interval
from fashion_cnn.metrics.predictions import Predictions


def predictions(right, wrong=0, label=0, classes=3):
    """So many images of one class, recognised and not."""
    targets = torch.full((right + wrong,), label)
    said = torch.cat([targets[:right], (targets[right:] + 1) % classes])
    logits = 4 * torch.nn.functional.one_hot(said, classes).float()
    return Predictions(logits, targets, torch.arange(right + wrong))


def together(*parts):
    logits, targets = (torch.cat([getattr(part, name) for part in parts]) for name in ("logits", "targets"))
    return Predictions(logits, targets, torch.arange(len(targets)))


@pytest.mark.parametrize(
    ("right", "of", "other_right", "other_of", "low", "high"),
    [(56, 70, 48, 80, 0.0524, 0.3339), (9, 10, 3, 10, 0.1705, 0.8090), (10, 10, 0, 10, 0.6075, 1.0)],
)
def test_the_interval_of_the_accuracy_gap_is_newcombes(right, of, other_right, other_of, low, high):
    gap = newcombe_interval(wilson_interval(right / of, of), wilson_interval(other_right / other_of, other_of))
    assert (gap.low, gap.high) == pytest.approx((low, high), abs=1e-4), "Newcombe 1998, table II, method 10"


def test_a_wilson_interval_stays_within_0_and_1_and_never_vanishes():
    sure = wilson_interval(1.0, 50)
    assert (sure.low, sure.high) == pytest.approx((0.9287, 1.0), abs=1e-4)
    assert wilson_interval(0.0, 50).high > 0


def test_the_accuracy_gap_is_the_difference_of_the_accuracies():
    gap = accuracy_gap(predictions(90, 10), predictions(80, 20))
    assert gap.estimate == pytest.approx(0.1)
    assert accuracy_gap(predictions(9, 1), predictions(8, 2)).contains_zero
    assert not accuracy_gap(predictions(900, 100), predictions(800, 200)).contains_zero


def test_the_interval_of_the_loss_gap_agrees_with_resampling():
    generator = torch.Generator().manual_seed(0)
    train, val = (
        Predictions(
            sharpness * torch.randn(400, 3, generator=generator),
            torch.randint(3, (400,), generator=generator),
            torch.arange(400),
        )
        for sharpness in (0.5, 1.5)
    )
    gap = loss_gap(train, val)
    draws = torch.randint(400, (2, 5000, 400), generator=generator)
    resampled = val.losses[draws[1]].mean(1) - train.losses[draws[0]].mean(1)
    low, high = resampled.quantile(torch.tensor([0.025, 0.975])).tolist()
    assert gap.estimate > 0.3, "the case is not trivial"
    assert (gap.low, gap.high) == pytest.approx((low, high), abs=0.02)


def test_the_gap_by_class_is_that_of_the_classes_images():
    train = together(predictions(9, 1, label=0), predictions(10, 0, label=1))
    val = together(predictions(5, 5, label=0), predictions(10, 0, label=1))
    first, second, third = accuracy_gap_by_class(train, val)
    assert first.estimate == pytest.approx(0.4)
    assert second.estimate == 0
    assert third is None, "no image of it"
    figures = gap_by_class_metrics(train, val, ["T-shirt/top", "Bag", "Coat"])
    assert figures == {"gap_by_class/T-shirt-top": pytest.approx(0.4), "gap_by_class/Bag": 0.0}
    assert metric_name("a/b") == "a-b"


def test_the_classes_that_carry_the_gap_are_the_fewest_that_make_up_half():
    train = together(*(predictions(100, 0, label=label) for label in range(3)))
    val = together(*(predictions(100 - lost, lost, label=label) for label, lost in enumerate((3, 10, 6))))
    assert largest_gap_classes(train, val) == [1]
    val = together(*(predictions(100 - lost, lost, label=label) for label, lost in enumerate((5, 6, 7))))
    assert largest_gap_classes(train, val) == [2, 1]
    assert largest_gap_classes(train, train) == []
    better = together(*(predictions(100 - lost, lost, label=label) for label, lost in enumerate((50, 0, 0))))
    assert largest_gap_classes(better, val) == [], "no class carries a gap that there is not"


@pytest.mark.parametrize("count", [10, 1000, 9999])
def test_an_interval_holds_its_share(count):
    assert wilson_interval(1.0, count).high == 1
    assert wilson_interval(0.0, count).low == 0
