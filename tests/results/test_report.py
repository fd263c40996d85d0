"""The report: what it holds, the commands that it prints, and its behavior in a browser."""

import html
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from browser import CHROMIUM, DRIVER, Browser, browser
from layout_cases import prefixed, random_state
from PIL import Image
from table_cases import COCO, COCO_1X, KNN, LINEAR, R18, R50, RANDOM, make, record_pair, synthetic

from intl_bench import cli
from intl_bench.commands import commands_of, pretraining_of
from intl_bench.core.identity import identity
from intl_bench.records import RecordStore, ResultRecord
from intl_bench.tables import render
from pretrain.recipe import load_recipe

NASTY = "</script><script>alert(1)</script><img src=http://example.org/x.png>"
SPECTRUM = {"ranks": [1, 2, 3], "eigenvalues": [4.0, 1.0, 0.0], "count": 3, "mean": 1.7}
TINY = [
    *("data.size=160", "batch_size=32", "epochs=2", "backbone.name=resnet10_narrow", "projector.hidden=32"),
    *("projector.out=64", "warmup_epochs=0", "base_lr=0.002", "log_every=1", "device=cpu", "spectrum_every=0"),
]


def results() -> list[ResultRecord]:
    """Return records with three seeds, a comparable published value, a spectrum, a picture and a nasty name."""
    r50 = {"backbone": "resnet50", "scale": "paper"}
    coco, one_x = {**COCO, **R50}, {**COCO_1X, "pretrain_epochs": 200}
    cost = {"seconds": 7200.0, "gpu_seconds": 14400.0, "gpu_joules": 7.2e6}
    spectrum = {"spectra": {"embedding": SPECTRUM}, "pretrain": cost}
    return [
        *synthetic(),
        *(
            make("coco", "coco", {"bbox/AP": ap}, one_x, method="SimSiam", transfer_seed=seed, **r50)
            for seed, ap in enumerate((38.0, 38.2))
        ),
        make("knn", "cifar10", {"knn5": 50.0}, {**KNN, **R18}, method=NASTY),
        make("knn", NASTY, {"knn5": 50.0}, {**KNN, **R18}, details={"checkpoint": f"{NASTY}.pt"}),
        make("pretrain", "cifar10", {"diverged": 0.0}, R18, evaluation={}, weights_sha256=None, details=spectrum),
        make("coco", "coco", {"bbox/AP": 39.0}, coco, method="BYOL", details={"picture": "worst.png"}, **r50),
    ]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with every section."""
    folder = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for record in results():
            RecordStore(Path("results/records")).append(record)
        grid = Path("results/ablations/power")
        RecordStore(grid / "records").append(next(record for record in results() if record.task == "pretrain"))
        tuned = {"chosen": "base_lr 0.3", "budget": "4 of 6 settings", **R18}
        store = RecordStore(Path("results/sweeps/rates/records"))
        scores, repeated = {"linear/top1": 61.25, "diverged": 0.0}, {"pretrain": {"seconds": 9e6}}
        store.append(make("sweep", "cifar10", scores, tuned, weights_sha256=None, details=repeated, wall_time_s=9e6))
        Image.new("RGB", (60, 40), "white").save("worst.png")
        Image.new("RGB", (60, 40), "white").save(grid / "figure.png")
        log = Path("runs/pretrain/photos/seed0/metrics.jsonl")
        log.parent.mkdir(parents=True)
        rows = [{"step": step, "loss": 1 / step, "lr": 0.1, "seconds": 1.0} for step in range(1, 2000)]
        strange = [
            "[1]",
            '{"step": NaN, "loss": 1}',
            '{"step": 3, "loss": 1' + "0" * 400 + "}",
            '{"step": "4", "loss": 9}',
        ]
        lines = [*map(json.dumps, rows), *strange, '{"step": 2000, "lo']
        log.write_text("\n".join(lines))
        summary = {"state": "finished", "seconds": 7200, "processes": 2, "device": "GPU", "warnings": ["it is slow"]}
        log.with_name("summary.json").write_text(json.dumps(summary))
        assert cli.main(["report"]) == 0
    return folder / "report.html"


def section(text: str, name: str) -> str:
    """Return the content of a section."""
    (found,) = re.findall(rf'<section>\n<h2 id="{name.lower()}">.*?</section>', text, re.DOTALL)
    return str(found)


def test_every_seed_is_a_dot_and_a_published_value_that_is_comparable_a_diamond(page: Path) -> None:
    text = section(page.read_text(), "Results")
    assert {f"transfer seed {seed}: 61.{seed + 1}0" for seed in range(3)} <= set(
        re.findall(r"transfer seed \d: 61.\d0", text)
    )
    diamonds = re.findall(r'<path class="paper"[^>]*><title>published: ([\d.]+)', text)
    assert diamonds == ["37.9"]  # SimSiam; INTL was measured after 800 epochs of pre-training, and printed after 200


def test_difference_to_the_published_value(page: Path) -> None:
    text = section(page.read_text(), "Results")
    (row,) = re.findall(r'<tr class="measured"><th[^>]*data-value="SimSiam.*?</tr>', text, re.DOTALL)
    assert '<span class="delta">+0.2</span>' in row  # 38.1 - 37.9
    row = re.findall(r'<tr class="measured"><th[^>]*data-value="INTL[^"]*schedule 2x.*?</tr>', text, re.DOTALL)[0]
    assert '<span class="delta unlike">(+0.0)</span>' in row  # 41.2 - 41.2, after 800 epochs instead of 200


def test_sections_hold_curves_spectra_pictures_and_cost(page: Path) -> None:
    text = page.read_text()
    (points,) = re.findall(r'<polyline class="curve" points="([^"]*)"', section(text, "Curves").split("<details")[0])
    assert 100 < len(points.split()) <= 300  # of 1999 steps; the line that was cut short is left out
    assert "seed 0: finished, 2.0 h, 2 x GPU. Warning: it is slow." in section(text, "Curves")
    assert "eigenvalue / mean over rank: 1 lines" in section(text, "Spectra")
    assert section(text, "Detections").count("data:image/png;base64,") == 1
    assert section(text, "Ablations").count("data:image/png;base64,") == 1
    assert "<td>2.0 h</td><td>4.0</td><td>2</td>" in section(text, "Cost")
    assert "104 days" not in section(text, "Cost")  # of the tuned method, which its runs count
    sweeps = section(text, "Sweeps")
    assert "<h3>rates</h3>" in sweeps
    assert "61.25" in sweeps
    assert "base_lr 0.3" in html.unescape(sweeps)
    assert "Not in this report" not in text


def test_the_page_names_nothing_outside(page: Path) -> None:
    text = page.read_text()
    assert text.count("</script>") == 2
    assert not re.search(r'(?:src|href)="(?!data:|#)', text)
    assert not re.search(r"@import|url\(", text)


def test_folders_with_similar_names_stay_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tuned = {"chosen": "base_lr 0.3", "budget": "4 of 6 settings", **R18}
    for name in ("a b", "a-b", "A b"):
        RecordStore(Path("results/sweeps", name, "records")).append(
            make("sweep", "cifar10", {"linear/top1": 61.25}, tuned, weights_sha256=None)
        )
    # An ablation with the name of the results' own folder. Each has five runs, enough for a correlation.
    for place, folder in enumerate(("results", "results/ablations/results")):
        for number in range(5):
            for one in record_pair(10 * place + number, 50.0 + number, 9.0 - number, 1.0, 0.1):
                RecordStore(Path(folder, "records")).append(one)
    assert cli.main(["report"]) == 0
    text = Path("report.html").read_text()
    ids = re.findall(r'\bid="([^"]*)"', text)
    assert len(set(ids)) == len(ids)
    assert "n = 10;" in text
    assert ">ablations/results<" in text


def test_the_printed_commands_repeat_the_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, again = tmp_path / "first", tmp_path / "again"
    first.mkdir()
    again.mkdir()
    monkeypatch.chdir(first)
    checkpoint = "runs/pretrain/mine/seed1/checkpoint.pt"
    assert cli.main(["pretrain", "demo", *TINY, "seed=1", "name=mine", "views.0.blur_p=0.5"]) == 0
    assert cli.main(["knn", checkpoint, "distance=cosine"]) == 0
    assert cli.main(["linear", checkpoint, "--seeds", "1,4", "epochs=3", "milestones=[1,2]"]) == 0
    assert cli.main(["linear", checkpoint, "--init", "random", "epochs=2"]) == 0
    assert cli.main(["report"]) == 0
    blocks = re.findall(r"<pre>(.*?)</pre>", section(Path("report.html").read_text(), "Commands"), re.DOTALL)
    commands = [shlex.split(line) for line in dict.fromkeys(html.unescape("\n".join(blocks)).splitlines())]
    assert sorted(words[1] for words in commands) == ["knn", "linear", "linear", "pretrain"]
    monkeypatch.chdir(again)
    for words in sorted(commands, key=lambda words: words[1] != "pretrain"):
        assert cli.main(words[1:]) == 0
    before, after = (
        {record.key: record.metrics for record in RecordStore(folder / "results/records").load()}
        for folder in (first, again)
    )
    assert len(before) == 4
    assert after == before


def printed(records: list[ResultRecord]) -> list[list[str]]:
    """Return the words of the commands that repeat records, without comments."""
    lines = "\n".join(commands_of(records)).splitlines()
    return [shlex.split(line) for line in lines if not line.startswith("#")]


def test_the_branch_of_a_file_of_another_project_is_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    query, momentum = (
        prefixed(f"module.encoder_{name}.", random_state("resnet10_narrow", seed=seed))
        for seed, name in enumerate("qk")
    )
    torch.save({"state_dict": {**query, **momentum, "module.queue": torch.ones(2, 2)}}, "a.pth")
    assert cli.main(["convert", "a.pth", "b.safetensors", "--to", "safetensors", "--from", "moco:momentum"]) == 0
    data = ["data.kind=shapes", "data.size=160"]
    assert cli.main(["knn", "a.pth", "--from", "moco:momentum", *data]) == 0
    assert cli.main(["knn", "b.safetensors", "--results", "b", *data]) == 0
    for folder, layout in (("results", "moco:momentum"), ("b", None)):
        (record,) = RecordStore(Path(folder) / "records").load()
        (words,) = printed([record])
        assert (words[words.index("--from") + 1] if "--from" in words else None) == layout
        assert cli.main([*words[1:], "--results", "again"]) == 0
        assert RecordStore(Path("again/records")).find(record.key) is not None
        del record.details["layout"]  # as in a record of an earlier version
        assert printed([record]) == [words]


def test_a_command_holds_what_an_identity_does_not() -> None:
    recipe = load_recipe("imagenet_r50_intl", ["data.root=a b", "data.classes=some.txt", 'data.skip=["x/*"]', "seed=2"])
    settings = {key: value for key, value in identity(recipe).items() if key != "seed"}
    own = {**identity(recipe.data), "kind": "imagefolder", "limit": 0.1}  # a limit of the score alone
    scored = {**own, "root": "a b", "classes": "some.txt", "skip": ["x/*"], "on_bad_image": "skip"}
    protocol = {**LINEAR, "pretrain_dataset": "a b"}
    trained = {"settings": settings, "branch": "online", "initial_weights": "ab" * 32}
    record = make(
        *("linear", "a b", {"top1": 1.0}, protocol),
        pretraining=trained,
        pretrain_seed=2,
        config={"data": scored},
    )
    command = pretraining_of(record)
    assert command is not None
    comment, line = command.splitlines()
    assert comment.startswith("#")
    assert "ab" * 32 in comment
    words = shlex.split(line)
    assert words[1] == "pretrain"
    assert "init=CHECKPOINT" in words
    again = load_recipe(words[2], words[3:])
    assert identity(again) == identity(recipe)
    assert (again.data.root, again.data.classes, again.data.skip) == ("a b", "some.txt", ("x/*",))
    assert again.data.on_bad_image == "skip"


def test_nothing_to_report_and_a_wrong_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["report"]) == 2
    assert "no record in results/records and no log in runs/pretrain" in capsys.readouterr().err
    assert cli.main(["report", "--out", "report.pdf"]) == 2
    assert "report.pdf: not an HTML file" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_report_without_pictures_and_curves_names_the_commands_that_make_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    RecordStore(Path("results/records")).append(make("knn", "cifar10", {"knn5": 10.0}, KNN, pretraining=RANDOM))
    assert cli.main(["report", "--out", "x/a.html"]) == 0
    text = Path("x/a.html").read_text()
    missing = text.split("Not in this report")[1]
    assert [name for name in ("Curves", "Spectra", "Detections", "Ablations") if f"<li>{name}: " in missing] == [
        *("Curves", "Spectra", "Detections", "Ablations")
    ]
    assert re.findall("<h3[^>]*>Table (.*?)</h3>", text) == ["2"]  # tables without a measured row are left out


@pytest.fixture(scope="module")
def window() -> Iterator[Browser]:
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("chromium or chromedriver is not installed")
    with browser() as one:
        yield one


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_browser_renders(page: Path, window: Browser, width: int, dark: bool) -> None:
    window.problems(), window.requests()
    window.show(page, width=width, dark=dark)
    assert window.run("return document.querySelectorAll('tr.measured').length") > 10
    assert window.run("return document.querySelector('#details') && document.documentElement.className") == "live"
    assert window.run("return document.documentElement.scrollWidth") == width  # only tables scroll to the side
    background = window.run("return getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background))) < 150) == dark
    assert window.problems() == []
    assert all(url.startswith(("file:", "data:")) for url in window.requests())


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_browser_texts_have_contrast(page: Path, window: Browser, dark: bool) -> None:
    window.show(page, dark=dark)
    colors = window.run(
        "const style = getComputedStyle(document.documentElement);"
        "return ['ink', 'soft', 'mark', 'page', 'measured'].map((name) => style.getPropertyValue(`--${name}`).trim())"
    )
    *texts, paper, measured = [_luminance(color) for color in colors]
    for behind in (paper, measured):
        for text in texts:
            assert (max(text, behind) + 0.05) / (min(text, behind) + 0.05) >= 4.5  # WCAG, level AA


def _luminance(color: str) -> float:
    parts = [int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_browser_sorts_and_filters(page: Path, window: Browser) -> None:
    window.show(page)
    values = (
        "return [...document.querySelector('#table-2 ~ .scroll tbody').rows].map((row) => row.cells[1].dataset.value)"
    )
    click = "document.querySelectorAll('#table-2 ~ .scroll .sort')[1].click()"
    original = window.run(values)
    numbers = sorted((float(value) for value in original if value is not None), reverse=True)
    missing = original.count(None)
    assert missing > 0
    assert numbers != [float(value) for value in original if value is not None]
    window.run(click)
    assert [None if v is None else float(v) for v in window.run(values)] == [*numbers, *[None] * missing]
    assert window.run("return document.querySelectorAll('[aria-sort=descending]').length") == 1
    window.run(click)
    assert [None if v is None else float(v) for v in window.run(values)] == [*numbers[::-1], *[None] * missing]
    window.run(click)
    assert window.run(values) == original
    window.run("document.querySelector('#table-2 ~ .filter [data-show=measured]').click()")
    rows = "[...document.querySelector('#table-2 ~ .scroll').querySelectorAll('tbody tr')]"
    shown = f"return {rows}.filter((row) => row.offsetHeight).map((row) => row.className)"
    assert set(window.run(shown)) == {"measured"}


def test_browser_shows_the_protocol_to_the_keyboard_and_on_hover(page: Path, window: Browser) -> None:
    window.show(page)
    text = "const a = document.querySelector('#about'); return a.matches(':popover-open') ? a.textContent : ''"
    window.run("document.querySelector('#table-1 ~ .scroll').focus()")
    assert window.run(text) == ""
    window.press(*["Tab"] * 8)  # the headings, then the first cell
    assert "Supervised: Linear top-1" in window.run(text)
    window.press(*["Down"] * 11)
    assert "INTL: Linear top-1" in window.run(text)
    assert "selection" in window.run(text)
    assert "pre-training seed 0, transfer seed 0" in window.run(text)
    assert window.run("return document.activeElement.getAttribute('aria-describedby')") == "about"
    window.press("Right")
    assert "INTL: Linear top-5" in window.run(text)
    window.press("Escape")
    assert window.run(text) == ""
    window.run("document.querySelector('#table-3 ~ .scroll .measured .cell').scrollIntoView({ block: 'center' })")
    window.hover("#table-3 ~ .scroll .measured .cell")
    assert "schedule" in window.run(text)


def test_browser_prints_everything(page: Path, window: Browser) -> None:
    window.show(page, dark=True)
    assert window.run("return [...document.querySelectorAll('details')].some((one) => !one.open)")
    window.run("dispatchEvent(new Event('beforeprint'))")
    assert window.run("return [...document.querySelectorAll('details:not(.extra)')].every((one) => one.open)")
    window.run("dispatchEvent(new Event('afterprint'))")
    assert window.command("Page.printToPDF")["data"].startswith("JVBERi0")  # %PDF-
    assert window.problems() == []


def test_browser_shows_hostile_names_as_text(page: Path, window: Browser, tmp_path: Path) -> None:
    path = tmp_path / "tables.html"
    path.write_text(render(results(), format="html"))
    window.problems(), window.requests()
    for shown in (path, page):
        window.show(shown)
        assert window.run("return document.body.textContent.includes('<script>alert(1)')")
        assert window.run("return document.querySelectorAll('script').length") == 2
    assert window.problems() == []
    assert all(url.startswith(("file:", "data:")) for url in window.requests())
