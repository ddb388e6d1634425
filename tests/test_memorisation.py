"""Memorisation: statistics on synthetic data, runs that keep their logits, the command and its report."""

import csv
import gzip
import itertools
import json
import math
import os
import re
import sys
from dataclasses import replace
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, TINY_DATA
from lightning.pytorch import Callback
from tiny_images import TinyDataModule

from fashion_cnn.analysis.memorisation import (
    SubsetEnsemble,
    compute_scores,
    find_duplicates,
    find_label_errors,
    load_bundled_scores,
)
from fashion_cnn.analysis.memorisation_report import _example_table
from fashion_cnn.cli.main import compose
from fashion_cnn.errors import Interrupted, UserError
from fashion_cnn.evaluate import main as evaluate
from fashion_cnn.memorisation import main as memorisation
from fashion_cnn.metrics import memorisation as metrics
from fashion_cnn.metrics.memorisation import CorrectCounts, PredictionTotals, SubsetLogits
from fashion_cnn.metrics.predictions import Predictions, write_predictions
from fashion_cnn.plots.memorisation import plot_scores
from fashion_cnn.runs import Run
from fashion_cnn.train import main as train
from fashion_cnn.train import train as train_function
from fashion_cnn.training import build
from fashion_cnn.training.session import run_training

DATA = [part for part in TINY_DATA if part.split("=")[0] not in ("data.val_size", "model", "callbacks")]
# `fast` has a network of its own.
SWEEP = ["sweep=memorisation", *(part for part in DATA if not part.startswith("model"))]
SWEEP = [part.replace("max_epochs=3", "max_epochs=1") for part in SWEEP] + ["model.network.widths=[8,8,8]"]


def complementary_halves(pairs, images, seed=0):
    """Membership `(2 * pairs, images)`: each pair of rows divides the images."""
    generator = np.random.default_rng(seed)
    first = np.argsort(generator.random((pairs, images)), axis=1) < images // 2
    return np.stack([first, ~first], axis=1).reshape(2 * pairs, images)


def counts_of(trained, correct):
    counts = CorrectCounts.zeros(trained.shape[1])
    for mask, hits in zip(trained, correct, strict=True):
        counts.add(mask, hits)
    return counts


def test_memorisation_is_unbiased_and_its_standard_error_is_the_spread_over_repetitions():
    generator = np.random.default_rng(1)
    inside, outside = np.array([1.0, 0.9, 0.6, 0.3]), np.array([0.1, 0.9, 0.2, 0.3])
    scores, errors = [], []
    for seed in range(400):
        trained = complementary_halves(16, 4, seed)
        correct = generator.random(trained.shape) < np.where(trained, inside, outside)
        counts = counts_of(trained, correct)
        scores.append(counts.score)
        errors.append(counts.standard_error)
    assert np.mean(scores, axis=0) == pytest.approx(inside - outside, abs=0.02)
    assert np.sqrt(np.mean(np.square(errors), axis=0)) == pytest.approx(np.std(scores, axis=0), rel=0.12)


def test_scores_are_unknown_without_networks_on_both_sides():
    counts = counts_of(np.array([[True, True], [True, False]]), np.array([[True, True], [True, False]]))
    assert math.isnan(counts.score[0])
    assert counts.score[1] == 1
    assert np.isnan(counts.standard_error).all(), "one network has no spread"


def test_the_mean_score_is_the_mean_gap_exactly_by_class_too():
    generator = np.random.default_rng(2)
    targets = np.repeat([0, 1], 20)
    by_class = [complementary_halves(8, 20, seed) for seed in (3, 4)]
    trained = np.concatenate(by_class, axis=1)
    correct = generator.random(trained.shape) < 0.6 + 0.3 * trained
    score = counts_of(trained, correct).score
    for group in (targets >= 0, targets == 0, targets == 1):
        gaps = [c[t & group].mean() - c[~t & group].mean() for t, c in zip(trained, correct, strict=True)]
        assert score[group].mean() == pytest.approx(np.mean(gaps))
    assert metrics.gap_shares(score, score, [1.0]) == [pytest.approx(1)]


@pytest.mark.parametrize("gap", [0.0, -0.5])
def test_without_a_gap_there_are_no_shares_of_it(gap):
    score = np.array([0.5, gap - 0.5])
    assert metrics.gap_shares(score, np.array([0.5, 0.5]), [0.5, 1.0]) == []


