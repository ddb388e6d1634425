"""Comparison of runs: groups, mean and standard deviation, ignored settings, plots, learning curve."""

import csv
import itertools
import json
import os

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fashion_cnn.analysis import comparison_report
from fashion_cnn.analysis.comparison import compare, conclude
from fashion_cnn.analysis.learning_curve import describe_learning_curve, fit_learning_curve, fit_power_law
from fashion_cnn.compare import main
from fashion_cnn.errors import UserError
from fashion_cnn.metrics.intervals import paired_interval
from fashion_cnn.metrics.predictions import Predictions, read_predictions, write_predictions
from fashion_cnn.plots.comparison import plot_accuracy_against, plot_comparison, plot_gap_against, plot_learning_curve
from fashion_cnn.plots.style import save_figure
from fashion_cnn.runs import Run, find_runs
from fashion_cnn.runs.overrides import CONFIG_DIR


def make_run(path, overrides, seed, accuracy=None, **settings):
    run = Run(path)
    run.create()
    config = {"name": "tiny", "overrides": [*overrides, f"seed={seed}"], "seed": seed, **settings}
    run.write_config(OmegaConf.create(config))
    if accuracy is not None:
        images = round(55_000 * settings.get("data", {}).get("train_fraction", 1))
        run.results_file.write_text(
            json.dumps(
                {
                    "seed": seed,
                    "val/accuracy": accuracy,
                    "train/accuracy": accuracy + 0.05,
                    "gap/accuracy": 0.05,
                    "train_images": images,
                    "parameters": 1000,
                    "seconds": 60,
                }
            )
        )
    return run


@pytest.fixture
def sweep(tmp_path):
    """Three seeds of three train fractions with error n^-0.5, one failed run and one stopped run."""
    for fraction in (0.04, 0.16, 0.64):
        for seed in (0, 1, 2):
            error = (55_000 * fraction) ** -0.5 * (1 + 0.1 * (seed - 1))
            make_run(
                tmp_path / f"train_fraction-{fraction}_seed-{seed}",
                [f"data.train_fraction={fraction}"],
                seed,
                1 - error,
                data={"train_fraction": fraction},
            )
    crashed = make_run(tmp_path / "crashed", ["data.train_fraction=1.0"], 0, data={"train_fraction": 1.0})
    crashed.error_file.write_text("UserError: The loss became nan\nmore\n")
    make_run(tmp_path / "stopped", ["data.train_fraction=1.0"], 1, data={"train_fraction": 1.0})
    return tmp_path


def test_sweep_is_grouped_by_the_setting_that_differs_with_mean_and_std_over_seeds(sweep):
    comparison = compare(find_runs(str(sweep)))
    assert comparison.factors == ("data.train_fraction",)
    assert [group.factors["data.train_fraction"] for group in comparison.groups] == [0.04, 0.16, 0.64]
    metric = comparison.groups[0].metric("val/accuracy")
    assert metric.count == 3
    error = 2200**-0.5
    assert (metric.mean, metric.std) == pytest.approx((1 - error, 0.1 * error))
    assert comparison.groups[0].metric("test/accuracy") is None
    assert {run.path.name for run in comparison.unfinished} == {"crashed", "stopped"}


def test_command_writes_table_plots_and_learning_curve(sweep, command):
    status, out, err = command(main, f"runs={sweep}")
    assert (status, err) == (0, "")
    assert "crashed: failed (UserError: The loss became nan)" in out
    folder = sweep / "comparison"
    assert {path.name for path in folder.iterdir() if "tfevents" not in path.name} == {
        "comparison.md",
        "comparison.csv",
        "against_data.train_fraction.png",
        "learning_curve.png",
    }
    assert sum("tfevents" in path.name for path in folder.iterdir()) == 1
    rows = list(csv.DictReader((folder / "comparison.csv").read_text().splitlines()))
    assert [row["seeds"] for row in rows] == ["3", "3", "3"]
    text = (folder / "comparison.md").read_text()
    assert "97.87 ± 0.21" in text
    assert "crashed: failed (UserError: The loss became nan)" in text
    assert "stopped: stopped" in text
    status, out, err = command(main, f"runs={sweep}", f"out={sweep / 'else where'}")
    assert status == 0
    assert (sweep / "else where" / "comparison.md").exists()
    assert len(find_runs(str(sweep))) == 11, "its output is not a run"


