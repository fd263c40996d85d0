"""Malformed configurations, overrides and command lines: exit code 2 and one line that names the cause, quickly.

`INTL_BENCH_TORTURE=1` tries 20,000 random mutations instead of a few hundred.
"""

import contextlib
from pathlib import Path
from random import Random

import hypothesis
import pytest
import yaml
from file_cases import refused
from hypothesis import strategies as st
from torture import LONG

from intl_bench.ablations.cells import Ablation
from intl_bench.cli import main
from intl_bench.core import config as configs
from intl_bench.core.errors import InputError
from pretrain.recipe import load_recipe
from transfer import TASKS, find_task

pytestmark = [pytest.mark.slow] * LONG

Capture = pytest.CaptureFixture[str]
NINES = "9" * 5000


@pytest.fixture(scope="module", autouse=True)
def _imported() -> None:
    """The time of a case is not that of the first imports."""
    for command in ("pretrain", "ablation"):
        main([command, "nowhere.yaml"])
    for command in TASKS:
        main([command, "nowhere.pt", "--dry-run"])


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# ---- files

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
FILES: dict[str, bytes | str] = {
    "empty": "",
    "a blank": " \n",
    "a comment": "# nothing",
    "a word": "hello",
    "a number": "3",
    "null": "null",
    "a list": "- name: x",
    "a key that is a number": "1: 2",
    "a key that is null": "~: 2",
    "a key that is a list": "? [a]\n: 1",
    "a key that is a mapping": "? {a: 1}\n: 1",
    "a key twice": "name: x\nname: y",
    "a nested key twice": "name: x\ndata: {kind: npz, kind: npz}",
    "two documents": "name: x\n---\nname: y",
    "a tab": "name: x\n\tepochs: 1",
    "an indentation": "name: x\n  epochs: 1",
    "an open quote": "name: 'x",
    "an open list": "name: [x",
    "an open mapping": "name: {x: 1",
    "a colon too many": "name: x: y",
    "a reserved character": "name: @x",
    "a directive": "%YAML 9.9\n---\nname: x",
    "an unknown directive": "%FOO\nname: x",
    "a tag of Python": "name: !!python/object/apply:os.system [echo]",
    "a module of Python": "name: !!python/module:os",
    "a tag of a set": "name: !!set {x}",
    "an own tag": "name: !secret x",
    "binary": "name: !!binary aGVsbG8=",
    "bad binary": "name: !!binary '*'",
    "a bad whole number": "epochs: !!int x",
    "a bomb of aliases": BOMB,
    "a bomb of merges": BOMB + "z: {<<: [*i, *i]}",
    "an alias of itself": "name: x\nmethod: &m {name: *m}",
    "a merge of itself": "name: x\nmethod: &m {<<: *m}",
    "an alias of nothing": "name: *x",
    "a merge of text": "name: x\n<<: y",
    "deep lists": "name: " + "[" * 5000,
    "closed deep lists": "name: " + "[" * 5000 + "]" * 5000,
    "deep mappings": "name: " + "{a: " * 200 + "1" + "}" * 200,
    "deep blocks": "".join(f"{' ' * depth}a:\n" for depth in range(100)),
    "many values": f"name: [{'x, ' * 30_000}x]",
    "a large file": "name: x #" + "x" * 2_000_000,
    "5,000 digits": f"epochs: {NINES}",
    "5,000 hexadecimal digits": f"epochs: 0x{NINES}",
    "5,000 sexagesimal digits": f"epochs: 1{':59' * 2000}",
    "400 digits": f"name: x\nbase_lr: {NINES[:400]}",
    "a zero byte": b"name: x\0",
    "an escaped zero byte": 'name: x\ndata: {root: "\\0"}',
    "an escape character": "name: \x1b[31m",
    "Latin-1": b"name: \xe9",
    "half a character": 'name: "\\ud800"',
    "a zip archive": b"PK\x03\x04" + bytes(30),
    "JSON cut off": '{"name": "x", ',
    "HTML": "<!DOCTYPE html><html></html>",
    "interpolation": "name: ${oc.env:HOME}",
    "interpolation in a key": "${oc.env:HOME}: x",
    "interpolation in a list": "name: x\nviews: [{size: '${seed}'}]",
    "escaped interpolation": 'name: "\\x24{oc.env:HOME}"',
    "interpolation of a base": "base: ${oc.env:HOME}",
    "a base that is a number": "base: 3",
    "a base that is empty": "base: ''",
    "a base that is a list": "base: [a.yaml]",
    "a base that is missing": "base: nowhere.yaml",
    "a base that is a folder": "base: .",
    "a base that is a device": "base: /dev/zero",
    "a base that is itself": "base: a.yaml",
    "a base that is itself by another path": "base: ../a/../a/a.yaml",
    "a base through a link": "base: link.yaml",
    "a base in a circle": "base: b.yaml",
    "a base with zero": 'base: "\\0"',
    "an unknown key": "name: x\nzzz: 1",
    "a missing value": "name: ???",
    "text for a number": "name: x\nepochs: many",
    "a list for a number": "name: x\nepochs: [1]",
    "text for a section": "name: x\ndata: cifar10",
    "a list for a section": "name: x\ndata: [cifar10]",
    "null for a section": "name: x\ndata: null",
    "a mapping for a list": "name: x\nviews: {size: 32}",
}
COMMANDS = {
    "pretrain": ["pretrain", "a.yaml", "--dry-run"],
    "coco": ["coco", "--init", "random", "--config", "a.yaml", "--dry-run"],
    "ablation": ["ablation", "a.yaml", "--dry-run"],
}


