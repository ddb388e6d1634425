"""Design of the study: base configurations drawn at random, and the arms that change one thing of each.

The bases are one random sequence: a longer study continues it, and every prefix covers all factors.
"""

import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

# Stem and stage widths of ResNets like model=tiny and model=small, narrowest first.
SIZES: dict[str, tuple[list[int], list[int]]] = {
    "nano": ([8], [16, 32, 48]),
    "tiny": ([16], [32, 64, 96]),
    "small": ([16], [64, 128, 112]),
}
# Image passes of a base at most: wider networks are slower. Some narrow ones train on all images, as users do.
_MAX_PASSES = {"nano": 64_000, "tiny": 48_000, "small": 32_000}
_MAX_PASSES_OF_ALL_IMAGES = {"nano": 360_000, "tiny": 0, "small": 0}
_MIN_PASSES = 12_000
_SIZE_WEIGHTS = {"nano": 4, "tiny": 4, "small": 1}
_IMAGES = (1_000, 2_000, 4_000, 8_000, 16_000, 45_000)
_EPOCHS = (4, 8, 16, 32, 64)
# Validation passes of each training, so that the best epoch is chosen among equally many.
VALIDATION_PASSES = 8
DEFAULT_VALIDATION = 5_000
MAX_IMAGES = 45_000
# Number of the first of the small bases that check the coverage of intervals; they have no arms.
FIRST_OF_COVERAGE = 1000
_COVERAGE_IMAGES = (500, 1_000, 2_000, 4_000)
_COVERAGE_VALIDATION = 2_000


@dataclass(frozen=True)
class Settings:
    """Settings of a training of the study.

    Attributes:
        size: a key of SIZES.
        images: number of training images.
        epochs: number of epochs.
        augmentation: whether training images are mirrored and shifted.
        erasing: probability of random erasing.
        label_noise: share of the images whose label is replaced by another class, in training and validation.
        cutmix: whether images are mixed by CutMix.
        smoothing: label smoothing.
        dropout: dropout before the last layer.
    """

    size: str
    images: int
    epochs: int
    augmentation: bool
    erasing: float
    label_noise: float
    cutmix: bool
    smoothing: float
    dropout: float

    def overrides(self, seed: int) -> list[str]:
        """The overrides of `python -m fashion_cnn.train` with these settings."""
        stem, widths = SIZES[self.size]
        augmentation = []
        if not self.augmentation:
            augmentation += ["data.augmentation.flip=null", "data.augmentation.crop=null"]
        augmentation.append(
            f"data.augmentation.erasing.p={self.erasing}" if self.erasing else "data.augmentation.erasing=null"
        )
        return [
            "model=tiny",
            f"model.network.stem={stem}",
            f"model.network.widths={widths}",
            f"model.network.dropout={self.dropout}",
            f"model.label_smoothing={self.smoothing}",
            "data._target_=overfitting_study.training.StudyDataModule",
            f"+data.label_noise={self.label_noise}",
            f"data.train_fraction={self.images / MAX_IMAGES!r}",
            f"data.split_seed={seed}",
            "data.batch_size=128",
            *augmentation,
            *(["mixing=cutmix"] if self.cutmix else []),
            f"trainer.max_epochs={self.epochs}",
            "trainer.enable_progress_bar=false",
            "callbacks=essential",
            "~callbacks.lines",
            "~logger.tensorboard",
            "test=false",
            "flip_average=false",
            f"seed={seed}",
        ]


@dataclass(frozen=True)
class Job:
    """One training of the study.

    Attributes:
        base: number of the base configuration.
        arm: `base`, or the remedy (conf/remedy) that is applied to it.
        seed: seed of the weights, of the choice of the images, and of the label noise.
        settings: the settings of the base.
    """

    base: int
    arm: str
    seed: int
    settings: Settings

    @property
    def key(self) -> tuple[int, str, int]:
        """Key of the job in the records."""
        return self.base, self.arm, self.seed

    def overrides(self) -> list[str]:
        """The overrides of `python -m fashion_cnn.train`."""
        epochs = self.settings.epochs * {"longer": 2, "shorter": 0.5}.get(self.arm, 1)
        every = f"trainer.check_val_every_n_epoch={max(1, int(epochs) // VALIDATION_PASSES)}"
        remedy = [] if self.arm == "base" else [f"remedy={self.arm}"]
        validation = [f"data.val_size={_COVERAGE_VALIDATION}"] if self.base >= FIRST_OF_COVERAGE else []
        return [*self.settings.overrides(self.seed), every, *remedy, *validation]

    def as_dict(self) -> dict[str, Any]:
        """The job as entries of a record."""
        return {"base": self.base, "arm": self.arm, "seed": self.seed, "settings": asdict(self.settings)}


def bases(count: int) -> list[Settings]:
    """Return the first `count` base configurations, all different."""
    rng = random.Random("bases")
    chosen: dict[Settings, None] = {}
    while len(chosen) < count:
        size = rng.choices(list(_SIZE_WEIGHTS), list(_SIZE_WEIGHTS.values()))[0]
        possible = [
            (images, epochs)
            for images in _IMAGES
            for epochs in _EPOCHS
            if _MIN_PASSES
            <= images * epochs
            <= (_MAX_PASSES if images < MAX_IMAGES else _MAX_PASSES_OF_ALL_IMAGES)[size]
        ]
        images, epochs = rng.choice(possible)
        augmentation = rng.random() < 0.6
        settings = Settings(
            size=size,
            images=images,
            epochs=epochs,
            augmentation=augmentation,
            erasing=0.5 if augmentation and rng.random() < 0.6 else 0.0,
            label_noise=rng.choice((0.0, 0.0, 0.0, 0.05, 0.2)),
            cutmix=rng.random() < 0.25,
            smoothing=rng.choice((0.0, 0.1)),
            dropout=rng.choice((0.0, 0.0, 0.2)),
        )
        chosen[settings] = None
    return list(chosen)


def arms(base: Settings) -> list[str]:
    """Return the remedies (conf/remedy) that are possible with `base`."""
    return [
        *("longer", "shorter", "larger", "smaller", "erasing", "more_decay", "less_decay", "dropout"),
        "no_mixing" if base.cutmix else "cutmix",
        "no_smoothing" if base.smoothing else "smoothing",
        *([] if base.augmentation else ["augmentation"]),
        *(["more_images"] if base.images * 2 <= MAX_IMAGES else []),
    ]


def jobs(base_count: int, seeds: int) -> Iterator[Job]:
    """Return all trainings: every base with its arms for the first seed, then for the next."""
    configurations = bases(base_count)
    for seed in range(seeds):
        for number, base in enumerate(configurations):
            yield Job(number, "base", seed, base)
            for remedy in arms(base):
                yield Job(number, remedy, seed, base)


def coverage_jobs(count: int) -> Iterator[Job]:
    """Return `count` short trainings of a narrow network, each with images and a seed of its own.

    The images that they do not use, more than 40,000, tell the true gap almost exactly.
    """
    rng = random.Random("coverage")
    for number in range(count):
        settings = Settings(
            size="nano",
            images=rng.choice(_COVERAGE_IMAGES),
            epochs=rng.choice((8, 16)),
            augmentation=rng.random() < 0.5,
            erasing=0.0,
            label_noise=rng.choice((0.0, 0.0, 0.2)),
            cutmix=rng.random() < 0.25,
            smoothing=rng.choice((0.0, 0.1)),
            dropout=0.0,
        )
        yield Job(FIRST_OF_COVERAGE + number, "base", number, settings)
