"""Evaluation of trained networks from their run directories."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from conftest import TINY_DATA, file_size_limit
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image
from torchmetrics.functional.classification import multiclass_f1_score

from fashion_cnn.analysis.report import run_title
from fashion_cnn.cli.main import compose
from fashion_cnn.data.batches import fingerprint
from fashion_cnn.evaluate import main
from fashion_cnn.evaluation.corruptions import CORRUPTIONS
from fashion_cnn.evaluation.evaluate import evaluate_runs, evaluation_record
from fashion_cnn.inference.network import read_checkpoint
from fashion_cnn.metrics.classification import (
    classification_metrics,
    metrics_by_class,
    selective_accuracy,
    top_k_accuracy,
)
from fashion_cnn.metrics.predictions import Predictions
from fashion_cnn.predict import main as predict_main
from fashion_cnn.runs import Run
from fashion_cnn.train import train
from fashion_cnn.training.session import quieten_lightning

# Six images of three classes, of which the first four are predicted correctly.
PREDICTIONS = Predictions(
    logits=torch.tensor(
        [[4.0, 0, 0], [0, 3.0, 0], [2.0, 0, 1], [0, 0, 1.0], [0, 0.5, 0.1], [0.2, 0, 0.1]],
    ),
    targets=torch.tensor([0, 1, 0, 2, 2, 1]),
    indices=torch.arange(6),
)


def test_precision_and_recall_by_class():
    first, second, third = metrics_by_class(PREDICTIONS, ["a", "b", "c"])
    assert (first.precision.estimate, first.recall.estimate, first.images) == (pytest.approx(2 / 3), 1.0, 2)
    assert (second.precision.estimate, second.recall.estimate) == (0.5, 0.5)
    assert (third.precision.estimate, third.recall.estimate, third.f1) == (1.0, 0.5, pytest.approx(2 / 3))
    assert second.recall.low < 0.5 < second.recall.high


def test_a_class_without_images_has_no_precision_and_recall():
    predictions = Predictions(torch.tensor([[1.0, 0, 0]]), torch.tensor([0]), torch.tensor([0]))
    _, second, _ = metrics_by_class(predictions, ["a", "b", "c"])
    assert second.precision is second.recall is None
    assert second.f1 == 0


def test_top_2_accuracy_counts_the_second_class():
    assert top_k_accuracy(PREDICTIONS, 1) == pytest.approx(4 / 6)
    assert top_k_accuracy(PREDICTIONS, 2) == pytest.approx(5 / 6)
    assert top_k_accuracy(PREDICTIONS, 9) == 1


def test_selective_accuracy_starts_with_the_most_confident_images():
    expected = [1, 1, 1, 1, 4 / 5, 4 / 6]
    assert selective_accuracy(PREDICTIONS).tolist() == pytest.approx(expected)
    figures = classification_metrics(PREDICTIONS, ["a", "b", "c"]).to_dict()
    assert figures["selective_accuracy"]["0.5"] == 1
    assert figures["macro_f1"] == pytest.approx((0.8 + 0.5 + 2 / 3) / 3)
    assert sum(map(sum, figures["confusion"])) == 6


def test_macro_f1_leaves_out_classes_without_images_and_predictions():
    logits = torch.nn.functional.one_hot(torch.tensor([0, 0, 1, 3]), 5).float()
    predictions = Predictions(logits, torch.tensor([0, 1, 1, 1]), torch.arange(4))
    # Class 3 has a prediction and no image; 2 and 4 have neither.
    expected = multiclass_f1_score(logits, predictions.targets, num_classes=5, average="macro").item()
    assert expected == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    assert classification_metrics(predictions, list("abcde")).to_dict()["macro_f1"] == pytest.approx(expected)


def test_the_fingerprint_depends_on_images_and_labels():
    images, targets = torch.randint(0, 256, (6, 1, 4, 4), dtype=torch.uint8), torch.arange(6)
    first = fingerprint(images, targets)
    assert fingerprint(images.clone(), targets.clone()) == first
    assert len({first, fingerprint(images + 1, targets), fingerprint(images, targets + 1)}) == 3


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Runs by name: two seeds, another architecture, and one without validation images."""
    folder = tmp_path_factory.mktemp("runs")
    settings = [*TINY_DATA, "callbacks=essential", f"runs_dir='{folder}'"]
    metrics = "metrics=classification"
    changes = {
        "first": [metrics],
        "second": [metrics, "seed=1"],
        "wider": ["model.network.stem=[16]"],
        "all": ["data.val_size=0"],
    }
    return {
        name: Run(Path(train(compose(overrides=[*settings, *overrides, f"name={name}"]))["run"]))
        for name, overrides in changes.items()
    }