def test_folds_are_one_group_whose_predictions_cover_every_image(tmp_path, command):
    targets = torch.arange(30) % 3
    for fold in range(3):
        data = {"folds": 3, "fold": fold}
        run = make_run(tmp_path / str(fold), ["data.folds=3", f"data.fold={fold}"], 0, 0.8 + fold / 10, data=data)
        indices = torch.arange(fold * 10, fold * 10 + 10)
        logits = torch.nn.functional.one_hot(targets[indices], 3).float()
        logits[:fold] = logits[:fold].roll(1, dims=1)
        write_predictions(run.predictions_file, {"best.val": Predictions(logits, targets[indices], indices)})
    status, out, _ = command(main, f"runs={tmp_path}")
    assert status == 0
    assert (
        "Over all 30 images, each predicted by the network that was not trained on it, accuracy is 90.00%"
        in " ".join(out.split())
    )
    rows = list(csv.DictReader((tmp_path / "comparison" / "comparison.csv").read_text().splitlines()))
    assert [row["folds"] for row in rows] == ["3"]
    assert float(rows[0]["val/accuracy mean"]) == pytest.approx(0.9)
    stored = read_predictions(tmp_path / "comparison" / "out_of_fold.npz")["all"]
    assert stored.indices.equal(torch.arange(30))
    assert stored.targets.equal(targets)
    (tmp_path / "2" / "results.json").unlink()
    assert command(main, f"runs={tmp_path}")[0] == 0
    assert not (tmp_path / "comparison" / "out_of_fold.npz").exists(), "a fold is missing"


def test_out_of_fold_predictions_are_those_of_the_last_epoch(tmp_path, command):
    targets = torch.arange(20) % 2
    right = torch.nn.functional.one_hot(targets, 2).float()
    for fold in range(2):
        data = {"folds": 2, "fold": fold}
        run = make_run(tmp_path / str(fold), ["data.folds=2", f"data.fold={fold}"], 0, 0.9, data=data)
        indices = torch.arange(fold * 10, fold * 10 + 10)
        last = right[indices]
        last[:fold] = last[:fold].flip(1)
        stored = {"best.val": Predictions(right[indices], targets[indices], indices)}
        if fold:
            stored["last.val"] = Predictions(last, targets[indices], indices)
        write_predictions(run.predictions_file, stored)
        results = json.loads(run.results_file.read_text()) | {"chosen_on_validation": True}
        run.results_file.write_text(json.dumps(results))
    status, out, _ = command(main, f"runs={tmp_path}")
    assert status == 0
    text = " ".join(out.split())
    assert "accuracy is 95.00%" in text
    assert "of the last epoch: the best epoch of each fold, which the table has, was chosen on the same images" in text
    assert read_predictions(tmp_path / "comparison" / "out_of_fold.npz")["all"].correct.sum() == 19


@pytest.mark.parametrize(
    ("option", "data", "repetition"),
    [
        ("data.fold", {"folds": 3}, "fold"),
        ("data.subset_seed", {"subset_fraction": 0.5}, "subset"),
        ("seed", {"folds": 3, "fold": 1}, "seed"),
    ],
)
def test_folds_and_subsets_are_pairs_under_their_own_names(option, data, repetition, tmp_path):
    for rate, accuracies in ((0.1, (0.90, 0.91, 0.92)), (0.2, (0.912, 0.921, 0.933))):
        for number, accuracy in enumerate(accuracies):
            section, _, name = option.rpartition(".")
            settings = {"data": data | {name: number} if section else data, "optimizer": {"lr": rate}}
            overrides = [f"optimizer.lr={rate}", *([f"{option}={number}"] if section else [])]
            make_run(tmp_path / f"{rate}{number}", overrides, 0 if section else number, accuracy, **settings)
    text = conclude(compare(find_runs(str(tmp_path))))
    assert f"3 pairs of equal {repetition}, 95% intervals" in text
    # Differences 1.2, 1.1 and 1.3 points: standard deviation 0.1, t quantile 4.303. Three folds: 1/3 + 1/2 of the
    # variance (Nadeau and Bengio, 2003, with n2 / n1 = 1/2).
    half = 4.3027 * 0.1 * (1 / 3 + 1 / 2 * (repetition == "fold")) ** 0.5
    assert f"1.20 points higher ({1.2 - half:.2f} to {1.2 + half:.2f})" in text


def test_two_folds_are_not_called_seeds(tmp_path):
    for rate, fold in itertools.product((0.1, 0.2), (0, 1)):
        overrides = [f"optimizer.lr={rate}", f"data.fold={fold}"]
        settings = {"data": {"folds": 5, "fold": fold}, "optimizer": {"lr": rate}}
        make_run(tmp_path / f"{rate}{fold}", overrides, 0, 0.9 + rate / 10, **settings)
    assert "2 folds cannot measure the variation over folds" in conclude(compare(find_runs(str(tmp_path))))


