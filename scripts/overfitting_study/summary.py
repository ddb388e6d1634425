"""Every figure of docs/overfitting.md that comes from the study, as tables."""

import base64
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from fashion_cnn.analysis.learning_curve import fit_learning_curve
from fashion_cnn.analysis.verdict import REMEDIES, WORTHWHILE
from fashion_cnn.errors import pluralize
from fashion_cnn.metrics.gap import ValidationPasses, accuracy_gap_of
from fashion_cnn.metrics.intervals import Z_95
from fashion_cnn.metrics.memorisation import spearman
from overfitting_study.analysis import (
    FAMILIES,
    FIRST_AFTER_CHOICE,
    Gain,
    GapForecasts,
    Predicted,
    base_trainings,
    best_family,
    forecast_features_of,
    former_advice,
    gains_elsewhere,
    in_interval,
    leave_bases_out,
    leave_bases_out_forecast,
    predict_gains,
    train_images,
    trainings_elsewhere,
    transferred_forecasts,
    varied_trainings,
)
from overfitting_study.design import (
    BEYOND_CURVE,
    FIRST_OF_COVERAGE,
    FIRST_OF_CURVE,
    FIRST_OF_LARGE,
    FIRST_OF_PICTOGRAMS,
    group_of,
)

Floats = NDArray[np.float64]
_RESAMPLES = 2000
Key = tuple[int, int]
# The arm that a rule chooses for a base's training, or None for no change.
Policy = Callable[[Key], str | None]


def summarise(records: Sequence[Mapping[str, Any]], gains: Sequence[Gain]) -> str:
    """Format all tables.

    Args:
        records: the trainings.
        gains: gains that the model is fitted to, with those of recorded ablations.
    """
    chosen = [record for record in records if group_of(record["base"]) in (0, FIRST_OF_LARGE)]
    bases = [record for record in chosen if record["arm"] == "base"]
    study_gains = [gain for gain in gains if gain.base >= 0]
    predictions = {family: leave_bases_out(gains, family) for family in FAMILIES}
    used = best_family(gains, predictions)
    parts = [
        f"{len(chosen)} trainings: {len({r['base'] for r in bases})} base configurations, "
        f"{pluralize(len({gain.seed for gain in study_gains}), 'seed')}; {len(gains) - len(study_gains)} gains from "
        "recorded ablations.",
        gains_table(study_gains),
        correlations(bases, study_gains),
        regret_table(chosen, gains, predictions, used, without=()),
        regret_table(chosen, gains, predictions, used, without=("more_images",)),
        brier_table(gains, predictions, used),
        *confirmation(gains, predictions),
        coverage_table(records),
        *curve_table(records),
        forecast_table(records),
        *agreement_table(bases),
        *replication(records, gains, used),
    ]
    return "\n\n".join(parts)


