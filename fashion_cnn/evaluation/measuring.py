"""Networks rebuilt from their run directories, and what they say of a split."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from fashion_cnn.analysis.predictions import Predictions
from fashion_cnn.data import ImageDataModule, InMemoryDataset
from fashion_cnn.data.fingerprint import fingerprint
from fashion_cnn.errors import UserError
from fashion_cnn.models import ImageClassifier
from fashion_cnn.models.ensemble import MeanOfNetworks
from fashion_cnn.runs import Run
from fashion_cnn.training import build
from fashion_cnn.training.hardware import device_for, precision_context
from fashion_cnn.training.results import measure
from fashion_cnn.training.weights import restore

Split = Literal["val", "test"]


@dataclass(frozen=True)
class Measured:
    """What a network, or several as one, says of a split.

    figures: `<split>/loss` and so on, as the training writes them into results.json. val: what it says of the
    validation images; None where the trainings kept none, or not the same.
    """

    config: DictConfig
    module: ImageClassifier
    data: ImageDataModule
    split: Split
    predictions: Predictions
    val: Predictions | None
    figures: dict[str, float]

    @cached_property
    def images(self) -> Tensor:
        """The split's images `(N, C, H, W)` uint8, in the order of the predictions."""
        split: InMemoryDataset = self.data.val_split if self.split == "val" else self.data.test_split
        return split.images_at(self.predictions.indices)

    @cached_property
    def fingerprint(self) -> str:
        """The SHA-256 of the split's images and labels."""
        return fingerprint(self.images, self.predictions.targets)

    def classify(self, images: Tensor) -> Tensor:
        """Logits `(B, num_classes)` of images `(B, C, H, W)` uint8, on the hardware and in the precision of the run."""
        accelerator, precision = self.config.trainer.accelerator, self.config.trainer.precision
        device = device_for(accelerator)
        with precision_context(precision, accelerator):
            return self.module.to(device).eval()(self.data.normalise(images.to(device)))


def measure_runs(runs: Sequence[Run], split: Split, *, data_root: str | None = None) -> Measured:
    """Measure the run's network, or the mean of several runs' networks, on `split`.

    data_root: where the data lie on this machine, if not where the run had them.
    Raises UserError where a checkpoint is not its run's, the runs are of different data, or there is no such split.
    """
    rebuilt = [rebuild(run, data_root) for run in runs]
    config, module, data = rebuilt[0]
    _require(split, runs[0], data)
    validated_alike = True
    # Of one run there is nothing to compare.
    images = {name: _images_of(name, data) for name in {split, "val"}} if len(runs) > 1 else {}
    for run, (_, _, other) in zip(runs[1:], rebuilt[1:], strict=True):
        if _described(other) != _described(data):
            raise UserError(
                f"{run.path} saw other data than {runs[0].path}: their answers cannot be averaged. Name runs of the "
                "same classes, image size and normalisation."
            )
        if _images_of(split, other) != images[split]:
            raise UserError(
                f"{run.path} has other {split} images than {runs[0].path}, and may have trained on those: they cannot "
                "be measured as one. Name runs of the same data and splits (data.split_seed, data.val_size)."
            )
        # That of the split itself was compared.
        validated_alike &= split == "val" or _images_of("val", other) == images["val"]
    if len(runs) > 1:
        module = ImageClassifier(
            network=MeanOfNetworks([other.network for _, other, _ in rebuilt]),
            image_shape=data.image_shape,
            num_classes=data.num_classes,
        )
    figures, predictions = measure(config, module, data, test=split == "test", flip_average=True)
    return Measured(
        config=config,
        module=module,
        data=data,
        split=split,
        predictions=predictions[split],
        val=predictions.get("val") if validated_alike else None,
        figures=figures,
    )


def _require(split: Split, run: Run, data: ImageDataModule) -> None:
    """Raises UserError where the run has no images of the split."""
    there = {"test": data.has_test, "val": data.val_size > 0}
    if there[split]:
        return
    lacks = {"test": "has no test images (data.test_share=0)", "val": "kept no validation images (data.val_size=0)"}
    others = [f"say split={other}" for other, is_there in there.items() if is_there]
    raise UserError(f"{run.path} {lacks[split]}: {''.join(others) or 'there are none to measure it on'}.")


def rebuild(run: Run, data_root: str | None) -> tuple[DictConfig, ImageClassifier, ImageDataModule]:
    """A run's config, its network with its best weights, and its data. Raises UserError where they do not fit."""
    config = run.config()
    # All of the split, on one machine, which may lack the hardware that it was trained on.
    limits = {"limit_val_batches": 1.0, "limit_test_batches": 1.0, "overfit_batches": 0.0, "num_nodes": 1}
    config.trainer = OmegaConf.merge(config.trainer, limits)
    if device_for(config.trainer.accelerator).type == "cpu":
        config.trainer.accelerator = "cpu"
    if data_root is not None:
        config.data.root = data_root
    data = build.data(config)
    module = build.module(config, data)
    restore(module, run)
    return config, module.eval(), data


def _described(data: ImageDataModule) -> tuple[object, ...]:
    """What two runs must share for their answers to be answers to the same question."""
    normalised = (data.pixel_mean.tolist(), data.pixel_scale.tolist())
    return (tuple(data.class_names), data.image_shape, data.background, *normalised)


def _images_of(split: Split, data: ImageDataModule) -> str:
    """The SHA-256 of a split: a run whose split is the same trained on none of its images."""
    data.setup("fit" if split == "val" else "test")
    members: InMemoryDataset = data.val_split if split == "val" else data.test_split
    return fingerprint(members.images, members.targets)
