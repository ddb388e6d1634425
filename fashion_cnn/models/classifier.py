"""The LightningModule that trains any network and measures loss and accuracy on every split."""

from collections.abc import Callable, Mapping
from typing import Any, NotRequired, TypedDict

import torch
from hydra.utils import instantiate
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy

from fashion_cnn.data import Batch, ImageDataModule
from fashion_cnn.errors import UserError
from fashion_cnn.models.optim import constant
from fashion_cnn.runs.files import update_class_paths

# An object, or what Hydra's `instantiate` makes it from: {"_target_": "package.Class", ...}.
Description = Mapping[str, Any]
OptimizerFactory = Callable[[list[dict[str, Any]]], Optimizer]
ScheduleFactory = Callable[[Optimizer, int], LRScheduler]
Mixing = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
Distillation = Callable[[Tensor, Tensor], Tensor]
EmbeddingLoss = Callable[[Tensor, Tensor], Tensor]


class MeanLoss(Metric):
    """The mean over images of a loss that comes as the means of batches, NaN if one of them is.

    Torchmetrics' own MeanMetric drops NaN, or with `nan_strategy="disable"` the batches' sizes.
    """

    full_state_update = False
    total: Tensor
    images: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("images", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, loss: Tensor, images: int) -> None:
        """Add the mean `loss` (a scalar) of so many images."""
        self.total += loss * images
        self.images += images

    def compute(self) -> Tensor:
        return self.total / self.images


class SplitMetrics(nn.Module):
    """The metrics that every split is measured by, exact over batches and processes of any size."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.loss = MeanLoss()
        self.accuracy = MulticlassAccuracy(num_classes, average="micro", validate_args=False)

    @property
    def metrics(self) -> dict[str, Metric]:
        """By the name that follows the split's in a figure: `val/loss`."""
        return {"loss": self.loss, "accuracy": self.accuracy}

    def add(self, logits: Tensor, targets: Tensor, loss: Tensor) -> None:
        """Add a batch: `logits` `(B, num_classes)`, `targets` `(B,)` and their mean `loss`."""
        self.loss.update(loss, len(targets))
        self.accuracy.update(logits, targets)

    def compute_and_reset(self) -> dict[str, Tensor]:
        """The figures of all images since the last reset, over all processes."""
        figures = {name: metric.compute() for name, metric in self.metrics.items()}
        for metric in self.metrics.values():
            metric.reset()
        return figures


class Outputs(TypedDict):
    """What a step returns, and callbacks receive: the loss (a scalar) and the logits `(B, num_classes)`.

    own_share `(B,)`: where training images are mixed, how much of each is its own. flip_logits
    `(B, num_classes)`: where `flip_average` is set, the mean of the logits of the image and of its mirror image.
    """

    loss: Tensor
    logits: Tensor
    mix_lambda: NotRequired[Tensor]
    flip_logits: NotRequired[Tensor]


