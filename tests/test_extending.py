"""A user's own network, loss, metric and LightningModule: what works with them, and what is refused before training."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY_DATA
from PIL import Image
from tiny_images import TinyDataModule
from tiny_parts import NumpyData
from torch.nn import functional

import fashion_cnn
from fashion_cnn import index, predict, teach
from fashion_cnn.errors import UserError
from fashion_cnn.models.losses import CrossEntropy
from fashion_cnn.runs import Run
from fashion_cnn.train import main as train_main
from fashion_cnn.train import train
from fashion_cnn.training import build

SHORT = ("trainer.max_epochs=2",)


def own(network):
    return ["~model.network", f"+model.network._target_=tiny_parts.{network}"]


def table(run, name="metrics.csv"):
    with (Path(run) / name).open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_a_plain_network_trains_with_every_part_of_the_analysis(tiny, command, tmp_path):
    results = train(tiny("callbacks=default", "trainer.max_epochs=2", *own("PlainNetwork")))
    run = Path(results["run"])
    assert (run / "projector" / "tensors.tsv").exists()
    network = fashion_cnn.load(run)
    images = np.zeros((3, 20, 20), dtype=np.uint8)
    assert network.embed(images).shape == (3, 200)
    assert np.array_equal(network.predict_proba(images).argmax(axis=1), network.predict(images))
    Image.new("L", (20, 20), 90).save(tmp_path / "a.png")
    status, out, _ = command(teach.main, f"run={run}", "name=grey", f"images={tmp_path / 'a.png'}")
    assert status == 0, out


@pytest.mark.slow
def test_a_network_without_embeddings_trains_and_predicts_but_is_not_searched(tiny, command, tmp_path):
    results = train(tiny("callbacks=default", "trainer.max_epochs=1", *own("ConvolutionalNetwork")))
    run = Path(results["run"])
    assert not (run / "projector").exists()
    Image.new("L", (20, 20), 90).save(tmp_path / "a.png")
    status, out, _ = command(predict.main, f"run={run}", f"images={tmp_path / 'a.png'}", "format=json")
    assert status == 0
    assert json.loads(out)[0]["answer"] in (*fashion_cnn.load(run).class_names, "none of these")
    for main, arguments in ((index.main, []), (teach.main, ["name=a", f"images={tmp_path / 'a.png'}"])):
        status, _, err = command(main, f"run={run}", *arguments)
        assert status == 1
        assert "ConvolutionalNetwork has no embeddings: its logits do not come from a linear layer" in err


def test_a_network_that_returns_a_tuple_is_refused_before_the_run_directory(tiny, tmp_path):
    with pytest.raises(UserError, match="TupleNetwork returns tuple, not logits"):
        train(tiny(*own("TupleNetwork")))
    assert not (tmp_path / "runs").exists()


def test_a_subclass_of_the_classifier_is_loaded_as_itself(tiny, command, tmp_path):
    results = train(tiny(*SHORT, "model._target_=tiny_parts.ScaledClassifier", "+model.factor=2.0"))
    module = fashion_cnn.load(results["run"]).module
    assert type(module).__name__ == "ScaledClassifier"
    assert module.factor.item() == 2.0
    Image.new("L", (20, 20), 90).save(tmp_path / "a.png")
    assert command(predict.main, f"run={results['run']}", f"images={tmp_path / 'a.png'}")[0] == 0


@pytest.mark.parametrize(
    "loss", [["loss=weighted", "loss.class_weights=[1,1,1,9]"], ["+loss._target_=tiny_parts.MarginLoss"]]
)
def test_a_loss_changes_the_training_alone(tiny, loss):
    plain, other = (train(tiny(*SHORT, *settings)) for settings in ([], loss))
    assert plain["val/loss"] != other["val/loss"]
    assert "training_loss" not in plain
    assert plain["label_smoothing"] == 0.1
    assert ("label_smoothing" in other) == ("weighted" in loss[0])
    assert other["training_loss"] in ("weighted cross-entropy", "MarginLoss")
    assert f"(loss: {other['training_loss']})" in (Path(other["run"]) / "report.md").read_text()
    if "MarginLoss" in loss[0]:
        network = fashion_cnn.load(other["run"]).module
        assert network.state_dict()["_loss.log_temperature"] != 0, "parameters of a loss are trained"


def test_balanced_class_weights_are_inversely_proportional_to_the_counts():
    loss = CrossEntropy(class_weights="balanced")
    targets = torch.tensor([0, 0, 0, 1])
    loss.initialise(targets, num_classes=2)
    logits = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    losses = functional.cross_entropy(logits, targets, reduction="none")
    expected = losses[:3].mean() / 2 + losses[3] / 2
    assert loss(logits, targets).item() == pytest.approx(expected.item())
    one_hot = functional.one_hot(targets, 2).float()
    assert CrossEntropy(label_smoothing=0.1)(logits, one_hot).item() == pytest.approx(
        functional.cross_entropy(logits, targets, label_smoothing=0.1).item()
    )


@pytest.mark.parametrize(
    "settings",
    [{"class_weights": [1, 2]}, {"class_weights": "balanced"}, {"class_weights": [1, 5], "label_smoothing": 0.2}],
)
def test_a_weighted_loss_of_certain_probabilities_is_that_of_the_classes(settings):
    loss, targets = CrossEntropy(**settings), torch.tensor([0, 0, 0, 1])
    loss.initialise(torch.tensor([0, 0, 0, 0, 1]), num_classes=2)
    logits = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    assert loss(logits, functional.one_hot(targets, 2).float()).item() == pytest.approx(loss(logits, targets).item())


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_a_batch_of_images_without_weight_has_the_loss_zero_and_no_gradient(label_smoothing):
    loss = CrossEntropy(class_weights=[0, 1], label_smoothing=label_smoothing)
    logits, targets = torch.randn(3, 2, requires_grad=True), torch.zeros(3, dtype=torch.long)
    for batch_targets in (targets, functional.one_hot(targets, 2).float()):
        logits.grad = None
        value = loss(logits, batch_targets)
        value.backward()
        assert value.item() == 0
        assert not logits.grad.any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["loss=weighted", "loss.class_weights=[1,2]"], "loss.class_weights has 2 weights for 4 classes"),
        (["loss=weighted", "loss.class_weights=rare"], "loss.class_weights=rare is not possible"),
        (["loss=weighted", "loss.label_smoothing=1"], "loss.label_smoothing=1 is not possible"),
        (["loss=weighted", "distillation=soft_labels"], "distillation.teachers is empty"),
        (["+loss._target_=tiny_parts.LossPerImage"], "loss LossPerImage must return a scalar"),
        (
            ["mixing=cutmix", "+loss._target_=tiny_parts.IndexLoss"],
            r"loss IndexLoss cannot take logits \(B, 4\) and probabilities \(B, 4\)",
        ),
        (["data.mean=[0.4,0.4]"], r"data.mean=\[0.4, 0.4\] has 2 numbers for images of shape \(1, 20, 20\): give one"),
        (["data.std=[60]"], r"data.std=\[60\] is not possible: it is of pixels from 0 to 1"),
        (["data.fold=2"], r"data.fold=2 is not possible with data.folds=null: give data.folds too"),
        (["+metrics.loss._target_=tiny_parts.MeanRank"], "metrics.loss is not possible: every run has loss anyway"),
        (
            ["+metrics.own._target_=tiny_parts.MeanRanks"],
            r"metrics.own._target_=tiny_parts.MeanRanks cannot be imported: tiny_parts has no MeanRanks\. Did you mean",
        ),
        (["+metrics.wrong._target_=tiny_parts.MarginLoss"], "metrics.wrong is a MarginLoss"),
        (
            ["metrics=classification", "metrics.f1.average=none"],
            "metrics.f1 must return one number, as average=macro does",
        ),
        (
            ["metrics=classification", "callbacks.best.monitor=val/f2"],
            r"monitor=val/f2 is not a logged metric\. Did you mean val/f1",
        ),
    ],
)
def test_parts_that_cannot_work_are_refused_before_the_run_directory(tiny, tmp_path, settings, message):
    with pytest.raises(UserError, match=message):
        train(tiny(*settings))
    assert not (tmp_path / "runs").exists()


def test_numpy_arrays_train_like_the_same_tensors():
    data, arrays = (
        class_(mean=[0.5], std=[0.25], val_size=32).read(train=True) for class_ in (TinyDataModule, NumpyData)
    )
    for tensor, array in zip(data, arrays, strict=True):
        assert array.dtype == tensor.dtype
        assert array.equal(tensor.flip(0))


def test_mean_and_std_that_are_null_are_computed_from_the_training_images(tiny):
    results = train(tiny("trainer.max_epochs=1", "data.mean=null", "data.std=null", "data.train_fraction=0.5"))
    images, _ = TinyDataModule(val_size=32).load(train=True)
    pixels = images.numpy() / 255
    network = fashion_cnn.load(results["run"])  # without the data set
    assert network.mean == pytest.approx((pixels.mean(),), abs=1e-4)
    assert network.std == pytest.approx((pixels.std(),), abs=1e-4)
    stored = Run(Path(results["run"])).config().data
    given = train(tiny("trainer.max_epochs=1", f"data.mean={stored.mean}", "data.std=null", "data.train_fraction=0.5"))
    assert given["test/loss"] == results["test/loss"]


def test_a_data_set_without_mean_and_std_in_its_config_stores_computed_ones(tiny):
    for target, is_stored in (("TinyDataModule", True), ("NormalisedData", False)):
        config = tiny()
        config.data = {"_target_": f"tiny_{'images' if is_stored else 'parts'}.{target}", "val_size": 32}
        build.data(config)
        assert ("mean" in config.data) == ("std" in config.data) == is_stored
    config.data = {"_target_": "tiny_parts.FixedData"}
    with pytest.raises(UserError, match="FixedData takes no argument 'mean', which is computed: add it"):
        build.data(config)


def test_mean_and_std_need_not_be_given_from_python():
    data = TinyDataModule(val_size=32)
    data.setup("test")
    normalised = data.normalise(data.read(train=True)[0])
    assert normalised.mean().item() == pytest.approx(0, abs=1e-3)
    assert normalised.std().item() == pytest.approx(1, abs=1e-3)
    with pytest.raises(UserError, match=r"data\.std must be above 0"):
        TinyDataModule(std=[0], val_size=32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("float", r"images of float32 values from 0 to 0\.\d+: return uint8 from 0 to 255"),
        ("int64", r"images of int64 values from 0 to 219: return uint8"),
        ("channels last", r"images of shape \(160, 20, 20, 1\), which do not fit image_shape=\(1, 20, 20\)"),
        ("no channel", r"images of shape \(160, 20, 20\), which do not fit image_shape=\(1, 20, 20\)"),
        ("fewer", r"100 images: set train_size=100 \(it is 160\)"),
        ("float labels", "labels of float32: return class indices"),
        ("one-hot", r"labels of shape \(160, 4\) for 160 images: return one class index for each"),
        ("too high", "labels from 1 to 4: return 0 to 3, the positions in the 4 class_names"),
        ("negative", "labels from -1 to 2: return 0 to 3"),
        ("three", "returns tuple: return two arrays, images and class indices"),
        ("list", "returns list: return NumPy arrays or tensors"),
        ("texts", "returns an array of <U"),
    ],
)
def test_a_data_set_that_cannot_be_used_is_refused_before_the_run_directory(tiny, tmp_path, change, message):
    data = ["data._target_=tiny_parts.ChangedData", f"+data.change='{change}'"]
    with pytest.raises(UserError, match=message) as error:
        train(tiny(*data))
    assert str(error.value).startswith("ChangedData.load(train=True) returns ")
    assert not (tmp_path / "runs").exists()


def test_a_test_set_that_cannot_be_used_is_refused_before_the_run_directory(tiny, tmp_path):
    with pytest.raises(UserError, match=r"load\(train=False\) returns images of float32"):
        train(tiny("data._target_=tiny_parts.ChangedData", "+data.change=float", "+data.split=test"))
    assert not (tmp_path / "runs").exists()


def test_an_augmentation_that_scales_the_pixels_is_refused_in_the_first_step(tiny):
    with pytest.raises(UserError, match=r"data.augmentation: ToFloat returns pixels from 0 to 1 .*: return"):
        train(tiny("+data.augmentation.scale._target_=tiny_parts.ToFloat"))


def test_a_loss_and_a_metric_are_named_on_the_command_line(command, tmp_path):
    parts = ["+loss._target_=tiny_parts.MarginLoss", "+metrics.rank._target_=tiny_parts.MeanRank"]
    status, out, err = command(train_main, *TINY_DATA, f"runs_dir={tmp_path}", "trainer.max_epochs=1", *parts)
    assert (status, err) == (0, "")
    assert "rank" in out


@pytest.mark.parametrize(
    "section", ["loss", "embedding_loss", "mixing", "metrics.own", "callbacks.own", "logger.own", "model.network"]
)
def test_a_class_that_cannot_be_imported_is_named_with_its_section(command, tmp_path, section):
    plus = "" if section == "model.network" else "+"
    arguments = [*TINY_DATA, f"runs_dir={tmp_path}", f"{plus}{section}._target_=absent_package.Part"]
    status, _, err = command(train_main, *arguments)
    assert status == 2
    assert err.startswith(f"error: {section}._target_=absent_package.Part cannot be imported: No module named")


def test_an_error_in_a_class_of_the_user_ends_with_its_own_line(command, tmp_path):
    with pytest.raises(KeyError, match="a mistake of mine") as caught:
        command(train_main, *TINY_DATA, f"runs_dir={tmp_path}", "+metrics.own._target_=tiny_parts.FaultyMetric")
    assert caught.traceback[-1].path.name == "tiny_parts.py"
    assert caught.value.__notes__ == ["It was raised while the section model of the config was built."]
    assert caught.value.__suppress_context__


def test_an_impossible_learning_rate_is_refused_before_the_data_are_read(tiny):
    with pytest.raises(UserError, match="optimizer or schedule: Invalid learning rate: -1"):
        train(tiny("data._target_=tiny_parts.AbsentData", "optimizer.lr=-1"))


def test_a_loss_and_teachers_exclude_each_other(tiny):
    teacher = train(tiny(*SHORT))
    with pytest.raises(UserError, match="loss and distillation exclude each other"):
        train(tiny("loss=weighted", "distillation=soft_labels", f"distillation.teachers='{teacher['run']}'"))


def test_metrics_are_measured_stored_shown_and_monitored(tiny, capsys):
    rank = "+metrics.mean_rank._target_=tiny_parts.MeanRank"
    settings = ["metrics=classification", rank, "callbacks.best.monitor=val/mean_rank", "callbacks.best.mode=min"]
    results = train(tiny(*SHORT, *settings))
    run = Path(results["run"])
    names = ["f1", "top2_accuracy", "mean_rank"]
    assert results["metrics"] == names
    rows = table(run)
    for name in names:
        for split in ("train", "val", "test", "test_flip"):
            assert f"{split}/{name}" in results
        assert float(rows[results["best_epoch"] - 1][f"val/{name}"]) == pytest.approx(results[f"val/{name}"])
    assert results["gap/f1"] == pytest.approx(results["train/f1"] - results["val/f1"])
    assert results["gap/mean_rank"] == pytest.approx(results["val/mean_rank"] - results["train/mean_rank"])
    assert results["gap_test/mean_rank"] == pytest.approx(results["test/mean_rank"] - results["train/mean_rank"])
    assert results["val/mean_rank"] == pytest.approx(min(float(row["val/mean_rank"]) for row in rows))
    out = capsys.readouterr().out
    report = (run / "report.md").read_text()
    for name in names:
        assert name in out
        assert f"{results[f'val/{name}']:.4f}" in out
        assert f"{results[f'val/{name}']:.4f}" in report
    assert fashion_cnn.load(run).module.metric_names == ("loss", "accuracy", *names)


def test_a_metric_may_have_buffers(tiny):
    results = train(tiny("trainer.max_epochs=1", "+metrics.rank._target_=tiny_parts.WeightedRank"))
    assert {"val/rank", "test_flip/rank"} <= results.keys()
    last = torch.load(Run(Path(results["run"])).last_checkpoint, weights_only=True)
    assert not [name for name in last["state_dict"] if "metrics" in name], "a resumed run has no metrics yet"


@pytest.mark.parametrize(("columns", "shown"), [(80, []), (92, ["val f1"]), (120, ["val f1", "val mean_rank"])])
def test_metrics_are_in_the_lines_of_the_epochs_where_they_fit(tiny, capsys, monkeypatch, columns, shown):
    monkeypatch.setenv("COLUMNS", str(columns))
    rank = "+metrics.mean_rank._target_=tiny_parts.MeanRank"
    results = train(tiny(*SHORT, "metrics=classification", "~metrics.top2_accuracy", rank))
    lines = capsys.readouterr().out.splitlines()
    (number,) = (number for number, line in enumerate(lines) if line.startswith("epoch "))
    assert [name for name in ("val f1", "val mean_rank") if name in lines[number]] == shown
    for row, line in zip(table(results["run"]), lines[number + 1 :], strict=False):
        assert len(line) == len(lines[number]) <= columns
        values = line.split()[8:]
        assert values == [f"{float(row[name.replace(' ', '/')]):.4f}" for name in shown]


def test_macro_f1_equals_its_definition(tiny):
    results = train(tiny(*SHORT, "metrics=classification"))
    network = fashion_cnn.load(results["run"])
    images, targets = TinyDataModule(mean=[0.5], std=[0.25], val_size=32).load(train=False)
    predicted, targets = network.predict(images), targets.numpy()
    scores = []
    for label in range(4):
        true_positives = ((predicted == label) & (targets == label)).sum()
        scores.append(2 * true_positives / max(1, (predicted == label).sum() + (targets == label).sum()))
    assert results["test/f1"] == pytest.approx(float(np.mean(scores)), abs=1e-6)