def evaluation_json(command, run, *arguments):
    status, out, err = command(main, f"run={run.path}", "format=json", *arguments)
    assert (status, err) == (0, "")
    return json.loads(out)


@pytest.mark.parametrize("split", ["test", "val"])
def test_metrics_equal_those_of_the_training(command, trained, split):
    run = trained["first"]
    # Another test evaluates the robustness of this run, too.
    shutil.rmtree(run.evaluation, ignore_errors=True)
    record, results = evaluation_json(command, run, f"split={split}"), run.results()
    assert list(record["metrics"]) == ["f1", "top2_accuracy"]
    for name in ("accuracy", "loss", "f1", "top2_accuracy"):
        assert (record | record["metrics"])[name] == results[f"{split}/{name}"]
        assert record["flip"][name] == results[f"{split}_flip/{name}"]
    assert record["accuracy"] == pytest.approx(
        sum(row[k] for k, row in enumerate(record["confusion"])) / record["images"]
    )
    # The temperature is fitted on other images than the evaluated ones.
    assert (record["calibrated"] or {}).get("temperature", 0) > 0 if split == "test" else record["calibrated"] is None
    assert record["weights_sha256"] == [results["weights_sha256"]]
    written = {file.name for file in (run.evaluation / split).iterdir()}
    assert written == {"evaluation.json", "confusion.png", "classes.png", "selective.png", "reliability.png"}


@pytest.mark.training
def test_no_flip_averaged_metrics_for_a_network_that_saw_no_mirrored_images(command, trained, tmp_path):
    other = shutil.copytree(trained["first"].path, tmp_path / "other")
    config = OmegaConf.load(other / "config.yaml")
    config.data.augmentation.flip = None
    OmegaConf.save(config, other / "config.yaml")
    assert evaluation_json(command, Run(other))["flip"] is None
    status, out, err = command(main, f"run={other}")
    assert (status, err) == (0, "")
    assert "flip-averaged" not in out
    assert evaluation_json(command, Run(other), f"run=[{other},{trained['second'].path}]")["flip"] is None
    config.flip_average = True  # as runs of older versions have it
    OmegaConf.save(config, other / "config.yaml")
    assert evaluation_json(command, Run(other))["flip"]["accuracy"] == trained["first"].results()["test_flip/accuracy"]


@pytest.mark.training
def test_the_record_names_the_hardware_and_precision_of_the_evaluation(trained, monkeypatch):
    config = trained["first"].config()
    config.trainer.precision = "16-mixed"
    monkeypatch.setattr(Run, "config", lambda run: config)
    quieten_lightning()
    evaluation = evaluate_runs([trained["first"]], "test")
    assert evaluation.title == run_title(trained["first"], trained["first"].results()), "as figures of the training"
    # A GPU that the run does not use.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    record = evaluation_record([trained["first"]], evaluation)
    assert record["hardware"].startswith("CPU, ")
    assert record["precision"] == "bf16-mixed", "Lightning's choice on a CPU"
    embeddings = evaluation.network.features(evaluation.images[:2])
    assert torch.equal(embeddings, embeddings.bfloat16().float()), "computed in bfloat16"


def test_metrics_are_written_before_the_plots(command, trained, tmp_path, monkeypatch):
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda *_, **__: (_ for _ in ()).throw(MemoryError))
    with pytest.raises(MemoryError):
        command(main, f"run={trained['first'].path}", f"out={tmp_path}")
    assert json.loads((tmp_path / "evaluation.json").read_text())["accuracy"] > 0


