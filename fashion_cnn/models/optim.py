"""Optimizers and learning rate schedules.

Muon is momentum whose direction is made orthogonal, for the filters of convolutions; all else is trained by AdamW.

Each schedule takes an optimizer, whose own learning rate is the peak, and `total_steps`, which is known when the
training starts, and returns a torch scheduler to be stepped once a batch.
"""

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LinearLR, LRScheduler, OneCycleLR, SequentialLR

from fashion_cnn.errors import UserError

# Of the quintic iteration: five steps bring all but tiny singular values near 1.
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


class Muon(AdamW):
    """Muon on the filters of convolutions, each flattened to a matrix, and AdamW on the other parameters.

    Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024 (torch.optim.Muon takes
    matrices only).

    lr, momentum: of the filters; a step moves all directions of a filter by about `lr`, whatever the gradient's size.
    other_lr, betas: of the rest. weight_decay: of both, times the learning rate; one of the group's own goes first.
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
        # AdamW's fused step takes scaled gradients, that of the filters does not: the scaler is to undo it before.
        self._step_supports_amp_scaling = False

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Take a group in as two: its filters, and the rest of it."""
        for is_filter, settings in self._settings.items():
            members = [parameter for parameter in param_group["params"] if (parameter.ndim == 4) == is_filter]
            super().add_param_group({**param_group, "params": members, "filters": is_filter, **settings})

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step; `closure` computes the loss anew, and is what Lightning gives."""
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
    alike: dict[torch.Size, list[Parameter]] = {}
    for filters in group["params"]:
        if filters.grad is not None:
            alike.setdefault(filters.shape, []).append(filters)
    for members in alike.values():
        # One product for all of a shape: of a deep network, a GPU would else wait for its host at every step.
        directions = torch.stack([_direction(each, states[each], group["momentum"]).flatten(1) for each in members])
        scale = max(1.0, directions.shape[1] / directions.shape[2]) ** 0.5
        for filters, update in zip(members, orthogonalise(directions), strict=True):
            filters.mul_(1 - group["lr"] * group["weight_decay"])
            filters.add_(update.view_as(filters), alpha=-group["lr"] * scale)


def _direction(filters: Parameter, state: dict[str, Any], momentum: float) -> Tensor:
    """Take the gradient into the momentum; where both point, of the filters' shape."""
    assert filters.grad is not None
    if "momentum" not in state:
        # AdamW, whose state this is too, looks for a count of the steps in it.
        state.update(momentum=torch.zeros_like(filters), step=torch.tensor(0.0))
    state["step"] += 1
    state["momentum"].lerp_(filters.grad, 1 - momentum)
    # Nesterov's look ahead.
    return filters.grad.lerp(state["momentum"], momentum)


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """Matrices `(B, M, N)` with the same singular vectors and all but tiny singular values brought near 1.

    By Newton and Schulz's iteration, in bfloat16, which is as fine as an update needs.
    """
    a, b, c = _NEWTON_SCHULZ
    wide = matrices.bfloat16()
    tall = wide.shape[1] > wide.shape[2]
    wide = wide.mT if tall else wide
    wide = wide / (torch.linalg.matrix_norm(wide, keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = wide @ wide.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        wide = torch.baddbmm(wide, polynomial, wide, beta=a)
    return (wide.mT if tall else wide).to(matrices.dtype)


def one_cycle(
    optimizer: Optimizer, total_steps: int, *, warmup: float, start_factor: float, final_factor: float
) -> LRScheduler:
    """Rise from `start_factor` to the peak over the share `warmup` of all steps, then fall to `final_factor`.

    Both legs are half cosines; the factors are shares of the peak. Smith and Topin, "Super-Convergence",
    2017 (arXiv 1708.07120), with the momentum left alone.
    """
    _check_warmup(warmup)
    if start_factor <= 0 or final_factor <= 0:
        raise UserError(
            f"schedule.start_factor={start_factor} and schedule.final_factor={final_factor} are shares of the peak: "
            "give numbers above 0."
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
    """A linear rise over the share `warmup` of all steps, then half a cosine down to nothing.

    Loshchilov and Hutter, "SGDR", 2016 (arXiv 1608.03983), without restarts.
    """
    _check_warmup(warmup)
    rising = round(warmup * total_steps)
    falling = CosineAnnealingLR(optimizer, T_max=max(total_steps - rising, 1))
    if not rising:
        return falling
    return SequentialLR(
        optimizer, [LinearLR(optimizer, 1 / (rising + 1), total_iters=rising), falling], milestones=[rising]
    )


def linear(optimizer: Optimizer, total_steps: int, *, warmup: float) -> LRScheduler:
    """A straight rise over the share `warmup` of all steps, then straight down to nothing."""
    _check_warmup(warmup)
    rising = round(warmup * total_steps)

    def share_of_peak(step: int) -> float:
        return min((step + 1) / (rising + 1), (total_steps - step) / max(total_steps - rising, 1))

    return LambdaLR(optimizer, share_of_peak)


def constant(optimizer: Optimizer, total_steps: int) -> LRScheduler:
    """The optimizer's own learning rate throughout."""
    return LambdaLR(optimizer, lambda step: 1.0)


def _check_warmup(share: float) -> None:
    if not 0 <= share <= 1:
        raise UserError(f"schedule.warmup={share} is not possible: give a share of all steps, from 0 to 1.")
