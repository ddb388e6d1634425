"""Explanations: Grad-CAM, integrated gradients and nearest training images."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY_DATA
from tiny_images import TinyDataModule
from torch import nn
from torchvision.models import ConvNeXt, SwinTransformer, VisionTransformer
from torchvision.models.convnext import CNBlockConfig

from fashion_cnn.cli.main import compose
from fashion_cnn.errors import UserError
from fashion_cnn.inference.explain import TrainingImages, grad_cam
from fashion_cnn.inference.network import NetworkRunner
from fashion_cnn.models import ResNet
from fashion_cnn.training import build


class BrightnessNetwork(nn.Module):
    """Predicts class 0 for light images and class 1 for dark ones, with one feature per pixel."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.ReLU(inplace=True))
        self.classifier = nn.Linear(1, 2)
        nn.init.ones_(self.trunk[0].weight)
        self.classifier.weight.data = torch.tensor([[1.0], [-1.0]])

    def forward(self, images):
        return self.classifier(self.trunk(images).mean(dim=(2, 3)))


@pytest.fixture
def lit_corner():
    image = torch.zeros(1, 1, 8, 8)
    image[..., :3, :3] = 1
    return image


def test_grad_cam_finds_the_light_pixels(lit_corner):
    network = BrightnessNetwork()
    light, dark = (grad_cam(network, lit_corner.clone(), torch.tensor([label]))[0] for label in (0, 1))
    assert torch.equal(light, lit_corner[0, 0])
    assert not dark.any()
    assert network.trunk[1].inplace, "the network is unchanged"


def test_grad_cam_takes_a_layer_of_sufficient_resolution():
    torch.manual_seed(0)
    network = ResNet(in_channels=1, num_classes=4, stem=[8], widths=[8, 16, 16], depths=[1, 0, 0]).eval()
    images = torch.rand(3, 1, 28, 28)
    before = network(images)
    maps = grad_cam(network, images.clone(), torch.tensor([0, 1, 2]))
    assert maps.shape == (3, 28, 28)
    assert maps.amin() >= 0
    # A map may be zero everywhere.
    assert {round(maximum, 4) for maximum in maps.amax(dim=(1, 2)).tolist()} <= {0, 1}
    assert maps.any()
    assert torch.equal(network(images), before)


@pytest.mark.parametrize(
    "network",
    [
        VisionTransformer(32, patch_size=8, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=4),
        SwinTransformer([4, 4], embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=[4, 4], num_classes=4),
        ConvNeXt([CNBlockConfig(16, None, 2)], num_classes=4),
    ],
    ids=lambda network: type(network).__name__,
)
def test_grad_cam_rejects_a_network_without_feature_maps(network):
    with pytest.raises(UserError, match="Grad-CAM needs activations"):
        grad_cam(network.eval(), torch.rand(1, 3, 32, 32), torch.tensor([0]))


def test_integrated_gradients_add_up_to_the_logit(lit_corner):
    pytest.importorskip("captum")
    from fashion_cnn.inference.explain import integrated_gradients

    network = BrightnessNetwork()
    for label in (0, 1):
        attribution = integrated_gradients(network, lit_corner, torch.tensor([label]), torch.zeros(1, 8, 8))
        expected = network(lit_corner)[0, label] - network(torch.zeros(1, 1, 8, 8))[0, label]
        assert attribution.sum().item() == pytest.approx(expected.item(), abs=1e-5)
        assert not attribution[0, 3:, 3:].any()


def test_a_training_image_is_nearest_to_itself():
    config = compose(overrides=TINY_DATA)
    data = build.data(config)
    network = NetworkRunner(build.module(config, data), data)
    nearest = TrainingImages(network).nearest(data.train_split.images[5:7], 3)
    assert torch.equal(nearest.images[:, 0], data.train_split.images[5:7])
    assert nearest.similarity[:, 0].tolist() == pytest.approx([1, 1])
    assert torch.equal(nearest.indices[:, 0], data.train_split.indices[5:7])
    assert (nearest.similarity.diff(dim=1) <= 0).all()


def test_training_images_are_read_in_small_batches_whatever_the_run_names(tmp_path, monkeypatch):
    config = compose(overrides=TINY_DATA)
    data = build.data(config)
    data.eval_batch_size = 100_000
    monkeypatch.setattr("fashion_cnn.inference.network._MAX_BATCH_SIZE", 16)
    read = []
    split = type(data.train_split)
    images_at = split.images_at
    monkeypatch.setattr(split, "images_at", lambda images, at: read.append(len(at)) or images_at(images, at))
    TrainingImages(NetworkRunner(build.module(config, data), data), cache=tmp_path / "embeddings.npz")
    assert max(read) == 16