def test_half_of_the_networks_predicts_the_gap_of_the_other_half_within_the_standard_error():
    generator = np.random.default_rng(5)
    deviations = []
    for seed in range(200):
        trained = complementary_halves(16, 60, seed)
        correct = generator.random(trained.shape) < 0.5 + 0.4 * trained
        halves = [slice(0, 16), slice(16, 32)]
        gaps = [
            [
                np.mean([c[t].mean() - c[~t].mean() for t, c in zip(*pair, strict=True)])
                for pair in zip(trained[half].reshape(-1, 2, 60), correct[half].reshape(-1, 2, 60), strict=True)
            ]
            for half in halves
        ]
        check = metrics.gap_check(counts_of(trained[halves[0]], correct[halves[0]]).score, *gaps)
        assert check.predicted == pytest.approx(np.mean(gaps[0]))
        deviations.append(check.deviation)
    # Eight units on either side: Student's t, a little wider than the normal distribution.
    assert np.std(deviations) == pytest.approx(1.07, abs=0.2)


def test_pairs_of_complementary_halves_are_found_in_any_order():
    trained = complementary_halves(5, 30)
    order = np.random.default_rng(0).permutation(10)
    shuffled = np.concatenate([trained[order], np.random.default_rng(9).random((1, 30)) < 0.5])
    pairs = metrics.complementary_pairs(shuffled)
    assert sorted(sorted(order[list(pair)] // 2) for pair in pairs) == [[pair, pair] for pair in range(5)]
    # An excluded image is in no training.
    trained[:, 3] = False
    assert len(metrics.complementary_pairs(trained)) == 5


def test_p_values_of_the_sign_test_are_those_of_all_sign_patterns():
    table = metrics.sign_test_p_values(9)
    for count in range(1, 10):
        sums = np.array([sum(signs) for signs in itertools.product((-1, 1), repeat=count)])
        for excess in range(count % 2, count + 1, 2):
            assert table[count, excess] == pytest.approx(np.mean(np.abs(sums) >= excess))
    assert table[0, 0] == 1


def test_benjamini_hochberg_with_counts_equals_the_textbook_rule():
    p_values = np.array([0.001, 0.01, 0.02, 0.03, 0.2, 0.5])
    counts = np.array([2, 1, 0, 3, 4, 10])
    single = np.repeat(p_values, counts)
    passing = [p for rank, p in enumerate(single, 1) if p <= 0.1 * rank / len(single)]
    assert metrics.benjamini_hochberg(p_values, counts, 0.1) == max(passing) == 0.03
    assert metrics.benjamini_hochberg(np.array([0.5]), np.array([3]), 0.1) == 0


def test_influences_find_the_planted_pairs_and_nothing_where_there_is_none():
    generator = np.random.default_rng(3)
    pairs, images, tests = 64, 200, 300
    trained = complementary_halves(pairs, images)
    correct = generator.random((2 * pairs, tests)) < generator.random(tests)
    null = metrics.influences(trained[::2], correct[::2], correct[1::2])
    assert len(null.train_rows) == 0
    assert null.tested == images * tests
    for number in range(10):
        # Classified correctly with the training image alone, but for a few networks.
        correct[:, number] = trained[:, number] ^ (generator.random(2 * pairs) < 0.1)
    found = metrics.influences(trained[::2], correct[::2], correct[1::2])
    planted = {(number, number) for number in range(10)}
    pairs_found = set(zip(found.train_rows.tolist(), found.test_rows.tolist(), strict=True))
    assert planted <= pairs_found
    assert len(pairs_found - planted) <= 2
    assert found.null_discoveries <= 1
    inside = correct[:, 0][trained[:, 0]].mean() - correct[:, 0][~trained[:, 0]].mean()
    (place,) = np.flatnonzero((found.train_rows == 0) & (found.test_rows == 0))
    assert found.values[place] == pytest.approx(inside)


def test_influences_of_chunks_equal_those_of_the_whole(monkeypatch):
    generator = np.random.default_rng(3)
    trained = complementary_halves(20, 30)
    correct = np.where(np.arange(50) < 30, trained[:, np.arange(50) % 30], generator.random((40, 50)) < 0.5)
    whole = metrics.influences(trained[::2], correct[::2], correct[1::2])
    monkeypatch.setattr(metrics, "_CHUNK", 130)
    parts = metrics.influences(trained[::2], correct[::2], correct[1::2])
    assert len(whole.train_rows) >= 30
    for name in ("train_rows", "test_rows", "values", "p_values", "threshold"):
        assert np.array_equal(getattr(whole, name), getattr(parts, name)), name


def test_bias_and_variance_add_up_to_the_error_and_the_loss():
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(7, 5, 3)).astype(np.float32)
    targets = np.array([0, 1, 2, 0, 1])
    totals = PredictionTotals.zeros(5, 3)
    for network_logits in logits:
        totals.add(network_logits, np.ones(5, dtype=bool))
    parts = metrics.decompose(totals, targets)
    predictions = logits.argmax(axis=2)
    assert parts.error == pytest.approx((predictions != targets).mean(axis=0))
    unbiased = parts.bias == 0
    assert parts.error[unbiased] == pytest.approx(parts.variance[unbiased])
    log_softmax = torch.from_numpy(logits).log_softmax(dim=2).double().numpy()
    assert parts.loss == pytest.approx(-log_softmax[:, np.arange(5), targets].mean(axis=0))
    mean = np.exp(log_softmax.mean(axis=0))
    mean /= mean.sum(axis=1, keepdims=True)
    divergence = (mean * (np.log(mean) - log_softmax)).sum(axis=2).mean(axis=0)
    assert parts.loss_variance == pytest.approx(divergence, abs=1e-6)
    assert parts.loss == pytest.approx(parts.loss_bias + parts.loss_variance)


def made_ensemble():
    """Predictions of six images of three classes; the first half of the networks has none of class `a`."""
    halves = (CorrectCounts.zeros(6), CorrectCounts.zeros(6))
    known = np.arange(6) > 1
    for inside in (known, ~known):
        for half, images in zip(halves, (known, known | True), strict=True):
            half.add(inside, inside, images)
            half.add(~inside, ~inside, images)
    empty = np.zeros(0, dtype=np.int64)
    return SubsetEnsemble(
        runs=(),
        class_names=("a", "b", "c"),
        targets=np.repeat(np.arange(3), 2),
        indices=np.arange(6),
        halves=halves,
        held_out=PredictionTotals.zeros(6, 3),
        pairs=np.zeros((0, 2), dtype=np.int64),
        trained=np.zeros((0, 6), dtype=bool),
        test_correct=np.zeros((0, 0), dtype=bool),
        test_totals=None,
        test_targets=empty,
        test_indices=empty,
        gaps=(np.ones((2, 4)), np.ones((2, 4))),
        train_accuracy=1.0,
        held_out_accuracy=0.0,
    )


def test_a_class_without_scores_in_the_first_half_does_not_shift_the_names_of_the_others():
    checks = compute_scores(made_ensemble()).checks
    assert [(name, check.images) for name, check in checks] == [("all", 6), ("b", 2), ("c", 2)]


def test_the_table_of_examples_leaves_out_unknown_scores_and_standard_errors():
    scores = compute_scores(made_ensemble())
    scores = replace(scores, score=np.array([0.9] * 5 + [np.nan]), standard_error=np.array([0.125] + [np.nan] * 5))
    analysis = SimpleNamespace(ensemble=made_ensemble(), scores=scores, errors=SimpleNamespace(probability=np.zeros(6)))
    cells = [line.split(" | ")[2] for line in _example_table(analysis).splitlines()[2:]]
    assert cells == ["0.90 ± 0.12", *["0.90"] * 4, "-"]


def test_the_histogram_marks_the_score_from_which_images_count_as_memorised():
    histogram, _ = plot_scores(compute_scores(made_ensemble()), threshold=0.5).axes
    (line,) = histogram.lines
    assert list(line.get_xdata()) == [0.5, 0.5]
    assert line.get_label() == "memorised: 0.5 and above"


def made_labels(noise, images=20_000, classes=4, seed=0, floor=0.002):
    """Probabilities of images, a tenth of them ambiguous, with labels drawn from them and then by a noise matrix."""
    generator = np.random.default_rng(seed)
    truth = generator.integers(classes, size=images)
    true = np.full((images, classes), floor)
    true[np.arange(images), truth] = 1 - floor * (classes - 1)
    ambiguous = generator.random(images) < 0.1
    other = (truth + 1) % classes
    share = generator.uniform(0.3, 0.7, images)
    rows = np.flatnonzero(ambiguous)
    true[rows] = floor
    true[rows, truth[rows]], true[rows, other[rows]] = share[rows], 1 - share[rows]
    true /= true.sum(axis=1, keepdims=True)
    clean = (true.cumsum(axis=1) > generator.random((images, 1))).argmax(axis=1)
    given = (noise[clean].cumsum(axis=1) > generator.random((images, 1))).argmax(axis=1)
    return true @ noise, clean, given


@pytest.mark.parametrize("kind", ["symmetric", "look-alike"])
@pytest.mark.parametrize("precision", [0.7, 0.9])
def test_the_list_of_label_errors_has_its_expected_precision(kind, precision):
    noise = np.full((4, 4), 0.02) if kind == "symmetric" else np.roll(np.eye(4) * 0.05, 1, axis=1)
    np.fill_diagonal(noise, 0)
    np.fill_diagonal(noise, 1 - noise.sum(axis=1))
    probability, clean, given = made_labels(noise)
    errors = find_label_errors(probability, given, precision=precision)
    wrong = clean != given
    assert errors.noise == pytest.approx(noise, abs=0.02)
    assert errors.temperature == pytest.approx(1, abs=0.1)
    assert wrong[errors.listed].mean() == pytest.approx(precision, abs=0.05)
    assert wrong[errors.listed].sum() > 0.5 * wrong.sum()
    assert (errors.proposed[errors.listed] != given[errors.listed]).all()


def test_without_label_noise_ambiguous_images_are_no_label_errors():
    probability, clean, given = made_labels(np.eye(4), floor=1e-5)
    assert (clean == given).all()
    errors = find_label_errors(probability, given, precision=0.8)
    assert len(errors.listed) < 0.002 * len(given)


def test_wrong_labels_that_no_anchor_has_are_found_in_small_data_sets():
    generator = np.random.default_rng(0)
    truth = np.repeat(np.arange(4), 25)
    probability = np.full((100, 4), 1e-4)
    # The probability of the class differs, so that the wrong labels below are no anchors.
    probability[np.arange(100), truth] = generator.uniform(0.95, 0.99, 100)
    given = truth.copy()
    given[3], given[30] = 2, 3
    probability[[3, 30], truth[[3, 30]]] = 0.9
    probability[0, 0], given[0] = 0.995, 1
    probability /= probability.sum(axis=1, keepdims=True)
    noise = metrics.anchor_noise_matrix(probability, given)
    assert noise.sum(axis=1) == pytest.approx(1)
    assert noise[1, 3] > 0, "no anchor of class 1 has the label 3"
    wrong = metrics.label_error_probability(probability, given, noise)
    assert set(np.flatnonzero(wrong > 0.5)) == {0, 3, 30}


def test_confident_learning_finds_flipped_labels():
    pytest.importorskip("cleanlab")
    noise = np.full((4, 4), 0.03)
    np.fill_diagonal(noise, 0.91)
    probability, clean, given = made_labels(noise, images=4000)
    errors = find_label_errors(probability, given, precision=0.8)
    assert errors.confident_noise.shape == (4, 4)
    assert errors.confident_noise.sum(axis=1) == pytest.approx(1)
    flagged = errors.issues & (clean != given)
    assert flagged.sum() > 0.7 * (clean != given).sum()


def test_temperature_restores_calibrated_probabilities():
    probability, _, given = made_labels(np.eye(4))
    sharpened = metrics.calibrate(probability, 0.5)
    assert metrics.fit_temperature(sharpened, given) == pytest.approx(2, rel=0.1)


def test_rank_correlation_and_average_precision_have_their_textbook_values():
    assert metrics.spearman(np.array([1.0, 2, 3, 4]), np.array([10.0, 30, 20, 40])) == pytest.approx(0.8)
    assert metrics.spearman(np.array([1.0, 1, 2]), np.array([5.0, 5, 9])) == pytest.approx(1)
    assert math.isnan(metrics.pearson(np.ones(3), np.arange(3.0)))
    wrong = np.array([True, False, True, False])
    assert metrics.average_precision(wrong, np.array([0, 1, 2, 3])) == pytest.approx((1 + 2 / 3) / 2)


def test_near_duplicates_are_found_whatever_their_brightness():
    generator = torch.Generator().manual_seed(0)
    train_images = torch.randint(0, 200, (50, 1, 8, 8), generator=generator, dtype=torch.uint8)
    test = torch.randint(0, 200, (6, 1, 8, 8), generator=generator, dtype=torch.uint8)
    test[1], test[4] = train_images[7], train_images[20] + 20
    found = find_duplicates(train_images, test, above=0.98)
    assert sorted(zip(found.test_rows.tolist(), found.train_rows.tolist(), strict=True)) == [(1, 7), (4, 20)]
    assert dict(zip(found.test_rows.tolist(), found.equal.tolist(), strict=True)) == {1: True, 4: False}


def subset_logits(targets, trained):
    logits = np.zeros((len(targets), 3), dtype=np.float16)
    none = np.zeros(0, dtype=np.int32)
    return SubsetLogits(logits, targets, np.arange(len(targets)), trained, logits[:0], none, none)


def test_damaged_logits_are_refused(tmp_path):
    file = tmp_path / "logits.npz"
    metrics.write_subset_logits(file, subset_logits(np.array([0, 1]), np.array([True, False])))
    assert metrics.read_subset_arrays(file, ["trained"])["trained"].tolist() == [True, False]
    assert metrics.read_subset_logits(file).logits.dtype == np.float16
    np.savez(file, logits=np.zeros((2, 3)))
    with pytest.raises(ValueError, match="it holds no"):
        metrics.read_subset_logits(file)
    file.write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"."):
        metrics.read_subset_logits(file)
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(ValueError, match="not a regular file"):
        metrics.read_subset_logits(file)
    with pytest.raises(ValueError, match="do not fit together"):
        subset_logits(np.array([0, 1]), np.array([True]))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["keep=nothing"], "keep=nothing is not possible: choose all or logits"),
        (["keep=logits", "init_from=somewhere"], "keep=logits cannot be combined with init_from: that network may"),
        (
            ["keep=logits", "distillation=soft_labels", "distillation.teachers=[x]"],
            "keep=logits cannot be combined with distillation",
        ),
    ],
)
def test_runs_that_keep_their_logits_have_learned_from_their_subset_alone(overrides, message, tmp_path):
    config = compose(overrides=[*TINY_DATA, *overrides, f"runs_dir={tmp_path}"])
    with pytest.raises(UserError, match=re.escape(message)):
        run_training(
            config,
            directory=None,
            callbacks=(),
            in_sweep=False,
            check_resumed=lambda config: None,
            print_start=None,
            print_end=None,
        )


