"""Augmentations of shape, colour and sharpness."""

import pytest
import torch
from torch.nn import functional

from fashion_cnn.data import RandomAffine, RandomBlur, RandomColour
from fashion_cnn.errors import UserError


@pytest.fixture
def images():
    torch.manual_seed(0)
    return torch.randint(0, 256, (300, 3, 16, 16), dtype=torch.uint8)


@pytest.mark.parametrize("augment", [RandomAffine(), RandomColour(negative=0.5, shuffle=0.5), RandomBlur(1.0)])
def test_augmentations_repeat_with_the_seed_and_keep_the_range_of_pixels(images, augment):
    torch.manual_seed(1)
    first = augment(images)
    torch.manual_seed(1)
    assert first.equal(augment(images))
    assert first.shape == images.shape
    assert first.min() >= 0
    assert first.max() <= 255
    assert (first != images).flatten(1).any(dim=1).float().mean() > 0.9


def a_dot(side=33):
    """A bright dot, two thirds of the way from the middle to the right edge."""
    images = torch.zeros(400, 1, side, side)
    images[:, :, side // 2, side // 2 + side // 3] = 255
    return functional.avg_pool2d(images, 3, stride=1, padding=1)


def centres(images):
    """The centre of mass of each image, from the middle, in pixels: x and y."""
    mass = images[:, 0] / images[:, 0].sum(dim=(1, 2), keepdim=True)
    places = torch.arange(images.shape[-1]) - images.shape[-1] // 2
    return (mass.sum(dim=1) * places).sum(dim=1), (mass.sum(dim=2) * places).sum(dim=1)


def test_affine_rotates_scales_and_shifts_within_its_bounds():
    torch.manual_seed(0)
    still = {"degrees": 0, "scale": (1, 1), "shear": 0, "shift": 0}
    dots = a_dot()
    x, y = centres(RandomAffine(**still)(dots))
    assert x.allclose(torch.tensor(11.0), atol=0.01)
    assert y.allclose(torch.tensor(0.0), atol=0.01)
    x, y = centres(RandomAffine(**still | {"degrees": 30})(dots))
    angles = torch.rad2deg(torch.atan2(y, x))
    assert (x.square() + y.square()).sqrt().allclose(torch.tensor(11.0), atol=0.3)
    assert 28 < angles.max() < 31
    assert -31 < angles.min() < -28
    x, _ = centres(RandomAffine(**still | {"scale": (0.5, 1.25)})(dots))
    assert 5.3 < x.min() < 6
    assert 13 < x.max() < 14
    x, y = centres(RandomAffine(**still | {"shift": 0.1})(dots))
    assert 3 < (x - 11).abs().max() < 3.5
    assert 3 < y.abs().max() < 3.5
    moved = (RandomAffine(p=0.25)(dots) != dots).flatten(1).any(dim=1)
    assert 0.15 < moved.float().mean() < 0.35


def test_colour_negates_permutes_and_dims_as_often_as_set(images):
    plain = {"gain": 0, "shift": 0, "contrast": 0}
    pixels = images.float()
    assert RandomColour(**plain)(images).allclose(pixels, atol=1e-3)
    negated = RandomColour(**plain, negative=0.25)(images)
    is_negated = (negated - (255 - pixels)).abs().flatten(1).amax(dim=1) < 0.01
    assert 0.15 < is_negated.float().mean() < 0.35
    shuffled = RandomColour(**plain, shuffle=1.0)(images)
    assert shuffled.sort(dim=1).values.allclose(pixels.sort(dim=1).values, atol=1e-3)
    # One of six orders leaves the channels where they are.
    assert (shuffled - pixels).abs().flatten(1).amax(dim=1).gt(0.5).float().mean().item() == pytest.approx(
        5 / 6, abs=0.1
    )
    grey = torch.full((500, 3, 4, 4), 100.0)
    dimmed = RandomColour(gain=0.2, shift=0, contrast=0.5)(grey)[:, :, 0, 0]
    assert dimmed.min() == pytest.approx(80, abs=1)
    assert dimmed.max() == pytest.approx(120, abs=1)
    assert (dimmed[:, 0] != dimmed[:, 1]).all()


def test_blur_spreads_a_dot_and_keeps_its_sum():
    torch.manual_seed(0)
    dots = a_dot()
    blurred = RandomBlur(p=1.0, sigma=2.0)(dots)
    assert blurred.sum(dim=(1, 2, 3)).allclose(dots.sum(dim=(1, 2, 3)), rtol=1e-3)
    spread = blurred.amax(dim=(1, 2, 3)) / dots.amax(dim=(1, 2, 3))
    assert spread.min() < 0.4
    assert spread.max() > 0.95
    is_unchanged = (RandomBlur(p=0.25)(dots) == dots).flatten(1).all(dim=1)
    assert 0.65 < is_unchanged.float().mean() < 0.85


def test_invalid_settings_raise():
    with pytest.raises(UserError, match=r"scale=\[1.2, 0.8\]"):
        RandomAffine(scale=[1.2, 0.8])
    with pytest.raises(UserError, match="RandomAffine: p=2"):
        RandomAffine(p=2)
    with pytest.raises(UserError, match="sigma=0"):
        RandomBlur(sigma=0)
    with pytest.raises(UserError, match="RandomColour: p=-1"):
        RandomColour(negative=-1)
