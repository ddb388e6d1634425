"""Optimizers and learning rate schedules.

Muon orthogonalises the momentum of convolution filters and trains all other parameters with AdamW.

A schedule is a function of an optimizer, whose learning rate is the peak, and of `total_steps`, which is known when the
training starts. It returns a torch scheduler to be stepped after each batch.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LinearLR, LRScheduler, OneCycleLR, SequentialLR

from fashion_cnn.errors import UserError
from fashion_cnn.models.hardware import computes_in_bfloat16

# Coefficients of the quintic Newton-Schulz iteration: five steps bring all but tiny singular values near 1.
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


class Muon(AdamW):
    """Muon for convolution filters, each flattened to a matrix, and AdamW for all other parameters.

    Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024
    (https://kellerjordan.github.io/posts/muon). `torch.optim.Muon` takes matrices only.

    Args:
        params: parameter groups; each is split into its filters and its other parameters.
        lr: learning rate of filters: a step moves all directions of a filter by about `lr`, whatever the size of the
            gradient.
        momentum: coefficient of the filters' momentum.
        other_lr: learning rate of the other parameters.
        betas: AdamW's coefficients for the other parameters.
        weight_decay: decay of all parameters, times the learning rate; a group's own value takes precedence.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        *,
        lr: float,
        momentum: float,
        other_lr: float,
        betas: tuple[float, float],
        weight_decay: float,
    ) -> None:
        self._settings = {True: {"lr": lr, "momentum": momentum}, False: {"lr": other_lr}}
        super().__init__(params, lr=lr, betas=betas, weight_decay=weight_decay, fused=True)
        # AdamW's fused step takes scaled gradients, the step of the filters does not: the scaler must unscale them.
        self._step_supports_amp_scaling = False

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group as two groups: its filters, and its other parameters."""
        for is_filter, settings in self._settings.items():
            members = [parameter for parameter in param_group["params"] if (parameter.ndim == 4) == is_filter]
            super().add_param_group({**param_group, "params": members, "filters": is_filter, **settings})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update all parameters.

        Args:
            closure: computes the loss and its gradients; Lightning passes one.

        Returns:
            The loss of the closure, None without one.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups = self.param_groups
        for group in groups:
            if group["filters"]:
                _step_filters(group, self.state)
        self.param_groups = [group for group in groups if not group["filters"]]
        try:
            super().step()
        finally:
            self.param_groups = groups
        return loss


def _step_filters(group: dict[str, Any], states: dict[Tensor, Any]) -> None:
    """Update the convolution filters of a parameter group in place.

    Args:
        group: the parameter group, with its learning rate, momentum and weight decay.
        states: the optimizer's state of each parameter.
    """
    by_shape: dict[torch.Size, list[Parameter]] = {}
    for filters in group["params"]:
        if filters.grad is not None:
            by_shape.setdefault(filters.shape, []).append(filters)
    for members in by_shape.values():
        # One batched product for all filters of a shape: many small ones would keep a GPU waiting for the host.
        directions = torch.stack(
            [_update_momentum(filters, states[filters], group["momentum"]).flatten(1) for filters in members]
        )
        scale = max(1.0, directions.shape[1] / directions.shape[2]) ** 0.5
        for filters, update in zip(members, orthogonalise(directions), strict=True):
            filters.mul_(1 - group["lr"] * group["weight_decay"])
            filters.add_(update.view_as(filters), alpha=-group["lr"] * scale)


def _update_momentum(filters: Parameter, state: dict[str, Any], momentum: float) -> Tensor:
    """Add the gradient to the momentum and return Nesterov's look-ahead, of the filters' shape."""
    assert filters.grad is not None
    if "momentum" not in state:
        # The state is AdamW's too, which expects a step count in it.
        state.update(momentum=torch.zeros_like(filters), step=torch.tensor(0.0))
    state["step"] += 1
    state["momentum"].lerp_(filters.grad, 1 - momentum)
    return filters.grad.lerp(state["momentum"], momentum)


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """Bring the singular values of matrices near 1 and keep their singular vectors.

    The Newton-Schulz iteration of Muon. It is computed in bfloat16, which is precise enough for an update, where the
    hardware computes in it, and in float32 elsewhere.

    Args:
        matrices: `(B, M, N)`.
        steps: number of iterations.

    Returns:
        Matrices of the same shape and dtype, with all but tiny singular values between about 0.7 and 1.2.
    """
    a, b, c = _NEWTON_SCHULZ
    wide = matrices.to(torch.bfloat16 if computes_in_bfloat16(matrices.device.type) else torch.float32)
    is_tall = wide.shape[1] > wide.shape[2]
    wide = wide.mT if is_tall else wide
    wide = wide / (torch.linalg.matrix_norm(wide, keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = wide @ wide.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        wide = torch.baddbmm(wide, polynomial, wide, beta=a)
    return (wide.mT if is_tall else wide).to(matrices.dtype)


def one_cycle(
    optimizer: Optimizer, total_steps: int, *, warmup: float, start_factor: float, final_factor: float
) -> LRScheduler:
    """Rise to the peak and fall again, each along half a cosine.

    Smith and Topin, "Super-Convergence: Very Fast Training of Neural Networks Using Large Learning Rates", 2017
    (arXiv 1708.07120), with a constant momentum.

    Args:
        optimizer: its learning rates are the peak.
        total_steps: number of training steps.
        warmup: fraction of the steps that rise, in [0, 1).
        start_factor: first learning rate as a fraction of the peak, above 0.
        final_factor: last learning rate as a fraction of the peak, above 0.

    Raises:
        UserError: if an argument is out of range.
    """
    _check_warmup(warmup)
    if warmup == 1:
        raise UserError(f"schedule.warmup={warmup} leaves no step that falls: give a fraction below 1.")
    if start_factor <= 0 or final_factor <= 0:
        raise UserError(
            f"schedule.start_factor={start_factor} and schedule.final_factor={final_factor} "
            "are fractions of the peak: give numbers above 0."
        )
    return OneCycleLR(
        optimizer,
        max_lr=[group["lr"] for group in optimizer.param_groups],
        total_steps=total_steps,
        pct_start=float(warmup),
        div_factor=1 / start_factor,
        final_div_factor=start_factor / final_factor,
        cycle_momentum=False,
    )


def cosine(optimizer: Optimizer, total_steps: int, *, warmup: float) -> LRScheduler:
    """Rise linearly to the peak, then fall to zero along half a cosine.

    Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", 2016 (arXiv 1608.03983), without
    restarts.

    Args:
        optimizer: its learning rates are the peak.
        total_steps: number of training steps.
        warmup: fraction of the steps that rise, in [0, 1].

    Raises:
        UserError: if `warmup` is out of range.
    """
    _check_warmup(warmup)
    warmup_steps = round(warmup * total_steps)
    annealing = CosineAnnealingLR(optimizer, T_max=max(total_steps - warmup_steps, 1))
    if not warmup_steps:
        return annealing
    rise = LinearLR(optimizer, 1 / (warmup_steps + 1), total_iters=warmup_steps)
    return SequentialLR(optimizer, [rise, annealing], milestones=[warmup_steps])


def linear(optimizer: Optimizer, total_steps: int, *, warmup: float) -> LRScheduler:
    """Rise linearly to the peak, then fall linearly to zero.

    Args:
        optimizer: its learning rates are the peak.
        total_steps: number of training steps.
        warmup: fraction of the steps that rise, in [0, 1].

    Raises:
        UserError: if `warmup` is out of range.
    """
    _check_warmup(warmup)
    warmup_steps = round(warmup * total_steps)

    def factor(step: int) -> float:
        return min((step + 1) / (warmup_steps + 1), (total_steps - step) / max(total_steps - warmup_steps, 1))

    return LambdaLR(optimizer, factor)


def exponential(optimizer: Optimizer, total_steps: int, *, lowest: float, highest: float) -> LRScheduler:
    """Rise by the same factor in each step.

    Args:
        optimizer: its learning rates are multiplied by the factors.
        total_steps: number of training steps.
        lowest: factor of the first step, above 0.
        highest: factor of the last step.
    """
    ratio = highest / lowest
    return LambdaLR(optimizer, lambda step: lowest * ratio ** (step / max(total_steps - 1, 1)))


def constant(optimizer: Optimizer, total_steps: int) -> LRScheduler:
    """Keep the optimizer's learning rate; `total_steps` is not used."""
    return LambdaLR(optimizer, lambda step: 1.0)


def _check_warmup(fraction: float) -> None:
    if not 0 <= fraction <= 1:
        raise UserError(f"schedule.warmup={fraction} is not possible: give a fraction of all steps, from 0 to 1.")
