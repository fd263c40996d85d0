"""Whether runs can be chosen without labels: scores over RankMe, alpha and the condition number, with correlations."""

import html
from collections.abc import Mapping, Sequence

from intl_bench.core.terminal import visible
from intl_bench.records import ResultRecord
from intl_bench.report.charts import Line, legend, scatter_chart
from intl_bench.spectra.label_free import axis_title, axis_values, correlate, runs_of


def label_free_html(records: Mapping[str, Sequence[ResultRecord]]) -> str:
    """Return a chart for each number of each spectrum, of the score with the most runs; empty if there are too few.

    Args:
        records: by the name of the folder that holds them.
    """
    runs = runs_of(records)
    found = correlate(dict(list(runs.items())[:1]))
    if not found:
        return ""
    score = found[0].score
    grids = sorted({run.grids[0] for run in runs[score]})
    figures = ""
    for one in (one for one in found if one.runs == "all"):
        values = axis_values(runs[score], one.spectrum, one.number)
        lines = [
            Line(
                visible(grid),
                [value for run, value in values if run.grids[0] == grid],
                [run.score for run, _ in values if run.grids[0] == grid],
            )
            for grid in grids
        ]
        name = axis_title(one.number)
        chart = scatter_chart(lines, x=name, y=visible(score), log_x=one.number == "RankMe")
        about = (
            f"Spearman {one.spearman:.2f} ({one.low:.2f} to {one.high:.2f}), Kendall {one.kendall:.2f}, n = {one.n}; "
            f"it chooses {one.chosen:.2f}, the best is {one.best:.2f}, the mean {one.mean:.2f}"
        )
        figures += f"<figure><h4>{one.spectrum}: {name}</h4>{chart}<figcaption>{about}.</figcaption></figure>\n"
    return (
        f'<p class="caption">{html.escape(visible(score))}, over numbers that need no labels; a dot for each run. A '
        "positive correlation agrees with the claim of the number: higher RankMe, alpha nearer to 1, lower condition "
        "number. The interval is a bootstrap over pre-trainings. Infinite condition numbers are not drawn.</p>\n"
        f'{legend([visible(grid) for grid in grids], dots=True)}<div class="figures">\n{figures}</div>\n'
    )
