"""The files of TensorBoard's projector: embeddings with labels and thumbnails."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

_FOLDER = "projector"
_LARGEST_SPRITE = 8192  # pixels a side, TensorBoard's limit


def write_projector(
    directory: Path, embeddings: Tensor, images: Tensor, columns: Mapping[str, Sequence[str | float]]
) -> None:
    """Write what the projector shows of the run in `directory`.

    embeddings: `(N, D)`. images: `(N, C, H, W)` uint8, of one or three channels, shown as thumbnails where all of them
    fit TensorBoard's limit. columns: a value for each image, by the column's heading.
    """
    folder = directory / _FOLDER
    folder.mkdir(exist_ok=True)
    np.savetxt(folder / "tensors.tsv", embeddings.numpy(), fmt="%.5g", delimiter="\t")
    rows = zip(*columns.values(), strict=True)
    lines = ["\t".join(columns), *("\t".join(map(str, row)) for row in rows)]
    (folder / "metadata.tsv").write_text("\n".join(lines) + "\n")
    config = [
        "embeddings {",
        '  tensor_name: "validation images"',
        f'  tensor_path: "{_FOLDER}/tensors.tsv"',
        f'  metadata_path: "{_FOLDER}/metadata.tsv"',
    ]
    height, width = images.shape[-2:]
    side = int(np.ceil(np.sqrt(len(images))))
    if side * max(height, width) <= _LARGEST_SPRITE:
        _sprite(images, side).save(folder / "sprite.png")
        config += [
            "  sprite {",
            f'    image_path: "{_FOLDER}/sprite.png"',
            f"    single_image_dim: {width}",
            f"    single_image_dim: {height}",
            "  }",
        ]
    (directory / "projector_config.pbtxt").write_text("\n".join([*config, "}"]) + "\n")


def _sprite(images: Tensor, side: int) -> Image.Image:
    """All images in one square of `side` by `side`, row by row."""
    count, channels, height, width = images.shape
    sheet = np.zeros((side * side, height, width, channels), dtype=np.uint8)
    sheet[:count] = images.permute(0, 2, 3, 1).numpy()
    rows = sheet.reshape(side, side, height, width, channels).swapaxes(1, 2)
    return Image.fromarray(rows.reshape(side * height, side * width, channels).squeeze())