class Stop(Callback):
    """Stops the training after its first epoch."""

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch:
            raise KeyboardInterrupt


@pytest.mark.training
def test_a_run_records_its_corrections_and_continues_with_the_same_files_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "few, bad.csv").write_text("index\n3\n")
    overrides = [*TINY_DATA, "data.exclude='few, bad.csv'", "trainer.max_epochs=2", f"runs_dir={tmp_path / 'runs'}"]
    directory = tmp_path / "runs" / "one"
    with pytest.raises(Interrupted):
        train_function(compose(overrides=overrides), directory=directory, callbacks=[Stop()], quiet=True)
    stored = Run(directory).config().data
    assert stored.exclude == str(tmp_path / "few, bad.csv")
    assert len(stored.exclude_sha256) == 16
    monkeypatch.chdir("/")
    (tmp_path / "few, bad.csv").write_text("index\n4\n")
    with pytest.raises(UserError, match="has changed since the training began"):
        train_function(compose(overrides=overrides), directory=directory, quiet=True)
    (tmp_path / "few, bad.csv").unlink()
    with pytest.raises(UserError, match="is gone, with which the training began"):
        train_function(compose(overrides=overrides), directory=directory, quiet=True)
    (tmp_path / "few, bad.csv").write_text("index\n3\n")
    results = train_function(compose(overrides=overrides), directory=directory, quiet=True)
    data = TinyDataModule(mean=[0.5], std=[0.25], val_size=32)
    data.setup("fit")
    assert results["train_images"] == 128 - int(3 in data.train_split.indices)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """A finished `sweep=memorisation` of four trainings."""
    folder = tmp_path_factory.mktemp("memorisation")
    arguments = [*SWEEP, "seed=range(4)", f"runs_dir={folder}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train", *arguments])
        train()
    (file,) = folder.rglob("multirun.yaml")
    return file.parent


