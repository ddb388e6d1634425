"""One training of the study, and everything that is measured on it."""

import base64
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from fashion_cnn.analysis.dynamics import TrainingDynamics
from fashion_cnn.analysis.monitor import PredictionCollector
from fashion_cnn.cli.main import compose
from fashion_cnn.data import FashionMNISTDataModule
from fashion_cnn.data.batches import InMemoryDataset
from fashion_cnn.data.splits import derive_seed, stratified_order
from fashion_cnn.evaluation.corruptions import corrupt
from fashion_cnn.inference.network import NetworkRunner, read_checkpoint
from fashion_cnn.metrics.calibration import reliability_diagram
from fashion_cnn.metrics.predictions import Predictions
from fashion_cnn.train import train
from overfitting_study import pictogram_set
from overfitting_study.design import FIRST_OF_COVERAGE, FIRST_OF_CURVE, Job, group_of

JUDGE_SIZE = 10_000
# Images of the train probe that measures the gap at the end; during an arm's training a smaller one will do.
PROBE_SIZE = 5_000
_ARM_PROBE_SIZE = 1_000
_REST_SIZE = 20_000
# Judge images whose predicted classes are recorded, for the agreement of two networks.
_AGREEMENT_SIZE = 2_000
# Images for measurements that need many passes.
_SMALL_SAMPLE = 1_000
# Standard deviations of the noise on the weights, relative to each weight.
_PERTURBATIONS = (0.05, 0.1, 0.2)
_CORRUPTIONS = ("shot_noise", "translation", "contrast", "gaussian_blur")


class StudyDataModule(FashionMNISTDataModule):
    """Fashion-MNIST without its test set: training, validation and a fixed judge that no training sees.

    Args:
        label_noise: share of the images whose label is replaced by a random other class. The judge keeps its labels.
        settings: see `FashionMNISTDataModule`; `split_seed` also seeds the label noise.

    Attributes:
        judge: 10,000 images, the same for every seed.
        rest: at most 20,000 images that are in no other split, with the label noise of the training.
    """

    has_test = False

    def __init__(self, *, label_noise: float = 0.0, **settings: Any) -> None:
        super().__init__(**settings)
        self.label_noise = label_noise

    def load(self, *, train: bool) -> tuple[Tensor, Tensor]:
        """Read the training images and their targets, with label noise."""
        self._images, self._clean = self._read()
        generator = torch.Generator().manual_seed(derive_seed("label noise", self.split_seed))
        shifts = torch.randint(1, self.num_classes, self._clean.shape, generator=generator)
        wrong = torch.rand(self._clean.shape, generator=generator) < self.label_noise
        self._targets = torch.where(wrong, (self._clean + shifts) % self.num_classes, self._clean)
        return self._images, self._targets

    def _read(self) -> tuple[Tensor, Tensor]:
        return super().load(train=True)

    def split_train_val(self, targets: Tensor, is_kept: Tensor) -> tuple[Tensor, Tensor]:
        """Return positions of training and validation images, drawn by `split_seed` from all but the judge."""
        order = stratified_order(self._clean, derive_seed("judge"))
        self._judge_positions, pool = order[:JUDGE_SIZE], order[JUDGE_SIZE:]
        self._pool = pool[stratified_order(self._clean[pool], self.split_seed)]
        return self._pool[self.val_size :], self._pool[: self.val_size]

    @property
    def judge(self) -> InMemoryDataset:
        return InMemoryDataset(self._images, self._clean, self._judge_positions)

    @property
    def rest(self) -> InMemoryDataset:
        unused = self._pool[self.val_size + len(self.train_split) :]
        return InMemoryDataset(self._images, self._targets, unused[:_REST_SIZE])

    def probe(self, size: int = PROBE_SIZE) -> InMemoryDataset:
        """A stratified sample of the training images, all of them if there are at most `size`."""
        return InMemoryDataset(self._images, self._targets, self.train_split.indices[:size])


class PictogramDataModule(StudyDataModule):
    """Pictograms of the project's own generator in place of Fashion-MNIST; `root` is the folder of the set."""

    class_names = tuple(map(str, range(pictogram_set.CLASSES)))
    train_size = pictogram_set.CLASSES * pictogram_set.IMAGES_PER_CLASS
    about = "Small grey pictures of icons of brands, drawn by scripts/pictograms."

    def prepare_data(self) -> None:
        """Draw the pictures, if they are missing."""
        pictogram_set.make(self.root)

    def _read(self) -> tuple[Tensor, Tensor]:
        return pictogram_set.read(self.root)


