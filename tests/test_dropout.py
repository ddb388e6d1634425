"""Dropout from 16 random bits an element."""

import pytest
import torch

from fashion_cnn.models.layers import Dropout


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("p", [0.25, 0.4])
def test_elements_are_dropped_with_probability_p_and_the_mean_is_kept(p, dtype):
    torch.manual_seed(0)
    outputs = Dropout(p)(torch.ones(100, 1001, dtype=dtype)).float()
    error = (p * (1 - p) / outputs.numel()) ** 0.5
    assert (outputs == 0).float().mean().item() == pytest.approx(p, abs=4 * error)
    assert outputs[outputs != 0].unique().tolist() == pytest.approx([1 / (1 - p)], rel=5e-3)


def test_neighbouring_elements_are_dropped_independently():
    torch.manual_seed(0)
    mask = (Dropout(0.5)(torch.ones(400_000)) != 0).float() - 0.5
    for distance in (1, 2, 3, 4):
        assert abs((mask[distance:] * mask[:-distance]).mean().item()) < 4 * 0.25 / 400_000**0.5


def test_dropped_elements_get_no_gradient():
    images = torch.ones(2, 3, 5, 5).to(memory_format=torch.channels_last).requires_grad_()
    outputs = Dropout(0.4)(images)
    outputs.sum().backward()
    assert torch.equal(images.grad, outputs)
    assert 0 < (outputs == 0).sum() < outputs.numel()


@pytest.mark.parametrize(("p", "training"), [(0.0, True), (0.7, False)])
def test_nothing_is_dropped_in_eval_mode_or_at_p_zero(p, training):
    images = torch.rand(4, 4)
    assert torch.equal(Dropout(p).train(training)(images), images)


def test_a_seed_repeats_the_mask_and_p_one_drops_everything():
    images = torch.rand(8, 8)
    draws = []
    for _ in range(2):
        torch.manual_seed(3)
        draws.append(Dropout(0.5)(images))
    assert torch.equal(*draws)
    assert not torch.equal(draws[0], Dropout(0.5)(images))
    assert not Dropout(1.0)(images).any()


def test_the_output_has_the_memory_layout_of_the_input_also_for_views():
    torch.manual_seed(0)
    whole = torch.ones(4, 6, 10, 10).to(memory_format=torch.channels_last)
    for images in (whole, whole[..., 2:9], whole[:1].expand(3, -1, -1, -1)):
        outputs = Dropout(0.5)(images)
        assert set(outputs.unique().tolist()) == {0, 2}
        assert 0.4 < (outputs == 0).float().mean() < 0.6
    assert Dropout(0.5)(whole).is_contiguous(memory_format=torch.channels_last)
