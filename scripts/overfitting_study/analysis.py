"""Gains of the arms over their bases, and a model that predicts them, evaluated with whole bases left out."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf

from fashion_cnn.analysis import forecast
from fashion_cnn.analysis.verdict import FEATURES, REMEDIES, ExpectedGain, loss_trend, run_features
from fashion_cnn.metrics.gap import accuracy_gap_of
from fashion_cnn.metrics.intervals import Z_95, t_quantile
from overfitting_study.design import (
    DEFAULT_VALIDATION,
    FIRST_OF_COVERAGE,
    FIRST_OF_CURVE,
    FIRST_OF_LARGE,
    FIRST_OF_PICTOGRAMS,
    MAX_IMAGES,
    group_of,
)
from overfitting_study.records import job_key

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Family:
    """A family of models of the gains. Each remedy has its own model.

    Attributes:
        features: the features of a run that gains depend on linearly.
        ridges: penalties on standardised features, in observations; each remedy has the one that predicts best. An
            infinite one leaves the mean gain.
    """

    features: tuple[str, ...]
    ridges: tuple[float, ...]


# The family that predicts best is used. The trend of the loss was proposed when 13 bases were recorded.
FAMILIES = {
    "mean gain of each remedy": Family((), (math.inf,)),
    "share of the gap": Family(("gap_share",), (3.0,)),
    "trend of the validation loss": Family(("val_loss_trend",), (3.0,)),
    "linear model of all features": Family(FEATURES, (3.0, 10.0, 30.0, 100.0, math.inf)),
}
FIRST_AFTER_CHOICE = 13
# Remedies that were tried on fewer bases have no model.
_MIN_BASES = 4
# Expected gains by base, seed and remedy.
Predicted = dict[tuple[int, int, str], ExpectedGain]
FORECAST_RIDGE = 1.0


@dataclass(frozen=True)
class Gain:
    """Gain of an arm over its base, on the judge.

    Attributes:
        base: number of the base.
        seed: seed of both trainings.
        arm: name of the change.
        features: `(F,)` of the base's training; NaN for those that were not recorded.
        accuracy: gain in accuracy, as a fraction.
        gap: change of the accuracy gap to validation.
    """

    base: int
    seed: int
    arm: str
    features: Floats
    accuracy: float
    gap: float

    @property
    def val_error(self) -> float:
        """Validation error of the base's training, to which gains are relative."""
        return math.exp(self.features[FEATURES.index("log_val_error")])

    @property
    def relative(self) -> float:
        """The gain in accuracy as a share of the validation error before."""
        return self.accuracy / self.val_error


def paired_gains(records: Iterable[Mapping[str, Any]], groups: Sequence[int] = (0, FIRST_OF_LARGE)) -> list[Gain]:
    """Pair every arm of the bases of these groups with its base of the same seed.

    Args:
        records: the trainings.
        groups: groups of bases, see `group_of`.
    """
    by_key = {job_key(record): record for record in records}
    gains = []
    for (number, arm, seed), run in by_key.items():
        base = by_key.get((number, "base", seed))
        if arm == "base" or base is None or group_of(number) not in groups:
            continue
        accuracy = run["last_judge_accuracy"] - base["last_judge_accuracy"]
        gains.append(Gain(number, seed, arm, features_of(base), accuracy, gap=_gap(run) - _gap(base)))
    return gains


def train_images(run: Mapping[str, Any]) -> int:
    """Number of training images: checks of coverage have fewer validation images, and so more than recorded."""
    images = run["settings"]["images"]
    if group_of(run["base"]) in (FIRST_OF_COVERAGE, FIRST_OF_CURVE):
        return round((MAX_IMAGES + DEFAULT_VALIDATION - run["last_val_count"]) / MAX_IMAGES * images)
    return images