@pytest.mark.parametrize("size", [0, 5000])
def test_a_full_disk_ends_the_evaluation_in_one_message(command, trained, tmp_path, size):
    with file_size_limit(size):
        status, _, err = command(main, f"run={trained['first'].path}", f"out={tmp_path}")
    assert (status, err.count("\n")) == (1, 1)
    name = "evaluation.json" if size == 0 else "confusion.png"
    assert f"error: {tmp_path / name} cannot be used (file too large)" in err
    assert not list(tmp_path.glob(".*")), "no partial file"
    assert not (tmp_path / name).exists()
    assert command(main, f"run={trained['first'].path}", f"out={tmp_path}")[0] == 0


def test_a_copied_run_gives_the_same_metrics(command, trained, tmp_path):
    copy = Run(shutil.copytree(trained["first"].path, tmp_path / "elsewhere, (1)"))
    assert evaluation_json(command, copy)["loss"] == trained["first"].results()["test/loss"]
    assert (copy.evaluation / "test" / "evaluation.json").exists()


@pytest.mark.parametrize("other", ["second", "wider"])
def test_a_checkpoint_of_another_run_is_rejected(command, trained, tmp_path, other):
    copy = Run(shutil.copytree(trained["first"].path, tmp_path / "run"))
    shutil.copy(trained[other].best_checkpoint, copy.best_checkpoint)
    status, _, err = command(main, f"run={copy.path}")
    assert status == 1
    assert "best.ckpt does not belong to" in err
    assert err.count("\n") == 1


def test_an_incomplete_copy_of_a_run_is_rejected(command, trained, tmp_path):
    copy = Run(shutil.copytree(trained["first"].path, tmp_path / "run"))
    last = read_checkpoint(copy.last_checkpoint)
    last["state_dict"]["network.classifier.bias"] += 1.0
    torch.save(last, copy.last_checkpoint)
    copy.best_checkpoint.unlink()
    pictures = tmp_path / "picture.png"
    Image.new("L", (8, 8)).save(pictures)
    commands = (main,), (predict_main, f"images={pictures}")
    for module, *arguments in commands:
        status, _, err = command(module, f"run={copy.path}", *arguments)
        assert status == 1
        assert "best.ckpt is missing: copy the run whole" in err
    shutil.rmtree(copy.checkpoints)
    for module, *arguments in commands:
        status, _, err = command(module, f"run={copy.path}", *arguments)
        assert status == 1
        assert "checkpoints holds no checkpoint: the run was not copied whole" in err


def test_an_unfinished_run_is_rejected(command, trained, tmp_path):
    copy = Run(shutil.copytree(trained["first"].path, tmp_path / "run"))
    copy.results_file.unlink()
    status, _, err = command(main, f"run={copy.path}")
    assert status == 1
    assert "is not finished (stopped)" in err


@pytest.mark.training
def test_several_runs_are_evaluated_as_an_ensemble(command, trained, tmp_path):
    paths = f"[{trained['first'].path},{trained['second'].path}]"
    status, out, err = command(main, f"run={paths}", f"out={tmp_path / 'both'}")
    assert (status, err) == (0, "")
    assert "Ensemble of 2 networks" in out
    assert re.search(r"│ f1 +│ +[01]\.\d{4} │\n│ f1, flip-averaged +│ +[01]\.\d{4} │", out)
    ensemble = json.loads((tmp_path / "both" / "evaluation.json").read_text())
    single = [evaluation_json(command, trained[name])["loss"] for name in ("first", "second")]
    # The cross-entropy of averaged logits is at most the average of the cross-entropies.
    assert ensemble["loss"] <= sum(single) / 2 + 1e-3
    assert ensemble["loss"] not in single
    assert evaluation_json(command, trained["first"], f"run=[{trained['first'].path},{trained['first'].path}]")[
        "loss"
    ] == pytest.approx(single[0], abs=1e-4)


def trained_on(folder, runs_dir, name, *overrides):
    """Train an epoch on the pictures in a folder, and return the path of the run."""
    network = [word for word in TINY_DATA if word.startswith(("model", "trainer"))]
    data = ["data=image_folder", f"data.root='{folder}'", "data.mean=[0.4]", "data.std=[0.2]", "data.channels=1"]
    settings = [*data, *network, "data.batch_size=4", "callbacks=essential", "trainer.max_epochs=1", *overrides]
    return train(compose(overrides=[*settings, f"name={name}", f"runs_dir='{runs_dir}'"]))["run"]


