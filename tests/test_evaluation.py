"""A trained network measured again from its run directory alone."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import TINY_DATA
from hydra.utils import instantiate
from PIL import Image

from fashion_cnn.cli.main import compose
from fashion_cnn.data.statistics import fingerprint
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

# Six images of three classes: the network is right about the first four.
PREDICTIONS = Predictions(
    logits=torch.tensor(
        [[4.0, 0, 0], [0, 3.0, 0], [2.0, 0, 1], [0, 0, 1.0], [0, 0.5, 0.1], [0.2, 0, 0.1]],
    ),
    targets=torch.tensor([0, 1, 0, 2, 2, 1]),
    indices=torch.arange(6),
)


def test_precision_and_recall_are_of_each_class():
    first, second, third = metrics_by_class(PREDICTIONS, ["a", "b", "c"])
    assert (first.precision.estimate, first.recall.estimate, first.images) == (pytest.approx(2 / 3), 1.0, 2)
    assert (second.precision.estimate, second.recall.estimate) == (0.5, 0.5)
    assert (third.precision.estimate, third.recall.estimate, third.f1) == (1.0, 0.5, pytest.approx(2 / 3))
    assert second.recall.low < 0.5 < second.recall.high


def test_a_class_that_never_comes_has_no_share():
    never = Predictions(torch.tensor([[1.0, 0, 0]]), torch.tensor([0]), torch.tensor([0]))
    _, second, _ = metrics_by_class(never, ["a", "b", "c"])
    assert second.precision is second.recall is None
    assert second.f1 == 0


def test_the_second_likeliest_class_counts_too():
    assert top_k_accuracy(PREDICTIONS, 1) == pytest.approx(4 / 6)
    assert top_k_accuracy(PREDICTIONS, 2) == pytest.approx(5 / 6)
    assert top_k_accuracy(PREDICTIONS, 9) == 1


def test_accuracy_on_the_surest_images_comes_first():
    expected = [1, 1, 1, 1, 4 / 5, 4 / 6]
    assert selective_accuracy(PREDICTIONS).tolist() == pytest.approx(expected)
    figures = classification_metrics(PREDICTIONS, ["a", "b", "c"]).to_dict()
    assert figures["selective_accuracy"]["0.5"] == 1
    assert figures["macro_f1"] == pytest.approx((0.8 + 0.5 + 2 / 3) / 3)
    assert sum(map(sum, figures["confusion"])) == 6


def test_other_images_or_labels_have_another_fingerprint():
    images, targets = torch.randint(0, 256, (6, 1, 4, 4), dtype=torch.uint8), torch.arange(6)
    first = fingerprint(images, targets)
    assert fingerprint(images.clone(), targets.clone()) == first
    assert len({first, fingerprint(images + 1, targets), fingerprint(images, targets + 1)}) == 3


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two runs of other seeds, a run of another network, and one that kept no validation images."""
    folder = tmp_path_factory.mktemp("runs")
    settings = [*TINY_DATA, "callbacks=essential", f"runs_dir='{folder}'"]
    changes = {"first": [], "second": ["seed=1"], "wider": ["model.network.stem=[16]"], "all": ["data.val_size=0"]}
    return {
        name: Run(Path(train(compose(overrides=[*settings, *typed, f"name={name}"]))["run"]))
        for name, typed in changes.items()
    }


def evaluated(command, run, *arguments):
    status, out, err = command(main, f"run={run.path}", "format=json", *arguments)
    assert (status, err) == (0, "")
    return json.loads(out)


@pytest.mark.parametrize("split", ["test", "val"])
def test_the_figures_are_those_that_training_wrote(command, trained, split):
    run = trained["first"]
    found, results = evaluated(command, run, f"split={split}"), run.results()
    for name in ("accuracy", "loss"):
        assert found[name] == results[f"{split}/{name}"]
        assert found["flip"][name] == results[f"{split}_flip/{name}"]
    assert found["accuracy"] == pytest.approx(sum(row[k] for k, row in enumerate(found["confusion"])) / found["images"])
    # The temperature is fitted on other images than those that it is judged by.
    assert (found["calibrated"] or {}).get("temperature", 0) > 0 if split == "test" else found["calibrated"] is None
    assert found["weights_sha256"] == [results["weights_sha256"]]
    written = {file.name for file in (run.evaluation / split).iterdir()}
    assert written == {"evaluation.json", "confusion.png", "classes.png", "selective.png", "reliability.png"}


@pytest.mark.training
def test_the_hardware_and_precision_are_those_that_were_measured_with(trained, monkeypatch):
    config = trained["first"].config()
    config.trainer.precision = "16-mixed"
    monkeypatch.setattr(Run, "config", lambda run: config)
    quieten_lightning()
    evaluation = evaluate_runs([trained["first"]], "test")
    # A GPU that the run was told to leave alone.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    record = evaluation_record([trained["first"]], evaluation)
    assert record["hardware"].startswith("CPU, ")
    assert record["precision"] == "bf16-mixed", "Lightning's choice on a CPU"
    logits = evaluation.network.logits(evaluation.images[:2])
    assert torch.equal(logits, logits.bfloat16().float()), "computed in bfloat16"


