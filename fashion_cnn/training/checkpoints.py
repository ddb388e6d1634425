"""Checkpoints that survive being killed while they are written, and runs that are moved."""

from pathlib import Path
from typing import Any

from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target and renames, so a kill leaves the old checkpoint or the new one.

    Lightning's own writer moves the file out of the temporary folder, which is a copy where that
    folder lies on another disk.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        partial = Path(f"{path}.partial")
        super().save_checkpoint(checkpoint, partial, storage_options)
        partial.replace(path)


class MovableModelCheckpoint(ModelCheckpoint):
    """A ModelCheckpoint that still knows its best score after the run directory was moved."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        assert self.dirpath is not None
        moved = {**state_dict, "dirpath": self.dirpath}
        for name in ("best_model_path", "last_model_path", "kth_best_model_path"):
            moved[name] = self._moved(state_dict[name])
        moved["best_k_models"] = {self._moved(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict(moved)

    def _moved(self, path: str) -> str:
        return str(Path(str(self.dirpath)) / Path(path).name) if path else path
