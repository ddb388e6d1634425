"""Every figure of docs/overfitting.md that comes from the study, as tables."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fashion_cnn.analysis.verdict import REMEDIES, WORTHWHILE, ExpectedGain
from fashion_cnn.metrics.gap import accuracy_gap_of
from overfitting_study.analysis import FORMER_ADVICE, Gain, leave_bases_out
from overfitting_study.design import FIRST_OF_COVERAGE

Floats = NDArray[np.float64]
_RESAMPLES = 2000
Key = tuple[int, int]
# The arm that a rule chooses for a base's training, or None for no change.
Policy = Callable[[Key], str | None]


def summarise(records: Sequence[Mapping[str, Any]], found: Sequence[Gain]) -> str:
    """Format all tables.

    Args:
        records: the trainings.
        found: the gains that the model is fitted to, those of recorded ablations included.
    """
    coverage = coverage_table(records)
    records = [record for record in records if record["base"] < FIRST_OF_COVERAGE]
    bases = [record for record in records if record["arm"] == "base"]
    of_study = [gain for gain in found if gain.base >= 0]
    parts = [
        f"{len(records)} trainings: {len({r['base'] for r in bases})} base configurations, "
        f"{len({r['seed'] for r in records})} seeds; {len(found) - len(of_study)} gains from recorded ablations.",
        gains_table(of_study),
        correlations(bases, of_study),
        regret_table(records, found, without=()),
        regret_table(records, found, without=("more_images",)),
        brier_table(found),
        coverage,
    ]
    return "\n\n".join(parts)


def gains_table(found: Sequence[Gain]) -> str:
    """Mean gain of each remedy with its interval over the bases, and the change of the gap."""
    lines = [
        "| remedy | bases | gain, points (95%) | better by 0.2 or more | change of the gap, points |",
        "|---|---:|---:|---:|---:|",
    ]
    for remedy in REMEDIES:
        of_arm = [gain for gain in found if gain.arm == remedy]
        if len(of_arm) < 2:
            continue
        gains, gaps = (np.array([getattr(gain, name) for gain in of_arm]) for name in ("accuracy", "gap"))
        low, high = interval_over_bases(of_arm, lambda chosen: float(np.mean([gain.accuracy for gain in chosen])))
        lines.append(
            f"| {remedy} | {len({gain.base for gain in of_arm})} | {100 * gains.mean():+.2f} "
            f"({100 * low:+.2f} to {100 * high:+.2f}) | {(gains >= WORTHWHILE).mean():.0%} | {100 * gaps.mean():+.2f} |"
        )
    return "\n".join(lines)


def interval_over_bases(found: Sequence[Any], statistic: Callable[[list[Any]], float]) -> tuple[float, float]:
    """95% percentile interval of a statistic of items with an attribute `base`, resampling whole bases."""
    by_base: dict[int, list[Any]] = {}
    for item in found:
        by_base.setdefault(item.base, []).append(item)
    numbers, random = sorted(by_base), np.random.default_rng(0)
    values = []
    for _ in range(_RESAMPLES):
        drawn = random.choice(numbers, len(numbers))
        values.append(statistic([item for number in drawn for item in by_base[number]]))
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's rank correlation."""
    ranks = [np.argsort(np.argsort(values)) for values in (first, second)]
    return float(np.corrcoef(*ranks)[0, 1])


def correlations(bases: Sequence[Mapping[str, Any]], found: Sequence[Gain]) -> str:
    """Rank correlations of the gap with accuracy, and of their changes."""
    share = [1 - (1 - r["last_train_accuracy"]) / (1 - r["last_val_accuracy"]) for r in bases]
    accuracy = [r["last_judge_accuracy"] for r in bases]
    lines = ["| rank correlation (Spearman) | value |", "|---|---:|"]
    lines.append(
        f"| share of the gap, accuracy on the judge, over {len(bases)} bases | {spearman(share, accuracy):+.2f} |"
    )
    changes = spearman([gain.gap for gain in found], [gain.accuracy for gain in found])
    lines.append(f"| change of the gap, change of accuracy, over {len(found)} pairs | {changes:+.2f} |")
    return "\n".join(lines)


def regret_table(records: Sequence[Mapping[str, Any]], found: Sequence[Gain], *, without: Sequence[str]) -> str:
    """Regret of rules that choose one remedy: gain of the best minus gain of the chosen, whole bases left out."""
    predicted = leave_bases_out(found)
    actual: dict[Key, dict[str, float]] = {}
    for gain in found:
        if gain.base >= 0 and gain.arm not in without:
            actual.setdefault((gain.base, gain.seed), {})[gain.arm] = gain.accuracy
    # Only trainings all of whose remedies were tried, so that the best one is known.
    actual = {key: arms for key, arms in actual.items() if len(arms) >= 9}
    by_key = {(r["base"], r["seed"]): r for r in records if r["arm"] == "base"}

    def by_model(key: Key) -> str | None:
        expected = {arm: predicted[*key, arm].gain.estimate for arm in actual[key] if (*key, arm) in predicted}
        best = max(expected, key=expected.__getitem__, default=None)
        return best if best is not None and expected[best] > 0 else None

    def former(key: Key) -> str | None:
        reasons = by_key[key]["advice_reasons"] or [""]
        return FORMER_ADVICE.get(reasons[0], "longer" if reasons[0].startswith("train longer") else None)

    policies: dict[str, Policy] = {
        "the study's model": by_model,
        "always longer": lambda key: "longer",
        "always larger": lambda key: "larger",
        "always CutMix": lambda key: "cutmix",
        "advice of version 1": former,
        "no change": lambda key: None,
    }
    title = f"regret over {len(actual)} trainings" + (f", without {', '.join(without)}" if without else "")
    lines = [f"| {title} | points | the model's minus this (95%) |", "|---|---:|---:|"]
    regrets = {name: _regrets(actual, policy) for name, policy in policies.items()}
    regrets["random remedy"] = {
        key: max(0.0, *arms.values()) - float(np.mean(list(arms.values()))) for key, arms in actual.items()
    }
    model = regrets["the study's model"]
    for name, values in regrets.items():
        difference = {key: model[key] - values[key] for key in values}
        low, high = _interval(difference)
        compared = "" if name == "the study's model" else f"{100 * low:+.2f} to {100 * high:+.2f}"
        lines.append(f"| {name} | {100 * float(np.mean(list(values.values()))):.2f} | {compared} |")
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


