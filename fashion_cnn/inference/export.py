"""Export to ONNX, checked against PyTorch and timed."""

import contextlib
import io
import json
import logging
import statistics
import tempfile
import timeit
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnx.compose
import onnxruntime
import torch
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from numpy.typing import NDArray
from omegaconf import OmegaConf
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from PIL import Image
from torch import Tensor, nn

from fashion_cnn.analysis.report import write_model_card
from fashion_cnn.data import ImageDataModule, InMemoryDataset
from fashion_cnn.errors import UserError, disk_errors_at
from fashion_cnn.inference import onnx_network
from fashion_cnn.inference.network import EmbeddingNetwork, NetworkRunner, load, load_data
from fashion_cnn.inference.pretrained import PretrainedNetwork
from fashion_cnn.metrics.calibration import calibrate
from fashion_cnn.metrics.predictions import Predictions
from fashion_cnn.models import ImageClassifier
from fashion_cnn.runs import Run, create_folder, display_path, temporary_folder, write_atomically, write_json

Array = NDArray[Any]
FLOAT_FILE, INT8_FILE, METRICS_FILE = "network.onnx", "network_int8.onnx", "export.json"
OUTPUTS = ("logits", "probabilities", "embedding")
_TORCH, _FLOAT, _INT8 = "PyTorch, float32", "ONNX, float32", "ONNX, int8"
_TOLERANCE = 1e-3
# Allowed difference from the run's recorded accuracy, which may have been measured in bfloat16.
_ACCURACY_TOLERANCE = 0.005
_TOLERATED_IMAGES = 3
_UNCHECKED = ".unchecked-"
_CALIBRATION_IMAGES = 1000
# Maximum number of training images that are checked where there are no test and validation images.
_MAX_TRAINING_IMAGES = 10_000


class ExportedNetwork(nn.Module):
    """Normalisation, network and temperature scaling in one module.

    Takes images `(B, C, H, W)` uint8. Returns, all float32, logits and calibrated probabilities `(B, num_classes)`, and
    embeddings `(B, D)`, the inputs of the last layer.

    Args:
        module: the network, in eval mode.
        data: its data module, for the normalisation.
        temperature: divides the logits before the softmax.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, module: ImageClassifier, data: ImageDataModule, temperature: float) -> None:
        super().__init__()
        self.module = module
        self.temperature = temperature
        self.register_buffer("mean", data.pixel_mean.clone())
        self.register_buffer("scale", data.pixel_scale.clone())

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the OUTPUTS of images `(B, C, H, W)` uint8."""
        normalised = (images.float() - self.mean) * self.scale
        logits, embedding = self.module.logits_and_embeddings(normalised)
        return logits, (logits / self.temperature).softmax(dim=1), embedding


def write_onnx(network: ExportedNetwork, image_shape: tuple[int, ...], path: Path, metadata: Mapping[str, str]) -> None:
    """Write the network for batches of any size.

    Args:
        network: the network.
        image_shape: `(C, H, W)`.
        path: the file.
        metadata: properties to store in the file.
    """
    model = _as_onnx(network, image_shape, OUTPUTS)
    onnx.helper.set_model_props(model, dict(metadata))
    onnx.checker.check_model(model)
    _save(model, path)


def _as_onnx(network: nn.Module, image_shape: tuple[int, ...], outputs: Sequence[str]) -> onnx.ModelProto:
    """Convert a network of images `(B, C, H, W)` uint8 for batches of any size."""
    example = torch.zeros(2, *image_shape, dtype=torch.uint8)
    with warnings.catch_warnings():
        # The exporter itself calls deprecated functions of torch.
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network.eval(),
            (example,),
            dynamo=True,
            dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
            input_names=["images"],
            output_names=list(outputs),
            verbose=False,
        )
    assert program is not None
    return program.model_proto


