"""Callbacks that collect predictions during validation and log the overfitting metrics of each epoch."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torchmetrics.utilities.distributed import gather_all_tensors

from fashion_cnn.analysis.tensorboard import dashboard_layout, tensorboard_writer
from fashion_cnn.data import Batch, ImageDataModule
from fashion_cnn.metrics.calibration import reliability_diagram
from fashion_cnn.metrics.gap import ValidationPasses, gap_by_class_metrics, gap_metrics
from fashion_cnn.metrics.predictions import Predictions
from fashion_cnn.models import split_names

# Metrics of `GapMonitor`, besides the gap of each class.
GAP_METRICS = (
    *("train/calibration_error", "val/calibration_error"),
    *(f"gap/{name}_{end}" for name in ("loss", "accuracy") for end in ("low", "high")),
)


class PredictionCollector(Callback):
    """Collects the predictions of the latest pass over each split, on every process.

    Attributes:
        predictions: the predictions by split. Flip-averaged ones, if computed, are named `<split>_flip`.
    """

    def __init__(self) -> None:
        self.predictions: dict[str, Predictions] = {}
        self._batches: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {}

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Collect the logits of a batch."""
        loaders = trainer.test_dataloaders if trainer.testing else trainer.val_dataloaders
        split = split_names(loaders)[dataloader_idx]
        for key, name in (("logits", split), ("flip_logits", f"{split}_flip")):
            if key in outputs:
                self._batches.setdefault(name, []).append((outputs[key], batch.targets, batch.indices))

    on_test_batch_end = on_validation_batch_end

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Join the batches of all processes."""
        for split, batches in self._batches.items():
            columns = [torch.cat(column) for column in zip(*batches, strict=True)]
            if trainer.world_size > 1:
                # Processes may have different numbers of rows.
                columns = [torch.cat(gather_all_tensors(column.contiguous())) for column in columns]
            logits, targets, indices = (column.cpu() for column in columns)
            order = indices.argsort()
            self.predictions[split] = Predictions(logits[order].float(), targets[order], indices[order])
        self._batches.clear()

    on_test_epoch_end = on_validation_epoch_end


class GapMonitor(PredictionCollector):
    """Logs the `overfitting_metrics` of each validation pass and lays out their charts in TensorBoard.

    The metrics are computed from the logits of the pass, without further forward passes. What each pass measured on
    each validation image is part of the checkpoints, so a resumed run includes the earlier passes.
    """

    def __init__(self) -> None:
        super().__init__()
        self._passes: dict[str, list[Tensor]] = {"epochs": [], "train_accuracy": [], "correct": [], "losses": []}

    @property
    def passes(self) -> ValidationPasses | None:
        """The passes so far over the images of the latest one; None before the first."""
        sizes = [len(correct) for correct in self._passes["correct"]]
        if not sizes:
            return None
        # A run that was resumed with another limit of its validation batches has earlier passes of another size.
        kept = [number for number, size in enumerate(sizes) if size == sizes[-1]]
        stacked = {name: torch.stack([values[number] for number in kept]) for name, values in self._passes.items()}
        return ValidationPasses(**stacked)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lay out the charts of the custom scalars."""
        writer = tensorboard_writer(trainer)
        if writer is not None and trainer.datamodule.val_size:  # type: ignore[attr-defined]
            writer.add_custom_scalars(dashboard_layout())

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the metrics of the pass."""
        super().on_validation_epoch_end(trainer, pl_module)
        if {"train", "val"} <= self.predictions.keys():
            data = trainer.datamodule  # type: ignore[attr-defined]
            metrics = overfitting_metrics(self.predictions, data)
            pl_module.log_dict(metrics, logger=False, sync_dist=trainer.world_size > 1)
            if trainer.sanity_checking:
                return
            train, val = self.predictions["train"], self.predictions["val"]
            self._passes["epochs"].append(torch.tensor(trainer.current_epoch + 1))
            self._passes["train_accuracy"].append(train.correct.double().mean())
            self._passes["correct"].append(val.correct)
            self._passes["losses"].append(val.losses.half())

    def state_dict(self) -> dict[str, Any]:
        """Return the passes for the checkpoint."""
        return {name: list(values) for name, values in self._passes.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the passes from the checkpoint; those of older versions have none."""
        for name in self._passes:
            self._passes[name] = list(state_dict.get(name, []))


def overfitting_metrics(predictions: dict[str, Predictions], data: ImageDataModule) -> dict[str, float]:
    """Compute calibration errors, bounds of the gaps, and the gap of each class, of train probe and validation."""
    train, val = predictions["train"], predictions["val"]
    metrics = {
        f"{name}/calibration_error": reliability_diagram(split).expected_calibration_error
        for name, split in (("train", train), ("val", val))
    }
    train_share = len(train) / len(data.train_split)
    return (
        metrics
        | gap_metrics(train, val, train_share, prefix="gap")
        | gap_by_class_metrics(train, val, data.class_names)
    )
