"""Overfitting analysis: generalization gap, training dynamics, verdict, comparison of runs, and reports."""
