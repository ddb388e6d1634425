"""Effect of each corruption, and the same corrupted images for every network."""

import math
from itertools import pairwise

import pytest
import torch
from torchvision.datasets import FashionMNIST
from torchvision.transforms import functional as torchvision_functional
from torchvision.transforms.functional import InterpolationMode

from fashion_cnn.errors import UserError
from fashion_cnn.evaluation import corruptions
from fashion_cnn.evaluation.corruptions import CORRUPTIONS, SEVERITIES, corrupt

# Corruptions without random draws.
FIXED = {"gaussian_blur", "brightness", "contrast", "scale"}


@pytest.fixture
def images():
    """Grey levels clear of black and white, `(50, 2, 20, 28)` in [0, 1]."""
    return 0.2 + 0.6 * torch.rand(50, 2, 20, 28, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def as_stored(images):
    return (images * 255).round().to(torch.uint8)


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("severity", [1, 5])
def test_shape_type_and_range_stay_and_every_image_changes(images, name, severity, generator):
    corrupted = CORRUPTIONS[name](images, severity, generator)
    assert corrupted.shape == images.shape
    assert corrupted.dtype == torch.float32
    assert 0 <= corrupted.min() <= corrupted.max() <= 1
    assert (corrupted != images).flatten(1).any(1).all()
    assert corrupt(as_stored(images), name, severity).dtype == torch.uint8


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_the_seed_determines_all_random_draws(images, name):
    stored = as_stored(images)
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    first = corrupt(stored, name, 3, seed=7)
    assert torch.rand(1) == expected, "the global generator is left alone"
    assert corrupt(stored, name, 3, seed=7).equal(first)
    assert corrupt(stored, name, 3, seed=8).equal(first) == (name in FIXED)


@pytest.mark.parametrize("name", sorted(CORRUPTIONS.keys() - FIXED))
def test_images_have_independent_draws(name):
    same = torch.randint(256, (1, 1, 28, 28), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert len(corrupt(same.expand(40, 1, 28, 28), name, 3).unique(dim=0)) > 1


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_stronger_severity_changes_real_images_more(fashion_mnist_root, name):
    real = FashionMNIST(fashion_mnist_root, train=False).data[:300, None]
    changes = [(corrupt(real, name, severity).float() - real).abs().mean() for severity in SEVERITIES]
    assert changes[0] > 1
    assert all(1.05 * weaker < stronger for weaker, stronger in pairwise(changes))


def test_images_of_several_chunks_stay_in_order():
    shades = (torch.arange(2100) % 200).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 4, 4)
    assert corrupt(shades, "brightness", 2).equal(shades + 51)


@pytest.mark.parametrize(
    ("function", "strength", "options"),
    [
        (corruptions.rotation, 30, {"angle": 30, "shear": [0.0, 0.0]}),
        (corruptions.shear, math.tan(math.radians(30)), {"angle": 0, "shear": [30.0, 0.0]}),
    ],
)
def test_rotation_and_shear_equal_torchvisions_in_either_direction(images, generator, function, strength, options):
    warped = function(images[..., :20], strength, generator)
    common = {"translate": [0, 0], "scale": 1.0, "interpolation": InterpolationMode.BILINEAR}
    matches = torch.zeros(2, len(images), dtype=torch.bool)
    for direction, sign in enumerate((-1, 1)):
        angle, shear = sign * options["angle"], [sign * part for part in options["shear"]]
        expected = torchvision_functional.affine(images[..., :20], angle=angle, shear=shear, **common)
        matches[direction] = torch.isclose(expected, warped, atol=1e-4).flatten(1).all(1)
    assert (matches.sum(0) == 1).all()
    assert matches.any(1).all(), "both directions occur"


def test_rotation_keeps_proportions_in_a_wide_image(generator):
    image = torch.zeros(8, 1, 21, 41)
    image[:, :, 10, 13:28] = 1  # A line of 15 pixels through the centre.
    rotated = corruptions.rotation(image, 90, generator)
    assert torch.allclose(rotated[:, :, 3:18, 20], torch.ones(15), atol=1e-4)
    assert torch.allclose(rotated.sum((1, 2, 3)), torch.tensor(15.0), atol=1e-3)


def test_scale_centres_the_smaller_image(images, generator):
    expected = torch.zeros_like(images)
    expected[:, :, 5:15, 7:21] = torch.nn.functional.avg_pool2d(images, 2)
    assert torch.allclose(corruptions.scale(images, 0.5, generator), expected, atol=1e-5)


def test_translation_moves_by_whole_pixels_and_the_given_distance(generator):
    points = torch.zeros(200, 1, 41, 41)
    points[:, :, 20, 20] = 1
    moved = corruptions.translation(points, 8 / 41, generator)
    positions = moved[:, 0].round(decimals=3).nonzero()
    assert (moved.round(decimals=3)[moved > 0.001] == 1).all()
    assert len(positions) == 200
    offsets = (positions[:, 1:] - 20).float()
    assert (offsets.norm(dim=1) - 8).abs().max() <= 0.5**0.5
    assert (offsets.mean(0).abs() < 1.5).all(), "in all directions"


def test_gaussian_blur_equals_torchvisions(images, generator):
    sigma = 0.05 * 20
    blurred = corruptions.gaussian_blur(images, 0.05, generator)
    expected = torchvision_functional.gaussian_blur(images, [9, 9], [sigma, sigma])
    inside = (..., slice(4, -4), slice(4, -4))
    assert torch.allclose(blurred[inside], expected[inside], atol=1e-6)


def test_motion_blur_spreads_a_point_evenly_along_a_line(generator):
    points = torch.zeros(30, 2, 41, 41)
    points[:, 0, 20, 20] = 1
    points[:, 1, 20, 20] = 0.5
    blurred = corruptions.motion_blur(points, 10 / 41, generator)
    assert torch.allclose(blurred[:, 0], 2 * blurred[:, 1], atol=1e-6), "the same in all channels"
    assert torch.allclose(blurred[:, 0].sum((1, 2)), torch.tensor(1.0), atol=1e-5)
    offsets = torch.stack(torch.meshgrid(torch.arange(41.0), torch.arange(41.0), indexing="ij")) - 20
    spread = torch.einsum("byx,iyx,jyx->bij", blurred[:, 0], offsets, offsets)
    across, along = torch.linalg.eigvalsh(spread).unbind(1)
    # The variance of a uniform line is length² / 12; interpolation adds at most a quarter of a pixel's in x and in y.
    assert (along - 100 / 12).abs().max() < 0.8
    assert across.max() < 0.26


def test_shot_noise_keeps_the_mean_and_has_poisson_variance(generator):
    noisy = corruptions.shot_noise(torch.full((100, 1, 50, 50), 0.4), 20, generator)
    assert noisy.mean() == pytest.approx(0.4, abs=0.002)
    assert noisy.var() == pytest.approx(0.4 / 20, rel=0.02)
    assert corruptions.shot_noise(torch.zeros(1, 1, 5, 5), 20, generator).eq(0).all()


def test_impulse_noise_sets_its_fraction_to_black_and_white(generator):
    noisy = corruptions.impulse_noise(torch.full((100, 1, 50, 50), 0.4), 0.2, generator)
    assert noisy.eq(0).float().mean() == pytest.approx(0.1, abs=0.003)
    assert noisy.eq(1).float().mean() == pytest.approx(0.1, abs=0.003)
    assert noisy.eq(0.4).float().mean() == pytest.approx(0.8, abs=0.003)


def test_contrast_keeps_channel_means_and_scales_standard_deviations(images, generator):
    narrowed = corruptions.contrast(images, 0.3, generator)
    assert torch.allclose(narrowed.mean((2, 3)), images.mean((2, 3)), atol=1e-6)
    assert torch.allclose(narrowed.std((2, 3)), 0.3 * images.std((2, 3)), atol=1e-6)


def test_inversion_covers_its_fraction_from_each_of_the_four_edges(images, generator):
    inverted = corruptions.inversion(images, 0.25, generator)
    negative = torch.isclose(inverted, 1 - images).all(1)
    assert (negative | (inverted == images).all(1)).all()
    assert (negative.float().mean((1, 2)) - 0.25).abs().max() < 0.001
    edges = torch.stack([negative[:, 0], negative[:, -1]]).all(2)
    sides = torch.stack([negative[..., 0], negative[..., -1]]).all(2)
    assert edges.any(1).all()
    assert sides.any(1).all()
    assert torch.allclose(corruptions.inversion(images, 1.0, generator), 1 - images)


def test_erasing_covers_its_fraction_by_one_rectangle_in_the_image(images, generator):
    covered = (corruptions.erasing(images, 0.2, generator) != images).any(1)
    full = covered.any(2)[:, :, None] & covered.any(1)[:, None, :]
    assert (covered == full).float().mean() > 0.999, "except for pixels that were grey before"
    assert (full.float().mean((1, 2)) - 0.2).abs().max() < 0.06, "up to half a pixel on each side"
    assert full.float().mean() == pytest.approx(0.2, abs=0.01)


@pytest.mark.parametrize(
    ("name", "severity", "message"),
    [
        ("fog", 1, "no corruption 'fog'.*shot_noise, impulse_noise"),
        ("scale", 0, "severity=0"),
        ("scale", 6, "severity=6"),
    ],
)
def test_unknown_corruptions_and_severities_are_rejected(images, name, severity, message):
    with pytest.raises(UserError, match=message):
        corrupt(as_stored(images), name, severity)
