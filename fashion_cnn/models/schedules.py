"""Learning rates over a training, step by step.

Each function takes an optimizer, whose own learning rate is the peak, and `total_steps`, which is
known when the training starts, and returns a torch scheduler to be stepped once a batch.
"""

from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LinearLR, LRScheduler, OneCycleLR, SequentialLR

from fashion_cnn.errors import UserError


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
