"""Spectra of checkpoints: measured, compared in a table and a plot, and stored in records."""
