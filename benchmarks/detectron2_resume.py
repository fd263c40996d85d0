"""Show which training images Detectron2 draws after a resume; it has to be installed.

    python benchmarks/detectron2_resume.py

Detectron2's `DefaultTrainer.resume_or_load` restores weights, optimizer, schedule and iteration. The sampler of the
training images, `TrainingSampler`, has no state and starts at the beginning of its stream again: the same images with
`SEED` set, the beginning of another stream with the default `SEED = -1`. This project draws the images of iteration
i as a function of (seed, i).
"""

import itertools

from detectron2.data.samplers import TrainingSampler


def main() -> None:
    """Print the first images of a run, and those after a resume at iteration 10."""
    images = 100
    run = list(itertools.islice(iter(TrainingSampler(images, seed=1)), 20))
    resumed = list(itertools.islice(iter(TrainingSampler(images, seed=1)), 10))
    print(f"a run, images 1 to 10:          {run[:10]}")
    print(f"a run, images 11 to 20:         {run[10:]}")
    print(f"resumed after 10, its next 10:  {resumed}")
    print(f"the first ten again: {resumed == run[:10]}")
    stateful = any(hasattr(TrainingSampler, name) for name in ("state_dict", "load_state_dict", "set_epoch"))
    print(f"the sampler has a state to save: {stateful}")


if __name__ == "__main__":
    main()
