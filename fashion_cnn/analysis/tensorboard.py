"""TensorBoard content besides the curves: custom scalars, marks, images, hyperparameters, projector and histograms."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor, nn

from fashion_cnn.analysis.history import History
from fashion_cnn.analysis.settings import BANDS, FIRST_COLUMNS, Setting, is_setting, run_settings
from fashion_cnn.data import Batch
from fashion_cnn.errors import UserError
from fashion_cnn.metrics.gap import metric_name
from fashion_cnn.metrics.predictions import Predictions
from fashion_cnn.models import split_names
from fashion_cnn.models.layers import is_nonlinearity
from fashion_cnn.runs.files import open_atomically, write_atomically
from fashion_cnn.runs.finding import short_name
from fashion_cnn.runs.overrides import affects_training, override_key
from fashion_cnn.runs.run import BEST_EVENTS, OVERFITTING_EVENTS

if TYPE_CHECKING:
    from torch.utils import hooks

_EVENTS_SUFFIX = ".analysis"
# Results that are marked in the charts, by tag. None is of the test set, on which nothing may be selected.
_MARKS = {"accuracy": "val/accuracy", "loss": "val/loss", "gap/accuracy": "gap/accuracy", "gap/loss": "gap/loss"}
_PROJECTOR_FOLDER = "projector"
_MAX_SPRITE = 8192  # side length in pixels, a limit of TensorBoard
# Larger values are outside the bins of TensorBoard's histograms.
_MAX_VALUE = 1e20


def dashboard_layout() -> dict[str, dict[str, list[Any]]]:
    """Layout of the charts for `SummaryWriter.add_custom_scalars`: those that the Time Series tab cannot draw."""
    return {
        "Gap between train and validation, with its 95% interval": {
            f"{quantity} gap": ["Margin", [f"gap_interval/{quantity}{bound}" for bound in ("", "_low", "_high")]]
            for quantity in ("accuracy", "loss")
        }
    }


def bands_layout(names: Sequence[str]) -> dict[str, dict[str, list[Any]]]:
    """Layout of the charts of `TensorBoardWriter.add_band`, mean and mean ± one standard deviation over the runs."""
    return {
        "Mean ± standard deviation over seeds, folds or subsets": {
            name: ["Margin", [f"{BANDS}/{name}{bound}" for bound in ("", "_low", "_high")]] for name in names
        }
    }


def tags_with_intervals(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Move the bounds of a metric, such as `gap/loss_low`, beside a copy of it: `gap_interval/loss`.

    TensorBoard warns of missing tags in a chart with margins if a run has one of its three tags but not all of them.
    """
    tags: dict[str, Any] = {}
    for name, value in metrics.items():
        quantity, _, bound = name.rpartition("_")
        if "/" in quantity and quantity in metrics and bound in ("low", "high"):
            group, _, metric = quantity.partition("/")
            tags |= {f"{group}_interval/{metric}": metrics[quantity], f"{group}_interval/{metric}_{bound}": value}
        else:
            tags[name] = value
    return tags


def tensorboard_writer(trainer: Trainer) -> Any:
    """Return the `SummaryWriter` of the trainer's logger; None without one or on another process than the first."""
    loggers = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
    return loggers[0].experiment if loggers and trainer.is_global_zero else None


