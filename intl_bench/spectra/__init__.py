"""Spectra of checkpoints: measured, compared, plotted and stored in records."""
