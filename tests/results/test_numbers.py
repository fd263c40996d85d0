"""Every number that the texts state as a result comes from a record, a file of results or a script.

Numbers in the table "Measured so far" of docs/results_and_protocols.md and in the headers of configurations are looked
up in all records, numbers in docs/detection.md in the files of results. In results/LOG.md a line

    Sources: records in results/project/demo; file results/benchmarks.md; script benchmarks/quality.py

names the sources of the numbers below it, up to the next such line or heading. If it names records or files, each
number must be in them. Numbers from a script only are not looked up. The value of a single record needs the word "seed"
in its sentence. A number of a spectrum needs a word such as "rank" or "condition" in its sentence. Not checked are:
whole numbers without `%` or `±`, numbers with a unit (s, GiB, ...) or after `=`, settings of the records, and text in
backticks, indented or fenced.
"""

import functools
import json
import math
import re
import shutil
import statistics
from collections import defaultdict
from collections.abc import Iterable
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

import pytest

from intl_bench.records import RecordStore
from intl_bench.tables import TABLES, render
from intl_bench.tables.frame import belonging

ROOT = Path(__file__).resolve().parents[2]
MEASURED, DETECTION, LOG = (
    ROOT / name for name in ("docs/results_and_protocols.md", "docs/detection.md", "results/LOG.md")
)
BENCHMARKS = [ROOT / "results" / "benchmarks.md", ROOT / "results" / "parity.md"]
RECORDS = sorted(path for path in (ROOT / "results" / "project").rglob("records") if path.is_dir())
PUBLISHED = [
    *(ROOT / "intl_bench/published").glob("*.csv"),
    *(ROOT.parent / "shared/reference/published").glob("*.csv"),
]
_NUMBER = re.compile(
    r"(?<![\w.,:/^-])(?P<value>\d+(?:,\d{3})*(?:\.\d+)?(?:e-?\d+)?)(?P<suffix>[%x]?)"
    r"(?: ± (?P<std>\d+(?:\.\d+)?(?:e-?\d+)?)%?)?(?: \((?P<n>\d+)(?P<within>†?)\))?(?![\w:/^]|[.,]\d)"
    r"(?! (?:s|ms|us|seconds|minutes|hours|[kMGT]i?B|M|GFLOP|pixels|img/s)\b)"
)
_SETTING = re.compile(r"(?:[=<>]|\b(?:Section|Table|Figure|Python|torch|torchvision|lightly|Eqn\.)) $")
_SPECTRUM = re.compile("(embedding|features|transformed)[/.]")
_OF_SPECTRUM = re.compile("rank|condition|eigenvalue|exponent|spectr")
Number = re.Match[str]
if not LOG.is_file():
    pytest.skip("the results are in the repository only, not in a source distribution", allow_module_level=True)


class Value(NamedTuple):
    """A value of one metric.

    Attributes:
        n: number of pre-trainings; of transfer seeds if `within`; 0 for the value of a single record.
        within: whether mean and standard deviation are over the transfer seeds of one pre-training.
    """

    metric: str
    mean: float
    std: float | None = None
    n: int = 0
    within: bool = False

    def matches(self, number: Number) -> bool:
        """Return whether a number in a text can be this value."""
        plain = number["std"] is None and number["n"] is None
        percent = self.metric.endswith("/rank") or self.metric == "diverged"
        return (
            is_printed(number["value"], self.mean)
            and (number["suffix"] == "%") is percent
            and (self.n > 0 or (plain and "seed" in sentence(number)))
            and (not _SPECTRUM.match(self.metric) or bool(_OF_SPECTRUM.search(sentence(number))))
            and (plain or (number["std"] is None) is (self.std is None))
            and (number["std"] is None or is_printed(number["std"], self.std or 0.0))
            and (number["n"] is None or (int(number["n"]), bool(number["within"])) == (self.n, self.within))
        )


def sentence(number: Number) -> str:
    """Return the sentence that a number is in."""
    text, end = number.string, number.string.find(". ", number.end())
    return text[text.rfind(". ", 0, number.start()) + 1 : end if end >= 0 else None]


def is_printed(text: str, value: float) -> bool:
    """Return whether a value rounds to the text. A half may be rounded up or down."""
    printed = Decimal(text.replace(",", ""))
    return abs(Decimal(repr(float(value))) - printed) <= Decimal(5).scaleb(int(printed.as_tuple().exponent) - 1)