def features_of(run: Mapping[str, Any]) -> Floats:
    """The features `(F,)` of a recorded training, as the verdict computes them."""
    settings = run["settings"]
    return run_features(
        run["last_train_accuracy"],
        run["last_val_accuracy"],
        images=train_images(run),
        epochs=settings["epochs"],
        parameters=run["parameters"],
        config=_config(augmented=settings["augmentation"], mixed=settings["cutmix"]),
        val_loss_trend=loss_trend(
            *(np.array([each[name] for each in run["passes"]]) for name in ("epoch", "val_loss"))
        ),
    )


def _config(*, augmented: bool, mixed: bool) -> DictConfig:
    """The settings that features depend on."""
    return OmegaConf.create(
        {"data": {"augmentation": {"flip": augmented or None}}, "mixing": {"p": 0.5} if mixed else None}
    )


# Pairs of recorded ablations (scripts/records.jsonl) on all training images: the row before a remedy, the row with it,
# the remedy, and the remedy that leads back.
ABLATIONS = (
    ("tiny: as it is", "tiny: CutMix for half of the images", "cutmix", "no_mixing"),
    ("tiny: as it is", "tiny: no label smoothing", "no_smoothing", "smoothing"),
    ("tiny: as it is", "tiny: length: 32 epochs", "longer", "shorter"),
    ("tiny: length: 8 epochs", "tiny: as it is", "longer", "shorter"),
    ("speedrun_93: as it is", "speedrun_93: no label smoothing", "no_smoothing", "smoothing"),
    ("speedrun_93: as it is", "speedrun_93: widths 32, 64, 128", "smaller", "larger"),
    ("speedrun_93: no mirrored images", "speedrun_93: as it is", "augmentation", None),
    ("speedrun_95: no CutMix", "speedrun_95: as it is", "cutmix", "no_mixing"),
    ("small: no CutMix", "small: as it is", "cutmix", "no_mixing"),
    ("medium: no CutMix", "medium: as it is", "cutmix", "no_mixing"),
)
_MIXED = (
    "tiny: CutMix for half of the images",
    *(f"{name}: as it is" for name in ("speedrun_95", "small", "medium")),
)
_NOT_AUGMENTED = ("speedrun_93: no mirrored images",)


def ablation_gains(records: Iterable[Mapping[str, Any]]) -> list[Gain]:
    """Gains of the remedies among the recorded ablations, judged by the 5,000 validation images of each.

    These were measured once, after the last epoch. Each recipe counts as one base.
    """
    by_row: dict[str, dict[int, Mapping[str, Any]]] = {}
    for record in records:
        by_row.setdefault(record["row"], {})[record["results"]["seed"]] = record["results"]
    recipes = sorted({before.partition(":")[0] for before, _, _, _ in ABLATIONS})
    gains = []
    for before, after, remedy, reverse in ABLATIONS:
        number = -1 - recipes.index(before.partition(":")[0])
        for seed in by_row[before].keys() & by_row[after].keys():
            for first, second, arm in ((before, after, remedy), (after, before, reverse)):
                if arm is not None:
                    gains.append(_ablation_gain(by_row[first][seed], by_row[second][seed], first, number, seed, arm))
    return gains


def _ablation_gain(
    run: Mapping[str, Any], changed: Mapping[str, Any], row: str, number: int, seed: int, arm: str
) -> Gain:
    features = run_features(
        run["train/accuracy"],
        run["val/accuracy"],
        images=run["train_images"],
        epochs=run["epochs"],
        parameters=run["parameters"],
        config=_config(augmented=row not in _NOT_AUGMENTED, mixed=row in _MIXED),
    )
    return Gain(
        number,
        seed,
        arm,
        features,
        changed["val/accuracy"] - run["val/accuracy"],
        changed["gap/accuracy"] - run["gap/accuracy"],
    )


def _gap(run: Mapping[str, Any]) -> float:
    return run["last_train_accuracy"] - run["last_val_accuracy"]


