"""Load checkpoints that may come from others: no code in them is executed, and memory and time are limited."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fashion_cnn.errors import UserError
from fashion_cnn.runs.damage import DamagedRunError, check_checkpoint, check_containers, unpickling_errors
from fashion_cnn.runs.files import update_class_paths
from fashion_cnn.runs.trust import check_classes

Module = TypeVar("Module", bound=nn.Module)
# Limits of building a network and passing one image through it; WRN-28-10 needs 5 MB, 150 MB and 20 operations a
# weight.
# Bytes of one tensor, beside those of the weights.
_MAX_TENSOR_BYTES = 2_000_000_000
# Bytes of all tensors in turn: a number, and a multiple of those of the weights.
_MAX_TOTAL_BYTES, _MAX_USES_OF_WEIGHTS = 20_000_000_000, 10
# Operations: a number, and a number for each weight.
_MAX_OPERATIONS, _MAX_OPERATIONS_PER_WEIGHT = 10_000, 200
# Ratio of the bytes of the weights to those of their memory, which tied weights share.
_MAX_TIED = 10


def load_checkpoint(path: Path, map_location: Any = "cpu") -> Any:
    """Load a checkpoint of Lightning, after checks of what it would allocate.

    Args:
        path: the file.
        map_location: see `torch.load`.

    Raises:
        FileNotFoundError: if it does not exist.
        ValueError: if it is no checkpoint, or one that no training writes; the message is the reason.
    """
    check_checkpoint(path)
    with unpickling_errors():
        checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    weights = checkpoint.get("state_dict") if isinstance(checkpoint, dict) else None
    if isinstance(weights, Mapping):
        _check_weights(weights)
    return checkpoint


def _check_weights(weights: Mapping[Any, Any]) -> None:
    """Raise ValueError unless weights are dense tensors by name that are stored in full."""
    stored, total = {}, 0
    for name, weight in weights.items():
        if not isinstance(name, str):
            raise ValueError(f"the name of a weight is {name!r:.40}, no text")
        if not isinstance(weight, Tensor):
            raise ValueError("its weights are no tensors")
        is_dense = weight.layout == torch.strided and not (weight.is_nested or weight.is_quantized or weight.is_meta)
        size = weight.numel() * weight.element_size()
        if not is_dense or weight.is_conj() or weight.is_neg() or size > weight.untyped_storage().nbytes():
            raise ValueError(f"{name:.40} is not a dense tensor that is stored in full")
        stored[weight.untyped_storage().data_ptr()] = weight.untyped_storage().nbytes()
        total += size
    # Tied weights share their memory.
    if total > _MAX_TIED * sum(stored.values()):
        raise ValueError("its weights are the same memory many times")


def check_content(checkpoint: Any, path: Path) -> None:
    """Check the structure of a loaded checkpoint, and the classes that its settings name.

    Args:
        checkpoint: the content of the file.
        path: the file, for messages.

    Raises:
        UserError: if it is no checkpoint of Lightning, or names a class that is not accepted, see
            `fashion_cnn.runs.trust`.
    """
    if type(checkpoint) is not dict:
        raise UserError(f"{path} is not a checkpoint of Lightning: it holds a {type(checkpoint).__name__}.")
    if not isinstance(checkpoint.get("state_dict"), Mapping):
        raise UserError(f"{path} is not a checkpoint of Lightning: it has no state_dict.")
    # Lightning's own loader passes the settings under each of these keys to the constructor.
    for key in ("hyper_parameters", "hparams", "module_arguments"):
        stored = checkpoint.get(key)
        check_containers(stored, path)
        if not isinstance(stored, dict | None):
            raise DamagedRunError(path, f"its {key} are no mapping", "take it from a copy of the run")
        if stored and {"_instantiator", "_class_path"} & stored.keys():
            raise UserError(f"{path} was written by LightningCLI, which this project does not load.")
        check_classes(update_class_paths(stored), path)


def build_within_limits(
    build: Callable[..., Module],
    arguments: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    path: Path,
    *,
    strict: bool,
) -> Module:
    """Build a module for stored weights, first on the meta device, where it takes neither memory nor time.

    Args:
        build: class of the module.
        arguments: those of the class.
        weights: the stored weights by name.
        path: the file of the weights, for messages.
        strict: whether the module must have exactly these weights.

    Raises:
        UserError: if the module would need far more memory than its weights.
        RuntimeError: if the weights do not fit.
    """
    training = dict.fromkeys(("optimizer", "schedule", "mixing", "distillation"))
    with _AllocationLimits(weights, path) as limits:
        try:
            with torch.device("meta"):
                module = build(**{**arguments, **training})
        except Exception:
            if limits.exceeded:
                raise
            # Some layers compute with values, which the meta device does not have; other errors are raised again.
            return build(**arguments)
    module.load_state_dict({name: weight.to("meta") for name, weight in weights.items()}, strict=strict)
    return build(**arguments)


class _AllocationLimits(TorchDispatchMode):
    """Refuses to make tensors that are far larger than the stored weights of a network, or far more of them.

    Attributes:
        exceeded: whether it refused one.
    """

    def __init__(self, weights: Mapping[str, Tensor], path: Path) -> None:
        super().__init__()
        stored = sum(weight.numel() * weight.element_size() for weight in weights.values())
        self._path = path
        self._tensor_bytes = stored + _MAX_TENSOR_BYTES
        self._bytes = _MAX_USES_OF_WEIGHTS * stored + _MAX_TOTAL_BYTES
        self._operations = _MAX_OPERATIONS + _MAX_OPERATIONS_PER_WEIGHT * len(weights)
        self.exceeded = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call an operation of torch and count its results."""
        result = func(*args, **(kwargs or {}))
        self._operations -= 1
        for tensor in result if isinstance(result, list | tuple) else (result,):
            size = tensor.numel() * tensor.element_size() if isinstance(tensor, Tensor) else 0
            self._bytes -= size
            if size > self._tensor_bytes or min(self._bytes, self._operations) < 0:
                self.exceeded = True
                raise UserError(
                    f"{self._path} describes a network that is far larger than its weights: take it from a copy of "
                    "the run."
                )
        return result
