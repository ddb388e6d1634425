"""Concepts that a trained network learns from a few examples without training.

They are stored in the directory of its run, or of the catalogue of a pretrained network.
"""

from fashion_cnn.concepts.concept import (
    MAX_KNOWN_IMAGES,
    Background,
    Concept,
    background_of,
    fit_background,
    joint_false_alarm_rate,
    learn,
    with_common_margin,
)
from fashion_cnn.concepts.store import Concepts

__all__ = [
    "MAX_KNOWN_IMAGES",
    "Background",
    "Concept",
    "Concepts",
    "background_of",
    "fit_background",
    "joint_false_alarm_rate",
    "learn",
    "with_common_margin",
]
