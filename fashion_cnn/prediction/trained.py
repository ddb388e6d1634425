"""A run's network as it was measured, without its data set: pictures in; logits and embeddings out."""

import copy
import hashlib
import json
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from fashion_cnn.models import ImageClassifier
from fashion_cnn.pictures.preparation import Invert
from fashion_cnn.prediction.data_set import data_set_of
from fashion_cnn.runs import Run
from fashion_cnn.training.hardware import device_for, precision_context
from fashion_cnn.training.weights import load_classifier, weights_sha256


class Seen(NamedTuple):
    """What a network makes of N images: logits `(N, num_classes)` and unit vectors `(N, D)`, float32 on the CPU."""

    logits: Tensor
    embeddings: Tensor


class TrainedNetwork:
    """A run's network with its best weights, in the run's precision and batches. No data set is needed.

    flip_average: the mean of the logits, and the direction of the mean of the embeddings, of an image and its mirror
    image. flip_embeddings: the latter alone. invert: see `Preparation`.
    Raises UserError where the run's weights cannot be read.
    """

    def __init__(
        self, run: Run, *, flip_average: bool = False, flip_embeddings: bool = False, invert: Invert = "auto"
    ) -> None:
        config = run.config()
        # It knows the classes and the normalisation without reading an image.
        data = data_set_of(run)
        self.run = run
        self.class_names = tuple(data.class_names)
        self.preparation = data.preparation(invert)
        self.flip_average = flip_average
        self.flip_embeddings = flip_average or flip_embeddings
        self.batch_size = data.eval_batch_size
        self._data = data
        self._accelerator, self._precision = config.trainer.accelerator, config.trainer.precision
        self._module = load_classifier(run).to(device_for(self._accelerator))

    @property
    def dimensions(self) -> int:
        """D of the embeddings."""
        classifier = self._module.network.get_submodule("classifier")
        assert isinstance(classifier, nn.Linear)
        return classifier.in_features

    @property
    def identity(self) -> str:
        """The same for networks that see a picture alike: weights, normalisation and preparation."""
        described = {
            "weights": weights_sha256(self._module.state_dict()),
            "normalisation": [self._data.pixel_mean.tolist(), self._data.pixel_scale.tolist()],
            "preparation": [*self.preparation.image_shape, self.preparation.cut_out, self.preparation.background],
        }
        return hashlib.sha256(json.dumps(described).encode()).hexdigest()[:16]

    def with_mirror_images(self) -> "TrainedNetwork":
        """The same network, whose embeddings are of an image and its mirror image."""
        other = copy.copy(self)
        other.flip_embeddings = True
        return other

    def untrained(self, seed: int) -> "TrainedNetwork":
        """A network of the same shape that has learned nothing, for comparison: its weights are drawn anew."""
        other = copy.copy(self)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            drawn = ImageClassifier(**self._module.hparams)
        other._module = drawn.to(self._module.device).eval()
        return other

    @torch.inference_mode()
    def look(self, images: Tensor) -> Seen:
        """What it makes of prepared pictures `(N, C, H, W)` uint8."""
        parts = [self._look_at(batch) for batch in images.split(self.batch_size)]
        logits, embeddings = zip(*parts, strict=True)
        return Seen(torch.cat(logits), torch.cat(embeddings))

    def _look_at(self, images: Tensor) -> Seen:
        with precision_context(self._precision, self._accelerator):
            normalised = self._data.normalise(images.to(self._module.device))
            views = [self._view(normalised)]
            if self.flip_embeddings:
                views.append(self._view(normalised.flip(-1)))
        logits = torch.stack([view.logits for view in views[: 1 + self.flip_average]]).mean(dim=0)
        embeddings = torch.stack([view.embeddings for view in views]).mean(dim=0)
        return Seen(logits.cpu(), functional.normalize(embeddings, dim=1).cpu())

    def _view(self, normalised: Tensor) -> Seen:
        features = self._module.embed(normalised)
        logits = self._module.network.get_submodule("classifier")(features)
        return Seen(logits.float(), functional.normalize(features.float(), dim=1))