class ImageClassifier(LightningModule):
    """Trains `network` by cross-entropy and evaluates it in the same way on train, val and test.

    network: maps normalised images `(B, C, H, W)` to logits `(B, num_classes)`, offers
        `features(images)` `(B, D)` and ends in a linear layer named `classifier`; where it offers
        `initialise(images)`, it is shown training images before the first step. Or its description,
        from which it is built with `in_channels` and `num_classes`.
    image_shape: `(C, H, W)`.
    optimizer: makes the optimizer from parameter groups. schedule: makes the schedule from the
        optimizer and the number of steps; None keeps the learning rate. Or their descriptions.
    mixing: mixes the images of a training batch, and their labels (models/mixing.py); None leaves them alone. Or its
        description.
    distillation: blends the labels of a training batch, mixed or not, with what teachers answer to its images
        (training/distillation.py); None leaves them alone. Or its description.
    embedding_loss: of the embeddings and the class indices of a training batch, added to the cross-entropy
        (models/losses.py); None for none. Or its description. Not together with `mixing`.
    label_smoothing: of the labels in the training loss only, in [0, 1).
    channels_last: lay out the network's weights so, which is faster wherever convolutions are.

    Set `flip_average` to have validation and test measure each split a second time, under `<split>_flip/…`, by the
    mean of the logits of an image and of its mirror image.

    `load_from_checkpoint(path)` rebuilds a module that was made from descriptions.
    """

    def __init__(
        self,
        *,
        network: nn.Module | Description,
        image_shape: tuple[int, int, int],
        num_classes: int,
        optimizer: OptimizerFactory | Description | None = None,
        schedule: ScheduleFactory | Description | None = None,
        mixing: Mixing | Description | None = None,
        distillation: Distillation | Description | None = None,
        embedding_loss: EmbeddingLoss | Description | None = None,
        label_smoothing: float = 0.0,
        channels_last: bool = True,
    ) -> None:
        super().__init__()
        # Checkpoints of older versions describe these by class paths that have moved since.
        network, optimizer, schedule = map(update_class_paths, (network, optimizer, schedule))
        mixing, distillation, embedding_loss = map(update_class_paths, (mixing, distillation, embedding_loss))
        built = {
            "network": network,
            "optimizer": optimizer,
            "schedule": schedule,
            "mixing": mixing,
            "distillation": distillation,
            "embedding_loss": embedding_loss,
        }
        # Objects stay out of the checkpoint, which torch loads without unpickling code.
        self.save_hyperparameters(
            ignore=[name for name, value in built.items() if not isinstance(value, Mapping | None)],
            logger=False,
        )
        if not 0 <= label_smoothing < 1:
            raise UserError(f"model.label_smoothing={label_smoothing} is not possible: give 0 up to, but not, 1.")
        self.image_shape = tuple(image_shape)
        self.num_classes = num_classes
        self.flip_average = False
        # Whether a fit goes on from a checkpoint, which holds what the network would look at first.
        self.resumes = False
        self.label_smoothing = label_smoothing
        if isinstance(network, Mapping):
            network = instantiate(network, in_channels=image_shape[0], num_classes=num_classes, _convert_="all")
        assert isinstance(network, nn.Module)
        self.network = network
        self._optimizer: OptimizerFactory | None = _built(optimizer)
        self._schedule: ScheduleFactory | None = _built(schedule)
        self._mixing: Mixing | None = _built(mixing)
        self._distillation: Distillation | None = _built(distillation)
        self._embedding_loss: EmbeddingLoss | None = _built(embedding_loss)
        if self._mixing and self._embedding_loss:
            raise UserError("embedding_loss and mixing do not go together: a mixed image is of no one class. Drop one.")
        self._try_one_image()
        if channels_last:
            self.network.to(memory_format=torch.channels_last)
        self.running = SplitMetrics(num_classes)
        self.split_metrics = nn.ModuleDict()

    def _try_one_image(self) -> None:
        """Let layers that take their size from the first image do so, and meet a wrong size early."""
        training = self.network.training
        try:
            with torch.no_grad():
                logits = self.network.eval()(torch.zeros(1, *self.image_shape))
        except UserError:
            raise
        except (RuntimeError, AssertionError, ValueError) as error:
            raise UserError(
                f"{type(self.network).__name__} cannot take images of shape {self.image_shape}: {error}"
            ) from error
        if logits.shape != (1, self.num_classes):
            raise UserError(
                f"{type(self.network).__name__} gives logits of shape {tuple(logits.shape[1:])}, "
                f"but there are {self.num_classes} classes."
            )
        self.network.train(training)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(B, num_classes)` of normalised images `(B, C, H, W)`."""
        logits: Tensor = self.network(images)
        return logits

    def embed(self, images: Tensor) -> Tensor:
        """The feature vectors `(B, D)` that the classifier sees, of normalised images `(B, C, H, W)`."""
        features: Tensor = self.network.features(images)  # type: ignore[operator]
        return features

    def setup(self, stage: str) -> None:
        # A network may want to see images before its training, as FastCNN does.
        initialise = getattr(self.network, "initialise", None)
        if stage == "fit" and initialise and not self.resumes:
            data = self.trainer.datamodule  # type: ignore[attr-defined]
            if not isinstance(data, ImageDataModule):
                raise UserError(
                    f"{type(self.network).__name__} looks at training images before its first step: "
                    "train it with an ImageDataModule (fit(module, datamodule=data))."
                )
            initialise(data.normalise(data.train_split.images_at(data.train_split.indices[:5000])))

    def training_step(self, batch: Batch, batch_idx: int) -> Outputs:
        images, targets = batch.images, batch.targets
        if self._mixing or self._distillation:
            targets = functional.one_hot(targets, self.num_classes).float()
        if self._mixing:
            images, targets, mix_lambda = self._mixing(images, targets)
        labels, smoothing = targets, self.label_smoothing
        if self._distillation:
            # Only labels are smoothed: what a teacher answers is soft already.
            targets = self._distillation(images, labels + smoothing * (1 / self.num_classes - labels))
            smoothing = 0.0
        if self._embedding_loss:
            logits, embeddings = self._look(images)
        else:
            logits = self(images)
        logits = logits.float()
        loss = functional.cross_entropy(logits, targets, label_smoothing=smoothing)
        if self._embedding_loss:
            loss = loss + self._embedding_loss(embeddings, batch.targets)
        # What the epoch sees as it trains: augmented batches, moving weights, the training loss. `EpochLog` reads and
        # resets it at the epoch's end; logged at every step it costs 4% of the time.
        self.running.add(logits.detach(), batch.targets, loss.detach())
        outputs: Outputs = {"loss": loss, "logits": logits.detach()}
        if self._mixing:
            outputs["mix_lambda"] = mix_lambda
        return outputs

    def _look(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and embeddings in one pass."""
        seen: list[Tensor] = []
        classifier = self.network.get_submodule("classifier")
        with classifier.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])):
            logits = self(images)
        if not seen:
            raise UserError(f"{type(self.network).__name__} has no embedding while it trains: drop embedding_loss.")
        return logits, seen[0]

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Outputs:
        return self._measure(batch, split_names(self.trainer.val_dataloaders)[dataloader_idx])

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Outputs:
        return self._measure(batch, split_names(self.trainer.test_dataloaders)[dataloader_idx])

    def _measure(self, batch: Batch, split: str) -> Outputs:
        logits = self(batch.images).float()
        loss = functional.cross_entropy(logits, batch.targets)
        self._metrics_of(split).add(logits, batch.targets, loss)
        outputs: Outputs = {"loss": loss, "logits": logits}
        if self.flip_average:
            averaged = (logits + self(batch.images.flip(-1)).float()) / 2
            loss_averaged = functional.cross_entropy(averaged, batch.targets)
            self._metrics_of(f"{split}_flip").add(averaged, batch.targets, loss_averaged)
            outputs["flip_logits"] = averaged
        return outputs

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of each split, and the gap between train and val."""
        measured = self._log_splits(split_names(self.trainer.val_dataloaders))
        if {"train", "val"} <= measured.keys():
            train, val = measured["train"], measured["val"]
            # Both grow as the network overfits.
            self._log_all({"gap/loss": val["loss"] - train["loss"]})
            self._log_all({"gap/accuracy": train["accuracy"] - val["accuracy"]})

    def on_test_epoch_end(self) -> None:
        self._log_splits(split_names(self.trainer.test_dataloaders))

    def _metrics_of(self, split: str) -> SplitMetrics:
        """The metrics of a split, whichever loaders the data module names; the name is the metrics' prefix."""
        key = f"split_{split}"  # A module cannot be called `train`.
        if key not in self.split_metrics:
            self.split_metrics[key] = SplitMetrics(self.num_classes).to(self.device)
        metrics = self.split_metrics[key]
        assert isinstance(metrics, SplitMetrics)
        return metrics

    def _log_splits(self, splits: list[str]) -> dict[str, dict[str, Tensor]]:
        views = [f"{split}_flip" for split in splits] if self.flip_average else []
        measured = {split: self._metrics_of(split).compute_and_reset() for split in [*splits, *views]}
        for split, figures in measured.items():
            self._log_all({f"{split}/{name}": value for name, value in figures.items()})
        return measured

    def _log_all(self, figures: Mapping[str, Tensor]) -> None:
        # To the callbacks only: `EpochLog` writes an epoch's figures to the loggers, all at one step.
        self.log_dict(figures, logger=False)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer, schedule = self.make_optimizer(total_steps=int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def make_optimizer(self, total_steps: int) -> tuple[Optimizer, LRScheduler]:
        """A new optimizer of the network's parameters, and its schedule, to be stepped once a batch."""
        if self._optimizer is None:
            raise UserError("This ImageClassifier has no optimizer: give it one before training.")
        optimizer = self._optimizer(self._parameter_groups())
        # A fused step would undo the scaling of float16's gradients itself, for which Lightning refuses to clip them;
        # so the scaler is to undo it before.
        optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
        return optimizer, (self._schedule or constant)(optimizer, total_steps)

    def _parameter_groups(self) -> list[dict[str, Any]]:
        """Weight decay acts on weights only, not on biases and normalisation, which it would merely hinder."""
        weights = [p for p in self.network.parameters() if p.ndim > 1]
        rest = [p for p in self.network.parameters() if p.ndim <= 1]
        return [{"params": weights}, {"params": rest, "weight_decay": 0.0}]


def _built(part: Any) -> Any:
    """An object as it is, or what its description says."""
    return instantiate(part, _convert_="all") if isinstance(part, Mapping) else part


def split_names(loaders: Any) -> list[str]:
    """The names of the data module's loaders, which are the prefixes of their metrics. Raises UserError for a list."""
    if not isinstance(loaders, Mapping):
        raise UserError(
            "The loaders to measure must come in a dict, such as {'val': loader}: the names tell them apart."
        )
    return list(loaders)
