"""Estimate of the cost of a run before it starts: `intl-bench pretrain --dry-run`."""