def table(path):
    return list(csv.DictReader(gzip.decompress(path.read_bytes()).decode().splitlines()))


@pytest.mark.training
def test_a_job_keeps_only_its_config_results_and_logits(sweep):
    folders = sorted(folder for folder in sweep.iterdir() if folder.name.startswith("seed-"))
    assert len(folders) == 4
    for folder in folders:
        assert {path.name for path in folder.iterdir()} == {"config.yaml", "results.json", "logits.npz", ".lock"}
    masks = [metrics.read_subset_logits(folder / "logits.npz").trained for folder in folders]
    assert (masks[0] ^ masks[1]).all()
    assert (masks[2] ^ masks[3]).all()
    assert (masks[0] ^ masks[2]).any()
    stored = metrics.read_subset_logits(folders[0] / "logits.npz")
    assert stored.logits.shape == (160, 4)
    assert stored.test_logits.shape == (40, 4)
    results = json.loads((folders[0] / "results.json").read_text())
    assert results["gap/accuracy"] == pytest.approx(results["train/accuracy"] - results["val/accuracy"])
    assert (results["train_images"], results["val_images"]) == (80, 80)
    assert not [name for name in results if name.startswith("test")], "no choice can be made on the test set"
    assert len((sweep / "comparison" / "comparison.csv").read_text().splitlines()) == 2, "subsets are repetitions"
    seeds = {Run(folder).config().seed for folder in folders}
    assert seeds == {0, 1, 2, 3}


