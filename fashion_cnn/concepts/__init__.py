"""Concepts that a trained network is taught from a few examples, with no training: kept beside its run."""

from fashion_cnn.concepts.concept import Background, Concept, background_of, learn, taken_for_any
from fashion_cnn.concepts.store import Concepts

__all__ = ["Background", "Concept", "Concepts", "background_of", "learn", "taken_for_any"]
