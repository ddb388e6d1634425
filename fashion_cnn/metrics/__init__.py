"""Measures of predictions and rankings, with intervals: tensors in, numbers out."""