def test_sizes_with_equal_steps_have_a_learning_curve(tmp_path, command):
    for fraction in (0.04, 0.16, 0.64):
        for seed in (0, 1):
            error = (55_000 * fraction) ** -0.5 * (1 + 0.1 * seed)
            make_run(
                tmp_path / f"{fraction}_{seed}",
                [f"data.train_fraction={fraction}", "remedy=equal_steps"],
                seed,
                1 - error,
                data={"train_fraction": fraction},
                trainer={"max_epochs": round(2 / fraction), "check_val_every_n_epoch": round(1 / fraction)},
            )
    assert command(main, f"runs={tmp_path}")[0] == 0
    assert "The power law through 3 sizes" in (tmp_path / "comparison" / "comparison.md").read_text()
    # A second length for one size: what differs is no longer the size alone.
    make_run(
        tmp_path / "longer",
        ["data.train_fraction=0.64", "trainer.max_epochs=9"],
        0,
        0.99,
        data={"train_fraction": 0.64},
        trainer={"max_epochs": 9},
    )
    assert command(main, f"runs={tmp_path}")[0] == 0
    assert "power law" not in (tmp_path / "comparison" / "comparison.md").read_text()


def test_settings_that_no_two_runs_differ_in_alone_have_no_plot(tmp_path):
    for number, (model, rate, seed) in enumerate([("small", 0.1, 0), ("tiny", 0.2, 0), ("tiny", 0.4, 0)]):
        overrides = [f"model={model}", f"optimizer.lr={rate}"]
        make_run(tmp_path / str(number), overrides, seed, 0.9, model={"size": model}, optimizer={"lr": rate})
    comparison = compare(find_runs(str(tmp_path)))
    assert comparison.factors == ("model", "optimizer.lr")
    assert [name for name, _ in plot_comparison(comparison)] == ["against_optimizer.lr"]


def test_limits_of_the_number_of_batches_are_a_factor(tmp_path):
    for number, limit in enumerate([1.0, 40]):
        make_run(tmp_path / str(number), [f"model=m{number}"], 0, 0.9, trainer={"limit_train_batches": limit})
    assert compare(find_runs(str(tmp_path))).factors == ("model", "trainer.limit_train_batches")


def test_narrower_comparison_removes_stale_plots(sweep, command):
    assert command(main, f"runs={sweep}")[0] == 0
    folder = sweep.parent / sweep.name / "comparison"
    assert (folder / "learning_curve.png").exists()
    (folder / "mine.png").touch()
    assert command(main, f"runs={sweep}/train_fraction-0.04*", f"out={folder}")[0] == 0
    assert [path.name for path in folder.glob("*.png")] == ["mine.png"]


def test_runs_are_selected_by_folder_glob_or_list(sweep):
    assert len(find_runs(f"{sweep}/*seed-0")) == 3
    assert len(find_runs([f"{sweep}/*seed-0", f"{sweep}/train_fraction-0.04_*"])) == 5
    with pytest.raises(UserError, match=r"no run in .*nowhere"):
        find_runs(f"{sweep}/nowhere")


def test_comparison_without_finished_runs_fails(tmp_path, command):
    make_run(tmp_path / "stopped", [], 0)
    status, _, err = command(main, f"runs={tmp_path}")
    assert status == 1
    assert "stopped (stopped)" in err


def test_models_are_plotted_at_their_number_of_parameters(tmp_path):
    for name, widths in (("tiny", [16]), ("small", [64])):
        for seed in (0, 1):
            model = {"network": {"widths": widths, "depths": widths}}
            run = make_run(tmp_path / f"{name}{seed}", [f"model={name}"], seed, 0.9 + 0.01 * seed, model=model)
            run.results_file.write_text(run.results_file.read_text().replace("1000", str(1000 * widths[0])))
    comparison = compare(find_runs(str(tmp_path)))
    assert comparison.factors == ("model",)
    axes = Figure().subplots()
    plot_gap_against(comparison, "model", axes)
    (line,) = (line for line in axes.lines if line.get_marker() == "o")
    assert list(line.get_xdata()) == [16_000, 64_000]
    assert list(line.get_ydata()) == pytest.approx([5, 5])
    plot_accuracy_against(comparison, "model", axes)


def test_mixed_numbers_and_names_are_categories(tmp_path):
    make_run(tmp_path / "a", ["trainer.gradient_clip_val=1"], 0, 0.9, trainer={"gradient_clip_val": 1})
    make_run(tmp_path / "b", [], 0, 0.91, trainer={})
    comparison = compare(find_runs(str(tmp_path)))
    axes = Figure().subplots()
    plot_gap_against(comparison, "trainer.gradient_clip_val", axes)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "none"]


def test_values_are_those_that_held_and_not_those_typed(tmp_path):
    flip = {"flip": {"_target_": "F"}, "crop": None, "erasing": {"_target_": "E"}}
    for number, (typed, augmentation) in enumerate(
        [(["data.augmentation=null"], None), ([], flip), (["data.augmentation.erasing=null"], {"flip": flip["flip"]})]
    ):
        make_run(tmp_path / str(number), typed, 0, 0.9, data={"augmentation": augmentation}, model={"n": number})
    values = [group.factors["data.augmentation"] for group in compare(find_runs(str(tmp_path))).groups]
    assert sorted(values) == ["flip", "flip+erasing", "none"]


