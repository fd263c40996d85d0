"""The folder of a run in the place of a checkpoint."""

from pathlib import Path

from intl_bench.core.errors import InputError

_FILES = ("checkpoint.pt", "backbone.safetensors", "detector.pth")  # the first one that a folder has is read


def checkpoint_in(path: Path) -> Path:
    """Return the checkpoint in the folder of a run, or in the folder of its only seed; any other path unchanged.

    Raises:
        InputError: the folder has several runs, or its run has not saved a checkpoint yet.
    """
    if not path.is_dir():
        return path
    if found := _file(path):
        return found
    seeds = [seed for pattern in ("seed*", "*/seed*", "pretrain/*/seed*") for seed in path.glob(pattern)]
    runs = sorted(file for seed in seeds if (file := _file(seed)))
    if len(runs) == 1:
        return runs[0]
    if runs:
        shown = ", ".join(str(file.parent) for file in runs[:6]) + (", ..." if len(runs) > 6 else "")
        raise InputError(f"checkpoint {path}: a folder with {len(runs)} runs; expected one of them: {shown}")
    if (path / "metrics.jsonl").exists():
        raise InputError(
            f"checkpoint {path}: this run has saved no checkpoint yet; wait for it (save_minutes=), or run it again"
        )
    return path


def missing(path: Path) -> InputError:
    """Return the error of a checkpoint that is not there. It names the latest pre-trainings that are."""
    there = [folder for folder in Path("runs").glob("pretrain/*/seed*") if _file(folder)]
    latest = sorted(there, key=lambda folder: folder.stat().st_mtime, reverse=True)
    shown = ", ".join(map(str, latest[:3])) + (", ... (intl-bench ls runs)" if len(latest) > 3 else "")
    hint = f"expected a checkpoint or a run such as {shown}" if shown else "run `intl-bench pretrain` first"
    where = "" if path.is_absolute() else f" in {Path.cwd()}"
    return InputError(f"checkpoint {path}: no such file{where}; {hint}")


def _file(folder: Path) -> Path | None:
    return next((folder / name for name in _FILES if (folder / name).is_file()), None)
