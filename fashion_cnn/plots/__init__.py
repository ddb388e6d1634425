"""Plots drawn from stored metrics and predictions."""