def brier_table(found: Sequence[Gain]) -> str:
    """Brier score of the probabilities of a gain of 0.2 points or more, whole bases left out."""
    predicted: dict[tuple[int, int, str], ExpectedGain] = leave_bases_out(found)
    constant = leave_bases_out(found, ridge=math.inf)
    outcomes = {(g.base, g.seed, g.arm): float(g.accuracy > WORTHWHILE) for g in found if g.base >= 0}
    keys = [key for key in outcomes if key in predicted]
    rate = float(np.mean([outcomes[key] for key in keys]))
    rates = {
        (base, arm): float(np.mean([outcomes[o] for o in keys if o[2] == arm and o[0] != base]))
        for base, _, arm in keys
    }
    scores = {
        "the study's model": [predicted[key].probability for key in keys],
        "mean gain of each remedy": [constant[key].probability for key in keys],
        "rate of each remedy": [rates[key[0], key[2]] for key in keys],
        "overall rate": [rate] * len(keys),
    }
    truth = np.array([outcomes[key] for key in keys])
    lines = [f"| Brier score over {len(keys)} pairs, rate {rate:.0%} | score |", "|---|---:|"]
    for name, probabilities in scores.items():
        lines.append(f"| {name} | {np.square(np.array(probabilities) - truth).mean():.3f} |")
    inside = np.mean(
        [
            predicted[k].gain.low <= g.accuracy <= predicted[k].gain.high
            for g in found
            if (k := (g.base, g.seed, g.arm)) in predicted
        ]
    )
    lines.append(f"| share of gains inside the 95% prediction interval | {inside:.1%} |")
    return "\n".join(lines)


def coverage_table(records: Sequence[Mapping[str, Any]]) -> str:
    """How often 95% intervals of the accuracy gap hold the true gap, among trainings on at most 5,000 images.

    Their training accuracy is known exactly, and the images in no split, more than 40,000, tell the held-out accuracy;
    its own error is allowed for.
    """
    chosen = [r for r in records if r["arm"] == "base" and r["last_train_count"] == r["settings"]["images"]]
    intervals: dict[str, list[bool]] = {}
    errors: dict[str, list[float]] = {}
    for run in chosen:
        best = "best" if "best_rest_accuracy" in run else "last"
        halves = _cross_fitted(run["passes"])
        for name, weights, accuracies in (
            ("last epoch", "last", (run["last_train_accuracy"], run["last_val_accuracy"])),
            ("best epoch, as it is", best, (run[f"{best}_train_accuracy"], run[f"{best}_val_accuracy"])),
            ("best epoch, cross-fitted", best, halves),
        ):
            count = run["last_val_count"]
            gap = accuracy_gap_of(*accuracies, run["last_train_count"], count, train_share=1.0)
            held_out, rest = run[f"{weights}_rest_accuracy"], run[f"{weights}_rest_count"]
            true = run[f"{weights}_train_accuracy"] - held_out
            own = 1.96 * math.sqrt(held_out * (1 - held_out) / rest)
            low, high = (
                gap.estimate - math.hypot(gap.estimate - gap.low, own),
                gap.estimate + math.hypot(gap.high - gap.estimate, own),
            )
            intervals.setdefault(name, []).append(low <= true <= high)
            errors.setdefault(name, []).append(gap.estimate - true)
    lines = [
        f"| 95% intervals of the gap in {len(chosen)} trainings | hold the true gap | mean error, points |",
        "|---|---:|---:|",
    ]
    for name, inside in intervals.items():
        lines.append(f"| {name} | {np.mean(inside):.1%} | {100 * float(np.mean(errors[name])):+.2f} |")
    return "\n".join(lines)


def _cross_fitted(passes: Sequence[Mapping[str, float]]) -> tuple[float, float]:
    """Training and validation accuracy of the best pass, chosen on one half of the images and measured on the other."""
    chosen = []
    for by, on in (("a", "b"), ("b", "a")):
        best = max(passes, key=lambda each: (each[f"val_accuracy_{by}"], -each[f"val_loss_{by}"]))
        chosen.append((best["train_accuracy"], best[f"val_accuracy_{on}"]))
    return float(np.mean([train for train, _ in chosen])), float(np.mean([val for _, val in chosen]))
