"""Write a package of a user's own: `python -m fashion_cnn.new my_project`."""

import argparse
import importlib.util
import keyword
import sys
from pathlib import Path

from fashion_cnn.cli.errors import exit_with
from fashion_cnn.cli.main import closed_output_ends_quietly
from fashion_cnn.errors import UserError, as_typed
from fashion_cnn.runs import create_folder, write_atomically

_README = """# NAME

Parts of your own for trainings with fashion_cnn. Run the commands in this folder.

```sh
pip install pytest && python -m pytest                                 # the tests
python -m fashion_cnn.train --config-dir conf experiment=NAME          # train
python -m fashion_cnn.train --config-dir conf model=NAME data.root=DIR # the network on Fashion-MNIST, which is in DIR
python -m fashion_cnn.train --config-dir conf model=NAME loss=NAME metrics=NAME data.root=DIR
python -m fashion_cnn.train --config-dir conf experiment=NAME -m model.network.width=8,16 seed=0,1
python -m fashion_cnn.train --config-dir conf trust=NAME resume=latest # continue a stopped run
python -m fashion_cnn.runs                                             # list the runs
python -m fashion_cnn.evaluate run=latest trust=NAME
```

| file | content |
|---|---|
| `NAME/network.py` | a network |
| `NAME/data.py` | a data set: replace the drawn images by your own in `load` |
| `NAME/augmentation.py` | an augmentation |
| `NAME/metric.py` | a metric |
| `NAME/loss.py` | a training loss |
| `conf/` | a file for each of them, and `experiment/NAME.yaml`, which combines them |
| `tests/` | a test of each of them, and a training of one epoch |

Commands that open a run accept its classes only with `trust=NAME`, or with `FASHION_CNN_TRUST=NAME` in the environment.
"""
_PYPROJECT = """[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "NAME"
version = "0.1.0"
dependencies = ["fashion_cnn"]

[tool.pytest.ini_options]
testpaths = ["tests"]
pythonpath = ["."]
"""
_NETWORK = '''"""A network: any module that maps normalised images to logits."""

from torch import Tensor, nn


class Network(nn.Module):
    """Two convolutions, global average pooling and a linear layer, whose input is the embedding of an image.

    Args:
        in_channels: channels of the images, which the data set determines.
        num_classes: number of classes, which the data set determines.
        width: channels of the first convolution: `model.network.width=32` on the command line.
    """

    def __init__(self, *, in_channels: int, num_classes: int, width: int = 16) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, width, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.classifier = nn.Linear(2 * width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits `(B, num_classes)` for normalised images `(B, C, H, W)`."""
        return self.classifier(self.features(images))
'''
_DATA = '''"""A data set: images and labels in memory."""

import numpy as np
from numpy.typing import NDArray

from fashion_cnn.data import ImageDataModule


class Data(ImageDataModule):
    """Drawn stripes, as an example. Replace `load`, and the three attributes, by those of your images."""

    class_names = ("horizontal", "vertical", "diagonal")
    image_shape = (1, 28, 28)
    train_size = 600

    def load(self, *, train: bool) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Return images uint8 `(N, C, H, W)` from 0 to 255, and class indices `(N,)`."""
        count = self.train_size if train else 150
        random = np.random.default_rng(int(train))
        labels = np.arange(count) % len(self.class_names)
        rows, columns = np.mgrid[:28, :28]
        position = np.stack([rows, columns, rows + columns])[labels] + random.integers(0, 8, (count, 1, 1))
        pixels = 100 + 60 * (position % 8 < 4) + random.normal(0, 30, position.shape)
        return pixels.clip(0, 255).astype(np.uint8)[:, None], labels
'''
_AUGMENTATION = '''"""An augmentation: a function of a batch of images, on the device of the training."""

import torch
from torch import Tensor


class RandomContrast:
    """Change the contrast of each image by a random factor.

    Args:
        strength: largest change, 0 to 1.
    """

    def __init__(self, strength: float = 0.2) -> None:
        self.strength = strength

    def __call__(self, images: Tensor) -> Tensor:
        """Return images with values from 0 to 255, for uint8 images `(B, C, H, W)`."""
        factor = 1 + self.strength * (2 * torch.rand(len(images), 1, 1, 1, device=images.device) - 1)
        values = images.float()
        mean = values.mean(dim=(1, 2, 3), keepdim=True)
        return ((values - mean) * factor + mean).clamp(0, 255)
'''
_METRIC = '''"""A metric: each split is measured with it, and train minus validation is its gap."""

import torch
from torch import Tensor
from torchmetrics import Metric


class ConfidentMistakes(Metric):
    """Share of the images that are misclassified with a probability above a threshold."""

    higher_is_better = False

    def __init__(self, threshold: float = 0.9) -> None:
        super().__init__()
        self.threshold = threshold
        self.add_state("mistakes", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("images", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Count the images of a batch: logits `(B, num_classes)` and class indices `(B,)`."""
        confidence, predicted = logits.softmax(dim=1).max(dim=1)
        self.mistakes += ((predicted != targets) & (confidence > self.threshold)).sum()
        self.images += len(targets)

    def compute(self) -> Tensor:
        """Return the share."""
        return self.mistakes / self.images
'''
_LOSS = '''"""A training loss: a function of logits and targets. All splits are still measured by the cross-entropy."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class FocalLoss(nn.Module):
    """Cross-entropy in which images count less the better they are classified: Lin et al., 2017 (arXiv 1708.02002).

    Args:
        gamma: strength; 0 is the cross-entropy.
    """

    def __init__(self, gamma: float = 1.0) -> None:
        super().__init__()
        self.gamma = gamma

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of logits `(B, num_classes)` and class indices `(B,)`.

        With `mixing`, the targets are probabilities `(B, num_classes)`.
        """
        losses = functional.cross_entropy(logits, targets, reduction="none")
        return ((1 - torch.exp(-losses)) ** self.gamma * losses).mean()
'''
_TEST = '''"""The parts of NAME, and a training with all of them."""

from pathlib import Path

import torch
from NAME.augmentation import RandomContrast
from NAME.data import Data
from NAME.loss import FocalLoss
from NAME.metric import ConfidentMistakes
from NAME.network import Network
from torch.nn import functional

from fashion_cnn.cli.main import compose
from fashion_cnn.train import train

CONF = Path(__file__).parent.parent / "conf"


def test_the_network_returns_a_logit_for_each_class():
    network = Network(in_channels=1, num_classes=3)
    assert network(torch.zeros(2, 1, 28, 28)).shape == (2, 3)


def test_the_augmentation_keeps_shape_and_range():
    images = torch.randint(0, 256, (4, 1, 28, 28), dtype=torch.uint8)
    changed = RandomContrast(1.0)(images)
    assert changed.shape == images.shape
    assert 0 <= changed.min() <= changed.max() <= 255
    assert torch.equal(RandomContrast(0.0)(images).round(), images.float())


def test_the_metric_counts_confident_mistakes_only():
    metric = ConfidentMistakes(threshold=0.9)
    logits = torch.tensor([[9.0, 0.0], [9.0, 0.0], [0.1, 0.0], [0.0, 9.0]])
    metric.update(logits, torch.tensor([1, 0, 1, 1]))
    assert metric.compute() == 0.25


def test_the_loss_is_the_cross_entropy_with_less_weight_on_easy_images():
    logits, targets = torch.tensor([[4.0, 0.0], [0.5, 0.0]]), torch.tensor([0, 0])
    assert torch.isclose(FocalLoss(gamma=0.0)(logits, targets), functional.cross_entropy(logits, targets))
    easy, hard = (
        FocalLoss()(logits[[i]], targets[[i]]) / functional.cross_entropy(logits[[i]], targets[[i]]) for i in (0, 1)
    )
    assert easy < hard < 1


def test_a_training_writes_a_run_with_a_verdict(tmp_path):
    overrides = ["experiment=NAME", "trainer=cpu", "trainer.max_epochs=1", f"runs_dir='{tmp_path}'"]
    results = train(compose("train", overrides, config_dir=CONF))
    assert "verdict" in results
    assert 0 <= results["val/confident_mistakes"] <= 1
    assert results["val_images"] + results.get("train_images", 0) <= Data.train_size
'''
_FILES = {
    "README.md": _README,
    "pyproject.toml": _PYPROJECT,
    ".gitignore": "/runs/\n__pycache__/\n",
    "NAME/__init__.py": '"""Network, data set, augmentation, metric and loss of NAME."""\n',
    "NAME/network.py": _NETWORK,
    "NAME/data.py": _DATA,
    "NAME/augmentation.py": _AUGMENTATION,
    "NAME/metric.py": _METRIC,
    "NAME/loss.py": _LOSS,
    "conf/model/NAME.yaml": "network:\n  _target_: NAME.network.Network\n  width: 16\n",
    "conf/data/NAME.yaml": """_target_: NAME.data.Data
# Mean and standard deviation of the training pixels, on a scale of 0 to 1.
mean: [0.51]
std: [0.16]
val_size: 150
batch_size: 50
seed: ${seed}
augmentation:
  contrast:
    _target_: NAME.augmentation.RandomContrast
    strength: 0.2
""",
    "conf/metrics/NAME.yaml": "confident_mistakes:\n  _target_: NAME.metric.ConfidentMistakes\n  threshold: 0.9\n",
    "conf/loss/NAME.yaml": "_target_: NAME.loss.FocalLoss\ngamma: 1.0\n",
    "conf/experiment/NAME.yaml": """# @package _global_
defaults:
  - override /data: NAME
  - override /model: NAME
  - override /metrics: NAME
  - override /loss: NAME

trainer:
  max_epochs: 10
""",
    "tests/test_NAME.py": _TEST,
}


