"""Networks, the LightningModule that trains and evaluates them, optimizers, mixing and losses."""

from fashion_cnn.models.backbones import TimmBackbone, TorchvisionBackbone
from fashion_cnn.models.classifier import ImageClassifier, StepOutput, split_names
from fashion_cnn.models.ensemble import Ensemble
from fashion_cnn.models.fast_cnn import FastCNN
from fashion_cnn.models.keras_cnn import KerasCNN
from fashion_cnn.models.losses import SupervisedContrastive
from fashion_cnn.models.mixing import CutMix, MixUp
from fashion_cnn.models.resnet import ResNet, WideResNet

__all__ = [
    "CutMix",
    "Ensemble",
    "FastCNN",
    "ImageClassifier",
    "KerasCNN",
    "MixUp",
    "ResNet",
    "StepOutput",
    "SupervisedContrastive",
    "TimmBackbone",
    "TorchvisionBackbone",
    "WideResNet",
    "split_names",
]
