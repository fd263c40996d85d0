"""What the installation has: recipes, methods, tasks, data sets, grids and layouts, as rows for people.

Rows come from the headers of the files in configs/, from docstrings and from tables of facts. Only `layouts` imports
PyTorch.
"""

import ast
import re
from pathlib import Path

from intl_bench.cli.columns import Row
from intl_bench.core import config as configs
from intl_bench.core.datasets import DATASETS
from intl_bench.core.inputs import read_text

_METHODS = configs.CONFIGS.parent / "pretrain" / "methods"
_COST = re.compile(r"about (\d+) to (\d+) hours on (.+?)(?: at|$)")
_COUNTS = {"one": "1", "two": "2"}


def header(path: Path) -> dict[str, str]:
    """Return the entries of the comment at the top of a config: "what" and those of its lines "# key: text"."""
    entries: dict[str, str] = {}
    key = "what"
    for line in read_text(path, "config").splitlines():
        if not line.startswith("#"):
            break
        if named := re.match(r"# {1,3}(command|source|differs|published|cost): *(.*)", line):
            key, line = named[1], named[2]
        entries[key] = f"{entries.get(key, '')} {line.lstrip('#').strip()}".strip()
    return entries


def recipes() -> list[Row]:
    """Return the recipes of `intl-bench pretrain`, by name."""
    return [_config(path) for path in _files("pretrain")]


def ablations() -> list[Row]:
    """Return the grids of `intl-bench ablation`, by name."""
    return [_config(path) for path in _files("ablation")]


def tasks() -> list[Row]:
    """Return the protocols of each task. The name of a row is that of the task and that of its `--config`."""
    from transfer import TASKS

    rows: list[Row] = []
    for task in TASKS:
        rows += [{**_config(path), "name": f"{task} --config {path.stem}"} for path in _files(task)]
    return rows


def methods() -> list[Row]:
    """Return the methods of pre-training, with the published linear top-1 of their CIFAR-10 recipes."""
    rows: list[Row] = []
    for path in sorted(_METHODS.glob("[!_]*.py")):
        module = ast.parse(read_text(path, "method"))
        text = (ast.get_docstring(module) or "").split("\n\n")[0]
        recipe = configs.CONFIGS / "pretrain" / f"cifar10_r18_{path.stem}.yaml"
        score = _published(header(recipe).get("published", "")) if recipe.is_file() else ""
        needs = [node.module for node in ast.walk(module) if isinstance(node, ast.ImportFrom)]
        rows.append(
            {
                "name": path.stem,
                "title": _display(module),
                "CIFAR-10": score,
                "recipes": str(len(list((configs.CONFIGS / "pretrain").glob(f"*_{path.stem}*.yaml")))),
                "extra": "baselines" if "pretrain.methods._lightly" in needs else "",
                "what": " ".join(text.split()).partition(": ")[2].rstrip("."),
            }
        )
    return rows


def datasets() -> list[Row]:
    """Return the published data sets, whose names are kept for their images."""
    rows: list[Row] = []
    for name, facts in DATASETS.items():
        recipes = [path for path in _files("pretrain") if path.stem.startswith(f"{name}_")]
        tasks = [task for task in ("coco", "voc") if name.startswith(task)]
        read = f"intl-bench {tasks[0]}" if tasks else f"data.kind={name if facts.side else 'imagefolder'}"
        rows.append(
            {
                "name": name,
                "title": facts.title,
                "classes": f"{facts.classes:,}",
                "train": f"{facts.train:,}",
                "test": f"{facts.test:,}",
                "recipes": str(len(recipes)) if recipes else "",
                "what": f"{read} data.root=PATH",
            }
        )
    return rows


def layouts() -> list[Row]:
    """Return the layouts of checkpoints that `--from` names, with their branches."""
    from transfer.formats.layouts import LAYOUTS

    return [
        {"name": layout.name, "title": layout.display, "what": f"branches: {', '.join(layout.branches)}"}
        for layout in sorted(LAYOUTS, key=lambda layout: layout.name)
    ]


def _files(kind: str) -> list[Path]:
    return sorted((configs.CONFIGS / kind).glob("*.yaml"))


def _config(path: Path) -> Row:
    entries = header(path)
    return {
        "name": path.stem,
        "published": _published(entries.get("published", "")),
        "cost": _cost(entries.get("cost", "")),
        "what": entries["what"].removesuffix("."),
    }


def _published(text: str) -> str:
    """Shorten the entry `published` of a header to its first score, "73.1 linear top-1"; "" if there is none."""
    whole = re.split(r" \(|;", text)[0]
    first = re.split(r", (?=\d)", whole)[0]
    if not re.match(r"\d", first):
        return ""
    return whole if "," in whole and first.replace(".", "").isdigit() else first


def _cost(text: str) -> str:
    """Shorten the entry `cost` of a header: "95-155 h on 2 A100"; "" if nothing is known."""
    if estimate := _COST.search(text):
        number, _, device = estimate[3].partition(" ")
        return f"{estimate[1]}-{estimate[2]} h on {_COUNTS.get(number, number)} {device}"
    first = re.split(r" \(|; ", text)[0]
    return "" if first.startswith(("not measured", "see ")) else first


def _display(module: ast.Module) -> str:
    """Return the text that a module assigns to `DISPLAY`."""
    for node in module.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "DISPLAY":
            return str(ast.literal_eval(node.value))
    return ""