def create_project(directory: Path) -> str:
    """Write the files of a package that is named like its directory.

    Args:
        directory: a new or an empty directory.

    Returns:
        The name of the package.

    Raises:
        UserError: if the directory holds files, or its name is none of a package.
    """
    name = directory.absolute().name.replace("-", "_")
    if not name.isidentifier() or keyword.iskeyword(name) or not name.isascii():
        raise UserError(f"{name} is no name of a package: use letters, digits and underscores.", status=2)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UserError(f"{directory} is not empty, and nothing is overwritten: choose a new directory.", status=2)
    # A folder in Python's path without __init__.py, as the directory itself may be, has a spec without origin.
    existing = importlib.util.find_spec(name)
    if name in sys.stdlib_module_names or name == "tests" or (existing and existing.origin):
        raise UserError(f"There is a package {name} already: choose another name.", status=2)
    for path, text in _FILES.items():
        file = directory / path.replace("NAME", name)
        create_folder(file.parent, "DIR")
        write_atomically(file, as_typed(text.replace("NAME", name)))
    return name


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog=as_typed("python -m fashion_cnn.new"),
        description="Write a package of your own: a network, a data set, an augmentation, a metric, a loss, an "
        "experiment that combines them, and a test. Nothing is overwritten.",
    )
    parser.add_argument("directory", metavar="DIR", type=Path, help="a new directory, named like the package")
    directory = parser.parse_args().directory.expanduser()
    try:
        name = create_project(directory)
    except UserError as error:
        exit_with(str(error), error.status)
    print(
        as_typed(
            f"{directory} holds the package {name}. Try it:\n  cd {directory}\n"
            f"  python -m fashion_cnn.train --config-dir conf experiment={name}\nIts README.md has further commands."
        )
    )


if __name__ == "__main__":
    with closed_output_ends_quietly():
        main()
