"""A run's network as ONNX files: written, checked against PyTorch, and timed."""

import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf

import fashion_cnn
from fashion_cnn.analysis.model_card import write_model_card
from fashion_cnn.analysis.predictions import Predictions
from fashion_cnn.data import ImageDataModule, InMemoryDataset
from fashion_cnn.errors import UserError
from fashion_cnn.evaluation.logits import all_logits
from fashion_cnn.evaluation.measuring import rebuild, require_test
from fashion_cnn.evaluation.temperature import fit_temperature
from fashion_cnn.exporting import onnx_file
from fashion_cnn.exporting.deployed import OUTPUTS, Deployed
from fashion_cnn.exporting.onnx_file import Array
from fashion_cnn.exporting.timing import latencies
from fashion_cnn.models import ImageClassifier
from fashion_cnn.runs import Run, as_typed, remove_abandoned, write_whole

FLOAT_FILE, INT8_FILE, FIGURES_FILE = "network.onnx", "network_int8.onnx", "export.json"
_TORCH, _FLOAT = "PyTorch, float32", "ONNX, float32"
_ROUNDING = 1e-3
_UNCHECKED = ".unchecked-"
_CALIBRATION_IMAGES = 1000

# Logits of images, both as arrays: `(N, C, H, W)` uint8 in, `(N, num_classes)` float32 out.
Answer = Callable[[Array], Array]


@dataclass(frozen=True)
class Way:
    """One way to run the network.

    file: its name, None for PyTorch itself. val_accuracy: None where the run kept no validation images. differing: test
    images that it puts into another class than PyTorch in float32 does. max_difference: of their logits. latency:
    median seconds for one image on one thread.
    """

    name: str
    file: str | None
    bytes: int | None
    test_accuracy: float
    val_accuracy: float | None
    differing: int
    max_difference: float
    latency: float


def export_run(run: Run, folder: Path, *, data_root: str | None, int8: bool, int8_tolerance: float) -> dict[str, Any]:
    """Write the network of a finished run into `folder`, check it, and say what came of it.

    int8: write one of 8-bit integers too, which is kept where its accuracy on validation is at most `int8_tolerance`
    lower. Raises UserError where a file does not answer as PyTorch does, or cannot be written.
    """
    config, module, data = rebuild(run, data_root)
    require_test(run, data)
    data.setup("test")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}): say out=DIR.") from error
    temperature = _temperature(module, data)
    deployed = Deployed(module, data, temperature).eval()
    remove_abandoned(folder, f"{_UNCHECKED}*")
    # Only what was checked gets its name.
    with tempfile.TemporaryDirectory(dir=folder, prefix=_UNCHECKED) as unchecked:
        files = _write(deployed, data, Path(unchecked), _metadata(run, data, temperature), int8=int8)
        ways = _measure(deployed, data, files)
        _check_parity(deployed, files[_FLOAT], data)
        remarks = []
        if int8 and (remark := _why_not(ways[-1], ways[0], int8_tolerance)):
            ways.pop()
            remarks.append(remark)
        (folder / INT8_FILE).unlink(missing_ok=True)
        for way in ways:
            if way.file:
                (Path(unchecked) / way.file).replace(folder / way.file)
    outcome = {
        "run": str(as_typed(run.path)),
        "written_to": str(as_typed(folder)),
        "temperature": temperature,
        "ways": [asdict(way) for way in ways],
        "remarks": remarks,
    }
    write_whole(folder / FIGURES_FILE, json.dumps(outcome, indent=2) + "\n")
    if folder == run.export:
        write_model_card(run, config, data, run.results(), [_line(way) for way in ways if way.file] + remarks)
    return outcome


def _temperature(module: ImageClassifier, data: ImageDataModule) -> float:
    """Fitted on the validation images; 1 where none were kept."""
    if not data.val_size:
        return 1.0
    val = data.val_split
    logits = all_logits(lambda images: module(data.normalise(images)), val.images, data.eval_batch_size)
    return fit_temperature(Predictions(logits, val.targets, val.indices))


def _write(
    deployed: Deployed, data: ImageDataModule, folder: Path, metadata: dict[str, str], *, int8: bool
) -> dict[str, Path]:
    """The files, by what they are."""
    files = {_FLOAT: folder / FLOAT_FILE}
    onnx_file.write_onnx(deployed, data.image_shape, files[_FLOAT], metadata)
    if int8:
        chosen = data.train_split.indices[:_CALIBRATION_IMAGES]
        files["ONNX, int8"] = folder / INT8_FILE
        onnx_file.write_int8(files[_FLOAT], folder / INT8_FILE, data.train_split.images_at(chosen))
    return files


