"""Can runs be chosen without labels? Rank correlations of RankMe, alpha and the condition number with the scores.

The numbers come from the records of the task "pretrain", which hold the spectra of a run, and the scores from the
records of the same weights. Scores are compared only if the data set, the backbone and the whole evaluation are equal.
"""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from intl_bench.core.errors import InputError
from intl_bench.core.seeding import generator
from intl_bench.records import RecordStore, ResultRecord
from intl_bench.tables.ablation import TASK

SPECTRA = ("features", "embedding")
# Each number as it is ranked: higher is better, as its paper claims. RankMe: Garrido et al., ICML 2023. alpha-ReQ:
# Agrawal et al., NeurIPS 2022: the closer to 1, the better. Condition number: that of INTL's paper, Section 3.
NUMBERS = ("RankMe", "-|alpha - 1|", "1 / condition")
_SCORES = {
    "linear": ("top1", "linear top-1"),
    "knn": ("knn5", "5-NN"),
    "finetune": ("top1", "fine-tuned top-1"),
    "coco": ("bbox/AP", "box AP"),
    "voc": ("bbox/AP50", "box AP50"),
    "transfer": ("", "logistic regression"),  # each data set has its own metric
}
_FEWEST = 4  # runs of a correlation
_DRAWS = 2000  # of the bootstrap
_COVERED = 0.95  # by an interval


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A pre-training with its spectra and one of its scores.

    Attributes:
        grids: the names of the folders that hold its records.
        pretraining: the digest of the pre-training, equal for its seeds.
        raw: {(spectrum, "RankMe", "alpha" or "condition"): value}; a condition number may be infinite.
        score: the mean over the transfer seeds.
    """

    grids: tuple[str, ...]
    method: str
    pretraining: str
    raw: Mapping[tuple[str, str], float]
    score: float

    def ranked(self, spectrum: str, number: str) -> float | None:
        """Return one of `NUMBERS` of a spectrum; None if the run does not have it."""
        name = {"RankMe": "RankMe", "-|alpha - 1|": "alpha", "1 / condition": "condition"}[number]
        value = self.raw.get((spectrum, name))
        if value is None or number == "RankMe":
            return value
        return -abs(value - 1) if name == "alpha" else 1 / value


@dataclasses.dataclass(frozen=True, kw_only=True)
class Correlation:
    """How the order of runs by a number without labels agrees with their order by a score.

    Attributes:
        runs: which runs: "all", or the name of a folder of records.
        score: the name of the score; also the data set and the backbone.
        spectrum, number: one of `SPECTRA` and one of `NUMBERS`.
        n: number of runs.
        pretrainings: number of pre-trainings, each of one or more seeds.
        spearman, kendall: rank correlations (Kendall's tau-b); NaN if all values are equal.
        low, high: ends of the 95% interval of Spearman's, by drawing pre-trainings with their seeds.
        chosen: the score of the run that the number chooses, the mean of several that are equal.
        best, mean: the highest and the mean score of the runs.
    """

    runs: str
    score: str
    spectrum: str
    number: str
    n: int
    pretrainings: int
    spearman: float
    low: float
    high: float
    kendall: float
    chosen: float
    best: float
    mean: float


def read(folders: Sequence[Path]) -> dict[str, list[ResultRecord]]:
    """Return the records below some folders by the name of the folder that holds their `records/`.

    Folders of one name, such as the `search` of several sweeps, have the names of the folders above them too.

    Raises:
        InputError: a folder does not exist or a record cannot be read.
    """
    stores: dict[Path, None] = {}
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder; expected a folder of results, such as results")
        stores |= dict.fromkeys(sorted({path.parent.parent.resolve() for path in folder.rglob("records/*/*.json")}))
    names = _shortest([store.parent.parts for store in stores])
    return {name: RecordStore(store).load() for name, store in zip(names, stores, strict=True)}


def _shortest(paths: Sequence[tuple[str, ...]]) -> list[str]:
    """Return the shortest end of each path that no other one of these paths has."""

    def end(path: tuple[str, ...], length: int) -> str:
        return "/".join(path[-length:])

    found = []
    for path in paths:
        length = 1
        while [end(other, length) for other in paths].count(end(path, length)) > 1:
            length += 1
        found.append(end(path, length))
    return found


def runs_of(records: Mapping[str, Sequence[ResultRecord]]) -> dict[str, list[Run]]:
    """Return the runs that have spectra and a score, by the name of the score. A run in two folders counts once."""
    scores: dict[str, list[ResultRecord]] = defaultdict(list)
    for record in (one for some in records.values() for one in some):
        if record.weights_sha256 is not None and _metric(record) in record.metrics:
            scores[record.weights_sha256].append(record)
    found: dict[tuple[str, ...], list[Run]] = defaultdict(list)
    ends: dict[str, ResultRecord] = {}
    grids: dict[str, list[str]] = defaultdict(list)
    for grid, some in records.items():
        for record in some:
            weights = record.details.get("weights_sha256")
            if record.task == TASK and weights and "spectra" in record.details:
                ends.setdefault(weights, record)
                grids[weights].append(grid)
    for weights, end in ends.items():
        values: dict[tuple[str, ...], dict[int, float]] = defaultdict(dict)
        for record in scores[weights]:
            _, name = _SCORES[record.task]
            part = record.protocol.get("train_percent") if record.task == "finetune" else None
            title = f"{f'{part:g}% ' if part else ''}{name}, {record.dataset}, {record.backbone}"
            title += ", held-out training images" if "scored_on" in record.protocol else ""
            values[title, record.evaluation_sha256][record.transfer_seed] = record.metrics[_metric(record)]
        for place, by_seed in values.items():
            run = Run(
                grids=tuple(dict.fromkeys(grids[weights])),
                method=end.method,
                pretraining=end.pretraining_sha256,
                raw=_raw(end.details["spectra"]),
                score=sum(by_seed.values()) / len(by_seed),
            )
            found[place].append(run)
    titles = [title for title, _ in found]
    names = {
        place: place[0] if titles.count(place[0]) == 1 else f"{place[0]}, evaluation {place[1][:8]}" for place in found
    }
    kinds = [name for _, name in _SCORES.values()]

    def order(place: tuple[str, ...]) -> tuple[object, ...]:
        return (-len(found[place]), next(n for n, kind in enumerate(kinds) if kind in place[0]), place)

    return {names[place]: found[place] for place in sorted(found, key=order)}


def _metric(record: ResultRecord) -> str:
    """Return the name of the score of a record; "" if its task has none."""
    metric, _ = _SCORES.get(record.task, ("", ""))
    return str(record.protocol.get("metric")) if record.task == "transfer" else metric


def _raw(spectra: Mapping[str, Mapping[str, object]]) -> dict[tuple[str, str], float]:
    """Return the numbers of the spectra of a record. A condition number that is None is infinite."""
    found: dict[tuple[str, str], float] = {}
    for name in SPECTRA:
        numbers = spectra.get(name, {}).get("numbers")
        if not isinstance(numbers, dict) or numbers.get("rank") is None:  # a spectrum that is not finite
            continue
        inverse = numbers["inverse_condition"]
        found[name, "RankMe"] = numbers["rank"]
        found[name, "condition"] = 1 / inverse if inverse else math.inf
        if numbers.get("alpha") is not None:
            found[name, "alpha"] = numbers["alpha"]
    return found


def correlate(runs: Mapping[str, Sequence[Run]]) -> list[Correlation]:
    """Return the correlations over all runs with a score, and over those of each folder if there are several."""
    found = []
    for score, some in runs.items():
        grids = sorted({grid for run in some for grid in run.grids})
        for name in ["all", *(grids if len(grids) > 1 else [])]:
            here = [run for run in some if name in ("all", *run.grids)]
            found += [
                one
                for spectrum in SPECTRA
                for number in NUMBERS
                if (one := _correlation(name, score, spectrum, number, here)) is not None
            ]
    return found


def _correlation(name: str, score: str, spectrum: str, number: str, runs: Sequence[Run]) -> Correlation | None:
    pairs = [(value, run) for run in runs if (value := run.ranked(spectrum, number)) is not None]
    if len(pairs) < _FEWEST:
        return None
    x, y = np.array([value for value, _ in pairs]), np.array([run.score for _, run in pairs])
    pretrainings, number_of = np.unique([run.pretraining for _, run in pairs], return_inverse=True)
    low, high = _interval(x, y, [np.flatnonzero(number_of == group) for group in range(len(pretrainings))])
    return Correlation(
        runs=name,
        score=score,
        spectrum=spectrum,
        number=number,
        n=len(pairs),
        pretrainings=len(pretrainings),
        spearman=spearman(x, y),
        low=low,
        high=high,
        kendall=kendall(x, y),
        chosen=float(y[x == x.max()].mean()),
        best=float(y.max()),
        mean=float(y.mean()),
    )


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Return Spearman's rank correlation, with mean ranks for ties; NaN if all values of one are equal."""
    return float(_spearman(x, y, np.ones((1, len(x))))[0])


def _spearman(x: np.ndarray, y: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return Spearman's rank correlation of samples that hold each pair (x, y) `counts` times: (n,), (draws, n)."""
    a, b = (_ranks(values, counts) for values in (x, y))
    size = counts.sum(axis=1, keepdims=True)
    a, b = (ranks - (counts * ranks).sum(axis=1, keepdims=True) / size for ranks in (a, b))
    norm = np.sqrt((counts * a**2).sum(axis=1) * (counts * b**2).sum(axis=1))
    # Rounding leaves a norm near 0 where all values are equal.
    constant = norm <= 1e-9 * size[:, 0] ** 3
    return np.where(constant, np.nan, (counts * a * b).sum(axis=1) / np.where(constant, 1.0, norm))


def _ranks(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the ranks of n values in samples that hold each of them `counts` (draws, n) times; ties get the mean."""
    unique, place = np.unique(values, return_inverse=True)
    order = np.argsort(place, kind="stable")
    together = np.add.reduceat(counts[:, order], np.searchsorted(place[order], np.arange(len(unique))), axis=1)
    return (together.cumsum(axis=1) - together / 2)[:, place]


def kendall(x: np.ndarray, y: np.ndarray) -> float:
    """Return Kendall's tau-b; NaN if all values of one are equal."""
    a, b = (np.sign(values[:, None] - values[None, :]) for values in (x, y))
    norm = math.sqrt(float(np.square(a).sum() * np.square(b).sum()))
    return float((a * b).sum()) / norm if norm else math.nan


def _interval(x: np.ndarray, y: np.ndarray, groups: Sequence[np.ndarray]) -> tuple[float, float]:
    """Return the percentile interval of Spearman's correlation, from groups that are drawn with replacement."""
    drawn = generator(0, "label-free bootstrap").multinomial(len(groups), [1 / len(groups)] * len(groups), size=_DRAWS)
    counts = np.empty((_DRAWS, len(x)))
    for number, group in enumerate(groups):
        counts[:, group] = drawn[:, number, None]
    values = _spearman(x, y, counts)
    if np.isnan(values).all():
        return math.nan, math.nan
    outside = (1 - _COVERED) / 2
    low, high = np.nanquantile(values, [outside, 1 - outside])
    return float(low), float(high)


def axis_values(runs: Iterable[Run], spectrum: str, number: str) -> list[tuple[Run, float]]:
    """Return the runs with the finite raw value of a number that a figure shows: RankMe, alpha or log10 condition."""
    name = {"RankMe": "RankMe", "-|alpha - 1|": "alpha", "1 / condition": "condition"}[number]
    found = []
    for run in runs:
        value = run.raw.get((spectrum, name), math.inf)
        value = math.log10(value) if name == "condition" else value
        if math.isfinite(value):
            found.append((run, value))
    return found


def axis_title(number: str) -> str:
    """Return the name of the values of `axis_values`."""
    return {"RankMe": "RankMe", "-|alpha - 1|": "alpha", "1 / condition": "log10 of the condition number"}[number]
