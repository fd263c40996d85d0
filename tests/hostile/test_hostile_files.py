"""Hostile files: nothing that they contain is run, written outside, read from elsewhere, or obeyed by a terminal."""

import contextlib
import csv
import io
import json
import os
import pickle
import re
import struct
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import file_cases
import hypothesis
import numpy as np
import pytest
import table_cases
import torch
import torture
from file_cases import SMALL, coco_document, refused, safetensors_file, torch_file, zip_parts, zipped
from hypothesis import strategies as st
from safetensors.torch import save

from intl_bench import protocol
from intl_bench.cli import main
from intl_bench.core import config as configs
from intl_bench.core.errors import InputError
from intl_bench.records import RecordStore
from pretrain.images.data import DataConfig
from transfer.formats import safe_load

Capture = pytest.CaptureFixture[str]
SECRET = "kept-from-output-7d1f"
CONVERT = ["convert", "weights", "out.safetensors", "--to", "safetensors"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A complete checkpoint."""
    return file_cases.small_checkpoint(tmp_path_factory.mktemp("weights") / "small.safetensors")


@pytest.fixture(autouse=True)
def _guarded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture) -> Any:
    """Run a test in an own folder; check that no canary was created and nothing was written outside that folder."""
    inside, outside = tmp_path / "work", tmp_path / "outside"
    for folder in (inside, outside, outside / "bin"):
        folder.mkdir()
    for program in ("gs", "convert", "inkscape", "xv", "display", "cwebp", "djpeg"):  # what Pillow might start
        path = outside / "bin" / program
        path.write_text(f"#!/bin/sh\ntouch {inside}/canary\n")
        path.chmod(0o755)
    (outside / "secret.txt").write_text(SECRET)
    before = sorted(outside.rglob("*")), sorted(tmp_path.iterdir())
    monkeypatch.setenv("PATH", f"{outside / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("INTL_BENCH_SECRET", SECRET)
    monkeypatch.chdir(inside)
    yield
    output = capfd.readouterr()
    assert SECRET not in output.out + output.err
    assert not list(inside.rglob("canary*"))
    assert (sorted(outside.rglob("*")), sorted(tmp_path.iterdir())) == before


RUNS = {"os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.fork", "ctypes.dlopen", "webbrowser.open"}
_calls: list[str] | None = None


def _audit(event: str, _: object) -> None:
    if _calls is not None and event in RUNS:
        _calls.append(event)


sys.addaudithook(_audit)  # it cannot be removed


@contextlib.contextmanager
def watched() -> Iterator[list[str]]:
    """Collect the programs and libraries that Python starts within the block."""
    global _calls
    _calls = []
    try:
        yield _calls
    finally:
        _calls = None


# ---- pickles


class Call:
    """Pickled as a call of a function with arguments."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.function, self.arguments


class State:
    """Pickled as an object of a harmless class with a hostile state."""

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (), {"__class__": Call(os.system, "touch canary")}


def text_pickle(module: str, name: str, *arguments: str) -> bytes:
    """Return a pickle of protocol 0 that calls a function by name with texts."""
    return f"c{module}\n{name}\n(".encode() + b"".join(f"S{one!r}\n".encode() for one in arguments) + b"tR."


def stack_pickle(module: str, name: str, *arguments: str) -> bytes:
    """Return a pickle of protocol 4, whose names may have dots: `name` is searched inside `module`."""

    def text(value: str) -> bytes:
        return b"\x8c" + bytes([len(value)]) + value.encode()

    return b"\x80\x04" + text(module) + text(name) + b"\x93(" + b"".join(map(text, arguments)) + b"tR."


TOUCH = "open('canary','w')"
CALLS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "os.system": ("os", "system", ("touch canary",)),
    "posix.system": ("posix", "system", ("touch canary",)),
    "os.popen": ("os", "popen", ("touch canary",)),
    "os.mkdir": ("os", "mkdir", ("canary",)),
    "subprocess.getoutput": ("subprocess", "getoutput", ("touch canary",)),
    "eval": ("builtins", "eval", (TOUCH,)),
    "exec": ("builtins", "exec", (TOUCH,)),
    "eval of Python 2": ("__builtin__", "eval", (TOUCH,)),
    "open": ("builtins", "open", ("canary", "w")),
    "io.open": ("io", "open", ("canary", "w")),
    "__import__": ("builtins", "__import__", ("antigravity",)),
    "breakpoint": ("builtins", "breakpoint", ()),
    "input": ("builtins", "input", ("password: ",)),
    "importlib": ("importlib", "import_module", ("antigravity",)),
    "runpy": ("runpy", "run_path", ("canary.py",)),
    "pty": ("pty", "spawn", ("touch canary",)),
    "timeit": ("timeit", "timeit", (TOUCH,)),
    "cProfile": ("cProfile", "run", (TOUCH,)),
    "pdb": ("pdb", "run", (TOUCH,)),
    "pydoc": ("pydoc", "locate", ("antigravity",)),
    "shutil": ("shutil", "copy", ("/etc/hostname", "canary")),
    "webbrowser": ("webbrowser", "open", ("http://127.0.0.1/",)),
    "logging": ("logging", "FileHandler", ("canary",)),
    "sqlite": ("sqlite3", "connect", ("canary",)),
    "numpy.fromfile": ("numpy", "fromfile", ("/etc/hostname",)),
    "numpy.memmap": ("numpy", "memmap", ("canary", "uint8", "w+")),
    "numpy.save": ("numpy", "save", ("canary", "a")),
    "numpy.runstring": ("numpy.testing._private.utils", "runstring", (TOUCH, "{}")),
    "pandas.eval": ("pandas", "eval", (TOUCH,)),
    "pandas.read_pickle": ("pandas", "read_pickle", ("gadget",)),
    "torch.save": ("torch", "save", ("a", "canary")),
    "torch.load": ("torch", "load", ("gadget",)),
    "torch.jit.load": ("torch.jit", "load", ("gadget",)),
    "torch.hub.load": ("torch.hub", "load", ("gadget", "x")),
    "torch.ops.load_library": ("torch.ops", "load_library", ("canary.so",)),
    "torch.classes.load_library": ("torch.classes", "load_library", ("canary.so",)),
    "torch.storage._load_from_bytes": ("torch.storage", "_load_from_bytes", ("a",)),
    "torch.serialization.load": ("torch.serialization", "load", ("gadget",)),
    "torch.utils.cpp_extension.load": ("torch.utils.cpp_extension", "load", ("canary", "a.cpp")),
    "torch._inductor": ("torch._inductor.codecache", "PyCodeCache.load", (TOUCH,)),
    "collections": ("collections", "namedtuple", ("a", "b")),
    "codecs.decode": ("_codecs", "decode", ("a", "rot13")),
    "a known package": ("lightly", "os.system", ("touch canary",)),
    "argparse's os": ("argparse", "_os.system", ("touch canary",)),
    "a class of this project": ("intl_bench.core.files", "write_text", ("canary", "a")),
    "a class method": ("builtins", "int.from_bytes", ("a", "big")),
    "dict.__class__": ("builtins", "dict.__class__", ("a",)),
    "numpy's os": ("numpy", "os.system", ("touch canary",)),
    "numpy.dtype.type": ("numpy", "dtype.__class__", ("a",)),
    "OrderedDict.__init__": ("collections", "OrderedDict.__init__.__globals__", ("a",)),
}
# Stand-ins for objects of known packages keep the values and run nothing; such a file has no backbone.
SAYS = r"could run code; no code was run|holds a |not a readable|no ResNet"