def write_int8(source: Path, path: Path, images: Tensor) -> None:
    """Write an ONNX file with weights and activations quantised to 8 bits.

    Args:
        source: the float32 file.
        path: the file to write.
        images: images `(N, C, H, W)` uint8 that give the ranges of the activations.
    """
    prepared, quantised = (path.with_name(f".{path.name}{suffix}") for suffix in ("-prepared", ""))
    level, temporary = logging.getLogger().level, tempfile.tempdir
    # The quantiser also logs the traceback of an error that it raises later.
    logging.getLogger().setLevel(logging.CRITICAL)
    # The quantiser's temporary files are then on the disk that an error message names.
    tempfile.tempdir = str(path.parent)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
            _load_complete(prepared)
            quantize_static(
                str(prepared),
                str(quantised),
                _CalibrationImages(images),
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                per_channel=True,
                op_types_to_quantize=["Conv", "MaxPool", "Add", "Gemm"],
            )
        model = _load_complete(quantised)
        onnx.helper.set_model_props(model, {p.key: p.value for p in onnx.load(source).metadata_props})
        _save(model, path)
    finally:
        tempfile.tempdir = temporary
        logging.getLogger().setLevel(level)
        prepared.unlink(missing_ok=True)
        quantised.unlink(missing_ok=True)


def _load_complete(path: Path) -> onnx.ModelProto:
    """Load a file of the quantiser. Raises DecodeError if a full disk took only the first part of it, or nothing."""
    model = onnx.load(path)
    # The writer puts this field after the graph.
    if not model.opset_import:
        raise DecodeError(f"{path} is incomplete")
    return model


class _CalibrationImages(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, images: Tensor, batch_size: int = 100) -> None:
        self._batches: Iterator[Tensor] = iter(images.split(batch_size))

    def get_next(self) -> dict[str, Array] | None:
        batch = next(self._batches, None)
        return None if batch is None else {"images": batch.numpy()}


def _save(model: onnx.ModelProto, path: Path) -> None:
    write_atomically(path, model.SerializeToString())


def open_onnx(path: Path, threads: int = 0) -> onnxruntime.InferenceSession:
    """Open an ONNX file for inference on the CPU.

    Args:
        path: the file.
        threads: number of threads; 0 for one per core.
    """
    session: onnxruntime.InferenceSession = onnx_network.open_session(path, threads=threads)
    return session


def onnx_logits(session: onnxruntime.InferenceSession, images: Array, batch_size: int) -> Array:
    """Return the logits `(N, num_classes)` of images `(N, C, H, W)` uint8, in batches of `batch_size`."""
    starts = range(0, len(images), batch_size)
    batches = (images[start : start + batch_size] for start in starts)
    return np.concatenate([session.run(["logits"], {"images": batch})[0] for batch in batches])


def median_seconds(
    functions: Mapping[str, Callable[[], Any]], *, rounds: int = 5, calls: int = 100
) -> dict[str, float]:
    """Measure the median duration of a call of each function, in seconds.

    The functions alternate, so that other load on the machine affects all of them.

    Args:
        functions: the functions by name.
        rounds: number of rounds that count; one more comes first to warm up.
        calls: number of calls of each function in a round.
    """
    seconds: dict[str, list[float]] = defaultdict(list)
    for number in range(rounds + 1):
        for name, function in functions.items():
            durations = timeit.repeat(function, number=1, repeat=calls if number else 10)
            if number:
                seconds[name] += durations
    return {name: statistics.median(durations) for name, durations in seconds.items()}


