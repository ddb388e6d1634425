"""`python -m fashion_cnn.predict` on a network that was trained on real images: files in, predictions out."""

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PATIENCE, REPOSITORY
from PIL import Image
from test_pictures import encoded, garment, png_with_header_size
from torch.nn import functional

from fashion_cnn.cli.main import compose
from fashion_cnn.data import FashionMNISTDataModule
from fashion_cnn.inference.network import NetworkOutput, NetworkRunner, TrainedNetwork, load
from fashion_cnn.inference.output import print_csv
from fashion_cnn.inference.prediction import Prediction
from fashion_cnn.inference.predictor import Predictor, read_validation_predictions
from fashion_cnn.metrics.calibration import calibrate
from fashion_cnn.metrics.predictions import Predictions, read_predictions, write_predictions
from fashion_cnn.predict import main
from fashion_cnn.runs import Run, format_csv
from fashion_cnn.train import train

NAMES = FashionMNISTDataModule.class_names


@pytest.fixture(scope="module")
def run(fashion_mnist_root, tmp_path_factory):
    """A short training that is evaluated on the first 500 validation and test images."""
    folder = tmp_path_factory.mktemp("runs")
    limits = [f"trainer.limit_{split}_batches={count}" for split, count in (("train", 40), ("val", 2), ("test", 2))]
    paths = [f"data.root='{fashion_mnist_root}'", f"runs_dir='{folder}'", "trainer.max_epochs=1"]
    results = train(compose(overrides=["model=tiny", "trainer.accelerator=cpu", *paths, *limits]))
    return Run(Path(results["run"]))


@pytest.fixture(scope="module")
def picture_files(fashion_mnist_root, tmp_path_factory):
    """The first 500 test images as PNG files with the class in the name."""
    folder = tmp_path_factory.mktemp("test images")
    images, targets = FashionMNISTDataModule(root=fashion_mnist_root).load(train=False)
    for number in range(500):
        Image.fromarray(images[number, 0].numpy()).save(folder / f"{number:05d} {targets[number]}.png")
    return folder


@pytest.fixture
def predict(command, run):
    return lambda *arguments: command(main, f"run={run.path}", *arguments)


def read_csv(text):
    return list(csv.DictReader(io.StringIO(text)))


@pytest.mark.training
@pytest.mark.parametrize(("flip_average", "metric"), [("false", "test/accuracy"), ("true", "test_flip/accuracy")])
def test_test_images_as_files_reach_the_accuracy_of_the_run(predict, run, picture_files, flip_average, metric):
    status, out, err = predict(f"images={picture_files}", "format=csv", f"flip_average={flip_average}")
    assert (status, err) == (0, "")
    rows = read_csv(out)
    correct = [row["class_1"] == NAMES[int(Path(row["file"]).stem.split()[1])] for row in rows]
    assert len(correct) == 500
    accuracy = run.results()[metric]
    assert accuracy > 0.4, "a tenth would be chance"
    assert sum(correct) / 500 == pytest.approx(accuracy, abs=1e-6)


@pytest.mark.training
def test_photographs_of_test_images_are_classified_as_accurately(run, picture_files):
    network = TrainedNetwork(run)

    def accuracy(prepared, targets):
        return (network.logits(torch.stack(prepared)).argmax(dim=1) == torch.tensor(targets)).float().mean().item()

    files = sorted(picture_files.iterdir())
    targets = [int(file.stem.split()[1]) for file in files]
    originals, photographs = [], []
    for file in files:
        picture = Image.open(file)
        originals.append(network.preparation(picture))
        item = Image.fromarray(255 - np.asarray(picture)).resize((224, 224), Image.Resampling.BICUBIC)
        photograph = Image.new("RGB", (400, 300), (255, 255, 255))
        photograph.paste(item, (120, 40))
        photographs.append(network.preparation(photograph))
    assert accuracy(photographs, targets) > accuracy(originals, targets) - 0.04


