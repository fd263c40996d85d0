"""Scores a backbone: k nearest neighbors, linear classifiers, fine-tuning, detection."""

# A task's name on the command line and its module. The module holds `Config`, `run`, `protocol` (a summary in words),
# `fingerprints` (of the data of a configuration), `from_checkpoint` (what a checkpoint says about the configuration),
# `SEEDED` (whether a result depends on the seed) and, for detection, `DEFAULT` (the protocol's file).
TASKS = {
    "knn": "transfer.knn",
    "linear": "transfer.linear",
    "finetune": "transfer.finetune",
    "coco": "transfer.coco",
    "voc": "transfer.voc",
}