class PassRecorder(PredictionCollector):
    """Keeps what each validation pass measured: accuracies, losses, and the losses of the validation images.

    Attributes:
        passes: one dict of metrics for each pass.
        val_losses: `(N,)` of each pass.
        val_correct: `(N,)` bool of each pass.
        module: the network that was trained.
        data: its data.
    """

    def __init__(self) -> None:
        super().__init__()
        self.passes: list[dict[str, float]] = []
        self.val_losses: list[Tensor] = []
        self.val_correct: list[Tensor] = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the network and the data."""
        self.module, self.data = pl_module, trainer.datamodule  # type: ignore[attr-defined]

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record a pass."""
        super().on_validation_epoch_end(trainer, pl_module)
        train_probe, val = self.predictions["train"], self.predictions["val"]
        # The validation order is random and stratified: alternate images are two random halves.
        correct = val.correct[self._half_order(val)]
        losses = val.losses[self._half_order(val)]
        self.val_losses.append(val.losses)
        self.val_correct.append(val.correct)
        self.passes.append(
            {
                "epoch": trainer.current_epoch + 1,
                "train_accuracy": train_probe.correct.double().mean().item(),
                "train_loss": train_probe.losses.double().mean().item(),
                "val_accuracy": val.correct.double().mean().item(),
                "val_loss": val.losses.double().mean().item(),
                "val_accuracy_a": correct[::2].double().mean().item(),
                "val_accuracy_b": correct[1::2].double().mean().item(),
                "val_loss_a": losses[::2].double().mean().item(),
                "val_loss_b": losses[1::2].double().mean().item(),
            }
        )

    def _half_order(self, val: Predictions) -> Tensor:
        generator = torch.Generator().manual_seed(derive_seed("halves"))
        return torch.randperm(len(val), generator=generator)

    def loss_rises(self) -> list[list[float]]:
        """Mean and standard error of the paired rise of the validation loss from each pass to the last."""
        rises = [self.val_losses[-1].double() - losses.double() for losses in self.val_losses]
        return [[rise.mean().item(), (rise.std() / len(rise) ** 0.5).item()] for rise in rises]


def run_job(job: Job, root: Path) -> dict[str, Any]:
    """Train and measure.

    Args:
        job: the training.
        root: folder of Fashion-MNIST.

    Returns:
        The record of the training, of plain values.
    """
    start = time.perf_counter()
    is_base = job.arm == "base"
    recorder, dynamics = PassRecorder(), TrainingDynamics()
    overrides = [*job.overrides(), f"data.root={root}"]
    checks_coverage = group_of(job.base) in (FIRST_OF_COVERAGE, FIRST_OF_CURVE)
    overrides.append(f"data.probe_size={PROBE_SIZE if is_base or checks_coverage else _ARM_PROBE_SIZE}")
    with TemporaryDirectory() as folder:
        callbacks = [recorder, dynamics] if is_base else [recorder]
        results = train(compose("train", overrides), directory=Path(folder) / "run", callbacks=callbacks, quiet=True)
        weights = {
            name: read_checkpoint(Path(folder) / "run" / "checkpoints" / f"{name}.ckpt")["state_dict"]
            for name in ("last", "best")
        }
    data, module = recorder.data, recorder.module
    network = NetworkRunner(module, data, precision=results["precision"])
    record: dict[str, Any] = {**job.as_dict(), "passes": recorder.passes, "loss_rises": recorder.loss_rises()}
    names = ("verdict", "verdict_rule", "advice_reasons", "best_epoch", "parameters", "precision", "hardware", "torch")
    record |= {name: results.get(name) for name in names}
    if checks_coverage:
        record["val_correct"] = [_pack_bits(correct) for correct in recorder.val_correct]
    for name in ("best", "last"):
        module.load_state_dict(weights[name])
        if name == "best" and results["best_epoch"] == recorder.passes[-1]["epoch"]:
            continue
        record |= {f"{name}_{key}": value for key, value in _splits(network, data, with_rest=is_base).items()}
    judge = predict(network, data.judge)
    record["judge_correct"] = _pack_bits(judge.correct)
    record["judge_classes"] = base64.b85encode(bytes(judge.predicted[:_AGREEMENT_SIZE].tolist())).decode()
    if is_base:
        record |= _dynamics(dynamics) | _probe_measurements(network, data) | _held_out_measurements(network, data)
    record["seconds"] = round(time.perf_counter() - start, 2)
    return _rounded(record)


