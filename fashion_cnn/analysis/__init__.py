"""Overfitting: how the train/val gap opened, what it is at the end, and what that means."""
