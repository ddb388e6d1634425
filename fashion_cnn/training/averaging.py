"""An exponential moving average of the weights that short trainings can use too."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from fashion_cnn.errors import UserError


class WarmedEMAWeightAveraging(WeightAveraging):
    """Lightning's weight averaging with `decay` approached as min(decay, (1 + n) / (10 + n)) at update n.

    A fixed decay of 0.999 would carry the random first weights through the first few thousand steps.
    The ramp is that of TensorFlow's ExponentialMovingAverage. Buffers (the statistics of batch
    normalisation) are averaged with the weights.
    """

    def __init__(self, decay: float) -> None:
        def average(averaged: list[Tensor], current: list[Tensor], updates: Tensor | int) -> Any:
            count = float(updates)
            # The average is made before Lightning turns the weights into trainer.precision=bf16-true or its like.
            current = [weights.to(mean.dtype) for mean, weights in zip(averaged, current, strict=True)]
            return get_ema_multi_avg_fn(min(decay, (1 + count) / (10 + count)))(averaged, current, updates)

        if not 0 <= decay < 1:
            raise UserError(f"callbacks.ema.decay={decay} is not possible: give 0 up to, but not, 1.")
        super().__init__(use_buffers=True, multi_avg_fn=average)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # Where the weights will be: Lightning calls this before it moves them there.
        self._device = trainer.strategy.root_device
        super().setup(trainer, pl_module, stage)
