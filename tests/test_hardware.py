"""The number format that networks compute in, beside what Lightning makes of the same settings."""

import warnings

import pytest
import torch
from lightning.pytorch import Trainer

from fashion_cnn.models.hardware import precision_context, resolve_precision


def lightnings(precision):
    """The format, and of a product of matrices under it, as Lightning's Trainer has them on a CPU."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = Trainer(accelerator="cpu", precision=precision, logger=False, enable_checkpointing=False)
    with trainer.precision_plugin.forward_context():
        return trainer.precision, (torch.ones(2, 2) @ torch.ones(2, 2)).dtype


@pytest.mark.parametrize("precision", ["32-true", 32, "32", None, "bf16-mixed", "bf16", "16-mixed", 16, "16"])
def test_a_network_computes_as_lightning_has_it_compute_on_a_cpu(precision):
    name, dtype = lightnings(precision)
    assert resolve_precision(precision, "cpu") == name
    with precision_context(precision, "cpu"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


def test_what_is_fast_here_is_a_format_of_lightnings():
    assert lightnings(resolve_precision("auto", "cpu"))[0] == resolve_precision("auto", "cpu")