@dataclass(frozen=True)
class LinearModel:
    """Linear model with a normal error.

    Attributes:
        intercept: prediction at the mean of the features.
        coefficients: `(F,)` of the standardised features.
        deviation: standard deviation of a new value around the prediction.
        count: number of values that it was fitted to.
        ridge: penalty on the squared coefficients; infinite for a constant.
    """

    intercept: float
    coefficients: Floats
    deviation: float
    count: int
    ridge: float

    def predict(self, features: Floats) -> float:
        """Predict a value from standardised features `(F,)`."""
        return self.intercept + float(features @ self.coefficients)


def fit(design: Floats, values: Floats, ridge: float, judged: NDArray[np.bool_] | None = None) -> LinearModel:
    """Fit by ridge regression.

    The deviation is that of the leave-one-out residuals, increased so that `Z_95` of it reach the 97.5% quantile
    of Student's t distribution.

    Args:
        design: `(N, F)` standardised features.
        values: `(N,)`.
        ridge: penalty on the squared coefficients; infinite for the mean alone.
        judged: `(N,)`, the values whose residuals make the deviation; None for all.
    """
    intercept = float(values.mean())
    centred = design - design.mean(0)
    if math.isinf(ridge):
        coefficients, leverage = np.zeros(design.shape[1]), np.full(len(values), 1 / len(values))
    else:
        inverse = np.linalg.inv(centred.T @ centred + ridge * np.eye(design.shape[1]))
        coefficients = inverse @ centred.T @ (values - intercept)
        leverage = np.einsum("nf,fg,ng->n", centred, inverse, centred) + 1 / len(values)
    residuals = (values - intercept - centred @ coefficients) / np.maximum(1 - leverage, 0.1)
    if judged is not None:
        residuals = residuals[judged]
    deviation = float(np.sqrt(np.square(residuals).mean())) * t_quantile(len(residuals) - 1) / Z_95
    intercept -= float(design.mean(0) @ coefficients)
    return LinearModel(intercept, coefficients, max(deviation, 1e-4), len(values), ridge)


@dataclass(frozen=True)
class GainModel:
    """Models of the gains of the remedies, as shares of the validation error before.

    Attributes:
        mean: `(F,)`, mean of the features.
        scale: `(F,)`, their standard deviation.
        remedies: a model of each remedy that was tried on enough bases.
    """

    mean: Floats
    scale: Floats
    remedies: Mapping[str, LinearModel]

    @classmethod
    def fitted(cls, gains: Sequence[Gain], family: str) -> "GainModel":
        """Fit a family of models to gains, with the penalties that predict them best with whole bases left out."""
        mean, scale = standardisation(gains)
        used = np.isin(FEATURES, FAMILIES[family].features)
        remedies = {}
        for arm in sorted({gain.arm for gain in gains}):
            arm_gains = [gain for gain in gains if gain.arm == arm]
            numbers = np.array([gain.base for gain in arm_gains])
            if len(set(numbers.tolist())) < _MIN_BASES:
                continue
            design = standardised(np.array([gain.features for gain in arm_gains]), mean, scale) * used
            values = np.array([gain.relative for gain in arm_gains])
            best = min(FAMILIES[family].ridges, key=lambda ridge: _left_out_error(design, values, numbers, ridge))
            remedies[arm] = fit(design, values, best)
        return cls(mean, scale, remedies)

    def predict(self, gain: Gain) -> ExpectedGain | None:
        """Predict a gain from the features of its base; None for a remedy without a model."""
        model = self.remedies.get(gain.arm)
        if model is None:
            return None
        relative = model.predict(standardised(gain.features, self.mean, self.scale))
        return ExpectedGain.normal(gain.arm, relative * gain.val_error, model.deviation * gain.val_error)


def _left_out_error(design: Floats, values: Floats, numbers: NDArray[np.int64], ridge: float) -> float:
    """Sum of squared errors of predictions by models that saw no value of the same base."""
    error = 0.0
    for number in set(numbers.tolist()):
        others = numbers != number
        model = fit(design[others], values[others], ridge)
        predicted = model.intercept + design[~others] @ model.coefficients
        error += float(np.square(values[~others] - predicted).sum())
    return error