class _PretrainedViews(nn.Module):
    """Normalisation and network of photographs `(B, 3, S, S)` uint8, averaged over mirror images if that is set."""

    mean: Tensor
    scale: Tensor

    def __init__(self, network: PretrainedNetwork) -> None:
        super().__init__()
        self.module = network.module
        self._network = network
        self.register_buffer("mean", network.data.pixel_mean.clone())
        self.register_buffer("scale", network.data.pixel_scale.clone())

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits `(B, num_classes)` and features, which are unit vectors `(B, F)`."""
        logits, features = self._network.averaged_views((images.float() - self.mean) * self.scale)
        return logits, features


def export_pretrained(network: PretrainedNetwork, file: Path) -> dict[str, Any]:
    """Write the network of `embedding=pretrained` as an ONNX file that takes photographs of any size.

    Args:
        network: the network, on the CPU.
        file: the file; see `onnx_network` for what it takes and returns.

    Returns:
        The file and its size, and the largest differences from PyTorch.

    Raises:
        UserError: if the outputs differ from those of PyTorch, or the file cannot be written.
    """
    settings = network.pretrained
    network.module.to("cpu")
    core = _as_onnx(_PretrainedViews(network).eval(), network.preparation.image_shape, onnx_network.OUTPUTS)
    model = onnx.compose.merge_models(
        _photograph_graph(settings.size, core), core, io_map=[("prepared", "images")], producer_name="fashion_cnn"
    )
    metadata = {
        "class_names": json.dumps(list(network.class_names)),
        "features": str(network.module.embedding_size),
        "identity": onnx_network.exported_identity(settings, flip_average=network.flip_average),
        "settings": json.dumps(asdict(settings)),
    }
    onnx.helper.set_model_props(model, metadata)
    onnx.checker.check_model(model)
    create_folder(file.parent, "catalogue")
    with disk_errors_at(file.parent), temporary_folder(file.parent, _UNCHECKED) as unchecked:
        _save(model, unchecked / file.name)
        differences = _check_photographs(network, unchecked / file.name)
        (unchecked / file.name).replace(file)
    return {"written_to": str(display_path(file)), "bytes": file.stat().st_size, **differences}


def _photograph_graph(size: int, core: onnx.ModelProto) -> onnx.ModelProto:
    """Build the graph that prepares photographs `(N, H, W, 3)` uint8, in the versions of another graph.

    The middle square is resized as Pillow does, bicubic with antialiasing, and rounded to whole values.
    """
    node, uint8 = onnx.helper.make_node, onnx.TensorProto.UINT8
    constants = {
        "first": np.array([1]),
        "last": np.array([3]),
        "two": np.array([2]),
        "axes": np.array([1, 2]),
        "axis": np.array([0]),
        "sizes": np.array([size, size]),
        "black": np.array(0, np.float32),
        "white": np.array(255, np.float32),
    }
    nodes = [
        node("Shape", [onnx_network.INPUT], ["shape"]),
        node("Slice", ["shape", "first", "last"], ["sides"]),
        node("ReduceMin", ["sides", "axis"], ["side"], keepdims=1),
        node("Sub", ["sides", "side"], ["margins"]),
        node("Div", ["margins", "two"], ["starts"]),
        node("Add", ["starts", "side"], ["ends"]),
        node("Slice", [onnx_network.INPUT, "starts", "ends", "axes"], ["square"]),
        node("Transpose", ["square"], ["channels_first"], perm=[0, 3, 1, 2]),
        node("Cast", ["channels_first"], ["values"], to=onnx.TensorProto.FLOAT),
        node(
            "Resize",
            ["values", "", "", "sizes"],
            ["resized"],
            mode="cubic",
            cubic_coeff_a=-0.5,
            antialias=1,
            exclude_outside=1,
            axes=[2, 3],
        ),
        node("Round", ["resized"], ["rounded"]),
        node("Clip", ["rounded", "black", "white"], ["clipped"]),
        node("Cast", ["clipped"], ["prepared"], to=uint8),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "photograph",
        [onnx.helper.make_tensor_value_info(onnx_network.INPUT, uint8, ["batch", "height", "width", 3])],
        [onnx.helper.make_tensor_value_info("prepared", uint8, ["batch", 3, size, size])],
        [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return onnx.helper.make_model(graph, opset_imports=core.opset_import, ir_version=core.ir_version)


def _check_photographs(network: PretrainedNetwork, file: Path) -> dict[str, float]:
    """Compare a file with PyTorch: on prepared images, and on photographs that Pillow prepares for PyTorch.

    Returns:
        The largest difference of a logit, and the largest of a cosine from 1.

    Raises:
        UserError: if they are too large.
    """
    session, size = onnx_network.open_session(file, threads=0), network.pretrained.size
    generator = np.random.default_rng(0)
    fit = replace(network.preparation, trim=False)
    largest = {"logit_difference": 0.0, "cosine_difference": 0.0}
    for height, width in ((size, size), (size * 2 + 1, size * 3), (size // 2, size)):
        coarse = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        photograph = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        expected = EmbeddingNetwork.outputs(network, fit(photograph)[None])
        logits, features = session.run(list(onnx_network.OUTPUTS), {onnx_network.INPUT: np.asarray(photograph)[None]})
        if (height, width) == (size, size):
            largest["logit_difference"] = float(np.abs(logits - expected.logits.numpy()).max())
        cosine = float((features * expected.embeddings.numpy()).sum())
        largest["cosine_difference"] = max(largest["cosine_difference"], 1 - cosine)
    if largest["logit_difference"] > 10 * _TOLERANCE or largest["cosine_difference"] > _TOLERANCE:
        raise UserError(
            f"The exported network differs from PyTorch ({largest}): no file is written. Please report the versions of "
            "torch and onnxruntime."
        )
    return largest


class CheckImages(NamedTuple):
    """Images that the exported files are checked on.

    Attributes:
        split: name of the split, in words.
        images: `(N, C, H, W)` uint8.
    """

    split: str
    images: Array


@dataclass(frozen=True)
class Variant:
    """Results of the network in one runtime and number format.

    Attributes:
        name: runtime and number format.
        file: name of the file; None for PyTorch.
        bytes: size of the file.
        test_accuracy: None if the run has no test images.
        val_accuracy: None if the run has no validation images.
        differing: number of check images whose predicted class differs from that of PyTorch in float32.
        max_difference: largest absolute difference of a logit from PyTorch's.
        latency: median seconds for one image on one thread.
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
    """Write the network of a finished run as ONNX, and check the files against PyTorch.

    Args:
        run: the run.
        folder: the directory to write to.
        data_root: the directory of the data set; None for the one that the run read.
        int8: whether to write a quantised file as well.
        int8_tolerance: maximum loss of validation accuracy with which the quantised file is kept.
        version: of fashion_cnn, for the metadata.

    Returns:
        The record in `export.json`.

    Raises:
        UserError: if the outputs differ from PyTorch's or the accuracy from the recorded one, or the directory cannot
            be written.
    """
    data = load_data(run, data_root)
    data.setup("test")
    network = NetworkRunner(load(run), data)
    check_images = _check_images(data)
    create_folder(folder, "out")
    val_logits = network.logits(data.val_split.images) if data.val_size else None
    temperature = _temperature(val_logits, data)
    exported = ExportedNetwork(network.module, data, temperature).eval()
    # Files get their names only after the check.
    with disk_errors_at(folder), temporary_folder(folder, _UNCHECKED) as unchecked:
        try:
            files = _write_files(exported, data, unchecked, _metadata(run, data, temperature, version), int8=int8)
        except DecodeError as error:
            # On a full disk onnx leaves an incomplete file without an error.
            reason = "a file of the quantiser is incomplete"
            remedy = "free some space, or choose another directory"
            raise UserError(f"{folder} cannot be used ({reason}): {remedy}.") from error
        checks_val = val_logits is not None and check_images.split == "validation"
        logits = val_logits if checks_val else network.logits(torch.from_numpy(check_images.images))
        assert logits is not None
        file_logits = _check_parity(network, logits, temperature, files[_FLOAT], check_images)
        check_logits = {_TORCH: logits.numpy(), _FLOAT: file_logits}
        variants = _evaluate_variants(network, files, check_images, check_logits, val_logits)
        _check_accuracy(run, data, variants[1])
        remarks = [] if data.has_test else [f"There are no test images: checked on {check_images.split} images."]
        if int8 and (problem := _int8_problem(variants[-1], variants[0], int8_tolerance)):
            variants.pop()
            remarks.append(problem)
        (folder / INT8_FILE).unlink(missing_ok=True)
        for variant in variants:
            if variant.file:
                (unchecked / variant.file).replace(folder / variant.file)
    record = {
        "run": str(display_path(run.path)),
        "written_to": str(display_path(folder)),
        "temperature": temperature,
        "ways": [asdict(variant) for variant in variants],
        "remarks": remarks,
    }
    write_json(folder / METRICS_FILE, record)
    if folder == run.export:
        lines = [_model_card_line(variant) for variant in variants if variant.file]
        write_model_card(run, run.config(), data, run.results(), lines + remarks)
    return record


