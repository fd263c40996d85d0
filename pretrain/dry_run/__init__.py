"""The cost of a run, estimated before it starts: `intl-bench pretrain --dry-run`."""