def test_logits_and_embeddings_are_those_of_one_view_or_both(run):
    images = torch.randint(256, (30, 1, 28, 28), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    network = TrainedNetwork(run)
    runner = NetworkRunner(load(run), network.data, precision=network.precision)
    logits, features = (torch.stack([part(images), part(images.flip(-1))]) for part in (runner.logits, runner.features))
    directions = functional.normalize(features, dim=2)
    assert torch.equal(network.logits(images), logits[0])
    assert torch.allclose(network.embed(images), directions[0], atol=1e-6)
    averaged = TrainedNetwork(run, flip_average=True)
    assert torch.allclose(averaged.logits(images), logits.mean(dim=0), atol=1e-6)
    assert torch.allclose(averaged.embed(images), functional.normalize(directions.mean(dim=0), dim=1), atol=1e-6)
    assert torch.equal(network.with_mirror_images().logits(images), logits[0])
    assert torch.equal(network.with_mirror_images().embed(images), averaged.embed(images))
    # Few images and their mirror images are one batch, whose sums are rounded in another order, perhaps in bfloat16.
    assert torch.allclose(averaged.embed(images[:3]), averaged.embed(images)[:3], atol=0.02)
    assert torch.allclose(averaged.logits(images[:3]), averaged.logits(images)[:3], atol=0.05, rtol=0.02)


def test_ties_between_classes_keep_the_first_as_accuracy_does(run, picture_files, monkeypatch):
    network = TrainedNetwork(run)
    logits = torch.zeros(1, 10)
    logits[0, [8, 3, 6]] = 2.0
    outputs = NetworkOutput(logits, torch.zeros(1, 1))
    monkeypatch.setattr(network, "outputs", lambda images: outputs)
    (prediction,) = Predictor(network).predict([next(picture_files.iterdir())], top_k=5)
    assert [name for name, _ in prediction.classes] == [NAMES[label] for label in (3, 6, 8, 0, 1)]
    assert logits.argmax() == 3


@pytest.mark.parametrize("flip_average", [False, True])
def test_probabilities_are_calibrated_and_the_least_confident_are_rejected(predict, run, picture_files, flip_average):
    arguments = ["format=json", "top_k=10", "reject=0.2", f"flip_average={flip_average}"]
    status, out, _ = predict(f"images={picture_files}", *arguments)
    assert status == 0
    records = json.loads(out)
    calibration = calibrate(read_validation_predictions(run, flip_average=flip_average), reject=0.2)
    assert calibration.temperature != pytest.approx(1, abs=0.01), "not trivial"
    images = FashionMNISTDataModule(root=REPOSITORY / "data").load(train=False)[0][:500]
    logits = TrainedNetwork(run, flip_average=flip_average).logits(images)
    for record, expected in zip(records, calibration.probabilities(logits).sort(descending=True).values, strict=True):
        probabilities = [entry["probability"] for entry in record["classes"]]
        assert probabilities == pytest.approx(expected.tolist(), abs=2e-6)
        rejected = probabilities[0] < calibration.threshold
        assert record["answer"] == ("none of these" if rejected else record["classes"][0]["class"])
    assert 0.1 < np.mean([record["answer"] == "none of these" for record in records]) < 0.3
    assert all(
        r["answer"] != "none of these"
        for r in json.loads(predict(f"images={picture_files}", "format=json", "reject=0")[1])
    )


@pytest.mark.parametrize(("flip_average", "split"), [(False, "val"), (True, "val_flip")])
def test_stored_predictions_for_calibration_equal_the_results_of_the_run(run, flip_average, split):
    predictions = read_validation_predictions(run, flip_average=flip_average)
    assert len(predictions) == 500
    assert predictions.correct.double().mean().item() == pytest.approx(run.results()[f"{split}/accuracy"], abs=1e-6)
    assert predictions.losses.mean().item() == pytest.approx(run.results()[f"{split}/loss"], abs=1e-4)
    with run.ambiguous_file.open() as file:
        assert {row["split"] for row in csv.DictReader(file)} == {"val", "test"}, "each image once"


def test_an_older_run_is_calibrated_on_single_views(run, tmp_path):
    older = Run(tmp_path / "older")
    older.create()
    stored = read_predictions(run.predictions_file)
    del stored["best.val_flip"]
    write_predictions(older.predictions_file, stored)
    assert torch.equal(
        read_validation_predictions(older, flip_average=True).logits, read_validation_predictions(run).logits
    )


def test_few_validation_images_give_a_warning(command, run, tmp_path):
    few = Run(shutil.copytree(run.path, tmp_path / "few", symlinks=True))
    predictions = read_validation_predictions(run)
    write_predictions(
        few.predictions_file,
        {"best.val": Predictions(predictions.logits[:12], predictions.targets[:12], predictions.indices[:12])},
    )
    (tmp_path / "garment.png").write_bytes(encoded(garment()))
    status, _, err = command(main, f"run={few.path}", f"images={tmp_path}/garment.png")
    assert status == 0
    assert f"{few.path} has only 12 validation images: probabilities and rejections are poorly calibrated" in err


@pytest.fixture
def odd_files(tmp_path):
    """Write unusual files, and return by name whether they can be read."""
    exif = Image.Exif()
    exif[0x0112] = 8
    sixteen_bits = np.linspace(0, 65535, 40 * 30).reshape(40, 30).astype(np.uint16)
    clear = Image.merge("RGBA", (*garment((60, 80)).split(), Image.new("L", (60, 80), 128)))
    frames = [garment((60, 80)), garment((60, 80), inset=0.1)]
    files = {
        "empty.png": (b"", False),
        "text.png": (b"no picture\n", False),
        "truncated.jpg": (encoded(garment(), "JPEG")[:4000], False),
        "bomb.png": (png_with_header_size(60_000, 60_000), False),
        "tiny.png": (encoded(Image.new("L", (1, 1))), True),
        "huge.png": (encoded(Image.new("1", (8000, 8000))), True),
        "cmyk.jpg": (encoded(garment().convert("CMYK"), "JPEG"), True),
        "sixteen.png": (encoded(Image.fromarray(sixteen_bits)), True),
        "animated.gif": (encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]), True),
        "rotated.jpg": (encoded(garment(), "JPEG", exif=exif), True),
        "alpha.png": (encoded(clear), True),
        "a,b (1)=[é] {x} 'ü' \"y\" 👗.png": (encoded(garment((60, 80))), True),
        "deep/er/no suffix": (encoded(garment((60, 80)), "WEBP"), True),
    }
    for name, (content, _) in files.items():
        path = tmp_path / "odd files" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return {name: readable for name, (_, readable) in files.items()}


