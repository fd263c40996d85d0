"""Spectra of pre-trainings, from the records that hold them."""

import html
from collections import defaultdict
from collections.abc import Sequence

from intl_bench.core.terminal import visible
from intl_bench.records import ResultRecord
from intl_bench.report.charts import Line, legend, line_chart
from intl_bench.tables.grouping import varying
from intl_bench.tables.identities import flatten, natural_sort_key, readable_key

_MOST = 14  # lines of a chart


def spectra_html(records: Sequence[ResultRecord]) -> str:
    """Return a chart for each kind of spectrum, with a line for each pre-training; an empty text if there is none."""
    first: dict[str, ResultRecord] = {}
    for record in sorted(records, key=lambda record: record.pretrain_seed or 0):
        if isinstance(record.details.get("spectra"), dict):
            first.setdefault(record.pretraining_sha256, record)
    chosen = list(first.values())
    if not chosen:
        return ""
    left_out = max(0, len(chosen) - _MOST)
    names = _names(chosen)
    pairs = sorted(zip(names, chosen, strict=True), key=lambda pair: natural_sort_key(pair[0]))[:_MOST]
    kinds = defaultdict(list)
    for name, record in pairs:
        for kind, one in record.details["spectra"].items():
            mean = one["mean"] or 1.0  # without a mean there are no eigenvalues: the spectrum was not finite
            kinds[kind].append(Line(name, one["ranks"], [value / mean for value in one["eigenvalues"]]))
    figures = "".join(
        f"<figure><h4>{html.escape(visible(kind))}</h4>"
        f"{line_chart(lines, x='rank', y='eigenvalue / mean', log_x=True, log_y=True)}</figure>\n"
        for kind, lines in kinds.items()
    )
    more = f" {left_out} more pre-trainings are left out." if left_out else ""
    return (
        f'<p class="caption">Eigenvalues of the covariance divided by their mean, over their rank; the first seed of '
        f"each pre-training. A full, flat spectrum lies at 1.{more}</p>\n"
        f'{legend([name for name, _ in pairs])}<div class="figures">\n{figures}</div>\n'
    )


def _names(records: Sequence[ResultRecord]) -> list[str]:
    """Return the methods, with as many settings as distinguish the pre-trainings."""
    flat = [flatten(record.pretraining) for record in records]
    names = [[record.method] for record in records]
    for key in varying(flat):
        if len(set(map(tuple, names))) == len(names):
            break
        word = readable_key("pretraining", key).removeprefix("pre-training ").removeprefix("method.")
        longer = [[*name, f"{word} {one.get(key, 'none')}"] for name, one in zip(names, flat, strict=True)]
        if len(set(map(tuple, longer))) > len(set(map(tuple, names))):
            names = longer
    return [visible(", ".join(name).replace("_", " ")) for name in names]
