"""The commands that repeat a result, from the settings that its records hold."""

import functools
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from intl_bench.core import config as configs
from intl_bench.core.errors import InputError
from intl_bench.core.identity import identity, is_runtime_only
from intl_bench.core.overrides import as_typed, flat
from intl_bench.protocol import default_path
from intl_bench.records import ResultRecord
from pretrain.images.data import DataConfig
from pretrain.recipe import load_recipe
from transfer import TASKS, find_task

_RUN = re.compile(r"runs/pretrain/(?P<name>[^/]+)/seed\d+/[^/]+")
# The settings of images that no identity holds, with their defaults.
_BESIDE = {key: value for key, value in configs.to_dict(DataConfig()).items() if is_runtime_only(DataConfig, key)}
_FROM_CHECKPOINT = "checkpoint"  # what an identity holds instead of a setting that follows from the checkpoint


def commands_of(records: Sequence[ResultRecord]) -> list[str]:
    """Return the commands of a row's records in the order in which they are run: pre-trainings, then scores."""
    trainings = {command: None for record in records if (command := pretraining_of(record)) is not None}
    return [*trainings, *scorings(records)]


def pretraining_of(record: ResultRecord) -> str | None:
    """Return the command of a record's pre-training; None if its settings are not known or there was none."""
    if "method" not in record.pretraining.get("settings", {}) or record.pretrain_seed is None:
        return None
    found = _RUN.search(str(record.details.get("checkpoint", "")))
    source = record.config.get("data", {})
    kind = record.pretraining["settings"].get("data", {}).get("kind")
    same = source.get("kind") == kind and record.protocol.get("pretrain_dataset") == record.dataset
    return pretraining(
        record.pretraining,
        record.pretrain_seed,
        found["name"] if found else None,
        source if same else {},
        record.config.get("init"),
    )


def pretraining(
    values: Mapping[str, Any], seed: int, name: str | None, data: Mapping[str, Any], init: str | None = None
) -> str:
    """Return the command of a pre-training.

    Initial weights are known by a digest: a comment before the command states it. Where their file is not known, the
    command has the word CHECKPOINT in its place.

    Args:
        values: its identity, which has settings.
        name: of the run; None if it is unknown.
        data: the settings of its images, which hold also what no identity holds; empty if they are unknown.
        init: the file of the initial weights; None if it is unknown or there is none.
    """
    settings = values["settings"]
    base = _nearest_recipe(settings, name)
    overrides = [] if name in (None, base) else [f"name={name}"]
    overrides += [f"seed={seed}"] if seed else []
    own = settings.get("data", {})
    known = {"kind": own.get("kind")}
    known |= {key: data[key] for key, value in _BESIDE.items() if data.get(key, value) != value}
    start = [f"data.{key}={as_typed(value)}" for key, value in known.items()]
    changes = _changes(_plain_recipe(base, tuple(start)), {**settings, "data": {**own, "kind": known["kind"]}})
    initial = values.get("initial_weights")
    if initial is None:
        return _line(["pretrain", base], [*overrides, *start, *changes])
    overrides.append(f"init={init or 'CHECKPOINT'}")
    which = initial if " " in initial else f"whose tensors have the digest {initial}"
    return f"# init: the initial weights, {which}\n" + _line(["pretrain", base], [*overrides, *start, *changes])


def scorings(records: Sequence[ResultRecord]) -> list[str]:
    """Return the commands of the scores among records, each with all of its seeds."""
    scores: dict[str, list[int]] = {}
    for record in records:
        if record.task in TASKS:
            scores.setdefault(_scoring(record), []).append(record.transfer_seed)
    return [text.replace(" --seeds SEEDS", _seeds(seeds)) for text, seeds in scores.items()]


def ablation(name: str, records: Sequence[ResultRecord]) -> str:
    """Return the command of an ablation with the place of its images."""
    roots = dict.fromkeys(record.config.get("data", {}).get("root") for record in records if record.task == "pretrain")
    return _line(["ablation", name], [f"data.root={root}" for root in roots if root is not None][:1])