def standardisation(gains: Sequence[Gain]) -> tuple[Floats, Floats]:
    """Mean and standard deviation `(F,)` of the features, over the bases' trainings."""
    features = np.array(list({(gain.base, gain.seed): gain.features for gain in gains}.values()))
    return np.nanmean(features, axis=0), np.maximum(np.nanstd(features, axis=0), 1e-9)


def standardised(features: Floats, mean: Floats, scale: Floats) -> Floats:
    """Standardise features `(..., F)`; those that were not recorded become 0, the mean."""
    return np.nan_to_num((features - mean) / scale)


def leave_bases_out(gains: Sequence[Gain], family: str) -> Predicted:
    """Predict each gain by models that saw no training of its base."""
    predictions = {}
    for base in {gain.base for gain in gains}:
        model = GainModel.fitted([gain for gain in gains if gain.base != base], family)
        predictions |= _predictions(model, [gain for gain in gains if gain.base == base])
    return predictions


def best_family(gains: Sequence[Gain], predictions: Mapping[str, Predicted]) -> str:
    """Return the family whose predictions with bases left out have the smallest squared error."""

    def error(family: str) -> float:
        predicted = predictions[family]
        pairs = [(gain, predicted.get((gain.base, gain.seed, gain.arm))) for gain in gains]
        return sum((gain.accuracy - expected.gain.estimate) ** 2 for gain, expected in pairs if expected is not None)

    return min(FAMILIES, key=error)


def predict_gains(gains: Sequence[Gain], others: Sequence[Gain], family: str) -> Predicted:
    """Predict gains on other data by models fitted to `gains`."""
    return _predictions(GainModel.fitted(gains, family), others)


def _predictions(model: GainModel, gains: Iterable[Gain]) -> Predicted:
    predictions = {(gain.base, gain.seed, gain.arm): model.predict(gain) for gain in gains}
    return {key: expected for key, expected in predictions.items() if expected is not None}


def in_interval(predicted: Predicted, gains: Iterable[Gain]) -> list[bool]:
    """Return for each predicted gain whether its prediction interval holds it."""
    return [
        expected.gain.low <= gain.accuracy <= expected.gain.high
        for gain in gains
        if (expected := predicted.get((gain.base, gain.seed, gain.arm))) is not None
    ]