@pytest.mark.parametrize("kind", CALLS)
@pytest.mark.parametrize("form", [text_pickle, stack_pickle])
@pytest.mark.parametrize("container", ["pickle", "zip", "old PyTorch"])
def test_calls_in_pickles(kind: str, form: Callable[..., bytes], container: str, capfd: Capture) -> None:
    module, name, arguments = CALLS[kind]
    content = form(module, name, *arguments)
    if container == "zip":
        content = zipped({**zip_parts(SMALL), "archive/data.pkl": content})
    elif container == "old PyTorch":
        old = torch_file(SMALL, old=True)
        content = old[: old.index(b"\x80", 60)] + content
    Path("weights").write_bytes(content)
    Path("gadget").write_bytes(text_pickle("os", "system", "touch canary"))
    with watched() as calls:
        line = refused(CONVERT, capfd, "checkpoint weights")
    assert re.search(SAYS, line)
    assert calls == []


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "value",
    [
        {"state_dict": {"a": Call(os.system, "touch canary")}},
        Call(dict, {"x": Call(eval, TOUCH)}),
        Call(getattr, Call(__import__, "os"), "system"),
        State(),
        Call(torch.nn.Module),
        np.array([Call(os.system, "touch canary")], object),
        [Call(exec, TOUCH)],
    ],
    ids=["nested", "argument", "chain", "state", "class", "array of objects", "list"],
)
def test_objects_in_pickles(value: Any, protocol: int, capfd: Capture) -> None:
    Path("weights").write_bytes(pickle.dumps(value, protocol))
    refused(CONVERT, capfd, "could run code; no code was run")


