"""R9: many processes append records while some of them are killed; also where hard links or locks are missing."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import reliability_commands as commands
import torture
from fork_server import Child, ForkServer

from intl_bench.records import RecordStore

pytestmark = pytest.mark.slow  # the children take most of the time; `make check` leaves them out

WRITERS, RECORDS, KILLS = (16, 200, 50) if torture.LONG else (6, 25, 8)
_SHARED = 20  # records that all writers append
_MISSING = {
    "nothing": [],
    "links-EPERM": [("link", "EPERM")],
    "links-ENOTSUP": [("link", "ENOTSUP")],
    "flock": [("flock", "ENOLCK")],
}


@pytest.mark.parametrize("missing", _MISSING)
def test_many_writers(missing: str, server: ForkServer, tmp_path: Path) -> None:
    """No acknowledged record is lost, none is torn, and none is there twice."""
    folder, draw = tmp_path / "records", torture.draw("writers", missing)
    setup = [("record_writer:without", {"what": what, "error": error}) for what, error in _MISSING[missing]]

    def start(writer: int) -> Child:
        first = _SHARED + writer * RECORDS
        arguments = {"folder": str(folder), "acknowledged": str(tmp_path / f"{writer}.txt"), "first": first}
        arguments |= {"count": RECORDS, "shared": _SHARED}
        return server.start(tmp_path / str(writer), setup=setup, target=("record_writer:append", arguments))

    running = {writer: start(writer) for writer in range(WRITERS)}
    kills = 0
    while kills < KILLS and (unfinished := [writer for writer in running if not _is_done(tmp_path / f"{writer}.txt")]):
        time.sleep(draw.uniform(0.0, 0.01))
        writer = unfinished[draw.integers(len(unfinished))]
        kills += running[writer].kill().code < 0
        running[writer] = start(writer)
    for writer, child in running.items():
        ended = child.wait()
        assert ended.code == 0, (writer, ended.stderr)
    found = [record.transfer_seed for record in RecordStore(folder).load()]  # a torn one is an error
    print(f"{missing}: {WRITERS} writers x {RECORDS} records, {kills} kills")
    assert len(found) == len(set(found)), "a record is there twice"
    acknowledged = {int(line) for writer in running for line in (tmp_path / f"{writer}.txt").read_text().split()}
    assert acknowledged - set(found) == set(), "lost"
    assert set(found) == set(range(_SHARED + WRITERS * RECORDS))
    left = [name for name in os.listdir(folder / "knn") if name.startswith(".")]
    for name in left:
        if name.endswith(".claim"):  # it belongs to a killed process after ten seconds
            os.utime(folder / "knn" / name, (0, 0))
    RecordStore(folder).append(RecordStore(folder).load()[0])
    assert [name for name in left if Path(folder / "knn" / name).exists()] == [], "temporaries are left"


def _is_done(acknowledged: Path) -> bool:
    stored = len(acknowledged.read_text().split()) if acknowledged.exists() else 0
    return stored >= RECORDS + min(_SHARED, RECORDS)


@pytest.mark.parametrize("missing", list(_MISSING)[1:])
def test_a_run_where_something_is_missing(
    missing: str,
    server: ForkServer,
    undisturbed: Callable[[str], tuple[dict[str, str], list[str]]],
    new_case: Callable[[object], Path],
) -> None:
    """A killed run goes on, and takes over the lock that it left, or says that it cannot."""
    expected, calls = undisturbed("linear")
    at = next(n for n, call in enumerate(calls, start=1) if call.startswith("rename") and "state.pt" in call)
    case = new_case(missing)
    setup = [("record_writer:without", {"what": what, "error": error}) for what, error in _MISSING[missing]]
    server.run(case, commands.COMMANDS["linear"], setup=[*setup, torture.faulty(case, at=at)])
    again = server.run(case, commands.COMMANDS["linear"], setup=setup, name="again-")
    assert again.code == 0, again.stderr
    assert commands.changed(expected, commands.results(case / "work")) == []
    assert commands.temporaries(case / "work") == []
