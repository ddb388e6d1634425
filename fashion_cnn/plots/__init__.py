"""Figures drawn from stored arrays."""
