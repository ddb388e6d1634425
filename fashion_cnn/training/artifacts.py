"""Analysis files of a finished training: predictions, tables, plots and their TensorBoard copies."""

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure
from omegaconf import DictConfig, OmegaConf

from fashion_cnn.analysis.dynamics import TrainingDynamics, ambiguous_images_csv, examples_csv
from fashion_cnn.analysis.history import read_history
from fashion_cnn.analysis.memorisation import load_bundled_scores
from fashion_cnn.analysis.report import results_summary, run_title
from fashion_cnn.analysis.tensorboard import TensorBoardWriter, write_projector
from fashion_cnn.data import ImageDataModule
from fashion_cnn.inference.network import NetworkRunner, read_checkpoint
from fashion_cnn.metrics.predictions import Predictions, write_predictions
from fashion_cnn.models import ImageClassifier
from fashion_cnn.plots.style import add_subtitle, save_figure
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
    """Store predictions and tables of a run, draw its plots, and add these to TensorBoard.

    Args:
        config: the settings of the run.
        trainer: the Trainer that has trained it.
        module: its module with the best weights; it may have the last weights afterwards.
        data: its data.
        run: its directory.
        results: contents of results.json.
        best: predictions of the best weights by split.
    """
    dynamics = next((c.result() for c in trainer.callbacks if isinstance(c, TrainingDynamics)), None)  # type: ignore[attr-defined]
    if dynamics is not None:
        write_atomically(run.examples_file, examples_csv(dynamics, data.class_names, load_bundled_scores(data)))
    held_out = {split: predictions for split, predictions in best.items() if split not in ("train", "val_flip")}
    write_atomically(run.ambiguous_file, ambiguous_images_csv(held_out, data.class_names))
    has_tensorboard = any(isinstance(logger, TensorBoardLogger) for logger in trainer.loggers)
    if has_tensorboard and "val" in best and module.embedding_size is not None:
        _write_embeddings(trainer, module, data, run, best["val"])

    # For each checkpoint: the predictions by split, and the epoch.
    evaluations = {"best": (best, results["best_epoch"])}
    if results["best_epoch"] != results["epochs"]:
        module.load_state_dict(read_checkpoint(run.last_checkpoint)["state_dict"])
        _, last = evaluate_splits(config, module, data, test=False, flip_average=False)
        evaluations["last"] = (last, results["epochs"])
    stored = {f"{name}.{split}": p for name, (splits, _) in evaluations.items() for split, p in splits.items()}
    write_predictions(run.predictions_file, stored)

    history = read_history(run)
    writer = TensorBoardWriter(run.path) if has_tensorboard else None
    best_epoch = results["best_epoch"] if results["chosen_on_validation"] else None
    training_plots = plot_training(history, dynamics, data, best_epoch)
    _write_plots(evaluations, training_plots, data, run, run_title(run, results), writer)
    if writer:
        # TensorBoard sorts capital letters first: the verdict stands above all other texts.
        writer.add_text("Verdict", results_summary(history, results), results["epochs"])
        writer.add_text("config", f"```yaml\n{OmegaConf.to_yaml(config)}```", results["epochs"])
        writer.add_results(config, history, results)
        writer.close()


def _write_plots(
    evaluations: dict[str, tuple[dict[str, Predictions], int]],
    training_plots: dict[str, Figure],
    data: ImageDataModule,
    run: Run,
    title: str,
    writer: TensorBoardWriter | None,
) -> None:
    """Write the plots of the training and of each checkpoint's predictions, and their copies in TensorBoard.

    Args:
        evaluations: predictions by split and epoch of the checkpoint `best` and, if it is another epoch, `last`.
        training_plots: plots over the epochs, by file name.
        data: the run's data.
        run: its directory.
        title: subtitle of all plots.
        writer: writer of TensorBoard events; None for no copies.
    """
    run.plots.mkdir(exist_ok=True)
    for checkpoint, (splits, epoch) in evaluations.items():
        is_best = checkpoint == "best"
        plots = {**training_plots} if is_best else {}
        if {"train", "val"} <= splits.keys():
            plots |= plot_predictions(splits["train"], splits["val"], data)
        for name, plot in plots.items():
            path = run.plots / f"{name}{'' if is_best else '_last'}.png"
            weights = "" if name in training_plots else f", weights of the {checkpoint} epoch ({epoch})"
            add_subtitle(plot, f"{title}{weights}")
            save_figure(plot, path)
            if writer:
                writer.add_image(name, path, epoch)
        if writer and "val" in splits:
            writer.add_pr_curves(splits["val"], data.class_names, epoch)


def _write_embeddings(
    trainer: Trainer, module: ImageClassifier, data: ImageDataModule, run: Run, predictions: Predictions
) -> None:
    """Write the validation images' embeddings for TensorBoard's projector."""
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
