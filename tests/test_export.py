"""Export to ONNX: parity with PyTorch, quantisation and metadata."""

import errno
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, TINY_DATA, file_size_limit
from PIL import Image, ImageDraw

from fashion_cnn.cli.main import compose
from fashion_cnn.cli.options import install_command
from fashion_cnn.errors import UserError
from fashion_cnn.export import main
from fashion_cnn.inference import export as exporting
from fashion_cnn.inference.network import TrainedNetwork, load, load_data
from fashion_cnn.inference.predictor import Predictor
from fashion_cnn.metrics.calibration import Calibration
from fashion_cnn.models import ImageClassifier, ResNet
from fashion_cnn.pictures import Preparation, decode
from fashion_cnn.runs import Run, temporary_folder
from fashion_cnn.train import train
from fashion_cnn.training import build

onnxruntime = pytest.importorskip("onnxruntime")


class ReversedResNet(ResNet):
    """A network whose forward pass does more than its classifier on its features."""

    def forward(self, images):
        return super().forward(images).flip(-1)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    settings = [*TINY_DATA, f"runs_dir='{tmp_path_factory.mktemp('runs')}'"]
    return Run(Path(train(compose(overrides=settings))["run"]))


PROGRAMS = {}


@pytest.fixture
def converted_once(monkeypatch):
    """Convert equal networks to ONNX once: the conversion is what takes long."""
    convert = torch.onnx.export

    def export(network, *arguments, **settings):
        key = (network.temperature, *(tensor.numpy().tobytes() for tensor in network.state_dict().values()))
        if key not in PROGRAMS:
            PROGRAMS[key] = convert(network, *arguments, **settings)
        return PROGRAMS[key]

    monkeypatch.setattr(torch.onnx, "export", export)


@pytest.fixture(scope="module")
def exported(run):
    """The folder and record of an export that keeps the quantised file at any accuracy."""
    folder = run.path.parent / "exported"
    record = exporting.export_run(run, folder, data_root=None, int8=True, int8_tolerance=1.0, version="0.1.0")
    return folder, record


@pytest.fixture(scope="module")
def images(run):
    data = build.data(run.config())
    data.setup("test")
    return data.test_split.images


def test_the_file_equals_pytorch_for_batches_of_any_size(run, exported, images):
    folder, record = exported
    session = exporting.open_onnx(folder / "network.onnx")
    module, data = load(run), build.data(run.config())
    for batch_size in (1, 7, 40):
        logits, probabilities, embedding = session.run(None, {"images": images[:batch_size].numpy()})
        with torch.inference_mode():
            normalised = data.normalise(images[:batch_size])
            expected, features = module(normalised), module.embed(normalised)
        np.testing.assert_allclose(logits, expected.numpy(), atol=1e-4)
        np.testing.assert_allclose(embedding, features.numpy(), atol=1e-4)
        scaled = (expected / record["temperature"]).softmax(dim=1)
        np.testing.assert_allclose(probabilities, scaled.numpy(), atol=1e-4)
    by_name = {variant["name"]: variant for variant in record["ways"]}
    assert by_name["ONNX, float32"]["differing"] == 0
    assert by_name["ONNX, float32"]["test_accuracy"] == by_name["PyTorch, float32"]["test_accuracy"]


EXAMPLES = REPOSITORY / "docs" / "examples"


