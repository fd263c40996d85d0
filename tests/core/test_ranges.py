"""Every number of a configuration has a range; text that could read the environment or fill the memory is refused."""

import dataclasses
import json
import math
import time
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
from places import ROOT

from intl_bench.ablations.cells import Ablation
from intl_bench.core import config as configs
from intl_bench.core.errors import InputError
from intl_bench.core.names import require_folder_name, require_title
from intl_bench.core.ranges import Range
from pretrain import methods
from pretrain.recipe import Recipe, from_dict
from transfer import TASKS, find_task

SCHEMAS: dict[str, type] = {
    "pretrain": Recipe,
    "ablation": Ablation,
    **{name: find_task(name).config for name in TASKS},
    **{name: methods.find(name).Config for name in methods.names()},
}


def numbers(schema: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted name and the type of each number of a configuration; of tuples the first number."""
    for name, hint in typing.get_type_hints(schema, include_extras=True).items():
        parts = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        for part in parts:
            inner = typing.get_args(part)[0] if typing.get_origin(part) is tuple else part
            if isinstance(inner, type) and dataclasses.is_dataclass(inner):
                yield from numbers(inner, f"{prefix}{name}{'[0]' if inner is not part else ''}.")
            elif inner in (int, float) or (
                typing.get_origin(inner) is Annotated and typing.get_args(inner)[0] is not str
            ):
                yield f"{prefix}{name}{'[0]' if inner is not part else ''}", inner


NUMBERS = [(task, name, hint) for task, schema in SCHEMAS.items() for name, hint in numbers(schema)]


@pytest.mark.parametrize(("task", "name", "hint"), NUMBERS, ids=[f"{task}-{name}" for task, name, _ in NUMBERS])
def test_every_number_declares_its_range(task: str, name: str, hint: Any) -> None:
    assert typing.get_origin(hint) is Annotated, f"{name} of {task} has no range"
    (declared,) = [part for part in typing.get_args(hint) if isinstance(part, Range)]
    assert math.isfinite(declared.least)
    assert math.isfinite(declared.most)


@pytest.mark.parametrize("value", ["nan", "-inf", "1e40", str(10**400), str(-(10**31))])
def test_no_number_takes_a_value_that_cannot_be_meant(value: str) -> None:
    wrong = []
    for task, name, _ in NUMBERS:
        key, is_item, _ = name.partition("[0]")
        if is_item and name.count(".") and not name.endswith("]"):
            continue  # a section in a list, such as views[0].size, is a test of its own below
        try:
            configs.build(SCHEMAS[task], {}, "here", [f"{key}={f'[{value}]' if is_item else value}"])
            wrong.append(f"{task} {name}")
        except InputError as error:
            if key not in str(error) or "\n" in str(error):
                wrong.append(f"{task} {name}: {error}")
    assert not wrong


@pytest.mark.parametrize("word", ["views[0].size=10000000", "views[1].jitter_p=nan", "views[0].size=0"])
def test_numbers_of_views_are_checked(word: str) -> None:
    with pytest.raises(InputError, match=r"views\[[01]\]\.(size|jitter_p)=\w+: expected"):
        configs.build(Recipe, {"name": "x"}, "here", [word])


@pytest.mark.slow
def test_every_record_has_settings_that_are_still_accepted() -> None:
    """A range may be too narrow for what people have run."""
    seen = set()
    for path in (ROOT / "results" / "project").rglob("records/*/*.json"):
        values = json.loads(path.read_text())
        is_recipe = values["task"] in ("pretrain", "sweep")
        config = values["config"] | ({"seed": 0, "name": "x"} if is_recipe else {})
        if (what := json.dumps([values["task"], config], sort_keys=True)) in seen:
            continue
        seen.add(what)
        if is_recipe:
            from_dict(config, path.name)
        else:
            configs.build(SCHEMAS[values["task"]], config, path.name)
    assert len(seen) > 50


SECRET = "intl-bench-secret-value"


@pytest.mark.parametrize(
    "text",
    [
        "name: ${oc.env:INTL_SECRET}",
        'name: "\\x24{oc.env:INTL_SECRET}"',
        "${oc.env:INTL_SECRET}: 1",
        "name: x\nmethod: {name: '${oc.env:INTL_SECRET}'}",
        "name: x\nviews: [{size: '${oc.env:INTL_SECRET}'}]",
        "name: '${.epochs}'",
        "base: ${oc.env:INTL_SECRET}",
    ],
)
def test_interpolation_is_refused_everywhere(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTL_SECRET", SECRET)
    path = tmp_path / "a.yaml"
    path.write_text(text)
    (tmp_path / "b.yaml").write_text("base: a.yaml\nepochs: 3")
    for read in (path, tmp_path / "b.yaml"):
        with pytest.raises(InputError, match="is not supported") as caught:
            configs.build(Recipe, configs.read(read), "here")
        assert SECRET not in str(caught.value)


@pytest.mark.parametrize("word", ["name=${oc.env:HOME}", 'method={name: "\\x24{oc.env:HOME}"}', "${x}=1", "a=[${x}]"])
def test_interpolation_in_overrides_is_refused(word: str) -> None:
    with pytest.raises(InputError, match="is not supported"):
        configs.build(Recipe, {"name": "x"}, "here", [word])


def test_interpolation_in_a_checkpoint_is_refused() -> None:
    with pytest.raises(InputError, match="is not supported"):
        from_dict({"name": "x", "data": {"root": "${oc.env:INTL_SECRET}"}}, "checkpoint x.pt")


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{new}: &{new} [{','.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
MALFORMED = {
    "alias bomb": (BOMB, "more than 20000 values"),
    "alias of itself": ("name: x\nmethod: &m {name: *m}", "a part of itself"),
    "alias of nothing": ("name: *x", "a part of itself|not valid YAML"),
    "merge bomb": (BOMB + "z: {<<: *i}", "more than 20000 values"),
    "deep lists": ("name: " + "[" * 3000 + "]" * 3000, "levels|nesting depth"),
    "deep mappings": ("".join(f"{' ' * i}a:\n" for i in range(200)) + " " * 200 + "a: 1", "levels"),
    "an integer of 5000 digits": ("epochs: " + "9" * 5000, "epochs: found 999"),
    "a number too large for a float": ("base_lr: 1" + "0" * 400, "base_lr=inf: expected a finite number"),
    "a tag": ("name: !!python/object/apply:os.system [echo]", "not valid YAML"),
    "a key twice": ("epochs: 1\nepochs: 2", "not valid YAML"),
    "a key that is no text": ("1: 2", "unknown key '1'"),
    "a key that is a list": ("? [a]\n: 1", "not valid YAML"),
    "a list": ("- 1", "expected `key: value` lines"),
    "a word": ("hello", "expected `key: value` lines"),
    "two documents": ("name: x\n---\nname: y", "not valid YAML"),
    "a zero byte": ("name: \0", "not valid YAML"),
    "nothing": ("", "expected `key: value` lines"),
    "a base that is a list": ("base: [a]", "base is .*; expected the path of a file"),
    "a base that is missing": ("base: nowhere.yaml", r"nowhere\.yaml is the base of .*a\.yaml"),
    "a base that is itself": ("base: a.yaml", "a file cannot be the base of itself"),
    "a base in a circle": ("base: b.yaml", "a file cannot be the base of itself"),
    "a large file": ("name: x #" + "x" * 2_000_000, "expected at most 1000000"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_files_end_in_one_line(name: str, tmp_path: Path) -> None:
    text, message = MALFORMED[name]
    (tmp_path / "a.yaml").write_text(text)
    (tmp_path / "b.yaml").write_text("base: a.yaml")
    started = time.process_time()
    with pytest.raises(InputError, match=message) as caught:
        configs.build(Recipe, configs.read(tmp_path / "a.yaml"), "config a.yaml")
    assert time.process_time() - started < 2
    assert "\n" not in str(caught.value)
    assert "a.yaml" in str(caught.value)


OVERRIDES = [
    *("=1", "x", "a.b.c=1", "views[9].size=1", "views[x]=1", "views.=1", ".=1", "..=1", "[=1", "]=1", "a[0]=1"),
    *("epochs.x=1", "epochs[0]=1", "name.x=[", "views=1", "views=[1]", "method=1", "backbone=resnet18", "data=x"),
    *("epochs=", "epochs=null", "epochs=[1]", "epochs={a: 1}", "epochs=1.5", "epochs=true", "epochs=*x", "epochs=&x"),
    *("epochs=" + "[" * 2000, "name=" + "9" * 5000, "epochs=2024-01-01", "epochs=!!python/none", "\udcff=1", "a\nb=1"),
]


@pytest.mark.parametrize("word", OVERRIDES)
def test_malformed_overrides_end_in_one_line(word: str) -> None:
    try:
        configs.build(Recipe, {"name": "x"}, "here", [word])
    except InputError as error:
        assert len(str(error)) < 1000  # noqa: PT017
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert word.startswith(("name=", "method="))


@pytest.mark.parametrize("name", ["", " ", ".", "..", "a/b", "../x", "/x", "a\\b", "a\0b", "-x", " x", "x ", "x" * 300])
def test_names_of_folders(name: str) -> None:
    with pytest.raises(ValueError, match=r"expected (a|the) name"):
        require_folder_name(name, "name")
    for schema, values in ((Recipe, {}), (Ablation, {"also": "toy"})):
        with pytest.raises(InputError, match=r"name[=:]"):
            configs.build(schema, {"name": name, **values}, "here")


@pytest.mark.parametrize(
    "name", ["a\x1b[31m", "a\nb", "a\u202eb", "a\u2066b", "a\x85b", "a\u2028b", "\t", "a\udcffb", "x" * 201]
)
def test_names_of_methods(name: str) -> None:
    with pytest.raises(ValueError, match="expected a name"):
        require_title(name, "--method")


def test_usual_names() -> None:
    for name in ("cifar10_r18_intl", "INTL (T = 4), β = 1", "Übung 3", "名前", "a.b-c+d=e"):
        require_title(name, "--method")
        require_folder_name(name, "name")


@pytest.mark.parametrize("value", ["[[1]]", "[{a: 1}]"])
def test_a_list_in_a_list_of_numbers_is_refused(value: str) -> None:
    with pytest.raises(InputError, match=r"milestones\[0\]: found"):
        configs.build(find_task("linear").config, {}, "config", [f"milestones={value}"])