@functools.cache
def recorded(folder: Path) -> tuple[list[Value], set[float]]:
    """Return all values in a folder of records, and the numbers in their settings.

    Values are means over transfer seeds, then over pre-trainings, as in the tables; and values of single records.
    """
    seeds: dict[tuple[str, ...], dict[int | None, list[float]]] = defaultdict(lambda: defaultdict(list))
    settings: set[float] = set()
    for record in RecordStore(folder).load():
        what = (record.task, record.method, record.dataset, record.backbone, record.scale)
        same = (*what, record.pretraining_sha256, record.evaluation_sha256)
        stated = json.dumps([record.pretraining, record.evaluation, record.config, record.protocol])
        settings.update(map(float, re.findall(r"(?<![\w.])\d+(?:\.\d+)?(?:e-?\d+)?(?![\w.])", stated)))
        spectra = record.details.get("spectra", {})
        numbers = {f"{name}.{key}": x for name, one in spectra.items() for key, x in one["numbers"].items()}
        numbers |= {f"{name}.eigenvalue": max(one["eigenvalues"], default=math.nan) for name, one in spectra.items()}
        for metric, value in (record.metrics | numbers).items():
            if isinstance(value, int | float) and math.isfinite(value):
                seeds[metric, *same][record.pretrain_seed].append(value)
    values = []
    for (metric, *_), by_seed in seeds.items():
        means = [statistics.mean(some) for some in by_seed.values()]
        deviation = statistics.stdev(means) if len(means) > 1 else None
        values.append(Value(metric, statistics.mean(means), deviation, len(means)))
        for some in by_seed.values():
            values += [Value(metric, value) for value in some]
            if len(some) > 1:
                values.append(Value(metric, statistics.mean(some), statistics.stdev(some), len(some), True))
    assert values, f"{folder}: expected records"
    return values, settings


@functools.cache
def written(path: Path) -> set[tuple[str, str, str | None]]:
    """Return (value, suffix, standard deviation) of the numbers in a file, as printed."""
    text = path.read_text(encoding="utf-8").replace("*", "").replace(",", " , ")
    return {(number["value"], number["suffix"], number["std"]) for number in _NUMBER.finditer(text)}


def is_known(number: Number, values: Iterable[Value], files: Iterable[Path]) -> bool:
    """Return whether a number is one of the values, or is in one of the files as printed.

    For a bound, such as "within 2e-7", a file must have a number that is between half of the bound and the bound.
    """
    others = set().union(*map(written, files))
    small = [float(value) for value, _, _ in others if "e-" in value] if "e-" in number["value"] else []
    return (
        any(value.matches(number) for value in values)
        or (number["value"], number["suffix"], number["std"]) in others
        or ("within" in sentence(number) and any(0.5 <= x / float(number["value"]) <= 1 for x in small))
    )


def results(text: str) -> list[Number]:
    """Return the numbers in a text that have to be looked up."""
    text = re.sub(r"^```.*?^```|^ {4}[^\n]*$|`[^`\n]*`", "_", text, flags=re.DOTALL | re.MULTILINE)
    text = " ".join(text.replace("*", "").split())
    numbers = [number for number in _NUMBER.finditer(text) if not _SETTING.search(text[: number.start()])]
    return [n for n in numbers if set(n["value"]) & {".", "e"} or n["suffix"] or n["std"] or n["n"]]


def unknown_of_table(text: str) -> list[str]:
    """Return the numbers in the table "Measured so far" that have no source."""
    table = text.partition("## Measured so far")[2].partition("\n\n")[2].partition("\n\n")[0]
    cells = [value for folder in RECORDS for value in recorded(folder)[0] if value.n]
    return [number[0] for number in results(table) if not is_known(number, cells, BENCHMARKS)]