def _check_images(data: ImageDataModule) -> CheckImages:
    """Return the test images, or without these the validation images, or without these training images."""
    if data.has_test:
        return CheckImages("test", data.test_split.images.numpy())
    if data.val_size:
        return CheckImages("validation", data.val_split.images.numpy())
    indices = data.train_split.indices[:_MAX_TRAINING_IMAGES]
    return CheckImages("training", data.train_split.images_at(indices).numpy())


def _temperature(val_logits: Tensor | None, data: ImageDataModule) -> float:
    """Fit the temperature on the logits of the validation images; 1 without them."""
    if val_logits is None:
        return 1.0
    return calibrate(Predictions(val_logits, data.val_split.targets, data.val_split.indices)).temperature


def _write_files(
    exported: ExportedNetwork, data: ImageDataModule, folder: Path, metadata: dict[str, str], *, int8: bool
) -> dict[str, Path]:
    files = {_FLOAT: folder / FLOAT_FILE}
    write_onnx(exported, data.image_shape, files[_FLOAT], metadata)
    if int8:
        files[_INT8] = folder / INT8_FILE
        indices = data.train_split.indices[:_CALIBRATION_IMAGES]
        write_int8(files[_FLOAT], files[_INT8], data.train_split.images_at(indices))
    return files


def _evaluate_variants(
    network: NetworkRunner,
    files: dict[str, Path],
    check_images: CheckImages,
    check_logits: dict[str, Array],
    val_logits: Tensor | None,
) -> list[Variant]:
    """Evaluate PyTorch, then each of the files.

    Args:
        network: the network in PyTorch.
        files: the exported files by the name of the variant.
        check_images: the images to compare the variants on.
        check_logits: logits of these images by the name of the variant, of PyTorch and of any file that has been run.
        val_logits: PyTorch's logits of the validation images; None without any.
    """
    data = network.data
    latencies = _latencies(network, check_images.images[:1], files)
    expected = check_logits[_TORCH]
    variants = []
    for name in (_TORCH, *files):
        path = files.get(name)
        function = partial(onnx_logits, open_onnx(path), batch_size=network.batch_size) if path else None
        logits = check_logits[name] if name in check_logits or function is None else function(check_images.images)
        of_val = None if val_logits is None else val_logits.numpy()
        if function and val_logits is not None:
            checks_val = check_images.split == "validation"
            of_val = logits if checks_val else function(data.val_split.images.numpy())
        variant = Variant(
            name=name,
            file=path.name if path else None,
            bytes=path.stat().st_size if path else None,
            test_accuracy=_accuracy(logits, data.test_split) if data.has_test else None,
            val_accuracy=None if of_val is None else _accuracy(of_val, data.val_split),
            differing=int((logits.argmax(1) != expected.argmax(1)).sum()),
            max_difference=float(np.abs(logits - expected).max()),
            latency=latencies[name],
        )
        variants.append(variant)
    return variants


