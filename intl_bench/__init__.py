"""intl-bench: pre-training, transfer and benchmark suite for INTL (IterNorm with trace loss, ICLR 2024)."""

__version__ = "0.1.0"