@pytest.mark.parametrize("old", [False, True])
def test_a_hostile_training_state_is_not_resumed(old: bool, capfd: Capture) -> None:
    folder = Path("runs/pretrain/demo/seed0")
    folder.mkdir(parents=True)
    (folder / "checkpoint.pt").write_bytes(torch_file({"format": 3, "x": Call(os.system, "touch canary")}, old=old))
    demo = ["pretrain", "demo", "data.size=128"]
    refused(demo, capfd, "checkpoint.pt")
    refused([*demo, "seed=1", f"init={folder / 'checkpoint.pt'}"], capfd, "checkpoint.pt")


# ---- archives and headers


def _links() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in zip_parts(SMALL).items():
            archive.writestr(name, content)
        link = zipfile.ZipInfo("archive/data/7")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "../../outside/secret.txt")
    return stream.getvalue()


def _quine() -> bytes:
    """Return a zip archive whose second part is the first one again."""
    content = bytearray(zipped({"archive/data.pkl": bytes(10_000), "archive/data/0": bytes(10_000)}))
    second = content.rindex(b"PK\x01\x02")
    content[second + 42 : second + 46] = bytes(4)
    return bytes(content[:10_100]) + bytes(content[content.index(b"PK\x01\x02") :])


ARCHIVES: dict[str, Callable[[], bytes]] = {
    "names that leave the folder": lambda: zipped({"../../outside/canary": b"a", **zip_parts(SMALL)}),
    "an absolute name": lambda: zipped({**zip_parts(SMALL), "/tmp/canary": b"a"}),
    "a symbolic link": _links,
    "a bomb": lambda: zipped({**zip_parts(SMALL), "archive/data/9": bytes(10**8)}, compression=zipfile.ZIP_DEFLATED),
    "a bomb as pickle": lambda: zipped({"archive/data.pkl": b"N" * 10**8}, compression=zipfile.ZIP_DEFLATED),
    "parts over each other": _quine,
    "TorchScript": lambda: zipped(
        {**zip_parts(SMALL), "archive/code/__torch__.py": TOUCH.encode(), "archive/constants.pkl": b"N."}
    ),
    "Keras": lambda: zipped({"config.json": b'{"class_name": "Lambda"}', "model.weights.h5": b"\x89HDF"}),
    "overlapping safetensors": lambda: safetensors_file(
        b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},"b":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}',
        bytes(16),
    ),
    "safetensors that claim terabytes": lambda: safetensors_file(b"{}", length=2**62),
    "safetensors with facts of code": lambda: save(SMALL, metadata={"config": f"!!python/object/apply:eval [{TOUCH}]"}),
}


@pytest.mark.parametrize("kind", ARCHIVES)
def test_archives(kind: str, capfd: Capture) -> None:
    Path("weights").write_bytes(ARCHIVES[kind]())
    refused(CONVERT, capfd, "checkpoint weights")


