"""Metrics of a split."""

import pytest
import torch
from torch.nn import functional

from fashion_cnn.models.classifier import SplitMetrics


def test_batches_of_any_size_give_the_figures_of_all_images_at_once():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(33, 4, generator=generator)
    targets = torch.randint(4, (33,), generator=generator)
    metrics = SplitMetrics(4)
    for size in ([20, 13], [1, 32]):
        parts = zip(logits.split(size), targets.split(size), strict=True)
        losses = []
        for some_logits, some_targets in parts:
            losses.append(functional.cross_entropy(some_logits, some_targets))
            metrics.update(some_logits, some_targets, losses[-1])
        figures = metrics.compute_and_reset()
        expected = functional.cross_entropy(logits, targets).item()
        assert torch.stack(losses).mean().item() != pytest.approx(expected, abs=1e-3), "the case is not trivial"
        assert figures["loss"].item() == pytest.approx(expected, rel=1e-6)
        assert figures["accuracy"].item() == pytest.approx((logits.argmax(1) == targets).float().mean().item())


def test_a_loss_that_is_no_number_is_not_left_out():
    metrics = SplitMetrics(2)
    for loss in (torch.tensor(1.0), torch.tensor(torch.nan)):
        metrics.update(torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64), loss)
    assert metrics.compute_and_reset()["loss"].isnan()
