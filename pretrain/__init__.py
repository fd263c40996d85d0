"""Trains a backbone without labels. Imports `intl_bench.core` and nothing else of this project."""

PROJECT = "intl-bench"
