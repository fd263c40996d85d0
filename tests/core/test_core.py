"""The ground floor: configuration, files, seeding, progress, signals."""

import dataclasses
import errno
import hashlib
import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import IO

import numpy as np
import pytest
import torch

from intl_bench.core import config, files, owners, seals
from intl_bench.core.errors import DamagedError, InputError, Preempted, ResourceError, from_os_error
from intl_bench.core.identity import digest
from intl_bench.core.json_lines import JsonLines
from intl_bench.core.names import fit_folder_name
from intl_bench.core.progress import Progress
from intl_bench.core.seeding import generator, permutation, philox, torch_seed, uniforms
from intl_bench.core.signals import StopRequest

PINNED = [0.2746967703669049, 0.20583410700675053]
PINNED_ORDER = [4, 3, 5, 2, 7, 6, 1, 0]
PINNED_UNIFORMS = [0.9321938299108297, 0.5943029725458473, 0.04700485896319151]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inner:
    size: int = 3
    weight: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outer:
    epochs: int = 10
    base_lr: float = 0.3
    inner: Inner = dataclasses.field(default_factory=Inner)
    views: list[Inner] = dataclasses.field(default_factory=lambda: [Inner(), Inner()])

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ValueError(f"epochs={self.epochs}: expected at least 1")


class TestConfig:
    def test_file_then_overrides(self) -> None:
        values = {"epochs": 20, "inner": {"weight": 1e-5}, "views": [{"size": 1}, {"size": 2}, {"size": 4}]}
        built = config.build(Outer, values, "config a.yaml", ["base_lr=1e-1", "inner.size=7", "views.1.size=9"])
        assert built == Outer(
            epochs=20,
            base_lr=0.1,
            inner=Inner(size=7, weight=1e-5),
            views=[Inner(size=1), Inner(size=9), Inner(size=4)],
        )
        with pytest.raises(dataclasses.FrozenInstanceError):
            built.inner.size = 1  # type: ignore[misc]

    @pytest.mark.parametrize(
        ("overrides", "message"),
        [
            (["epoch=3"], "unknown key 'epoch'; did you mean epochs?"),
            (["inner.sise=3"], "unknown key 'inner.sise'; did you mean inner.size?"),
            (["zzz=3"], "known keys: epochs, base_lr, inner, views"),
            (["epochs=many"], "epochs: found many; expected a whole number"),
            (["epochs=1.5"], "epochs: found 1.5; expected a whole number"),
            (["inner=3"], "inner is a section; write inner.size=3"),
            (["epochs=0"], "epochs=0: expected at least 1"),
            (["epochs"], "expected key=value"),
            (["views=[{size: 3"], "not valid YAML"),
        ],
    )
    def test_bad_override_is_one_line(self, overrides: list[str], message: str) -> None:
        with pytest.raises(InputError) as caught:
            config.build(Outer, {}, "config a.yaml", overrides)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_base_is_merged_underneath(self, tmp_path: Path) -> None:
        (tmp_path / "a.yaml").write_text("epochs: 5\ninner: {size: 1, weight: 2.0}\n")
        (tmp_path / "b.yaml").write_text("base: a.yaml\ninner: {size: 8}\n")
        assert config.load(Outer, str(tmp_path / "b.yaml"), "pretrain") == Outer(
            epochs=5, inner=Inner(size=8, weight=2.0)
        )

    @pytest.mark.parametrize("text", ["a: [1", "- 1\n- 2\n", "a: 1\na: 2\n", "\x00"])
    def test_broken_file_names_the_file(self, tmp_path: Path, text: str) -> None:
        path = tmp_path / "broken.yaml"
        path.write_text(text)
        with pytest.raises(InputError, match=r"broken\.yaml"):
            config.read(path)

    def test_unknown_name_suggests_the_nearest(self) -> None:
        with pytest.raises(InputError, match="did you mean cifar10_r18_intl"):
            config.find("cifar10_r18_intel", "pretrain")

    def test_digest_ignores_key_order_only(self) -> None:
        assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
        assert digest({"a": 1}) != digest({"a": 2})

    def test_differences(self) -> None:
        assert config.differences({"a": {"b": 1}, "c": 2}, {"a": {"b": 3}, "c": 2}) == ["a.b: 1 -> 3"]


