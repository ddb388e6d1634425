"""Data modules: images as normalised and augmented batches."""

from fashion_cnn.data.augmentation import RandomAffine, RandomBlur, RandomColour, RandomCrop, RandomErasing, RandomFlip
from fashion_cnn.data.batches import Batch, InMemoryDataset, batch_loader
from fashion_cnn.data.fashion_mnist import FashionMNISTDataModule
from fashion_cnn.data.folder import ImageFolderDataModule
from fashion_cnn.data.image_datamodule import ImageDataModule
from fashion_cnn.data.torchvision_set import TorchvisionDataModule

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
