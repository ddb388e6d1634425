"""Generalisation gap and its intervals, against published values and bootstrap resampling."""

import math

import numpy as np
import pytest
import torch

from fashion_cnn.metrics.gap import (
    ValidationPasses,
    accuracy_gap,
    accuracy_gap_by_class,
    gap_by_class_metrics,
    gap_share_of,
    largest_gap_classes,
    loss_gap,
    metric_name,
)
from fashion_cnn.metrics.intervals import (
    Interval,
    MeanStd,
    newcombe_interval,
    normal_interval,
    ratio_interval,
    to_json_dict,
    wilson_interval,
)
from fashion_cnn.metrics.predictions import Predictions


def predictions(correct, wrong=0, label=0, classes=3):
    """Predictions on images of one class, with the given numbers of correct and wrong ones."""
    targets = torch.full((correct + wrong,), label)
    predicted = torch.cat([targets[:correct], (targets[correct:] + 1) % classes])
    logits = 4 * torch.nn.functional.one_hot(predicted, classes).float()
    return Predictions(logits, targets, torch.arange(correct + wrong))


def concatenate(*parts):
    logits, targets = (torch.cat([getattr(part, name) for part in parts]) for name in ("logits", "targets"))
    return Predictions(logits, targets, torch.arange(len(targets)))


@pytest.mark.parametrize(
    ("correct", "count", "other_correct", "other_count", "low", "high"),
    [(56, 70, 48, 80, 0.0524, 0.3339), (9, 10, 3, 10, 0.1705, 0.8090), (10, 10, 0, 10, 0.6075, 1.0)],
)
def test_newcombe_interval_equals_published_values(correct, count, other_correct, other_count, low, high):
    gap = newcombe_interval(
        wilson_interval(correct / count, count), wilson_interval(other_correct / other_count, other_count)
    )
    assert (gap.low, gap.high) == pytest.approx((low, high), abs=1e-4), "Newcombe 1998, table II, method 10"


def test_wilson_interval_stays_within_0_and_1_and_has_positive_width():
    interval = wilson_interval(1.0, 50)
    assert (interval.low, interval.high) == pytest.approx((0.9287, 1.0), abs=1e-4)
    assert wilson_interval(0.0, 50).high > 0


def test_interval_of_the_share_of_the_gap_covers_the_truth():
    random = np.random.default_rng(0)
    for train_error, val_error, count in ((0.02, 0.06, 5000), (0.0005, 0.05, 1000), (0.05, 0.05, 500)):
        inside = []
        for _ in range(1000):
            accuracies = (1 - random.binomial(count, error) / count for error in (train_error, val_error))
            share = gap_share_of(*accuracies, count, count, 0.0)
            inside.append(share.low <= 1 - train_error / val_error <= share.high)
        assert np.mean(inside) == pytest.approx(0.95, abs=0.025)
    assert gap_share_of(1.0, 0.9, 100, 100, 1.0) == Interval(1.0, 1.0, 1.0)
    assert gap_share_of(1.0, 1.0, 100, 100, 0.0).low == -np.inf, "without errors there is no share"


@pytest.mark.parametrize(
    ("errors", "count", "other_errors", "other_count"),
    [(20, 1000, 60, 1000), (5, 100, 1, 100), (3, 100, 2, 100), (2, 50, 0, 50), (0, 50, 4, 50)],
)
def test_bounds_of_a_ratio_solve_the_equation_of_their_method(errors, count, other_errors, other_count):
    first, second = wilson_interval(errors / count, count), wilson_interval(other_errors / other_count, other_count)
    ratio = ratio_interval(first, second)
    p, q = first.estimate, second.estimate
    # The bound of p - ratio * q by variance estimates recovery is zero (Donner and Zou 2012, section 4).
    assert p - ratio.low * q == pytest.approx(math.hypot(p - first.low, ratio.low * (second.high - q)))
    assert (ratio.low > 0) == (errors > 0)
    if math.isfinite(ratio.high):
        assert ratio.high * q - p == pytest.approx(math.hypot(first.high - p, ratio.high * (q - second.low)))
    assert math.isfinite(ratio.high) == (other_errors > 0)