def test_figures_are_kept_where_they_cannot_be_drawn(command, trained, tmp_path, monkeypatch):
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda *_, **__: (_ for _ in ()).throw(MemoryError))
    with pytest.raises(MemoryError):
        command(main, f"run={trained['first'].path}", f"out={tmp_path}")
    assert json.loads((tmp_path / "evaluation.json").read_text())["accuracy"] > 0


def test_a_copied_run_gives_the_same_figures(command, trained, tmp_path):
    copy = Run(shutil.copytree(trained["first"].path, tmp_path / "elsewhere, (1)"))
    assert evaluated(command, copy)["loss"] == trained["first"].results()["test/loss"]
    assert (copy.evaluation / "test" / "evaluation.json").exists()


@pytest.mark.parametrize("other", ["second", "wider"])
def test_a_checkpoint_of_another_run_is_refused(command, trained, tmp_path, other):
    copy = Run(shutil.copytree(trained["first"].path, tmp_path / "run"))
    shutil.copy(trained[other].best_checkpoint, copy.best_checkpoint)
    status, _, err = command(main, f"run={copy.path}")
    assert status == 1
    assert "best.ckpt does not belong to" in err
    assert err.count("\n") == 1


def test_a_run_that_was_not_copied_whole_is_refused(command, trained, tmp_path):
    copy = Run(shutil.copytree(trained["first"].path, tmp_path / "run"))
    last = read_checkpoint(copy.last_checkpoint)
    last["state_dict"]["network.classifier.bias"] += 1.0
    torch.save(last, copy.last_checkpoint)
    copy.best_checkpoint.unlink()
    pictures = tmp_path / "picture.png"
    Image.new("L", (8, 8)).save(pictures)
    both = (main,), (predict_main, f"images={pictures}")
    for module, *arguments in both:
        status, _, err = command(module, f"run={copy.path}", *arguments)
        assert status == 1
        assert "best.ckpt is missing: copy the run whole" in err
    shutil.rmtree(copy.checkpoints)
    for module, *arguments in both:
        status, _, err = command(module, f"run={copy.path}", *arguments)
        assert status == 1
        assert "checkpoints holds no checkpoint: the run was not copied whole" in err


def test_a_run_that_is_not_finished_is_refused(command, trained, tmp_path):
    copy = Run(shutil.copytree(trained["first"].path, tmp_path / "run"))
    copy.results_file.unlink()
    status, _, err = command(main, f"run={copy.path}")
    assert status == 1
    assert "is not finished (stopped)" in err


@pytest.mark.training
def test_several_runs_answer_as_one(command, trained, tmp_path):
    paths = f"[{trained['first'].path},{trained['second'].path}]"
    status, out, err = command(main, f"run={paths}", f"out={tmp_path / 'both'}")
    assert (status, err) == (0, "")
    assert "Ensemble of 2 networks" in out
    both = json.loads((tmp_path / "both" / "evaluation.json").read_text())
    alone = [evaluated(command, trained[name])["loss"] for name in ("first", "second")]
    # The cross-entropy of averaged logits is at most the average of the cross-entropies.
    assert both["loss"] <= sum(alone) / 2 + 1e-3
    assert both["loss"] not in alone
    assert evaluated(command, trained["first"], f"run=[{trained['first'].path},{trained['first'].path}]")[
        "loss"
    ] == pytest.approx(alone[0], abs=1e-4)


def trained_on(folder, runs_dir, name, *overrides):
    """The path of a run of the pictures in a folder, after an epoch."""
    network = [word for word in TINY_DATA if word.startswith(("model", "trainer"))]
    data = ["data=image_folder", f"data.root='{folder}'", "data.mean=[0.4]", "data.std=[0.2]", "data.channels=1"]
    typed = [*data, *network, "data.batch_size=4", "callbacks=essential", "trainer.max_epochs=1", *overrides]
    return train(compose(overrides=[*typed, f"name={name}", f"runs_dir='{runs_dir}'"]))["run"]


def test_runs_of_other_test_pictures_are_no_ensemble(command, picture_folder, tmp_path):
    first, second = (
        trained_on(picture_folder, tmp_path, f"split-{seed}", "data.test_share=0.3", f"data.split_seed={seed}")
        for seed in (0, 1)
    )
    status, _, err = command(main, f"run=[{first},{second}]", "format=json")
    assert status == 1
    assert f"{second} has other test images than {first}, and may have trained on those" in err
    assert err.count("\n") == 1


@pytest.mark.training
def test_runs_of_the_same_test_pictures_are_one_and_calibrated_on_what_neither_trained_on(
    command, picture_folder, tmp_path
):
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


def test_a_run_without_test_pictures_is_measured_on_validation(command, picture_folder, tmp_path):
    run = trained_on(picture_folder, tmp_path, "no-test", "data.test_share=0", "data.val_share=0.4")
    status, _, err = command(main, f"run={run}")
    assert status == 1
    assert "has no test images (data.test_share=0): say split=val." in err
    assert command(main, f"run={run}", "split=val")[0] == 0
    run = trained_on(picture_folder, tmp_path, "neither", "data.test_share=0", "data.val_share=0")
    status, _, err = command(main, f"run={run}")
    assert (status, "there are none to measure it on" in err) == (1, True)


