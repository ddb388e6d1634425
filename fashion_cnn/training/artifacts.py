"""What is worked out, stored and drawn of a run once it is trained and measured."""

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from omegaconf import DictConfig

from fashion_cnn.analysis.dynamics import TrainingDynamics, ambiguous_images_csv, examples_csv
from fashion_cnn.analysis.history import read_history
from fashion_cnn.analysis.report import results_summary
from fashion_cnn.analysis.tensorboard import TensorBoardWriter, write_projector
from fashion_cnn.data import ImageDataModule
from fashion_cnn.inference.network import NetworkRunner, read_checkpoint
from fashion_cnn.metrics.predictions import Predictions, write_predictions
from fashion_cnn.models import ImageClassifier
from fashion_cnn.plots.style import save_figure
from fashion_cnn.plots.training import plot_predictions, plot_training
from fashion_cnn.runs import Run, write_atomically
from fashion_cnn.training.results import evaluate_splits


def write_artifacts(
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
        write_atomically(run.examples_file, examples_csv(dynamics, data.class_names))
    held_out = {split: predictions for split, predictions in best.items() if split not in ("train", "val_flip")}
    write_atomically(run.ambiguous_file, ambiguous_images_csv(held_out, data.class_names))
    has_board = any(isinstance(logger, TensorBoardLogger) for logger in trainer.loggers)
    if has_board and "val" in best:
        _write_embeddings(trainer, module, data, run, best["val"])

    moments = {"best": (best, read_checkpoint(run.weights)["global_step"])}
    if results["best_epoch"] != results["epochs"]:
        module.load_state_dict(read_checkpoint(run.last_checkpoint)["state_dict"])
        moments["last"] = (
            evaluate_splits(config, module, data, test=False, flip_average=False)[1],
            trainer.global_step,
        )
    stored = {f"{moment}.{split}": p for moment, (splits, _) in moments.items() for split, p in splits.items()}
    write_predictions(run.predictions_file, stored)

    history = read_history(run)
    board = TensorBoardWriter(run.path) if has_board else None
    run.plots.mkdir(exist_ok=True)
    for moment, (splits, step) in moments.items():
        is_best = moment == "best"
        figures = plot_training(history, dynamics, data, results["best_epoch"]) if is_best else {}
        if {"train", "val"} <= splits.keys():
            figures |= plot_predictions(splits["train"], splits["val"], data)
        for name, figure in figures.items():
            path = run.plots / f"{name}{'_last' if moment == 'last' else ''}.png"
            save_figure(figure, path)
            if board:
                board.add_image(name, path, step)
        if board and "val" in splits:
            board.add_pr_curves(splits["val"], data.class_names, step)
    if board:
        board.add_text("verdict", results_summary(history, results), trainer.global_step)
        board.add_hparams(config, results)
        board.close()


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
    runner = NetworkRunner(module, data, device=trainer.strategy.root_device, precision=trainer.precision)
    write_projector(run.path, runner.features(images), images, columns)
    module.cpu()
