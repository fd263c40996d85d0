"""Built tables for LaTeX, with citations, and the bibliography of these citations."""

import re
from collections.abc import Sequence

from intl_bench.core.escapes import one_line
from intl_bench.tables import citations
from intl_bench.tables.frame import BuiltTable
from intl_bench.tables.markup import groups, rows

_START = r"""% needs \usepackage{booktabs}; with \usepackage{graphicx} a wide table shrinks to the line
% the entries of \cite: intl-bench tables with the same options and --format bibtex
\providecommand{\resizebox}[3]{#3}
"""
_NARROW = 4  # a table with more columns of values spans both columns of a page
_SOURCE = re.compile(r" \(arXiv:(?P<paper>\d{4}\.\d{5})\)|(?P<code>[\w.-]+/[\w.-]+)@[0-9a-f]{7,}")
_ESCAPES = str.maketrans(
    {
        **{character: f"\\{character}" for character in "&%$#_{}"},
        # LaTeX reads [ and * after a line break as arguments of the line break.
        **{character: f"{{{character}}}" for character in "[]*"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        '"': r"\textquotedbl{}",
        "±": r"$\pm$",
        "†": r"$\dagger$",
        "–": "--",
    }
)


def latex(tables: Sequence[BuiltTable]) -> str:
    r"""Return environments `table` for booktabs, `table*` for wide tables.

    If the document loads graphicx, a table that is still too wide shrinks to the line. Methods and sources that
    `intl_bench.published` knows are cited.
    """
    return _START + "\n".join(_latex(table) for table in tables)


def bibtex(tables: Sequence[BuiltTable]) -> str:
    """Return the entries that the tables cite in LaTeX."""
    cited = re.findall(r"\\cite\{([^}]+)\}", latex(tables))
    return citations.bibliography(cited)


def _escape(text: str) -> str:
    return one_line(text).translate(_ESCAPES)


def _with_citations(text: str) -> str:
    """Escape a text and cite its papers and repositories. A paper's number gives way to its citation."""
    parts, end = [], 0
    for found in _SOURCE.finditer(text):
        paper = found["paper"]
        key = citations.key_of_arxiv(paper) if paper else citations.key_of_repository(found["code"])
        if key is not None:
            kept = "" if paper else _escape(found[0])
            parts += [text[end : found.start()].translate(_ESCAPES), kept, rf"~\cite{{{key}}}"]
            end = found.end()
    return one_line("".join([*parts, text[end:].translate(_ESCAPES)]))


def _label(text: str) -> str:
    key = citations.key_of_method(text)
    return _escape(text) + (rf"~\cite{{{key}}}" if key else "")


def _bold(text: str) -> str:
    return rf"\textbf{{{text}}}"


def _superscript(mark: str) -> str:
    return rf"\textsuperscript{{{mark}}}"


def _latex(table: BuiltTable) -> str:
    headings, rules, first = "", "", 2
    for group, size in groups(table):
        headings += rf" & \multicolumn{{{size}}}{{c}}{{{_escape(group)}}}"
        rules += rf"\cmidrule(lr){{{first}-{first + size - 1}}}"
        first += size
    lines = [rf"{headings} \\", rules]
    lines.append(f"{' & '.join([table.head, *(_escape(column.name) for column in table.columns)])} \\\\")
    first_column, kind = "l", ""
    for row_kind, (label, *cells) in rows(table, _escape, bold=_bold, mark=_superscript, label=_label):
        if row_kind != kind:
            lines.append(r"\midrule")
        if row_kind == "measured" and table.head == "Method":  # its label is long
            first_column, label = r"p{0.3\linewidth}", rf"\raggedright {label}"
        kind = row_kind
        lines.append(f"{' & '.join([label, *cells])} \\\\")
    notes = [f"{_superscript(mark) if mark else ''}{_with_citations(text)}\\par" for mark, text in table.notes]
    environment = "table" if len(table.columns) <= _NARROW else "table*"
    return "\n".join(
        [
            rf"\begin{{{environment}}}",
            r"\centering",
            rf"\caption{{{_with_citations(table.caption)}}}",
            rf"\label{{tab:intl-bench-{re.sub(r'[^A-Za-z0-9-]+', '-', table.number)}}}",
            r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
            rf"\begin{{tabular}}{{{first_column}{'r' * len(table.columns)}}}",
            r"\toprule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}}",
            *([r"\par\smallskip\footnotesize\raggedright", *notes] if notes else []),
            rf"\end{{{environment}}}",
            "",
        ]
    )
