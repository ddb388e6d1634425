"""A pretrained network of a product search in an ONNX file, which needs no torch.

The graph takes photographs `(N, H, W, 3)` uint8 of any size, all of one size: the middle square is resized, normalised
and embedded. Outside the graph, in Pillow and NumPy, items on a plain background are trimmed (`Preparation`) and put on
another background, and their colours are joined to the features (`describe_photographs`).
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fashion_cnn.errors import UserError, require
from fashion_cnn.inference.prediction import PictureVectors, Prediction, predictions_of, softmax
from fashion_cnn.pictures.colour import has_item
from fashion_cnn.pictures.photographs import (
    COLOUR_COLUMN,
    PretrainedSettings,
    add_patchworks,
    describe_photographs,
    embedding_size,
    main_colours,
)
from fashion_cnn.runs import Run

# Name of the file in the folder of the catalogue.
ONNX_FILE = "network.onnx"
INPUT, OUTPUTS = "photographs", ("logits", "features")
_BATCH_SIZE = 32


class OnnxNetwork:
    """The network of `embedding=pretrained` in ONNX, computed by ONNX Runtime.

    Args:
        run: the folder of the catalogue.
        file: file that `python -m fashion_cnn.export embedding=pretrained` wrote.
        settings: what the vectors of the catalogue are made of.
        flip_average: whether they average each picture and its mirror image.

    Attributes:
        class_names: the classes of the logits.
        preparation: trims and resizes pictures.

    Raises:
        UserError: if the file is missing or damaged, or the network of other settings.
    """

    measured_columns = (COLOUR_COLUMN,)

    def __init__(self, run: Run, file: Path, settings: PretrainedSettings, *, flip_average: bool) -> None:
        require("export", "onnxruntime")
        command = f"python -m fashion_cnn.export embedding=pretrained catalogue={run.path}"
        if not file.is_file():
            raise UserError(f"{file} is missing: write it with {command}.")
        self._session = open_session(file, threads=1)
        try:
            stored = self._session.get_modelmeta().custom_metadata_map
            names, identity = json.loads(stored["class_names"]), stored["identity"]
            self._features = int(stored["features"])
        except (KeyError, ValueError) as error:
            raise UserError(f"{file} does not belong to a catalogue: write it anew with {command}.") from error
        self.class_names: tuple[str, ...] = tuple(map(str, names))
        self.run = run
        self.pretrained: PretrainedSettings | None = settings
        self._settings = settings
        self.flip_average = self.flip_embeddings = flip_average
        if identity != exported_identity(settings, flip_average=flip_average):
            raise UserError(f"{file} was written for a catalogue with other settings: write it anew with {command}.")
        self.preparation = settings.preparation

    @property
    def dimensions(self) -> int:
        """Length of the embeddings."""
        return embedding_size(self._features, self._settings)

    @property
    def identity(self) -> str:
        """The identity of the network in PyTorch, whose embeddings are the same but for rounding."""
        return self._settings.identity

    def embed_pictures(self, pictures: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return logits `(N, num_classes)` and embeddings `(N, E)` of prepared pictures `(N, 3, H, W)`."""
        all_pictures, changed = add_patchworks(pictures, self._settings)
        logits, features = self._run(all_pictures)
        return logits[: len(pictures)], describe_photographs(features, changed, pictures, self._settings)

    def _run(self, pictures: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return logits `(N, num_classes)` and features `(N, F)` of prepared pictures `(N, 3, H, W)`."""
        photographs = pictures.transpose(0, 2, 3, 1)
        outputs = [
            self._session.run(list(OUTPUTS), {INPUT: np.ascontiguousarray(photographs[start : start + _BATCH_SIZE])})
            for start in range(0, len(pictures), _BATCH_SIZE)
        ]
        logits, features = (np.concatenate(parts) for parts in zip(*outputs, strict=True))
        return logits, features

    def finds_item(self, image: ArrayLike) -> bool:
        """Return whether a prepared photograph `(3, H, W)` shows an item on a plain background."""
        return has_item(np.asarray(image))

    def measure_columns(self, images: ArrayLike) -> dict[str, list[str]]:
        """Return the main colour of each prepared picture `(N, 3, H, W)` uint8."""
        return main_colours(images)


class OnnxPredictor:
    """Predicts the classes of pictures from the outputs of a network in ONNX, without calibration.

    Attributes:
        network: the network.
    """

    def __init__(self, network: OnnxNetwork) -> None:
        self.network = network

    def classify(self, outputs: PictureVectors, paths: Sequence[Path], *, top_k: int = 3) -> Iterator[Prediction]:
        """Yield the predictions for N files, see `Predictor.classify`."""
        concepts: list[list[tuple[str, float]]] = [[] for _ in paths]
        probabilities = softmax(outputs.logits)
        yield from predictions_of(
            probabilities, paths, class_names=self.network.class_names, concepts=concepts, top_k=top_k
        )


def exported_identity(settings: PretrainedSettings, *, flip_average: bool) -> str:
    """Return the identity of an exported network: that of its settings, and whether it averages mirror images."""
    return f"{settings.identity}{'-flip' if flip_average else ''}"


def open_session(file: Path, *, threads: int) -> Any:
    """Open an ONNX file for inference on the CPU.

    Args:
        file: the file.
        threads: number of threads; 0 for one per core.

    Raises:
        UserError: if it is damaged.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises errors of its own kinds
        raise UserError(f"{file} cannot be read ({str(error).splitlines()[0]:.200}): write it anew.") from error
