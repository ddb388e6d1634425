"""Variants of training for scripts/benchmark: each returns the seconds of one short epoch."""

import copy
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from omegaconf import DictConfig, OmegaConf
from torch.nn import functional
from torch.utils.data import DataLoader, Subset
from torchvision import transforms
from torchvision.datasets import FashionMNIST

from fashion_cnn.data import Batch, ImageDataModule
from fashion_cnn.data.batches import InMemoryDataset
from fashion_cnn.models.hardware import fast_precision
from fashion_cnn.training import build
from fashion_cnn.training.callbacks import WarmedEMAWeightAveraging

ANALYSIS = ("gap", "dynamics", "histograms")
# Name of the evaluation in a profile of the bare loop.
EVALUATION = "evaluation"


class EpochTimer(Callback):
    """Measures the seconds of one epoch with its validation and checkpoints."""

    def on_train_epoch_start(self, *_: Any) -> None:
        self.started = time.perf_counter()

    def on_train_end(self, *_: Any) -> None:
        self.seconds = time.perf_counter() - self.started


def pipeline(config: DictConfig, data: ImageDataModule) -> float:
    essential = {name: part for name, part in config.callbacks.items() if name not in ANALYSIS}
    return analysed(OmegaConf.merge(config, {"callbacks": None}, {"callbacks": essential}), data)


def unmeasured(config: DictConfig, data: ImageDataModule) -> float:
    # Without validation images there is also no checkpoint of the best epoch.
    without = copy.copy(data)
    without.val_size = 0
    return pipeline(config, without)


def analysed(config: DictConfig, data: ImageDataModule) -> float:
    timer = EpochTimer()
    with tempfile.TemporaryDirectory() as folder:
        fit(config, data, timer, Path(folder))
    return timer.seconds


def fit(config: DictConfig, data: ImageDataModule, timer: Callback, folder: Path) -> Trainer:
    """Train as `python -m fashion_cnn.train` does, with `timer` as the last callback."""
    module = build.module(config, data)
    trainer = build.trainer(config, data, folder)
    trainer.callbacks.append(timer)
    trainer.fit(module, datamodule=data)
    return trainer