@pytest.mark.training
def test_finished_jobs_stay_and_further_subsets_are_added(sweep, command):
    before = {path: path.stat().st_mtime_ns for path in sweep.glob("*/results.json")}
    (sweep / "seed-1" / "checkpoints").mkdir()  # left by a process that was killed at the end
    status, out, _ = command(train, f"resume={sweep}", "seed=range(5)", *SWEEP)
    assert status == 0, out
    assert "5 of 5 jobs finished" in out
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert not (sweep / "seed-1" / "checkpoints").exists()
    for file in (sweep / "seed-4").iterdir():
        file.unlink()
    (sweep / "seed-4").rmdir()


@pytest.mark.training
def test_the_report_of_a_sweep_has_all_tables_and_figures(sweep, command, tmp_path):
    out = tmp_path / "analysis"
    status, text, errors = command(memorisation, f"runs={sweep}", f"out={out}", "memorised=0.01", "precision=0.5")
    assert status == 0, errors
    assert "4 networks, 160 training images." in text
    rows = table(out / "memorisation.csv.gz")
    assert len(rows) == 160
    scores = [float(row["memorisation"]) for row in rows]
    assert scores == sorted(scores, reverse=True)
    differences = [float(row["train_accuracy"]) - float(row["held_out_accuracy"]) for row in rows]
    assert differences == pytest.approx(scores, abs=1e-3)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["gap"] == pytest.approx(np.mean(scores), abs=1e-4)
    results = [json.loads(file.read_text()) for file in sweep.glob("seed-*/results.json")]
    assert summary["gap"] == pytest.approx(np.mean([result["gap/accuracy"] for result in results]))
    assert summary["pairs"] == 2
    assert len(table(out / "test_images.csv.gz")) == 40
    report = (out / "report.md").read_text()
    for picture in re.findall(r"\]\((figures/\w+\.png)\)", report):
        assert (out / picture).is_file()
    assert (out / "projector_config.pbtxt").is_file()
    assert list(out.glob("events.out.tfevents.*"))
    assert report.count("nan") == 0


