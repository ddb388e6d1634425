"""Weights out of run directories."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fashion_cnn.errors import UserError
from fashion_cnn.models import ImageClassifier
from fashion_cnn.runs import Run


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
