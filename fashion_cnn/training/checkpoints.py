"""Checkpoints that survive being killed while they are written, and runs that are moved."""

import os
from pathlib import Path
from typing import Any

from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target and renames, so a kill leaves the old checkpoint or the new one.

    Lightning's own writer moves the file out of the temporary folder, which is a copy where that
    folder lies on another disk.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        partial = Path(f"{path}.partial")
        super().save_checkpoint(checkpoint, partial, storage_options)
        with partial.open("rb") as file:
            # Else a power cut may leave the new name with an empty file.
            os.fsync(file.fileno())
        partial.replace(path)


class MovableModelCheckpoint(ModelCheckpoint):
    """A ModelCheckpoint that still knows its best score after the run directory was moved.

    tie: the metric that decides, by being lower, between epochs of the same score: few validation images are soon
    recognised one and all.
    """

    def __init__(self, *, tie: str | None = None, **settings: Any) -> None:
        super().__init__(**settings)
        self.tie = tie
        self._lowest: float | None = None

    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:
        other = trainer.callback_metrics.get(self.tie or "")
        best = self.best_model_score
        # As numbers: a resumed run's best score lies on the CPU, wherever it trains.
        level = current is not None and best is not None and current.item() == best.item()
        lower = other is not None and self._lowest is not None and other.item() < self._lowest
        better = super().check_monitor_top_k(trainer, current) or (level and lower)
        if better and other is not None:
            self._lowest = other.item()
        return better

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "lowest": self._lowest}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        assert self.dirpath is not None
        moved = {**state_dict, "dirpath": self.dirpath}
        for name in ("best_model_path", "last_model_path", "kth_best_model_path"):
            moved[name] = self._moved(state_dict[name])
        moved["best_k_models"] = {self._moved(path): score for path, score in state_dict["best_k_models"].items()}
        self._lowest = state_dict.get("lowest")
        super().load_state_dict(moved)

    def _moved(self, path: str) -> str:
        return str(Path(str(self.dirpath)) / Path(path).name) if path else path
