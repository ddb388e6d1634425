"""Batched augmentations."""

import pytest
import torch

from fashion_cnn.data import RandomAffine, RandomCrop, RandomErasing, RandomFlip
from fashion_cnn.errors import UserError


@pytest.fixture
def images():
    torch.manual_seed(0)
    return torch.randint(1, 256, (400, 2, 9, 12), dtype=torch.uint8)


@pytest.mark.parametrize("augment", [RandomFlip(), RandomCrop(2), RandomErasing(1.0)])
def test_augmentations_keep_shape_and_dtype_and_repeat_with_the_seed(images, augment):
    torch.manual_seed(1)
    first = augment(images)
    torch.manual_seed(1)
    assert first.equal(augment(images))
    assert first.shape == images.shape
    assert first.dtype == torch.uint8
    assert not first.equal(images)


def test_flip_mirrors_whole_images_with_probability_p(images):
    flipped = RandomFlip(0.25)(images)
    mirrored = (flipped == images.flip(-1)).flatten(1).all(1)
    is_unchanged = (flipped == images).flatten(1).all(1)
    assert (mirrored ^ is_unchanged).all()
    assert 0.15 < mirrored.float().mean() < 0.35


def test_crop_shifts_each_image_independently_and_fills_the_rest(images):
    cropped = RandomCrop(1, fill=0)(images)
    padded = torch.nn.functional.pad(images, (1, 1, 1, 1))
    windows = torch.stack([padded[:, :, y : y + 9, x : x + 12] for y in range(3) for x in range(3)])
    matches = (windows == cropped).flatten(2).all(2)
    assert (matches.sum(0) == 1).all()
    assert matches.any(1).all(), "all nine offsets occur"


def test_erasing_overwrites_one_rectangle_of_the_expected_area(images):
    erased = RandomErasing(1.0, scale=(0.2, 0.2), ratio=(1.0, 1.0))(images) != images
    touched = erased.any(1)
    side = (0.2 * 9 * 12) ** 0.5
    # A rectangle whose centre is near the edge is cut off there.
    assert side - 1 <= touched.any(2).sum(1).max() <= side + 1
    assert side - 1 <= touched.any(1).sum(1).max() <= side + 1
    # Each rectangle is full, except where the noise equals the pixel (1 in 256).
    full = touched.any(2)[:, :, None] & touched.any(1)[:, None, :]
    assert touched.sum() / full.sum() > 0.98


def test_erasing_changes_images_with_probability_p(images):
    share = (RandomErasing(0.3)(images) != images).flatten(1).any(1).float().mean()
    assert 0.2 < share < 0.4


def test_a_rotation_keeps_distances_in_images_that_are_not_square():
    y, x = torch.meshgrid(torch.arange(24) - 11.5, torch.arange(48) - 23.5, indexing="ij")
    spot = 255 * torch.exp(-(x**2 + (y - 6) ** 2) / 4)
    torch.manual_seed(0)
    rotate = RandomAffine(degrees=180, scale=(1, 1), shear=0, shift=0)
    rotated = rotate(spot.expand(50, 1, 24, 48))[:, 0]
    mass = rotated.sum(dim=(1, 2))
    distances = torch.hypot((rotated * x).sum(dim=(1, 2)) / mass, (rotated * y).sum(dim=(1, 2)) / mass)
    torch.testing.assert_close(distances, torch.full((50,), 6.0), atol=0.1, rtol=0)


@pytest.mark.parametrize(
    "build",
    [
        lambda: RandomFlip(1.5),
        lambda: RandomCrop(-1),
        lambda: RandomErasing(-0.1),
        lambda: RandomErasing(scale=(0.5, 0.2)),
        lambda: RandomErasing(ratio=(0.0, 1.0)),
    ],
)
def test_invalid_settings_raise(build):
    with pytest.raises(UserError):
        build()