def test_the_nearest_images_of_a_sample_are_computed_once_for_each_network(tmp_path, monkeypatch):
    config = compose(overrides=TINY_DATA)
    data = build.data(config)
    network = NetworkRunner(build.module(config, data), data)
    cache = tmp_path / "embeddings.npz"
    embedded = []
    features = NetworkRunner.features
    monkeypatch.setattr(
        NetworkRunner, "features", lambda runner, images: embedded.append(len(images)) or features(runner, images)
    )
    query = data.train_split.images[5:7]
    first = TrainingImages(network, count=30, cache=cache).nearest(query, 50)
    assert sum(embedded) == 30 + 2
    assert first.indices.shape == (2, 30)
    assert set(first.indices[0].tolist()) == set(data.train_split.indices[:30].tolist())
    again = TrainingImages(network, count=30, cache=cache).nearest(query, 50)
    assert sum(embedded) == 30 + 2 + 2
    assert torch.equal(first.similarity, again.similarity)
    assert torch.equal(first.indices, again.indices)
    other = NetworkRunner(build.module(compose(overrides=[*TINY_DATA, "seed=1"]), data), data)
    next(other.module.parameters()).data += 1
    TrainingImages(other, count=30, cache=cache)
    assert sum(embedded) == 30 + 2 + 2 + 30
    cache.write_bytes(b"damaged")
    TrainingImages(other, count=30, cache=cache)
    TrainingImages(other, count=30, cache=tmp_path / "missing" / "embeddings.npz")
    assert sum(embedded) == 30 + 2 + 2 + 90


@pytest.mark.parametrize("kind", ["pipe", "bomb", "array"])
def test_a_file_of_embeddings_of_someone_else_is_not_unpacked(tmp_path, monkeypatch, kind):
    config = compose(overrides=TINY_DATA)
    data = build.data(config)
    network = NetworkRunner(build.module(config, data), data)
    cache = tmp_path / "embeddings.npz"
    if kind == "pipe":
        os.mkfifo(cache)
    elif kind == "bomb":
        # A few bytes for each megabyte.
        np.savez_compressed(cache, key=np.zeros(4_000_000, np.uint8), embeddings=np.zeros((30, 1), np.float32))
        monkeypatch.setattr("fashion_cnn.metrics.predictions._MAX_UNPACKED", 1_000_000)
        monkeypatch.setattr(np.lib.format, "read_array", lambda *args, **settings: pytest.fail("it is unpacked"))
    else:
        with cache.open("wb") as file:
            np.save(file, np.zeros(3))
    TrainingImages(network, count=30, cache=cache)
    assert cache.is_file(), "the file is replaced"


