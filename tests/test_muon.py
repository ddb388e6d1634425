"""The Muon optimizer beside AdamW."""

import copy

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from fashion_cnn.models import optim
from fashion_cnn.models.optim import Muon, orthogonalise

SETTINGS = {"lr": 0.02, "momentum": 0.9, "other_lr": 0.01, "betas": (0.9, 0.95), "weight_decay": 0.0}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))


def step(net: nn.Module, optimizer: torch.optim.Optimizer) -> float:
    torch.manual_seed(1)
    images, targets = torch.randn(32, 1, 8, 8), torch.randint(3, (32,))
    loss = nn.functional.cross_entropy(net(images), targets)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


@pytest.mark.parametrize("shape", [(8, 40), (40, 8), (16, 16)])
def test_orthogonalise_keeps_singular_vectors_and_brings_values_near_one(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    left, _, right = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    before = torch.linspace(1, 0.2, min(shape))
    (matrix,) = orthogonalise((left @ torch.diag(before) @ right)[None])
    values = left.T @ matrix @ right.T
    assert values.diagonal().min() > 0.5
    assert values.diagonal().max() < 1.4
    assert (values - torch.diag(values.diagonal())).abs().max() < 0.1


@pytest.mark.parametrize("has_bfloat16", [True, False])
def test_orthogonalise_computes_in_the_fast_format_of_the_machine(
    has_bfloat16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optim, "computes_in_bfloat16", lambda device_type: has_bfloat16)
    torch.manual_seed(0)
    result = orthogonalise(torch.randn(1, 8, 16))
    assert result.dtype == torch.float32
    assert torch.equal(result, result.bfloat16().float()) == has_bfloat16


def test_the_step_size_of_filters_does_not_depend_on_the_gradient_size() -> None:
    changes = []
    for scale in (1.0, 1024.0):
        net = network()
        filters = net[0].weight
        before = filters.detach().clone()
        filters.grad = torch.randn(filters.shape, generator=torch.Generator().manual_seed(2)) * scale
        Muon([{"params": [filters]}], **SETTINGS).step()
        changes.append((filters - before).detach())
    assert torch.allclose(*changes, atol=1e-4)
    assert torch.linalg.matrix_norm(changes[0].flatten(1), 2) == pytest.approx(0.02, rel=0.3)


def test_filters_of_one_shape_are_updated_independently() -> None:
    torch.manual_seed(0)
    together = [nn.Parameter(torch.randn(shape)) for shape in [(8, 4, 3, 3), (4, 8, 3, 3), (8, 4, 3, 3)]]
    alone = copy.deepcopy(together)
    for actual, expected in zip(together, alone, strict=True):
        actual.grad = torch.randn_like(actual)
        expected.grad = actual.grad.clone()
        Muon([{"params": [expected]}], **SETTINGS).step()
    Muon([{"params": together}], **SETTINGS).step()
    assert all(torch.allclose(*pair, atol=1e-3) for pair in zip(together, alone, strict=True))


def test_other_parameters_are_updated_as_by_adamw() -> None:
    actual, expected = network(), network()
    for net in (actual, expected):
        net[0].requires_grad_(False)
    step(actual, Muon([{"params": list(actual.parameters()), "weight_decay": 0.1}], **SETTINGS))
    step(expected, torch.optim.AdamW(expected.parameters(), lr=0.01, betas=(0.9, 0.95), weight_decay=0.1))
    assert torch.allclose(actual[3].weight, expected[3].weight, atol=1e-6)


def test_a_schedule_applies_to_filters_and_other_parameters() -> None:
    net = network()
    optimizer = Muon([{"params": list(net.parameters())}], **SETTINGS)
    schedule = LambdaLR(optimizer, lambda count: 1.0 if count == 0 else 0.0)
    step(net, optimizer)
    schedule.step()
    before = [parameter.detach().clone() for parameter in net.parameters()]
    step(net, optimizer)
    assert all(torch.equal(*pair) for pair in zip(before, net.parameters(), strict=True))


def test_a_copied_optimizer_and_an_added_group_are_stepped() -> None:
    net = network()
    optimizer = copy.deepcopy(Muon([{"params": [net[0].weight]}], **SETTINGS))
    optimizer.step()
    optimizer = Muon([{"params": [net[0].weight]}], **SETTINGS)
    optimizer.add_param_group({"params": list(net[3].parameters())})
    before = net[3].weight.detach().clone()
    step(net, optimizer)
    assert not torch.equal(before, net[3].weight)


def test_a_restored_state_continues_the_training() -> None:
    nets = network(), network()
    optimizers = [Muon([{"params": list(net.parameters())}], **SETTINGS) for net in nets]
    for _ in range(3):
        step(nets[0], optimizers[0])
    nets[1].load_state_dict(nets[0].state_dict())
    optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
    losses = [[step(net, optimizer) for _ in range(3)] for net, optimizer in zip(nets, optimizers, strict=True)]
    assert losses[0] == losses[1]
    assert losses[0][-1] < losses[0][0]


def test_scaled_gradients_are_unscaled_before_a_step_and_skipped_on_overflow() -> None:
    plain, scaled = network(), network()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    for net, scale in ((plain, False), (scaled, True)):
        groups = [{"params": list(net.parameters())}]
        optimizer = Muon(groups, **SETTINGS)
        torch.manual_seed(1)
        images, targets = torch.randn(32, 1, 8, 8), torch.randint(3, (32,))
        loss = nn.functional.cross_entropy(net(images), targets)
        if not scale:
            loss.backward()
            optimizer.step()
            continue
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        for actual, expected in zip(scaled.parameters(), plain.parameters(), strict=True):
            assert torch.allclose(actual, expected, atol=1e-5)
        before = copy.deepcopy(scaled.state_dict())
        for parameter in scaled.parameters():
            parameter.grad = torch.full_like(parameter, torch.inf)
        scaler.step(optimizer)
        assert all(torch.equal(before[name], value) for name, value in scaled.state_dict().items())


def test_the_direction_is_nesterovs_look_ahead_of_averaged_gradients() -> None:
    generator = torch.Generator().manual_seed(0)
    filters = nn.Parameter(torch.zeros(4, 2, 3, 3))
    optimizer = Muon([{"params": [filters]}], **SETTINGS)
    expected, momentum = torch.zeros(4, 18), torch.zeros(4, 18)
    for _ in range(3):
        gradient = torch.randn(4, 18, generator=generator)
        filters.grad = gradient.view(4, 2, 3, 3)
        optimizer.step()
        momentum = 0.9 * momentum + 0.1 * gradient
        expected -= 0.02 * orthogonalise((0.1 * gradient + 0.9 * momentum)[None])[0]
    assert torch.allclose(filters.detach().flatten(1), expected, atol=1e-4)