def gains_table(gains: Sequence[Gain]) -> str:
    """Mean gain of each remedy with its interval over the bases, and the change of the gap."""
    lines = [
        "| remedy | bases | gain, points (95%) | better by 0.2 or more | change of the gap, points |",
        "|---|---:|---:|---:|---:|",
    ]
    for remedy in REMEDIES:
        arm_gains = [gain for gain in gains if gain.arm == remedy]
        if len(arm_gains) < 2:
            continue
        accuracies, gaps = (np.array([getattr(gain, name) for gain in arm_gains]) for name in ("accuracy", "gap"))
        low, high = interval_over_bases(arm_gains, lambda chosen: float(np.mean([gain.accuracy for gain in chosen])))
        cells = (
            remedy,
            len({gain.base for gain in arm_gains}),
            f"{100 * accuracies.mean():+.2f} ({100 * low:+.2f} to {100 * high:+.2f})",
            f"{(accuracies > WORTHWHILE).mean():.0%}",
            f"{100 * gaps.mean():+.2f}",
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def interval_over_bases(items: Sequence[Any], statistic: Callable[[list[Any]], float]) -> tuple[float, float]:
    """95% percentile interval of a statistic of items with an attribute `base`, resampling whole bases."""
    by_base: dict[int, list[Any]] = {}
    for item in items:
        by_base.setdefault(item.base, []).append(item)
    numbers, random = sorted(by_base), np.random.default_rng(0)
    values = []
    for _ in range(_RESAMPLES):
        drawn = random.choice(numbers, len(numbers))
        values.append(statistic([item for number in drawn for item in by_base[number]]))
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def correlations(bases: Sequence[Mapping[str, Any]], gains: Sequence[Gain]) -> str:
    """Rank correlations of the gap with accuracy over the bases of the first seed, and of their changes."""
    first = [run for run in bases if run["seed"] == 0]
    share = np.array([1 - (1 - run["last_train_accuracy"]) / (1 - run["last_val_accuracy"]) for run in first])
    accuracy = np.array([run["last_judge_accuracy"] for run in first])
    lines = ["| rank correlation (Spearman) | value |", "|---|---:|"]
    lines.append(
        f"| share of the gap, accuracy on the judge, over {len(first)} bases | {spearman(share, accuracy):+.2f} |"
    )
    changes = spearman(np.array([gain.gap for gain in gains]), np.array([gain.accuracy for gain in gains]))
    lines.append(f"| change of the gap, change of accuracy, over {len(gains)} pairs | {changes:+.2f} |")
    return "\n".join(lines)


def regret_table(
    records: Sequence[Mapping[str, Any]],
    gains: Sequence[Gain],
    predictions: Mapping[str, Predicted],
    used: str,
    *,
    without: Sequence[str],
) -> str:
    """Regret of rules that choose one remedy: gain of the best minus gain of the chosen.

    Args:
        records: the trainings of the bases.
        gains: the gains.
        predictions: their predictions by models of each family that saw no training of their base.
        used: the family that the verdict uses.
        without: remedies that are not offered.
    """
    actual: dict[Key, dict[str, float]] = {}
    for gain in gains:
        if gain.base >= 0 and gain.arm not in without:
            actual.setdefault((gain.base, gain.seed), {})[gain.arm] = gain.accuracy
    # Only trainings all of whose remedies were tried, so that the best one is known.
    actual = {key: arms for key, arms in actual.items() if len(arms) >= 9}
    by_key = {(r["base"], r["seed"]): r for r in records if r["arm"] == "base"}

    def best_of(predicted: Predicted) -> Policy:
        def choose(key: Key) -> str | None:
            # The rule of the advice, which however says nothing about runs unlike those of the study.
            expected = [predicted[*key, arm] for arm in actual[key] if (*key, arm) in predicted]
            helpful = [gain for gain in expected if gain.may_help]
            return max(helpful, key=lambda gain: gain.gain.estimate).remedy if helpful else None

        return choose

    policies: dict[str, Policy] = {
        **{name: best_of(predicted) for name, predicted in predictions.items()},
        "always longer": lambda key: "longer",
        "always larger": lambda key: "larger",
        "always CutMix": lambda key: "cutmix",
        "advice of version 1": lambda key: former_advice(by_key[key], without),
        "no change": lambda key: None,
    }
    title = f"regret over {len(actual)} trainings" + (f", without {', '.join(without)}" if without else "")
    lines = [f"| {title} | points (95%) | that of the verdict minus this (95%) |", "|---|---:|---:|"]
    regrets = {name: _regrets(actual, policy) for name, policy in policies.items()}
    regrets["random remedy"] = {
        key: max(0.0, *arms.values()) - float(np.mean(list(arms.values()))) for key, arms in actual.items()
    }
    for name, values in regrets.items():
        low, high = _interval({key: regrets[used][key] - values[key] for key in values})
        compared = "" if name == used else f"{100 * low:+.2f} to {100 * high:+.2f}"
        own_low, own_high = _interval(values)
        mean = f"{100 * float(np.mean(list(values.values()))):.2f} ({100 * own_low:.2f} to {100 * own_high:.2f})"
        lines.append(f"| {_marked(name, used)} | {mean} | {compared} |")
    return "\n".join(lines)


def _regrets(actual: Mapping[Key, Mapping[str, float]], policy: Policy) -> dict[Key, float]:
    # A remedy that is not possible changes nothing.
    return {key: max(0.0, *arms.values()) - arms.get(policy(key) or "", 0.0) for key, arms in actual.items()}


def _interval(values: Mapping[Key, float]) -> tuple[float, float]:
    if not values:
        return math.nan, math.nan
    by_base: dict[int, list[float]] = {}
    for (base, _), value in values.items():
        by_base.setdefault(base, []).append(value)
    means = np.array([np.mean(each) for each in by_base.values()])
    random = np.random.default_rng(0)
    drawn = random.choice(means, (_RESAMPLES, len(means))).mean(axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def brier_table(
    gains: Sequence[Gain], predictions: Mapping[str, Predicted], used: str, *, rates_from: Sequence[Gain] | None = None
) -> str:
    """Brier score of the probabilities of a gain of 0.2 points or more.

    Args:
        gains: see `regret_table`.
        predictions: see `regret_table`.
        used: see `regret_table`.
        rates_from: gains on whose bases the rates of the remedies are taken; None for the other bases of `gains`.
    """
    outcomes = outcomes_of(gains)
    keys = [key for key in outcomes if all(key in predicted for predicted in predictions.values())]
    rate = float(np.mean([outcomes[key] for key in keys]))
    known = outcomes_of(rates_from) if rates_from is not None else {key: outcomes[key] for key in keys}
    rates = {(base, arm): rate_elsewhere(known, base, arm) for base, _, arm in keys}
    scores = {
        **{name: [predicted[key].probability for key in keys] for name, predicted in predictions.items()},
        "rate of each remedy": [rates[key[0], key[2]] for key in keys],
        "overall rate": [rate] * len(keys),
    }
    truth = np.array([outcomes[key] for key in keys])
    lines = [f"| Brier score over {len(keys)} pairs, rate {rate:.0%} | score |", "|---|---:|"]
    for name, probabilities in scores.items():
        lines.append(f"| {_marked(name, used)} | {np.square(np.array(probabilities) - truth).mean():.3f} |")
    known_pairs = set(keys)
    chosen = [gain for gain in gains if (gain.base, gain.seed, gain.arm) in known_pairs]
    for name, predicted in predictions.items():
        inside = np.mean(in_interval(predicted, chosen))
        lines.append(f"| share of gains in the 95% prediction interval, {name} | {inside:.1%} |")
    return "\n".join(lines)


def outcomes_of(gains: Sequence[Gain]) -> dict[tuple[int, int, str], float]:
    """1 for a gain of 0.2 points or more, else 0, by base, seed and remedy, without those of recorded ablations."""
    return {(gain.base, gain.seed, gain.arm): float(gain.accuracy > WORTHWHILE) for gain in gains if gain.base >= 0}


def rate_elsewhere(outcomes: Mapping[tuple[int, int, str], float], base: int, arm: str) -> float:
    """Rate of worthwhile gains of a remedy on other bases; `outcomes` is 1 or 0 by base, seed and remedy."""
    return float(np.mean([value for (other, _, name), value in outcomes.items() if name == arm and other != base]))


class _Score(NamedTuple):
    """Squared error of a probability for a gain of this base."""

    base: int
    value: float


def confirmation(gains: Sequence[Gain], predictions: Mapping[str, Predicted]) -> list[str]:
    """Brier scores on the bases that were recorded after the trend of the validation loss had been chosen as feature.

    The score of each family is compared with that of the remedies' rates among other bases, in pairs, with an interval
    over the bases.
    """
    later = [
        gain
        for gain in gains
        if FIRST_AFTER_CHOICE <= gain.base < FIRST_OF_COVERAGE
        and all((gain.base, gain.seed, gain.arm) in predicted for predicted in predictions.values())
    ]
    numbers = {gain.base for gain in later}
    if len(numbers) < 2:
        return []
    outcomes = [gain.accuracy > WORTHWHILE for gain in later]
    study_outcomes = outcomes_of([gain for gain in gains if gain.base < FIRST_OF_COVERAGE])
    rates = [rate_elsewhere(study_outcomes, gain.base, gain.arm) for gain in later]
    by_rate = [(rate - outcome) ** 2 for rate, outcome in zip(rates, outcomes, strict=True)]
    lines = [
        f"| Brier score over {len(later)} pairs of the {len(numbers)} bases after the choice | score "
        "| minus that of the rates (95%) |",
        "|---|---:|---:|",
    ]
    for name, predicted in predictions.items():
        errors = [
            (predicted[gain.base, gain.seed, gain.arm].probability - outcome) ** 2
            for gain, outcome in zip(later, outcomes, strict=True)
        ]
        differences = [
            _Score(gain.base, error - rate) for gain, error, rate in zip(later, errors, by_rate, strict=True)
        ]
        low, high = interval_over_bases(differences, lambda chosen: float(np.mean([score.value for score in chosen])))
        lines.append(f"| {name} | {np.mean(errors):.3f} | {low:+.3f} to {high:+.3f} |")
    lines.append(f"| rate of each remedy | {np.mean(by_rate):.3f} | |")
    return ["\n".join(lines)]


def _marked(name: str, used: str) -> str:
    return f"{name} (the verdict)" if name == used else name


def coverage_table(records: Sequence[Mapping[str, Any]]) -> str:
    """Share of the trainings that check coverage whose 95% interval of the accuracy gap holds the true gap.

    The true gap is measured on the training images and on 10,000 or 20,000 images that the training does not see.
    """
    chosen = [record for record in records if group_of(record["base"]) in (FIRST_OF_COVERAGE, FIRST_OF_CURVE)]
    intervals: dict[str, list[bool]] = {}
    errors: dict[str, list[float]] = {}
    for run in chosen:
        best = "best" if "best_judge_accuracy" in run else "last"
        share = run["last_train_count"] / train_images(run)
        unseen = "rest" if "last_rest_accuracy" in run else "judge"
        last_gap, best_gap = (
            accuracy_gap_of(
                *(run[f"{weights}_{split}_accuracy"] for split in ("train", "val")),
                *(run[f"{weights}_{split}_count"] for split in ("train", "val")),
                train_share=share,
            )
            for weights in ("last", best)
        )
        corrected = _validation_passes(run).best_epoch_gap(run["last_train_count"], train_share=share)
        for name, weights, gap in (
            ("last epoch", "last", last_gap),
            ("best epoch, as it is", best, best_gap),
            ("best epoch, without optimism", best, corrected),
        ):
            held_out, count = (run[f"{weights}_{unseen}_{name}"] for name in ("accuracy", "count"))
            true = run[f"{weights}_train_accuracy"] - held_out
            # The true gap has a sampling error too, by which the interval is widened.
            half = Z_95 * math.sqrt(held_out * (1 - held_out) / count)
            low = gap.estimate - math.hypot(gap.estimate - gap.low, half)
            high = gap.estimate + math.hypot(gap.high - gap.estimate, half)
            intervals.setdefault(name, []).append(low <= true <= high)
            errors.setdefault(name, []).append(gap.estimate - true)
    lines = [
        f"| 95% intervals of the gap in {len(chosen)} trainings | hold the true gap | mean error, points |",
        "|---|---:|---:|",
    ]
    for name, inside in intervals.items():
        lines.append(f"| {name} | {np.mean(inside):.1%} | {100 * float(np.mean(errors[name])):+.2f} |")
    return "\n".join(lines)


def curve_table(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Share of the groups of three seeds whose learning curve has a band that holds the true error."""
    runs = [record for record in records if group_of(record["base"]) == FIRST_OF_CURVE]
    by_size: dict[int, dict[int, Mapping[str, Any]]] = {}
    for run in runs:
        by_size.setdefault(train_images(run), {})[run["seed"]] = run
    beyond = {train_images(run) for run in runs if run["settings"]["images"] == BEYOND_CURVE}
    sizes = sorted(by_size.keys() - beyond)
    seeds = sorted(set.intersection(*(set(by_size[size]) for size in sizes))) if sizes else []
    groups = [seeds[start : start + 3] for start in range(0, len(seeds) - 2, 3)]
    if not groups:
        return []
    true = {
        size: 1 - np.mean([run["last_judge_accuracy"] for run in by_seed.values()]) for size, by_seed in by_size.items()
    }
    inside: dict[int, list[bool]] = {}
    for group in groups:
        errors = [[1 - by_size[size][seed]["last_val_accuracy"] for seed in group] for size in sizes]
        band = fit_learning_curve(sizes, errors).interval(np.array(sorted(true), dtype=float))
        assert band is not None
        for size, low, high in zip(sorted(true), *band, strict=True):
            inside.setdefault(size, []).append(low <= true[size] <= high)
    lines = [
        f"| 95% bands of {len(groups)} learning curves of three seeds, {len(runs)} trainings | hold the true error |",
        "|---|---:|",
    ]
    for size, held in inside.items():
        name = "extrapolated to " if size in beyond else ""
        lines.append(f"| {name}{size:,} images | {np.mean(held):.0%} |")
    fitted = [held for size in sizes for held in inside[size]]
    lines.append(f"| all sizes of the curve | {np.mean(fitted):.1%} |")
    return ["\n".join(lines)]


def _validation_passes(run: Mapping[str, Any]) -> ValidationPasses:
    """The validation passes of a training that checks coverage."""
    passes, count = run["passes"], run["last_val_count"]
    correct = [np.unpackbits(np.frombuffer(base64.b85decode(text), np.uint8))[:count] for text in run["val_correct"]]
    losses = torch.tensor([each["val_loss"] for each in passes])
    return ValidationPasses(
        epochs=torch.tensor([each["epoch"] for each in passes]),
        train_accuracy=torch.tensor([each["train_accuracy"] for each in passes]),
        correct=torch.from_numpy(np.stack(correct)).bool(),
        losses=losses[:, None].expand(-1, count),
    )


def replication(records: Sequence[Mapping[str, Any]], gains: Sequence[Gain], used: str) -> list[str]:
    """The tables for trainings on pictograms, whose gains and gaps are predicted by the models of Fashion-MNIST."""
    runs = [record for record in records if group_of(record["base"]) == FIRST_OF_PICTOGRAMS]
    others = gains_elsewhere(records)
    if not others:
        return []
    bases = trainings_elsewhere(records)
    predictions = {family: predict_gains(gains, others, family) for family in FAMILIES}
    return [
        f"On pictograms: {len(runs)} trainings, {len(bases)} base configurations, 1 seed; the models are those of "
        "Fashion-MNIST.",
        gains_table(others),
        correlations(bases, others),
        regret_table(runs, others, predictions, used, without=()),
        regret_table(runs, others, predictions, used, without=("more_images",)),
        brier_table(others, predictions, used, rates_from=gains),
        transferred_forecast(base_trainings(records), bases),
    ]


def transferred_forecast(runs: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]]) -> str:
    """Errors of the forecast that is fitted to `runs` for the gaps of `others`, trainings on other data."""
    gaps = transferred_forecasts(runs, others)
    return "\n".join(
        [
            f"| forecast of the gap of {len(others)} trainings on pictograms | error, points (RMS) | Kendall's tau | "
            "in the 95% interval |",
            "|---|---:|---:|---:|",
            _forecast_line("the model of Fashion-MNIST", gaps, np.ones(len(others), dtype=bool)),
        ]
    )


def _forecast_line(name: str, gaps: GapForecasts, chosen: NDArray[np.bool_]) -> str:
    forecast, true = gaps.forecast[chosen], gaps.true[chosen]
    error = 100 * np.sqrt(np.square(forecast - true).mean())
    return f"| {name} | {error:.2f} | {kendall(forecast, true):+.2f} | {gaps.inside[chosen].mean():.1%} |"


def forecast_table(records: Sequence[Mapping[str, Any]]) -> str:
    """Errors of the forecast of the gap from training images alone, with whole bases left out.

    Rank correlations of single measurements with the gap are in the last rows.
    """
    runs = base_trainings(records)
    features = np.array([forecast_features_of(run) for run in runs])
    varied = varied_trainings(runs)
    everything = np.ones(len(runs), dtype=bool)
    lines = [
        f"| forecast of the gap of {len(runs)} trainings | error, points (RMS) | Kendall's tau | in the 95% interval |",
        "|---|---:|---:|---:|",
    ]
    gaps = GapForecasts.of(runs, *leave_bases_out_forecast(runs, features))
    without_corruptions = np.delete(features, [1, 2], axis=1)
    rows = {
        "the model": (gaps, everything),
        f"the model, {varied.sum()} trainings of the bases": (gaps, varied),
        f"the model, {(~varied).sum()} trainings of one narrow network": (gaps, ~varied),
        "settings and training accuracy alone": (
            GapForecasts.of(runs, *leave_bases_out_forecast(runs, without_corruptions)),
            everything,
        ),
    }
    lines += [_forecast_line(name, *row) for name, row in rows.items()]
    train, true = np.array([run["last_train_accuracy"] for run in runs]), gaps.true
    single = {
        "training accuracy": train,
        "median margin of the training images": [-run["train_margin_quantiles"][3] for run in runs],
        "10% quantile of the margins": [-run["train_margin_quantiles"][1] for run in runs],
        "loss under noise on the weights (sharpness)": [run["sample_weight_noise_0.1_loss"] for run in runs],
        "loss of mixed images (mixup, 0.3)": [run["sample_mixup_0.3_loss"] for run in runs],
        "error of translated images": [1 - run["sample_translation_accuracy"] for run in runs],
    }
    for name, values in single.items():
        lines.append(f"| {name} | | {kendall(np.array(values), true):+.2f} | |")
    return "\n".join(lines)


def agreement_table(bases: Sequence[Mapping[str, Any]]) -> list[str]:
    """Prediction of error and gap by the disagreement of two seeds (Jiang et al., 2022), over bases with two seeds.

    The images on which they are compared need no labels. Both trainings drew their own training images.
    """
    by_key = {(run["base"], run["seed"]): run for run in bases}
    pairs = [(run, by_key[base, 1]) for (base, seed), run in by_key.items() if seed == 0 and (base, 1) in by_key]
    if len(pairs) < 3:
        return []

    def mean(pair: tuple[Mapping[str, Any], ...], name: str) -> float:
        return float(np.mean([run[name] for run in pair]))

    disagreement = np.array([_disagreement(*pair) for pair in pairs])
    error = np.array([1 - mean(pair, "last_judge_accuracy") for pair in pairs])
    gap = np.array([mean(pair, "last_train_accuracy") for pair in pairs]) - 1 + error
    forecast = disagreement - np.array([1 - mean(pair, "last_train_accuracy") for pair in pairs])
    lines = [
        f"| disagreement of two seeds, {len(pairs)} bases | difference, points (RMS) | Kendall's tau |",
        "|---|---:|---:|",
    ]
    for name, predicted, measured in (
        ("error on the judge", disagreement, error),
        ("gap to the judge", forecast, gap),
    ):
        rms = 100 * np.sqrt(np.square(predicted - measured).mean())
        lines.append(f"| {name} | {rms:.2f} | {kendall(predicted, measured):+.2f} |")
    return ["\n".join(lines)]


def _disagreement(first: Mapping[str, Any], second: Mapping[str, Any]) -> float:
    """The share of the images of the judge that two networks put into different classes."""
    classes = [np.frombuffer(base64.b85decode(run["judge_classes"]), np.uint8) for run in (first, second)]
    return float(np.mean(classes[0] != classes[1]))


def kendall(first: Floats, second: Floats) -> float:
    """Kendall's rank correlation tau-a: concordant minus discordant pairs, as a share of all pairs."""
    signs = (np.sign(values[:, None] - values) for values in (first, second))
    count = len(first)
    return float(np.multiply(*signs).sum() / (count * (count - 1)))