def test_explain_keeps_the_embeddings_in_the_run(command, run, tmp_path, monkeypatch):
    pytest.importorskip("captum")
    from matplotlib.figure import Figure
    from PIL import Image

    from fashion_cnn.explain import main
    from fashion_cnn.inference import explain as explain_module

    monkeypatch.setattr(explain_module, "draw", lambda *page: Figure())
    Image.new("L", (20, 20), 200).save(tmp_path / "light.png")
    assert command(main, f"run={run}", f"images={tmp_path}/light.png", "training_images=20")[0] == 0
    stored = (run / "training_embeddings.npz").read_bytes()
    monkeypatch.setattr(TrainingImages, "_embed_all", lambda images: pytest.fail("they are stored"))
    assert command(main, f"run={run}", f"images={tmp_path}/light.png", "training_images=20")[0] == 0
    assert (run / "training_embeddings.npz").read_bytes() == stored
    status, _, err = command(main, f"run={run}", f"images={tmp_path}/light.png", "training_images=0")
    assert status == 2
    assert "training_images=0 is not possible" in err
    page = tmp_path / "pages" / "light.png.png"
    page.parent.mkdir()
    os.mkfifo(page)
    options = (f"images={tmp_path}/light.png", "training_images=20", f"out={page.parent}")
    assert command(main, f"run={run}", *options)[0] == 0
    assert page.with_name("light.png-2.png").is_file(), "a pipe is not opened"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    from fashion_cnn.train import train

    folder = tmp_path_factory.mktemp("runs")
    return train(compose(overrides=[*TINY_DATA, "callbacks=essential", f"runs_dir='{folder}'"]))["run"]


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the run for each test, without the pages of other tests."""
    return shutil.copytree(trained, tmp_path / "run")


@pytest.mark.slow
def test_each_picture_has_its_page_and_unreadable_files_are_reported(command, run, tmp_path, monkeypatch):
    pytest.importorskip("captum")
    from matplotlib.figure import Figure
    from PIL import Image

    from fashion_cnn.explain import main
    from fashion_cnn.inference import explain as explain_module
    from fashion_cnn.metrics.calibration import Calibration

    pictures = tmp_path / "pictures, (1)"
    pictures.mkdir()
    Image.new("L", (20, 20), 200).save(pictures / "light.png")
    (pictures / "none.png").write_text("none")
    status, out, err = command(main, f"run={run}", f"images={pictures}", "neighbours=2", "about=low")
    assert status == 3
    assert "1 of 2 files could not be read" in err
    (page,) = (Path(run) / "explained").iterdir()
    assert page.name == "light.png.png"
    assert out.strip().endswith("light.png.png")
    others = tmp_path / "others"
    others.mkdir()
    Image.new("L", (20, 20), 100).save(others / "light.png")
    for folder, expected in ((others, "light.png-2.png"), (pictures, "light.png.png"), (others, "light.png-2.png")):
        status, out, _ = command(main, f"run={run}", f"images={folder}/light.png", "neighbours=2")
        assert status == 0
        assert out.strip().endswith(f"/{expected}"), "the page of another picture stays, its own is replaced"
    assert len(list((Path(run) / "explained").iterdir())) == 2
    titles = []
    with monkeypatch.context() as patch:
        patch.setattr(explain_module, "load_calibration", lambda run, reject: (Calibration(threshold=1 - reject), None))
        patch.setattr(explain_module, "draw", lambda explanation, _: titles.append(explanation.title) or Figure())
        assert command(main, f"run={run}", f"images={pictures}/light.png", "reject=0.0")[0] == 0
    assert titles[0].startswith("light.png: none of these (most like "), "as predict does"
    status, _, err = command(main, f"run={run}", f"images={pictures}", "about=Hat")
    assert (status, err) == (1, "error: about=Hat is not a class: choose one of top, middle, low, bottom.\n")
    status, _, err = command(main, f"run={run}", "images=")
    assert (status, err.count("\n")) == (2, 1)
    assert "images= is empty: give images=PATH" in err
    status, _, err = command(main, f"run={run}", f"images={pictures}", "reject=5")
    assert (status, err.count("\n")) == (2, 1)
    assert "reject=5 is not possible" in err


@pytest.mark.slow
def test_a_file_with_any_name_has_its_page(command, run, tmp_path):
    pytest.importorskip("captum")
    from PIL import Image

    from fashion_cnn.explain import main

    names = ["shirt $10_$20.png", os.fsdecode(b"caf\xe9.png"), f"{'long ' * 49}.png"]
    (tmp_path / "odd").mkdir()
    for name in names:
        Image.new("L", (20, 20), 200).save(tmp_path / "odd" / name)
    for _ in ("first", "again"):
        status, out, _ = command(main, f"run={run}", f"images={tmp_path / 'odd'}", "neighbours=2")
        assert status == 0
        assert len(out.splitlines()) == len(names)
        assert {page.name for page in (run / "explained").iterdir()} == {f"{name}.png" for name in names}


@pytest.mark.parametrize("argument", ["3", "x (new)", "a, b", "'null'"])
def test_about_takes_any_class_name(command, run, tmp_path, monkeypatch, argument):
    pytest.importorskip("captum")
    from matplotlib.figure import Figure
    from PIL import Image

    from fashion_cnn.explain import main
    from fashion_cnn.inference import explain as explain_module

    monkeypatch.setattr(TinyDataModule, "class_names", ("3", "x (new)", "a, b", "null"))
    Image.new("L", (20, 20), 200).save(tmp_path / "light.png")
    titles = []
    monkeypatch.setattr(explain_module, "draw", lambda explanation, _: titles.append(explanation.title) or Figure())
    status, _, err = command(main, f"run={run}", f"images={tmp_path}/light.png", f"about={argument}", "reject=0")
    assert (status, err.count("\n")) == (0, 1)
    assert "holds no predictions of validation images" in err
    (title,) = titles
    name = argument.strip("'")
    (predicted,) = (label for label in TinyDataModule.class_names if title.startswith(f"light.png: {label}, "))
    assert title.endswith("%" if predicted == name else f"%; explained: {name}")


def test_a_page_shows_the_picture_on_the_background_of_the_input(command, run, tmp_path, monkeypatch):
    pytest.importorskip("captum")
    from matplotlib.figure import Figure
    from PIL import Image

    from fashion_cnn.explain import main
    from fashion_cnn.inference import explain as explain_module

    # The network's input size, so that no pixel is resampled; the red is transparent.
    clear = Image.new("RGBA", (20, 20), (255, 0, 0, 0))
    clear.paste((90, 90, 90, 255), (5, 5, 15, 15))
    clear.save(tmp_path / "clear.png")
    pages = []
    monkeypatch.setattr(explain_module, "draw", lambda *page: pages.append(page) or Figure())
    for argument in ("auto", "always"):
        assert command(main, f"run={run}", f"images={tmp_path}/clear.png", f"invert={argument}")[0] == 0
    (plain, original), (inverted, same) = pages
    assert original[0, 0].tolist() == same[0, 0].tolist() == [255, 255, 255]
    assert (plain.image[0] == torch.tensor(original[..., 0])).all()
    assert torch.equal(inverted.image, 255 - plain.image)
    status, _, err = command(main, f"run={run}", f"images={tmp_path}/clear.png", "invert=maybe")
    assert (status, err) == (2, "error: invert=maybe is not possible: choose auto, never, always.\n")


def test_explain_searches_all_training_images(command, run, tmp_path, monkeypatch):
    pytest.importorskip("captum")
    from matplotlib.figure import Figure
    from PIL import Image

    from fashion_cnn.explain import main
    from fashion_cnn.inference import explain as explain_module

    monkeypatch.setattr(explain_module, "draw", lambda *page: Figure())
    Image.new("L", (20, 20), 200).save(tmp_path / "light.png")
    status, _, err = command(main, f"run={run}", f"images={tmp_path}/light.png", "training_images=null")
    assert status == 0, err
