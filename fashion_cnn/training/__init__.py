"""Training with Lightning: building from the config, callbacks, checkpoints, resuming, results."""
