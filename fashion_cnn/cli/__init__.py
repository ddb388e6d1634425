"""The command line: Hydra's entry point, error messages, options and console output."""
