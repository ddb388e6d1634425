"""How the weights and the activations of each layer are spread, for TensorBoard."""

from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from fashion_cnn.analysis.layout import board_writer
from fashion_cnn.data import Batch
from fashion_cnn.errors import UserError
from fashion_cnn.models import split_names
from fashion_cnn.models.layers import is_nonlinearity

if TYPE_CHECKING:
    from torch.utils import hooks


# What lies beyond the bins of TensorBoard's histograms, or is no number, cannot be shown by one.
_LARGEST = 1e20


class Histograms(Callback):
    """Writes histograms in every `every_n_epochs`-th validation pass, in the first one too. Raises UserError below 1.

    The activations are those of the first `images` validation images in that very pass, after each non-linearity and
    of the logits; the weights are the ones that the pass measures (the averaged ones where there are such).
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
        # With validation every n-th epoch only, the passes count.
        passes = trainer.current_epoch // (trainer.check_val_every_n_epoch or 1)
        due = passes % self.every_n_epochs == 0 and not trainer.sanity_checking
        first = batch_idx == 0 and split_names(trainer.val_dataloaders)[dataloader_idx] == "val"
        if due and first and board_writer(trainer) is not None:
            assert isinstance(pl_module.network, nn.Module)
            for name, layer in pl_module.network.named_modules():
                if is_nonlinearity(layer) or name == "classifier":
                    self._hooks.append(layer.register_forward_hook(self._keep(name)))

    def _keep(self, name: str) -> Any:
        def keep(layer: nn.Module, inputs: Any, output: Tensor) -> None:
            # A copy: what follows may work in place.
            self._activations[name] = output[: self.images].detach().to(torch.float32, copy=True)

        return keep

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if not self._hooks:
            return
        for hook in self._hooks:
            hook.remove()
        writer, step = board_writer(trainer), trainer.global_step

        def add(name: str, values: Tensor) -> None:
            if values.abs().max() < _LARGEST:
                writer.add_histogram(name, values, step)

        for name, values in self._activations.items():
            add(f"activations/{name}", values)
        assert isinstance(pl_module.network, nn.Module)
        for name, parameter in pl_module.network.named_parameters():
            add(f"weights/{name}", parameter.detach().float())
        self._hooks.clear()
        self._activations.clear()
