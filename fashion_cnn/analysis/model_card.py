"""model_card.md: what a trained network is for, what it cannot do, and how it was made. After Mitchell et al., 2019."""

import shlex
from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig

from fashion_cnn.data import ImageDataModule
from fashion_cnn.runs import Run, write_whole

_SPLITS = {"train": "train probe", "val": "validation", "test": "test", "test_flip": "test, with the mirrored view"}


def write_model_card(
    run: Run, config: DictConfig, data: ImageDataModule, results: dict[str, Any], exported: Sequence[str] = ()
) -> None:
    """Write the card of a finished run; exported: lines on the files that were made of it."""
    write_whole(run.model_card_file, _card(config, data, results, exported))


def _card(config: DictConfig, data: ImageDataModule, results: dict[str, Any], exported: Sequence[str]) -> str:
    channels, height, width = data.image_shape
    colour = "grey" if channels == 1 else f"{channels} channels"
    typed = shlex.join(["python", "-m", "fashion_cnn.train", *(config.overrides or [])])
    rows = [
        f"| {label} | {results[f'{split}/accuracy']:.2%} | {results[f'{split}/loss']:.4f} |"
        for split, label in _SPLITS.items()
        if f"{split}/accuracy" in results
    ]
    parts = [
        f"# Model card: {results['name']}, seed {results['seed']}",
        f"A convolutional network that sorts pictures of {height} x {width} pixels ({colour}) into {data.num_classes} "
        f"classes: {', '.join(data.class_names)}. {results['parameters']:,} parameters, "
        f"{results['multiply_adds']:,} multiply-adds an image.",
        f"**Data.** {data.about or type(data).__name__} Trained on {results['train_images']:,} images"
        + (f", watched on {len(data.val_split):,} others." if len(data.val_split) else "."),
        "**Intended use.** Research and teaching, and as the eye of a product search over images of the same kind. Not "
        "for decisions about people.",
    ]
    limits = [f"It knows these {data.num_classes} classes alone, and calls anything else one of them.", *data.limits]
    parts.append("**Limits.**\n\n" + "\n".join(f"- {limit}" for limit in limits))
    if rows:
        parts.append("**Figures.**\n\n| | accuracy | loss |\n|---|---:|---:|\n" + "\n".join(rows))
    if exported:
        parts.append("**Exported.**\n\n" + "\n".join(f"- {line}" for line in exported))
    parts.append(
        f"**How it was made.** `{typed}`, with torch {results['torch']} and lightning {results['lightning']}: "
        f"{results['epochs']} epochs in {results['precision']} on {results['hardware']}, finished at "
        f"{results['finished']}. "
        f"SHA-256 of the weights: `{results.get('weights_sha256', 'not recorded')}`."
    )
    return "\n\n".join(parts) + "\n"