def test_the_conclusion_has_the_interval_of_the_paired_difference(tmp_path, command):
    for mixing, accuracies in ((None, (0.90, 0.91, 0.92)), ("CutMix", (0.912, 0.921, 0.933))):
        for seed, accuracy in enumerate(accuracies):
            section = mixing and {"_target_": f"fashion_cnn.models.{mixing}"}
            run = make_run(tmp_path / f"{mixing}{seed}", [f"mixing={mixing or 'null'}"], seed, accuracy, mixing=section)
            verdict = "overfitting" if mixing is None or not seed else "fits well"
            results = json.loads(run.results_file.read_text()) | {"verdict": verdict}
            results["gap/accuracy"] = 0.05 if mixing is None else 0.03 + 0.03 * (seed - 1)
            run.results_file.write_text(json.dumps(results))
    comparison = compare(find_runs(str(tmp_path)))
    assert [group.verdict for group in comparison.groups] == ["fits well 2, overfitting 1", "overfitting"]
    # Differences 1.2, 1.1 and 1.3 points: mean 1.2, standard deviation 0.1, t quantile 4.303.
    text = conclude(comparison)
    assert text == (
        "mixing=CutMix has the highest validation accuracy. With mixing=CutMix instead of mixing=none, the gap is not "
        "seen to differ (-2.00 points, -9.45 to +5.45), and validation accuracy is 1.20 points higher (0.95 to 1.45); "
        "3 pairs of equal seed, 95% intervals."
    )
    status, out, _ = command(main, f"runs={tmp_path}", f"out={tmp_path / 'out'}")
    assert status == 0
    assert text in out
    assert "fits well 2" in (tmp_path / "out" / "comparison.md").read_text()


def test_one_seed_is_no_evidence(tmp_path):
    for rate, accuracy in ((0.1, 0.9), (0.2, 0.93), (0.3, 0.91)):
        make_run(tmp_path / str(rate), [f"optimizer.lr={rate}"], 0, accuracy, optimizer={"lr": rate})
    comparison = compare(find_runs(str(tmp_path)))
    text = conclude(comparison)
    assert text.startswith("optimizer.lr=0.2 has the highest validation accuracy. With optimizer.lr=0.2 instead of ")
    assert "accuracy is 2.00 points higher. One seed cannot measure the variation over seeds" in text
    assert "such a difference up to 0.4 points" in text
    axes = Figure().subplots()
    plot_gap_against(comparison, "optimizer.lr", axes)
    assert not axes.collections, "no error bars"


def test_each_remedy_is_compared_with_no_change(tmp_path):
    for remedy, gain in (("none", 0.0), ("cutmix", 0.01), ("longer", 0.0)):
        for seed in range(3):
            accuracy = 0.9 + seed / 100 + gain + (seed - 1) / 1000 * (remedy != "none")
            make_run(tmp_path / f"{remedy}{seed}", [f"remedy={remedy}"], seed, accuracy, model={"n": remedy})
    sentences = conclude(compare(find_runs(str(tmp_path)))).split("intervals. ")
    assert sentences[0].startswith("With remedy=cutmix instead of remedy=none, the gap is")
    assert "validation accuracy is 1.00 points higher (0.75 to 1.25); 3 pairs" in sentences[0]
    assert sentences[1].startswith("With remedy=longer instead of remedy=none")
    assert "validation accuracy is not seen to differ" in sentences[1]


def test_two_seeds_give_no_interval(tmp_path):
    for rate in (0.1, 0.2):
        for seed in (0, 1):
            run = make_run(
                tmp_path / f"{rate}{seed}", [f"optimizer.lr={rate}"], seed, 0.9 + rate / 10, optimizer={"lr": rate}
            )
            assert run.results_file.exists()
    text = conclude(compare(find_runs(str(tmp_path))))
    assert "accuracy is 1.00 points higher. 2 seeds cannot measure" in text


def test_noise_over_seeds_is_that_of_the_runs_where_it_exceeds_that_of_the_long_trainings(tmp_path):
    for rate, accuracies in ((0.1, (0.85, 0.95)), (0.2, (0.90, 0.90))):
        for seed, accuracy in enumerate(accuracies):
            make_run(tmp_path / f"{rate}{seed}", [f"optimizer.lr={rate}"], seed, accuracy, optimizer={"lr": rate})
    # Variances 0.005 and 0: pooled standard deviation 0.05, t quantile of two degrees of freedom 4.303.
    text = conclude(compare(find_runs(str(tmp_path))))
    assert "such a difference up to 21.5 points" in text
    assert "these runs have a standard deviation of 5.00 points over their seeds" in text