LINKS = ("../outside/secret.txt", "/etc/passwd", "/dev/zero", "/proc/self/environ", "weights")


@pytest.mark.parametrize("target", LINKS)
def test_a_checkpoint_that_is_a_link(target: str, capfd: Capture) -> None:
    os.symlink(target, "weights")
    line = refused(CONVERT, capfd, "checkpoint weights")
    assert "root:" not in line


@pytest.mark.parametrize("target", ["/dev/null", "pipe"])
def test_an_output_that_is_no_file_is_not_replaced(target: str, weights: str, capfd: Capture) -> None:
    """Root can replace /dev/null, which every program of the machine needs."""
    os.mkfifo("pipe")
    os.symlink(target, "out")
    before = sorted(os.listdir())
    refused(["convert", weights, "out", "--to", "timm"], capfd, "out: ", "expected a regular file")
    assert sorted(os.listdir()) == before
    assert os.path.islink("out")


def test_a_data_set_whose_name_is_a_path_has_the_protocol_of_its_kind() -> None:
    config = Path("knn.yaml").absolute()
    config.write_text("k: 3\n")
    name = os.path.relpath(config.with_suffix(""), configs.CONFIGS / "knn")
    assert protocol.default_path("knn", DataConfig(kind="cifar10", name=name)).name == "cifar10.yaml"


@pytest.mark.parametrize("member", ["train_x", "train_y"])
def test_arrays_of_objects(member: str, capfd: Capture) -> None:
    stream = io.BytesIO()
    np.savez(stream, **file_cases.arrays() | {member: np.array([Call(os.system, "touch canary")], object)})  # type: ignore[arg-type]
    Path("data.npz").write_bytes(stream.getvalue())
    refused(["pretrain", "demo", "data.kind=npz", "data.root=data.npz"], capfd, "data.npz", "plain arrays")


# ---- text


YAML = {
    "apply": "a: !!python/object/apply:os.system ['touch canary']",
    "new": "a: !!python/object/new:os.system ['touch canary']",
    "name": "a: !!python/name:os.system",
    "module": "a: !!python/module:antigravity",
    "tuple": "a: !!python/tuple [1]",
    "other tag": "a: !x 1",
}


@pytest.mark.parametrize("kind", YAML)
@pytest.mark.parametrize("command", ["pretrain", "ablation"])
def test_tags_of_yaml(kind: str, command: str, capfd: Capture) -> None:
    Path("a.yaml").write_text(YAML[kind])
    refused([command, "a.yaml"], capfd, "a.yaml")


@pytest.mark.parametrize(
    "place", ["file:///etc/passwd", "../outside/secret.txt", "http://127.0.0.1:9/", "php://filter"]
)
@pytest.mark.parametrize("form", ["<!ENTITY b SYSTEM '{}'>", "<!ENTITY % b SYSTEM '{}'> %b;"])
def test_entities_of_xml(place: str, form: str, weights: str, capfd: Capture) -> None:
    path = file_cases.voc_folder(Path("voc")) / "VOC2007" / "Annotations" / "000005.xml"
    path.write_text(f"<!DOCTYPE a [{form.format(place)}]><annotation><folder>&b;</folder></annotation>")
    line = refused(["voc", weights, "data.root=voc", "engine=builtin"], capfd, "declares a document type or entities")
    assert "root:" not in line


@pytest.mark.parametrize("name", ["../../outside/secret.txt", "/etc/passwd", "a/../../b", "\x1b]0;x\x07", "a\x00b"])
def test_file_names_of_annotations(name: str, weights: str, capfd: Capture) -> None:
    path = file_cases.coco_folder(Path("coco")) / "annotations" / "instances_train2017.json"
    document = coco_document()
    document["images"][0]["file_name"] = name
    path.write_text(json.dumps(document))
    command = ["coco", weights, "data.root=coco", "data.name=tiny", "engine=builtin"]
    refused(command, capfd, "file_name")


# ---- images