def test_runs_with_different_test_sets_are_not_averaged(command, picture_folder, tmp_path):
    first, second = (
        trained_on(picture_folder, tmp_path, f"split-{seed}", "data.test_share=0.3", f"data.split_seed={seed}")
        for seed in (0, 1)
    )
    status, _, err = command(main, f"run=[{first},{second}]", "format=json")
    assert status == 1
    assert f"{second} has other test images than {first}, and may have trained on those" in err
    assert err.count("\n") == 1


@pytest.mark.training
def test_an_ensemble_is_calibrated_only_on_shared_validation_images(command, picture_folder, tmp_path):
    for name in ("dark", "light"):
        for split, numbers in (("test", range(3)), ("train", range(3, 8))):
            (picture_folder / split / name).mkdir(parents=True)
            for number in numbers:
                (picture_folder / name / f"{number}.png").rename(picture_folder / split / name / f"{number}.png")
        (picture_folder / name).rmdir()
    first, second, again = (
        trained_on(picture_folder, tmp_path, name, "data.val_share=0.4", f"data.split_seed={seed}")
        for name, seed in (("first", 0), ("second", 1), ("again", 0))
    )
    status, out, err = command(main, f"run=[{first},{second}]", "format=json")
    assert (status, err) == (0, "")
    assert json.loads(out)["calibrated"] is None, "the second trained on validation images of the first"
    assert json.loads(command(main, f"run=[{first},{again}]", "format=json")[1])["calibrated"] is not None
    status, _, err = command(main, f"run=[{first},{second}]", "split=val")
    assert status == 1
    assert "other val images" in err


@pytest.mark.slow
def test_a_run_without_test_set_can_be_evaluated_on_validation(command, picture_folder, tmp_path):
    run = trained_on(picture_folder, tmp_path, "no-test", "data.test_share=0", "data.val_share=0.4")
    status, _, err = command(main, f"run={run}")
    assert status == 1
    assert "has no test set (data.test_share=0): use split=val." in err
    assert command(main, f"run={run}", "split=val")[0] == 0
    run = trained_on(picture_folder, tmp_path, "neither", "data.test_share=0", "data.val_share=0")
    status, _, err = command(main, f"run={run}")
    assert (status, "it cannot be evaluated" in err) == (1, True)


def test_without_validation_set_there_is_no_temperature(command, trained):
    assert evaluation_json(command, trained["all"])["calibrated"] is None
    status, _, err = command(main, f"run={trained['all'].path}", "split=val")
    assert status == 1
    assert "has no validation set" in err


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("split=train", "split=train is not possible: choose test, val"),
        ("format=xml", "choose table, json"),
        ("run=nowhere", "nowhere does not exist"),
        ("run=[]", "names no run"),
        ("run=null", "run=null names no run"),
        ("baseline=x", "needs robustness=true"),
        ("sp=1", "unknown option 'sp'"),
    ],
)
def test_invalid_options_are_reported_in_one_message(command, trained, monkeypatch, argument, message):
    monkeypatch.chdir(trained["first"].path.parent.parent)
    status, _, err = command(main, "runs_dir=.", argument)
    assert status in (1, 2)
    assert message in err
    assert "Traceback" not in err


def robustness_record(run):
    """A robustness of one half under every corruption, for the run's test images."""
    data = instantiate(run.config().data)
    data.setup()
    images = fingerprint(data.test_split.images_at(data.test_split.indices), data.test_split.targets)
    strengths = {name: list(corruption.strengths) for name, corruption in CORRUPTIONS.items()}
    accuracy = {name: [0.5] * 5 for name in CORRUPTIONS}
    record = {"clean": 0.9, "standard_error": 0.01, "images": 80, "data_sha256": images, "seed": 0}
    return record | {"strengths": strengths, "accuracy": accuracy}


