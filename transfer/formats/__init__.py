"""Checkpoints of other projects: their layouts, the names of their tensors, and a reader that runs no code of files."""
