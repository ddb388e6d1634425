"""A run's network as ONNX files: written, checked against PyTorch, and timed."""

import json
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
from fashion_cnn.data import ImageDataModule, InMemoryDataset
from fashion_cnn.errors import UserError
from fashion_cnn.evaluation.measuring import rebuild
from fashion_cnn.evaluation.temperature import fit_temperature
from fashion_cnn.exporting import deployed as in_torch
from fashion_cnn.exporting import onnx_file
from fashion_cnn.exporting.deployed import Deployed
from fashion_cnn.exporting.onnx_file import Array
from fashion_cnn.exporting.timing import latencies
from fashion_cnn.prediction import validation_predictions
from fashion_cnn.runs import Run, as_typed, write_whole

FLOAT_FILE, INT8_FILE, FIGURES_FILE = "network.onnx", "network_int8.onnx", "export.json"
# Where the two likeliest classes are so close, rounding may turn them.
_TIE = 1e-3
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
    data.setup("test")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}): say out=DIR.") from error
    validation = validation_predictions(run)
    temperature = fit_temperature(validation) if validation else 1.0
    deployed = Deployed(module, data, temperature).eval()
    batch = data.eval_batch_size
    answers: dict[str, tuple[Path | None, Answer]] = {
        "PyTorch, float32": (None, lambda images: in_torch.logits_of(deployed, torch.from_numpy(images), batch).numpy())
    }

    def add(name: str, file: Path) -> None:
        session = onnx_file.open_onnx(file)
        answers[name] = file, lambda images: onnx_file.logits_of(session, images, batch)

    onnx_file.write_onnx(deployed, data.image_shape, folder / FLOAT_FILE, _metadata(run, data, temperature))
    add("ONNX, float32", folder / FLOAT_FILE)
    if int8:
        onnx_file.write_int8(folder / FLOAT_FILE, folder / INT8_FILE, data.train_split.images[:_CALIBRATION_IMAGES])
        add("ONNX, int8", folder / INT8_FILE)
    seconds = _latencies(answers, deployed, data)
    said = {name: answer(data.test_split.images.numpy()) for name, (_, answer) in answers.items()}
    ways = [_way(name, file, answer, said, seconds[name], data) for name, (file, answer) in answers.items()]
    _check_parity(said["ONNX, float32"], said["PyTorch, float32"], folder / FLOAT_FILE)
    remarks = []
    if int8 and (remark := _why_not(ways[-1], ways[0], int8_tolerance)):
        (folder / INT8_FILE).unlink()
        ways.pop()
        remarks.append(remark)
    outcome = {
        "run": str(as_typed(run.path)),
        "written_to": str(as_typed(folder)),
        "temperature": temperature,
        "ways": [asdict(way) for way in ways],
        "remarks": remarks,
    }
    write_whole(folder / FIGURES_FILE, json.dumps(outcome, indent=2) + "\n")
    if results := run.results():
        write_model_card(run, config, data, results, [_line(way) for way in ways if way.file] + remarks)
    return outcome


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


def _way(
    name: str, file: Path | None, answer: Answer, said: dict[str, Array], seconds: float, data: ImageDataModule
) -> Way:
    ours, expected = said[name], said["PyTorch, float32"]
    return Way(
        name=name,
        file=file.name if file else None,
        bytes=file.stat().st_size if file else None,
        test_accuracy=_accuracy(ours, data.test_split),
        val_accuracy=_accuracy(answer(data.val_split.images.numpy()), data.val_split) if data.val_size else None,
        differing=int((ours.argmax(1) != expected.argmax(1)).sum()),
        max_difference=float(np.abs(ours - expected).max()),
        latency=seconds,
    )


def _accuracy(logits: Array, split: InMemoryDataset) -> float:
    return float((logits.argmax(1) == split.targets.numpy()).mean())


def _check_parity(logits: Array, expected: Array, file: Path) -> None:
    runner_up, likeliest = np.partition(expected, -2, axis=1)[:, -2:].T
    differing = (logits.argmax(1) != expected.argmax(1)) & (likeliest - runner_up > _TIE)
    if differing.any():
        file.unlink()
        raise UserError(
            f"The exported network puts {differing.sum()} of {len(logits):,} test images into another class "
            "than PyTorch does: it is not kept. Please report the model and the versions of torch and onnxruntime."
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


def _latencies(
    answers: dict[str, tuple[Path | None, Answer]], deployed: Deployed, data: ImageDataModule
) -> dict[str, float]:
    """Seconds for one image on one thread, by the name of the way."""
    image = data.test_split.images[:1]
    sessions = {name: onnx_file.open_onnx(file, threads=1) for name, (file, _) in answers.items() if file}
    calls: dict[str, Callable[[], Any]] = {
        name: partial(session.run, ["probabilities"], {"images": image.numpy()}) for name, session in sessions.items()
    }
    calls["PyTorch, float32"] = lambda: in_torch.logits_of(deployed, image, 1)
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
