"""Design of the study: base configurations drawn at random, and the arms that change one thing of each.

The bases are one random sequence: a longer study continues it, and every prefix covers all factors.
"""

import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

# Stem and stage widths of ResNets like model=tiny, model=small and model=medium, narrowest first.
SIZES: dict[str, tuple[list[int], list[int]]] = {
    "nano": ([8], [16, 32, 48]),
    "tiny": ([16], [32, 64, 96]),
    "small": ([16], [64, 128, 112]),
    "medium": ([16, 32], [96, 192, 192]),
}
# Image passes of a base at most: wider networks are slower. Some narrow ones train on all images, as users do.
_MAX_PASSES = {"nano": 64_000, "tiny": 48_000, "small": 32_000}
_MAX_PASSES_OF_ALL_IMAGES = {"nano": 360_000, "tiny": 0, "small": 0}
_MIN_PASSES = 12_000
_SIZE_WEIGHTS = {"nano": 4, "tiny": 4, "small": 1}
_IMAGES = (1_000, 2_000, 4_000, 8_000, 16_000, 45_000)
_EPOCHS = (4, 8, 16, 32, 64)
# Validation passes of each training of 8 epochs or more, so that the best epoch is chosen among equally many.
VALIDATION_PASSES = 8
DEFAULT_VALIDATION = 5_000
MAX_IMAGES = 45_000
# Data of another kind, smaller: validation images, and training images at most.
PICTOGRAM_VALIDATION, MAX_PICTOGRAMS = 2_000, 12_000
_PICTOGRAMS = (1_000, 2_000, 4_000, 6_000, 12_000)
# Number of the first of the small bases that check the coverage of intervals; they have no arms.
FIRST_OF_COVERAGE = 1000
# Numbers of the first of the large trainings, and of those on pictograms.
FIRST_OF_LARGE, FIRST_OF_PICTOGRAMS = 2000, 3000
# Size, images, epochs, CutMix and whether there are arms, of each large training.
_LARGE = (
    ("nano", 1_000, 200, True, False),
    ("nano", 2_000, 128, False, False),
    ("medium", 8_000, 8, True, False),
    ("tiny", 45_000, 8, False, True),
    ("tiny", 16_000, 24, True, True),
    ("small", 45_000, 4, True, False),
    ("tiny", 45_000, 16, True, False),
    ("small", 16_000, 16, False, False),
)
# Number of the first size of the learning curve, which is trained with many seeds.
FIRST_OF_CURVE = 4000
CURVE_IMAGES = (500, 1_000, 2_000, 4_000)
# A size beyond the curve, whose error the curve's extrapolation should hold.
BEYOND_CURVE = 8_000
_COVERAGE_IMAGES = (500, 1_000, 2_000, 4_000)
_COVERAGE_VALIDATION = 2_000


def group_of(base: int) -> int:
    """The first number of the bases of the same kind as number `base`: 0 or one of FIRST_OF_...."""
    firsts = (FIRST_OF_CURVE, FIRST_OF_PICTOGRAMS, FIRST_OF_LARGE, FIRST_OF_COVERAGE, 0)
    return next(first for first in firsts if base >= first)


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

    def overrides(self, seed: int, max_images: int) -> list[str]:
        """The overrides of `python -m fashion_cnn.train` with these settings, of at most `max_images` images."""
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
            f"+data.label_noise={self.label_noise}",
            f"data.train_fraction={self.images / max_images!r}",
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
        arm: `base`, `curve`, or the remedy (conf/remedy) that is applied to the base.
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
        remedy = [] if self.arm in ("base", "curve") else [f"remedy={self.arm}"]
        sizes = dict.fromkeys((FIRST_OF_COVERAGE, FIRST_OF_CURVE), _COVERAGE_VALIDATION)
        sizes[FIRST_OF_PICTOGRAMS] = PICTOGRAM_VALIDATION
        group = group_of(self.base)
        has_pictograms = group == FIRST_OF_PICTOGRAMS
        data = "PictogramDataModule" if has_pictograms else "StudyDataModule"
        return [
            *self.settings.overrides(self.seed, MAX_PICTOGRAMS if has_pictograms else MAX_IMAGES),
            f"data._target_=overfitting_study.training.{data}",
            f"data.val_size={sizes.get(group, DEFAULT_VALIDATION)}",
            every,
            *remedy,
        ]

    def as_dict(self) -> dict[str, Any]:
        """The job as entries of a record."""
        return {"base": self.base, "arm": self.arm, "seed": self.seed, "settings": asdict(self.settings)}