POSTSCRIPT = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\n(canary) (w) file closefile\nshowpage\n"
)
IMAGES = {
    "EPS": POSTSCRIPT,
    "EPS in DOS form": b"\xc5\xd0\xd3\xc6" + struct.pack("<II", 30, len(POSTSCRIPT)) + bytes(18) + POSTSCRIPT,
    "PDF": b"%PDF-1.4\n1 0 obj<</OpenAction<</S/Launch/F(touch canary)>>>>endobj\n",
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/><script>1</script></svg>',
    "MVG": b"push graphic-context\nimage over 0,0 0,0 'https://127.0.0.1/x\"|touch canary\"'\n",
    "WMF": b"\xd7\xcd\xc6\x9a\x00\x00" + bytes(200),
    "FITS": b"SIMPLE  =                    T" + b" " * 2850,
    "a pickle": pickle.dumps(Call(os.system, "touch canary")),
    "a script": b"#!/bin/sh\ntouch canary\n",
}


@pytest.mark.parametrize("suffix", [".JPEG", ".png", ".webp", ".tif"])
@pytest.mark.parametrize("kind", IMAGES)
def test_other_formats_are_not_given_to_programs(kind: str, suffix: str, weights: str, capfd: Capture) -> None:
    path = file_cases.image_folder(Path("images")) / "train" / "a" / f"a_0{suffix}"
    path.write_bytes(IMAGES[kind])
    command = ["knn", weights, "data.kind=imagefolder", "data.root=images", "data.name=tiny", "workers=0", "k=1"]
    refused(command, capfd, str(path), "not a readable image")


# ---- names


ESCAPES = (
    "\x1b[2J",
    "\x1b]0;title\x07",
    "\x9b31m",
    "\x7f",
    "\x08\x08",
    "\r",
    "\u202e",
    "\u2066",
    "\u2028",
    "\u200b",
    "\ufeff",
)


def assert_harmless(text: str) -> None:
    assert all(character.isprintable() or character in "\n\t" for character in text)


@pytest.mark.parametrize("escape", ESCAPES, ids=ascii)
@pytest.mark.parametrize("format", ["text", "markdown", "latex", "csv", "json", "html"])
def test_names_in_tables(escape: str, format: str, capfd: Capture) -> None:
    protocol = {**table_cases.LINEAR, **table_cases.R50, f"a{escape}": f"b{escape}"}
    names = {"method": f"A{escape}B", "details": {"checkpoint": f"x{escape}.pt"}}
    record = table_cases.make("linear", f"image{escape}net", {"top1": 50.0}, protocol, **names)
    RecordStore(Path("results/records")).append(record)
    RecordStore(Path("results/records")).append(
        table_cases.make("coco", "coco2017", {"bbox/AP": 40.0}, table_cases.COCO, method=f"A{escape}B")
    )
    for chosen in ([], ["--table", "1", "2", "3", "4", "voc", "ablation"]):  # the default has a table of the data set
        assert main(["tables", "--format", format, *chosen]) == 0
        output = capfd.readouterr()
        assert_harmless(output.out)
        assert output.err == ""
        if format == "json":
            json.loads(output.out)


@pytest.mark.parametrize("escape", ESCAPES, ids=ascii)
def test_names_in_messages(escape: str, capfd: Capture) -> None:
    for command in (
        [f"a{escape}"],
        ["tables", "--table", escape],
        ["tables", f"--{escape}"],
        ["pretrain", f"a{escape}"],
        ["pretrain", "demo", f"a{escape}=1"],
        ["pretrain", "demo", f"name=a{escape}", "epochs=a"],
        ["convert", f"a{escape}", "b", "--to", "timm"],
        ["convert", "weights", "b", "--to", escape],
        ["knn", "weights", "data.kind=imagefolder", "data.root=images"],
        ["pretrain", "a.yaml"],
    ):
        Path("weights").write_bytes(torch_file({f"a{escape}": torch.ones(1), f"b{escape}": {f"c{escape}": 1}}))
        Path("images/train").mkdir(parents=True, exist_ok=True)
        Path(f"images/train/a{escape}").mkdir(exist_ok=True)
        Path("a.yaml").write_text(f'"a\\u{ord(escape[0]):04x}": 1')
        code = main(command)
        output = capfd.readouterr()
        assert code == 2
        assert_harmless(output.out + output.err)


