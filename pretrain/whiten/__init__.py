"""Whitening: products of embeddings, eigendecomposition and Cholesky decomposition."""
