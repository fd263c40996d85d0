"""Test every method as a user runs it on real images: training, exact resumption, scores, cost plan and spectra.

Also test what is common to all methods: recipes, names, checkpoints of earlier versions, and errors in one line.
"""

import copy
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from authors import noise
from method_cases import marked, method_class, needs_lightly
from stopped_run import stop_after
from tiny_runs import OVERRIDES, TINY, tiny, train_build
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from intl_bench import cli, published
from intl_bench.core import config as configs
from intl_bench.records import RecordStore
from intl_bench.spectra import measure, values
from pretrain import methods, states, train
from pretrain.dry_run import plan, text
from pretrain.methods._lightly import lightly
from pretrain.methods._shared import move_average
from transfer import convert
from transfer.detection.annotations import generated

COCO = [
    *("iterations=1", "milestones=[]", "warmup_iterations=1", "batch_size=1", "lr=0.01", "precise_bn=1"),
    *("min_sizes=[48]", "max_size=64", "test_min_size=48", "test_max_size=64", "workers=0", "device=cpu"),
    *("model.anchor_sizes=[16,32]", "model.mask_channels=8", "model.rpn_batch=16", "model.roi_batch=8"),
    *("model.pool_size=4", "model.pre_nms_train=50", "model.post_nms_train=10", "model.pre_nms_test=30"),
    *("model.post_nms_test=4", "data.root=images", "data.name=figures", "--engine", "builtin"),
]
NAMES = marked(methods.names())


