"""Concepts that a trained network learns from a few examples without training, stored in the directory of its run."""

from fashion_cnn.concepts.concept import (
    Background,
    Concept,
    fit_background,
    joint_false_alarm_rate,
    learn,
    with_common_margin,
)
from fashion_cnn.concepts.store import Concepts

__all__ = [
    "Background",
    "Concept",
    "Concepts",
    "fit_background",
    "joint_false_alarm_rate",
    "learn",
    "with_common_margin",
]