@pytest.mark.parametrize("output_format", ["table", "json", "csv"])
def test_each_unusual_file_has_a_line_and_unreadable_ones_set_the_exit_status(
    predict, tmp_path, monkeypatch, odd_files, output_format
):
    monkeypatch.chdir(tmp_path)
    status, out, err = predict("images=odd files", f"format={output_format}")
    assert status == 3
    *lines, last = err.splitlines()
    unreadable = [name for name, readable in odd_files.items() if not readable]
    assert sorted(line.split(":")[0] for line in lines) == sorted(f"odd files/{name}" for name in unreadable)
    assert last == "error: 4 of 13 files could not be read."
    if output_format == "table":
        for name, readable in odd_files.items():
            assert (name in out) == readable
        return
    records = json.loads(out) if output_format == "json" else read_csv(out)
    assert {record["file"].removeprefix("odd files/"): not record["error"] for record in records} == odd_files
    assert {record["answer"] or None for record in records if record["error"]} == {None}
    assert all(record["answer"] in (*NAMES, "none of these") for record in records if not record["error"])


@pytest.mark.parametrize("name", ['=HYPERLINK("a","b")', "+1+1", "-1+1", "@SUM(A1)", "\t=1"])
def test_a_csv_holds_no_formulas(capsys, name):
    print_csv([Prediction(Path(name), classes=((name, 1.0), ("Bag", 0.0))), Prediction(Path("a"), error=name)], top_k=2)
    read, unreadable = csv.DictReader(io.StringIO(capsys.readouterr().out, newline=""))
    assert (read["file"], read["answer"], read["class_1"]) == (f"./{name}", f"'{name}", f"'{name}")
    assert (read["class_2"], read["probability_1"], read["error"]) == ("Bag", "1.000000", "")
    assert (unreadable["file"], unreadable["error"]) == ("a", f"'{name}")
    (cells,) = csv.reader(io.StringIO(format_csv([[name, "-0.5", -0.5, "-", None, "a=b", "a\r=1"]]), newline=""))
    assert cells == [f"'{name}", "-0.5", "-0.5", "-", "", "a=b", "a\\r=1"]


@pytest.mark.slow
def test_file_names_need_no_escaping_alone_and_in_a_list(predict, tmp_path, monkeypatch, odd_files):
    monkeypatch.chdir(tmp_path / "odd files")
    for name, readable in odd_files.items():
        if readable and name != "huge.png":
            status, out, err = predict(f"images={name}", "format=csv")
            assert (status, err) == (0, "")
            assert [row["file"] for row in read_csv(out)] == [name]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a,b (1)=é.png").write_bytes(encoded(garment((60, 80))))
    status, out, _ = predict("images=[a,b (1)=é.png,odd files/*.gif]", "format=csv")
    assert [row["file"] for row in read_csv(out)] == ["a,b (1)=é.png", "odd files/animated.gif"]
    status, out, err = predict(f"images={tmp_path}/a,b (1)=é.png")
    assert (status, err) == (0, "")
    assert "a,b (1)=é.png" in out