def _folder(content: bytes | str) -> None:
    folder = Path("a")
    folder.mkdir()
    (folder / "a.yaml").write_bytes(content.encode() if isinstance(content, str) else content)
    (folder / "b.yaml").write_text("base: a.yaml")
    (folder / "link.yaml").symlink_to("a.yaml")


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", FILES)
def test_files(name: str, command: str, capfd: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    _folder(FILES[name])
    monkeypatch.chdir("a")
    refused(COMMANDS[command], capfd, "a.yaml")


@pytest.mark.parametrize("kind", ["", ".", "nowhere", "/dev/null", "/dev/zero", "x" * 300, "x" * 5000, "../../x"])
def test_no_file(kind: str, capfd: Capture) -> None:
    for command in (["pretrain", kind], ["coco", "--init", "random", "--config", kind], ["ablation", kind]):
        refused([*command, "--dry-run"], capfd, kind[:100])


# ---- overrides

SIZES = {
    "epochs": ("-1", "0", "1000000000000"),
    "batch_size": ("0", "1", "1" + "0" * 26),
    "seed": ("-1", "1" + "0" * 26, "18446744073709551616"),
    "workers": ("-1", "100000"),
    "base_lr": ("-1", "nan", ".nan", "inf", "-.inf", "1e999", "true", "1" + "0" * 400),
    "momentum": ("-3", "1.5", ".nan"),
    "weight_decay": ("-1", ".inf"),
    "final_lr_ratio": ("-1", ".nan"),
    "save_minutes": ("-1", ".inf"),
    "log_every": ("0", "-1"),
    "projector.out": ("0", "99999999999"),
    "projector.hidden": ("0", "99999999999"),
    "projector.layers": ("0", "99999999", "1048576"),
    "views[0].size": ("0", "10000000"),
    "views.0.size": ("-5",),
    "data.size": ("0", "99999999999"),
    "data.std": ("[0, 0, 0]", "[.nan, 1, 1]", "[1]", "1"),
    "method.iterations": ("0", "10000000", ".nan"),
}
OVERRIDES = [
    *(f"{key}={value}" for key, values in SIZES.items() for value in values),
    *("=", "=1", ".=1", "..=1", "[=1", "]=1", "[0]=1", "a=", "a.b.c=1", "é=1", "a b=1", " epochs=1", "{a: 1}=1"),
    *("epochs.x=1", "epochs[0]=1", "views=1", "views=[]", "views=[1]", "views=[[]]", "views=null", "views.size=x"),
    *("views[9].size=1", "views[-9].size=1", "views[x]=1", "views[1:2]=1", "views[0]=1", "views=[{sizes: 1}]"),
    *("epochs=", "epochs=null", "epochs=[1]", "epochs={a: 1}", "epochs=1.5", "epochs=1e3", "epochs=true", "epochs=x"),
    *("epochs=*x", "epochs=<<", "epochs=---", "epochs=...", "epochs=[", "epochs={", "epochs='", "epochs=%", "epochs=@"),
    *(
        "epochs=- -",
        "epochs=? a",
        "epochs=1\nseed=2",
        "epochs=--- 1\n--- 2",
        "epochs=\0",
        "epochs=\x1b[31m",
        "epochs=\r",
    ),
    *("epochs=???", "epochs=!!python/object/apply:os.system [echo]", f"epochs={NINES}", f"epochs={'[' * 5000}"),
    *("name=${oc.env:HOME}", 'method={name: "\\x24{oc.env:HOME}"}', "${x}=1", "name=$${x}", "name="),
    *("name=.", "name=..", "name=../x", "name=/x", "name=a/b", "name=a\\b", "name=-x", "name= x", f"name={NINES}"),
    *("name=\0", "name=\u202e", "name=\u2028", "name=\x1b[1m", "name=\ud800", "init=\0"),
    *(
        "data=1",
        "data=null",
        "data=[1]",
        "data.kind=x",
        "data.kind=",
        "data.name= ",
        "data.name=\u202e",
        "data.x=1",
    ),
    *("method=1", "method=null", "method=intl", "method.name=", "method.name=os", "method.name=../x", "method.x=1"),
    *("method.=1", "method[0]=1", "method={name: intl, name: byol}", "method={name: [intl]}", "method={1: 2}"),
    *("backbone=null", "backbone.name=resnet9", "precision=fp64", "optimizer=x", "scale=x", "device=", "base=a.yaml"),
]


@pytest.mark.parametrize("word", OVERRIDES, ids=lambda word: ascii(word[:40]))
def test_overrides(word: str, capfd: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/a/secret")
    line = refused(["pretrain", "demo", word, "--dry-run"], capfd)
    key = word.partition("=")[0]
    assert "demo.yaml" in line or key[:40] in line
    assert "/a/secret" not in line
    assert not Path("runs").exists()


TASK_OVERRIDES = [
    *("iterations=0", "iterations=1e99", "model.blocks=[1000000000]", "model.anchor_sizes=[-1]", "model.x=1", "x=1"),
    *("data.name=", "data.name=\u202e", "data.kind=x", "data.root=\0", "data.train=[]"),
    *("milestones=[-1]", "milestones=1", "batch_size=0", "lr=nan", "lr=-1", "visualize=-1", "engine=x", "device="),
]


@pytest.mark.parametrize("word", TASK_OVERRIDES)
def test_overrides_of_detection(word: str, capfd: Capture) -> None:
    refused(["coco", "--init", "random", word, "--dry-run"], capfd, word.partition("=")[0].rpartition(".")[2])


# ---- command lines

RANDOM = ["coco", "--init", "random", "--dry-run"]
LINES: list[list[str]] = [
    *([""], ["x"], ["--x"], ["-x"], ["pre"], ["PRETRAIN"], ["demo", "x"], ["demo", "--x"], ["demo", "x=1"]),
    *(["pretrain", "demo", "demo"], ["pretrain", "demo", ""], ["pretrain", "demo", "--epochs=3"]),
    *(["pretrain", "demo", "-epochs=3"], ["pretrain", "demo", "--fresh=1"], ["pretrain", "linear/nowhere"]),
    *(["pretrain", "demo", "--processes", count] for count in ("x", "", "0", "-1", "1.5", "9" * 30, NINES)),
    *(["pretrain", "demo", "--slurm", options] for options in ("x", "nodes=", "nodes=²", f"nodes={NINES}")),
    *(
        [*RANDOM, "--seeds", seeds]
        for seeds in ("", "x", "0", "-1", "1,1", "1,,2", ",", "1.5", "1e3", "²", "1000000000", "9" * 23, NINES)
    ),
    *([*RANDOM, "--method", name] for name in ("", " ", "a\x1b[1m", "a\u202eb", "a\nb", "x" * 300)),
    *([*RANDOM, "--pretrain-seed", seed] for seed in ("x", "", "-1", "1", NINES)),
    *([*RANDOM, "--group", "x"], [*RANDOM, "--device", "tpu"], [*RANDOM, "--engine", "x"], [*RANDOM, "--visualize"]),
    *([*RANDOM, "--init", "x"], [*RANDOM, "--config"], ["linear", "--engine", "builtin"], ["coco", "x", "y"]),
    *([task, path] for task in ("linear", "coco") for path in ("nowhere.pt", ".", "/dev/zero", "x" * 5000)),
    *(["convert"], ["convert", "a"], ["convert", "a", "b"], ["convert", "a", "b", "--to", "x"]),
    *(["convert", path, "b", "--to", "timm"] for path in ("nowhere", ".", "/dev/null", "/dev/zero")),
    *(["data"], ["data", "x"], ["data", "pack"], ["data", "pack", "nowhere", "y"], ["data", "pack", "/dev/null", "y"]),
    *(["ablation"], ["ablation", "nowhere"], ["ablation", "power", "x"], ["ablation", "power", "--seeds", "x"]),
    *(["ablation", "power", word, "--dry-run"] for word in ("epochs=0", "x=1", "init=x", "base_lr=nan")),
    ["ablation", "power", "--seeds", "1000000000", "--dry-run"],
    *(["tables", "--format", "x"], ["tables", "--table"], ["tables", "--table", "99"], ["tables", "--schedule", "3x"]),
    *(["tables", "x"], ["spectrum"], ["spectrum", "nowhere"], ["spectrum", "nowhere", "epochs=1"]),
    *(["spectrum", "nowhere", "--images", count] for count in ("0", "-1", "x", NINES)),
    *(["spectrum", "nowhere", "--format", "x"], ["spectrum", "nowhere", "--from", "x"]),
]


@pytest.mark.parametrize("arguments", LINES, ids=lambda words: ascii(" ".join(words)[:60]))
def test_command_lines(arguments: list[str], capfd: Capture) -> None:
    refused(arguments, capfd)


# ---- mutations

PACKAGED = sorted(path for path in configs.CONFIGS.rglob("*.yaml"))
VALUES = ["", "~", "???", "nan", ".inf", "-1", "0", "1e99", "9" * 40, NINES, "[]", "{}", "[[1]]", "{a: 1}", "true", "x"]
VALUES += [
    "${oc.env:HOME}",
    "&a [*a]",
    "*a",
    "!!int x",
    "!x",
    "<<: 1",
    "'",
    '"\\0"',
    "2024-01-01",
    "1:30",
    "\ud800",
    "é",
]
KEYS = [
    *SIZES,
    "",
    ".",
    "[",
    "views",
    "views[0]",
    "data",
    "data.root",
    "data.kind",
    "method",
    "method.name",
    "name",
    "x",
]


def _mutated(text: str, random: Random) -> str:
    """Return a text with a few changes: parts removed, repeated, moved or replaced by odd values."""
    for _ in range(random.randint(1, 4)):
        start = random.randint(0, len(text))
        end = start + random.choice([0, 1, 2, 8, 64])
        piece = random.choice([*VALUES, *"\n\t :,-[]{}&*!#|>%@`?\0\x85", text[start:end] * 2, text[end : end + 20]])
        if random.random() < 0.5 and ": " in text:  # the value of a line
            start = text.index(": ", text.rfind(": ", 0, start + 1) if ": " in text[: start + 1] else 0) + 2
            end = min((at for at in (text.find(mark, start) for mark in "\n,}") if at >= 0), default=len(text))
        text = text[:start] + piece + text[end:]
    return text


def _build(path: Path) -> None:
    kind = path.name.partition("-")[0]
    if kind == "pretrain":
        load_recipe(str(path))
    elif kind == "ablation":
        configs.load(Ablation, str(path), "ablation")
    else:
        values = configs.read(path)
        values.pop("for_checkpoints", None)
        configs.build(find_task(kind).config, values, path.name)


many = hypothesis.settings(
    max_examples=2_000 if LONG else 100,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
    phases=[hypothesis.Phase.generate],
)


@many
@hypothesis.given(path=st.sampled_from(PACKAGED), random=st.randoms(use_true_random=False))
def test_any_change_of_a_file_is_an_error_or_harmless(path: Path, random: Random) -> None:
    changed = Path(f"{path.parent.name}-{path.name}")
    changed.write_bytes(_mutated(path.read_text(), random).encode("utf-8", "surrogatepass"))
    with contextlib.suppress(InputError):
        _build(changed)


@many
@hypothesis.given(random=st.randoms(use_true_random=False))
def test_any_override_is_an_error_or_harmless(random: Random) -> None:
    words = [f"{random.choice(KEYS)}={random.choice(VALUES)}" for _ in range(random.randint(1, 3))]
    with contextlib.suppress(InputError):
        load_recipe("demo", [_mutated(word, random) if random.random() < 0.5 else word for word in words])


def test_the_packaged_files_are_valid() -> None:
    """The mutations begin with files that are accepted."""
    for path in PACKAGED:
        assert isinstance(yaml.safe_load(path.read_text()), dict)
