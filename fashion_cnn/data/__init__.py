"""Images in, normalised and augmented batches out."""

from fashion_cnn.data.augmentation import RandomCrop, RandomErasing, RandomFlip
from fashion_cnn.data.batches import Batch, InMemoryDataset, batch_loader
from fashion_cnn.data.fashion_mnist import FashionMNISTDataModule
from fashion_cnn.data.image_datamodule import ImageDataModule
from fashion_cnn.data.image_folder import ImageFolderDataModule

__all__ = [
    "Batch",
    "FashionMNISTDataModule",
    "ImageDataModule",
    "ImageFolderDataModule",
    "InMemoryDataset",
    "RandomCrop",
    "RandomErasing",
    "RandomFlip",
    "batch_loader",
]
