"""Export to ONNX: the files are written, checked against PyTorch, and timed."""

import contextlib
import io
import json
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from omegaconf import OmegaConf
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor, nn

from fashion_cnn.analysis.report import write_model_card
from fashion_cnn.data import ImageDataModule, InMemoryDataset
from fashion_cnn.errors import UserError
from fashion_cnn.inference.network import NetworkRunner, load, load_data
from fashion_cnn.metrics.calibration import calibrate
from fashion_cnn.metrics.predictions import Predictions
from fashion_cnn.models import ImageClassifier
from fashion_cnn.runs import Run, display_path, remove_stale_files, write_atomically

Array = NDArray[Any]
FLOAT_FILE, INT8_FILE, FIGURES_FILE = "network.onnx", "network_int8.onnx", "export.json"
_TORCH, _FLOAT = "PyTorch, float32", "ONNX, float32"
_ROUNDING = 1e-3
_UNCHECKED = ".unchecked-"
_CALIBRATION_IMAGES = 1000
# Of the training images, where there are no others.
_MOST_CHECKED = 10_000
# Logits of images, both as arrays: `(N, C, H, W)` uint8 in, `(N, num_classes)` float32 out.
Answer = Callable[[Array], Array]


class Deployed(nn.Module):
    """Normalisation, network and temperature in one.

    Images `(B, C, H, W)` uint8 in. Out, all float32: logits and probabilities at `temperature`, `(B, num_classes)`, and
    the embedding `(B, D)` that the classifier sees.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, module: ImageClassifier, data: ImageDataModule, temperature: float) -> None:
        super().__init__()
        self.network = module.network
        self.temperature = temperature
        self.register_buffer("mean", data.pixel_mean.clone())
        self.register_buffer("scale", data.pixel_scale.clone())

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        normalised = (images.float() - self.mean) * self.scale
        embedding = self.network.features(normalised)  # type: ignore[operator]
        logits = self.network.classifier(embedding)  # type: ignore[operator]
        return logits, (logits / self.temperature).softmax(dim=1), embedding


OUTPUTS = ("logits", "probabilities", "embedding")


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


def latencies(answers: Mapping[str, Callable[[], Any]], *, rounds: int = 5, times: int = 100) -> dict[str, float]:
    """Median seconds of each call; they take turns, so that a busy machine treats them alike."""
    seconds: dict[str, list[float]] = {name: [] for name in answers}
    for round_number in range(rounds + 1):
        for name, answer in answers.items():
            for _ in range(times if round_number else 10):
                started = time.perf_counter()
                answer()
                if round_number:
                    seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


class Checked(NamedTuple):
    """What the files are checked on: the `split`, in words, and images `(N, C, H, W)` uint8 of it."""

    split: str
    images: Array


@dataclass(frozen=True)
class Way:
    """One way to run the network.

    file: its name, None for PyTorch itself. test_accuracy, val_accuracy: None where the run has no such images.
    differing: images of those that are checked that it puts into another class than PyTorch in float32 does.
    max_difference: of their logits. latency: median seconds for one image on one thread.
    """

    name: str
    file: str | None
    bytes: int | None
    test_accuracy: float | None
    val_accuracy: float | None
    differing: int
    max_difference: float
    latency: float


def export_run(
    run: Run, folder: Path, *, data_root: str | None, int8: bool, int8_tolerance: float, version: str
) -> dict[str, Any]:
    """Write the network of a finished run into `folder`, check it, and say what came of it.

    int8: write one of 8-bit integers too, which is kept where its accuracy on validation is at most `int8_tolerance`
    lower. version: of fashion_cnn, for the metadata. Raises UserError where a file does not answer as PyTorch does, or
    cannot be written.
    """
    data = load_data(run, data_root)
    network = NetworkRunner(load(run), data)
    data.setup("test")
    checked = _checked(data)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}): say out=DIR.") from error
    temperature = _temperature(network)
    deployed = Deployed(network.module, data, temperature).eval()
    remove_stale_files(folder, f"{_UNCHECKED}*")
    # Only what was checked gets its name.
    with tempfile.TemporaryDirectory(dir=folder, prefix=_UNCHECKED) as unchecked:
        files = _write(deployed, data, Path(unchecked), _metadata(run, data, temperature, version), int8=int8)
        ways = _measure(network, files, checked)
        _check_parity(deployed, files[_FLOAT], checked, data.eval_batch_size)
        remarks = [] if data.has_test else [f"There are no test images: checked on {checked.split} images."]
        if int8 and (remark := _why_not(ways[-1], ways[0], int8_tolerance)):
            ways.pop()
            remarks.append(remark)
        (folder / INT8_FILE).unlink(missing_ok=True)
        for way in ways:
            if way.file:
                (Path(unchecked) / way.file).replace(folder / way.file)
    outcome = {
        "run": str(display_path(run.path)),
        "written_to": str(display_path(folder)),
        "temperature": temperature,
        "ways": [asdict(way) for way in ways],
        "remarks": remarks,
    }
    write_atomically(folder / FIGURES_FILE, json.dumps(outcome, indent=2) + "\n")
    if folder == run.export:
        write_model_card(run, run.config(), data, run.results(), [_line(way) for way in ways if way.file] + remarks)
    return outcome


def _checked(data: ImageDataModule) -> Checked:
    """The test images, or where there are none those of validation, or else of training."""
    if data.has_test:
        return Checked("test", data.test_split.images.numpy())
    if data.val_size:
        return Checked("validation", data.val_split.images.numpy())
    chosen = data.train_split.indices[:_MOST_CHECKED]
    return Checked("training", data.train_split.images_at(chosen).numpy())


def _temperature(network: NetworkRunner) -> float:
    """Fitted on the validation images; 1 where none were kept."""
    if not network.data.val_size:
        return 1.0
    val = network.data.val_split
    return calibrate(Predictions(network.logits(val.images), val.targets, val.indices)).temperature


def _write(
    deployed: Deployed, data: ImageDataModule, folder: Path, metadata: dict[str, str], *, int8: bool
) -> dict[str, Path]:
    """The files, by what they are."""
    files = {_FLOAT: folder / FLOAT_FILE}
    write_onnx(deployed, data.image_shape, files[_FLOAT], metadata)
    if int8:
        chosen = data.train_split.indices[:_CALIBRATION_IMAGES]
        files["ONNX, int8"] = folder / INT8_FILE
        write_int8(files[_FLOAT], folder / INT8_FILE, data.train_split.images_at(chosen))
    return files


def _measure(network: NetworkRunner, files: dict[str, Path], checked: Checked) -> list[Way]:
    """PyTorch first, then each of the files."""
    data = network.data
    answers: dict[str, Answer] = {_TORCH: lambda images: network.logits(torch.from_numpy(images)).numpy()}
    for name, file in files.items():
        answers[name] = partial(logits_of, open_onnx(file), batch=data.eval_batch_size)
    seconds = _latencies(network, checked.images[:1], files)
    expected = answers[_TORCH](checked.images)
    ways = []
    for name, answer in answers.items():
        written, logits = files.get(name), answer(checked.images)
        way = Way(
            name=name,
            file=written.name if written else None,
            bytes=written.stat().st_size if written else None,
            test_accuracy=_accuracy(logits, data.test_split) if data.has_test else None,
            val_accuracy=_accuracy(answer(data.val_split.images.numpy()), data.val_split) if data.val_size else None,
            differing=int((logits.argmax(1) != expected.argmax(1)).sum()),
            max_difference=float(np.abs(logits - expected).max()),
            latency=seconds[name],
        )
        ways.append(way)
    return ways


def _metadata(run: Run, data: ImageDataModule, temperature: float, version: str) -> dict[str, str]:
    """What a reader of the file must know, and where it comes from."""
    results = run.results()
    described = {
        "class_names": list(data.class_names),
        "image_shape": list(data.image_shape),
        "mean": (data.pixel_mean / 255).flatten().tolist(),
        "std": (1 / data.pixel_scale / 255).flatten().tolist(),
        "temperature": temperature,
        "made_with": {"fashion_cnn": version, "torch": torch.__version__},
        "results": {name: value for name, value in results.items() if name.startswith(("test", "val/", "weights"))},
        "config": OmegaConf.to_container(run.config()),
    }
    return {name: json.dumps(value) for name, value in described.items()}


def _accuracy(logits: Array, split: InMemoryDataset) -> float:
    return float((logits.argmax(1) == split.targets.numpy()).mean())


def _check_parity(deployed: Deployed, file: Path, checked: Checked, batch: int) -> None:
    """Raise UserError unless all outputs are PyTorch's on all that is checked, but for rounding."""
    session = open_onnx(file)
    wrong = 0
    for images in torch.from_numpy(checked.images).split(batch):
        with torch.inference_mode():
            expected = [output.numpy() for output in deployed(images)]
        outputs = session.run(list(OUTPUTS), {"images": images.numpy()})
        same = np.ones(len(images), dtype=bool)
        for ours, theirs in zip(outputs, expected, strict=True):
            same &= np.isclose(ours, theirs, rtol=_ROUNDING, atol=_ROUNDING).all(axis=1)
        wrong += int((~same).sum())
    if wrong:
        raise UserError(
            f"The exported network answers {wrong} of {len(checked.images):,} {checked.split} images otherwise than "
            "PyTorch does: it is not kept. Please report the model and the versions of torch and onnxruntime."
        )