def test_noise_over_seeds_is_stated_once_for_all_remedies(tmp_path):
    for remedy, gain in (("none", 0.0), ("cutmix", 0.01), ("longer", 0.0)):
        for seed in range(2):
            make_run(tmp_path / f"{remedy}{seed}", [f"remedy={remedy}"], seed, 0.9 + gain, model={"n": remedy})
    text = conclude(compare(find_runs(str(tmp_path))))
    assert text.count("cannot measure the variation over seeds") == 1
    assert "experiment=tiny have one of 0.16" in text


def test_conclusion_names_the_settings_that_both_groups_share(tmp_path):
    for rate, fraction, accuracy in ((0.1, 0.5, 0.8), (0.2, 0.5, 0.9), (0.1, 0.25, 0.6), (0.2, 0.25, 0.7)):
        overrides = [f"optimizer.lr={rate}", f"data.train_fraction={fraction}"]
        settings = {"optimizer": {"lr": rate}, "data": {"train_fraction": fraction}}
        make_run(tmp_path / f"{rate}{fraction}", overrides, 0, accuracy, **settings)
    text = conclude(compare(find_runs(str(tmp_path))))
    assert "With optimizer.lr=0.2 instead of optimizer.lr=0.1, at data.train_fraction=0.5, the gap is" in text


def test_the_model_of_an_experiment_is_the_one_that_it_uses(tmp_path):
    small = OmegaConf.load(CONFIG_DIR / "model" / "small.yaml").network
    small.dropout = 0.3
    tiny = OmegaConf.load(CONFIG_DIR / "model" / "tiny.yaml").network
    make_run(tmp_path / "a", ["experiment=regularised"], 0, 0.9, model={"network": small}, optimizer={"lr": 0.1})
    make_run(tmp_path / "b", ["model=tiny", "optimizer.lr=0.2"], 0, 0.9, model={"network": tiny}, optimizer={"lr": 0.2})
    own = {"_target_": "elsewhere.Network", "width": 3}
    make_run(tmp_path / "c", ["experiment=mine"], 0, 0.9, model={"network": own}, optimizer={"lr": 0.3})
    comparison = compare(find_runs(str(tmp_path)))
    assert sorted(group.factors["model"] for group in comparison.groups) == ["Network", "small", "tiny"]


def test_different_validation_sets_are_noted(tmp_path, command):
    for number, data in enumerate(({"val_size": 500}, {"val_size": 1000, "split_seed": 1})):
        make_run(tmp_path / str(number), [f"data.val_size={data['val_size']}"], 0, 0.9, data=data)
    status, out, _ = command(main, f"runs={tmp_path}")
    note = "The validation sets differ (data.val_size: 1000, 500; data.split_seed: 0, 1)"
    assert status == 0
    assert note in " ".join(out.split())
    assert note in (tmp_path / "comparison" / "comparison.md").read_text()


def test_runs_whose_evaluation_lags_are_noted(tmp_path, command):
    for number, rate in enumerate((0.1, 0.2, 0.3)):
        run = make_run(tmp_path / str(rate), [f"optimizer.lr={rate}"], 0, 0.9, optimizer={"lr": rate})
        if number < 2:
            results = json.loads(run.results_file.read_text()) | {"evaluation_lag": 0.1}
            run.results_file.write_text(json.dumps(results))
    _, out, _ = command(main, f"runs={tmp_path}")
    note = "Evaluation lags behind the training in 2 of 3 runs"
    assert note in " ".join(out.split())
    assert note in (tmp_path / "comparison" / "comparison.md").read_text()
    assert "~callbacks.ema" in out


def test_no_change_is_the_first_category_of_the_remedies(tmp_path):
    for remedy in ("cutmix", "none", "longer"):
        make_run(tmp_path / remedy, [f"remedy={remedy}"], 0, 0.9, model={"n": remedy})
    axes = Figure().subplots()
    plot_gap_against(compare(find_runs(str(tmp_path))), "remedy", axes)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["none", "cutmix", "longer"]


def test_the_report_lists_the_baseline_first_with_paired_gains_and_without_empty_columns(tmp_path, command):
    for remedy, gain in (("cutmix", 0.01), ("none", 0.0), ("longer", 0.0)):
        for seed in range(3):
            accuracy = 0.9 + seed / 100 + gain + (seed - 1) / 1000 * (remedy != "none")
            make_run(tmp_path / f"{remedy}{seed}", [f"remedy={remedy}"], seed, accuracy, model={"n": remedy})
    assert command(main, f"runs={tmp_path}")[0] == 0
    lines = (tmp_path / "comparison" / "comparison.md").read_text().splitlines()
    assert sum(line.startswith("- With remedy=") for line in lines) == 2
    headings, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("|")]
    assert headings[:3] == ["remedy", "validation gain against none, points (95%)", "seeds"]
    # Differences 0.9, 1.0 and 1.1 points: standard deviation 0.1, t quantile 4.303.
    assert [row[:2] for row in rows] == [
        ["none", ""],
        ["cutmix", "+1.00 (+0.75 to +1.25)"],
        ["longer", "+0.00 (-0.25 to +0.25)"],
    ]
    assert not any(heading.startswith(("test", "train loss")) for heading in headings), "no run has them"


