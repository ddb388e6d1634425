"""What is worked out, stored and drawn of a run once it is trained and measured."""

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure
from omegaconf import DictConfig
from torch import Tensor

from fashion_cnn.analysis import pictures
from fashion_cnn.analysis.board import Board
from fashion_cnn.analysis.cartography import table
from fashion_cnn.analysis.dynamics import TrainingDynamics
from fashion_cnn.analysis.hard_examples import ambiguity_table
from fashion_cnn.analysis.history import read_history
from fashion_cnn.analysis.predictions import Predictions, write_predictions
from fashion_cnn.analysis.projector import write_projector
from fashion_cnn.analysis.report import summary
from fashion_cnn.data import ImageDataModule
from fashion_cnn.models import ImageClassifier
from fashion_cnn.runs import Run, write_whole
from fashion_cnn.training.results import measure
from fashion_cnn.training.weights import read_checkpoint


def analyse(
    config: DictConfig,
    trainer: Trainer,
    module: ImageClassifier,
    data: ImageDataModule,
    run: Run,
    results: dict[str, Any],
    best: dict[str, Predictions],
) -> None:
    """Store what the run's figures are drawn from, draw them, and show them in TensorBoard too.

    module: with the best weights. best: what these say of each split.
    """
    dynamics = next((c.result() for c in trainer.callbacks if isinstance(c, TrainingDynamics)), None)  # type: ignore[attr-defined]
    if dynamics is not None:
        write_whole(run.examples_file, table(dynamics, data.class_names))
    held_out = {split: predictions for split, predictions in best.items() if split != "train"}
    write_whole(run.ambiguous_file, ambiguity_table(held_out, data.class_names))
    has_board = any(isinstance(logger, TensorBoardLogger) for logger in trainer.loggers)
    if has_board and "val" in best:
        _write_embeddings(trainer, module, data, run, best["val"])

    last = best
    if results["best_epoch"] != results["epochs"]:
        module.load_state_dict(read_checkpoint(run.last_checkpoint)["state_dict"])
        last = measure(config, module, data, test=False)[1]
    stored = {f"best.{split}": predictions for split, predictions in best.items()}
    stored |= {f"last.{split}": predictions for split, predictions in last.items() if last is not best}
    write_predictions(run.predictions_file, stored)

    history = read_history(run)
    figures = pictures.of_training(history, dynamics, data, results["best_epoch"])
    last_figures = {}
    if {"train", "val"} <= best.keys():
        figures |= pictures.of_weights(best["train"], best["val"], data)
        if last is not best:
            last_figures = pictures.of_weights(last["train"], last["val"], data)
    _save(figures, run, "")
    _save(last_figures, run, "_last")
    if has_board:
        board = Board(run.path)
        for moment, names, step in (
            (best, figures, read_checkpoint(run.weights)["global_step"]),
            (last, last_figures, trainer.global_step),
        ):
            suffix = "_last" * (names is last_figures)
            for name in names:
                board.add_picture(name, run.figures / f"{name}{suffix}.png", step)
            if names and "val" in moment:
                board.add_precision_recall(moment["val"], data.class_names, step)
        board.add_text("verdict", summary(history, results), trainer.global_step)
        board.add_settings(config, results)
        board.close()


def _save(figures: Mapping[str, Figure], run: Run, suffix: str) -> None:
    run.figures.mkdir(exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(run.figures / f"{name}{suffix}.png", dpi=110)


def _write_embeddings(
    trainer: Trainer, module: ImageClassifier, data: ImageDataModule, run: Run, predictions: Predictions
) -> None:
    images = data.val_split.images_at(predictions.indices)
    names = data.class_names
    columns = {
        "label": [names[label] for label in predictions.targets.tolist()],
        "prediction": [names[label] for label in predictions.predicted.tolist()],
        "loss": [round(loss, 4) for loss in predictions.losses.tolist()],
        "right": ["right" if right else "wrong" for right in predictions.correct.tolist()],
    }
    write_projector(run.path, _embed(trainer, module, data, images), images, columns)


@torch.inference_mode()
def _embed(trainer: Trainer, module: ImageClassifier, data: ImageDataModule, images: Tensor) -> Tensor:
    """The feature vectors `(N, D)` of images `(N, C, H, W)` uint8, as float32 on the CPU."""
    device = trainer.strategy.root_device
    module.eval().to(device)
    with trainer.precision_plugin.forward_context():
        batches = images.split(data.eval_batch_size)
        parts = [module.embed(data.normalise(batch.to(device))).float().cpu() for batch in batches]
    module.cpu()
    return torch.cat(parts)