def bases(count: int, *, pictograms: bool = False) -> list[Settings]:
    """Return the first `count` base configurations, all different; those of pictograms have fewer images."""
    rng = random.Random("pictograms" if pictograms else "bases")
    chosen: dict[Settings, None] = {}
    while len(chosen) < count:
        size = rng.choices(list(_SIZE_WEIGHTS), list(_SIZE_WEIGHTS.values()))[0]
        possible = [
            (images, epochs)
            for images in (_PICTOGRAMS if pictograms else _IMAGES)
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


def arms(base: Settings, max_images: int = MAX_IMAGES) -> list[str]:
    """Return the remedies (conf/remedy) that are possible with `base`, given `max_images` training images."""
    return [
        *("longer", "shorter", "larger", "smaller", "erasing", "more_decay", "less_decay", "dropout"),
        "no_mixing" if base.cutmix else "cutmix",
        "no_smoothing" if base.smoothing else "smoothing",
        *([] if base.augmentation else ["augmentation"]),
        *(["more_images"] if base.images * 2 <= max_images else []),
    ]


def jobs(base_count: int, seeds: int) -> Iterator[Job]:
    """Return all trainings: every base with its arms for the first seed, then for the next."""
    configurations = bases(base_count)
    for seed in range(seeds):
        for number, base in enumerate(configurations):
            yield Job(number, "base", seed, base)
            for remedy in arms(base):
                yield Job(number, remedy, seed, base)


def agreement_jobs(count: int) -> Iterator[Job]:
    """Return the trainings of the first `count` bases with a second seed, without arms, for the agreement of seeds."""
    for number, base in enumerate(bases(count)):
        yield Job(number, "base", 1, base)


def pictogram_jobs(count: int) -> Iterator[Job]:
    """Return the trainings on pictograms: `count` bases with their arms, one seed each."""
    for number, base in enumerate(bases(count, pictograms=True), start=FIRST_OF_PICTOGRAMS):
        for arm in ("base", *arms(base, MAX_PICTOGRAMS)):
            yield Job(number, arm, 0, base)


def large_jobs(count: int) -> Iterator[Job]:
    """Return `count` trainings that are longer, larger or on more images than the bases; two of them with arms."""
    plain: dict[str, Any] = {"augmentation": True, "erasing": 0.5, "label_noise": 0.0, "smoothing": 0.1, "dropout": 0.0}
    for number, (size, images, epochs, cutmix, has_arms) in enumerate(_LARGE[:count], start=FIRST_OF_LARGE):
        base = Settings(size, images, epochs, cutmix=cutmix, **plain)
        for arm in ("base", "no_mixing" if cutmix else "cutmix", "larger") if has_arms else ("base",):
            yield Job(number, arm, 0, base)


def curve_jobs(seeds: int) -> Iterator[Job]:
    """Return the trainings of a learning curve with `seeds` seeds, each with images of its own."""
    for seed in range(seeds):
        for number, images in enumerate((*CURVE_IMAGES, BEYOND_CURVE), start=FIRST_OF_CURVE):
            # The error beyond the curve is a mean over fewer, longer trainings.
            if images != BEYOND_CURVE or seed < seeds // 4:
                settings = Settings("nano", images, 8, False, 0.0, 0.0, False, 0.0, 0.0)
                yield Job(number, "curve", seed, settings)


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
