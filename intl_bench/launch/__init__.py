"""Starts processes: those of one run, seeds side by side, jobs on a cluster."""
