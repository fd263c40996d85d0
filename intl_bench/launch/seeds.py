"""Commands side by side on this machine: the seeds of a task, one on each GPU.

Each command is a process with one seed. Finished seeds keep their records, and a stopped seed resumes.
"""

import os
from collections.abc import Mapping, Sequence

from intl_bench.core.errors import HUNG_UP, INTERRUPTED, OK, PREEMPTED
from intl_bench.core.signals import StopRequest
from intl_bench.launch import processes
from intl_bench.launch.children import Child, Watch


def run_in_parallel(commands: Mapping[str, Sequence[str]], at_once: int | None = None) -> None:
    """Run `intl-bench ARGUMENTS` for each command, as many at once as there are GPUs, one on each.

    Without a GPU all commands, or `at_once` of them, run at once and share the cores. A signal is passed on to every
    running command; a command that trains then saves its state.

    Args:
        commands: a name for messages, such as "seed 0", and the arguments.

    Raises:
        UnfinishedError: a command failed; the others ran to their end.
        Preempted: a signal arrived.
    """
    import torch

    gpus = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
    free: list[str | None] = list(visible[:gpus]) if gpus else [None] * min(at_once or len(commands), len(commands))
    threads = processes.threads(max(1, min(len(free), len(commands))))
    waiting, running, codes = list(commands), dict[str, tuple[Child, str | None]](), dict[str, int]()
    with StopRequest() as stop:
        watch = Watch(stop)
        while running or (waiting and stop.received is None):
            while waiting and free and stop.received is None:
                name, gpu = waiting.pop(0), free.pop(0)
                environment = {"OMP_NUM_THREADS": str(threads)} | os.environ
                if gpu is not None:
                    environment["CUDA_VISIBLE_DEVICES"] = gpu
                running[name] = Child(name, commands[name], environment), gpu
            watch.look([child for child, _ in running.values()])
            for name, (child, gpu) in list(running.items()):
                if child.code is not None:
                    codes[name] = child.report()
                    free.append(gpu)
                    del running[name]
        if stop.received is not None and (waiting or any(codes.values())):
            saved = set(codes.values()) <= {OK, PREEMPTED, HUNG_UP, INTERRUPTED}
            raise stop.error(f"{'after' if saved else 'before'} every seed had saved what it had")
    if any(codes.values()):
        raise processes.UnfinishedError({name: codes[name] for name in commands})
