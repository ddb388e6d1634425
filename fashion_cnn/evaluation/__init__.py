"""Evaluation of trained networks: metrics on a split, robustness to corruptions, detection of outliers."""