def test_names_of_files_that_are_not_utf8(capfd: Capture) -> None:
    name = os.fsdecode(b"a\xff\x1b[2J")
    Path(name).write_bytes(b"hello")
    line = refused(["convert", name, "b", "--to", "timm"], capfd, "unknown format")
    assert r"a\udcff\u001b[2J" in line


@pytest.mark.parametrize(
    "name",
    [
        "=1+1",
        "+1",
        "-1+cmd|x!A0",
        "@SUM(A1)",
        "\t=1",
        " =1",
        "\uff1d1",
        '=HYPERLINK("http://127.0.0.1")',
        "\r=1",
    ],
)
def test_formulas_in_csv(name: str, capfd: Capture) -> None:
    record = table_cases.make(
        "linear", "imagenet", {"top1": 50.25}, {**table_cases.LINEAR, **table_cases.R50}, method=name
    )
    RecordStore(Path("results/records")).append(record)
    assert main(["tables", "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capfd.readouterr().out)))
    measured = [row for row in rows if row["kind"] == "measured" and row["mean"]]
    assert [float(row["mean"]) for row in measured] == [50.25]
    for row in rows:
        for value in row.values():
            assert not re.match(r"\s*[=+\-@\uff1d]", value) or float(value) is not None
    assert any(row["method"].startswith("'") or row["method"].startswith("\\u000d") for row in measured)


# ---- the reader of checkpoints


def _harmless(content: bytes) -> None:
    """Read a file; the property is that nothing happens but an `InputError` or a value."""
    Path("fuzzed").write_bytes(content)
    with contextlib.suppress(InputError):
        safe_load.read(Path("fuzzed"))


OPCODES = [
    bytes([code])
    for code in b"()0123BCDFGIJKLMNQRSTUVXabcdeghijlopqrstu}]\x80\x81\x82\x85\x86\x87\x88\x89\x8a\x8c\x93\x94"
]
PIECES = [
    *OPCODES,
    *(text_pickle(*CALLS[kind][:2], *CALLS[kind][2])[:-1] for kind in ("os.system", "eval", "argparse's os")),
    b"ccollections\nOrderedDict\n",
    b"cnumpy\ndtype\n",
    b"cnumpy\nndarray\n",
    b"cnumpy.core.multiarray\n_reconstruct\n",
    b"cargparse\nNamespace\n",
    b"clightly\nx\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"S'U1'\n",
    b"I7\n",
    b"K\x01",
    b"N",
]


@pytest.mark.parametrize(
    "zip_it", [pytest.param(zip_it, marks=[pytest.mark.slow] * torture.LONG) for zip_it in (False, True)]
)
@hypothesis.settings(
    max_examples=5000 if torture.LONG else 100,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
    phases=[hypothesis.Phase.generate],
)
@hypothesis.given(pieces=st.lists(st.one_of(st.sampled_from(PIECES), st.binary(max_size=4)), max_size=25))
def test_random_programs_of_opcodes_are_harmless(zip_it: bool, pieces: list[bytes]) -> None:
    program = b"\x80\x02" + b"".join(pieces) + b"."
    _harmless(zipped({**zip_parts(SMALL), "archive/data.pkl": program}) if zip_it else program)


@pytest.mark.slow
def test_fuzzing_with_atheris() -> None:
    """Fuzz the reader with coverage, for 10 minutes if `INTL_BENCH_TORTURE=1`."""
    atheris = pytest.importorskip("atheris")
    ends = time.monotonic() + (600 if torture.LONG else 5)

    def one(content: bytes) -> None:
        if time.monotonic() > ends:
            raise SystemExit(0)
        _harmless(content)

    corpus = Path("corpus")
    corpus.mkdir()
    for name, make in file_cases.WHOLE.items():
        (corpus / name).write_bytes(make())
    atheris.instrument_func(safe_load.read)
    atheris.Setup(["fuzz", str(corpus)], one)
    with pytest.raises(SystemExit):
        atheris.Fuzz()
