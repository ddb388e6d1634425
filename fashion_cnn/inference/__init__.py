"""Trained networks in use: loading, prediction, explanation and export."""