def _measure(deployed: Deployed, data: ImageDataModule, files: dict[str, Path]) -> list[Way]:
    """PyTorch first, then each of the files."""
    batch = data.eval_batch_size
    answers: dict[str, Answer] = {
        _TORCH: lambda images: all_logits(deployed.logits, torch.from_numpy(images), batch).numpy()
    }
    for name, file in files.items():
        answers[name] = partial(onnx_file.logits_of, onnx_file.open_onnx(file), batch=batch)
    seconds = _latencies(deployed, data, files)
    expected = answers[_TORCH](data.test_split.images.numpy())
    return [_way(name, files.get(name), answer, expected, seconds[name], data) for name, answer in answers.items()]


def _metadata(run: Run, data: ImageDataModule, temperature: float) -> dict[str, str]:
    """What a reader of the file must know, and where it comes from."""
    results = run.results()
    described = {
        "class_names": list(data.class_names),
        "image_shape": list(data.image_shape),
        "mean": (data.pixel_mean / 255).flatten().tolist(),
        "std": (1 / data.pixel_scale / 255).flatten().tolist(),
        "temperature": temperature,
        "made_with": {"fashion_cnn": fashion_cnn.__version__, "torch": torch.__version__},
        "results": {name: value for name, value in results.items() if name.startswith(("test", "val/", "weights"))},
        "config": OmegaConf.to_container(run.config()),
    }
    return {name: json.dumps(value) for name, value in described.items()}


def _way(name: str, file: Path | None, answer: Answer, expected: Array, seconds: float, data: ImageDataModule) -> Way:
    logits = answer(data.test_split.images.numpy())
    return Way(
        name=name,
        file=file.name if file else None,
        bytes=file.stat().st_size if file else None,
        test_accuracy=_accuracy(logits, data.test_split),
        val_accuracy=_accuracy(answer(data.val_split.images.numpy()), data.val_split) if data.val_size else None,
        differing=int((logits.argmax(1) != expected.argmax(1)).sum()),
        max_difference=float(np.abs(logits - expected).max()),
        latency=seconds,
    )


def _accuracy(logits: Array, split: InMemoryDataset) -> float:
    return float((logits.argmax(1) == split.targets.numpy()).mean())


def _check_parity(deployed: Deployed, file: Path, data: ImageDataModule) -> None:
    """Raise UserError unless all outputs are PyTorch's on all test images, but for rounding."""
    session = onnx_file.open_onnx(file)
    wrong = 0
    for members in data.test_split.indices.split(data.eval_batch_size):
        images = data.test_split.images_at(members)
        with torch.inference_mode():
            expected = [output.numpy() for output in deployed(images)]
        outputs = session.run(list(OUTPUTS), {"images": images.numpy()})
        same = np.ones(len(images), dtype=bool)
        for ours, theirs in zip(outputs, expected, strict=True):
            same &= np.isclose(ours, theirs, rtol=_ROUNDING, atol=_ROUNDING).all(axis=1)
        wrong += int((~same).sum())
    if wrong:
        raise UserError(
            f"The exported network answers {wrong} of {len(data.test_split):,} test images otherwise than PyTorch "
            "does: it is not kept. Please report the model and the versions of torch and onnxruntime."
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


def _latencies(deployed: Deployed, data: ImageDataModule, files: dict[str, Path]) -> dict[str, float]:
    """Seconds for one image on one thread, by the name of the way."""
    image = data.test_split.images_at(data.test_split.indices[:1])
    calls: dict[str, Callable[[], Any]] = {_TORCH: partial(all_logits, deployed.logits, image, 1)}
    for name, file in files.items():
        calls[name] = partial(onnx_file.open_onnx(file, threads=1).run, ["logits"], {"images": image.numpy()})
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return latencies(calls)
    finally:
        torch.set_num_threads(threads)


def _line(way: Way) -> str:
    return (
        f"`{way.file}` ({way.name}, {(way.bytes or 0) / 1e6:.2f} MB): {way.test_accuracy:.2%} on test, {way.differing} "
        f"images unlike PyTorch, {way.latency * 1000:.2f} ms an image on one thread."
    )
