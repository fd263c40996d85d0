"""The settings of each command, generated from the dataclasses: for `intl-bench keys` and docs/settings.md."""

import dataclasses
import inspect
import textwrap
from collections.abc import Sequence

from intl_bench.core import config as configs
from intl_bench.core.overrides import as_typed
from intl_bench.core.settings import Setting, settings
from pretrain import methods
from pretrain.recipe import Recipe, load_recipe
from transfer import TASKS, find_task

COMMANDS = ("pretrain", *TASKS)
LEGEND = """\
* its value changes the numbers
+ it names files, whose content changes the numbers"""
_INTRODUCTION = """\
# Settings

Every setting of every command. Type `key=value` after the command, or write it in a YAML file of your own:
`intl-bench pretrain my.yaml`. This page is generated from the docstrings of the configurations.
`intl-bench keys COMMAND [NAME]` prints the same for one command, with the values of the recipe or protocol NAME.

In the first column, `*` marks a setting whose value changes the numbers. `+` marks one that names files, whose content
changes the numbers. The others change no result. Results are compared only if all settings with a mark are equal
([same_experiment.md](same_experiment.md)).

- `views.N.size` is a setting of view N, from 0 on. `views.size` sets it for all views.
- A list is written as `'data.skip=["a/*", "b/*"]'`. In a list of texts one text needs no brackets.
- `null` is no value.
- A YAML file may begin with `base: NAME`, a path from the file on or the name of a packaged recipe. Its own values win.
"""


def of_command(command: str, name: str | None = None) -> tuple[str, list[Setting]]:
    """Return the settings of a command with the values of a recipe or protocol, and a title that names it.

    Args:
        name: of the recipe or protocol. None takes that of the command without a name; where the data set decides which
            one this is, the values are the defaults of the configuration.

    Raises:
        InputError: there is no such recipe or protocol.
    """
    if command == "pretrain":
        recipe = load_recipe(name or "imagenet_r50_intl")
        module = methods.find(str(recipe.method["name"]))
        own = settings(module.Config, module.Config(**recipe.method), "method.")
        title = f"intl-bench pretrain {name or recipe.name}"
        return title, [part for one in settings(Recipe, recipe) for part in (own if one.key == "method" else [one])]
    task = find_task(command)
    name = name or task.default
    if name is None:
        return f"intl-bench {command}", settings(task.config)
    path = configs.find(name, command)
    values = {key: value for key, value in configs.read(path, command).items() if key != "for_checkpoints"}
    config = configs.build(task.config, values, f"config {path.name}")
    return f"intl-bench {command} --config {name}", settings(task.config, config)


def lines(found: Sequence[Setting], width: int | None) -> str:
    """Return settings for a terminal of `width` characters, with the meanings below; or one line each for a pipe."""
    shown = []
    for one in found:
        value = "" if one.default is dataclasses.MISSING else as_typed(one.default)
        head = f"{one.decides or ' '} {one.key}={value}  ({one.kind})"
        if width is None:
            shown.append(f"{head}  {one.meaning}")
        else:
            shown += textwrap.wrap(head, width, subsequent_indent="      ", break_on_hyphens=False)
            shown += textwrap.wrap(one.meaning, width, initial_indent="      ", subsequent_indent="      ")
    return "\n".join(shown)


def page() -> str:
    """Return docs/settings.md."""
    parts = [_INTRODUCTION, "## pretrain", _table([one for one in settings(Recipe) if one.key != "method"])]
    parts += ["## method", "The settings of each method, for `pretrain`. A recipe names its method: `method.name`."]
    for name in methods.names():
        module = methods.find(name)
        parts += [f"### {name}", _about(module.Config), _table(settings(module.Config, prefix="method."))]
    for name in TASKS:
        if name == "voc":
            parts += ["## voc", "The settings of [coco](#coco)."]
            continue
        config = find_task(name).config
        own = [one for one in settings(config) if name == "coco" or not one.key.startswith("data.")]
        more = [] if name == "coco" else ["The settings `data.` are those of [pretrain](#pretrain)."]
        parts += [f"## {name}", _about(config), *more, _table(own)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _about(schema: type) -> str:
    """Return the first paragraph of a docstring."""
    return " ".join(inspect.cleandoc(schema.__doc__ or "").split("\n\n")[0].split())


def _table(found: Sequence[Setting]) -> str:
    lines = ["| | key | default | allowed | meaning |", "| --- | --- | --- | --- | --- |"]
    for one in found:
        value = "" if one.default is dataclasses.MISSING else as_typed(one.default)
        cells = (one.decides and f"`{one.decides}`", f"`{one.key}`", value and f"`{value}`", one.kind, one.meaning)
        lines.append(f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |")
    return "\n".join(lines)
