"""The claim of equal eigenvalues without a network: the effect of each loss on a small ill-conditioned embedding."""

from pathlib import Path

import pytest
import torch

from intl_bench.ablations import free_embedding
from intl_bench.ablations.free_embedding import Outcome, Setting, measure, optimize, start
from pretrain.spectrum import condition_number, eigenvalues

SMALL = Setting(name="small", dimension=8)


@pytest.fixture(scope="module")
def outcomes() -> dict[str, Outcome]:
    pytest.importorskip("lightly")
    return {name: group[0] for (_, _, name), group in measure([SMALL], [0], steps=150).items()}


def test_the_start_has_its_condition_number_and_mean() -> None:
    values = eigenvalues(start(SMALL, seed=0))
    assert condition_number(values) == pytest.approx(1e4, rel=1e-6)
    assert float(values.mean()) == pytest.approx(0.1, rel=1e-6)


@pytest.mark.parametrize("name", ["INTL, T = 1", "INTL, T = 4"])
def test_intl_makes_all_eigenvalues_equal(outcomes: dict[str, Outcome], name: str) -> None:
    outcome = outcomes[name]
    assert condition_number(outcome.before) > 1000
    assert condition_number(outcome.after) < 1.01


@pytest.mark.parametrize("name", ["IterNorm alone, T = 4", "hard whitening", "no whitening"])
def test_alignment_alone_leaves_an_ill_conditioned_spectrum(outcomes: dict[str, Outcome], name: str) -> None:
    assert outcomes[name].last_loss < 1e-3 * outcomes[name].first_loss
    assert condition_number(outcomes[name].after) > 100


def test_hard_whitening_compares_polar_factors() -> None:
    """Z = U S V^T whitened with the inverse root of its covariance is U V^T times a factor.

    The cosine does not depend on this factor.
    """
    pytest.importorskip("lightly")
    views = [start(SMALL, seed) for seed in (0, 1)]
    factors = [torch.linalg.svd(z - z.mean(dim=0), full_matrices=False) for z in views]
    polar = [factor.U @ factor.Vh for factor in factors]
    cosine = (polar[0] * polar[1]).sum(dim=1) / (polar[0].norm(dim=1) * polar[1].norm(dim=1))
    loss = free_embedding.losses()["hard whitening"](*views)
    assert float(loss) == pytest.approx(float(2 - 2 * cosine.mean()), rel=1e-6)


def test_intl_does_not_fix_the_scale_but_soft_whitening_does(outcomes: dict[str, Outcome]) -> None:
    """With INTL a start of 100 times the variance ends at 100 times the variance. VICReg raises a small one to 1."""
    wide = Setting(name="wide", dimension=8, mean=10.0)
    end = optimize(free_embedding.losses()["INTL, T = 4"], wide, 0, steps=150).after
    small = outcomes["INTL, T = 4"].after
    assert float(end.mean() / small.mean()) == pytest.approx(100, rel=0.05)
    assert float(outcomes["VICReg"].after.mean()) > 0.99 > 9 * float(outcomes["VICReg"].before.mean())
    assert condition_number(outcomes["VICReg"].correlation) < 1.1
    assert condition_number(outcomes["Barlow Twins"].correlation) < 1.1


def test_a_run_is_a_function_of_its_seed() -> None:
    pytest.importorskip("lightly")
    loss = free_embedding.losses()["INTL, T = 1"]
    first, again, other = (optimize(loss, SMALL, seed, steps=5).after for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_table_and_plot_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lightly")
    few = measure([SMALL], steps=3)
    monkeypatch.setattr(free_embedding, "measure", lambda: few)
    free_embedding.run(tmp_path)
    text = (tmp_path / "free_embedding.md").read_text()
    assert all(name in text for _, _, name in few)
    assert (tmp_path / "free_embedding.png").read_bytes().startswith(b"\x89PNG")
