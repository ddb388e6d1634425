"""A run's network as it was trained: its checkpoint, its data set's description, logits and embeddings."""

import copy
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from hydra.utils import instantiate
from torch import Tensor, nn
from torch.nn import functional

from fashion_cnn.data import ImageDataModule
from fashion_cnn.errors import UserError
from fashion_cnn.models import ImageClassifier
from fashion_cnn.models.hardware import precision_context, select_device
from fashion_cnn.pictures.preparation import Invert
from fashion_cnn.runs import Run

# Logits `(B, num_classes)`, on any device, of images `(B, C, H, W)` uint8 on the CPU.
Classify = Callable[[Tensor], Tensor]


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
        self._module = load_classifier(run).to(select_device(self._accelerator))

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


def data_set_of(run: Run, root: str | None = None) -> ImageDataModule:
    """What a run was trained on; no image is read. root: where it lies, if not where the run had it."""
    settings = run.config().data
    if root is not None:
        settings.root = root
    data = instantiate(settings, _convert_="all")
    assert isinstance(data, ImageDataModule)
    return data


# Not in inference mode: `classify` may move a network, whose buffers could not be loaded into afterwards.
@torch.no_grad()
def all_logits(classify: Classify, images: Tensor, batch_size: int) -> Tensor:
    """The logits `(N, num_classes)`, float32 on the CPU, of images `(N, C, H, W)` uint8."""
    return torch.cat([classify(batch).float().cpu() for batch in images.split(batch_size)])


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A Lightning checkpoint, on the CPU. Raises UserError where it cannot be read."""
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        checkpoint["state_dict"], checkpoint["global_step"]
    except FileNotFoundError:
        raise UserError(f"{path} is missing.") from None
    except Exception as error:  # torch raises what its unpickler met
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path} is no readable checkpoint ({reason}).") from error
    return checkpoint


def load_classifier(run: Run) -> ImageClassifier:
    """The run's network with its best weights, in eval mode on the CPU.

    Raises UserError where they cannot be read, or are not those that the run ended with.
    """
    read_weights(run)
    return ImageClassifier.load_from_checkpoint(run.weights, map_location="cpu", weights_only=True).eval()


def read_weights(run: Run) -> Mapping[str, Tensor]:
    """The state dict of the weights that stand for the run.

    Raises UserError where they cannot be read, or are not those that the run ended with.
    """
    results = run.results()
    if not run.weights.exists():
        why = "the run was not copied whole" if results else "the run was stopped before its first epoch ended"
        raise UserError(f"{run.checkpoints} holds no checkpoint: {why}.")
    weights: Mapping[str, Tensor] = read_checkpoint(run.weights)["state_dict"]
    if results.get("weights_sha256") not in (None, weights_sha256(weights)):
        missing = "" if run.best_checkpoint.exists() else f" {run.best_checkpoint} is missing: copy the run whole."
        raise UserError(
            f"{run.weights} does not belong to {run.results_file}: its weights are not those that the run ended "
            f"with.{missing}"
        )
    return weights


def weights_sha256(state_dict: Mapping[str, Tensor]) -> str:
    """The SHA-256 of weights by name, the same wherever and however they are stored."""
    digest = hashlib.sha256()
    for name in sorted(state_dict):
        digest.update(name.encode())
        digest.update(state_dict[name].cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def restore(module: ImageClassifier, run: Run) -> None:
    """Give `module`, built from the run's config, the run's best weights.

    Raises UserError where the checkpoint is that of another network, or not the one that the run ended with.
    """
    weights = read_weights(run)
    if differing := differing_weights(module.state_dict(), weights):
        raise UserError(
            f"{run.weights} does not belong to {run.config_file}: {len(differing)} weights do not fit the network "
            f"described there, such as {differing[0]}."
        )
    module.load_state_dict(weights)


def initialise_from(module: ImageClassifier, run: Run) -> None:
    """Start `module` from the run's weights; a classifier of other classes keeps its new head.

    Raises UserError where the run trained another network.
    """
    theirs = read_weights(run)
    differing = differing_weights(module.state_dict(), theirs)
    body = [name for name in differing if not name.startswith("network.classifier.")]
    if body:
        raise UserError(
            f"init_from={run.path}: that run trained another network. {len(body)} of its weights do not fit, "
            f"such as {body[0]}. Choose the model that it trained (see {run.config_file})."
        )
    module.load_state_dict({name: theirs[name] for name in theirs if name not in differing}, strict=False)


def differing_weights(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> list[str]:
    """The names that only one of two state dicts has, or both with another shape."""

    def shape(weights: Mapping[str, Tensor], name: str) -> torch.Size | None:
        return weights[name].shape if name in weights else None

    return sorted(name for name in ours.keys() | theirs.keys() if shape(ours, name) != shape(theirs, name))
