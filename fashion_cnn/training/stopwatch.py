"""How long the training took, over all the sittings of a resumed run."""

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class Stopwatch(Callback):
    """Counts the seconds of all finished epochs, and the images and seconds of their training part alone."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.training_seconds = 0.0
        self.training_images = 0
        self.epoch_images_per_second = 0.0
        self._epoch_started = self._validation_started = self._epoch_validating = 0.0
        self._epoch_images = 0

    @classmethod
    def of(cls, trainer: Trainer) -> "Stopwatch":
        """The one that runs in this training."""
        return next(callback for callback in trainer.callbacks if isinstance(callback, cls))  # type: ignore[attr-defined]

    @property
    def images_per_second(self) -> float:
        """Of the training steps, validation left out."""
        return self.training_images / self.training_seconds if self.training_seconds else 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._epoch_started = time.perf_counter()
        self._epoch_validating = 0.0
        self._epoch_images = 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._epoch_images += len(batch.targets) * trainer.world_size

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validation_started = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._epoch_validating += time.perf_counter() - self._validation_started

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        now = time.perf_counter()
        trained = now - self._epoch_started - self._epoch_validating
        self.epoch_images_per_second = self._epoch_images / trained
        self.seconds += now - self._epoch_started
        self.training_seconds += trained
        self.training_images += self._epoch_images

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("seconds", "training_seconds", "training_images")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        vars(self).update(state_dict)