def parts_of_log() -> list[tuple[str, str, str]]:
    """Return (heading, the text after `Sources:`, text) of each part of the log."""
    parts = []
    for entry in re.split(r"^## ", LOG.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        heading, _, body = entry.partition("\n")
        first, *others = re.split(r"^Sources: *(.*)$", body, flags=re.MULTILINE)
        parts += [(heading, "", first), *((heading, *part) for part in zip(others[::2], others[1::2], strict=True))]
    return parts


def unknown_of_log(sources: str, text: str) -> list[str]:
    """Return the numbers in a part of the log that are not in its sources."""
    named: dict[str, list[Path]] = {"records": [], "file": [], "script": []}
    for item in filter(None, (item.strip(" .") for item in sources.split(";"))):
        kind = re.match(r"(records|file|script)s?(?: in)? (.+)", item)
        assert kind, f"Sources: {item!r}: expected `records in FOLDER`, `file FILE` or `script FILE`"
        for name in kind[2].replace("`", "").split(","):
            path = ROOT / name.strip()
            assert path.exists(), f"Sources: {name.strip()}: no such file or folder"
            named[kind[1]].append(path / "records" if (path / "records").is_dir() else path)
    if named["script"] and not named["records"] + named["file"]:
        return []
    values = [value for folder in named["records"] for value in recorded(folder)[0]]
    settings = {value for folder in named["records"] for value in recorded(folder)[1]}
    unknown = [number for number in results(text) if not is_known(number, values, named["file"])]
    return [n[0] for n in unknown if n["suffix"] or n["std"] or float(n["value"].replace(",", "")) not in settings]


def unknown_of_header(text: str) -> list[str]:
    """Return the numbers in a configuration's `published:` that have no source.

    Measured numbers must be in the records, and published numbers in the published tables. Numbers from a README of
    other authors are not checked.
    """
    published = re.search(r"^#   published: +(.*(?:\n#    .*)*)", text, flags=re.MULTILINE)
    unknown = []
    for clause in re.split(r";(?![^(]*\))", published[1].replace("\n#", " ") if published else ""):
        measured = re.search(r"\bmeasured\b", clause)
        values = [value for folder in RECORDS for value in recorded(folder)[0]] if measured else []
        skipped = re.search("README|without numbers", clause)
        numbers = [] if skipped else [n for n in results(clause) if n["suffix"] != "%"]
        unknown += [n[0] for n in numbers if not is_known(n, values, [] if measured else PUBLISHED)]
    return unknown


def test_the_numbers_of_the_table_have_a_source() -> None:
    text = MEASURED.read_text(encoding="utf-8")
    assert "± " in text.partition("## Measured so far")[2]
    assert unknown_of_table(text) == []


def test_the_numbers_of_detection_have_a_source() -> None:
    numbers = results(DETECTION.read_text(encoding="utf-8"))
    assert {number["value"] for number in numbers} == {"2e-7", "1e-7", "3.2e-03", "6.9e-03", "3.3e-02"}
    assert [number[0] for number in numbers if not is_known(number, [], BENCHMARKS)] == []


@pytest.mark.parametrize("part", [pytest.param(part, id=part[0][:60]) for part in parts_of_log()])
def test_the_numbers_of_the_log_have_a_source(part: tuple[str, str, str]) -> None:
    assert unknown_of_log(*part[1:]) == [], f"not in what `Sources: {part[1]}` names, under: {part[0]}"


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs").glob("*/*.yaml")), ids=lambda path: f"{path.parent.name}/{path.stem}"
)
def test_the_numbers_of_a_header_have_a_source(path: Path) -> None:
    assert unknown_of_header(path.read_text(encoding="utf-8")) == []


def test_a_changed_digit_is_found() -> None:
    folder = ROOT / "results" / "project" / "ablations" / "power_reduced"
    value = next(v for v in recorded(folder / "records")[0] if v.metric == "top1" and v.n > 1)
    mean, std = f"{value.mean:.2f}", f"{value.std:.2f}"
    changed = f"{mean[:-1]}{(int(mean[-1]) + 5) % 10}"
    for text, known in {
        f"{mean} ± {std} ({value.n})": True,
        f"{changed} ± {std} ({value.n})": False,
        f"{mean} ± {std}1 ({value.n})": False,
        f"{mean} ± {std} ({value.n + 1})": False,
    }.items():
        assert bool(unknown_of_table(f"## Measured so far\n\n| {text} |\n")) is not known, text
        assert bool(unknown_of_log(f"records in {folder.relative_to(ROOT)}", f"Top-1 is {text}.")) is not known, text
    assert unknown_of_log("records in results/project/records", f"{mean} ± {std}") == [f"{mean} ± {std}"]
    assert unknown_of_log("", f"{mean} ± {std}") == [f"{mean} ± {std}"]


def test_records_of_all_experiments_in_one_folder_are_not_mixed(tmp_path: Path) -> None:
    weights: dict[tuple[str, int | None], str] = {}
    for number, record in enumerate(record for folder in RECORDS for record in RecordStore(folder).load()):
        own = record.weights_sha256 or record.details.get("weights_sha256")
        # Two grids share cells. One ran on another processor, which rounds differently: that is refused in one folder.
        if own and weights.setdefault((record.pretraining_sha256, record.pretrain_seed), own) != own:
            continue
        path = Path(record.file)
        copy = tmp_path / path.parent.name / f"{number}-{path.name}"
        copy.parent.mkdir(exist_ok=True)
        shutil.copy(path, copy)
    records = RecordStore(tmp_path).load()
    for number in (name for name, table in TABLES.items() if table.published or belonging(table, records)):
        (content,) = json.loads(render(records, tables=[number], format="json"))
        labels = {(cell["row"], cell["label"]) for cell in content["cells"]}
        assert len({label for _, label in labels}) == len(labels), "rows have equal labels"
        for cell in content["cells"]:
            assert cell["kind"] == "published" or (cell["n"] or 1) <= 3, "no experiment has more than three seeds"
    (content,) = json.loads(render(records, tables=["2"], format="json"))
    random = [cell for cell in content["cells"] if cell["method"] == "Random init" and cell["column"] == "cifar10/top1"]
    shown = [cell["mean"] for cell in random if cell["mean"] is not None]
    by_start = defaultdict(list)
    for record in records:
        if record.method == "Random init" and (record.task, record.dataset) == ("linear", "cifar10"):
            by_start[json.dumps(record.pretraining)].append(record.metrics["top1"])
    assert len(by_start) >= 2, "expected at least two stems"
    assert sorted(shown) == pytest.approx(sorted(map(statistics.mean, by_start.values())))
