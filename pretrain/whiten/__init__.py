"""Whitening: Gram matrices of embeddings, and matrix functions by eigendecomposition and Cholesky decomposition."""
