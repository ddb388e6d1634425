"""The LightningModule that trains a network and evaluates loss and accuracy on every split."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import torch
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
from fashion_cnn.models.layers import use_float32_classifier
from fashion_cnn.models.optim import constant
from fashion_cnn.runs.damage import check_containers
from fashion_cnn.runs.files import update_class_paths
from fashion_cnn.runs.trust import check_classes, instantiate

# A config from which Hydra's `instantiate` builds an object: {"_target_": "package.Class", ...}.
TargetConfig = Mapping[str, Any]
OptimizerFactory = Callable[[list[dict[str, Any]]], Optimizer]
ScheduleFactory = Callable[[Optimizer, int], LRScheduler]
Mixing = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
Distillation = Callable[[Tensor, Tensor], Tensor]
EmbeddingLoss = Callable[[Tensor, Tensor], Tensor]


class MeanLoss(Metric):
    """The mean loss over images, from the mean losses of batches; NaN if one of them is NaN.

    Torchmetrics' MeanMetric drops NaN or, with `nan_strategy="disable"`, ignores the batch sizes.
    """

    full_state_update = False
    total: Tensor
    images: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("images", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, loss: Tensor, images: int) -> None:
        """Add the mean `loss`, a scalar, of a batch of `images` images."""
        self.total += loss * images
        self.images += images

    def compute(self) -> Tensor:
        """Return the mean over all images."""
        return self.total / self.images


class SplitMetrics(nn.Module):
    """Loss and accuracy of one split, exact for batches of any size and over any number of processes.

    Args:
        num_classes: number of classes.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.loss = MeanLoss()
        self.accuracy = MulticlassAccuracy(num_classes, average="micro", validate_args=False)

    def update(self, logits: Tensor, targets: Tensor, loss: Tensor) -> None:
        """Add a batch.

        Args:
            logits: `(B, num_classes)`.
            targets: class indices `(B,)`.
            loss: mean loss of the batch, a scalar.
        """
        self.loss.update(loss, len(targets))
        self.accuracy.update(logits, targets)

    def compute_and_reset(self) -> dict[str, Tensor]:
        """Return the metrics of all images since the last reset, over all processes: `loss` and `accuracy`."""
        metrics: dict[str, Metric] = {"loss": self.loss, "accuracy": self.accuracy}
        values = {name: metric.compute() for name, metric in metrics.items()}
        for metric in metrics.values():
            metric.reset()
        return values


class StepOutput(TypedDict):
    """Output of a training, validation or test step, which callbacks receive.

    Attributes:
        loss: mean loss of the batch, a scalar.
        logits: `(B, num_classes)`.
        mix_lambda: `(B,)`, if training images are mixed: the share of each image that is not its partner's.
        flip_logits: `(B, num_classes)`, if `flip_average` is set: mean logits of the image and its mirror image.
    """

    loss: Tensor
    logits: Tensor
    mix_lambda: NotRequired[Tensor]
    flip_logits: NotRequired[Tensor]