@pytest.mark.training
def test_runs_without_weights_are_not_the_latest_run(sweep, command):
    status, _, errors = command(evaluate, f"run={sweep / 'seed-0'}")
    assert status == 1
    assert "keeps its logits but no weights (keep=logits)" in errors
    _, _, errors = command(evaluate, f"runs_dir={sweep}")
    assert "There is no finished run" in errors


@pytest.mark.training
def test_cross_validation_gives_label_errors_and_no_scores(command, tmp_path):
    arguments = [part for part in TINY_DATA if not part.startswith(("data.val_size", "callbacks", "trainer.max"))]
    folds = ["sweep=kfold", "data.folds=2", "data.fold=0,1", "trainer.max_epochs=1"]
    status, _, errors = command(train, *folds, *arguments, f"runs_dir={tmp_path}")
    assert status == 0, errors
    (file,) = tmp_path.rglob("multirun.yaml")
    status, out, errors = command(memorisation, f"runs={file.parent}", "precision=0.5")
    assert status == 0, errors
    assert "there are no memorisation scores (train with sweep=memorisation, or keep=logits)" in " ".join(out.split())
    rows = table(file.parent / "analysis" / "memorisation.csv.gz")
    assert len(rows) == 160
    assert {row["networks_held_out"] for row in rows} == {"1"}
    assert {row["memorisation"] for row in rows} == {""}
    status, _, errors = command(memorisation, f"runs={file.parent}", f"run={file.parent / 'fold-0'}")
    assert "run= compares with memorisation scores, which these runs do not give" in errors


