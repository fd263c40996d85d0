"""Scores a backbone: k nearest neighbors, linear classifiers, fine-tuning, detection."""

import importlib
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:  # the command line lists the tasks without importing PyTorch
    from transfer.task import Task

__all__ = ["TASKS", "find_task"]
PROJECT = "intl-bench"


class Entry(NamedTuple):
    """A task in `intl-bench --help`.

    Attributes:
        options: names of the settings that are also options, such as `--engine`.
        eval_only: whether the task can score a trained detector.
    """

    help: str
    options: tuple[str, ...] = ()
    eval_only: bool = False


# By the name of the command, which is also the name of the module.
TASKS = {
    "linear": Entry("linear classification on the frozen backbone"),
    "knn": Entry("k-nearest-neighbor classification on features of the frozen backbone"),
    "finetune": Entry("semi-supervised fine-tuning with 1 or 10 percent of the labels"),
    "transfer": Entry("logistic regression and few-shot episodes on frozen features of other data sets"),
    "coco": Entry(
        "COCO detection and instance segmentation with Mask R-CNN R50-C4", ("engine", "visualize"), eval_only=True
    ),
    "voc": Entry("PASCAL VOC detection with Faster R-CNN R50-C4", ("engine", "visualize"), eval_only=True),
}


def find_task(name: str) -> "Task[Any]":
    """Import the task of a name in `TASKS`.

    Raises:
        ValueError: there is no such task.
    """
    if name not in TASKS:
        raise ValueError(f"task={name!r}: unknown; expected one of {', '.join(TASKS)}")
    task: Task[Any] = importlib.import_module(f"transfer.{name}").TASK
    return task
