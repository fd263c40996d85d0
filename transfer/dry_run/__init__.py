"""Costs of scoring before anything is computed or written."""