def test_a_file_name_that_is_not_text_survives_json(predict, tmp_path):
    name = os.fsdecode(b"caf\xe9\n\x1b[31m.png")
    (tmp_path / name).write_bytes(encoded(garment((60, 80))))
    status, out, _ = predict(f"images={tmp_path}", "format=json")
    assert status == 0
    assert json.loads(out)[0]["file"] == f"{tmp_path}/{name}"
    status, out, _ = predict(f"images={tmp_path}")
    assert status == 0
    assert "\x1b" not in out


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ([], 2, "images is missing: give images=PATH"),
        (["images="], 2, "images= is empty"),
        (["images=[]"], 2, "images= is empty"),
        (["images=nowhere.png"], 1, "images=nowhere.png does not exist"),
        (["images=."], 1, ". holds no picture (1 other file)"),
        (["images=.", "format=xml"], 2, "format=xml is not possible: choose table, json, csv"),
        (["images=.", "top_k=0"], 2, "top_k=0 is not possible"),
        (["images=.", "top_k=three"], 2, "it takes a whole number"),
        (["images=.", "invert=yes"], 2, "invert=yes is not possible"),
        (["images=notes.md", "reject=1"], 2, "reject=1 is not possible"),
        (["images=notes.md", "reject=-0.1"], 2, "reject=-0.1 is not possible"),
        (["images=.", "colour=red"], 2, "unknown option 'colour'"),
        (["image=."], 2, "Did you mean images?"),
        (["--images", "."], 2, "type images=VALUE, without dashes"),
        (["images=.", "run=null"], 1, "run=null names no run"),
        (["images=.", "run=nowhere"], 1, "nowhere does not exist"),
        (["images=.", "run=latest", "runs_dir=nothing"], 1, "There is no finished run in"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_invalid_options_are_reported_in_one_message(predict, tmp_path, monkeypatch, arguments, status, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.md").write_text("no picture")
    exit_status, out, err = predict(*arguments)
    assert (exit_status, out) == (status, "")
    assert err.startswith("error: ")
    assert message in err
    assert "Traceback" not in err


def test_without_validation_images_there_is_a_warning_about_calibration(predict, run, tmp_path):
    (tmp_path / "garment.png").write_bytes(encoded(garment()))
    hidden = run.predictions_file.rename(tmp_path / "kept.npz")
    try:
        status, out, err = predict(f"images={tmp_path}/garment.png", "format=csv")
    finally:
        hidden.rename(run.predictions_file)
    assert status == 0
    assert err.endswith("the probabilities are not calibrated, and nothing is rejected.\n")
    assert read_csv(out)[0]["answer"] in NAMES


def test_missing_and_damaged_files_of_the_run_are_reported(command, run, tmp_path):
    copied = Run(tmp_path / "copied")
    copied.create()
    copied.write_config(run.config())
    (tmp_path / "garment.png").write_bytes(encoded(garment()))
    arguments = [f"run={copied.path}", f"images={tmp_path}/garment.png"]
    status, _, err = command(main, *arguments)
    assert status == 1
    assert "is not finished (stopped)" in err
    assert "holds no checkpoint: the run was stopped before its first epoch ended" in err
    copied.predictions_file.write_bytes(run.predictions_file.read_bytes()[:2000])
    status, _, err = command(main, *arguments)
    assert status == 1
    assert "predictions.npz is damaged" in err


def test_a_config_whose_classes_cannot_be_built_is_reported(command, run, tmp_path):
    copied = Run(shutil.copytree(run.path, tmp_path / "copied"))
    config = run.config()
    config.data.nonsense = {"a": 1}
    copied.write_config(config)
    (tmp_path / "garment.png").write_bytes(encoded(garment()))
    status, _, err = command(main, f"run={copied.path}", f"images={tmp_path}/garment.png")
    assert status in (1, 2)
    assert err.startswith("error: ")
    assert "nonsense" in err


def test_the_data_set_is_not_needed(command, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = run.config()
    config.data.root = str(tmp_path / "nowhere")
    copied = Run(tmp_path / "copied")
    copied.create()
    copied.write_config(config)
    copied.checkpoints.symlink_to(run.checkpoints)
    (tmp_path / "garment.png").write_bytes(encoded(garment()))
    assert command(main, f"run={copied.path}", "images=garment.png")[0] == 0


def start(run, *arguments, **options):
    command = [sys.executable, "-m", "fashion_cnn.predict", f"run={run.path}", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


@pytest.mark.processes
def test_ctrl_c_and_a_closed_pipe_end_it_without_a_traceback(run, picture_files, tmp_path):
    many = tmp_path / "many"
    many.mkdir()
    for copy in range(16):
        for file in picture_files.iterdir():
            (many / f"{copy} {file.name}").symlink_to(file)
    with start(run, f"images={many}", "format=json") as process:
        process.stdout.readline()
        process.stdout.close()
        assert (process.wait(PATIENCE), process.stderr.read()) == (141, b"")
    with start(run, f"images={many}", "format=csv") as process:
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=PATIENCE)
        assert (process.returncode, err) == (130, b"\nStopped.\n")
    assert not list(tmp_path.glob("outputs"))