def _metadata(run: Run, data: ImageDataModule, temperature: float, version: str) -> dict[str, str]:
    """Return the properties of the ONNX file: its inputs and outputs, and how it was made."""
    results = run.results()
    properties = {
        "class_names": list(data.class_names),
        "image_shape": list(data.image_shape),
        "mean": (data.pixel_mean / 255).flatten().tolist(),
        "std": (1 / data.pixel_scale / 255).flatten().tolist(),
        "temperature": temperature,
        # Conversion of any picture, see `Preparation`.
        "preparation": asdict(data.preparation()),
        "made_with": {"fashion_cnn": version, "torch": torch.__version__},
        "results": {name: value for name, value in results.items() if name.startswith(("test", "val/", "weights"))},
        "config": OmegaConf.to_container(run.config()),
    }
    return {name: json.dumps(value) for name, value in properties.items()}


def _accuracy(logits: Array, split: InMemoryDataset) -> float:
    return float((logits.argmax(1) == split.targets.numpy()).mean())


def _check_parity(
    network: NetworkRunner, logits: Tensor, temperature: float, file: Path, check_images: CheckImages
) -> Array:
    """Compare all outputs of a file with those of the forward pass that evaluation uses, whose `logits` are given.

    Returns:
        The logits of the file.

    Raises:
        UserError: unless the outputs are equal but for rounding.
    """
    session = open_onnx(file)
    differing = 0
    file_logits = []
    batches = torch.from_numpy(check_images.images).split(network.batch_size)
    for images, expected_logits in zip(batches, logits.split(network.batch_size), strict=True):
        probabilities = (expected_logits / temperature).softmax(dim=1)
        expected = [array.numpy() for array in (expected_logits, probabilities, network.features(images))]
        outputs = session.run(list(OUTPUTS), {"images": images.numpy()})
        equal = np.ones(len(images), dtype=bool)
        for output, reference in zip(outputs, expected, strict=True):
            equal &= np.isclose(output, reference, rtol=_TOLERANCE, atol=_TOLERANCE).all(axis=1)
        differing += int((~equal).sum())
        file_logits.append(outputs[0])
    if differing:
        raise UserError(
            f"The exported network differs from PyTorch on {differing} of {len(check_images.images):,} "
            f"{check_images.split} images: no file is written. Please report the model and the versions of torch and "
            "onnxruntime."
        )
    return np.concatenate(file_logits)


