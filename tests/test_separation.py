"""AUROC, its standard error and the false positive rate, by hand, by counting pairs and by another implementation."""

import pytest
import torch
from torchmetrics.functional.classification import binary_auroc

from fashion_cnn.evaluation.outliers import Separation, midranks


def scores(*values):
    return torch.tensor(values, dtype=torch.float64)


def drawn(inside, outside, generator, levels=None):
    """Normal scores a standard deviation apart, rounded to so many `levels` a unit where given."""
    values = [1 + torch.randn(inside, generator=generator), torch.randn(outside, generator=generator)]
    return Separation(*((v * levels).round().double() if levels else v.double() for v in values))


@pytest.mark.parametrize(
    ("inside", "outside", "auroc"),
    [
        ((3, 4), (1, 2), 1.0),
        ((1, 2), (3, 4), 0.0),
        ((1, 1), (1, 1, 1), 0.5),
        ((1, 3), (2,), 0.5),
        # Of six pairs 2 > 1, 2 = 2, 4 > 1, 4 > 2, 4 = 4 and 2 < 4: three wins and two ties.
        ((2, 4), (1, 2, 4), 4 / 6),
    ],
)
def test_the_auroc_of_a_few_scores_is_that_counted_by_hand(inside, outside, auroc):
    assert Separation(scores(*inside), scores(*outside)).auroc == pytest.approx(auroc)


@pytest.mark.parametrize("levels", [None, 2])
def test_the_auroc_counts_all_pairs_with_ties_as_half(levels):
    result = drawn(300, 170, torch.Generator().manual_seed(0), levels)
    difference = result.inside[:, None] - result.outside
    assert (difference == 0).any() == (levels is not None)
    by_pairs = ((difference > 0).double() + (difference == 0).double() / 2).mean().item()
    assert 0.6 < by_pairs < 0.9, "the case is not trivial"
    assert result.auroc == pytest.approx(by_pairs, abs=1e-12)
    labels = torch.cat([torch.ones(300), torch.zeros(170)]).long()
    other = binary_auroc(torch.cat([result.inside, result.outside]).float().sigmoid(), labels)
    assert result.auroc == pytest.approx(other.item(), abs=1e-5)


def test_the_standard_error_is_the_spread_over_draws_of_scores():
    generator = torch.Generator().manual_seed(0)
    results = [drawn(80, 50, generator, levels=3) for _ in range(400)]
    spread = torch.tensor([result.auroc for result in results]).std().item()
    assert sum(result.standard_error for result in results) / 400 == pytest.approx(spread, rel=0.1)


def test_the_false_positive_rate_is_that_of_the_threshold_that_keeps_95_percent():
    inside = torch.arange(1, 101).double()  # 6 and above are 95 of them.
    assert Separation(inside, scores(5.9, 6.0, 200.0, -3.0)).false_positive_rate == 0.5
    assert Separation(inside, scores(0.0)).false_positive_rate == 0
    assert Separation(scores(1, 1, 1), scores(1, 0)).false_positive_rate == 0.5


def test_equal_values_share_the_mean_of_their_ranks():
    assert midranks(scores(10, 30, 20, 10, 30, 30)).tolist() == [1.5, 5, 3, 1.5, 5, 5]
