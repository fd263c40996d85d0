"""Checkpoints of other projects: their layouts, their tensor names, and reading them without running their code."""
