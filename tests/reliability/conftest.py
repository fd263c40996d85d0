"""Fixtures of the tests of reliability: the server of child processes, the material and undisturbed runs."""

import functools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import reliability_commands as commands
from fork_server import ForkServer
from torture import faulty


class Undisturbed(NamedTuple):
    """A command that nothing disturbed: its results, its records and its calls (see `faults`)."""

    results: dict[str, str]
    calls: list[str]


@pytest.fixture(scope="session")
def server() -> Iterator[ForkServer]:
    """The server of child processes."""
    server = ForkServer()
    yield server
    server.close()


@pytest.fixture(scope="session")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The inputs of all commands."""
    return commands.make_material(tmp_path_factory.mktemp("reliability") / "material")


@pytest.fixture(scope="session")
def undisturbed(
    server: ForkServer, material: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Undisturbed]:
    """A function that runs a command once, without a fault."""

    @functools.cache
    def run(name: str) -> Undisturbed:
        commands.require(name)
        case = commands.make_case(tmp_path_factory.mktemp("undisturbed") / name, material)
        ended = server.run(case, commands.COMMANDS[name], setup=[faulty(case)])
        assert ended.code == 0, ended.stderr
        return Undisturbed(commands.results(case / "work"), ended.calls)

    return run


@pytest.fixture
def new_case(material: Path, tmp_path: Path) -> Callable[[object], Path]:
    """A function that makes the folder of a case. Folders of earlier cases of the test are removed."""
    made: list[Path] = []

    def make(name: object) -> Path:
        for old in made:
            shutil.rmtree(old, ignore_errors=True)
        made.append(commands.make_case(tmp_path / str(name), material))
        return made[-1]

    return make
