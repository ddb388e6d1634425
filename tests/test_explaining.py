"""Why a network says what it says: pixels that mattered, and training images that are alike."""

import os
import shutil
from pathlib import Path

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


class SeesLight(nn.Module):
    """Class 0 for light images, class 1 for dark ones, by one feature of each place."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.ReLU(inplace=True))
        self.classifier = nn.Linear(1, 2)
        nn.init.ones_(self.trunk[0].weight)
        self.classifier.weight.data = torch.tensor([[1.0], [-1.0]])

    def features(self, images):
        return self.trunk(images).mean(dim=(2, 3))

    def forward(self, images):
        return self.classifier(self.features(images))


@pytest.fixture
def lit_corner():
    image = torch.zeros(1, 1, 8, 8)
    image[..., :3, :3] = 1
    return image


def test_what_speaks_for_a_class_lies_where_it_was_put(lit_corner):
    network = SeesLight()
    for_light, for_dark = (grad_cam(network, lit_corner.clone(), torch.tensor([label]))[0] for label in (0, 1))
    assert torch.equal(for_light, lit_corner[0, 0])
    assert not for_dark.any()
    assert network.trunk[1].inplace, "the network is left as it was"


def test_a_network_that_halves_the_resolution_is_asked_where_it_still_sees():
    torch.manual_seed(0)
    network = ResNet(in_channels=1, num_classes=4, stem=[8], widths=[8, 16, 16], depths=[1, 0, 0]).eval()
    images = torch.rand(3, 1, 28, 28)
    before = network(images)
    places = grad_cam(network, images.clone(), torch.tensor([0, 1, 2]))
    assert places.shape == (3, 28, 28)
    assert places.amin() >= 0
    # Nothing at all may speak for a class.
    assert {round(most, 4) for most in places.amax(dim=(1, 2)).tolist()} <= {0, 1}
    assert places.any()
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
def test_a_network_without_features_at_places_is_told(network):
    with pytest.raises(UserError, match="Grad-CAM needs activations"):
        grad_cam(network.eval(), torch.rand(1, 3, 32, 32), torch.tensor([0]))


def test_the_attributions_of_all_pixels_add_up_to_the_logit(lit_corner):
    pytest.importorskip("captum")
    from fashion_cnn.inference.explain import integrated_gradients

    network = SeesLight()
    for label in (0, 1):
        given = integrated_gradients(network, lit_corner, torch.tensor([label]), torch.zeros(1, 8, 8))
        expected = network(lit_corner)[0, label] - network(torch.zeros(1, 1, 8, 8))[0, label]
        assert given.sum().item() == pytest.approx(expected.item(), abs=1e-5)
        assert not given[0, 3:, 3:].any()


def test_a_training_image_is_nearest_to_itself():
    config = compose(overrides=TINY_DATA)
    data = build.data(config)
    network = NetworkRunner(build.module(config, data), data)
    near = TrainingImages(network).nearest(data.train_split.images[5:7], 3)
    assert torch.equal(near.images[:, 0], data.train_split.images[5:7])
    assert near.similarity[:, 0].tolist() == pytest.approx([1, 1])
    assert torch.equal(near.indices[:, 0], data.train_split.indices[5:7])
    assert (near.similarity.diff(dim=1) <= 0).all()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    from fashion_cnn.train import train

    folder = tmp_path_factory.mktemp("runs")
    return train(compose(overrides=[*TINY_DATA, "callbacks=essential", f"runs_dir='{folder}'"]))["run"]


@pytest.fixture
def run(trained, tmp_path):
    """A run of its own for each test, whose pages no other test has written."""
    return shutil.copytree(trained, tmp_path / "run")


def test_each_picture_gets_its_page_and_one_that_is_none_is_told(command, run, tmp_path, monkeypatch):
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
    assert status == 1
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
        assert out.strip().endswith(f"/{expected}"), "the page of another picture stays, its own is drawn anew"
    assert len(list((Path(run) / "explained").iterdir())) == 2
    titles = []
    with monkeypatch.context() as patch:
        patch.setattr(explain_module, "load_calibration", lambda run, reject: (Calibration(threshold=1 - reject), None))
        patch.setattr(explain_module, "draw", lambda explained, _: titles.append(explained.title) or Figure())
        assert command(main, f"run={run}", f"images={pictures}/light.png", "reject=0.0")[0] == 0
    assert titles[0].startswith("light.png: none of these (most like "), "as predict says"
    status, _, err = command(main, f"run={run}", f"images={pictures}", "about=Hat")
    assert (status, err) == (1, "error: about=Hat is not a class: choose one of top, middle, low, bottom.\n")
    status, _, err = command(main, f"run={run}", "images=")
    assert (status, err.count("\n")) == (2, 1)
    assert "images= is empty: give images=PATH" in err
    status, _, err = command(main, f"run={run}", f"images={pictures}", "reject=5")
    assert (status, err.count("\n")) == (2, 1)
    assert "reject=5 is not possible" in err


def test_a_file_of_any_name_gets_its_page(command, run, tmp_path):
    pytest.importorskip("captum")
    from PIL import Image

    from fashion_cnn.explain import main

    names = ["shirt $10_$20.png", os.fsdecode(b"caf\xe9.png"), f"{'long ' * 49}.png"]
    (tmp_path / "odd").mkdir()
    for name in names:
        Image.new("L", (20, 20), 200).save(tmp_path / "odd" / name)
    for _ in ("at first", "drawn anew"):
        status, out, _ = command(main, f"run={run}", f"images={tmp_path / 'odd'}", "neighbours=2")
        assert status == 0
        assert len(out.splitlines()) == len(names)
        assert {page.name for page in (run / "explained").iterdir()} == {f"{name}.png" for name in names}


@pytest.mark.parametrize("typed", ["3", "x (new)", "a, b", "'null'"])
def test_a_class_is_named_as_it_is_called(command, run, tmp_path, monkeypatch, typed):
    pytest.importorskip("captum")
    from matplotlib.figure import Figure
    from PIL import Image

    from fashion_cnn.explain import main
    from fashion_cnn.inference import explain as explain_module

    monkeypatch.setattr(TinyDataModule, "class_names", ("3", "x (new)", "a, b", "null"))
    Image.new("L", (20, 20), 200).save(tmp_path / "light.png")
    titles = []
    monkeypatch.setattr(explain_module, "draw", lambda explained, _: titles.append(explained.title) or Figure())
    status, _, err = command(main, f"run={run}", f"images={tmp_path}/light.png", f"about={typed}", "reject=0")
    assert (status, err.count("\n")) == (0, 1)
    assert "holds no predictions of validation images" in err
    (title,) = titles
    name = typed.strip("'")
    (predicted,) = (each for each in TinyDataModule.class_names if title.startswith(f"light.png: {each}, "))
    assert title.endswith("%" if predicted == name else f"%; explained: {name}")


def test_a_page_shows_the_picture_on_the_ground_that_the_network_saw_it_on(command, run, tmp_path, monkeypatch):
    pytest.importorskip("captum")
    from matplotlib.figure import Figure
    from PIL import Image

    from fashion_cnn.explain import main
    from fashion_cnn.inference import explain as explain_module

    # Of the size that the network takes, so that it is taken pixel for pixel; red is what nobody sees.
    clear = Image.new("RGBA", (20, 20), (255, 0, 0, 0))
    clear.paste((90, 90, 90, 255), (5, 5, 15, 15))
    clear.save(tmp_path / "clear.png")
    seen = []
    monkeypatch.setattr(explain_module, "draw", lambda *shown: seen.append(shown) or Figure())
    for typed in ("auto", "always"):
        assert command(main, f"run={run}", f"images={tmp_path}/clear.png", f"invert={typed}")[0] == 0
    (plain, original), (negated, same) = seen
    assert original[0, 0].tolist() == same[0, 0].tolist() == [255, 255, 255]
    assert (plain.image[0] == torch.tensor(original[..., 0])).all()
    assert torch.equal(negated.image, 255 - plain.image)
    status, _, err = command(main, f"run={run}", f"images={tmp_path}/clear.png", "invert=maybe")
    assert (status, err) == (2, "error: invert=maybe is not possible: choose auto, never, always.\n")
