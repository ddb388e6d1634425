"""Measurements of scripts/benchmark, benchmark_folder and benchmark_search."""
