"""Weights out of run directories."""

from typing import Any

import torch

from fashion_cnn.errors import UserError
from fashion_cnn.models import ImageClassifier
from fashion_cnn.runs import Run


def load_checkpoint(run: Run) -> dict[str, Any]:
    """The checkpoint that stands for the run. Raises UserError where there is none, or none that can be read."""
    try:
        checkpoint: dict[str, Any] = torch.load(run.weights, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{run.path} has no checkpoint: it was stopped before its first epoch ended.") from None
    except Exception as error:  # torch raises what its unpickler met
        raise UserError(f"{run.weights} is no readable checkpoint: {error}") from error
    return checkpoint


def load_classifier(run: Run) -> ImageClassifier:
    """The run's network with its best weights, in eval mode on the CPU."""
    load_checkpoint(run)
    return ImageClassifier.load_from_checkpoint(run.weights, map_location="cpu", weights_only=True).eval()


def initialise_from(module: ImageClassifier, run: Run) -> None:
    """Start `module` from the run's weights; a classifier of other classes keeps its new head.

    Raises UserError where the run trained another network.
    """
    theirs = {name: value for name, value in load_checkpoint(run)["state_dict"].items() if name.startswith("network.")}
    ours = {name: value for name, value in module.state_dict().items() if name.startswith("network.")}
    differing = sorted(
        name for name in ours.keys() | theirs.keys() if _shape(ours.get(name)) != _shape(theirs.get(name))
    )
    body = [name for name in differing if not name.startswith("network.classifier.")]
    if body:
        name = body[0]
        raise UserError(
            f"init_from={run.path}: that run trained another network. {len(body)} of its weights do not fit, "
            f"such as {name}: {_shape(theirs.get(name))} there, {_shape(ours.get(name))} here. "
            f"Choose the model that it trained (see {run.config_file})."
        )
    module.load_state_dict({name: theirs[name] for name in theirs if name not in differing}, strict=False)


def _shape(value: torch.Tensor | None) -> str:
    return "none" if value is None else str(list(value.shape))
