"""The study of the verdict: its design, its statistics, and what is shipped against what its records say."""

import base64
import importlib
import json
import re

import numpy as np
import pytest
from conftest import REPOSITORY

from fashion_cnn.analysis import forecast, verdict
from fashion_cnn.cli.main import CONFIG_DIR

NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:e-?\d+)?")


def numbers(text):
    """The numbers in a text, which may differ in the last digit between processors."""
    return [float(number) for number in NUMBER.findall(text)]


@pytest.fixture
def study(monkeypatch):
    """A function that imports a module of scripts/overfitting_study."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "scripts"))
    return lambda name: importlib.import_module(f"overfitting_study.{name}")


@pytest.fixture
def recorded(study):
    """The records of the study, and the gains in them and in the recorded ablations."""
    records = study("records").read_records()
    lines = (REPOSITORY / "scripts" / "records.jsonl").read_text().splitlines()
    analysis = study("analysis")
    return records, [*analysis.paired_gains(records), *analysis.ablation_gains(map(json.loads, lines))]


def test_shipped_model_and_document_are_those_of_the_records(study, recorded):
    records, gains = recorded
    fitted = study("analysis").fitted_study(gains, records)
    assert numbers(json.dumps(fitted)) == pytest.approx(numbers(json.dumps(verdict._study())), rel=1e-3, abs=1e-5)
    forecast_model = study("analysis").fitted_forecast(records)
    assert numbers(json.dumps(forecast_model)) == pytest.approx(
        numbers(json.dumps(forecast._model())), rel=1e-3, abs=1e-5
    )
    page = (REPOSITORY / "docs" / "overfitting.md").read_text()
    written = page.partition("<!-- summary -->\n")[2].partition("<!-- end of summary -->")[0]
    summary = study("summary").summarise(records, gains)
    assert NUMBER.sub("", summary) == NUMBER.sub("", written.strip())
    assert numbers(summary) == pytest.approx(numbers(written), abs=0.011)


def test_half_a_record_of_a_stopped_study_costs_that_record_alone(study, tmp_path):
    records = study("records")
    file = tmp_path / "records.jsonl"
    first, second, third = (
        {"base": 10**6 + n, "arm": "base", "seed": 0, "settings": {"size": "tiny"}} for n in range(3)
    )
    records.append_record(file, first)
    with file.open("a") as opened:
        opened.write(json.dumps(second)[:-1])  # ends with the brace of the settings
    assert records.read_records(file)[-1] == first
    records.append_record(file, third)
    assert records.read_records(file)[-2:] == [first, third]


def test_longer_study_continues_the_same_design(study):
    design = study("design")
    assert design.bases(20)[:8] == design.bases(8)
    assert design.bases(8)[0].images == 1000, "the sequence of the records"
    assert all(base.images <= 12_000 for base in design.bases(20, pictograms=True))
    jobs = list(design.jobs(8, 2))
    assert len({job.key for job in jobs}) == len(jobs)
    assert {job.seed for job in jobs[: len(jobs) // 2]} == {0}, "all bases once before the next seed"
    remedies = {file.stem for file in (CONFIG_DIR / "remedy").glob("*.yaml")}
    assert {job.arm for job in jobs} <= remedies | {"base"}


def test_model_of_gains_recovers_a_linear_law_and_its_noise(study):
    random = np.random.default_rng(0)
    design = random.standard_normal((400, 3))
    values = 0.01 + design @ np.array([0.02, 0.0, -0.01]) + 0.003 * random.standard_normal(400)
    model = study("analysis").fit(design, values, ridge=1.0)
    assert model.intercept == pytest.approx(0.01, abs=0.001)
    assert model.coefficients == pytest.approx([0.02, 0.0, -0.01], abs=0.001)
    assert model.deviation == pytest.approx(0.003, rel=0.1)


def test_family_depends_on_its_features_alone_and_takes_unknown_ones_as_the_mean(study):
    analysis = study("analysis")
    random = np.random.default_rng(0)
    place = verdict.FEATURES.index("val_loss_trend")
    gains = []
    for base in range(60):
        features = random.standard_normal(len(verdict.FEATURES))
        features[verdict.FEATURES.index("log_val_error")] = np.log(0.1)
        relative = 0.1 - 0.2 * features[place]
        gains.append(analysis.Gain(base, 0, "longer", features, 0.1 * relative, 0.0))
    model = analysis.GainModel.fitted(gains, "trend of the validation loss")
    coefficients = model.remedies["longer"].coefficients
    assert coefficients[place] < -0.1
    assert np.count_nonzero(coefficients) == 1
    unknown = gains[0].features.copy()
    unknown[place] = np.nan
    expected = model.predict(analysis.Gain(99, 0, "longer", unknown, 0.0, 0.0))
    at_mean = unknown.copy()
    at_mean[place] = model.mean[place]
    assert expected == model.predict(analysis.Gain(99, 0, "longer", at_mean, 0.0, 0.0))
    recorded_without = analysis.GainModel.fitted(
        [*gains, analysis.Gain(-1, 0, "longer", unknown, 0.01, 0.0)], "trend of the validation loss"
    )
    assert np.isfinite(recorded_without.remedies["longer"].coefficients).all()


def test_disagreement_of_two_seeds_is_compared_with_error_and_gap(study):
    summary = study("summary")
    runs = []
    for base, share in enumerate((0.1, 0.2, 0.3)):
        for seed in (0, 1):
            # Each network errs on images of its own, and so they disagree on twice as many as each gets wrong.
            classes = np.zeros(100, np.uint8)
            errors = round(100 * share)
            classes[seed * errors : (seed + 1) * errors] = 1
            runs.append(
                {
                    "base": base,
                    "seed": seed,
                    "judge_classes": base64.b85encode(classes.tobytes()).decode(),
                    "last_judge_accuracy": 1 - share,
                    "last_train_accuracy": 1.0,
                }
            )
    (table,) = summary.agreement_table(runs)
    rms = 100 * (0.14 / 3) ** 0.5
    rows = table.splitlines()
    assert rows[0].startswith("| disagreement of two seeds, 3 bases |")
    assert rows[2:] == [f"| {name} | {rms:.2f} | +1.00 |" for name in ("error on the judge", "gap to the judge")]
    assert summary.agreement_table(runs[:4]) == [], "two bases say nothing"


def test_regret_is_zero_for_a_rule_that_always_finds_the_best_remedy(study, recorded):
    analysis, summary = study("analysis"), study("summary")
    features = np.zeros(len(verdict.FEATURES))
    arms = list(verdict.REMEDIES)[:10]
    gains = [
        analysis.Gain(base, 0, arm, features, 0.01 if arm == "longer" else -0.01, 0.0)
        for base in range(6)
        for arm in [*arms, "longer"]
    ]
    run = {
        "arm": "base",
        "seed": 0,
        "settings": {"images": 1000, "augmentation": True, "erasing": 0.0, "dropout": 0.0},
        "passes": [{"val_loss": loss, "train_loss": loss} for loss in (0.4, 0.3)],
        **{"last_train_accuracy": 0.9, "last_train_count": 1000, "last_val_accuracy": 0.9, "last_val_count": 1000},
    }
    predictions = {family: analysis.leave_bases_out(gains, family) for family in analysis.FAMILIES}
    used = analysis.best_family(gains, predictions)
    assert used == "mean gain of each remedy", "no other predicts better"
    table = summary.regret_table([run | {"base": base} for base in range(6)], gains, predictions, used, without=())
    rows = dict(line.split("|")[1:3] for line in table.splitlines()[2:])
    regrets = {name.strip(): float(value.split()[0]) for name, value in rows.items()}
    assert regrets[f"{used} (the verdict)"] == regrets["linear model of all features"] == regrets["always longer"] == 0
    assert regrets["advice of version 1"] == 0, "the loss was lowest at the end: train longer"
    assert regrets["no change"] == 1