def test_cross_validation_lists_repeated_images_across_the_splits(command, tiny, tmp_path, monkeypatch):
    original = TinyDataModule.load

    def load(self, *, train):
        images, targets = original(self, train=train)
        if not train:
            images[5] = original(self, train=True)[0][17]
        return images, targets

    monkeypatch.setattr(TinyDataModule, "load", load)
    for fold in range(2):
        config = tiny("data.folds=2", f"data.fold={fold}", "data.val_size=0")
        data = build.data(config)
        data.setup("fit")
        run = Run(tmp_path / "folds" / f"fold-{fold}")
        run.create()
        run.write_config(config)
        targets, indices = data.val_split.targets, data.val_split.indices
        logits = torch.nn.functional.one_hot(targets, 4).float()
        write_predictions(run.predictions_file, {"best.val": Predictions(logits, targets, indices)})
        run.write_results({"seed": 0, "val/accuracy": 1.0})
    status, _, errors = command(memorisation, f"runs={tmp_path / 'folds'}")
    assert status == 0, errors
    folder = tmp_path / "folds" / "analysis"
    (row,) = csv.DictReader((folder / "near_duplicates.csv").read_text().splitlines())
    assert row == {
        **{"test_index": "5", "test_label": "middle", "train_index": "17", "train_label": "middle"},
        **{"similarity": "1.0", "equal": "1"},
    }
    assert (folder / "figures" / "duplicates.png").exists()


def test_the_summary_has_null_for_unknown_numbers(command, tiny, tmp_path):
    data = TinyDataModule(mean=[0.5], std=[0.25], val_size=0)
    targets = data.load(train=True)[1]
    right = torch.nn.functional.one_hot(targets, 4).numpy()
    tests = np.arange(40)
    for seed, trained in enumerate(complementary_halves(2, 160)):
        config = tiny("keep=logits", "data.val_size=0", f"seed={seed}")
        run = Run(tmp_path / "subsets" / f"seed-{seed}")
        run.create()
        run.write_config(config)
        # Every other image outside the training set is misclassified.
        correct = trained | (np.arange(160) // 4 % 2 == 0)
        logits = np.where(correct[:, None], right, np.roll(right, 1, axis=1)).astype(np.float16)
        stored = SubsetLogits(logits, targets.numpy(), np.arange(160), trained, logits[:40], tests % 4, tests)
        metrics.write_subset_logits(run.logits_file, stored)
        run.write_results({"seed": seed, "val/accuracy": 0.75})
    status, _, errors = command(memorisation, f"runs={tmp_path / 'subsets'}")
    assert status == 0, errors

    def refuse(constant):
        raise ValueError(constant)

    text = (tmp_path / "subsets" / "analysis" / "summary.json").read_text()
    checks = json.loads(text, parse_constant=refuse)["additivity"]
    assert [check["class"] for check in checks] == ["all", *TinyDataModule.class_names]
    assert checks[0]["standard_error"] is None, "one pair of networks in either half"


@pytest.mark.training
def test_cross_validation_that_keeps_its_logits_gives_scores(command, tmp_path):
    arguments = [part for part in TINY_DATA if not part.startswith(("data.val_size", "trainer.max"))]
    folds = ["sweep=kfold", "data.folds=2", "data.fold=0,1", "keep=logits", "trainer.max_epochs=1"]
    status, _, errors = command(train, *folds, *arguments, f"runs_dir={tmp_path}")
    assert status == 0, errors
    (file,) = tmp_path.rglob("multirun.yaml")
    status, _, errors = command(memorisation, f"runs={file.parent}")
    assert status == 0, errors
    rows = table(file.parent / "analysis" / "memorisation.csv.gz")
    assert {(row["networks_trained"], row["networks_held_out"]) for row in rows} == {("1", "1")}
    assert {row["standard_error"] for row in rows} == {""}
    summary = json.loads((file.parent / "analysis" / "summary.json").read_text())
    assert summary["pairs"] == 1
    assert "nan" not in (file.parent / "analysis" / "report.md").read_text()


@pytest.mark.training
def test_one_run_is_compared_with_the_scores_and_shows_bundled_ones(sweep, command, tmp_path, monkeypatch):
    from fashion_cnn.analysis import memorisation as analysis
    from fashion_cnn.data import image_datamodule

    status, _, errors = command(memorisation, f"runs={sweep}", f"out={tmp_path / 'a'}")
    assert status == 0, errors
    monkeypatch.setattr(analysis, "SCORES_FOLDER", tmp_path / "a")
    monkeypatch.setattr(image_datamodule.ImageDataModule, "memorisation_scores", "scores.npz")
    arguments = [part for part in TINY_DATA if not part.startswith("callbacks")]
    status, _, errors = command(train, *arguments, "name=ordinary", f"runs_dir={tmp_path}")
    assert status == 0, errors
    (run,) = (tmp_path / "ordinary").iterdir()
    rows = list(csv.DictReader((run / "examples.csv").read_text().splitlines()))
    expected = {row["index"]: float(row["memorisation"]) for row in table(tmp_path / "a" / "memorisation.csv.gz")}
    assert {row["indices"]: float(row["memorisation"]) for row in rows} == {
        row["indices"]: pytest.approx(expected[row["indices"]], abs=1e-4) for row in rows
    }
    status, _, errors = command(memorisation, f"runs={sweep}", f"run={run}", f"out={tmp_path / 'b'}")
    assert status == 0, errors
    proxies = json.loads((tmp_path / "b" / "summary.json").read_text())["proxies"]
    assert {"epoch learned", "forgetting events", "mean margin, negative", "loss of the trained network"} <= set(
        proxies
    )
    report = (run / "report.md").read_text()
    assert f"memorisation scores of {len(rows)} training images" in report
    for name, proxy in proxies.items():
        correlation = proxy if isinstance(proxy, float) else proxy["correlation"]
        assert (f"{name} {correlation:+.2f}" in report) == (name != "loss of the trained network")


def test_data_sets_without_bundled_scores_have_none(tmp_path):
    data = TinyDataModule(mean=[0.5], std=[0.25], val_size=32)
    data.setup("fit")
    assert load_bundled_scores(data, tmp_path) is None


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("precision=0", "precision=0 is not possible: give a number above 0, up to 1"),
        ("duplicates=2", "duplicates=2 is not possible: give a number above 0.5, up to 1"),
        ("runs=nowhere", "no run in nowhere"),
        ("run=nowhere", "nowhere does not exist"),
    ],
)
def test_impossible_options_are_one_message(argument, message, command):
    status, _, errors = command(memorisation, argument)
    assert status
    assert message in errors