def test_without_validation_images_there_is_no_temperature(command, trained):
    assert evaluated(command, trained["all"])["calibrated"] is None
    status, _, err = command(main, f"run={trained['all'].path}", "split=val")
    assert status == 1
    assert "kept no validation images" in err


@pytest.mark.parametrize(
    ("argument", "said"),
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
def test_a_mistake_is_told_in_one_message(command, trained, monkeypatch, argument, said):
    monkeypatch.chdir(trained["first"].path.parent.parent)
    status, _, err = command(main, "runs_dir=.", argument)
    assert status in (1, 2)
    assert said in err
    assert "Traceback" not in err


def made_up_robustness(run):
    """Of the run's test images: half of them right under every corruption."""
    data = instantiate(run.config().data)
    data.setup()
    images = fingerprint(data.test_split.images_at(data.test_split.indices), data.test_split.targets)
    strengths = {name: list(one.strengths) for name, one in CORRUPTIONS.items()}
    accuracy = {name: [0.5] * 5 for name in CORRUPTIONS}
    found = {"clean": 0.9, "standard_error": 0.01, "images": 80, "data_sha256": images, "seed": 0}
    return found | {"strengths": strengths, "accuracy": accuracy}


@pytest.mark.training
def test_robustness_is_measured_and_held_against_another_run(command, trained):
    first, second = trained["first"], trained["second"]
    found = evaluated(command, first, "robustness=true")["robustness"]
    assert found["clean"] == first.results()["test/accuracy"]
    assert found["corruption_errors"] is None, "no baseline is recorded for these images"
    assert set(found["outliers"]) >= {"uniform_noise", "inverted"}
    folder = first.evaluation / "test"
    assert {"robustness.json", "robustness.png", "outliers.png"} <= {file.name for file in folder.iterdir()}
    against = evaluated(command, second, "robustness=true", f"baseline={first.path}")["robustness"]
    assert against["corruption_errors"]["mean"] > 0
    assert against["corruption_errors"]["baseline"] == str(first.path)
    status, _, err = command(
        main, f"run={second.path}", "robustness=true", "split=val", f"baseline={folder}/robustness.json"
    )
    assert status == 1
    assert "other images" in err


@pytest.mark.training
def test_a_baseline_is_named_as_runs_and_ensembles_are(command, trained, tmp_path, monkeypatch):
    runs = tmp_path / "runs"
    run = Run(shutil.copytree(trained["first"].path, runs / "first"))
    recorded = json.dumps(made_up_robustness(run))
    for folder in (run.evaluation / "test", runs / "ensemble-1" / "test", tmp_path / "out"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "robustness.json").write_text(recorded)
    found = {}
    monkeypatch.setattr(
        "fashion_cnn.evaluation.robustness_report.write_robustness_report",
        lambda evaluation, folder, *, baseline, progress: {"corruption_errors": None, "baseline": baseline.name},
    )
    for named in ("latest", str(run.path), str(runs / "ensemble-1"), str(tmp_path / "out")):
        typed = (f"run={run.path}", f"runs_dir={runs}", "robustness=true", "format=json", f"baseline={named}")
        status, out, _ = command(main, *typed)
        assert status == 0
        found[named] = json.loads(out)["robustness"]["baseline"]
    assert found == {named: str(run.path) if named == "latest" else named for named in found}


@pytest.mark.parametrize(("baseline", "said"), [("first", "robustness.json is missing"), ("nosuch", "does not exist")])
def test_a_baseline_that_there_is_not_is_told_before_anything_is_measured(
    command, trained, tmp_path, monkeypatch, baseline, said
):
    run = Run(shutil.copytree(trained["first"].path, tmp_path / "first"))
    shutil.rmtree(run.evaluation, ignore_errors=True)
    monkeypatch.setattr("fashion_cnn.evaluation.evaluate.evaluate_runs", lambda *_, **__: pytest.fail("too late"))
    status, _, err = command(main, f"run={run.path}", "robustness=true", f"baseline={tmp_path / baseline}")
    assert (status, said in err) == (1, True)


@pytest.mark.parametrize(
    ("field", "values", "said"),
    [
        ("strengths", [9.0] * 5, "evaluated on other corruptions"),
        ("accuracy", [1.0] * 5, "The baseline makes no error under contrast: nothing to divide by"),
    ],
)
def test_a_baseline_that_nothing_can_be_held_against_is_refused_at_once(
    command, trained, tmp_path, monkeypatch, field, values, said
):
    run = trained["first"]
    recorded = made_up_robustness(run)
    recorded[field]["contrast"] = values
    (tmp_path / "baseline.json").write_text(json.dumps(recorded))
    monkeypatch.setattr("fashion_cnn.evaluation.evaluate.evaluate_runs", lambda *_, **__: pytest.fail("too late"))
    status, _, err = command(main, f"run={run.path}", "robustness=true", f"baseline={tmp_path}/baseline.json")
    assert (status, said in err) == (1, True)
