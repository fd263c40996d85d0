"""Figure 2(a) with few steps: which powers keep both dimensions of the outputs."""

import json
from pathlib import Path

import pytest
import torch

from intl_bench.ablations import toy


def test_whitening_keeps_two_dimensions_and_the_identity_does_not() -> None:
    collapsed, kept = (toy.train(power, seed=0, steps=200).inverse_condition for power in (0.0, 0.5))
    assert collapsed < 0.02
    assert kept > 0.1


def test_a_run_is_a_function_of_its_seed() -> None:
    first, again, other = (toy.train(0.45, seed, steps=5) for seed in (1, 1, 2))
    assert torch.equal(first.outputs, again.outputs)
    assert not torch.equal(first.outputs, other.outputs)


def test_inverse_condition_is_of_the_outputs() -> None:
    outcome = toy.train(0.6, seed=0, steps=5)
    values = torch.linalg.eigvalsh(torch.cov(outcome.outputs.T))
    assert outcome.inverse_condition == pytest.approx(float(values[0] / values[1]), rel=1e-9)


def test_panel_and_numbers_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toy, "POWERS", (0.0, 0.5))
    monkeypatch.setattr(toy, "SEEDS", (0, 1))
    monkeypatch.setattr(toy, "train", lambda power, seed: _train(power, seed, steps=3))
    toy.run(tmp_path / "toy")
    values = json.loads((tmp_path / "toy" / "toy.json").read_text())["inverse_condition"]
    assert values["0.5"] == [_train(0.5, seed, steps=3).inverse_condition for seed in (0, 1)]
    assert (tmp_path / "toy" / "toy.png").read_bytes().startswith(b"\x89PNG")


_train = toy.train
