"""Sets of outliers, and their separation from images of the classes."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

from fashion_cnn.evaluation.outliers import (
    LEFT_OUT,
    OUTLIERS,
    SCORES,
    Outliers,
    evaluate_outliers,
    outlier_sets,
    shuffled_patches,
)
from fashion_cnn.evaluation.robustness_report import plot_outliers, plot_separation
from fashion_cnn.inference.network import NetworkRunner
from fashion_cnn.models import ImageClassifier
from fashion_cnn.training import build


@pytest.fixture
def images():
    """Dark images `(60, 3, 12, 17)`."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(10, 120, (60, 3, 12, 17), generator=generator, dtype=torch.uint8)


def by_mean(images):
    """Logits of a network whose confidence and negative energy rise with the darkness of an image."""
    darkness = 3 - images.float().mean((1, 2, 3)) / 50
    return torch.stack([darkness, 0 * darkness], dim=1)


def test_outliers_have_the_images_shape_and_follow_from_the_seed(images):
    sets, again, other = (dict(outlier_sets(images, seed=seed)) for seed in (3, 3, 4))
    assert list(sets) == list(OUTLIERS)
    for name, outliers in sets.items():
        assert outliers.shape == images.shape
        assert outliers.dtype == torch.uint8
        assert not outliers.equal(images)
        assert outliers.equal(again[name])
        assert outliers.equal(other[name]) == (name == "inverted")


def test_noise_is_uniform_or_has_the_images_mean_and_standard_deviation():
    generator = torch.Generator().manual_seed(0)
    images = torch.stack([torch.full((50, 50), 90), torch.full((50, 50), 140)])[None].repeat(40, 1, 1, 1)
    images += torch.tensor([10.0, 20.0]).view(1, 2, 1, 1).mul(torch.randn(40, 2, 50, 50, generator=generator)).long()
    sets = dict(outlier_sets(images.to(torch.uint8)))
    uniform = sets["uniform_noise"].flatten().bincount(minlength=256)
    assert uniform.min() / uniform.max() > 0.8
    gaussian = sets["gaussian_noise"].double()
    assert gaussian.mean((0, 2, 3)).tolist() == pytest.approx([90, 140], abs=0.5)
    assert gaussian.std((0, 2, 3)).tolist() == pytest.approx([10, 20], abs=0.5)


def test_shuffled_patches_are_the_same_patches_in_independent_orders():
    # Channel 0 holds the number of a pixel's patch, channel 1 its position in the patch.
    patch = torch.arange(16).view(4, 4).repeat_interleave(7, 0).repeat_interleave(7, 1)
    place = torch.arange(49).view(7, 7).repeat(4, 4)
    image = torch.stack([patch, place]).to(torch.uint8)
    shuffled = shuffled_patches(image.expand(20, 2, 28, 28), torch.Generator().manual_seed(0))
    assert shuffled[:, 1].equal(image[1].expand(20, 28, 28)), "patches stay whole"
    orders = shuffled[:, 0, ::7, ::7].flatten(1)
    assert shuffled[:, 0].equal(orders.view(20, 4, 4).repeat_interleave(7, 1).repeat_interleave(7, 2))
    assert orders.sort(dim=1).values.equal(torch.arange(16, dtype=torch.uint8).expand(20, 16))
    assert len(orders.unique(dim=0)) == 20


def test_pixels_beyond_the_last_whole_patch_stay(images):
    shuffled = shuffled_patches(images, torch.Generator().manual_seed(0))
    assert shuffled[..., 16:].equal(images[..., 16:])
    assert not shuffled[..., :16].equal(images[..., :16])


def test_scores_equal_their_formulas():
    logits = torch.tensor([[0.0, 0.0], [2.0, 2.0], [3.0, 0.0]])
    assert SCORES["confidence"](logits).tolist() == pytest.approx([0.5, 0.5, 1 / (1 + math.exp(-3))])
    expected = [math.log(2), 2 + math.log(2), math.log(math.exp(3) + 1)]
    assert SCORES["energy"](logits).tolist() == pytest.approx(expected)


def test_a_network_that_is_confident_on_dark_images_detects_bright_outliers(images):
    calls = []
    outliers = evaluate_outliers(by_mean, images, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(done, 5) for done in range(1, 6)]
    assert outliers.separation("uniform_noise", "confidence").auroc > 0.99
    assert outliers.separation("inverted", "energy").auroc == 1
    # The same pixels in another order have the same mean.
    assert outliers.separation("shuffled_patches", "confidence").auroc == pytest.approx(0.5, abs=1e-9)


def test_the_batch_size_does_not_change_the_logits(images):
    class Mean(nn.Module):
        def forward(self, batch):
            return by_mean(batch)

    module = ImageClassifier(network=Mean(), image_shape=images.shape[1:], num_classes=2)
    networks = [
        NetworkRunner(module, SimpleNamespace(normalise=torch.Tensor.float, eval_batch_size=size)) for size in (7, 1000)
    ]
    first, second = (evaluate_outliers(network.logits, images) for network in networks)
    assert torch.allclose(first.inside, second.inside)
    assert all(torch.allclose(logits, second.outside[name]) for name, logits in first.outside.items())


def test_classes_left_out_of_the_training_are_a_set_of_outliers(tiny):
    config = tiny("data.left_out=[bottom]")
    data = build.data(config)
    data.setup("test")
    network = NetworkRunner(build.module(config, data), data)
    outliers = evaluate_outliers(network.logits, data.test_split.images, left_out=data.left_out_split.images)
    assert list(outliers.outside) == [*OUTLIERS, LEFT_OUT]
    assert outliers.inside.shape == (30, 3)
    assert outliers.outside[LEFT_OUT].shape == (10, 3)


def test_there_is_no_such_set_if_no_class_was_left_out(tiny):
    data = build.data(tiny())
    data.setup("test")
    outliers = evaluate_outliers(by_mean, data.test_split.images, left_out=data.left_out_split.images)
    assert list(outliers.outside) == list(OUTLIERS)


def test_metrics_are_plain_values_by_set_and_score(images):
    outliers = evaluate_outliers(by_mean, images, left_out=images[:5])
    metrics = json.loads(json.dumps(outliers.to_dict()))
    assert list(metrics) == list(outliers.outside)
    assert metrics[LEFT_OUT]["images"] == 5
    separation = outliers.separation("gaussian_noise", "energy")
    assert metrics["gaussian_noise"]["energy"] == {
        "auroc": separation.auroc,
        "auroc_standard_error": separation.standard_error,
        "fpr95": separation.false_positive_rate,
    }


def test_histograms_show_all_images_of_every_set(images):
    outliers = evaluate_outliers(by_mean, images)
    figure = plot_outliers(outliers)
    assert len(figure.axes) == len(OUTLIERS) * len(SCORES)
    for axes in figure.axes:
        assert [patch.get_data().values.sum() for patch in axes.patches] == pytest.approx([100, 100])
        assert "AUROC" in axes.get_title()


def test_constant_scores_can_be_plotted():
    constant = Outliers(torch.zeros(3, 2), {"inverted": torch.zeros(4, 2)}).separation("inverted", "confidence")
    axes = Figure().subplots()
    plot_separation(constant, axes, title="t", score="confidence")
    assert [patch.get_data().values.max() for patch in axes.patches] == [100, 100], "all in one bin"
    assert axes.get_title() == "t\nAUROC 0.500"