def test_equal_epochs_of_a_bootstrap_sample_are_chosen_by_their_loss():
    # Both epochs classify as many images of many samples correctly, at weights that floats add up inexactly.
    correct = torch.tensor([[True] * 5 + [False] * 5, [False] * 5 + [True] * 4 + [False]])
    passes = ValidationPasses(torch.tensor([1, 2]), torch.ones(2), correct, torch.tensor([[1.0] * 10, [0.5] * 10]))
    optimism = []
    for drawn in torch.randint(10, (200, 10), generator=torch.Generator().manual_seed(0)).tolist():
        first, second = (sum(row[image] for image in drawn) for row in correct.tolist())
        optimism.append(second / 10 - 0.4 if second >= first else first / 10 - 0.5)
    assert passes.best_epoch_gap(100, train_share=1.0).estimate == pytest.approx(1 - 0.5 + np.mean(optimism), abs=1e-12)


def test_gap_of_the_best_epoch_has_little_of_the_bias_of_the_choice():
    random = np.random.default_rng(0)
    naive, corrected, inside = [], [], []
    for _ in range(200):
        correct = torch.tensor(random.random((20, 1000)) < 0.9)
        passes = ValidationPasses(torch.arange(1, 21), torch.full((20,), 0.95), correct, torch.ones(20, 1000))
        gap = passes.best_epoch_gap(5000, train_share=1.0)
        naive.append(0.95 - correct.double().mean(1).max().item())
        corrected.append(gap.estimate)
        inside.append(gap.low <= 0.05 <= gap.high)
    assert np.mean(naive) < 0.04, "the best of 20 equal epochs looks better than it is"
    assert 0.05 - np.mean(corrected) < 0.4 * (0.05 - np.mean(naive))
    assert np.mean(inside) >= 0.93


def test_chance_alone_rarely_makes_the_loss_rise():
    generator = torch.Generator().manual_seed(0)
    false_alarms = naive = 0
    for _ in range(200):
        losses = 0.3 + 0.3 * torch.randn(10, 500, generator=generator)
        equal = ValidationPasses(torch.arange(10), torch.ones(10), losses < 0.5, losses)
        false_alarms += equal.loss_rise().low > 0
        lowest = losses.mean(1).argmin()
        naive += normal_interval(losses[-1] - losses[lowest]).low > 0
    assert naive > 20, "the lowest of ten equal epochs looks lower than it is"
    # 5 are expected of a one-sided 2.5%; a part of the optimism of independent epochs remains.
    assert false_alarms <= 14


def test_accuracy_gap_is_the_difference_of_the_accuracies():
    gap = accuracy_gap(predictions(90, 10), predictions(80, 20))
    assert gap.estimate == pytest.approx(0.1)
    assert accuracy_gap(predictions(9, 1), predictions(8, 2)).contains_zero
    assert not accuracy_gap(predictions(900, 100), predictions(800, 200)).contains_zero


def test_loss_gap_interval_agrees_with_bootstrap():
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
    samples = torch.randint(400, (2, 5000, 400), generator=generator)
    resampled = val.losses[samples[1]].mean(1) - train.losses[samples[0]].mean(1)
    low, high = resampled.quantile(torch.tensor([0.025, 0.975])).tolist()
    assert gap.estimate > 0.3, "the case is not trivial"
    assert (gap.low, gap.high) == pytest.approx((low, high), abs=0.02)


def test_a_gap_to_the_whole_training_split_has_the_sampling_error_of_the_held_out_images_alone():
    train, val = predictions(95, 5), predictions(80, 20)
    gap, alone = accuracy_gap(train, val, 1.0), wilson_interval(0.8, 100)
    assert (gap.low, gap.high) == pytest.approx((0.95 - alone.high, 0.95 - alone.low))
    (by_class, *_) = accuracy_gap_by_class(train, val, 1.0)
    assert by_class == gap
    mean, deviation = val.losses.double().mean().item(), val.losses.double().std().item()
    loss = loss_gap(train, val, 1.0)
    half = 1.959964 * deviation / 10
    difference = mean - train.losses.double().mean().item()
    assert (loss.low, loss.high) == pytest.approx((difference - half, difference + half))