@pytest.fixture
def photographs(tmp_path):
    """Photographs of a bar on a plain background, on noise, and of the network's own size."""
    noise = np.random.default_rng(0)
    files = []
    for number, (size, background) in enumerate(
        [((133, 97), 245), ((300, 420), 30), ((200, 150), None), ((20, 20), 255)]
    ):
        picture = Image.new("RGB", size, (background or 0,) * 3)
        if background is None:
            picture = Image.fromarray(noise.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
        width, height = size
        corners = [(0.3 * width, 0.2 * height), (0.8 * width, 0.3 * height), (0.6 * width, 0.8 * height)]
        ImageDraw.Draw(picture).polygon(corners, fill=(40, 90, 160))
        files.append(tmp_path / f"{number}.png")
        picture.save(files[-1])
    return files


def test_the_example_without_torch_gives_the_predictions_of_predict(run, exported, photographs):
    folder, record = exported
    code = (
        f"import sys, runpy; sys.argv = {['classify.py', str(folder / 'network.onnx'), *map(str, photographs)]}\n"
        f"runpy.run_path({str(EXAMPLES / 'classify.py')!r}, run_name='__main__')\nprint('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *records, has_torch = done.stdout.splitlines()
    assert has_torch == "False"
    network = TrainedNetwork(run)
    # The example computes in float32, the run in bfloat16 where the processor does.
    network.precision = "32-true"
    expected = Predictor(network, Calibration(record["temperature"])).predict(photographs)
    for record, prediction in zip(map(json.loads, records), expected, strict=True):
        assert Path(record["file"]) == prediction.path
        assert [name for name, _ in record["classes"]] == [name for name, _ in prediction.classes]
        assert [value for _, value in record["classes"]] == pytest.approx(
            [value for _, value in prediction.classes], abs=1e-3
        )


def test_the_example_in_javascript_gives_the_predictions_of_predict(exported, photographs, tmp_path):
    packages = "['onnxruntime-web', 'pngjs', 'jpeg-js'].forEach((name) => require.resolve(name))"
    if not shutil.which("node") or subprocess.run(["node", "-e", packages], capture_output=True).returncode:
        pytest.skip("needs node and its packages onnxruntime-web, pngjs and jpeg-js (NODE_PATH)")
    folder, _ = exported
    preparation = Preparation((1, 20, 20))
    # The network's own data set has whole images; those of Fashion-MNIST are items that were cut out.
    session = exporting.open_onnx(folder / "network.onnx")
    names = json.loads(session.get_modelmeta().custom_metadata_map["class_names"])
    metadata = tmp_path / "metadata.json"
    metadata.write_text(json.dumps({"class_names": names, "preparation": asdict(preparation)}))
    command = ["node", EXAMPLES / "classify.js", folder / "network.onnx", metadata, *photographs]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for record, file in zip(map(json.loads, done.stdout.splitlines()), photographs, strict=True):
        image = preparation.array(decode(file, min_pixels=preparation.min_pixels))
        (expected,) = session.run(["probabilities"], {"images": image[None]})
        probabilities = dict(zip(names, expected[0].tolist(), strict=True))
        assert record["classes"][0][0] == max(probabilities, key=probabilities.get)
        for name, value in record["classes"]:
            assert value == pytest.approx(probabilities[name], abs=0.02)


@pytest.mark.usefixtures("converted_once")
@pytest.mark.parametrize("has_test", [True, False])
@pytest.mark.slow
def test_pytorch_computes_each_image_once(run, tmp_path, monkeypatch, has_test):
    sizes = []
    compute = exporting.NetworkRunner.logits

    def count(network, images):
        if len(images) > 1:  # Latencies are those of single images.
            sizes.append(len(images))
        return compute(network, images)

    monkeypatch.setattr(exporting.NetworkRunner, "logits", count)
    if not has_test:
        monkeypatch.setattr(type(build.data(run.config())), "has_test", False)
    record = exporting.export_run(run, tmp_path, data_root=None, int8=False, int8_tolerance=0, version="0.1.0")
    assert sizes == ([32, 40] if has_test else [32])
    assert [variant["val_accuracy"] is None for variant in record["ways"]] == [False, False]
    assert [variant["differing"] for variant in record["ways"]] == [0, 0]


def test_the_file_runs_on_small_batches_whatever_the_run_names(run, exported, monkeypatch):
    """All activations of a batch are in memory: a run of someone else may name one of 100,000 images."""
    folder, _ = exported
    data = load_data(run)
    data.setup("test")
    data.eval_batch_size = 100_000
    monkeypatch.setattr("fashion_cnn.inference.network._MAX_BATCH_SIZE", 16)
    network = exporting.NetworkRunner(load(run), data)
    sizes = []
    outputs = onnxruntime.InferenceSession.run
    monkeypatch.setattr(
        onnxruntime.InferenceSession,
        "run",
        lambda session, names, images: sizes.append(len(images["images"])) or outputs(session, names, images),
    )
    checked = exporting.CheckImages("test", data.test_split.images.numpy())
    logits = network.logits(data.test_split.images)
    files = {exporting._FLOAT: folder / "network.onnx"}
    exporting._check_parity(network, logits, exported[1]["temperature"], files[exporting._FLOAT], checked)
    check_logits = {exporting._TORCH: logits.numpy()}
    exporting._evaluate_variants(network, files, checked, check_logits, network.logits(data.val_split.images))
    assert max(sizes) == 16


@pytest.mark.parametrize("name", ["network.onnx", "network_int8.onnx"])
def test_the_file_has_metadata(run, exported, name):
    folder, _ = exported
    stored = exporting.open_onnx(folder / name).get_modelmeta().custom_metadata_map
    metadata = {key: json.loads(value) for key, value in stored.items() if not key.startswith("onnx.")}
    assert metadata["class_names"] == ["top", "middle", "low", "bottom"]
    assert metadata["image_shape"] == [1, 20, 20]
    assert metadata["mean"] == pytest.approx(run.config().data["mean"])
    assert metadata["std"] == pytest.approx(run.config().data["std"])
    assert metadata["results"]["weights_sha256"] == run.results()["weights_sha256"]
    assert metadata["config"]["model"]["network"]["widths"] == [8, 16]


def test_the_quantised_network_is_close_to_the_float_network(exported):
    folder, record = exported
    variant = next(variant for variant in record["ways"] if variant["name"] == "ONNX, int8")
    assert variant["file"] == "network_int8.onnx"
    assert 0 < variant["max_difference"] < 5
    assert (folder / "export.json").exists()


@pytest.mark.usefixtures("converted_once")
def test_a_quantised_file_that_loses_too_much_accuracy_is_not_kept(run, tmp_path):
    record = exporting.export_run(run, tmp_path, data_root=None, int8=True, int8_tolerance=-1.0, version="0.1.0")
    assert [variant["name"] for variant in record["ways"]] == ["PyTorch, float32", "ONNX, float32"]
    assert "int8 was not kept" in record["remarks"][0]
    assert {file.name for file in tmp_path.iterdir()} == {"network.onnx", "export.json"}


@pytest.mark.training
@pytest.mark.parametrize("output", [0, 1, 2])
def test_a_differing_file_is_not_kept_and_an_older_one_stays(run, tmp_path, monkeypatch, output):
    forward = exporting.ExportedNetwork.forward

    def scaled_forward(self, images):
        outputs = list(forward(self, images))
        if torch.compiler.is_exporting():
            outputs[output] = outputs[output] * 1.01
        return tuple(outputs)

    (tmp_path / "network.onnx").write_text("older")
    monkeypatch.setattr(exporting.ExportedNetwork, "forward", scaled_forward)
    with pytest.raises(UserError, match=r"differs from PyTorch on \d+ of 40 test images"):
        exporting.export_run(run, tmp_path, data_root=None, int8=True, int8_tolerance=1.0, version="0.1.0")
    assert [file.name for file in tmp_path.iterdir()] == ["network.onnx"]
    assert (tmp_path / "network.onnx").read_text() == "older"


@pytest.fixture(scope="module")
def reversed_run(tmp_path_factory):
    settings = [*TINY_DATA, f"runs_dir='{tmp_path_factory.mktemp('reversed')}'", "trainer.max_epochs=6"]
    network = "model.network._target_=test_export.ReversedResNet"
    return Run(Path(train(compose(overrides=[*settings, network]))["run"]))


@pytest.mark.training
def test_a_network_whose_forward_does_more_is_exported_as_it_is_evaluated(reversed_run, tmp_path, images):
    record = exporting.export_run(
        reversed_run, tmp_path, data_root=None, int8=False, int8_tolerance=1.0, version="0.1.0"
    )
    module, data = load(reversed_run), build.data(reversed_run.config())
    with torch.inference_mode():
        expected = module(data.normalise(images))
    logits, _, _ = exporting.open_onnx(tmp_path / "network.onnx").run(None, {"images": images.numpy()})
    np.testing.assert_allclose(logits, expected.numpy(), atol=1e-4)
    recorded = reversed_run.results()["test/accuracy"]
    assert recorded > 0.6, "reversed classes would have the accuracy of other classes"
    assert record["ways"][1]["test_accuracy"] == pytest.approx(recorded, abs=3 / 40)
    actual = TrainedNetwork(reversed_run).logits(images)
    np.testing.assert_allclose(actual.numpy(), expected.numpy(), atol=0.2)


@pytest.mark.training
def test_the_export_is_checked_against_the_forward_pass(reversed_run, tmp_path, monkeypatch):
    outputs = ImageClassifier.logits_and_embeddings

    def outputs_of_the_head(module, normalised):
        _, embeddings = outputs(module, normalised)
        return module.head()(embeddings), embeddings

    monkeypatch.setattr(ImageClassifier, "logits_and_embeddings", outputs_of_the_head)
    with pytest.raises(UserError, match=r"differs from PyTorch on \d+ of 40 test images"):
        exporting.export_run(reversed_run, tmp_path, data_root=None, int8=False, int8_tolerance=1.0, version="0.1.0")
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("converted_once")
def test_an_export_with_another_accuracy_than_recorded_is_refused(run, tmp_path):
    copy = Run(shutil.copytree(run.path, tmp_path / "run"))
    results = copy.results()
    copy.write_results(results | {"test/accuracy": results["test/accuracy"] - 0.1})
    with pytest.raises(UserError, match=r"test accuracy of .*%, but the run recorded .*%: no file is written"):
        exporting.export_run(copy, tmp_path / "out", data_root=None, int8=False, int8_tolerance=1.0, version="0.1.0")
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.usefixtures("converted_once")
@pytest.mark.parametrize("size", [0, 2000, 20_000])
def test_a_full_disk_ends_the_export_in_one_message_and_an_older_file_stays(command, run, tmp_path, size):
    (tmp_path / "network.onnx").write_text("older")
    with file_size_limit(size):
        status, _, err = command(main, f"run={run.path}", f"out={tmp_path}")
    assert (status, err.count("\n")) == (1, 1)
    assert f"{tmp_path}" in err
    assert "cannot be used (file too large)" in err
    assert [file.name for file in tmp_path.iterdir()] == ["network.onnx"]
    assert (tmp_path / "network.onnx").read_text() == "older"


@pytest.mark.usefixtures("converted_once")
@pytest.mark.parametrize("share", [0, 0.5])
def test_a_file_that_the_quantiser_cannot_write_whole_ends_the_export_in_one_message(
    command, run, tmp_path, monkeypatch, share
):
    def prepare_in_part(source, target, **settings):
        content = Path(source).read_bytes()
        Path(target).write_bytes(content[: int(len(content) * share)])

    monkeypatch.setattr(exporting, "quant_pre_process", prepare_in_part)
    status, _, err = command(main, f"run={run.path}", f"out={tmp_path}")
    assert (status, err.count("\n")) == (1, 1)
    assert f"{tmp_path} cannot be used (a file of the quantiser is incomplete): free some space" in err
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("converted_once")
def test_the_quantiser_works_in_the_folder_of_the_export_and_not_in_the_systems(run, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", "no such folder")
    exporting.export_run(run, tmp_path, data_root=None, int8=True, int8_tolerance=1.0, version="0.1.0")
    assert {file.name for file in tmp_path.iterdir()} == {"network.onnx", "network_int8.onnx", "export.json"}
    assert tempfile.tempdir == "no such folder"


@pytest.mark.usefixtures("converted_once")
def test_a_file_that_onnxruntime_cannot_write_leaves_no_message_of_its_own(run, tmp_path, monkeypatch, caplog):
    def fail(*args, **kwargs):
        logging.getLogger("onnxruntime.quantization").error("Traceback of onnxruntime")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(exporting, "quant_pre_process", fail)
    with pytest.raises(UserError, match=rf"^{tmp_path} cannot be used \(no space left on device\)"):
        exporting.export_run(run, tmp_path, data_root=None, int8=True, int8_tolerance=1.0, version="0.1.0")
    assert "Traceback" not in caplog.text


@pytest.mark.usefixtures("converted_once")
def test_folders_of_killed_exports_are_removed_and_those_in_use_stay(run, tmp_path):
    with temporary_folder(tmp_path, ".unchecked-") as at_work:
        (at_work / "network.onnx").write_text("half")
        # A copy has no lock, as the folder of a killed process.
        shutil.copytree(at_work, f"{str(at_work)[:-8]}abcdefgh")
        for name, hours in (("of another machine", 1), ("old", 25)):
            folder = shutil.copytree(at_work, tmp_path / f".unchecked-{name}")
            os.utime(folder, (time.time() - hours * 3600,) * 2)
        exporting.export_run(run, tmp_path, data_root=None, int8=False, int8_tolerance=1.0, version="0.1.0")
        assert {file.name for file in tmp_path.glob(".*")} == {at_work.name, ".unchecked-of another machine"}
    assert not at_work.exists()


@pytest.mark.slow
def test_the_command_prints_and_the_model_card_lists_the_files(command, run, tmp_path):
    copy = Run(shutil.copytree(run.path, tmp_path / "a run"))
    status, out, err = command(main, f"run={copy.path}", "int8=false")
    assert (status, err) == (0, "")
    assert "ONNX, float32" in out
    assert (copy.export / "network.onnx").exists()
    card = copy.model_card_file.read_text()
    assert "**Exported.**" in card
    assert "`network.onnx`" in card


@pytest.mark.training
@pytest.mark.parametrize(("val_share", "split"), [(0.4, "validation"), (0, "training")])
def test_a_run_without_test_set_is_checked_on_validation_or_training_images(
    command, picture_folder, tmp_path, val_share, split
):
    network = [word for word in TINY_DATA if word.startswith(("model", "trainer"))]
    data = ["data=image_folder", f"data.root='{picture_folder}'", "data.test_share=0", f"data.val_share={val_share}"]
    settings = [*data, *network, "data.batch_size=4", "callbacks=essential", "trainer.max_epochs=1"]
    run = Run(Path(train(compose(overrides=[*settings, f"runs_dir='{tmp_path}'"]))["run"]))
    status, out, err = command(main, f"run={run.path}")
    assert (status, err) == (0, "")
    assert f"There are no test images: checked on {split} images." in out
    exported = json.loads((run.export / "export.json").read_text())
    for variant in exported["ways"]:
        assert variant["test_accuracy"] is None
        assert (variant["val_accuracy"] is None) == (split == "training")
    assert exported["ways"][1]["max_difference"] < 1e-3
    card = run.model_card_file.read_text()
    assert "on test, " not in card.partition("**Exported.**")[2]
    assert f"checked on {split} images" in card
    assert f"The pictures in the folder {picture_folder.name}, with a sub-folder for each class." in card


def test_the_error_for_a_missing_package_says_how_to_install_it(command, run, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    status, _, err = command(main, f"run={run.path}")
    assert status == 1
    assert install_command("export") in err
