"""Images in, normalised and augmented batches out."""

from fashion_cnn.data.augmentation import RandomCrop, RandomErasing, RandomFlip
from fashion_cnn.data.batches import Batch, InMemoryDataset, batch_loader
from fashion_cnn.data.fashion_mnist import FashionMNISTDataModule
from fashion_cnn.data.image_datamodule import ImageDataModule
from fashion_cnn.data.image_folder import ImageFolderDataModule
from fashion_cnn.data.torchvision_set import TorchvisionDataModule
from fashion_cnn.data.variation import RandomAffine, RandomBlur, RandomColour

__all__ = [
    "Batch",
    "FashionMNISTDataModule",
    "ImageDataModule",
    "ImageFolderDataModule",
    "InMemoryDataset",
    "RandomAffine",
    "RandomBlur",
    "RandomColour",
    "RandomCrop",
    "RandomErasing",
    "RandomFlip",
    "TorchvisionDataModule",
    "batch_loader",
]
