"""All randomness of an epoch out of the seed and the epoch's number, so that a resumed run repeats it."""

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from fashion_cnn.data.seeding import derive_seed


class SeedEachEpoch(Callback):
    """Seeds torch's generators (augmentation, dropout) at the start of each training epoch.

    Lightning's checkpoints hold no random state; with this they need none. Each process of a
    distributed training draws its own stream.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        torch.manual_seed(derive_seed("epoch", self.seed, trainer.current_epoch, trainer.global_rank))
