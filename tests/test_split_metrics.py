"""Loss and accuracy of a split over its batches."""

import pytest
import torch
from torch.nn import functional

from fashion_cnn.models.classifier import SplitMetrics


def test_metrics_do_not_depend_on_the_batch_sizes():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(33, 4, generator=generator)
    targets = torch.randint(4, (33,), generator=generator)
    metrics = SplitMetrics(4)
    for size in ([20, 13], [1, 32]):
        parts = zip(logits.split(size), targets.split(size), strict=True)
        losses = []
        for batch_logits, batch_targets in parts:
            losses.append(functional.cross_entropy(batch_logits, batch_targets))
            metrics.update(batch_logits, batch_targets, losses[-1])
        values = metrics.compute_and_reset()
        expected = functional.cross_entropy(logits, targets).item()
        assert torch.stack(losses).mean().item() != pytest.approx(expected, abs=1e-3), "batch means must differ"
        assert values["loss"].item() == pytest.approx(expected, rel=1e-6)
        assert values["accuracy"].item() == pytest.approx((logits.argmax(1) == targets).float().mean().item())


def test_a_nan_loss_makes_the_mean_nan():
    metrics = SplitMetrics(2)
    for loss in (torch.tensor(1.0), torch.tensor(torch.nan)):
        metrics.update(torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64), loss)
    assert metrics.compute_and_reset()["loss"].isnan()
