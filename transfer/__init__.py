"""Scores a backbone: k nearest neighbours, linear classifiers, fine-tuning, detection."""

# A task's name on the command line and the module that holds its `Config`, `protocol` and `run`.
TASKS = {
    "knn": "transfer.knn",
    "linear": "transfer.linear",
    "finetune": "transfer.finetune",
    "coco": "transfer.coco",
    "voc": "transfer.voc",
}