class TestFiles:
    def test_digest_notices_every_flipped_bit(self, tmp_path: Path) -> None:
        path = tmp_path / "a.bin"
        digest = files.write_digested(path, lambda stream: stream.write(bytes(range(64))))
        content = path.read_bytes()
        assert digest == hashlib.sha256(content).hexdigest() == files.verify(path, required=True)
        assert content.startswith(bytes(range(64)))
        for bit in range(0, 8 * len(content), 7):
            damaged = bytearray(content)
            damaged[bit // 8] ^= 1 << bit % 8
            path.write_bytes(damaged)
            with pytest.raises(DamagedError, match=r"a\.bin"):
                files.verify(path, required=True)
        for length in range(len(content)):
            path.write_bytes(content[:length])
            with pytest.raises(DamagedError, match=r"a\.bin"):
                files.verify(path, required=True)

    def test_a_digest_leaves_each_format_readable(self, tmp_path: Path) -> None:
        values = torch.arange(6.0).reshape(2, 3)
        files.write_digested(tmp_path / "a.pt", lambda stream: torch.save({"a": values}, stream))
        files.write_digested(tmp_path / "a.npy", lambda stream: np.save(stream.stream, values.numpy()))
        files.create_json(tmp_path / "a.json", {"a": "0" * 64, seals.KEY: seals.UNSET})
        for mmap in (False, True):
            assert torch.equal(torch.load(tmp_path / "a.pt", weights_only=True, mmap=mmap)["a"], values)
            assert np.array_equal(np.load(tmp_path / "a.npy", mmap_mode="r" if mmap else None), values)
        assert zipfile.ZipFile(tmp_path / "a.pt").testzip() is None
        assert json.loads((tmp_path / "a.json").read_text())["a"] == "0" * 64
        for path in tmp_path.iterdir():
            files.verify(path, required=True)

    def test_a_sidecar_of_an_earlier_version_is_checked(self, tmp_path: Path) -> None:
        path = tmp_path / "a.bin"
        path.write_bytes(b"old")
        with pytest.raises(DamagedError):
            files.verify(path, required=True)
        files.write_text(tmp_path / "a.bin.sha256", f"{hashlib.sha256(b'old').hexdigest()}  a.bin\n")
        files.verify(path, required=True)
        path.write_bytes(b"new")
        with pytest.raises(DamagedError):
            files.verify(path)
        (tmp_path / "a.bin.sha256").write_bytes(b"\xff\xfe")
        with pytest.raises(DamagedError):
            files.verify(path)
        files.write_digested(path, lambda stream: stream.write(b"new"))
        assert [file.name for file in tmp_path.iterdir()] == ["a.bin"]

    @pytest.mark.parametrize("links", [True, False])
    def test_earlier_files_stay(self, tmp_path: Path, links: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object, **__: object) -> None:
            raise OSError(errno.EPERM, "Operation not permitted")

        if not links:
            monkeypatch.setattr(os, "link", refuse)
        path = tmp_path / "a.pt"
        for number in range(5):
            files.write_digested(path, lambda stream, n=number: stream.write(b"%d" % n), keep=2)
        found = {file.name: file.read_bytes()[:1] for file in tmp_path.iterdir()}
        assert found == {"a.pt": b"4", "a.1.pt": b"3", "a.2.pt": b"2"}

    def test_a_kill_between_the_links_of_a_file_stops_nothing(self, tmp_path: Path) -> None:
        """The newest file then has two names, and a rename of one to the other does nothing."""
        path = tmp_path / "a.pt"
        for number in range(2):
            files.write_digested(path, lambda stream, n=number: stream.write(b"%d" % n), keep=2)
        (tmp_path / "a.1.pt").replace(tmp_path / "a.2.pt")
        os.link(path, tmp_path / "a.1.pt")
        for number in (2, 3):
            files.write_digested(path, lambda stream, n=number: stream.write(b"%d" % n), keep=2)
        found = {file.name: file.read_bytes()[:1] for file in tmp_path.iterdir()}
        assert found == {"a.pt": b"3", "a.1.pt": b"2", "a.2.pt": b"1"}

    def test_claims_of_dead_processes_are_removed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object, **__: object) -> None:
            raise OSError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "link", refuse)
        assert files.create_json(tmp_path / "a.json", {})
        assert not files.create_json(tmp_path / "a.json", {})
        claim = tmp_path / ".0123456789abcdef.claim"
        claim.touch()
        files.sweep(tmp_path)
        assert claim.exists()
        os.utime(claim, (0, 0))
        files.sweep(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["a.json"]

    def test_temporary_files_of_dead_processes_are_removed(self, tmp_path: Path) -> None:
        code = (
            "import os, sys; from pathlib import Path; from intl_bench.core import files\n"
            "files.write_stream(Path('a.bin'), lambda stream: os._exit(9))"
        )
        assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path).returncode == 9
        (left,) = tmp_path.iterdir()
        name = left.name.split("-")
        (tmp_path / "-".join([name[0], str(os.getpid()), owners.started(os.getpid()), name[3]])).touch()  # ours: alive
        (tmp_path / ".notes.tmp").touch()
        (tmp_path / ".old.abcd1234.tmp").touch()  # of an earlier version, and young
        files.sweep(tmp_path)
        assert len(list(tmp_path.iterdir())) == 3
        assert not left.exists()
        os.utime(tmp_path / ".old.abcd1234.tmp", (0, 0))
        files.sweep(tmp_path)
        assert len(list(tmp_path.iterdir())) == 2

    def test_a_lasting_fault_is_reported_for_the_file_itself(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: object, **__: object) -> None:
            raise OSError(errno.EIO, "Input/output error", "a temporary name")

        for name in ("fsync", "unlink", "replace", "rename"):
            monkeypatch.setattr(os, name, fail)
        with pytest.raises(ResourceError, match=r"cannot write .*a\.bin: Input/output error after 3 bytes"):
            files.write_bytes(tmp_path / "a.bin", b"new")

    def test_the_mask_of_permissions_holds(self, tmp_path: Path) -> None:
        code = (
            "from pathlib import Path; from intl_bench.core import files\n"
            "files.create_json(Path('a.json'), {}), files.write_text(Path('b.txt'), '')"
        )
        subprocess.run(["sh", "-c", f'umask 077; "{sys.executable}" -c "{code}"'], cwd=tmp_path, check=True)
        assert {oct(path.stat().st_mode & 0o777) for path in tmp_path.iterdir()} == {"0o600"}

    def test_a_folder_behind_a_link_is_emptied(self, tmp_path: Path) -> None:
        (tmp_path / "real" / "sub").mkdir(parents=True)
        (tmp_path / "real" / "sub" / "a").touch()
        (tmp_path / "outside").mkdir()
        (tmp_path / "outside" / "b").touch()
        (tmp_path / "real" / "link").symlink_to(tmp_path / "outside")
        (tmp_path / "run").symlink_to(tmp_path / "real")
        files.remove_contents(tmp_path / "run")
        assert not list((tmp_path / "real").iterdir())
        assert (tmp_path / "outside" / "b").exists()
        files.remove_contents(tmp_path / "nowhere")

    def test_damaged_lines_of_a_log_are_counted(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = tmp_path / "log.jsonl"
        log = JsonLines(path, lambda row: row["step"] < 9)
        for step in range(1, 5):
            log.append({"step": step, "loss": 0.5})
        mark, whole = log.mark(), path.read_bytes()
        log.append({"step": 5})
        JsonLines(path, lambda row: row["step"] < 5, mark)
        assert (path.read_bytes(), capsys.readouterr().err) == (whole, "")
        path.write_bytes(whole + b"[1]\n" + b"\xff\n" + b'{"step": 8, "lo')  # the last line was cut short
        JsonLines(path, lambda row: row["step"] < 9, mark)
        changed = f"{path}: its lines have changed since the state of this run was saved"
        assert (path.read_bytes(), capsys.readouterr().err) == (
            whole,
            f"{changed}; removed 2 lines that cannot be read\n",
        )
        for damaged in (whole.replace(b"0.5", b"0.6"), whole[:-1], b""):
            path.write_bytes(damaged)
            JsonLines(path, lambda row: row["step"] < 9, mark)
            assert capsys.readouterr().err == f"{changed}\n"

    def test_crash_while_writing_keeps_the_old_file(self, tmp_path: Path) -> None:
        path = tmp_path / "a.bin"
        files.write_digested(path, lambda stream: stream.write(b"old"))

        def crash(stream: object) -> None:
            raise RuntimeError("power cut")

        with pytest.raises(RuntimeError):
            files.write_digested(path, crash)
        assert path.read_bytes().startswith(b"old")
        files.verify(path, required=True)
        assert [file.name for file in tmp_path.iterdir()] == ["a.bin"]

    def test_full_disk_is_a_resource_error_and_loses_nothing(self) -> None:
        error = from_os_error(OSError(errno.ENOSPC, "No space left on device"), "cannot write x")
        assert isinstance(error, ResourceError)
        assert error.exit_code == 4
        if Path("/dev/full").exists():
            with pytest.raises(ResourceError, match="No space left"):
                JsonLines.append(_lines_at(Path("/dev/full")), {"a": 1})

    def test_full_disk_is_told_through_a_writer_that_hides_it(self, tmp_path: Path) -> None:
        """`torch.save` replaces the system's error by one of its own."""

        def hides(stream: IO[bytes]) -> None:
            try:
                stream.write(bytes(100_000))
            except OSError:
                raise RuntimeError("unexpected pos 64 vs 0") from None

        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        try:
            with pytest.raises(ResourceError, match=r"a\.bin: File too large after 1000 bytes; nothing"):
                files.write_digested(tmp_path / "a.bin", hides)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert not list(tmp_path.iterdir())

    def test_bytes_are_written_whole_or_not_at_all(self, tmp_path: Path) -> None:
        path = tmp_path / "new" / "a.bin"
        files.write_bytes(path, b"old")
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        try:
            with pytest.raises(ResourceError, match=r"cannot write .*a\.bin: File too large"):
                files.write_bytes(path, bytes(100_000))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert path.read_bytes() == b"old"
        assert [file.name for file in path.parent.iterdir()] == ["a.bin"]

    def test_create_json_never_overwrites(self, tmp_path: Path) -> None:
        path = tmp_path / "r.json"
        assert files.create_json(path, {"a": 1})
        assert not files.create_json(path, {"a": 2})
        assert json.loads(path.read_text()) == {"a": 1}

    def test_exactly_one_of_many_writers_creates(self, tmp_path: Path) -> None:
        with multiprocessing.get_context("spawn").Pool(4) as pool:
            made = pool.starmap(files.create_json, [(tmp_path / "r.json", {"writer": i}) for i in range(16)])
        assert sum(made) == 1
        assert json.loads((tmp_path / "r.json").read_text())["writer"] == made.index(True)

    def test_json_refuses_nan(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="JSON"):
            files.create_json(tmp_path / "a.json", {"a": float("nan")})

    def test_log_forgets_what_will_be_done_again(self, tmp_path: Path) -> None:
        path = tmp_path / "m.jsonl"
        path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
        lines = JsonLines(path, keep=lambda row: row["step"] <= 2)
        lines.append({"step": 3})
        assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]


