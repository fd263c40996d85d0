"""Distributions: a wheel beside another project's package `transfer`, and a source distribution with its tests."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from places import ROOT

pytestmark = pytest.mark.slow
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
# Another project whose package must not be imported, not even to find out that it is another one.
FOREIGN = {
    "pyproject.toml": """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "another-project"
version = "1"
[tool.hatch.build.targets.wheel]
packages = ["NAME"]
""",
    "NAME/__init__.py": "raise SystemExit('another project is imported')\n",
}
COMMANDS = (["knn", "--help"], ["knn", "x"], ["tables"], ["pretrain", "--dry-run"])


def execute(
    words: Sequence[str | Path], folder: Path, path: Path | None = None, code: int = 0
) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder, with `path` as the only entry of PYTHONPATH."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {} if path is None else {"PYTHONPATH": str(path)}
    done = subprocess.run([str(word) for word in words], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def build_wheel(source: Path, folder: Path) -> Path:
    folder.mkdir()
    execute([*PIP, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, source], folder)
    (wheel,) = folder.glob("*.whl")
    return wheel


def foreign(name: str, folder: Path) -> Path:
    """Write a project whose package is called `name`; return the project's folder."""
    for path, text in FOREIGN.items():
        file = folder / path.replace("NAME", name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text.replace("NAME", name))
    return folder


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(ROOT, tmp_path_factory.mktemp("built") / "wheel")


class Environment:
    """A virtual environment that also sees the packages of this one, without intl-bench."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        execute([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], folder)
        self.bin = folder / "venv" / "bin"
        (self.site,) = (folder / "venv" / "lib").glob("python*/site-packages")
        # An editable installation is found by a .pth file, which is read in site-packages alone.
        (self.site / "other.pth").write_text(sysconfig.get_path("purelib") + "\n")

    def install(self, *wheels: Path) -> None:
        for wheel in wheels:
            execute([*PIP, "--python", self.bin / "python", "install", "--no-deps", "--no-index", wheel], self.folder)

    def assert_refuses(self, line: str, path: Path | None = None) -> None:
        """Check that each command prints only `line` on stderr, as a script and as a module."""
        empty = self.folder / "empty"
        empty.mkdir()
        for words in COMMANDS:
            for program in ([self.bin / "intl-bench"], [self.bin / "python", "-m", "intl_bench"]):
                done = execute([*program, *words], empty, path, code=2)
                assert (done.stdout, done.stderr) == ("", f"intl-bench: {line}\n")


@pytest.mark.parametrize("name", ["transfer", "pretrain"])
def test_a_package_of_another_project_is_one_line(tmp_path: Path, wheel: Path, name: str) -> None:
    environment = Environment(tmp_path)
    environment.install(wheel, build_wheel(foreign(name, tmp_path / "project"), tmp_path / "foreign"))
    ours = environment.site / name / "__init__.py"
    environment.assert_refuses(
        f"package {name}: {ours} belongs to another project; expected {ours} of intl-bench; "
        "install intl-bench from source in a new virtual environment"
    )


def test_a_package_earlier_on_the_path_is_one_line(tmp_path: Path, wheel: Path) -> None:
    environment = Environment(tmp_path)
    environment.install(wheel)
    project = foreign("transfer", tmp_path / "project")
    environment.assert_refuses(
        f"package transfer: {project / 'transfer' / '__init__.py'} belongs to another project; "
        f"expected {environment.site / 'transfer' / '__init__.py'} of intl-bench; "
        "install intl-bench from source in a new virtual environment",
        path=project,
    )


def test_a_wheel_works_where_its_packages_are_its_own(tmp_path: Path, wheel: Path) -> None:
    environment = Environment(tmp_path)
    environment.install(wheel)
    (tmp_path / "empty" / "transfer").mkdir(parents=True)  # a folder without __init__.py hides no package
    for program in ([environment.bin / "intl-bench"], [environment.bin / "python", "-m", "intl_bench"]):
        assert "backbone" in execute([*program, "knn", "--help"], tmp_path / "empty").stdout
        done = execute([*program, "knn", "x"], tmp_path / "empty", code=2)
        assert done.stderr.startswith("intl-bench: ")
        assert "another project" not in done.stderr


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the unpacked source distribution."""
    folder = tmp_path_factory.mktemp("sdist")
    execute([sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", folder], ROOT)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as stream:
        stream.extractall(folder, filter="data")
    (found,) = (path for path in folder.iterdir() if path.is_dir())
    return found


@pytest.mark.skipif(not (ROOT / ".git").exists() or shutil.which("git") is None, reason="needs a clone of git")
def test_a_source_distribution_has_all_files(unpacked: Path) -> None:
    listed = execute(["git", "ls-files", "-z"], ROOT).stdout.split("\0")
    expected = {name for name in listed if name and (ROOT / name).is_file()}
    assert len(expected) > 500
    assert not {name for name in expected if not (unpacked / name).is_file()}


@pytest.mark.long
def test_a_source_distribution_passes_the_tests_that_read_its_files(unpacked: Path) -> None:
    files = ["core/test_package.py", "pretrain/test_recipes.py", "results/test_numbers.py", "results/test_tables.py"]
    words = [*("-m", "pytest", "-q", "-rs", "-m", "not slow and not data"), *(f"tests/{file}" for file in files)]
    done = execute([sys.executable, *words, "-p", "no:cacheprovider"], unpacked, path=unpacked)
    skipped = [line for line in done.stdout.splitlines() if line.startswith("SKIPPED")]
    assert all("pdflatex" in line or "shared" in line for line in skipped), skipped