@pytest.fixture
def sample(test_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write 192 training and 64 test images, and a few generated pictures for detection."""
    monkeypatch.chdir(tmp_path)
    with np.load(test_data / "cifar10_subset.npz") as whole:
        parts = {key: whole[key][: 192 if key.startswith("train") else 64] for key in whole}
    np.savez("sample.npz", **parts)
    generated.write(Path("images"), train=2, test=2)


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("sample")
def test_trains_resumes_and_is_scored(name: str) -> None:
    path = train.run(tiny(name))
    whole = states.load(path)[0]
    first, *_, last = (Path(path.parent / "metrics.jsonl").read_text().splitlines()[number] for number in (0, 5, 11))
    assert first != last
    for steps in (4, 8):
        broken = tiny(name, f"name=broken{steps}")
        stop_after(broken, steps)
        resumed = states.load(train.run(broken))[0]
        for part in ("method", "optimizer"):
            a, b = (torch.utils._pytree.tree_leaves(state[part]) for state in (whole, resumed))
            assert len(a) == len(b)
            assert all(torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in zip(a, b, strict=True))

    assert cli.main(["knn", str(path)]) == 0
    assert cli.main(["linear", str(path), "epochs=2"]) == 0
    assert cli.main(["coco", str(path), *COCO]) == 0
    records = RecordStore(Path("results/records")).load()
    assert sorted(record.task for record in records) == ["coco", "knn", "linear"]
    display = methods.find(name).DISPLAY
    assert {record.method for record in records} == {display}
    stamp = records[-1].protocol
    assert stamp["pretrain_momentum_target"] is (train_build(tiny(name)).method.momentum_encoder is not None)
    assert {f"pretrain_method_{key}" for key, value in whole["config"]["method"].items() if value is not None} <= {
        *stamp,
        "pretrain_method_name",
        "pretrain_method_momentum_target",
    }
    metrics, details = values.record_values(measure.measure_checkpoint(path))
    assert metrics["features/rank"] > 0
    assert ("transformed" in details["spectra"]) is (method_class(name).transform is not methods.Method.transform)


@pytest.mark.parametrize("name", NAMES)
def test_monitored_features_and_embedding_are_of_the_same_view(name: str) -> None:
    training = train_build(tiny(name, "base_lr=0"))
    for step in range(2):
        views = [noise(f"{step}/{i}", 32, 3, view.size, view.size) for i, view in enumerate(training.recipe.views)]
        training.optimize(views, torch.zeros(32, dtype=torch.int64) if training.labeled else None)
        torch.testing.assert_close(training.method.projector(training.features), training.method.embedding)


@pytest.mark.parametrize("name", NAMES)
def test_is_planned(name: str) -> None:
    made = plan.make_plan(tiny(name), processes=2)
    built = train_build(tiny(name))
    assert made.parameters["trained"] == sum(p.numel() for p in built.method.parameters() if p.requires_grad)
    assert made.flops > made.forward_flops > 0
    assert made.peak > made.memory["weights"] > 0
    assert "a training step" in text.format_plan(made)


def test_names_are_those_of_the_tables() -> None:
    """A measured row is printed beside the published row of the same name."""
    printed = {row.method.split(" (")[0] for n in (1, 2, 3) for row in published.load(f"table{n}").rows}
    displays = [methods.find(name).DISPLAY for name in methods.names()]
    assert printed - {*displays} == {"Scratch", "MoCo V2"}  # the latter is the spelling of Table 2
    plain = ["".join(filter(str.isalnum, display)).lower() for display in (*displays, *(printed - {*displays}))]
    plain.remove("mocov2")
    assert len(plain) == len({*plain}), "two spellings of one name"


class HostUse(TorchDispatchMode):
    """A mode that notes operations for which the host waits, and operations that a replay does not repeat."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = operation.overloadpacket.__name__
        masked = name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1])
        if masked or name in ("_local_scalar_dense", "nonzero", "_linalg_eigh", "randperm"):
            self.found.add(name)
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", NAMES)
def test_a_step_uses_the_host_unless_it_can_be_recorded(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    training = train_build(tiny(name))
    method, used = training.method, []
    monkeypatch.setattr(type(method), "step", property(lambda self: used.append("step") or 0), raising=False)
    tensors = [*method.named_parameters(), *method.named_buffers()]
    places = {key: tensor.data_ptr() for key, tensor in tensors}
    views = [noise(f"{i}", 32, 3, view.size, view.size) for i, view in enumerate(training.recipe.views)]
    with HostUse() as host:
        terms = method(views, torch.zeros(32, dtype=torch.int64)) if training.labeled else method(views)
        torch.stack(list(terms.values())).sum().backward()
    used += [*host.found, *(key for key, tensor in tensors if tensor.data_ptr() != places[key])]
    assert method.capturable is not bool(used), used


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.996, 1.0])
@pytest.mark.parametrize("lightlys", [False, pytest.param(True, marks=needs_lightly)])
def test_moving_average_is_its_formula_and_lightlys(momentum: float, dtype: torch.dtype, lightlys: bool) -> None:
    """The update is in place. The tolerance is the rounding error."""
    average, online = (
        nn.ParameterList(noise(f"{of}/{n}", n, 3).to(dtype) for n in (1, 20)).requires_grad_(False)
        for of in ("target", "online")
    )
    expected, places = copy.deepcopy(average), [p.data_ptr() for p in average]
    if lightlys:
        lightly("models.utils").update_momentum(online, expected, momentum)
    else:
        for t, o in zip(expected, online, strict=True):
            t.copy_(momentum * t.double() + (1 - momentum) * o.double())
    move_average(average, [online], momentum)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(list(average), list(expected), rtol=4 * eps, atol=eps)
    assert [p.data_ptr() for p in average] == places