def test_differences_leave_out_the_optimism_of_choosing_the_epoch(tmp_path, command):
    for remedy, optimism in (("none", 0.001), ("longer", 0.004)):
        for seed in range(3):
            run = make_run(tmp_path / f"{remedy}{seed}", [f"remedy={remedy}"], seed, 0.9, model={"n": remedy})
            stored = json.loads(run.results_file.read_text())
            run.results_file.write_text(json.dumps(stored | {"gap_best/accuracy": 0.05 + optimism}))
    _, out, _ = command(main, f"runs={tmp_path}")
    text = " ".join(out.split())
    assert "the gap is 0.30 points larger (0.30 to 0.30), and validation accuracy is 0.30 points lower" in text
    assert "(both corrected for the choice of the best epoch); 3 pairs of equal seed" in text
    assert "-0.30 (-0.30 to -0.30)" in (tmp_path / "comparison" / "comparison.md").read_text()


def test_validation_has_an_axis_of_its_own_with_a_point_for_each_seed(tmp_path):
    for remedy, accuracies in (("none", (0.90, 0.91)), ("cutmix", (0.92, 0.93))):
        for seed, accuracy in enumerate(accuracies):
            make_run(tmp_path / f"{remedy}{seed}", [f"remedy={remedy}"], seed, accuracy, model={"n": remedy})
    ((_, figure),) = plot_comparison(compare(find_runs(str(tmp_path))))
    left, right = figure.axes
    assert (left.get_title(), right.get_title()) == ("Validation accuracy", "Accuracy gap")
    low, high = left.get_ylim()
    assert low > 89
    assert high < 94, "training accuracy is 5 points higher"
    points = left.collections[-1].get_offsets()
    assert points[:, 1].tolist() == pytest.approx([90, 91, 92, 93])


def test_error_bars_of_lines_at_the_same_number_are_side_by_side(tmp_path):
    for rate, fraction, seed in itertools.product((0.1, 0.2), (0.25, 0.5), (0, 1)):
        overrides = [f"optimizer.lr={rate}", f"data.train_fraction={fraction}"]
        settings = {"optimizer": {"lr": rate}, "data": {"train_fraction": fraction}}
        make_run(tmp_path / f"{rate}{fraction}{seed}", overrides, seed, 0.9, **settings)
    comparison = compare(find_runs(str(tmp_path)))
    axes = Figure().subplots()
    plot_gap_against(comparison, "data.train_fraction", axes)
    first, second = (line.get_xdata() for line in axes.lines if line.get_marker() in "os")
    assert (np.abs(first - second) > 0).all()
    assert list(first) == pytest.approx([0.25, 0.5], abs=0.01)


def test_figures_of_a_comparison_name_the_sweep(tmp_path, command, monkeypatch):
    folder = tmp_path / "sweep" / "2026-11-29_17-23-48-06985c"
    for fraction in (0.1, 0.2):
        data = {"train_fraction": fraction}
        make_run(folder / str(fraction), [f"data.train_fraction={fraction}"], 0, 1 - fraction / 2, data=data)
    titles = {}

    def save(figure, path):
        titles[path.stem] = figure.get_suptitle()
        save_figure(figure, path)

    monkeypatch.setattr(comparison_report, "save_figure", save)
    assert command(main, f"runs={folder}")[0] == 0
    assert set(titles) == {"against_data.train_fraction", "learning_curve"}
    assert all(title.endswith("\nsweep/2026-11-29_17-23-48-06985c") for title in titles.values())


def test_learning_curve_is_drawn_in_percent_with_several_ticks_and_says_that_one_seed_has_no_interval():
    curve = fit_learning_curve([300, 600, 1200, 2400], [[0.31], [0.25], [0.21], [0.185]])
    figure = plot_learning_curve(curve)
    (axes,) = figure.axes
    figure.draw_without_rendering()
    low, high = axes.get_ylim()
    ticks = [label.get_text() for label in axes.get_yticklabels() if label.get_text()]
    assert sum(low <= float(tick) <= high for tick in ticks) >= 4
    assert "one seed: no interval" in axes.get_title()
    label = axes.get_legend().get_texts()[0].get_text()
    assert float(label.split(" · ")[0]) == pytest.approx(curve.law.scale * 100, rel=1e-3)
    assert "no interval" in describe_learning_curve(curve)


