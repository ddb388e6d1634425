"""The loss on embeddings."""

import math

import pytest
import torch
from hydra.errors import InstantiationException

from fashion_cnn.errors import UserError
from fashion_cnn.models import ImageClassifier, SupervisedContrastive
from fashion_cnn.train import train


def test_it_is_what_the_paper_has_by_hand():
    embeddings = torch.tensor([[2.0, 0.0], [0.0, 3.0], [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    targets = torch.tensor([0, 1, 0, 0, 2])
    # Of the cosines with the others, those of its class divided by all; images 1 and 4 are alone in their classes.
    e = math.e
    first = -(math.log(e / (1 + e + 1 + 1 / e)) + math.log(1 / (1 + e + 1 + 1 / e))) / 2
    fourth = -math.log(1 / (1 + e + 1 + 1))
    expected = 0.25 * (2 * first + fourth) / 3
    found = SupervisedContrastive(temperature=1.0, weight=0.25)(embeddings, targets)
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_without_kin_it_is_zero_and_has_a_gradient():
    embeddings = torch.randn(3, 4, requires_grad=True)
    loss = SupervisedContrastive()(embeddings, torch.arange(3))
    loss.backward()
    assert loss.item() == 0
    assert torch.isfinite(embeddings.grad).all()


def test_a_training_with_it_draws_classes_together(tiny):
    def kinship(*overrides):
        module = ImageClassifier.load_from_checkpoint(train(tiny(*overrides))["run"] + "/checkpoints/last.ckpt")
        data = module_data(tiny)
        vectors = torch.nn.functional.normalize(module.eval().embed(data.normalise(data.train_split.images)), dim=1)
        same = data.train_split.targets[:, None] == data.train_split.targets
        cosines = vectors @ vectors.T
        return (cosines[same].mean() - cosines[~same].mean()).item()

    assert kinship("embedding_loss=contrastive", "embedding_loss.weight=2") > kinship() + 0.1


def module_data(tiny):
    from fashion_cnn.training import build

    return build.data(tiny())


def test_mixed_images_and_wrong_settings_are_refused(tiny):
    with pytest.raises(InstantiationException, match="embedding_loss and mixing do not go together"):
        train(tiny("embedding_loss=contrastive", "mixing=cutmix"))
    with pytest.raises(UserError, match="temperature=0"):
        SupervisedContrastive(temperature=0)
    with pytest.raises(UserError, match="Ensemble has no embedding while it trains"):
        train(tiny("embedding_loss=contrastive", "model=ensemble", "model.network.members=2"))