@pytest.mark.training
def test_robustness_is_compared_with_another_run(command, trained):
    first, second = trained["first"], trained["second"]
    record = evaluation_json(command, first, "robustness=true")["robustness"]
    assert record["clean"] == first.results()["test/accuracy"]
    assert record["corruption_errors"] is None, "no baseline is recorded for these images"
    assert set(record["outliers"]) >= {"uniform_noise", "inverted"}
    folder = first.evaluation / "test"
    plots = {"robustness.png", "outliers.png", "corruptions.png"}
    assert {"robustness.json", *plots} <= {file.name for file in folder.iterdir()}
    compared = evaluation_json(command, second, "robustness=true", f"baseline={first.path}")["robustness"]
    assert compared["corruption_errors"]["mean"] > 0
    assert compared["corruption_errors"]["baseline"] == str(first.path)
    status, _, err = command(
        main, f"run={second.path}", "robustness=true", "split=val", f"baseline={folder}/robustness.json"
    )
    assert status == 1
    assert "other images" in err
    status, out, _ = command(main, f"run={second.path}", "robustness=true", f"baseline={first.path}")
    assert status == 0
    for name, accuracies in compared["accuracy"].items():
        cells = [name.replace("_", " "), *(f"{accuracy:.2%}" for accuracy in accuracies)]
        assert any([cell.strip() for cell in line.split("│")[1:-1]] == cells for line in out.splitlines())
    assert f"{compared['mean']:.2%} on average" in out


@pytest.mark.training
def test_a_baseline_is_a_run_an_ensemble_or_a_directory(command, trained, tmp_path, monkeypatch):
    runs = tmp_path / "runs"
    run = Run(shutil.copytree(trained["first"].path, runs / "first"))
    recorded = json.dumps(robustness_record(run))
    for folder in (run.evaluation / "test", runs / "ensemble-1" / "test", tmp_path / "out"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "robustness.json").write_text(recorded)
    names = {}
    monkeypatch.setattr(
        "fashion_cnn.evaluation.robustness_report.write_robustness_report",
        lambda evaluation, folder, *, baseline, progress: {"corruption_errors": None, "baseline": baseline.name},
    )
    for reference in ("latest", str(run.path), str(runs / "ensemble-1"), str(tmp_path / "out")):
        arguments = (f"run={run.path}", f"runs_dir={runs}", "robustness=true", "format=json", f"baseline={reference}")
        status, out, _ = command(main, *arguments)
        assert status == 0
        names[reference] = json.loads(out)["robustness"]["baseline"]
    assert names == {name: str(run.path) if name == "latest" else name for name in names}


@pytest.mark.parametrize(
    ("baseline", "message"), [("first", "robustness.json is missing"), ("nosuch", "does not exist")]
)
def test_a_missing_baseline_is_reported_before_the_evaluation(
    command, trained, tmp_path, monkeypatch, baseline, message
):
    run = Run(shutil.copytree(trained["first"].path, tmp_path / "first"))
    shutil.rmtree(run.evaluation, ignore_errors=True)
    monkeypatch.setattr("fashion_cnn.evaluation.evaluate.evaluate_runs", lambda *_, **__: pytest.fail("too late"))
    status, _, err = command(main, f"run={run.path}", "robustness=true", f"baseline={tmp_path / baseline}")
    assert (status, message in err) == (1, True)


@pytest.mark.parametrize(
    ("field", "values", "message"),
    [
        ("strengths", [9.0] * 5, "evaluated on other corruptions"),
        ("accuracy", [1.0] * 5, "The baseline makes no error under contrast: nothing to divide by"),
    ],
)
def test_an_unusable_baseline_is_reported_before_the_evaluation(
    command, trained, tmp_path, monkeypatch, field, values, message
):
    run = trained["first"]
    recorded = robustness_record(run)
    recorded[field]["contrast"] = values
    (tmp_path / "baseline.json").write_text(json.dumps(recorded))
    monkeypatch.setattr("fashion_cnn.evaluation.evaluate.evaluate_runs", lambda *_, **__: pytest.fail("too late"))
    status, _, err = command(main, f"run={run.path}", "robustness=true", f"baseline={tmp_path}/baseline.json")
    assert (status, message in err) == (1, True)