def fitted_study(gains: Sequence[Gain], records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The content of fashion_cnn/analysis/remedies.json, fitted to all gains."""
    family = best_family(gains, {name: leave_bases_out(gains, name) for name in FAMILIES})
    model = GainModel.fitted(gains, family)
    used = [record for record in records if group_of(record["base"]) in (0, FIRST_OF_LARGE)]
    remedies = {}
    for remedy in (name for name in REMEDIES if name in model.remedies):
        features = [gain.features for gain in gains if gain.arm == remedy]
        fitted = model.remedies[remedy]
        remedies[remedy] = {
            "intercept": round(fitted.intercept, 6),
            "coefficients": _rounded(fitted.coefficients),
            "deviation": round(fitted.deviation, 6),
            "count": fitted.count,
            "ridge": None if math.isinf(fitted.ridge) else fitted.ridge,
            "low": _rounded(np.nanmin(features, axis=0)),
            "high": _rounded(np.nanmax(features, axis=0)),
        }
    return {
        "fitted_by": "scripts/verdict_study fit",
        "trainings": len(used),
        "bases": len({record["base"] for record in used}),
        "seeds": len({gain.seed for gain in gains if gain.base >= 0}),
        "family": family,
        "elsewhere": _transferred_coverage(model, records),
        "features": list(FEATURES),
        "mean": _rounded(model.mean),
        "scale": _rounded(model.scale),
        "remedies": remedies,
    }


def gains_elsewhere(records: Iterable[Mapping[str, Any]]) -> list[Gain]:
    """The gains on data of another kind."""
    runs = [record for record in records if group_of(record["base"]) == FIRST_OF_PICTOGRAMS]
    return paired_gains(runs, (FIRST_OF_PICTOGRAMS,))


def _transferred_coverage(model: GainModel, records: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Numbers of gains and gaps on data of another kind in their prediction intervals; None without any."""
    others = gains_elsewhere(records)
    inside = in_interval(_predictions(model, others), others)
    if not inside:
        return None
    gaps = transferred_forecasts(base_trainings(records), trainings_elsewhere(records))
    return {
        "gains": len(inside),
        "in_interval": round(float(np.mean(inside)), 3),
        "forecasts": len(gaps.true),
        "forecasts_in_interval": int(gaps.inside.sum()),
    }


def trainings_elsewhere(records: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The trainings of bases on data of another kind."""
    return [run for run in records if run["arm"] == "base" and group_of(run["base"]) == FIRST_OF_PICTOGRAMS]


@dataclass(frozen=True)
class GapForecasts:
    """Forecast and true gaps of trainings, as fractions.

    Attributes:
        forecast: `(N,)`.
        true: `(N,)`, measured on all images of the study that a training did not see.
        inside: `(N,)`, whether the 95% prediction interval holds the true gap.
    """

    forecast: Floats
    true: Floats
    inside: NDArray[np.bool_]

    @classmethod
    def of(cls, runs: Sequence[Mapping[str, Any]], log_errors: Floats, deviations: Floats | float) -> "GapForecasts":
        """The forecasts of the gaps, given those of the logarithms of the errors on new images."""
        train = np.array([run["last_train_accuracy"] for run in runs])
        true = train - np.array([held_out_accuracy(run) for run in runs])
        low, gaps, high = (np.exp(log_errors + step * Z_95 * deviations) - (1 - train) for step in (-1, 0, 1))
        return cls(gaps, true, (low <= true) & (true <= high))


def transferred_forecasts(runs: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]]) -> GapForecasts:
    """Forecast the gaps of `others`, trainings on other data, by the model that is fitted to `runs`."""
    model = fitted_forecast(runs)
    features = np.array([forecast_features_of(run) for run in others])
    standardised = (features - np.array(model["mean"])) / np.array(model["scale"])
    errors = model["intercept"] + standardised @ np.array(model["coefficients"])
    return GapForecasts.of(others, errors, model["deviation"])


def base_trainings(records: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The trainings of bases on Fashion-MNIST."""
    return [run for run in records if run["arm"] == "base" and group_of(run["base"]) != FIRST_OF_PICTOGRAMS]


def former_advice(run: Mapping[str, Any], without: Collection[str] = ()) -> str | None:
    """Return the first remedy but those in `without` that version 1 of the verdict advised; None for no change.

    It called a training overfitting if training accuracy was at least 99% and the gap at least 10 points, if the
    validation loss ended at least 5% above its minimum while the training loss fell, or if the gap was at least two
    thirds of the validation error and significant. Its first advice then was more images, then augmentation, erasing,
    early stopping (no change of the last epoch's weights) or dropout, whichever was possible. Otherwise it advised to
    train longer if the validation loss was lowest at the end, and else a larger network.
    """
    settings, passes = run["settings"], run["passes"]
    train_accuracy, val_accuracy = run["last_train_accuracy"], run["last_val_accuracy"]
    losses = [each["val_loss"] for each in passes]
    lowest = int(np.argmin(losses))
    rises = losses[-1] >= 1.05 * losses[lowest] and passes[-1]["train_loss"] < passes[lowest]["train_loss"]
    gap = accuracy_gap_of(train_accuracy, val_accuracy, run["last_train_count"], run["last_val_count"], 0.0)
    is_wide = gap.estimate >= 2 / 3 * (1 - val_accuracy) and gap.low > 0
    if (train_accuracy >= 0.99 and gap.estimate >= 0.1) or rises or is_wide:
        if settings["images"] < MAX_IMAGES and "more_images" not in without:
            return "more_images"
        if not settings["augmentation"]:
            return "augmentation"
        if settings["erasing"]:
            return "erasing"
        return None if rises else "dropout"
    if lowest == len(losses) - 1:
        return "longer"
    return None if settings["dropout"] else "larger"


def held_out_accuracy(run: Mapping[str, Any]) -> float:
    """Accuracy of the last weights on all images of the study that the training did not see, with its label noise.

    These are the validation images and those in no split. A training on all images leaves only the former: the judge,
    whose labels have no noise, is added where the training has none either.
    """
    parts = ["val", "rest"] if run["settings"]["label_noise"] else ["val", "rest", "judge"]
    parts = [part for part in parts if run[f"last_{part}_count"]]
    counts, accuracies = (np.array([run[f"last_{part}_{name}"] for part in parts]) for name in ("count", "accuracy"))
    return float(accuracies @ counts / counts.sum())


def forecast_features_of(run: Mapping[str, Any]) -> Floats:
    """The features `(F,)` of a base's training that the forecast of its gap depends on."""
    settings = run["settings"]
    corrupted = [run[f"sample_{name}_accuracy"] for name in forecast.CORRUPTIONS]
    return forecast.forecast_features(
        (run["last_train_accuracy"], *corrupted),
        images=train_images(run),
        epochs=settings["epochs"],
        parameters=run["parameters"],
        config=_config(augmented=settings["augmentation"], mixed=settings["cutmix"]),
    )


def fitted_forecast(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The content of fashion_cnn/analysis/forecast.json, fitted to all bases' trainings."""
    runs = base_trainings(records)
    features = np.array([forecast_features_of(run) for run in runs])
    mean, scale = features.mean(0), np.maximum(features.std(0), 1e-9)
    errors = np.log([1 - held_out_accuracy(run) for run in runs])
    model = fit((features - mean) / scale, errors, FORECAST_RIDGE, varied_trainings(runs))
    return {
        "fitted_by": "scripts/verdict_study fit",
        "trainings": len(runs),
        "ridge": FORECAST_RIDGE,
        "features": list(forecast.FEATURES),
        "mean": _rounded(mean),
        "scale": _rounded(scale),
        "intercept": round(model.intercept, 6),
        "coefficients": _rounded(model.coefficients),
        "deviation": round(model.deviation, 6),
        "low": _rounded(features.min(0)),
        "high": _rounded(features.max(0)),
    }


def varied_trainings(runs: Sequence[Mapping[str, Any]]) -> NDArray[np.bool_]:
    """Return which trainings `(N,)` are of the bases and the large ones.

    The deviation of the forecast is theirs. The trainings that check coverage are many, of one narrow network, and so
    alike that their gaps are easier to forecast than that of a user's training.
    """
    return np.array([group_of(run["base"]) in (0, FIRST_OF_LARGE) for run in runs])


def leave_bases_out_forecast(
    runs: Sequence[Mapping[str, Any]], features: Floats, ridge: float = FORECAST_RIDGE
) -> tuple[Floats, Floats]:
    """Forecast the logarithm of each training's held-out error by a model that saw no training of its base.

    Args:
        runs: trainings of bases.
        features: `(N, F)` of each.
        ridge: penalty of the model.

    Returns:
        Forecasts `(N,)`, and the standard deviation `(N,)` that each model states.
    """
    numbers, varied = np.array([run["base"] for run in runs]), varied_trainings(runs)
    errors = np.log([1 - held_out_accuracy(run) for run in runs])
    forecasts, deviations = np.empty(len(runs)), np.empty(len(runs))
    for number in set(numbers.tolist()):
        others = numbers != number
        standardised = (features - features[others].mean(0)) / np.maximum(features[others].std(0), 1e-9)
        model = fit(standardised[others], errors[others], ridge, varied[others])
        forecasts[~others] = [model.predict(row) for row in standardised[~others]]
        deviations[~others] = model.deviation
    return forecasts, deviations


def _rounded(values: Floats) -> list[float]:
    return [round(value, 6) for value in values.tolist()]
