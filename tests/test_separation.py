"""AUROC, its standard error and FPR95 against hand counts, pair counts and torchmetrics."""

import pytest
import torch
from torchmetrics.functional.classification import binary_auroc

from fashion_cnn.evaluation.outliers import LEFT_OUT, Outliers, Separation
from fashion_cnn.metrics.ranking import midranks


def scores(*values):
    return torch.tensor(values, dtype=torch.float64)


def random_scores(inside, outside, generator, levels=None):
    """Normal scores a standard deviation apart, rounded to multiples of `1 / levels` if levels is given."""
    values = [1 + torch.randn(inside, generator=generator), torch.randn(outside, generator=generator)]
    return Separation(*((v * levels).round().double() if levels else v.double() for v in values))


@pytest.mark.parametrize(
    ("inside", "outside", "auroc"),
    [
        ((3, 4), (1, 2), 1.0),
        ((1, 2), (3, 4), 0.0),
        ((1, 1), (1, 1, 1), 0.5),
        ((1, 3), (2,), 0.5),
        # Six pairs, 2 > 1, 2 = 2, 4 > 1, 4 > 2, 4 = 4 and 2 < 4: three wins and two ties.
        ((2, 4), (1, 2, 4), 4 / 6),
    ],
)
def test_the_auroc_of_a_few_scores_equals_a_hand_count(inside, outside, auroc):
    assert Separation(scores(*inside), scores(*outside)).auroc == pytest.approx(auroc)


@pytest.mark.parametrize("levels", [None, 2])
def test_the_auroc_counts_all_pairs_and_ties_as_half(levels):
    result = random_scores(300, 170, torch.Generator().manual_seed(0), levels)
    difference = result.inside[:, None] - result.outside
    assert (difference == 0).any() == (levels is not None)
    by_pairs = ((difference > 0).double() + (difference == 0).double() / 2).mean().item()
    assert 0.6 < by_pairs < 0.9, "the case is not trivial"
    assert result.auroc == pytest.approx(by_pairs, abs=1e-12)
    labels = torch.cat([torch.ones(300), torch.zeros(170)]).long()
    reference = binary_auroc(torch.cat([result.inside, result.outside]).float().sigmoid(), labels)
    assert result.auroc == pytest.approx(reference.item(), abs=1e-5)


def test_the_standard_error_equals_the_spread_over_samples():
    generator = torch.Generator().manual_seed(0)
    results = [random_scores(80, 50, generator, levels=3) for _ in range(400)]
    spread = torch.tensor([result.auroc for result in results]).std().item()
    assert sum(result.standard_error for result in results) / 400 == pytest.approx(spread, rel=0.1)


@pytest.mark.parametrize(("name", "correlation"), [("inverted", 0.9), ("inverted", -0.9), (LEFT_OUT, 0.0)])
def test_the_standard_error_of_outliers_made_from_the_inliers_is_that_of_pairs(name, correlation):
    generator = torch.Generator().manual_seed(0)
    results = []
    for _ in range(400):
        inside, outside = torch.randn(2, 80, 1, generator=generator, dtype=torch.float64)
        outside = correlation * inside + (1 - correlation**2) ** 0.5 * outside - 1
        # The energy of a single logit is the logit.
        results.append(Outliers(inside, {name: outside}).separation(name, "energy"))
    spread = torch.tensor([result.auroc for result in results]).std().item()
    assert sum(result.standard_error for result in results) / 400 == pytest.approx(spread, rel=0.1)


def test_the_false_positive_rate_is_at_95_percent_true_positives():
    inside = torch.arange(1, 101).double()  # 6 and above are 95 of them.
    assert Separation(inside, scores(5.9, 6.0, 200.0, -3.0)).false_positive_rate == 0.5
    assert Separation(inside, scores(0.0)).false_positive_rate == 0
    assert Separation(scores(1, 1, 1), scores(1, 0)).false_positive_rate == 0.5


def test_equal_values_share_the_mean_of_their_ranks():
    assert midranks(scores(10, 30, 20, 10, 30, 30)).tolist() == [1.5, 5, 3, 1.5, 5, 5]
