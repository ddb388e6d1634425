"""Trained networks: weights from a run directory, logits and embeddings of images."""

import copy
import hashlib
import json
import sys
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from hydra.errors import HydraException
from hydra.utils import get_class
from numpy.typing import ArrayLike, NDArray
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from torch.nn import functional

from fashion_cnn.data import ImageDataModule
from fashion_cnn.errors import UserError, causes_of, printable
from fashion_cnn.models import ImageClassifier
from fashion_cnn.models.checkpoint_loading import load_checkpoint
from fashion_cnn.models.hardware import precision_context, resolve_precision, select_device
from fashion_cnn.pictures.photographs import PretrainedSettings
from fashion_cnn.pictures.preparation import Invert, Preparation
from fashion_cnn.runs import Run
from fashion_cnn.runs.overrides import DEFAULT_ROOT
from fashion_cnn.runs.trust import check_classes, instantiate

# Maps images `(N, C, H, W)` uint8 to logits `(N, num_classes)`, float32, all on the CPU.
LogitsFunction = Callable[[Tensor], Tensor]
# Maximum number of images in one pass, whatever batch size a stored run names.
_MAX_BATCH_SIZE = 1000
# Up to this number, images and their mirror images go through the network as one batch.
_FEW_IMAGES = 8


class NetworkOutput(NamedTuple):
    """Output of a network for N images, float32 on the CPU.

    Attributes:
        logits: `(N, num_classes)`.
        embeddings: unit vectors `(N, D)`; D is 0 for a network without embeddings.
    """

    logits: Tensor
    embeddings: Tensor


class NetworkRunner:
    """Runs a network on uint8 images: normalisation, batches, device and precision.

    Args:
        module: the network, which is moved to `device` and set to eval mode.
        data: the data module whose normalisation and `eval_batch_size` apply; its images are not needed.
        device: the device to compute on.
        precision: Lightning's name of the number format, such as `bf16-mixed`.
    """

    def __init__(
        self,
        module: ImageClassifier,
        data: ImageDataModule,
        *,
        device: torch.device | str = "cpu",
        precision: str = "32-true",
    ) -> None:
        # Not in inference mode: no state dict could be loaded into buffers that were moved in it.
        self.module = module.eval().to(device)
        self.data = data
        self.batch_size = min(data.eval_batch_size, _MAX_BATCH_SIZE)
        self.precision = precision

    def logits(self, images: Tensor) -> Tensor:
        """Return the logits `(N, num_classes)`, float32 on the CPU, of images `(N, C, H, W)` uint8."""
        return self._run(lambda normalised: (self.module(normalised),), images)[0]

    def features(self, images: Tensor) -> Tensor:
        """Return the inputs of the last layer `(N, D)`, float32 on the CPU, of images `(N, C, H, W)` uint8."""
        return self._run(lambda normalised: (self.module.embed(normalised),), images)[0]

    @torch.inference_mode()
    def _run(self, function: Callable[[Tensor], tuple[Tensor, ...]], images: Tensor) -> list[Tensor]:
        """Apply `function`, which takes normalised images `(B, C, H, W)`, to all images, batch by batch."""
        device = self.module.device
        batches = []
        with precision_context(self.precision, device.type):
            for batch in images.split(self.batch_size):
                outputs = function(self.data.normalise(batch.to(device)))
                batches.append([output.float().cpu() for output in outputs])
        return [torch.cat(parts) for parts in zip(*batches, strict=True)]


