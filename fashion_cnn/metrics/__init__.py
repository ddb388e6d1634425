"""Metrics of predictions and rankings with confidence intervals, computed from tensors."""