def _check_accuracy(run: Run, data: ImageDataModule, variant: Variant) -> None:
    """Raise UserError if the accuracy of the float32 file differs from the one that the run recorded."""
    trainer, results = run.config().trainer, run.results()
    if trainer.get("overfit_batches"):
        return  # The run was evaluated on training images.
    for split, accuracy in (("test", variant.test_accuracy), ("val", variant.val_accuracy)):
        recorded = results.get(f"{split}/accuracy")
        # An integer limits the number of batches, even 1.
        is_whole = repr(trainer.get(f"limit_{split}_batches", 1.0)) == "1.0"
        if recorded is None or accuracy is None or not is_whole:
            continue
        images = len(data.test_split if split == "test" else data.val_split)
        if abs(accuracy - recorded) > max(_ACCURACY_TOLERANCE, _TOLERATED_IMAGES / images) + 1e-6:
            raise UserError(
                f"The exported network has a {split} accuracy of {accuracy:.2%}, but the run recorded {recorded:.2%}: "
                f"no file is written. Compare with python -m fashion_cnn.evaluate run={display_path(run.path)}"
            )


def _int8_problem(variant: Variant, reference: Variant, tolerance: float) -> str | None:
    """Return the reason why the quantised file is not kept; None if it is."""
    if variant.val_accuracy is None or reference.val_accuracy is None:
        return "int8 was not kept: there is no validation set to check its accuracy on."
    loss = reference.val_accuracy - variant.val_accuracy
    if loss > tolerance + 1e-9:
        return (
            f"int8 was not kept: it loses {loss * 100:.2f} points of validation accuracy, and int8_tolerance allows "
            f"{tolerance * 100:.2f}."
        )
    return None


def _latencies(network: NetworkRunner, image: Array, files: dict[str, Path]) -> dict[str, float]:
    """Measure the median seconds for one image `(1, C, H, W)` uint8 on one thread, by the name of the variant."""
    functions: dict[str, Callable[[], Any]] = {_TORCH: partial(network.logits, torch.from_numpy(image))}
    for name, file in files.items():
        functions[name] = partial(open_onnx(file, threads=1).run, ["logits"], {"images": image})
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return median_seconds(functions)
    finally:
        torch.set_num_threads(threads)


def _model_card_line(variant: Variant) -> str:
    accuracy = "" if variant.test_accuracy is None else f"{variant.test_accuracy:.2%} on test, "
    return (
        f"`{variant.file}` ({variant.name}, {(variant.bytes or 0) / 1e6:.2f} MB): {accuracy}{variant.differing} images "
        f"unlike PyTorch, {variant.latency * 1000:.2f} ms an image on one thread."
    )
