"""Supervised contrastive loss."""

import math
from functools import partial

import pytest
import torch
from torch.nn import functional

from fashion_cnn.data import Batch
from fashion_cnn.errors import UserError
from fashion_cnn.models import Ensemble, ImageClassifier, ResNet, SupervisedContrastive
from fashion_cnn.models.mixing import CutMix

NETWORK = partial(ResNet, stem=[8], widths=[8], depths=[0])


def test_the_loss_equals_the_formula_computed_by_hand():
    embeddings = torch.tensor([[2.0, 0.0], [0.0, 3.0], [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    targets = torch.tensor([0, 1, 0, 0, 2])
    # Softmax over the cosines to the other images; images 1 and 4 have no positives.
    e = math.e
    first = -(math.log(e / (1 + e + 1 + 1 / e)) + math.log(1 / (1 + e + 1 + 1 / e))) / 2
    fourth = -math.log(1 / (1 + e + 1 + 1))
    expected = 0.25 * (2 * first + fourth) / 3
    loss = SupervisedContrastive(temperature=1.0, weight=0.25)(embeddings, targets)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("images", [1, 3])
def test_without_positives_the_loss_is_zero_and_has_a_finite_gradient(images):
    embeddings = torch.randn(images, 4, requires_grad=True)
    loss = SupervisedContrastive()(embeddings, torch.arange(images))
    loss.backward()
    assert loss.item() == 0
    assert torch.isfinite(embeddings.grad).all()


def test_minimising_the_loss_separates_the_classes():
    torch.manual_seed(0)
    embeddings, targets = torch.randn(40, 8, requires_grad=True), torch.arange(40) % 4
    optimizer = torch.optim.Adam([embeddings], lr=0.1)

    def cosines():
        directions = functional.normalize(embeddings.detach(), dim=1)
        same = targets[:, None] == targets
        similarities = directions @ directions.T
        return similarities[same].mean().item(), similarities[~same].mean().item()

    assert abs(cosines()[0] - cosines()[1]) < 0.2
    for _ in range(100):
        optimizer.zero_grad()
        SupervisedContrastive()(embeddings, targets).backward()
        optimizer.step()
    same, others = cosines()
    assert same > 0.9
    assert others < 0


def make_batch():
    generator = torch.Generator().manual_seed(0)
    return Batch(torch.randn(12, 1, 12, 12, generator=generator), torch.arange(12) % 3, torch.arange(12))


def test_a_training_step_adds_the_loss_to_the_cross_entropy():
    network, loss = NETWORK(in_channels=1, num_classes=3), SupervisedContrastive(weight=0.5)
    with_it, without = (
        ImageClassifier(network=network, image_shape=(1, 12, 12), num_classes=3, embedding_loss=embedding_loss).eval()
        for embedding_loss in (loss, None)
    )
    batch = make_batch()
    added = loss(without.embed(batch.images), batch.targets)
    assert added > 0.1
    together = without.training_step(batch, 0)["loss"] + added
    torch.testing.assert_close(with_it.training_step(batch, 0)["loss"], together)


def test_impossible_settings_and_combinations_are_refused():
    network, loss = NETWORK(in_channels=1, num_classes=3), SupervisedContrastive()
    with pytest.raises(UserError, match="embedding_loss and mixing exclude each other"):
        ImageClassifier(network=network, image_shape=(1, 12, 12), num_classes=3, embedding_loss=loss, mixing=CutMix())
    with pytest.raises(UserError, match="temperature=0"):
        SupervisedContrastive(temperature=0)
    ensemble = Ensemble(in_channels=1, num_classes=3, members=2, member=NETWORK)
    module = ImageClassifier(network=ensemble, image_shape=(1, 12, 12), num_classes=3, embedding_loss=loss)
    with pytest.raises(UserError, match="Ensemble has no embedding in training"):
        module.train().training_step(make_batch(), 0)