def _lines_at(path: Path) -> JsonLines:
    lines = JsonLines.__new__(JsonLines)
    lines.path, lines._before, lines._started = path, 0.0, 0.0
    return lines


class TestSeeding:
    def test_pinned(self) -> None:
        """The streams may never change: results would no longer be reproducible."""
        assert generator(0, "views", 3, 5, 1).random(2).tolist() == PINNED
        assert permutation(7, "order", 2, 8).tolist() == PINNED_ORDER

    def test_every_argument_matters(self) -> None:
        draws = {
            float(generator(*arguments).random())
            for arguments in [
                (0, "a", 1, 2, 3),
                (1, "a", 1, 2, 3),
                (0, "b", 1, 2, 3),
                (0, "a", 2, 2, 3),
                (0, "a", 1, 3, 3),
                (0, "a", 1, 2, 4),
            ]
        }
        assert len(draws) == 6

    def test_neighboring_counters_do_not_overlap(self) -> None:
        long = generator(0, "a", 1).random(5000)
        assert not np.isin(generator(0, "a", 2).random(5000), long).any()

    def test_uniform(self) -> None:
        first = np.sort([generator(0, "a", i).random() for i in range(4000)])
        assert np.abs(first - (np.arange(4000) + 0.5) / 4000).max() < 1.63 / 4000**0.5  # Kolmogorov-Smirnov, p = 0.01

    def test_torch_seed_range(self) -> None:
        assert all(0 <= torch_seed(seed, "init") < 2**63 for seed in range(20))

    def test_refuses_negative(self) -> None:
        with pytest.raises(ValueError, match="seed"):
            generator(-1, "a")


