"""Concepts that a trained network is taught from a few examples, with no training: kept beside its run."""

from fashion_cnn.concepts.concept import Background, Concept, fit_background, joint_false_alarm_rate, learn
from fashion_cnn.concepts.store import Concepts

__all__ = ["Background", "Concept", "Concepts", "fit_background", "joint_false_alarm_rate", "learn"]
