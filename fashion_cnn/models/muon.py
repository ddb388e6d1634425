"""Muon: momentum whose direction is made orthogonal, for the filters of convolutions; AdamW for all else."""

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer

# Of the quintic iteration: five steps bring every singular value to between 0.7 and 1.2.
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


class Muon(Optimizer):
    """Muon on the filters of convolutions, each flattened to a matrix, and AdamW on the other parameters.

    Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024 (torch.optim.Muon takes
    matrices only).

    lr, momentum: of the filters; a step changes a filter's outputs by about `lr`, whatever its shape.
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
        filters: list[dict[str, Any]] = []
        others: list[dict[str, Any]] = []
        for group in params:
            for is_filter, chosen in ((True, filters), (False, others)):
                members = [parameter for parameter in group["params"] if (parameter.ndim == 4) == is_filter]
                chosen.append({**group, "params": members, "filters": is_filter})
        self._adamw = AdamW(others, lr=other_lr, betas=betas, weight_decay=weight_decay, fused=True)
        # AdamW has filled in its groups with all that it wants to know of them.
        groups = filters + self._adamw.param_groups
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

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
        for group in self.param_groups:
            if group["filters"]:
                _step_filters(group, self.state)
        # State and groups are this optimizer's, so that schedules and checkpoints see those of AdamW too.
        self._adamw.state = self.state
        self._adamw.param_groups = [group for group in self.param_groups if not group["filters"]]
        self._adamw.step()
        return loss


def _step_filters(group: dict[str, Any], states: dict[Tensor, Any]) -> None:
    for filters in group["params"]:
        if filters.grad is None:
            continue
        state = states[filters]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(filters)
        state["momentum"].lerp_(filters.grad, 1 - group["momentum"])
        # Nesterov's look ahead.
        direction = filters.grad.lerp(state["momentum"], group["momentum"])
        update = orthogonalised(direction.flatten(1)).view_as(filters)
        scale = max(1.0, filters.shape[0] / filters[0].numel()) ** 0.5
        filters.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"] * scale)


def orthogonalised(matrix: Tensor, steps: int = 5) -> Tensor:
    """The matrix `(M, N)` with the same singular vectors whose singular values are all about 1 (0.7 to 1.2).

    By Newton and Schulz's iteration, in bfloat16, which is as fine as an update needs.
    """
    a, b, c = _NEWTON_SCHULZ
    wide = matrix.bfloat16()
    tall = wide.shape[0] > wide.shape[1]
    wide = wide.T if tall else wide
    wide = wide / (wide.norm() + 1e-7)
    for _ in range(steps):
        gram = wide @ wide.T
        wide = a * wide + (b * gram + c * gram @ gram) @ wide
    return (wide.T if tall else wide).to(matrix.dtype)