class ImageClassifier(LightningModule):
    """Trains a network by cross-entropy and evaluates train probe, validation and test in the same way.

    The network, the optimizer and the other parts are given as objects, or as configs for Hydra's `instantiate`. A
    module made from configs can be rebuilt by `load_from_checkpoint(path)`.

    Args:
        network: maps normalised images `(B, C, H, W)` to logits `(B, num_classes)`, has `features(images)` `(B, D)` and
            ends in a linear layer named `classifier`, which is made to compute in float32 (models/layers.py). If it has
            `initialise(images)`, this is called with training images before the first step. A config is instantiated
            with `in_channels` and `num_classes`.
        image_shape: `(C, H, W)`.
        num_classes: number of classes.
        optimizer: factory of the optimizer from parameter groups; not needed for evaluation.
        schedule: factory of the learning rate schedule from the optimizer and the number of steps; None keeps the
            learning rate constant.
        mixing: mixes the images and the labels of a training batch (models/mixing.py).
        distillation: mixes teachers' predictions into the labels of a training batch (training/distillation.py).
        embedding_loss: function of embeddings and class indices that is added to the cross-entropy (models/losses.py);
            not together with `mixing`.
        label_smoothing: smoothing of the labels in the training loss only, in [0, 1).
        channels_last: whether the weights have the channels_last memory format, which speeds up convolutions.

    Attributes:
        flip_average: set it to evaluate each split a second time, as `<split>_flip/...`, with the logits averaged over
            an image and its mirror image.
        resumes: set it when training continues from a checkpoint, whose network is initialised already.
        running: metrics of the training batches since the last reset.

    Raises:
        UserError: if a value is out of range, or the network does not fit the images or the classes.
    """

    def __init__(
        self,
        *,
        network: nn.Module | TargetConfig,
        image_shape: tuple[int, int, int],
        num_classes: int,
        optimizer: OptimizerFactory | TargetConfig | None = None,
        schedule: ScheduleFactory | TargetConfig | None = None,
        mixing: Mixing | TargetConfig | None = None,
        distillation: Distillation | TargetConfig | None = None,
        embedding_loss: EmbeddingLoss | TargetConfig | None = None,
        label_smoothing: float = 0.0,
        channels_last: bool = True,
    ) -> None:
        super().__init__()
        # Checkpoints of older versions name classes by their former paths.
        network, optimizer, schedule = map(update_class_paths, (network, optimizer, schedule))
        mixing, distillation, embedding_loss = map(update_class_paths, (mixing, distillation, embedding_loss))
        parts = {
            "network": network,
            "optimizer": optimizer,
            "schedule": schedule,
            "mixing": mixing,
            "distillation": distillation,
            "embedding_loss": embedding_loss,
        }
        # Only plain containers go into the checkpoint: torch loads them without unpickling code.
        self.save_hyperparameters(
            ignore=[name for name, part in parts.items() if not isinstance(part, Mapping | None)],
            logger=False,
        )
        if not 0 <= label_smoothing < 1:
            raise UserError(
                f"model.label_smoothing={label_smoothing} is not possible: give a number from 0 to below 1."
            )
        self.image_shape = tuple(image_shape)
        self.num_classes = num_classes
        self.flip_average = False
        self.resumes = False
        self.label_smoothing = label_smoothing
        if isinstance(network, Mapping):
            network = instantiate(network, in_channels=image_shape[0], num_classes=num_classes, _convert_="all")
        assert isinstance(network, nn.Module)
        self.network = network
        self._optimizer: OptimizerFactory | None = _instantiate(optimizer)
        self._schedule: ScheduleFactory | None = _instantiate(schedule)
        self._mixing: Mixing | None = _instantiate(mixing)
        self._distillation: Distillation | None = _instantiate(distillation)
        self._embedding_loss: EmbeddingLoss | None = _instantiate(embedding_loss)
        if self._mixing and self._embedding_loss:
            raise UserError("embedding_loss and mixing exclude each other: a mixed image has two classes. Drop one.")
        self._check_forward()
        # Only now: a lazy classifier has become a linear layer.
        use_float32_classifier(self.network)
        if channels_last:
            self.network.to(memory_format=torch.channels_last)
        self.running = SplitMetrics(num_classes)
        self.split_metrics = nn.ModuleDict()

    def _check_forward(self) -> None:
        """Pass one image through the network: lazy layers take their size from it, and wrong sizes fail early."""
        name, training = type(self.network).__name__, self.network.training
        try:
            with torch.no_grad():
                logits = self.network.eval()(torch.zeros(1, *self.image_shape))
        except UserError:
            raise
        except (RuntimeError, AssertionError, ValueError) as error:
            raise UserError(f"{name} cannot take images of shape {self.image_shape}: {error}") from error
        if logits.shape != (1, self.num_classes):
            raise UserError(
                f"{name} gives logits of shape {tuple(logits.shape[1:])}, but there are {self.num_classes} classes."
            )
        self.network.train(training)

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, **kwargs: Any) -> "ImageClassifier":
        """Rebuild a module from a checkpoint; the classes that it names are checked before any is instantiated.

        Args:
            checkpoint_path: the file.
            *args: see `LightningModule.load_from_checkpoint`.
            **kwargs: see `LightningModule.load_from_checkpoint`.

        Raises:
            UserError: if the checkpoint names a class that is not accepted, see `fashion_cnn.runs.trust`.
        """
        checkpoint = torch.load(checkpoint_path, map_location="cpu", weights_only=True)
        # Lightning passes the hyper-parameters under each of these keys to the constructor.
        for key in ("hyper_parameters", "hparams", "module_arguments"):
            check_containers(checkpoint.get(key), Path(checkpoint_path))
            check_classes(update_class_paths(checkpoint.get(key)), Path(checkpoint_path))
        return super().load_from_checkpoint(checkpoint_path, *args, **kwargs | {"weights_only": True})

    def forward(self, images: Tensor) -> Tensor:
        """Return logits `(B, num_classes)` of normalised images `(B, C, H, W)`."""
        logits: Tensor = self.network(images)
        return logits

    def embed(self, images: Tensor) -> Tensor:
        """Return feature vectors `(B, D)`, the input of the classifier, of normalised images `(B, C, H, W)`."""
        features: Tensor = self.network.features(images)  # type: ignore[operator]
        return features

    def setup(self, stage: str) -> None:
        """Initialise the network from training images if it needs that, as FastCNN does."""
        initialise = getattr(self.network, "initialise", None)
        if stage == "fit" and initialise and not self.resumes:
            data = self.trainer.datamodule  # type: ignore[attr-defined]
            if not isinstance(data, ImageDataModule):
                raise UserError(
                    f"{type(self.network).__name__} is initialised from training images: "
                    "train it with an ImageDataModule (fit(module, datamodule=data))."
                )
            initialise(data.normalise(data.train_split.images_at(data.train_split.indices[:5000])))

    def training_step(self, batch: Batch, batch_idx: int) -> StepOutput:
        """Return the training loss of a batch, with mixing, distillation, label smoothing and embedding loss."""
        images, targets = batch.images, batch.targets
        if self._mixing or self._distillation:
            targets = functional.one_hot(targets, self.num_classes).float()
        if self._mixing:
            images, targets, mix_lambda = self._mixing(images, targets)
        smoothing = self.label_smoothing
        if self._distillation:
            # Smooth the labels only: the teachers' predictions are soft already.
            targets = self._distillation(images, targets + smoothing * (1 / self.num_classes - targets))
            smoothing = 0.0
        if self._embedding_loss:
            logits, embeddings = self._logits_and_embeddings(images)
        else:
            logits = self(images)
        logits = logits.float()
        loss = functional.cross_entropy(logits, targets, label_smoothing=smoothing)
        if self._embedding_loss:
            loss = loss + self._embedding_loss(embeddings, batch.targets)
        # Metrics of augmented batches under changing weights, which `EpochLog` logs at the end of the epoch: logging
        # them in every step takes 4% of the time.
        self.running.update(logits.detach(), batch.targets, loss.detach())
        output: StepOutput = {"loss": loss, "logits": logits.detach()}
        if self._mixing:
            output["mix_lambda"] = mix_lambda
        return output

    def _logits_and_embeddings(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Compute both in one forward pass."""
        inputs: list[Tensor] = []
        classifier = self.network.get_submodule("classifier")
        with classifier.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0])):
            logits = self(images)
        if not inputs:
            raise UserError(f"{type(self.network).__name__} has no embedding in training: drop embedding_loss.")
        return logits, inputs[0]

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> StepOutput:
        """Evaluate a batch of the validation set or of the train probe."""
        return self._evaluation_step(batch, split_names(self.trainer.val_dataloaders)[dataloader_idx])

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> StepOutput:
        """Evaluate a batch of the test set."""
        return self._evaluation_step(batch, split_names(self.trainer.test_dataloaders)[dataloader_idx])

    def _evaluation_step(self, batch: Batch, split: str) -> StepOutput:
        logits = self(batch.images).float()
        loss = functional.cross_entropy(logits, batch.targets)
        self._metrics_of(split).update(logits, batch.targets, loss)
        output: StepOutput = {"loss": loss, "logits": logits}
        if self.flip_average:
            averaged = (logits + self(batch.images.flip(-1)).float()) / 2
            averaged_loss = functional.cross_entropy(averaged, batch.targets)
            self._metrics_of(f"{split}_flip").update(averaged, batch.targets, averaged_loss)
            output["flip_logits"] = averaged
        return output

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of each split, and the gaps between train probe and validation set."""
        metrics = self._log_splits(split_names(self.trainer.val_dataloaders))
        if {"train", "val"} <= metrics.keys():
            train, val = metrics["train"], metrics["val"]
            # Both gaps grow with overfitting.
            self._log_to_callbacks({"gap/loss": val["loss"] - train["loss"]})
            self._log_to_callbacks({"gap/accuracy": train["accuracy"] - val["accuracy"]})

    def on_test_epoch_end(self) -> None:
        """Log the metrics of the test set."""
        self._log_splits(split_names(self.trainer.test_dataloaders))

    def _metrics_of(self, split: str) -> SplitMetrics:
        """The metrics of a split, created when it is first evaluated."""
        key = f"split_{split}"  # ModuleDict rejects the key `train`.
        if key not in self.split_metrics:
            self.split_metrics[key] = SplitMetrics(self.num_classes).to(self.device)
        metrics = self.split_metrics[key]
        assert isinstance(metrics, SplitMetrics)
        return metrics

    def _log_splits(self, splits: list[str]) -> dict[str, dict[str, Tensor]]:
        flipped = [f"{split}_flip" for split in splits] if self.flip_average else []
        metrics = {split: self._metrics_of(split).compute_and_reset() for split in [*splits, *flipped]}
        for split, values in metrics.items():
            self._log_to_callbacks({f"{split}/{name}": value for name, value in values.items()})
        return metrics

    def _log_to_callbacks(self, metrics: Mapping[str, Tensor]) -> None:
        # `EpochLog` passes them to the loggers, all under one step.
        self.log_dict(metrics, logger=False)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimizer, and the schedule to be stepped after each batch."""
        optimizer, schedule = self.make_optimizer(total_steps=int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def make_optimizer(self, total_steps: int) -> tuple[Optimizer, LRScheduler]:
        """Make an optimizer of the network's parameters and its schedule.

        Weight decay applies to weights only, not to biases and normalisation parameters.

        Args:
            total_steps: number of training steps.

        Raises:
            UserError: if the module has no optimizer.
        """
        if self._optimizer is None:
            raise UserError("ImageClassifier has no optimizer: pass optimizer=... to train it.")
        weights = [p for p in self.network.parameters() if p.ndim > 1]
        others = [p for p in self.network.parameters() if p.ndim <= 1]
        optimizer = self._optimizer([{"params": weights}, {"params": others, "weight_decay": 0.0}])
        # A fused step would unscale float16 gradients itself, and Lightning refuses to clip scaled gradients.
        optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
        return optimizer, (self._schedule or constant)(optimizer, total_steps)


def _instantiate(part: Any) -> Any:
    """An object as it is, or the object that a config describes."""
    return instantiate(part, _convert_="all") if isinstance(part, Mapping) else part


def split_names(loaders: Any) -> list[str]:
    """Return the names of the data module's loaders, which are the prefixes of their metrics.

    Raises:
        UserError: if the loaders are not in a dict.
    """
    if not isinstance(loaders, Mapping):
        raise UserError("Evaluation loaders must be a dict of split names, such as {'val': loader}.")
    return list(loaders)
