"""The script of the GPU day, every step of it on a CPU: what is first run on the day fails on the day."""

import argparse
import json
import os
import re
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as xml
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from places import ROOT, SUPPORT

SCRIPT = ROOT / "benchmarks" / "gpu_day.sh"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def step(out: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OUT": str(out), "PYTHON": sys.executable, "TMPDIR": str(out.parent)}
    return subprocess.run([SCRIPT, *words], env=environment, capture_output=True, text=True)


def in_one_process(*words: str) -> subprocess.CompletedProcess[str]:
    """Run a step as `gpu_day_at_once` does, with the environment that the script gives to its jobs on a CPU."""
    environment = {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "TORCHDYNAMO_DISABLE": "1"}
    command = [sys.executable, SUPPORT / "gpu_day_at_once.py", *words, "--device", "cpu", "--small"]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)


def assert_can_be_fetched(out: Path) -> None:
    """Few, small files with plain names."""
    files = [path for path in out.rglob("*") if path.is_file()]
    assert 2 <= len(files) <= 8
    for path in files:
        assert path.stat().st_size < 2**20, path
        assert re.fullmatch(r"[A-Za-z0-9._-]+", path.name), path


@pytest.mark.slow
@pytest.mark.long
def test_correctness(tmp_path: Path) -> None:
    done = step(tmp_path / "out", "correctness", "--device", "cpu", "--small")
    assert done.returncode == 0, done.stdout[-3000:]
    (suite,) = xml.parse(tmp_path / "out" / "correctness.xml").getroot().iter("testsuite")
    cases = [case for case in suite.iter("testcase") if case.get("classname") == "tests.end_to_end.test_gpu"]
    passed = [case for case in cases if case.find("skipped") is None]
    assert len(passed) >= 60
    assert len(cases) - len(passed) == 2  # what a CPU cannot stand in for
    assert_can_be_fetched(tmp_path / "out")


@pytest.mark.slow
def test_speed_as_on_the_day(tmp_path: Path) -> None:
    """Each job is a process; `test_speed` runs all of them."""
    jobs = ["knn", "expandable-segments-off"]
    done = step(tmp_path / "out", "speed", "--device", "cpu", "--small", "--only", *jobs)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    assert re.findall(r"^\*\*(\S+)\*\*: ", done.stdout, re.MULTILINE) == ["rates", *jobs]
    assert "not measured" not in done.stdout
    assert_can_be_fetched(tmp_path / "out")


@pytest.mark.slow
@pytest.mark.long
def test_speed(tmp_path: Path) -> None:
    done = in_one_process("gpu_speed", "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    rows = [json.loads(line) for line in (tmp_path / "out" / "speed.jsonl").read_text().splitlines()]
    names = re.findall(r"^\*\*(\S+)\*\*: ", done.stdout, re.MULTILINE)
    assert names[0] == "rates"
    assert len(names) >= 19
    assert {row["job"] for row in rows} | {"knn", "probe"} == {*names}
    for row in rows:
        if "img/s" in row:
            assert row["ms"] > row["roofline_ms"] > 0
    assert all(row["kernels"] > 100 for row in rows if row["job"].endswith("-kernels"))
    assert "not measured" not in done.stdout
    assert_can_be_fetched(tmp_path / "out")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The options that name images: made up, but packed as docs/gpu_day.md says."""
    folder = tmp_path_factory.mktemp("images")
    draw = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 10), ("val", 3)):
        pixels = draw.integers(0, 256, (10 * count, 32, 32, 3), np.uint8)
        for number, image in enumerate(pixels):
            file = folder / "jpeg" / split / CLASSES[number % 10] / f"{number:04}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(file)
        arrays |= {f"{split}_x": pixels, f"{split}_y": np.arange(len(pixels)) % 10}
    np.savez(folder / "cifar10_subset.npz", **{name.replace("val", "test"): value for name, value in arrays.items()})
    pack = [sys.executable, "-m", "intl_bench", "data", "pack", "jpeg", "cifar10_jpeg"]
    subprocess.run(pack, cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True, capture_output=True)
    with tarfile.open(folder / "cifar10_jpeg.tar.xz", "w:xz") as archive:
        archive.add(folder / "cifar10_jpeg", "cifar10_jpeg")
    return ["--data", str(folder)]


@pytest.mark.slow
@pytest.mark.long
def test_accuracy(tmp_path: Path, images: list[str]) -> None:
    out, runs = tmp_path / "out", tmp_path / "runs"
    words = ["--runs", str(runs), *images]
    # The time is up at once: nothing is trained yet.
    done = step(out, "accuracy", "--device", "cpu", "--small", *words, "--seconds", "1")
    assert done.returncode == 0, done.stdout
    assert "subset_intl: the time is over; run the same command again" in done.stdout
    done = step(out, "accuracy", "--device", "cpu", "--small", *words, "--only", "subset")
    assert done.returncode == 0, done.stdout[-3000:]
    assert "the time is over" not in done.stdout
    done = in_one_process("gpu_accuracy", "--out", str(out), *words)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    with tarfile.open(out / "accuracy.tar.gz") as archive:
        texts = {name: archive.extractfile(name).read().decode() for name in archive.getnames()}
    records = [json.loads(text) for name, text in texts.items() if name.startswith("results/records/")]
    found = sorted((r["dataset"], r["method"], r["task"], r["transfer_seed"]) for r in records)
    scores = [("knn", 0), ("linear", 0), ("linear", 1), ("linear", 2)]
    trained = [("cifar10", "INTL")] + [("cifar10_jpeg", method) for method in ("Barlow Twins", "INTL", "SimSiam")]
    assert found == [(*pair, *score) for pair in trained for score in scores]
    assert all(str(tmp_path) not in text for text in texts.values()), "a path of this machine"
    assert sum(name.endswith("metrics.jsonl") for name in texts) == 4
    assert_can_be_fetched(out)


@pytest.mark.slow
def test_what_cannot_be_done_is_one_line(tmp_path: Path) -> None:
    done = step(tmp_path, "speed")
    assert done.returncode == 4
    assert done.stderr.strip().splitlines() == [
        "gpu_day.sh: PyTorch sees no GPU here; --device cpu --small shows whether the step runs"
    ]
    done = step(tmp_path, "sped", "--device", "cpu", "--small")
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    done = step(tmp_path, "accuracy", "--device", "cpu", "--small", "--data", str(tmp_path), "--runs", str(tmp_path))
    assert done.returncode == 2
    assert done.stdout.strip().splitlines() == [
        f"{tmp_path / 'cifar10_subset.npz'}: missing, but needed by part subset (docs/gpu_day.md); "
        "use --only for the other part"
    ]


def test_a_measurement_has_a_limit_and_what_it_printed_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gpu_speed

    (tmp_path / "slow.py").write_text("import time\nprint('so far', flush=True)\ntime.sleep(600)")
    (tmp_path / "bad.py").write_text("import sys\nprint('so far', flush=True)\nsys.exit('not like this')")
    monkeypatch.setattr(gpu_speed, "HERE", tmp_path)
    options = argparse.Namespace(device="cpu", small=False, seconds=1e9)
    slow, bad = (gpu_speed.Job(words=(f"{name}.py",), limit=limit) for name, limit in (("slow", 3), ("bad", 100)))
    assert gpu_speed.run("slow", slow, options) == ("so far\n", "ended after 3 s")
    assert gpu_speed.run("bad", bad, options) == ("so far\n", "failed: not like this")
    options.seconds = 1
    assert gpu_speed.run("slow", slow, options) == ("", "not measured, the time is over; run again with --only slow")
