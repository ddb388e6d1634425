"""Export for model hubs: the written network without this package, its weights, its settings and its model card."""

import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import TINY_DATA, file_size_limit
from hydra.utils import instantiate
from torch import nn
from torch.nn import functional

from fashion_cnn.cli.main import compose
from fashion_cnn.cli.options import install_command
from fashion_cnn.errors import UserError
from fashion_cnn.export import main
from fashion_cnn.inference.network import load
from fashion_cnn.models import ImageClassifier
from fashion_cnn.runs import Run
from fashion_cnn.train import train
from fashion_cnn.training import build

safetensors = pytest.importorskip("safetensors.torch")
hub = pytest.importorskip("fashion_cnn.inference.hub")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    settings = [*TINY_DATA, f"runs_dir='{tmp_path_factory.mktemp('runs')}'"]
    return Run(Path(train(compose(overrides=settings))["run"]))


@pytest.fixture(scope="module")
def folder(run):
    folder = run.path.parent / "hub"
    hub.export_to_hub(run, folder, version="0.1.0", license_name="mit")
    return folder


RECORDED = {}


@pytest.fixture(autouse=True)
def recorded_once(monkeypatch):
    """Record the networks of equal weights once: it takes seconds."""
    record = torch.export.export

    def export(network, *arguments, **settings):
        key = (type(network.module.network), *(w.numpy().tobytes() for w in network.state_dict().values()))
        if key not in RECORDED:
            RECORDED[key] = record(network, *arguments, **settings)
        return RECORDED[key]

    monkeypatch.setattr(torch.export, "export", export)


@pytest.fixture(scope="module")
def data(run):
    data = build.data(run.config())
    data.setup("test")
    return data


@pytest.fixture(scope="module")
def expected(run, data):
    with torch.inference_mode():
        return load(run)(data.normalise(data.test_split.images))


