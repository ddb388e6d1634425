"""Hyper-parameter search: an Optuna study whose trials are ordinary runs, `python -m fashion_cnn.tune model=tiny`."""