@pytest.fixture
def study(monkeypatch):
    """The module of scripts/memorisation_study."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "scripts"))
    loader = SourceFileLoader("memorisation_study", str(REPOSITORY / "scripts" / "memorisation_study"))
    module = module_from_spec(spec_from_loader(loader.name, loader))
    # A dataclass looks its module up.
    monkeypatch.setitem(sys.modules, loader.name, module)
    loader.exec_module(module)
    return module


def test_the_studys_wrong_labels_are_wrong_and_among_the_images_in_use(study, fashion_mnist_root, tmp_path):
    assert study.Images(study.Options(data=fashion_mnist_root, out=tmp_path)).exclusion() == []
    options = study.Options(data=fashion_mnist_root, out=tmp_path, images=2000)
    images = study.Images(options)
    ((_, _, unused),) = [override.partition("=") for override in images.exclusion()]
    excluded = {int(row["index"]) for row in csv.DictReader(Path(unused).read_text().splitlines())}
    assert excluded | {*images.used.tolist()} == {*range(60_000)}
    assert len(images.used) == 2000
    for kind in study.KINDS:
        file, wrong = images.noisy(kind, 0.05)
        rows = list(csv.DictReader(file.read_text().splitlines()))
        assert len(rows) == len(wrong) == 100
        assert np.isin(wrong, images.used).all()
        assert all(int(row["label"]) != images.labels[int(row["index"])] for row in rows)
    assert {label: other for label, other in study.LOOK_ALIKE.items() if label == other} == {}
    with pytest.raises(UserError, match="trainings=3 is odd"):
        study.Options(trainings=3)


def test_the_studys_summary_prints_what_is_recorded(study, tmp_path, capsys):
    values = {"precision_at_k": 0.9, "average_precision": 0.95}
    part = {"listed": 10, "precision": 0.8, "recall": 0.7}
    noise = {
        **{"kind": "symmetric", "share": 0.01, "wrong": 20, "rankings": {"memorisation": values}},
        **{"lists": [{"expected_precision": 0.8, **part}], "confident_learning": None},
    }
    removal = {
        **{"kind": "removal", "images": 2000, "removed": 20, "networks": 8, "influences": 3},
        "predicted": -0.01,
        "accuracies": {"memorised": [0.8, 0.81, 0.8], "random": [0.81, 0.82, 0.82]},
    }
    file = tmp_path / "records.jsonl"
    file.write_text(f"{json.dumps(noise)}\n{json.dumps(removal)}\n")
    study.summary(study.Options(records=file))
    out = capsys.readouterr().out
    assert "| symmetric, 1%, K = 20 | memorisation | 90.0% | 0.950 |" in out
    assert "differs from that without as many random ones by -1.33 points" in out
    assert "3 significant influences in 8 trainings on halves: -1.00 points" in out
    with pytest.raises(UserError, match="does not exist: run the study first"):
        study.summary(study.Options(records=tmp_path / "none"))
