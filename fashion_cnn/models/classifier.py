"""The LightningModule that trains a network and evaluates loss and accuracy on every split."""

import inspect
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NotRequired, Self, TypedDict, TypeVar, cast

import torch
from hydra.utils import get_class
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy

from fashion_cnn.data import Batch, ImageDataModule, InMemoryDataset
from fashion_cnn.errors import UserError
from fashion_cnn.models.checkpoint_loading import build_within_limits, check_content, load_checkpoint
from fashion_cnn.models.layers import compute_in_float32
from fashion_cnn.models.losses import CrossEntropy
from fashion_cnn.models.optim import constant
from fashion_cnn.runs.damage import DamagedRunError
from fashion_cnn.runs.files import update_class_paths
from fashion_cnn.runs.trust import instantiate, packages_to_trust, why_not_defined

# A config from which Hydra's `instantiate` builds an object: {"_target_": "package.Class", ...}.
TargetConfig = Mapping[str, Any]
OptimizerFactory = Callable[[list[dict[str, Any]]], Optimizer]
ScheduleFactory = Callable[[Optimizer, int], LRScheduler]
Mixing = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
Distillation = Callable[[Tensor, Tensor], Tensor]
EmbeddingLoss = Callable[[Tensor, Tensor], Tensor]
# Maps logits `(B, num_classes)` and class indices `(B,)` or, if images are mixed, probabilities `(B, num_classes)` to a
# scalar.
Loss = Callable[[Tensor, Tensor], Tensor]
Value = TypeVar("Value", Tensor, float)
_MAX_TRIAL_LOGITS = 10_000_000
# Metrics that every run has under these names.
_RESERVED_METRICS = ("loss", "accuracy", "balanced_accuracy", "calibration_error")


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
    """Loss, accuracy and further metrics of one split, exact for any batch sizes and number of processes.

    Args:
        num_classes: number of classes.
        metrics: further metrics of logits and targets by name; they are copied.
    """

    def __init__(self, num_classes: int, metrics: Mapping[str, Metric] | None = None) -> None:
        super().__init__()
        self.loss = MeanLoss()
        self.accuracy = MulticlassAccuracy(num_classes, average="micro", validate_args=False)
        self.metrics = nn.ModuleDict({name: metric.clone() for name, metric in (metrics or {}).items()})

    def update(self, logits: Tensor, targets: Tensor, loss: Tensor) -> None:
        """Add a batch.

        Args:
            logits: `(B, num_classes)`.
            targets: class indices `(B,)`.
            loss: mean loss of the batch, a scalar.
        """
        self.loss.update(loss, len(targets))
        self.accuracy.update(logits, targets)
        for metric in self.metrics.values():
            metric.update(logits, targets)  # type: ignore[operator]

    def compute_and_reset(self) -> dict[str, Tensor]:
        """Return the metrics of all images since the last reset, over all processes: `loss`, `accuracy`, others."""
        metrics: dict[str, Any] = {"loss": self.loss, "accuracy": self.accuracy, **self.metrics}
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
        network: maps normalised images `(B, C, H, W)` to logits `(B, num_classes)`. The input of the linear layer that
            computes the logits, in float32 (models/layers.py), is the embedding; a network without such a layer has
            none. If it has `initialise(images)`, this is called with training images before the first step. A config is
            instantiated with `in_channels` and `num_classes`.
        image_shape: `(C, H, W)`.
        num_classes: number of classes.
        optimizer: factory of the optimizer from parameter groups; not needed for evaluation.
        schedule: factory of the learning rate schedule from the optimizer and the number of steps; None keeps the
            learning rate constant.
        loss: training loss of logits and targets in place of the cross-entropy. If it has `initialise(targets,
            num_classes)`, this is called with the training targets before the first step. Not together with
            `distillation`.
        metrics: further torchmetrics by name, measured on each split from logits and targets. A config is instantiated
            with `num_classes` if the class takes it.
        mixing: mixes the images and the labels of a training batch (models/mixing.py).
        distillation: mixes teachers' predictions into the labels of a training batch (training/distillation.py).
        embedding_loss: function of embeddings and class indices that is added to the cross-entropy (models/losses.py);
            not together with `mixing`.
        label_smoothing: smoothing of the labels in the training loss only, in [0, 1); ignored if `loss` is given.
        channels_last: whether the weights have the channels_last memory format, which speeds up convolutions.

    Attributes:
        flip_average: set it to evaluate each split a second time, as `<split>_flip/...`, with the logits averaged over
            an image and its mirror image.
        resumes: set it when training continues from a checkpoint, whose network is initialised already.
        running: metrics of the training batches since the last reset.
        head_name: name in the network of the linear layer that computes the logits; None if there is none.
        embedding_size: dimensions D of the embeddings, the input of that layer; None if there is none.
        metric_names: names of the metrics that each split has, `loss` and `accuracy` first.

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
        loss: Loss | TargetConfig | None = None,
        metrics: Mapping[str, Metric | TargetConfig] | None = None,
        mixing: Mixing | TargetConfig | None = None,
        distillation: Distillation | TargetConfig | None = None,
        embedding_loss: EmbeddingLoss | TargetConfig | None = None,
        label_smoothing: float = 0.0,
        channels_last: bool = True,
    ) -> None:
        super().__init__()
        # Checkpoints of older versions name classes by their former paths. The present ones are assigned to the
        # arguments, which `save_hyperparameters` reads.
        network, optimizer, schedule = map(update_class_paths, (network, optimizer, schedule))
        mixing, distillation, embedding_loss = map(update_class_paths, (mixing, distillation, embedding_loss))
        loss, metrics = map(update_class_paths, (loss, metrics))
        parts = {
            "network": network,
            "optimizer": optimizer,
            "schedule": schedule,
            "loss": loss,
            "mixing": mixing,
            "distillation": distillation,
            "embedding_loss": embedding_loss,
        }
        # Only plain containers go into the checkpoint: torch loads them without unpickling code.
        ignored = [name for name, part in parts.items() if not isinstance(part, Mapping | None)]
        if any(isinstance(metric, Metric) for metric in (metrics or {}).values()):
            ignored.append("metrics")
        self.save_hyperparameters(ignore=ignored, logger=False)
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
        self._loss: Loss | None = _instantiate(loss)
        self._mixing: Mixing | None = _instantiate(mixing)
        self._distillation: Distillation | None = _instantiate(distillation)
        self._embedding_loss: EmbeddingLoss | None = _instantiate(embedding_loss)
        if self._mixing and self._embedding_loss:
            raise UserError("embedding_loss and mixing exclude each other: a mixed image has two classes. Drop one.")
        if self._loss and self._distillation:
            raise UserError("loss and distillation exclude each other: distillation uses cross-entropy. Drop one.")
        self.head_name: str | None = None
        self.embedding_size: int | None = None
        self._check_forward()
        if self.head_name is not None:
            compute_in_float32(self.head())
        if channels_last:
            self.network.to(memory_format=torch.channels_last)
        self._metrics = {
            name: self._make_metric(name, metric) for name, metric in (metrics or {}).items() if metric is not None
        }
        self.metric_names = ("loss", "accuracy", *self._metrics)
        self._check_loss()
        self.running = SplitMetrics(num_classes)
        # Not registered: they come with the first evaluation, and checkpoints and averages of weights leave them out.
        self._split_metrics: dict[str, SplitMetrics] = {}

    def _check_forward(self) -> None:
        """Pass one image through the network: lazy layers take their size from it, and wrong sizes fail early."""
        name, training = type(self.network).__name__, self.network.training
        calls: list[tuple[str, nn.Linear, Tensor]] = []

        def record(layer_name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Any], None]:
            return lambda layer, inputs, _: calls.append((layer_name, cast("nn.Linear", layer), inputs[0]))

        layers = [(key, layer) for key, layer in self.network.named_modules() if isinstance(layer, nn.Linear)]
        hooks = [layer.register_forward_hook(record(key)) for key, layer in layers]
        try:
            with torch.no_grad():
                logits = self.network.eval()(torch.zeros(1, *self.image_shape))
        except UserError:
            raise
        except (RuntimeError, AssertionError, ValueError) as error:
            raise UserError(f"{name} cannot take images of shape {self.image_shape}: {error}") from error
        finally:
            for hook in hooks:
                hook.remove()
        if not isinstance(logits, Tensor):
            raise UserError(f"{name} returns {type(logits).__name__}, not logits: return one tensor (B, num_classes).")
        if logits.shape != (1, self.num_classes):
            raise UserError(
                f"{name} gives logits of shape {tuple(logits.shape[1:])}, but there are {self.num_classes} classes."
            )
        self.network.train(training)
        if calls and calls[-1][1].out_features == self.num_classes and calls[-1][2].ndim == 2:
            self.head_name, _, features = calls[-1]
            self.embedding_size = features.shape[1]

    def _make_metric(self, name: str, metric: Metric | TargetConfig) -> Metric:
        """Build a metric from its config, and check that it takes logits and targets and returns one number."""
        if name in _RESERVED_METRICS:
            raise UserError(
                f"metrics.{name} is not possible: every run has {name} anyway. Choose another name for yours."
            )
        if not name.isidentifier():
            raise UserError(f"metrics.{name} is not possible: choose another name, of letters, digits and underscores.")
        if isinstance(metric, Mapping):
            try:
                takes_classes = "num_classes" in inspect.signature(get_class(metric["_target_"])).parameters
            except ImportError as error:
                target = str(metric["_target_"])
                raise UserError(f"metrics.{name}._target_={target} {why_not_defined(target)}", status=2) from error
            sizes = {"num_classes": self.num_classes} if takes_classes and "num_classes" not in metric else {}
            metric = instantiate(metric, **sizes, _convert_="all")
        if not isinstance(metric, Metric):
            raise UserError(f"metrics.{name} is a {type(metric).__name__}: give a subclass of torchmetrics.Metric.")
        if torch.get_default_device().type == "meta":
            return metric  # It may compute with values.
        trial = metric.clone()
        try:
            trial.update(*self._trial_batch())
            value = trial.compute()
        except (RuntimeError, ValueError, TypeError) as error:
            raise UserError(
                f"metrics.{name} cannot take logits (B, {self.num_classes}) and class indices (B,): {error}"
            ) from error
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise UserError(f"metrics.{name} must return one number, as average=macro does, not {value}.")
        return metric

    def _trial_batch(self) -> tuple[Tensor, Tensor]:
        """Logits and targets of one image of each class, or of the first ones if there are thousands of classes."""
        images = max(1, min(self.num_classes, _MAX_TRIAL_LOGITS // self.num_classes))
        return torch.eye(images, self.num_classes), torch.arange(images)

    @property
    def training_loss_name(self) -> str | None:
        """Name of a training loss that is not the cross-entropy with the labels; None if it is."""
        name = "cross-entropy"
        if isinstance(self._loss, CrossEntropy):
            name = name if self._loss.class_weights is None else f"weighted {name}"
        elif self._loss:
            name = _part_name(self._loss)
        if self._embedding_loss:
            name += f" + {_part_name(self._embedding_loss)}"
        return name if name != "cross-entropy" else None

    @property
    def training_label_smoothing(self) -> float:
        """Label smoothing of the cross-entropy that is trained; 0 for a loss that is given."""
        if isinstance(self._loss, CrossEntropy):
            return self._loss.label_smoothing
        return 0.0 if self._loss else self.label_smoothing

    def _check_loss(self) -> None:
        """Call a given loss once: what it cannot take fails before there is a run directory."""
        if self._loss is None:
            return
        name = _part_name(self._loss)
        logits, targets = self._trial_batch()
        described = "targets (B,)"
        if self._mixing:
            targets = functional.one_hot(targets, self.num_classes).float()
            described = f"probabilities (B, {self.num_classes}), the targets of mixed images"
        try:
            with torch.no_grad():
                value = self._loss(logits, targets)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise UserError(
                f"loss {name} cannot take logits (B, {self.num_classes}) and {described}: {error}"
            ) from error
        if not isinstance(value, Tensor) or value.ndim:
            raise UserError(f"loss {name} must return a scalar tensor, such as the mean over the batch, not {value}.")

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls,
        checkpoint_path: Any,
        map_location: Any = None,
        *,
        strict: bool | None = True,
        weights_only: bool | None = True,
        **settings: Any,
    ) -> Self:
        """Rebuild a module from a checkpoint file, see `from_checkpoint`.

        Args:
            checkpoint_path: the file.
            map_location: device of the weights, see `torch.load`.
            strict: whether the checkpoint must have exactly the module's weights.
            weights_only: has no effect: no code in the file is executed.
            settings: arguments of the class that replace those in the checkpoint.
        """
        path = Path(checkpoint_path)
        try:
            checkpoint = load_checkpoint(path, map_location)
        except ValueError as error:
            raise DamagedRunError(path, str(error), "take it from a copy of the run") from error
        return cls.from_checkpoint(checkpoint, path, strict=strict is not False, **settings)

    @classmethod
    def from_checkpoint(cls, checkpoint: Any, path: Path, *, strict: bool = True, **settings: Any) -> Self:
        """Rebuild a module from the content of a checkpoint.

        The classes that it names are checked before any is instantiated.

        Args:
            checkpoint: the content, on the device that the module is to have.
            path: the file that it was read from, for messages.
            strict: whether the checkpoint must have exactly the module's weights.
            settings: arguments of the class that replace those in the checkpoint.

        Raises:
            UserError: if it is no checkpoint of Lightning, or names a class that is not accepted, see
                `fashion_cnn.runs.trust`.
        """
        check_content(checkpoint, path)
        arguments = {**(checkpoint.get("hyper_parameters") or {}), **settings}
        weights: Mapping[str, Tensor] = checkpoint["state_dict"]
        # Classes of the user may do anything: they are trusted.
        is_trusted = packages_to_trust(arguments) or not cls.__module__.startswith("fashion_cnn.")
        if is_trusted or isinstance(arguments.get("network"), nn.Module):
            module = cls(**arguments)
        else:
            module = build_within_limits(cls, arguments, weights, path, strict=strict)
        module.on_load_checkpoint(checkpoint)
        module.load_state_dict(weights, strict=strict)
        return module.to(next(iter(weights.values())).device) if weights else module

    def forward(self, images: Tensor) -> Tensor:
        """Return logits `(B, num_classes)` of normalised images `(B, C, H, W)`."""
        logits: Tensor = self.network(images)
        return logits

    def embed(self, images: Tensor) -> Tensor:
        """Return embeddings `(B, D)`, the input of the last linear layer, of normalised images `(B, C, H, W)`.

        Raises:
            UserError: if the network has no embeddings.
        """
        return self.logits_and_embeddings(images)[1]

    def logits_and_embeddings(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits `(B, num_classes)` and embeddings `(B, D)` from one forward pass.

        Args:
            images: normalised images `(B, C, H, W)`.

        Raises:
            UserError: if the network has no embeddings.
        """
        head = self.head()
        inputs: list[Tensor] = []
        caller = threading.get_ident()

        def keep_input(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            # Other threads that use the same network, as those of the server, run this hook too.
            if threading.get_ident() == caller:
                inputs.append(arguments[0])

        with head.register_forward_pre_hook(keep_input):
            logits = self(images)
        if not inputs:
            raise UserError(f"{type(self.network).__name__} has no embedding in training: drop embedding_loss.")
        return logits, inputs[0]

    def head(self) -> nn.Linear:
        """Return the linear layer that computes the logits from the embeddings.

        Raises:
            UserError: if the network has no embeddings.
        """
        if self.head_name is None:
            name = type(self.network).__name__
            raise UserError(
                f"{name} has no embeddings: its logits do not come from a linear layer (B, D) -> "
                f"(B, {self.num_classes}). End the network in nn.Linear to search, teach, explain or export with it."
            )
        return cast("nn.Linear", self.network.get_submodule(self.head_name))

    def setup(self, stage: str) -> None:
        """Initialise the network and the loss from training images and targets if they need that."""
        if stage != "fit":
            return
        initialise = getattr(self.network, "initialise", None)
        if initialise and not self.resumes:
            split, data = self._training_data(self.network)
            initialise(data.normalise(split.images_at(split.indices[:5000])))
        if initialise_loss := getattr(self._loss, "initialise", None):
            split, _ = self._training_data(self._loss)
            initialise_loss(split.targets, self.num_classes)

    def _training_data(self, part: Any) -> tuple[InMemoryDataset, ImageDataModule]:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, ImageDataModule):
            raise UserError(
                f"{type(part).__name__} is initialised from training images: "
                "train it with an ImageDataModule (fit(module, datamodule=data))."
            )
        return data.train_split, data

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
            logits, embeddings = self.logits_and_embeddings(images)
        else:
            logits = self(images)
        logits = logits.float()
        if self._loss:
            loss = self._loss(logits, targets)
        else:
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
            self._log_to_callbacks(
                {f"gap/{name}": self.gap(name, train[name], val[name]) for name in self.metric_names}
            )

    def gap(self, name: str, train: Value, held_out: Value) -> Value:
        """Return the gap in a metric between the train probe and held-out images; it grows with overfitting."""
        lower_is_better = name == "loss" or (name in self._metrics and self._metrics[name].higher_is_better is False)
        return held_out - train if lower_is_better else train - held_out

    def on_test_epoch_end(self) -> None:
        """Log the metrics of the test set."""
        self._log_splits(split_names(self.trainer.test_dataloaders))

    def _metrics_of(self, split: str) -> SplitMetrics:
        """The metrics of a split, created when it is first evaluated."""
        if split not in self._split_metrics:
            self._split_metrics[split] = SplitMetrics(self.num_classes, self._metrics)
        metrics = self._split_metrics[split]
        if metrics.loss.total.device != self.device:
            metrics.to(self.device)
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
        parameters = [*self.network.parameters()]
        if isinstance(self._loss, nn.Module):
            parameters += self._loss.parameters()
        trained = [p for p in parameters if p.requires_grad]
        weights = [p for p in trained if p.ndim > 1]
        others = [p for p in trained if p.ndim <= 1]
        optimizer = self._optimizer([{"params": weights}, {"params": others, "weight_decay": 0.0}])
        # A fused step would unscale float16 gradients itself, and Lightning refuses to clip scaled gradients.
        optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
        return optimizer, (self._schedule or constant)(optimizer, total_steps)


def _part_name(part: Any) -> str:
    """Name of a function, also one with fixed arguments, or of the class of an object."""
    function = getattr(part, "func", part)
    return str(getattr(function, "__name__", type(function).__name__))


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
