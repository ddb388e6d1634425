"""Data sets of torchvision by name: `data=kmnist`, `data=emnist`."""

import numpy as np
import pytest
import torch

from fashion_cnn.cli.main import compose
from fashion_cnn.data import TorchvisionDataModule
from fashion_cnn.errors import UserError
from fashion_cnn.training import build


@pytest.mark.parametrize(("name", "classes", "first"), [("kmnist", 10, "o"), ("emnist", 47, "0")])
def test_a_named_data_set_is_read_split_and_fed_to_a_network(torchvision_root, name, classes, first):
    config = compose(
        overrides=[f"data={name}", f"data.root='{torchvision_root}'", f"data.val_size={classes}", "model=tiny"]
    )
    data = build.data(config)
    assert (data.num_classes, data.class_names[0], data.image_shape) == (classes, first, (1, 28, 28))
    assert [len(data.train_split), len(data.val_split)] == [94 - classes, classes]
    images, _ = data.load(train=True)
    stored = np.frombuffer(
        next((torchvision_root / name.upper() / "raw").glob("*train-images*")).read_bytes()[16:], np.uint8
    )
    upright = torch.from_numpy(stored.reshape(94, 28, 28).copy())
    assert torch.equal(images[:, 0], upright.transpose(1, 2) if name == "emnist" else upright)
    assert data.pixel_mean.item() == pytest.approx(images.double().mean().item(), abs=0.02)
    module = build.module(config, data)
    assert module(data.normalise(images[:3])).shape == (3, classes)
    # The config holds the detected properties: the files are not needed any more.
    elsewhere = compose(overrides=[f"data={name}", "data.root=/nowhere", f"data.val_size={classes}"])
    elsewhere.data.detected = config.data.detected
    from hydra.utils import instantiate

    assert instantiate(elsewhere.data, _convert_="all").class_names == data.class_names


def test_any_in_memory_class_of_torchvision_can_be_named(torchvision_root):
    with pytest.raises(UserError, match=r"data.dataset is missing: name a class"):
        TorchvisionDataModule(dataset=None)
    named = ["data=torchvision", "data.dataset=torchvision.datasets.KMNIST", f"data.root='{torchvision_root}'"]
    data = build.data(compose(overrides=[*named, "data.val_size=10"]))
    assert (data.num_classes, len(data.train_split)) == (10, 84)


def test_changed_images_raise(torchvision_root):
    first = TorchvisionDataModule(dataset="torchvision.datasets.KMNIST", root=torchvision_root, val_size=10)
    path = torchvision_root / "KMNIST" / "raw" / "t10k-images-idx3-ubyte"
    content = bytearray(path.read_bytes())
    content[500] ^= 1
    path.write_bytes(content)
    again = TorchvisionDataModule(
        dataset="torchvision.datasets.KMNIST", root=torchvision_root, val_size=10, detected=first.detected
    )
    again.load(train=True)
    with pytest.raises(UserError, match="holds other images than before"):
        again.load(train=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dataset": "torchvision.datasets.NoSuch"}, "is no class"),
        ({"dataset": "torchvision.datasets.KMNIST", "train": {"part": 1}}, "does not take"),
        ({"dataset": "torchvision.datasets.KMNIST", "class_names": ["a", "b"]}, "does not name its 10 classes"),
        ({"dataset": "torchvision.datasets.ImageFolder", "train": {}}, "does not take"),
    ],
)
def test_unsuitable_classes_raise(torchvision_root, settings, message):
    with pytest.raises(UserError, match=message):
        TorchvisionDataModule(root=torchvision_root, **settings)


def test_a_failed_download_raises(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", refuse)
    with pytest.raises(UserError, match=r"KMNIST is not in .* and cannot be downloaded \(no route to host\)"):
        TorchvisionDataModule(dataset="torchvision.datasets.KMNIST", root=tmp_path)
