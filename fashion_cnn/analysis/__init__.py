"""Overfitting analysis: generalisation gap, training dynamics, verdict, comparison of runs, and reports."""