def test_a_probe_of_half_of_the_training_split_has_the_interval_of_samples_without_replacement():
    generator = torch.Generator().manual_seed(0)
    split = (torch.rand(400, generator=generator) < 0.9).double()
    samples = [split[torch.randperm(400, generator=generator)[:200]].mean().item() for _ in range(4000)]
    val = predictions(80_000, 20_000)
    probe = predictions(round(split.mean().item() * 200), 200 - round(split.mean().item() * 200))
    gap = accuracy_gap(probe, val, 0.5)
    low, high = np.quantile(samples, [0.025, 0.975])
    assert gap.high - gap.low == pytest.approx(high - low, rel=0.1)
    half, full = loss_gap(probe, val, 0.5), loss_gap(probe, val)
    assert half.high - half.low == pytest.approx(0.5**0.5 * (full.high - full.low), rel=0.01)


def test_gap_by_class_uses_only_the_images_of_the_class():
    train = concatenate(predictions(9, 1, label=0), predictions(10, 0, label=1))
    val = concatenate(predictions(5, 5, label=0), predictions(10, 0, label=1))
    first, second, third = accuracy_gap_by_class(train, val)
    assert first.estimate == pytest.approx(0.4)
    assert second.estimate == 0
    assert third is None, "no images of the class"
    metrics = gap_by_class_metrics(train, val, ["T-shirt/top", "Bag", "Coat"])
    assert metrics == {"gap_by_class/T-shirt-top": pytest.approx(0.4), "gap_by_class/Bag": 0.0}
    assert metric_name("a/b") == "a-b"


def test_largest_gap_classes_are_the_fewest_that_account_for_half():
    train = concatenate(*(predictions(100, 0, label=label) for label in range(3)))
    val = concatenate(*(predictions(100 - errors, errors, label=label) for label, errors in enumerate((3, 10, 6))))
    assert largest_gap_classes(train, val) == [1]
    val = concatenate(*(predictions(100 - errors, errors, label=label) for label, errors in enumerate((5, 6, 7))))
    assert largest_gap_classes(train, val) == [2, 1]
    assert largest_gap_classes(train, train) == []
    better = concatenate(*(predictions(100 - errors, errors, label=label) for label, errors in enumerate((50, 0, 0))))
    assert largest_gap_classes(better, val) == [], "no overall gap, so no classes"
    noise = concatenate(*(predictions(100 - errors, errors, label=label) for label, errors in enumerate((1, 0, 2))))
    assert largest_gap_classes(train, noise) == [], "the interval of the gap contains zero"


def test_classes_carry_a_gap_whose_interval_is_that_of_the_share_of_the_training_split():
    train, val = predictions(98, 2), predictions(92, 8)
    assert largest_gap_classes(train, val) == [], "a small sample of the training images"
    assert largest_gap_classes(train, val, 1.0) == [0], "all of them"


@pytest.mark.parametrize("count", [10, 1000, 9999])
def test_wilson_interval_contains_proportions_of_0_and_1(count):
    assert wilson_interval(1.0, count).high == 1
    assert wilson_interval(0.0, count).low == 0


def test_mean_std_is_the_sample_standard_deviation_and_none_of_a_single_value():
    values = [0.91, 0.93, 0.98]
    expected = np.mean(values), np.std(values, ddof=1)
    summary = MeanStd.of(values)
    assert (summary.mean, summary.std) == pytest.approx(expected)
    assert summary.format(100, 1) == "94.0 ± 3.6"
    assert MeanStd.of([0.5]) == MeanStd(mean=0.5, std=None, count=1)
    assert MeanStd.of([0.5]).format(100, 1) == "50.0"


def test_intervals_are_stored_with_value_low_and_high():
    assert to_json_dict(Interval(0.5, 0.4, 0.6)) == {"value": 0.5, "low": 0.4, "high": 0.6}


def test_the_mean_of_a_diverged_metric_is_not_a_number():
    for values in ([math.inf, 1.0], [math.inf, -math.inf], [math.nan, 1.0]):
        mean_std = MeanStd.of(values)
        assert math.isnan(mean_std.mean)
        assert math.isnan(mean_std.std)
    assert MeanStd.of([math.inf]).std is None
