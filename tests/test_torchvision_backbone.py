"""Networks of torchvision with weights from a file."""

from pathlib import Path

import pytest
import torch
import torchvision
from lightning.pytorch import Callback

from fashion_cnn.errors import UserError
from fashion_cnn.inference.network import TrainedNetwork
from fashion_cnn.models import TorchvisionBackbone
from fashion_cnn.runs import Run
from fashion_cnn.train import train


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
    torch.save(torchvision.models.get_model("shufflenet_v2_x0_5").state_dict(), tmp_path / "weights.pth")
    config = tiny("trainer.max_epochs=2", "callbacks=essential", "test=false")
    config.model.network = {
        "_target_": "fashion_cnn.models.TorchvisionBackbone",
        "name": "shufflenet_v2_x0_5",
        "weights": str(tmp_path / "weights.pth"),
        "size": 32,
    }
    with pytest.raises(KeyboardInterrupt):
        train(config, callbacks=[StopInSecondEpoch()])
    (tmp_path / "weights.pth").unlink()
    (file,) = tmp_path.rglob("config.yaml")
    config.resume = str(file.parent)
    run = Run(Path(train(config)["run"]))
    assert run.path == file.parent
    network = TrainedNetwork(run)
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