def test_paired_interval_is_that_of_students_t():
    interval = paired_interval([0.012, 0.011, 0.013])
    assert (interval.low, interval.high) == pytest.approx((0.012 - 0.0024842, 0.012 + 0.0024842), abs=1e-6)
    many = paired_interval([0.0, 1.0] * 50)
    assert (many.low, many.high) == pytest.approx((0.40029, 0.59971), abs=1e-4)


def test_newest_run_of_a_seed_counts_and_init_from_makes_another_group(tmp_path):
    for name, seed, accuracy in (("old", 0, 0.8), ("new", 0, 0.9), ("other", 1, 0.92)):
        run = make_run(tmp_path / name, [], seed, accuracy)
        os.utime(run.config_file, (len(name), {"old": 1, "new": 2, "other": 3}[name]))
    make_run(tmp_path / "warm", ["init_from=x"], 0, 0.99, init_from="x")
    first, second = compare(find_runs(f"{tmp_path}/**")).groups
    assert sorted([first.values("val/accuracy"), second.values("val/accuracy")]) == [(0.9, 0.92), (0.99,)]
    assert len(find_runs([str(tmp_path), f"{tmp_path}/**"])) == 4


def test_a_list_in_place_of_a_section_is_compared(tmp_path):
    make_run(tmp_path / "list", [], 0, 0.9, optimizer={"betas": [0.9, 0.99]})
    make_run(tmp_path / "section", [], 0, 0.9, optimizer={"betas": {"a": {"b": 1}}})
    assert len(compare(find_runs(str(tmp_path))).groups) == 2


def test_options_that_do_not_affect_training_are_ignored(tmp_path):
    for seed, overrides in enumerate([["test=false"], ["callbacks=essential"], ["data.root=/elsewhere"], []]):
        make_run(tmp_path / str(seed), overrides, seed, 0.9)
    (group,) = compare(find_runs(str(tmp_path))).groups
    assert len(group.results) == 4


def test_selection_of_the_best_epoch_is_a_factor(tmp_path):
    for monitor in ("val/accuracy", "val/loss"):
        for seed, filename in enumerate(("best", "weights")):
            best = {"_target_": "X", "monitor": monitor, "filename": filename, "enable_version_counter": bool(seed)}
            overrides = [f"callbacks.best.monitor={monitor}", f"callbacks.best.filename={filename}"]
            make_run(tmp_path / f"{monitor[4:]}{seed}", overrides, seed, 0.9, callbacks={"best": best})
    comparison = compare(find_runs(str(tmp_path)))
    assert comparison.factors == ("callbacks.best.monitor",)
    assert [len(group.results) for group in comparison.groups] == [2, 2]


def test_settings_without_an_override_are_factors_too(tmp_path):
    for rate in (0.1, 0.2):
        make_run(tmp_path / str(rate), [], 0, 0.9, optimizer={"lr": rate})
    comparison = compare(find_runs(str(tmp_path)))
    assert comparison.factors == ("optimizer.lr",)
    assert [group.factors["optimizer.lr"] for group in comparison.groups] == [0.1, 0.2]


@pytest.mark.parametrize(("floor", "sizes"), [(0.0, [100, 1000, 10000]), (0.04, [100, 300, 1000, 3000, 10000])])
def test_power_law_is_recovered(floor, sizes):
    sizes = np.array(sizes, dtype=float)
    law = fit_power_law(sizes, 2.0 * sizes**-0.4 + floor)
    assert (law.scale, law.exponent, law.floor) == pytest.approx((2.0, 0.4, floor), rel=0.1, abs=2e-3)


def test_learning_curve_extrapolates_with_an_interval_over_seeds():
    sizes = [1000, 4000, 16000]
    errors = [[0.9 * size**-0.5, size**-0.5, 1.1 * size**-0.5] for size in sizes]
    curve = fit_learning_curve(sizes, errors)
    beyond = np.array([160_000.0])
    low, high = curve.interval(beyond)
    assert low[0] < beyond[0] ** -0.5 < high[0]
    assert curve.law(beyond)[0] == pytest.approx(0.0025, rel=0.01)
    assert fit_learning_curve(sizes, [[0.1], [0.05], [0.025]]).interval(beyond) is None


def test_learning_curve_has_a_finite_interval_if_one_size_has_no_errors():
    curve = fit_learning_curve([100, 200, 400], [[0.10, 0.12], [0.05, 0.06], [0.0, 0.0]])
    text = describe_learning_curve(curve)
    assert "nan" not in text
    assert np.isfinite(curve.interval(np.array([800.0]))).all()
    assert fit_learning_curve([100, 200], [[0.0, 0.0], [0.0, 0.0]]).interval(np.array([800.0])) is None


