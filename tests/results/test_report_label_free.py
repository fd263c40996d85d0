"""The section of the report about choosing runs without labels."""

import re

import pytest
from test_label_free import five

from intl_bench.report.label_free import label_free_html


def test_a_chart_for_each_number_with_its_correlation() -> None:
    text = label_free_html({"<grid>": five()})
    assert re.findall(r"<h4>(.*?)</h4>", text) == [
        "features: RankMe",
        "features: alpha",
        "features: log10 of the condition number",
    ]
    dots = [len(re.findall("<circle", figure)) for figure in re.findall("<figure>.*?</figure>", text, re.DOTALL)]
    assert dots == [5, 4, 3]  # one run has no alpha, and two an infinite condition number
    assert (
        "Spearman 1.00 (1.00 to 1.00), Kendall 1.00, n = 5; it chooses 50.00, the best is 50.00, the mean 30.00" in text
    )
    assert "&lt;grid&gt;" in text
    assert "<grid>" not in text


@pytest.mark.parametrize("records", [{}, {"grid": five()[:6]}])
def test_too_few_runs_have_no_section(records: dict[str, list[object]]) -> None:
    assert label_free_html(records) == ""  # type: ignore[arg-type]