def predict(network: NetworkRunner, split: InMemoryDataset) -> Predictions:
    """Predict all images of a split."""
    return Predictions(network.logits(split.images), split.targets, split.indices)


def _splits(network: NetworkRunner, data: StudyDataModule, *, with_rest: bool) -> dict[str, Any]:
    splits = {"train": data.probe(), "val": data.val_split, "judge": data.judge}
    if with_rest:
        splits["rest"] = data.rest
    measured: dict[str, Any] = {}
    for name, split in splits.items():
        predictions = predict(network, split)
        measured[f"{name}_accuracy"] = predictions.correct.double().mean().item()
        measured[f"{name}_loss"] = predictions.losses.double().mean().item()
        measured[f"{name}_count"] = len(split)
    return measured


def _pack_bits(mask: Tensor) -> str:
    return base64.b85encode(np.packbits(mask.numpy()).tobytes()).decode()


def _dynamics(dynamics: TrainingDynamics) -> dict[str, float]:
    table = dynamics.result()
    return {
        "forgotten_mean": table.forgotten.double().mean().item(),
        "forgotten_share": (table.forgotten > 0).double().mean().item(),
        "never_recognised_share": (table.recognised == 0).double().mean().item(),
        "running_margin": table.margin.double().mean().item(),
        "running_confidence": table.confidence.double().mean().item(),
        "running_variability": table.variability.double().mean().item(),
    }


def margins(predictions: Predictions) -> Tensor:
    """Logit of the target minus the highest other logit, `(N,)`."""
    target = predictions.logits.gather(1, predictions.targets[:, None])
    return (target - predictions.logits.scatter(1, predictions.targets[:, None], -torch.inf).amax(1, True))[:, 0]


def _distribution(name: str, predictions: Predictions) -> dict[str, Any]:
    quantiles = torch.tensor([0.05, 0.1, 0.25, 0.5, 0.75], dtype=torch.float64)
    return {
        f"{name}_margin_quantiles": margins(predictions).double().quantile(quantiles).tolist(),
        f"{name}_probability_margin_mean": (2 * predictions.probabilities.gather(1, predictions.targets[:, None]) - 1)
        .double()
        .mean()
        .item(),
        f"{name}_confidence": predictions.confidence.double().mean().item(),
        f"{name}_calibration_error": reliability_diagram(predictions).expected_calibration_error,
        f"{name}_entropy": torch.special.entr(predictions.probabilities).sum(1).double().mean().item(),
    }


def _held_out_measurements(network: NetworkRunner, data: StudyDataModule) -> dict[str, Any]:
    return _distribution("val", predict(network, data.val_split))


def _probe_measurements(network: NetworkRunner, data: StudyDataModule) -> dict[str, Any]:
    """Measurements that need training images alone."""
    measured = _distribution("train", predict(network, data.probe()))
    sample = data.probe(_SMALL_SAMPLE)
    images, targets = sample.images, sample.targets

    def accuracy_and_loss(name: str, changed: Tensor) -> dict[str, float]:
        predictions = Predictions(network.logits(changed), targets, sample.indices)
        return {
            f"{name}_accuracy": predictions.correct.double().mean().item(),
            f"{name}_loss": predictions.losses.double().mean().item(),
        }

    measured |= accuracy_and_loss("sample", images)
    for name in _CORRUPTIONS:
        measured |= accuracy_and_loss(f"sample_{name}", corrupt(images, name, severity=1))
    partners = images.roll(1, 0)
    for share in (0.1, 0.3):
        mixed = ((1 - share) * images + share * partners).round().to(torch.uint8)
        measured |= accuracy_and_loss(f"sample_mixup_{share}", mixed)
    original = {name: value.clone() for name, value in network.module.state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    for deviation in _PERTURBATIONS:
        draws = []
        for _ in range(2):
            noisy = dict(original)
            for name, parameter in network.module.named_parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                noisy[name] = original[name] * (1 + deviation * noise)
            network.module.load_state_dict(noisy)
            draws.append(accuracy_and_loss("", images))
        for key in draws[0]:
            measured[f"sample_weight_noise_{deviation}{key}"] = sum(draw[key] for draw in draws) / len(draws)
    network.module.load_state_dict(original)
    return measured


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(part) for part in value]
    return value