def test_learning_curve_interval_covers_the_truth_with_few_seeds():
    sizes, beyond, random, covered = [1000, 4000, 16000], np.array([16000.0]), np.random.default_rng(1), 0
    for _ in range(60):
        errors = [size**-0.5 * (1 + 0.03 * random.standard_normal(3)) for size in sizes]
        low, high = fit_learning_curve(sizes, errors).interval(beyond)
        covered += low[0] <= beyond[0] ** -0.5 <= high[0]
    assert covered >= 53  # 57 are expected; a bootstrap of the three seeds covers 49


@pytest.mark.slow
def test_plots_of_many_groups_stay_readable(tmp_path):
    rates = (0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.17, 0.18, 0.2)
    for number in range(36):
        settings = {
            "optimizer": {"lr": rates[number % 9], "weight_decay": 0.1 * (number // 9 % 2)},
            "model": {"network": {"widths": [16 * (number // 18 + 1), 32, 48, 64, 96, 128, 192, 256, 384, 512]}},
        }
        make_run(tmp_path / str(number), [], 0, 0.9, **settings)
    plots = dict(plot_comparison(compare(find_runs(str(tmp_path)))))
    plots |= dict(plot_comparison(compare(find_runs([f"{tmp_path}/{number}" for number in range(9)]))))
    assert any(legend.get_texts() for figure in plots.values() for legend in figure.legends)
    for name, figure in plots.items():
        figure.savefig(tmp_path / f"{name}.png", dpi=50)  # A warning here is an error.
        for axes in figure.axes:
            box = axes.get_window_extent()
            assert box.width > 0.3 * figure.bbox.width, name
            assert box.height > 0.4 * figure.bbox.height, name
            labels = [label.get_window_extent() for label in axes.get_xticklabels() if label.get_text()]
            assert all(left.x0 < right.x0 for left, right in itertools.pairwise(labels))
        legend = [text for legend in figure.legends for text in legend.get_texts()]
        assert len(legend) <= 12
        assert len({text.get_text() for text in legend}) == len(legend)
        extents = [text.get_window_extent() for text in legend]
        assert all(extent.y1 < min(axes.get_window_extent().y0 for axes in figure.axes) for extent in extents)
        assert all(extent.x0 >= 0 and extent.x1 <= figure.bbox.width for extent in extents)


def test_data_seed_is_a_factor_only_if_it_differs_from_the_run_seed(tmp_path):
    for seed in (0, 1):
        make_run(tmp_path / f"own-{seed}", [], seed, 0.9, data={"seed": seed})
    for order in (5, 6):
        make_run(tmp_path / f"order-{order}", [f"data.seed={order}"], 0, 0.9, data={"seed": order})
    comparison = compare(find_runs(str(tmp_path)))
    assert sorted(len(group.results) for group in comparison.groups) == [1, 1, 2]


def test_runs_that_start_from_different_runs_are_one_group(tmp_path):
    for seed in (0, 1):
        make_run(tmp_path / str(seed), ["init_from=latest"], seed, accuracy=0.9, init_from=f"runs/start-{seed}")
    make_run(tmp_path / "new", [], 0, accuracy=0.8)
    comparison = compare(find_runs(str(tmp_path)))
    assert [len(group.results) for group in comparison.groups] == [2, 1]


def test_tensorboard_has_bands_over_seeds_with_numpys_mean_and_standard_deviation(tmp_path):
    accuracies = np.array([[0.71, 0.83, 0.86], [0.69, 0.8, 0.9]])
    runs = []
    for seed, values in enumerate(accuracies):
        run = make_run(tmp_path / f"seed-{seed}", ["model=tiny"], seed, values[-1])
        # The second epoch of the second run was not validated.
        rows = [f"{epoch},{epoch},{value if (seed, epoch) != (1, 1) else ''}" for epoch, value in enumerate(values)]
        run.metrics_file.write_text("\n".join(["epoch,step,val/accuracy", *rows]) + "\n")
        runs.append(run)
    folder = tmp_path / "comparison"
    stale = folder / "bands" / "other" / "events.out.tfevents.1"
    stale.parent.mkdir(parents=True)
    stale.touch()
    comparison_report.write_comparison(compare(runs), folder)
    assert not stale.exists()
    events = EventAccumulator(str(folder / "bands" / "all runs")).Reload()
    kept = accuracies[:, [0, 2]]
    mean, deviation = kept.mean(axis=0), kept.std(axis=0, ddof=1)
    for bound, expected in (("", mean), ("_low", mean - deviation), ("_high", mean + deviation)):
        points = events.Scalars(f"over_runs/val/accuracy{bound}")
        assert [point.step for point in points] == [1, 3]
        # TensorBoard stores single precision.
        assert [point.value for point in points] == expected.astype(np.float32).tolist()
    layout = EventAccumulator(str(folder)).Reload().Tags()["tensors"]
    assert "custom_scalars__config__" in layout
