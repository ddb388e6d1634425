"""CutMix and MixUp."""

import pytest
import torch

from fashion_cnn.data import Batch
from fashion_cnn.errors import UserError
from fashion_cnn.models import CutMix, ImageClassifier, MixUp, ResNet

COUNT = 400


@pytest.fixture
def batch():
    """Uniform images of different grey levels, and one-hot labels."""
    torch.manual_seed(0)
    images = torch.arange(1.0, COUNT + 1)[:, None, None, None].expand(-1, 2, 8, 12)
    return images, torch.nn.functional.one_hot(torch.arange(COUNT) % 10, 10).float()


@pytest.mark.parametrize("mix", [CutMix(p=1.0), MixUp(p=1.0, alpha=1.0)])
def test_labels_are_mixed_in_the_proportion_of_the_pixels(batch, mix):
    images, probabilities = batch
    mixed, mixed_probabilities, mix_lambda = mix(images, probabilities)
    assert mixed.shape == images.shape
    torch.testing.assert_close(mixed_probabilities.sum(1), torch.ones(COUNT))
    image, partner = images[1:, 0, 0, 0], images[:-1, 0, 0, 0]
    # The partner's share of the mean grey level must equal its share of the label.
    share = (mixed[1:].mean(dim=(1, 2, 3)) - image) / (partner - image)
    expected = (1 - share)[:, None] * probabilities[1:] + share[:, None] * probabilities[:-1]
    torch.testing.assert_close(mixed_probabilities[1:], expected, atol=1e-3, rtol=0)
    torch.testing.assert_close(mix_lambda[1:], 1 - share, atol=1e-3, rtol=0)
    assert 0.05 < share.mean() < 0.6
    assert share.std() > 0.05


def test_cutmix_pastes_one_rectangle_in_all_channels(batch):
    images, probabilities = batch
    mixed, _, _ = CutMix(p=1.0)(images, probabilities)
    pasted = mixed != images
    assert pasted.any()
    assert (pasted[:, 0] == pasted[:, 1]).all()
    rows, columns = pasted[:, 0].any(2), pasted[:, 0].any(1)
    assert (pasted[:, 0] == rows[:, :, None] & columns[:, None, :]).all()
    for sides in (rows, columns):
        starts = torch.nn.functional.pad(sides.float(), (1, 0)).diff(dim=1) > 0
        assert (starts.sum(1) <= 1).all(), "the pasted rows and columns must be contiguous"


@pytest.mark.parametrize("mix", [CutMix, MixUp])
def test_images_are_mixed_with_probability_p(batch, mix):
    images, probabilities = batch
    mixed, _, _ = mix(p=0.25, alpha=1)(images, probabilities)
    assert 0.15 < (mixed != images).flatten(1).any(1).float().mean() < 0.35
    unmixed, same, mix_lambda = mix(p=0.0)(images, probabilities)
    assert unmixed.equal(images)
    assert same.equal(probabilities)
    assert (mix_lambda == 1).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("mix", [CutMix(p=1.0), MixUp()])
def test_images_of_true_half_and_double_precision_are_mixed(batch, mix, dtype):
    images, probabilities = batch
    # Lightning makes the dtype of the images the default one in a training step.
    torch.set_default_dtype(dtype)
    try:
        mixed, mixed_probabilities, mix_lambda = mix(images.to(dtype), probabilities)
    finally:
        torch.set_default_dtype(torch.float32)
    assert (mixed.dtype, mixed_probabilities.dtype, mix_lambda.dtype) == (dtype, torch.float32, torch.float32)
    torch.testing.assert_close(mixed_probabilities.sum(1), torch.ones(COUNT))


@pytest.mark.parametrize("mix", [CutMix, MixUp])
@pytest.mark.parametrize(("settings", "message"), [({"p": 1.5}, "p=1.5"), ({"alpha": 0}, "mixing.alpha=0")])
def test_an_impossible_probability_or_alpha_is_refused(mix, settings, message):
    with pytest.raises(UserError, match=message):
        mix(**settings)


def test_the_loss_uses_mixed_labels_and_the_running_accuracy_the_original_ones():
    def swapped(images, probabilities):
        return images.roll(1, 0), probabilities.roll(1, 0), torch.zeros(len(images))

    torch.manual_seed(0)
    network = ResNet(in_channels=1, num_classes=4, stem=[8], widths=[8], depths=[0])
    modules = [
        ImageClassifier(network=network, image_shape=(1, 12, 12), num_classes=4, mixing=mixing, label_smoothing=0.1)
        for mixing in (swapped, None)
    ]
    batch = Batch(torch.rand(4, 1, 12, 12), torch.arange(4), torch.arange(4))
    mixed, plain = [module.training_step(batch, 0) for module in modules]
    torch.testing.assert_close(mixed["loss"], plain["loss"])
    assert mixed["mix_lambda"].tolist() == [0, 0, 0, 0]
    assert "mix_lambda" not in plain
    running, running_plain = [module.running.compute_and_reset()["accuracy"].item() for module in modules]
    assert running == (mixed["logits"].argmax(1) == batch.targets).float().mean().item()
    assert running_plain == (plain["logits"].argmax(1) == batch.targets).float().mean().item()


def test_lambda_counts_a_partner_of_the_same_class_as_another_image():
    network = ResNet(in_channels=1, num_classes=4, stem=[8], widths=[8], depths=[0])
    module = ImageClassifier(network=network, image_shape=(1, 12, 12), num_classes=4, mixing=CutMix(p=1.0))
    torch.manual_seed(0)
    images = torch.arange(64.0).view(64, 1, 1, 1).expand(64, 1, 12, 12)
    batch = Batch(images, torch.zeros(64, dtype=torch.long), torch.arange(64))
    mix_lambda = module.training_step(batch, 0)["mix_lambda"]
    assert (mix_lambda < 0.9).float().mean() > 0.5
