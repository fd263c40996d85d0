"""Exports a backbone for others: a file for each library, a model card, the recipe and the records."""