class EmbeddingNetwork(NetworkRunner):
    """A network with the preparation of its pictures, whose outputs may be averaged over mirror images.

    Args:
        run: where what is taught to the network is stored.
        module: see `NetworkRunner`.
        data: see `NetworkRunner`; its classes are those of the logits.
        preparation: converts pictures to its input.
        flip_average: average the logits and embeddings of each image and its mirror image.
        flip_embeddings: average the embeddings alone.
        device: see `NetworkRunner`.
        precision: see `NetworkRunner`.

    Attributes:
        class_names: the classes of the logits.
        pretrained: what its vectors are made of; None for the network of a run.
        measured_columns: names of columns that a catalogue stores beside those of the shop.
    """

    pretrained: PretrainedSettings | None = None
    measured_columns: tuple[str, ...] = ()

    def __init__(
        self,
        run: Run,
        module: ImageClassifier,
        data: ImageDataModule,
        preparation: Preparation,
        *,
        flip_average: bool = False,
        flip_embeddings: bool = False,
        device: torch.device | str = "cpu",
        precision: str = "32-true",
    ) -> None:
        super().__init__(module, data, device=device, precision=precision)
        self.run = run
        self.class_names = tuple(data.class_names)
        self.preparation = preparation
        self.flip_average = flip_average
        self.flip_embeddings = flip_average or flip_embeddings

    @property
    def dimensions(self) -> int:
        """Length D of the embeddings; 0 for a network without embeddings."""
        return self.module.embedding_size or 0

    @property
    def identity(self) -> str:
        """A hash that networks share if they have the same weights, normalisation and preparation."""
        content = {
            "weights": weights_sha256(self.module.state_dict()),
            "normalisation": [self.data.pixel_mean.tolist(), self.data.pixel_scale.tolist()],
            "preparation": [*self.preparation.image_shape, self.preparation.cut_out, self.preparation.background],
        }
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    def with_mirror_images(self) -> Self:
        """Return this network with embeddings averaged over each image and its mirror image."""
        other = copy.copy(self)
        other.flip_embeddings = True
        return other

    def finds_item(self, image: ArrayLike) -> bool | None:
        """Return whether a prepared image `(C, H, W)` shows an item; None if that is not known."""
        return None

    def measure_columns(self, images: ArrayLike) -> dict[str, list[str]]:
        """Return the values of `measured_columns` of prepared images `(N, C, H, W)` uint8."""
        return {}

    def outputs(self, images: Tensor) -> NetworkOutput:
        """Return logits and embeddings of prepared images `(N, C, H, W)` uint8, in one pass."""
        is_one_batch = self.flip_embeddings and len(images) <= _FEW_IMAGES
        return NetworkOutput(*self._run(self._averaged_views_at_once if is_one_batch else self.averaged_views, images))

    def embed_pictures(self, pictures: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return logits `(N, num_classes)` and embeddings `(N, D)` of prepared pictures `(N, C, H, W)`."""
        output = self.outputs(torch.from_numpy(pictures))
        return output.logits.numpy(), output.embeddings.numpy()

    def logits(self, images: Tensor) -> Tensor:
        """Return the logits `(N, num_classes)`, float32 on the CPU, of prepared images `(N, C, H, W)` uint8."""
        return self.outputs(images).logits

    def embed(self, images: Tensor) -> Tensor:
        """Return the embeddings, unit vectors `(N, D)`, float32 on the CPU, of prepared images `(N, C, H, W)` uint8."""
        self.module.head()  # raises UserError without embeddings
        return self.outputs(images).embeddings

    def averaged_views(self, normalised: Tensor) -> NetworkOutput:
        """Return the outputs for normalised images `(N, C, H, W)`, averaged over mirror images if that is set."""
        views = [self._view(normalised)]
        if self.flip_embeddings:
            views.append(self._view(normalised.flip(-1)))
        return self._average(views)

    def _averaged_views_at_once(self, normalised: Tensor) -> NetworkOutput:
        """Average over mirror images as `averaged_views`, in one batch, which takes less time for few images."""
        view = self._view(torch.cat([normalised, normalised.flip(-1)]))
        halves = zip(view.logits.chunk(2), view.embeddings.chunk(2), strict=True)
        return self._average([NetworkOutput(*half) for half in halves])

    def _average(self, views: Sequence[NetworkOutput]) -> NetworkOutput:
        logits = torch.stack([view.logits for view in views[: 1 + self.flip_average]]).mean(dim=0)
        embeddings = torch.stack([view.embeddings for view in views]).mean(dim=0)
        return NetworkOutput(logits, functional.normalize(embeddings, dim=1))

    def _view(self, normalised: Tensor) -> NetworkOutput:
        if self.module.embedding_size is None:
            return NetworkOutput(self.module(normalised).float(), normalised.new_zeros(len(normalised), 0))
        logits, features = self.module.logits_and_embeddings(normalised)
        return NetworkOutput(logits.float(), functional.normalize(features.float(), dim=1))


class TrainedNetwork(EmbeddingNetwork):
    """The network of a run, with its best weights and in its precision. Needs no data set.

    Args:
        run: the run's directory.
        flip_average: average the logits and embeddings of each image and its mirror image.
        flip_embeddings: average the embeddings alone.
        needs_embeddings: refuse a network without embeddings.
        invert: see `Preparation`.

    Raises:
        UserError: if the run's weights cannot be read, or embeddings are needed and there are none.
    """

    def __init__(
        self,
        run: Run,
        *,
        flip_average: bool = False,
        flip_embeddings: bool = False,
        needs_embeddings: bool = False,
        invert: Invert = "auto",
    ) -> None:
        data = instantiate_data(run)
        trainer = config_section(run.config(), "trainer", run.config_file)
        module = load(run)
        try:
            device = select_device(trainer.accelerator, trainer.get("devices", 1))
            precision = resolve_precision(trainer.precision, trainer.accelerator)
        except (TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise _unusable_section(run.config_file, "trainer", error) from error
        super().__init__(
            run,
            module,
            data,
            data.preparation(invert),
            flip_average=flip_average,
            flip_embeddings=flip_embeddings,
            device=device,
            precision=precision,
        )
        needed, given = ((tuple(part.image_shape), part.num_classes) for part in (module, data))
        if needed != given:
            raise UserError(
                f"{run.config_file} does not belong to {run.weights}: it describes images of shape {given[0]} and "
                f"{given[1]} classes, the network takes images of shape {needed[0]} and {needed[1]} classes."
            )
        if needs_embeddings:
            self.module.head()

    def untrained(self, seed: int) -> "TrainedNetwork":
        """Return a network of the same architecture with new random weights, for comparison."""
        other = copy.copy(self)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            other.module = type(self.module)(**self.module.hparams)
        other.module.to(self.module.device).eval()
        return other


def instantiate_data(run: Run, root: str | None = None) -> ImageDataModule:
    """Create the data module that a run was trained on; no image is read.

    Args:
        run: the run's directory.
        root: the directory of the data set; None for the one that the run read.
    """
    settings = config_section(run.config(), "data", run.config_file)
    if root is not None:
        settings.root = root
    checked = check_classes(settings, run.config_file, "data")
    confine_data(checked, is_typed=root is not None)
    # Otherwise it would read the whole folder, or download it, even for a command that needs no image.
    reads_files = str(checked.get("_target_")).endswith((".ImageFolderDataModule", ".TorchvisionDataModule"))
    if root is None and reads_files and not checked.get("detected"):
        raise UserError(
            f"{run.config_file} does not hold what was detected in the training images (data.detected): restore it "
            "from a copy of the run."
        )
    try:
        data = instantiate(checked, _convert_="all")
    except HydraException as error:
        if isinstance(cause := [*causes_of(error)][-1], OSError):
            raise
        raise _unusable_section(run.config_file, "data", cause) from error
    if not isinstance(data, ImageDataModule):
        raise UserError(f"{run.config_file}: data._target_={settings.get('_target_')} is no ImageDataModule.")
    if not reads_files and not data.has_statistics:
        raise UserError(
            f"{run.config_file} lacks data.mean or data.std of the training images: restore it from a copy of the run."
        )
    return data


def config_section(config: DictConfig, name: str, file: Path) -> DictConfig:
    """Return a section of a stored config.

    Args:
        config: the whole config.
        name: name of the section, such as `data`.
        file: the file that it was read from, for the message.

    Raises:
        UserError: if it is no group of options, or `data.root` is no text.
    """
    section = config.get(name)
    if not OmegaConf.is_dict(section):
        raise UserError(f"{file} is damaged ({name} is {section!r:.40}, no group of options): restore it from a copy.")
    if name == "data" and not isinstance(root := section.get("root"), str | None):
        raise UserError(f"{file} is damaged (data.root={root!r:.40} is no folder): restore it from a copy.")
    assert isinstance(section, DictConfig)
    return section


def _unusable_section(file: Path, name: str, error: BaseException) -> UserError:
    if isinstance(error, UserError):
        return error
    reason = str(error).partition("\n")[0]
    return UserError(f"{file}: its section {name} cannot be used ({reason:.200}): restore it from a copy of the run.")


def confine_data(settings: MutableMapping[Any, Any], *, is_typed: bool) -> None:
    """Keep the data module of a stored run from removing cached pictures, and from downloading into a folder it names.

    Args:
        settings: checked section `data` of the run's config, which is changed.
        is_typed: whether the user typed the folder.
    """
    if not str(settings.get("_target_")).startswith("fashion_cnn."):
        return  # Other classes are trusted ones.
    if "cache_gb" in settings:
        settings["cache_gb"] = None
    is_default = Path(settings.get("root") or DEFAULT_ROOT) == DEFAULT_ROOT
    if "root" in settings:
        settings["download"] = None if is_typed or is_default else False


def load_data(run: Run, root: str | None = None) -> ImageDataModule:
    """Create the data module that a run was trained on, with its training and validation images in memory.

    Args:
        run: the run's directory.
        root: see `instantiate_data`.

    Raises:
        UserError: if the data set is missing, or differs from the one that the run was trained on.
    """
    data = instantiate_data(run, root)
    data.prepare_data()
    data.setup("fit")
    return data


def load(run: Run) -> ImageClassifier:
    """Load the network of a run with its best weights, in eval mode on the CPU.

    Raises:
        UserError: if the weights cannot be read, or are not those that the run ended with.
    """
    checkpoint = _read_final_checkpoint(run)
    model = config_section(run.config(), "model", run.config_file)
    check_classes(model, run.config_file, "model")
    # A subclass may have parameters of its own, as a learned loss has.
    recorded_class = get_class(model._target_) if isinstance(model.get("_target_"), str) else type(None)
    if not issubclass(recorded_class, ImageClassifier):
        raise UserError(f"{run.config_file}: model._target_={model.get('_target_')} is no ImageClassifier.")
    try:
        return recorded_class.from_checkpoint(checkpoint, run.weights).eval()
    except UserError:
        raise
    except RuntimeError as error:  # of load_state_dict
        raise UserError(
            f"{run.weights} does not fit {model._target_}: the code or the file has changed since the training. {error}"
        ) from error
    except (TypeError, ValueError, HydraException) as error:
        raise UserError(f"{run.weights} cannot be loaded ({error}): take it from a copy of the run.") from error


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a Lightning checkpoint to the CPU.

    Raises:
        UserError: if it is missing or cannot be read.
    """
    try:
        checkpoint: dict[str, Any] = load_checkpoint(path)
        if not isinstance(checkpoint["state_dict"], Mapping):
            raise ValueError("its weights are no mapping")
        if not all(isinstance(checkpoint[name], int) for name in ("epoch", "global_step")):
            raise ValueError("its epoch is no number")
    except FileNotFoundError:
        raise UserError(f"{path} is missing.") from None
    except Exception as error:  # torch raises what its unpickler met
        reason = f"it holds no {error}" if isinstance(error, KeyError) else str(error).partition("\n")[0]
        raise UserError(f"{path} is not a readable checkpoint ({reason}): take it from a copy of the run.") from error
    return checkpoint


def read_weights(run: Run) -> Mapping[str, Tensor]:
    """Read the state dict of the run's final checkpoint to the CPU: the best one, or without one the last.

    Raises:
        UserError: if it cannot be read, or is not the one that the run ended with.
    """
    weights: Mapping[str, Tensor] = _read_final_checkpoint(run)["state_dict"]
    return weights


def _read_final_checkpoint(run: Run) -> dict[str, Any]:
    """Read the run's final checkpoint, see `read_weights`."""
    results = run.results()
    if not run.weights.exists() and run.keeps_only_logits:
        raise UserError(
            f"{run.path} keeps its logits but no weights (keep=logits): train with keep=all, or read it with "
            "python -m fashion_cnn.memorisation."
        )
    if not run.weights.exists():
        why = "the run was not copied whole" if results else "the run was stopped before its first epoch ended"
        raise UserError(f"{run.checkpoints} holds no checkpoint: {why}.")
    checkpoint = read_checkpoint(run.weights)
    if results.get("weights_sha256") not in (None, weights_sha256(checkpoint["state_dict"])):
        missing = "" if run.best_checkpoint.exists() else f" {run.best_checkpoint} is missing: copy the run whole."
        raise UserError(
            f"{run.weights} does not belong to {run.results_file}: its weights differ from those at the end of the run."
            f"{missing}"
        )
    return checkpoint


def weights_sha256(state_dict: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of weights by name, the same for any device, file format and order of names."""
    digest = hashlib.sha256()
    for name in sorted(state_dict):
        digest.update(name.encode())
        digest.update(state_dict[name].cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def initialise_from(module: ImageClassifier, run: Run, class_names: Sequence[str]) -> None:
    """Copy a run's weights into `module`; a classifier of other classes keeps its new last layer, with a message.

    Args:
        module: the network to initialise.
        run: the run.
        class_names: the classes of `module`.

    Raises:
        UserError: if the run trained another network.
    """
    source = read_weights(run)
    differing = differing_weights(module.state_dict(), source)
    head = f"network.{module.head_name}."
    body = [name for name in differing if not name.startswith(head)]
    if body:
        raise UserError(
            f"init_from={run.path} has another network: {len(body)} weights do not fit, such as {body[0]}. "
            f"Choose the model that it trained (see {run.config_file})."
        )
    source_names = _class_names(run)
    if source_names is not None and [*map(str.casefold, source_names)] != [*map(str.casefold, class_names)]:
        differing = [name for name in source if name.startswith(head)]
        print(
            f"init_from={run.path} has other classes ({printable(', '.join(source_names[:3]))} …): "
            "its last layer is not used, all others are.",
            file=sys.stderr,
        )
    module.load_state_dict({name: source[name] for name in source if name not in differing}, strict=False)


def _class_names(run: Run) -> list[str] | None:
    """Return the classes of a run, from its settings; None if its data module cannot be built."""
    try:
        return list(instantiate_data(run).class_names)
    except UserError:
        return None


def differing_weights(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> list[str]:
    """Return the names that are in only one of two state dicts, or have different shapes in them."""
    shapes = [{name: weight.shape for name, weight in weights.items()} for weights in (first, second)]
    return sorted(name for name in first.keys() | second.keys() if shapes[0].get(name) != shapes[1].get(name))
