"""Precision of networks against that of Lightning's Trainer with the same settings."""

import warnings

import pytest
import torch
from lightning.pytorch import Trainer

from fashion_cnn.models.hardware import precision_context, resolve_precision


def lightning_precision(precision):
    """The precision of Lightning's Trainer on a CPU, and the dtype of a matrix product under it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = Trainer(accelerator="cpu", precision=precision, logger=False, enable_checkpointing=False)
    with trainer.precision_plugin.forward_context():
        return trainer.precision, (torch.ones(2, 2) @ torch.ones(2, 2)).dtype


@pytest.mark.parametrize("precision", ["32-true", 32, "32", None, "bf16-mixed", "bf16", "16-mixed", 16, "16"])
def test_precision_equals_that_of_lightnings_trainer_on_a_cpu(precision):
    name, dtype = lightning_precision(precision)
    assert resolve_precision(precision, "cpu") == name
    with precision_context(precision, "cpu"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


def test_the_automatic_precision_is_one_of_lightnings():
    assert lightning_precision(resolve_precision("auto", "cpu"))[0] == resolve_precision("auto", "cpu")