class TensorBoardWriter:
    """Writer of the content after training, in event files of its own.

    Args:
        directory: the run directory, in which it replaces the files of an earlier writer.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        for pattern in ("", f"{BEST_EVENTS}/", f"{OVERFITTING_EVENTS}/"):
            for stale in directory.glob(f"{pattern}events.out.tfevents.*{_EVENTS_SUFFIX}"):
                stale.unlink()
        self._writer = self._open(directory)

    @staticmethod
    def _open(directory: Path) -> Any:
        # A lazy import, since commands that write no events import this module too.
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(directory), filename_suffix=_EVENTS_SUFFIX)

    def add_image(self, name: str, path: Path, step: int) -> None:
        """Add a plot that was saved as a PNG file."""
        with Image.open(path, formats=["PNG"]) as picture:
            self._writer.add_image(name, np.asarray(picture.convert("RGB")), step, dataformats="HWC")

    def add_pr_curves(self, predictions: Predictions, class_names: Sequence[str], step: int) -> None:
        """Add a precision-recall curve of each class against the rest."""
        for label, name in enumerate(class_names):
            self._writer.add_pr_curve(
                f"pr_curve/{metric_name(name)}",
                predictions.targets == label,
                predictions.probabilities[:, label],
                step,
            )

    def add_text(self, name: str, markdown: str, step: int) -> None:
        """Add a text in Markdown."""
        self._writer.add_text(name, markdown, step)

    def add_layout(self, layout: Mapping[str, Any]) -> None:
        """Add charts of the Custom Scalars tab, see `bands_layout`; once a writer."""
        self._writer.add_custom_scalars(layout)

    def add_band(self, name: str, epochs: Sequence[int], means: Sequence[float], deviations: Sequence[float]) -> None:
        """Add a metric over the epochs with its band, mean ± standard deviation."""
        for epoch, mean, deviation in zip(epochs, means, deviations, strict=True):
            for bound, value in (("", mean), ("_low", mean - deviation), ("_high", mean + deviation)):
                self._writer.add_scalar(f"{BANDS}/{name}{bound}", value, epoch)

    def add_results(self, config: DictConfig, history: History, results: Mapping[str, Any]) -> None:
        """Mark the best epoch and the onset of overfitting, and add the run to the HParams tab.

        The marks are runs of their own with one point in each chart, so that no curve hides them. The HParams tab shows
        the scalars of the run that has the hyperparameters, which is that of the best epoch.
        """
        from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
        from torch.utils.tensorboard.summary import hparams

        if (onset := results.get("rising_since")) is not None:
            overfitting = self._open(self._directory / OVERFITTING_EVENTS)
            (row,) = np.flatnonzero(history.epochs == onset)
            for tag, name in _MARKS.items():
                overfitting.add_scalar(tag, history[name][row], onset)
            overfitting.close()
        best = self._open(self._directory / BEST_EVENTS)
        for tag, name in _MARKS.items():
            if name in results:
                best.add_scalar(tag, results[name], results["best_epoch"])
        # Without the definition of an experiment, TensorBoard collects the settings of all runs, differing ones first.
        _, start, end = hparams(hyperparameters(config), {})
        # The tab cuts long names off.
        plugin = start.value[0].metadata.plugin_data
        data = HParamsPluginData.FromString(plugin.content)
        data.session_start_info.group_name = short_name(self._directory, config.name)
        plugin.content = data.SerializeToString()
        for summary in (start, end):
            best._get_file_writer().add_summary(summary)
        best.close()

    def close(self) -> None:
        """Write everything and close the file."""
        self._writer.close()


def hyperparameters(config: DictConfig) -> dict[str, Setting]:
    """Settings for the HParams tab: model, learning rate, seed and the overrides, such as the settings of a sweep.

    `fashion_cnn.analysis.dashboard` shows those that differ. All settings of the config would leave no room for the
    metrics on the page.
    """
    settings = run_settings(config)
    overrides = filter(affects_training, config.get("overrides") or [])
    # A removed part, `~callbacks.ema`, is the same as one set to null.
    typed = {
        override_key(override).removesuffix("._target_"): override.partition("=")[2] or "null" for override in overrides
    }
    # The chosen config names a model better than its class does.
    settings["model"] = typed.get("model", config.name)
    columns = {heading: settings[name] for heading, name in FIRST_COLUMNS.items() if name in settings}
    others = (name for name in typed if is_setting(name) and name not in FIRST_COLUMNS.values())
    # The tab writes numbers with five digits, so the seed is text.
    columns |= {"Seed": str(config.seed)}
    return columns | {name: settings.get(name, typed[name]) for name in others}


def write_projector(
    directory: Path,
    embeddings: Tensor,
    images: Tensor,
    columns: Mapping[str, Sequence[str | float]],
    *,
    name: str = "validation images",
) -> None:
    """Write the files of the embedding projector.

    Args:
        directory: the run directory.
        embeddings: `(N, D)`.
        images: `(N, C, H, W)` uint8 with one or three channels, shown as thumbnails if they fit TensorBoard's limit.
        columns: metadata of the images by heading.
        name: heading of the images.
    """
    # A lazy import like that of the writer.
    from tensorboard.plugins import projector

    folder = directory / _PROJECTOR_FOLDER
    folder.mkdir(exist_ok=True)
    with open_atomically(folder / "tensors.tsv") as file:
        np.savetxt(file, embeddings.numpy(), fmt="%.5g", delimiter="\t")
    rows = zip(*columns.values(), strict=True)
    lines = ["\t".join(columns), *("\t".join(map(str, row)) for row in rows)]
    write_atomically(folder / "metadata.tsv", "\n".join(lines) + "\n")
    config = projector.ProjectorConfig()
    embedding = config.embeddings.add(
        tensor_name=name,
        tensor_path=f"{_PROJECTOR_FOLDER}/tensors.tsv",
        metadata_path=f"{_PROJECTOR_FOLDER}/metadata.tsv",
    )
    height, width = images.shape[-2:]
    side = int(np.ceil(np.sqrt(len(images))))
    if side * max(height, width) <= _MAX_SPRITE:
        with open_atomically(folder / "sprite.png") as file:
            _sprite(images, side).save(file, "PNG")
        embedding.sprite.image_path = f"{_PROJECTOR_FOLDER}/sprite.png"
        embedding.sprite.single_image_dim.extend([width, height])
    write_atomically(directory / projector.metadata.PROJECTOR_FILENAME, str(config))


def _sprite(images: Tensor, side: int) -> Image.Image:
    """Arrange images row by row in a square of `side` by `side`."""
    count, channels, height, width = images.shape
    sheet = np.zeros((side * side, height, width, channels), dtype=np.uint8)
    sheet[:count] = images.permute(0, 2, 3, 1).numpy()
    rows = sheet.reshape(side, side, height, width, channels).swapaxes(1, 2)
    return Image.fromarray(rows.reshape(side * height, side * width, channels).squeeze())


class Histograms(Callback):
    """Writes histograms of weights and activations to TensorBoard.

    The activations are recorded during validation, after each nonlinearity and of the logits. The weights are those
    that are validated: the averaged ones, if weights are averaged.

    Args:
        every_n_epochs: the period in validation passes, beginning with the first.
        images: the number of validation images whose activations are recorded.

    Raises:
        UserError: if `every_n_epochs` is below 1.
    """

    def __init__(self, every_n_epochs: int, images: int = 32) -> None:
        if every_n_epochs < 1:
            raise UserError(f"callbacks.histograms.every_n_epochs={every_n_epochs} is not possible: give 1 or more.")
        self.every_n_epochs = every_n_epochs
        self.images = images
        self._hooks: list[hooks.RemovableHandle] = []
        self._activations: dict[str, Tensor] = {}

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Record the activations of the first validation batch, if histograms are due."""
        # The period counts validation passes, which may be less frequent than epochs.
        passes = trainer.current_epoch // (trainer.check_val_every_n_epoch or 1)
        due = passes % self.every_n_epochs == 0 and not trainer.sanity_checking
        first = batch_idx == 0 and split_names(trainer.val_dataloaders)[dataloader_idx] == "val"
        if due and first and tensorboard_writer(trainer) is not None:
            assert isinstance(pl_module.network, nn.Module)
            for name, layer in pl_module.network.named_modules():
                if is_nonlinearity(layer) or name == pl_module.head_name:
                    self._hooks.append(layer.register_forward_hook(self._record(name)))

    def _record(self, name: str) -> Any:
        def record(layer: nn.Module, inputs: Any, output: Tensor) -> None:
            # The following layer may work in place.
            self._activations[name] = output[: self.images].detach().to(torch.float32, copy=True)

        return record

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write the histograms."""
        if not self._hooks:
            return
        for hook in self._hooks:
            hook.remove()
        writer, epoch = tensorboard_writer(trainer), trainer.current_epoch + 1

        def add(name: str, values: Tensor) -> None:
            if values.abs().max() < _MAX_VALUE:
                writer.add_histogram(name, values, epoch)

        for name, values in self._activations.items():
            add(f"layer_activations/{name}", values)
        assert isinstance(pl_module.network, nn.Module)
        for name, parameter in pl_module.network.named_parameters():
            add(f"weights/{name}", parameter.detach().float())
        self._hooks.clear()
        self._activations.clear()
