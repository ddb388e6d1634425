"""Images that are none of the classes, and how they are told from those that are."""

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
    """Logits of a network that is the surer, and gives the more energy, the darker an image is."""
    darkness = 3 - images.float().mean((1, 2, 3)) / 50
    return torch.stack([darkness, 0 * darkness], dim=1)


def test_the_sets_are_images_like_the_others_and_repeat_with_their_seed(images):
    sets, again, other = (dict(outlier_sets(images, seed=seed)) for seed in (3, 3, 4))
    assert list(sets) == list(OUTLIERS)
    for name, made in sets.items():
        assert made.shape == images.shape
        assert made.dtype == torch.uint8
        assert not made.equal(images)
        assert made.equal(again[name])
        assert made.equal(other[name]) == (name == "inverted")


def test_uniform_noise_takes_all_values_alike_and_gaussian_noise_has_the_images_own_mean_and_spread():
    generator = torch.Generator().manual_seed(0)
    images = torch.stack([torch.full((50, 50), 90), torch.full((50, 50), 140)])[None].repeat(40, 1, 1, 1)
    images += torch.tensor([10.0, 20.0]).view(1, 2, 1, 1).mul(torch.randn(40, 2, 50, 50, generator=generator)).long()
    sets = dict(outlier_sets(images.to(torch.uint8)))
    uniform = sets["uniform_noise"].flatten().bincount(minlength=256)
    assert uniform.min() / uniform.max() > 0.8
    gaussian = sets["gaussian_noise"].double()
    assert gaussian.mean((0, 2, 3)).tolist() == pytest.approx([90, 140], abs=0.5)
    assert gaussian.std((0, 2, 3)).tolist() == pytest.approx([10, 20], abs=0.5)


def test_shuffled_patches_hold_the_same_patches_in_an_order_of_each_images_own():
    # Each pixel tells the patch that it is in, on one side, and its place in the patch on the other.
    patch = torch.arange(16).view(4, 4).repeat_interleave(7, 0).repeat_interleave(7, 1)
    place = torch.arange(49).view(7, 7).repeat(4, 4)
    image = torch.stack([patch, place]).to(torch.uint8)
    shuffled = shuffled_patches(image.expand(20, 2, 28, 28), torch.Generator().manual_seed(0))
    assert shuffled[:, 1].equal(image[1].expand(20, 28, 28)), "patches stay whole"
    orders = shuffled[:, 0, ::7, ::7].flatten(1)
    assert shuffled[:, 0].equal(orders.view(20, 4, 4).repeat_interleave(7, 1).repeat_interleave(7, 2))
    assert orders.sort(dim=1).values.equal(torch.arange(16, dtype=torch.uint8).expand(20, 16))
    assert len(orders.unique(dim=0)) == 20


def test_patches_that_do_not_fill_the_image_leave_the_rest_alone(images):
    shuffled = shuffled_patches(images, torch.Generator().manual_seed(0))
    assert shuffled[..., 16:].equal(images[..., 16:])
    assert not shuffled[..., :16].equal(images[..., :16])


def test_the_scores_are_those_of_their_papers():
    logits = torch.tensor([[0.0, 0.0], [2.0, 2.0], [3.0, 0.0]])
    assert SCORES["confidence"](logits).tolist() == pytest.approx([0.5, 0.5, 1 / (1 + math.exp(-3))])
    expected = [math.log(2), 2 + math.log(2), math.log(math.exp(3) + 1)]
    assert SCORES["energy"](logits).tolist() == pytest.approx(expected)


def test_a_network_that_is_sure_of_dark_images_alone_tells_bright_ones_apart(images):
    told = []
    found = evaluate_outliers(by_mean, images, progress=lambda done, total: told.append((done, total)))
    assert told == [(done, 5) for done in range(1, 6)]
    assert found.separation("uniform_noise", "confidence").auroc > 0.99
    assert found.separation("inverted", "energy").auroc == 1
    # The same pixels in another order have the same mean.
    assert found.separation("shuffled_patches", "confidence").auroc == pytest.approx(0.5, abs=1e-9)


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


def test_classes_left_out_of_the_training_are_a_set_of_their_own(tiny):
    config = tiny("data.left_out=[bottom]")
    data = build.data(config)
    data.setup("test")
    network = NetworkRunner(build.module(config, data), data)
    found = evaluate_outliers(network.logits, data.test_split.images, left_out=data.left_out_split.images)
    assert list(found.outside) == [*OUTLIERS, LEFT_OUT]
    assert found.inside.shape == (30, 3)
    assert found.outside[LEFT_OUT].shape == (10, 3)


def test_where_no_class_was_left_out_there_is_no_such_set(tiny):
    data = build.data(tiny())
    data.setup("test")
    found = evaluate_outliers(by_mean, data.test_split.images, left_out=data.left_out_split.images)
    assert list(found.outside) == list(OUTLIERS)


def test_the_figures_are_plain_values_by_set_and_score(images):
    found = evaluate_outliers(by_mean, images, left_out=images[:5])
    figures = json.loads(json.dumps(found.to_dict()))
    assert list(figures) == list(found.outside)
    assert figures[LEFT_OUT]["images"] == 5
    separation = found.separation("gaussian_noise", "energy")
    assert figures["gaussian_noise"]["energy"] == {
        "auroc": separation.auroc,
        "auroc_standard_error": separation.standard_error,
        "fpr95": separation.false_positive_rate,
    }


def test_the_histograms_show_every_set_and_all_of_its_images(images):
    found = evaluate_outliers(by_mean, images)
    figure = plot_outliers(found)
    assert len(figure.axes) == len(OUTLIERS) * len(SCORES)
    for axes in figure.axes:
        assert [patch.get_data().values.sum() for patch in axes.patches] == pytest.approx([100, 100])
        assert "AUROC" in axes.get_title()


def test_scores_that_are_all_alike_can_be_drawn():
    alike = Outliers(torch.zeros(3, 2), {"inverted": torch.zeros(4, 2)}).separation("inverted", "confidence")
    axes = Figure().subplots()
    plot_separation(alike, axes, title="t", score="confidence")
    assert [patch.get_data().values.max() for patch in axes.patches] == [100, 100], "all in one bin"
    assert axes.get_title() == "t\nAUROC 0.500"