class TestUniforms:
    @pytest.mark.parametrize(
        ("counter", "key", "expected"),
        [
            ([0] * 4, (0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
            ([2**32 - 1] * 4, (2**32 - 1, 2**32 - 1), [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
            (
                [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
                (0xA4093822, 0x299F31D0),
                [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
            ),
        ],
    )
    def test_known_answers(self, counter: list[int], key: tuple[int, int], expected: list[int]) -> None:
        """Those published with the Random123 library, also among other columns."""
        columns = np.array([[7, 1, 2, 3], counter, [4, 4, 4, 4]], np.uint64).T
        assert philox(columns, key)[:, 1].tolist() == expected

    def test_pinned(self) -> None:
        """May never change: results would no longer be reproducible."""
        assert uniforms(0, "views", 3, np.array([5]), 1, 3).tolist() == [PINNED_UNIFORMS]

    def test_a_row_is_a_function_of_its_position_alone(self) -> None:
        indices = np.array([9, 0, 70_000, 3, 3])
        rows = uniforms(1, "a", 2, indices, 4, 7)
        for row, index in zip(rows, indices, strict=True):
            assert np.array_equal(uniforms(1, "a", 2, np.array([index]), 4, 7), [row])
        assert np.array_equal(uniforms(1, "a", 2, indices, 4, 3), rows[:, :3])
        assert rows.shape == (5, 7)

    def test_every_argument_matters(self) -> None:
        changed = [(0, "a", 1, 2, 3), (1, "a", 1, 2, 3), (0, "b", 1, 2, 3), (0, "a", 2, 2, 3), (0, "a", 1, 3, 3)]
        draws = [
            uniforms(seed, purpose, epoch, np.array([index]), view, 9)
            for seed, purpose, epoch, index, view in [*changed, (0, "a", 1, 2, 4), (2**62, "a", 1, 2, 3)]
        ]
        assert len(np.unique(draws)) == 7 * 9

    def test_uniform(self) -> None:
        rows = uniforms(0, "a", 1, np.arange(4000), 0, 5)
        assert rows.min() >= 0
        assert rows.max() < 1
        expected = (np.arange(4000) + 0.5) / 4000
        distance = np.abs(np.sort(rows, axis=0) - expected[:, None]).max()
        assert distance < 1.81 / 4000**0.5  # Kolmogorov-Smirnov, p = 0.01 for the worst of five columns
        assert np.abs(np.corrcoef(rows.T) - np.eye(5)).max() < 4 / 4000**0.5


class TestProgress:
    def test_plain_lines_off_a_terminal(self, capsys: pytest.CaptureFixture[str]) -> None:
        progress = Progress(3, done=1, images_per_step=8, label="work")
        progress.step(0.0, {"loss": 0.5})
        progress.step(0.0, {"loss": 0.25})
        text = capsys.readouterr().err
        assert text.startswith("work: step 3 of 3, 0:00:00 left, loss 0.25, ")
        assert "images/s" in text

    def test_silent_when_disabled(self, capsys: pytest.CaptureFixture[str]) -> None:
        progress = Progress(1, label="work", enabled=False)
        progress.step()
        assert capsys.readouterr().err == ""


class TestSignals:
    @pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)])
    def test_noted_then_raised(self, number: signal.Signals, code: int) -> None:
        before = signal.getsignal(number)
        with StopRequest() as stop:
            os.kill(os.getpid(), number)
            assert stop.received == number
            error = stop.error("after step 3")
        assert isinstance(error, Preempted)
        assert error.exit_code == code
        assert signal.getsignal(number) is before

    def test_second_interrupt_kills(self) -> None:
        with StopRequest():
            os.kill(os.getpid(), signal.SIGINT)
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)


def test_a_long_name_of_a_folder_ends_in_a_digest() -> None:
    names = {fit_folder_name("x" * 199 + end) for end in ("", "y", "yy", "yz")}
    assert len(names) == 4
    assert max(map(len, names)) == 200
    assert "x" * 199 + "y" in names
