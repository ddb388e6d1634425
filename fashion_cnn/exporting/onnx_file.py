"""ONNX files: written, read back, and made smaller with 8-bit integers."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor

from fashion_cnn.exporting.deployed import OUTPUTS, Deployed

Array = NDArray[Any]


def write_onnx(deployed: Deployed, image_shape: tuple[int, ...], path: Path, metadata: Mapping[str, str]) -> None:
    """Write the network for batches of any size, with what a reader must know as metadata of the file."""
    example = torch.zeros(2, *image_shape, dtype=torch.uint8)
    with warnings.catch_warnings():
        # The exporter's own use of torch.
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            deployed.eval(),
            (example,),
            dynamo=True,
            dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
            input_names=["images"],
            output_names=list(OUTPUTS),
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    onnx.helper.set_model_props(model, dict(metadata))
    onnx.checker.check_model(model)
    _save(model, path)


def write_int8(source: Path, path: Path, images: Tensor) -> None:
    """Write `source` with weights and activations of 8 bits, whose ranges are those seen on `images` uint8."""
    folder = path.parent
    prepared = folder / f".{path.name}-prepared"
    partial = folder / f".{path.name}"
    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
            quantize_static(
                str(prepared),
                str(partial),
                _Calibration(images),
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                per_channel=True,
                op_types_to_quantize=["Conv", "MaxPool", "Add", "Gemm"],
            )
        model = onnx.load(partial)
        onnx.helper.set_model_props(model, {p.key: p.value for p in onnx.load(source).metadata_props})
        _save(model, path)
    finally:
        logging.getLogger().setLevel(level)
        prepared.unlink(missing_ok=True)
        partial.unlink(missing_ok=True)


class _Calibration(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, images: Tensor, batch: int = 100) -> None:
        self._batches: Iterator[Tensor] = iter(images.split(batch))

    def get_next(self) -> dict[str, Array] | None:
        batch = next(self._batches, None)
        return None if batch is None else {"images": batch.numpy()}


def _save(model: onnx.ModelProto, path: Path) -> None:
    partial = path.with_name(f".{path.name}-partial")
    onnx.save(model, partial)
    partial.replace(path)


def open_onnx(path: Path, threads: int = 0) -> onnxruntime.InferenceSession:
    """The file, ready to answer on the CPU; threads: 0 for as many as there are cores."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def logits_of(session: onnxruntime.InferenceSession, images: Array, batch: int) -> Array:
    """Logits `(N, num_classes)` of images `(N, C, H, W)` uint8, so many at a time."""
    starts = range(0, len(images), batch)
    return np.concatenate([session.run(["logits"], {"images": images[start : start + batch]})[0] for start in starts])
