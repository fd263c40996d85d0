"""LaTeX: escaping, environments, citations and their bibliography, and a run of TeX where one is installed."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from table_cases import COCO, LINEAR, R18, make, nasty, synthetic

from intl_bench import published
from intl_bench.records import ResultRecord
from intl_bench.tables import citations, render
from pretrain import methods as pretrainings

FOLDER = Path(published.__file__).parent
UNCITED = ("Supervised", "Scratch", "Random init", "ImageNet supervised", "Detectron2 zoo")
EVERY = ("1", "2", "3", "4", "voc")


def cited(latex: str) -> set[str]:
    return set(re.findall(r"\\cite\{([^}]+)\}", latex))


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
@pytest.mark.parametrize("records", [synthetic(), nasty()], ids=["synthetic", "nasty"])
@pytest.mark.parametrize("options", ["", "[twocolumn]"])
def test_a_document_compiles_without_an_undefined_reference(
    records: list[ResultRecord], options: str, tmp_path: Path
) -> None:
    document = (
        f"\\documentclass{options}{{article}}\\usepackage{{booktabs}}\\usepackage[T1]{{fontenc}}\\begin{{document}}"
    )
    tables = render(records, format="latex", notes="short" if options else "full")
    (tmp_path / "tables.bib").write_text(render(records, format="bibtex"), encoding="utf-8")
    end = "\\bibliographystyle{plain}\\bibliography{tables}\\end{document}\n"
    (tmp_path / "a.tex").write_text(f"{document}\n{tables}{end}", encoding="utf-8")
    latex = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "a.tex"]
    steps = [latex, *([["bibtex", "a"], latex, latex] if shutil.which("bibtex") else [])]
    for command in steps:
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
        assert result.returncode == 0, result.stdout[-2000:]
    if len(steps) > 1:
        assert b"undefined" not in result.stdout
        log = (tmp_path / "a.blg").read_text()
        assert "Warning" not in log


def test_special_characters_are_escaped() -> None:
    assert not re.search(r"(?<!\\)[%#_&](?=\w*c%|script)", render(nasty(), tables=("3",), format="latex"))
    assert r"a\_b\&c\%" in render(nasty(), tables=("3",), format="latex")
    assert r"\caption{Results on a\_b\&c\% that" in render(nasty(), format="latex")


def test_a_wide_table_spans_two_columns_of_a_page() -> None:
    text = render([make("linear", "flowers", {"top1": 50.0}, LINEAR)], format="latex")
    begins = re.findall(r"\\begin\{(table\*?)\}(?:.|\n)*?\\label\{tab:intl-bench-(\w+)\}", text)
    assert begins == [("table*", "1"), ("table*", "2"), ("table*", "3"), ("table", "flowers")]


def test_methods_and_sources_are_cited() -> None:
    records = [
        make("coco", "coco", {"bbox/AP": 40.0}, COCO),
        make("coco", "coco", {"bbox/AP": 41.0}, COCO, method="Mine"),
    ]
    text = render(records, tables=("3",), format="latex")
    assert r"\\" in text
    assert "SimCLR~\\cite{chen2020simclr}\\textsuperscript{b}" in text
    assert "\\textbf{INTL (ours)~\\cite{weng2024modulate}}" in text
    assert "measured, reduced scale)~\\cite{weng2024modulate}\\textsuperscript{1}" in text
    assert re.search(r"Mine \([^\n]*scale\)\\textsuperscript", text)
    assert "Source of the published rows: INTL paper~\\cite{weng2024modulate}, Table 3." in text
    one = render([], schedule="1x", format="latex")
    assert "SimSiam paper~\\cite{chen2021simsiam}, Table 5" in one
    assert "xieenze/DetCo@adf4947~\\cite{code-detco}" in one


def test_the_bibliography_has_what_the_tables_cite_and_nothing_else() -> None:
    for tables in (("1",), ("3", "voc"), EVERY):
        entries = re.findall(r"^@\w+\{([^,]+),", render([], tables=tables, format="bibtex"), flags=re.MULTILINE)
        assert set(entries) == cited(render([], tables=tables, format="latex"))
        assert len(entries) == len(set(entries))
    own = make("linear", "flowers", {"top1": 50.0}, {**LINEAR, **R18}, method="Mine")
    assert render([own], datasets=["flowers"], format="bibtex") == ""


def test_every_source_and_every_method_has_an_entry() -> None:
    texts = [path.read_text(encoding="utf-8") for path in FOLDER.glob("*.json")]
    for number in {number for text in texts for number in re.findall(r"arXiv:(\d+\.\d+)", text)}:
        assert citations.key_of_arxiv(number), number
    for name in {name for text in texts for name in re.findall(r"([\w.-]+/[\w.-]+)@[0-9a-f]{7,}", text)}:
        assert citations.key_of_repository(name), name
    methods = {row.method for path in FOLDER.glob("*.json") for row in published.load(path.stem).rows}
    methods |= {pretrainings.find(name).DISPLAY for name in pretrainings.names()}
    without = {name for name in methods if citations.key_of_method(name) is None}
    assert all(name.startswith(UNCITED) for name in without), without


@pytest.mark.parametrize(
    ("label", "key"),
    [
        ("MoCo v2 (200 epochs)", "chen2020mocov2"),
        ("MoCo v1 (IG-1B)", "he2020moco"),
        ("DetCo+AA (200 epochs, local patches)", "xie2021detco"),
        ("SimCLRv2", None),
        ("INTL-mine", None),
        ("my SimCLR", None),
    ],
)
def test_a_method_is_known_by_the_start_of_its_label(label: str, key: str | None) -> None:
    assert citations.key_of_method(label) == key


def test_entries_are_complete() -> None:
    text = (FOLDER / "references.bib").read_text(encoding="utf-8")
    assert len(citations.works()) == text.count("\n@")
    assert len({work.key for work in citations.works()}) == len(citations.works())
    for work in citations.works():
        assert {"author", "title"} <= work.fields.keys()
        assert "year" in work.fields or work.key.startswith("code-")
        assert work.text.count("{") == work.text.count("}")


def test_published_and_measured_cells_have_one_style() -> None:
    (table,) = json.loads(render(synthetic(), tables=("3",), format="json"))
    with_spread = [cell["cell"] for cell in table["cells"] if cell["std"] is not None]
    assert {"61.2 ± 0.08 (3)", "61.2 ± 0.10 (3†)", "61.0 ± 1.0 (3)"} <= set(with_spread)
    assert all(re.fullmatch(r"\d+\.\d+ ± \d+\.\d+ \(\d†?\)", text) for text in with_spread)