def _scoring(record: ResultRecord) -> str:
    """Return the command of a record's score, with the text SEEDS in the place of its seeds."""
    words = [record.task, str(record.details.get("checkpoint") or "CHECKPOINT")]
    if (layout := _layout(record)) != "auto":
        words += ["--from", layout]
    if record.pretraining.get("initialization") == "random":
        words += ["--init", "random"]
    elif "source" in record.pretraining:
        words += ["--method", record.method]
        if record.pretrain_seed is not None:
            words += ["--pretrain-seed", str(record.pretrain_seed), "--group", str(record.pretraining["group"])]
    data = {key: value for key, value in record.config.get("data", {}).items() if value is not None}
    given = record.evaluation.get("settings", {})
    own = _without(record.config, given)
    start = [f"data.{key}={as_typed(data[key])}" for key in ("kind", "name", "root") if key in data]
    return _line([*words, "--seeds SEEDS"], [*start, *_changes(_plain_protocol(record.task, tuple(start)), own)])


def _layout(record: ResultRecord) -> str:
    """Return the layout as which a checkpoint was read, as `--from` takes it.

    A record of an earlier version does not tell it: then it follows from the branch, unless the file may be an export,
    which holds one backbone.
    """
    if "layout" in record.details:
        return str(record.details["layout"])
    branch = record.pretraining.get("branch", "online")
    source = record.pretraining.get("source", "intl-bench" if branch == "online" else f"intl-bench:{branch}")
    is_export = str(record.details.get("checkpoint")).endswith(".safetensors")
    return "auto" if is_export or ":" not in source else str(source)


@functools.cache
def _plain_recipe(name: str, overrides: tuple[str, ...]) -> dict[str, Any]:
    """Return the settings of a packaged recipe that determine its result; none if it refuses the overrides."""
    try:
        return identity(load_recipe(name, overrides))
    except InputError:  # a setting of an earlier version
        return {}


@functools.cache
def _plain_protocol(name: str, overrides: tuple[str, ...]) -> dict[str, Any]:
    """Return the settings of the default protocol of a task for a data set; none if there is none."""
    task = find_task(name)
    try:
        if task.default is None:
            own = [override.removeprefix("data.") for override in overrides]
            path = default_path(name, configs.build(DataConfig, {}, "data", own))
        else:
            path = configs.find(task.default, name)
        content = configs.read(path)
        content.pop("for_checkpoints", None)
        return configs.to_dict(configs.build(task.config, content, f"config {path.name}", overrides))
    except InputError:  # a setting of an earlier version, or no protocol for this data set
        return {}


@functools.cache
def _packaged() -> dict[str, dict[str, Any]]:
    """Return the settings of the files of the packaged recipes."""
    return {path.stem: flat(configs.read(path)) for path in sorted((configs.CONFIGS / "pretrain").glob("*.yaml"))}


def _nearest_recipe(settings: Mapping[str, Any], name: str | None) -> str:
    """Return the name of a run if it is a packaged recipe, else the packaged recipe with the most equal settings."""
    packaged = _packaged()
    if name in packaged:
        return str(name)
    wanted = flat(settings)

    def score(own: Mapping[str, Any]) -> tuple[bool, int]:
        # This is only a choice: the differences are computed from the built recipe.
        same = {key: _is_same(value, wanted[key]) for key, value in own.items() if key in wanted}
        return same.get("method.name", False), sum(1 if equal else -1 for equal in same.values())

    return max(packaged, key=lambda stem: score(packaged[stem]))


def _is_same(text: Any, value: Any) -> bool:
    """Return whether a text in a file means a value."""
    try:
        return bool(float(text) == value)
    except (TypeError, ValueError):
        return str(text).lower() == str(value).lower()


def _changes(plain: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Return overrides "key=value" for the settings that differ."""
    before = flat(plain)
    return [
        f"{key}={as_typed(value)}"
        for key, value in flat(wanted).items()
        if (key not in before or before[key] != value) and key not in ("device", "workers")
    ]


def _without(config: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a configuration that do not follow from the checkpoint."""
    return {
        key: _without(value, given[key])
        if isinstance(value, Mapping) and isinstance(given.get(key), Mapping)
        else value
        for key, value in config.items()
        if given.get(key) != _FROM_CHECKPOINT
    }


def _seeds(seeds: Sequence[int]) -> str:
    numbers = sorted(set(seeds))
    if numbers == list(range(len(numbers))):
        return f" --seeds {len(numbers)}" if len(numbers) > 1 else ""
    return f" --seeds {','.join(map(str, numbers))}{',' if len(numbers) == 1 else ''}"


def _line(words: Sequence[str], overrides: Sequence[str]) -> str:
    quoted = [word if word == "--seeds SEEDS" else shlex.quote(word) for word in words]
    return " ".join(["intl-bench", *quoted, *map(shlex.quote, overrides)])