def _why_not(way: Way, reference: Way, tolerance: float) -> str | None:
    """Why 8-bit integers are not kept; None where they are."""
    if way.val_accuracy is None or reference.val_accuracy is None:
        return "int8 was not kept: the run kept no validation images to judge it by."
    lost = reference.val_accuracy - way.val_accuracy
    if lost > tolerance + 1e-9:
        return (
            f"int8 was not kept: {lost * 100:.2f} points less on validation, where {tolerance * 100:.2f} are allowed."
        )
    return None


def _latencies(network: NetworkRunner, image: Array, files: dict[str, Path]) -> dict[str, float]:
    """Seconds for one image `(1, C, H, W)` uint8 on one thread, by the name of the way."""
    calls: dict[str, Callable[[], Any]] = {_TORCH: partial(network.logits, torch.from_numpy(image))}
    for name, file in files.items():
        calls[name] = partial(open_onnx(file, threads=1).run, ["logits"], {"images": image})
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return latencies(calls)
    finally:
        torch.set_num_threads(threads)


def _line(way: Way) -> str:
    tested = "" if way.test_accuracy is None else f"{way.test_accuracy:.2%} on test, "
    return (
        f"`{way.file}` ({way.name}, {(way.bytes or 0) / 1e6:.2f} MB): {tested}{way.differing} images unlike PyTorch, "
        f"{way.latency * 1000:.2f} ms an image on one thread."
    )