@pytest.mark.slow
@needs_lightly
@pytest.mark.data
@pytest.mark.usefixtures("sample")
def test_checkpoints_with_the_earlier_name_of_the_momentum_encoder() -> None:
    """Earlier versions wrote `target.` instead of `momentum_encoder.`. Such a checkpoint gives the same bits."""
    for name in ("now", "before"):
        stop_after(tiny("mocov2", f"name={name}"), 4)
    paths = {name: Path(f"runs/pretrain/{name}/seed0/checkpoint.pt") for name in ("now", "before")}
    state, _ = states.load(paths["before"])
    weights = {key.replace("momentum_encoder.", "target."): value for key, value in state["method"].items()}
    assert "target.0.conv1.weight" in weights
    states.save(paths["before"], {**state, "format": 2, "method": weights})
    assert "target.0.conv1.weight" in torch.load(paths["before"])["method"]

    backbones = [convert.read(path, "intl-bench:momentum") for path in paths.values()]
    assert backbones[0].weights_sha256 == backbones[1].weights_sha256
    for path in paths.values():
        assert cli.main(["knn", str(path), "--from", "intl-bench:momentum"]) == 0
    scores = [record.metrics for record in RecordStore(Path("results/records")).load()]
    assert scores
    assert all(score == scores[0] for score in scores)
    spectra = [values.record_values(measure.measure_checkpoint(path))[0] for path in paths.values()]
    assert spectra[0] == spectra[1]
    for name, path in paths.items():
        train.run(tiny("mocov2", f"name=init_{name}", "epochs=1", f"init={path}"))
    ended = [states.load(Path(f"runs/pretrain/init_{name}/seed0/checkpoint.pt"))[0] for name in paths]
    assert ended[0]["inputs"]["initial_weights"] == ended[1]["inputs"]["initial_weights"]
    # The digest in the records of earlier versions had the earlier names.
    digest = hashlib.sha256()
    for key, tensor in sorted(weights.items()):
        if not key.endswith("num_batches_tracked"):
            digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode() + tensor.numpy().tobytes())
    assert ended[0]["inputs"]["initial_weights"] == digest.hexdigest()

    ended += [states.load(train.run(tiny("mocov2", f"name={name}")))[0] for name in paths]
    for one, other in (ended[:2], ended[2:]):
        assert all(torch.equal(value, other["method"][key]) for key, value in one["method"].items())
        assert one["method"].keys() == other["method"].keys()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["spectral", "method.axis=batch", "projector.out=64"], "singular"),
        (["spectral", "method.axis=batch", "projector.out=24", "projector.hidden=16"], "projector.hidden=16"),
        (["spectral", "projector.out=64", "projector.hidden=16"], "projector.hidden=16"),
        (["wmse", "projector.hidden=8"], "projector.hidden=8"),
        (["intl", "projector.out=1"], "projector.out=1: too few features to whiten; expected at least 2"),
        (["intl", "method.axis=batch", "projector.out=64"], "64 features over 32 samples is singular"),
        (["iternorm", "method.axis=batch", "projector.out=64"], "64 features over 32 samples is singular"),
        (["iternorm", "method.iterations=0"], "iterations=0"),
        (["intl", "method.iterations=0"], "iterations=0"),
        (["shuffled_dbn", "method.groups=7"], "7"),
        (["cw_rgp", "method.groups=7"], "7"),
        (["mocov2", "method.queue=256"], "256"),
        (["swav", "method.queue=256"], "256"),
        (["mocov2", "method.queue=80"], "80"),
        (["simclr", "batch_size=1"], "batch_size=1"),
        (["barlow_twins", "batch_size=1"], "batch_size=1"),
        (["byol", "views=[{size: 32}]"], "compares at least two"),
        (["byol", "method.tau=1"], "byol has no setting 'tau'"),
    ],
)
@pytest.mark.usefixtures("sample")
@pytest.mark.data
def test_bad_input_is_one_line(words: Sequence[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    name, *changes = words
    assert cli.main(["pretrain", f"cifar10_r18_{name}", *TINY, *OVERRIDES.get(name, []), *changes]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("intl-bench: ")
    assert message in line
    assert not Path("runs").exists()


class Absent:
    """An import finder for which lightly is not installed."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == "lightly":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_without_lightly_one_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for module in [name for name in sys.modules if name.split(".")[0] == "lightly"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(sys, "meta_path", [Absent(), *sys.meta_path])
    for name in ("simclr", "barlow_twins"):
        assert cli.main(["pretrain", "demo", f"method={{name: {name}}}", "data.size=200", "batch_size=32"]) == 2
        assert "pip install lightly" in capsys.readouterr().err


def test_every_method_has_its_recipes() -> None:
    """A method with a recipe for one of the four data sets has recipes for all."""
    sets = ("cifar10_r18", "cifar100_r18", "imagenet100_r18", "imagenet_r50")
    found = {
        name: [data for data in sets if (configs.CONFIGS / "pretrain" / f"{data}_{name}.yaml").is_file()]
        for name in methods.names()
    }
    assert all(data in ([], [*sets]) for data in found.values()), found
    assert found["intl"]