def bare(config: DictConfig, data: ImageDataModule) -> float:
    module = build.module(config, data)
    network = module.network.train()
    steps = len(data.train_split) // data.batch_size
    optimizer, schedule = module.make_optimizer(steps)
    averaging = WarmedEMAWeightAveraging(config.callbacks.ema.decay)
    averaged = torch.optim.swa_utils.AveragedModel(network, use_buffers=True, **averaging._kwargs)
    bf16 = fast_precision("cpu") == "bf16-mixed"

    def autocast() -> Any:
        return torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext()

    # The properties copy the tensors at each access.
    train_images, train_targets = data.train_split.images, data.train_split.targets
    started = time.perf_counter()
    order = torch.randperm(len(data.train_split))
    loss_sum, correct = torch.zeros(()), torch.zeros(())
    for step in range(steps):
        chosen = order[step * data.batch_size : (step + 1) * data.batch_size]
        images, targets = train_images[chosen], train_targets[chosen]
        for augment in data.augmentation:
            images = augment(images)
        with autocast():
            logits = network(data.normalise(images))
        logits = logits.float()
        loss = functional.cross_entropy(logits, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        averaged.update_parameters(network)
        loss_sum += loss.detach()
        correct += (logits.argmax(1) == targets).sum()
    averaged.eval()
    with torch.inference_mode(), autocast(), torch.profiler.record_function(EVALUATION):
        for split in (data.train_probe, data.val_split):
            split_images, split_targets = split.images, split.targets
            for start in range(0, len(split), data.eval_batch_size):
                images = split_images[start : start + data.eval_batch_size]
                targets = split_targets[start : start + data.eval_batch_size]
                logits = averaged(data.normalise(images)).float()
                loss_sum += functional.cross_entropy(logits, targets)
                correct += (logits.argmax(1) == targets).sum()
    return time.perf_counter() - started


class UsualDataModule(LightningDataModule):
    """Data loading as in tutorials: torchvision's data set, with transforms per image."""

    def __init__(self, config: DictConfig, data: ImageDataModule) -> None:
        super().__init__()
        self.data, self.root = data, config.data.root
        as_tensor = [transforms.ToTensor(), transforms.Normalize(config.data.mean, config.data.std)]
        self.evaluation = transforms.Compose(as_tensor)
        on_pictures: list[Any] = []
        on_tensors: list[Any] = []
        parts = config.data.augmentation or {}
        if flip := parts.get("flip"):
            on_pictures.append(transforms.RandomHorizontalFlip(flip.p))
        if crop := parts.get("crop"):
            on_pictures.append(transforms.RandomCrop(data.image_shape[1], padding=crop.padding))
        if erasing := parts.get("erasing"):
            scale, ratio = tuple(erasing.scale), tuple(erasing.ratio)
            on_tensors.append(transforms.RandomErasing(erasing.p, scale, ratio, value="random"))
        self.training = transforms.Compose([*on_pictures, *as_tensor, *on_tensors])

    def loader(self, members: torch.Tensor, transform: Callable[..., Any], **settings: Any) -> DataLoader[Any]:
        dataset = Subset(FashionMNIST(self.root, train=True, transform=transform), members.tolist())
        return DataLoader(dataset, num_workers=2, persistent_workers=True, collate_fn=as_batch, **settings)

    def train_dataloader(self) -> DataLoader[Any]:
        members = self.data.train_split.indices
        return self.loader(members, self.training, batch_size=self.data.batch_size, shuffle=True, drop_last=True)

    def val_dataloader(self) -> dict[str, DataLoader[Any]]:
        splits = {"train": self.data.train_probe, "val": self.data.val_split}
        size = self.data.eval_batch_size
        return {name: self.loader(split.indices, self.evaluation, batch_size=size) for name, split in splits.items()}


def as_batch(items: list[tuple[torch.Tensor, int]]) -> Batch:
    images, targets = zip(*items, strict=True)
    return Batch(torch.stack(images), torch.tensor(targets), torch.zeros(len(items), dtype=torch.int64))


def usual(config: DictConfig, data: ImageDataModule) -> float:
    module = build.module(config, data)
    module.network.to(memory_format=torch.contiguous_format)
    timer = EpochTimer()
    averaging = WarmedEMAWeightAveraging(config.callbacks.ema.decay)
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        precision="32-true",
        callbacks=[averaging, timer],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, datamodule=UsualDataModule(config, data))
    return timer.seconds


class Keras:
    """The network of `model=baseline` in Keras on TensorFlow, in one process for all rounds."""

    def __init__(self, python: str, data: ImageDataModule) -> None:
        self.folder = tempfile.TemporaryDirectory()
        splits = {"train": data.train_split, "probe": data.train_probe, "val": data.val_split}
        self.process = start_keras(python, Path(self.folder.name), splits)
        self._read_line()

    def __call__(self, config: DictConfig, data: ImageDataModule) -> float:
        assert self.process.stdin
        self.process.stdin.write("epoch\n")
        self.process.stdin.flush()
        return float(self._read_line())

    def _read_line(self) -> str:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("error: Keras failed, see its output above. Its environment needs tensorflow-cpu.")
        return line


def start_keras(
    python: str, folder: Path, splits: dict[str, InMemoryDataset], *arguments: str
) -> subprocess.Popen[str]:
    """Start keras_epochs.py with the `splits`, which it reads from a file in `folder`."""
    arrays = folder / "images.npz"
    # Keras takes (N, H, W, C).
    images = {f"{name}.images": split.images.permute(0, 2, 3, 1).numpy() for name, split in splits.items()}
    targets = {f"{name}.targets": split.targets.numpy() for name, split in splits.items()}
    np.savez(arrays, allow_pickle=False, **images, **targets)
    command = [python, str(Path(__file__).with_name("keras_epochs.py")), str(arrays), *arguments]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PROCESS_STARTED": str(time.time())}
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


WAYS: dict[str, Callable[[DictConfig, ImageDataModule], float]] = {
    "pipeline": pipeline,
    "bare": bare,
    "usual": usual,
    "analysed": analysed,
    "unmeasured": unmeasured,
}
