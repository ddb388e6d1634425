"""The gap of each epoch, with its interval, by class, and the calibration on both sides of it."""

from lightning.pytorch import LightningModule, Trainer

from fashion_cnn.analysis.calibration import reliability
from fashion_cnn.analysis.gap import gap_by_class_figures, gap_figures
from fashion_cnn.analysis.layout import board_writer, dashboard_layout
from fashion_cnn.analysis.predictions import PredictionCollector, Predictions
from fashion_cnn.data import ImageDataModule

# Beside the gaps by class.
GAP_MONITORED = (
    *("train/calibration_error", "val/calibration_error"),
    *(f"gap/{name}_{end}" for name in ("loss", "accuracy") for end in ("low", "high")),
)


class GapMonitor(PredictionCollector):
    """Adds the figures of `measure_gap` to those of each validation pass.

    They come from the logits of that very pass, so they cost no further one. Sets up TensorBoard's page of them.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        writer = board_writer(trainer)
        if writer is not None and trainer.datamodule.val_size:  # type: ignore[attr-defined]
            writer.add_custom_scalars(dashboard_layout())

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_epoch_end(trainer, pl_module)
        if {"train", "val"} <= self.predictions.keys():
            data = trainer.datamodule  # type: ignore[attr-defined]
            figures = measure_gap(self.predictions, data)
            pl_module.log_dict(figures, logger=False, sync_dist=trainer.world_size > 1)


def measure_gap(predictions: dict[str, Predictions], data: ImageDataModule) -> dict[str, float]:
    """What the train probe and the validation split show beside loss and accuracy, by the figures' names."""
    train, val = predictions["train"], predictions["val"]
    return {
        **{f"{name}/calibration_error": reliability(predictions[name]).expected_error for name in ("train", "val")},
        **gap_figures(train, val, prefix="gap"),
        **gap_by_class_figures(train, val, data.class_names),
    }
