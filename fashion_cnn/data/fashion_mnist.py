"""Fashion-MNIST: 60,000 training and 10,000 test images of ten kinds of clothing, 28 x 28 grey.

Xiao, Rasul and Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning
Algorithms", 2017 (arXiv 1708.07747).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from fashion_cnn.data import fashion_mnist_files
from fashion_cnn.data.image_datamodule import ImageDataModule


class FashionMNISTDataModule(ImageDataModule):
    """`torchvision.datasets.FashionMNIST`, fetched where it is missing and held in memory.

    root: folder of the data, laid out as torchvision lays it out. The further arguments are
    those of `ImageDataModule`. Raises UserError where the files are missing, truncated or altered.
    """

    class_names = (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    )
    image_shape = (1, 28, 28)
    train_size = 60_000
    about = (
        "Fashion-MNIST (Xiao, Rasul and Vollgraf, 2017, arXiv 1708.07747): 60,000 training and 10,000 test images of "
        "ten kinds of clothing from Zalando's shop, 28 x 28 pixels, grey, the item light on black, centred, upright."
    )
    limits = (
        "28 x 28 grey pixels hold no colour, no fabric, no print and no brand.",
        "A photograph with a person, a background or several items is another kind of image than it was trained on.",
        "Some labels are open to question, above all between Shirt, T-shirt/top, Coat and Pullover: people disagree "
        "there too, and most of its mistakes lie there.",
    )
    cut_out = True

    def __init__(
        self,
        *,
        root: str | Path = "data",
        mean: Sequence[float] = (0.2860,),
        std: Sequence[float] = (0.3530,),
        **settings: Any,
    ) -> None:
        super().__init__(mean=mean, std=std, **settings)
        self.root = Path(root).expanduser()

    def prepare_data(self) -> None:
        fashion_mnist_files.ensure(self.root)

    def load(self, *, train: bool) -> tuple[Tensor, Tensor]:
        from torchvision.datasets import FashionMNIST

        dataset = FashionMNIST(self.root, train=train)
        return dataset.data.unsqueeze(1), dataset.targets
