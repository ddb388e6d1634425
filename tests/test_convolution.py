"""The convolution that packs images for the matrix units of AMX, against torch's."""

import pytest
import torch
from torch import nn

from fashion_cnn.models import convolution
from fashion_cnn.models.convolution import AMXConv2d, images_per_row, packed_weight_gradient
from fashion_cnn.models.hardware import computes_in_bfloat16


def gradients(layer, images, dtype):
    images = images.clone().requires_grad_()
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        output = layer(images)
    parameters = [images, *layer.parameters()]
    weights = torch.arange(output[0].numel()).view(output[0].shape).sin()
    return output.detach(), torch.autograd.grad((output.float() * weights).sum(), parameters)


@pytest.mark.parametrize(("batch", "size", "packed"), [(24, 7, 8), (32, 3, 16), (24, 3, 8), (8, (9, 5), 8)])
def test_the_weight_gradient_of_packed_images_is_that_of_torch(batch, size, packed):
    height, width = size if isinstance(size, tuple) else (size, size)
    torch.manual_seed(0)
    images, weight = torch.randn(batch, 32, height, width), torch.randn(48, 32, 3, 3, requires_grad=True)
    gradient = torch.randn(batch, 48, height, width)
    (expected,) = torch.autograd.grad(torch.conv2d(images, weight, padding=1), weight, gradient)
    assert images_per_row(images.shape, weight.shape) == packed
    torch.testing.assert_close(packed_weight_gradient(gradient, images, weight), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("images", "weight", "reason"),
    [
        ((8, 32, 14, 14), (32, 32, 3, 3), "rows that are long enough"),
        ((8, 16, 7, 7), (32, 16, 3, 3), "too few channels"),
        ((12, 32, 7, 7), (32, 32, 3, 3), "a batch that cannot be divided"),
    ],
)
def test_images_are_not_packed_where_it_saves_nothing(images, weight, reason):
    assert images_per_row(torch.Size(images), torch.Size(weight)) == 1, reason


@pytest.mark.skipif(not computes_in_bfloat16("cpu"), reason="bfloat16 is emulated here, and slow")
@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_trains_with_amx_as_torchs_layer_does(bias, monkeypatch):
    packed = []
    pack = convolution.packed_weight_gradient
    monkeypatch.setattr(convolution, "packed_weight_gradient", lambda *args: packed.append(1) or pack(*args))
    monkeypatch.setattr(convolution, "has_amx", lambda: True)
    torch.manual_seed(0)
    layer = AMXConv2d(32, 64, bias=bias)
    reference = nn.Conv2d(32, 64, 3, padding=1, bias=bias)
    reference.load_state_dict(layer.state_dict())
    images = torch.randn(16, 32, 7, 7).to(memory_format=torch.channels_last)
    output, values = gradients(layer, images, torch.bfloat16)
    expected_output, expected_values = gradients(reference, images, torch.bfloat16)
    torch.testing.assert_close(output, expected_output)
    for value, expected in zip(values, expected_values, strict=True):
        assert value.dtype == expected.dtype
        assert (value - expected).norm() < 0.01 * expected.norm()
    assert packed


@pytest.mark.parametrize("amx", [True, False])
def test_in_float32_and_in_evaluation_the_layer_is_torchs(amx, monkeypatch):
    monkeypatch.setattr(convolution, "has_amx", lambda: amx)
    monkeypatch.setattr(convolution, "packed_weight_gradient", None)  # A call would fail.
    layer, images = AMXConv2d(32, 32), torch.randn(8, 32, 7, 7)
    reference = nn.Conv2d(32, 32, 3, padding=1)
    reference.load_state_dict(layer.state_dict())
    output, values = gradients(layer, images, torch.float32)
    expected_output, expected_values = gradients(reference, images, torch.float32)
    assert torch.equal(output, expected_output)
    assert all(map(torch.equal, values, expected_values))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(images), reference(images))
