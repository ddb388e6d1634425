"""Checkpoints that are written atomically, and that stay valid when the run directory is moved."""

import io
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from fashion_cnn.runs.files import open_atomically


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint to a file beside the target and renames it: a killed process leaves the old or the new one.

    Lightning's own writer moves the file from the system's temporary folder, which is not atomic across disks. A folder
    that was removed during the training is not created again.
    """

    def __init__(self) -> None:
        super().__init__()
        self._created: set[Path] = set()

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write the checkpoint atomically."""
        # Written into a file by torch, an error of the disk would become one of its archive.
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        if (folder := Path(path).parent) not in self._created:
            folder.mkdir(exist_ok=True)
            self._created.add(folder)
        with open_atomically(Path(path)) as file:
            file.write(buffer.getbuffer())


class MovableModelCheckpoint(ModelCheckpoint):
    """A ModelCheckpoint that keeps its best score when the run directory is moved.

    Args:
        tie: metric that decides between epochs of the same score; the lower one is kept. On few validation images,
            several epochs reach the same accuracy.
        **settings: arguments of Lightning's ModelCheckpoint.
    """

    def __init__(self, *, tie: str | None = None, **settings: Any) -> None:
        super().__init__(**settings)
        self.tie = tie
        self._lowest: float | None = None

    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:
        """Return whether the current score is better, or equal with a lower value of `tie`."""
        tie_value = trainer.callback_metrics.get(self.tie or "")
        best = self.best_model_score
        # Compared as numbers: the best score of a resumed run is on the CPU, the current one on the training device.
        is_tie = current is not None and best is not None and current.item() == best.item()
        is_lower = tie_value is not None and self._lowest is not None and tie_value.item() < self._lowest
        is_better = super().check_monitor_top_k(trainer, current) or (is_tie and is_lower)
        if is_better and tie_value is not None:
            self._lowest = tie_value.item()
        return is_better

    def state_dict(self) -> dict[str, Any]:
        """Return Lightning's state and the lowest value of `tie`."""
        return {**super().state_dict(), "lowest": self._lowest}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state, with all paths moved into the present run directory."""
        assert self.dirpath is not None
        moved = {**state_dict, "dirpath": self.dirpath}
        for name in ("best_model_path", "last_model_path", "kth_best_model_path"):
            moved[name] = self._moved(state_dict[name])
        moved["best_k_models"] = {self._moved(path): score for path, score in state_dict["best_k_models"].items()}
        self._lowest = state_dict.get("lowest")
        super().load_state_dict(moved)

    def _moved(self, path: str) -> str:
        name = Path(path).name
        # A name such as `..` would make the removal of an older checkpoint delete the run directory.
        return str(Path(str(self.dirpath)) / name) if name.endswith(self.FILE_EXTENSION) else ""