@pytest.mark.slow
def test_another_process_gets_the_logits_of_the_network_without_this_package(folder, data, expected, tmp_path):
    np.save(tmp_path / "images.npy", data.test_split.images.numpy())
    code = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(('fashion_cnn', 'lightning', 'hydra', 'omegaconf')))\n"
        "import numpy, torch\n"
        "from model import load\n"
        f"images = torch.from_numpy(numpy.load({str(tmp_path / 'images.npy')!r}))\n"
        "with torch.inference_mode():\n"
        f"    numpy.save({str(tmp_path / 'logits.npy')!r}, load()(images)[0].numpy())\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True)
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), expected.numpy(), atol=1e-4)
    (example,) = re.findall(r"^```python\n(.*?)^```", (folder / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    printed = subprocess.run([sys.executable, "-c", example], cwd=folder, check=True, capture_output=True, text=True)
    assert set(eval(printed.stdout)) == {"top", "middle", "low", "bottom"}


def test_weights_and_settings_rebuild_the_network(folder, data, expected, run):
    config = json.loads((folder / "config.json").read_text())
    network = instantiate(config["architecture"], in_channels=config["preprocessing"]["image_shape"][0], num_classes=4)
    weights = safetensors.load_file(folder / "model.safetensors")
    network.load_state_dict(weights)
    (mean,), (scale,) = (config["preprocessing"][name] for name in ("pixel_mean", "pixel_scale"))
    normalised = (data.test_split.images.float() - mean) * scale
    with torch.inference_mode():
        np.testing.assert_allclose(network.eval()(normalised).numpy(), expected.numpy(), atol=1e-4)
    assert config["class_names"] == list(config["label2id"]) == list(config["id2label"].values())
    assert config["weights_sha256"] == run.results()["weights_sha256"]


def test_the_metadata_of_the_model_card_is_what_hubs_read(folder, run):
    cards = pytest.importorskip("huggingface_hub")
    card = cards.ModelCard.load(folder / "README.md")
    assert (card.data.license, card.data.pipeline_tag) == ("mit", "image-classification")
    (result,) = card.data.eval_results
    assert (result.metric_type, result.dataset_split) == ("accuracy", "test")
    assert result.metric_value == pytest.approx(run.results()["test/accuracy"], abs=1e-6)
    assert "**Limitations.**" in card.text


def test_no_licence_is_stated_unless_one_is_given(command, run, tmp_path):
    copy = Run(shutil.copytree(run.path, tmp_path / "run"))
    status, out, err = command(main, f"run={copy.path}", "format=hub")
    assert (status, err) == (0, "")
    written = copy.export / "hub"
    assert {file.name for file in written.iterdir()} == {
        "model.safetensors",
        "config.json",
        "model.py",
        "README.md",
    }
    assert all(name in out for name in ("model.safetensors", "Written to"))
    assert "license" not in yaml.safe_load((written / "README.md").read_text().split("---\n")[1])


class Attention(nn.Module):
    """A network with sizes computed in its forward pass, a constant on the device, a tied and an unsaved weight."""

    def __init__(self, *, in_channels, num_classes):
        super().__init__()
        self.query = nn.Linear(in_channels * 20, 16)
        self.key = self.query
        self.register_buffer("shift", torch.linspace(-1, 1, 16), persistent=False)
        self.classifier = nn.Linear(16, num_classes)

    def forward(self, images):
        rows = images.transpose(1, 2).reshape(images.shape[0], images.shape[2], -1)
        position = torch.arange(rows.shape[1], device=images.device).view(1, -1, 1) / rows.shape[1]
        query, key = self.query(rows) + position, self.key(rows) * self.shift
        return self.classifier(functional.scaled_dot_product_attention(query, key, key).flatten(1, 1).mean(1))


class WithoutEmbedding(nn.Module):
    """A network whose logits do not come from a linear layer."""

    def __init__(self, *, in_channels, num_classes):
        super().__init__()
        self.convolution = nn.Conv2d(in_channels, num_classes, 3)

    def forward(self, images):
        return self.convolution(images).amax(dim=(2, 3)).clamp(max=float("inf"))


class DependsOnValues(nn.Module):
    """A network that torch.export cannot record."""

    def __init__(self, *, in_channels, num_classes):
        super().__init__()
        self.classifier = nn.Linear(in_channels * 400, num_classes)

    def forward(self, images):
        return self.classifier(images.flatten(1) if images.sum() > 1e9 else -images.flatten(1))


def classifier(network):
    torch.manual_seed(0)
    return ImageClassifier(network=network(in_channels=1, num_classes=4), image_shape=(1, 20, 20), num_classes=4).eval()


@pytest.mark.slow
@pytest.mark.parametrize("network", [Attention, WithoutEmbedding])
def test_any_network_becomes_code_that_gives_its_logits(network, data, tmp_path):
    module = classifier(network)
    source, weights = hub.write_code(module, data, version="0.1.0")
    (tmp_path / "model.py").write_text(source)
    settings = {"pixel_mean": data.pixel_mean.flatten().tolist(), "pixel_scale": data.pixel_scale.flatten().tolist()}
    model = runpy.run_path(str(tmp_path / "model.py"))["Model"]
    written = model({"class_names": [], "temperature": 1.0, "preprocessing": settings}, weights).eval()
    for images in (data.test_split.images[:1], data.test_split.images[:7]):
        with torch.inference_mode():
            logits = written(images)
            expected = module(data.normalise(images))
        logits = logits if isinstance(logits, torch.Tensor) else logits[0]
        np.testing.assert_allclose(logits.numpy(), expected.numpy(), atol=1e-5)


def test_a_network_that_cannot_be_recorded_is_refused_with_the_reason(data):
    with pytest.raises(UserError, match=r"torch\.export cannot record DependsOnValues .*: no file is written"):
        hub.write_code(classifier(DependsOnValues), data, version="0.1.0")


def test_a_written_network_that_differs_is_not_kept_and_older_files_stay(run, tmp_path, monkeypatch):
    (tmp_path / "model.py").write_text("older")
    monkeypatch.setattr(hub, "_CODE", hub._CODE.replace("- self.pixel_mean", "+ self.pixel_mean"))
    with pytest.raises(UserError, match="differs from ResNet on random images: no file is written"):
        hub.export_to_hub(run, tmp_path, version="0.1.0", license_name=None)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("model.py", "older")]


def test_a_full_disk_ends_the_export_in_one_message(command, run, tmp_path):
    with file_size_limit(2000):
        status, _, err = command(main, f"run={run.path}", "format=hub", f"out='{tmp_path}'")
    assert (status, err.count("\n")) == (1, 1)
    assert f"{tmp_path} cannot be used (file too large)" in err
    assert not list(tmp_path.iterdir())


def test_a_run_without_model_card_and_an_unknown_format_are_refused(command, run, tmp_path):
    copy = Run(shutil.copytree(run.path, tmp_path / "run"))
    copy.model_card_file.unlink()
    status, _, err = command(main, f"run={copy.path}", "format=hub")
    assert (status, f"{copy.model_card_file} is missing: copy the run whole." in err) == (1, True)
    status, _, err = command(main, f"run={run.path}", "format=tflite")
    assert (status, "format=tflite is not possible: choose onnx, hub." in err) == (2, True)


def test_the_error_for_a_missing_package_says_how_to_install_it(command, run, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    status, _, err = command(main, f"run={run.path}", "format=hub")
    assert status == 1
    assert install_command("hub") in err
