"""k nearest neighbors: against brute force in float64, ties, chunks, and the cache of features."""

import dataclasses
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transfer_cases import CPU, make_checkpoint, make_folder, packaged

from intl_bench.core import files, seals
from intl_bench.core.errors import InputError
from intl_bench.core.identity import digest, identity
from pretrain import backbone as backbones
from pretrain.images import pack_command
from pretrain.images.data import DataConfig, normalization, open_source
from transfer import features, find_task, knn, linear, neighbors
from transfer.neighbors import chunk_shape, knn_predict


def oracle(train, labels, test, k, distance="euclidean", weights="uniform", temperature=0.07):
    """Predict by the definition: one test image at a time, in float64, with Python's stable sort."""
    train, test = np.asarray(train, np.float64), np.asarray(test, np.float64)
    predictions = []
    for x in test:
        if distance == "euclidean":
            order_by = ((train - x) ** 2).sum(1)
        else:
            lengths = np.maximum(np.linalg.norm(train, axis=1), 1e-12) * max(np.linalg.norm(x), 1e-12)
            order_by = -(train @ x) / lengths
        nearest = sorted(range(len(train)), key=lambda i: order_by[i])[:k]
        votes: dict[int, float] = {}
        for i in nearest:
            weight = 1.0
            if weights == "inverse":
                weight = 1 / (np.sqrt(order_by[i]) + 1e-5)
            elif weights == "softmax":
                weight = np.exp(-order_by[i] / temperature)
            votes[int(labels[i])] = votes.get(int(labels[i]), 0.0) + weight
        predictions.append(min(votes, key=lambda label: (-votes[label], label)))
    return predictions


@st.composite
def problems(draw):
    """Draw features of small whole numbers: float32 is exact, and many distances and votes are tied."""
    n, m, width = draw(st.integers(1, 40)), draw(st.integers(1, 12)), draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    high = draw(st.sampled_from([1, 2, 4]))
    train, test = rng.integers(0, high, (n, width)), rng.integers(0, high, (m, width))
    labels = rng.integers(0, draw(st.integers(1, 4)), n)
    return train, labels, test, draw(st.integers(1, n)), draw(st.sampled_from([4, 64, 256, 1 << 20]))


def predict(train, labels, test, k, **options):
    return knn_predict(
        torch.tensor(np.asarray(train), dtype=torch.float32),
        torch.tensor(np.asarray(labels)),
        torch.tensor(np.asarray(test), dtype=torch.float32),
        k=k,
        **options,
    ).tolist()


@settings(max_examples=300)
@given(problems())
def test_equals_brute_force_with_ties_for_every_chunk_size(problem) -> None:
    train, labels, test, k, chunk_bytes = problem
    assert predict(train, labels, test, k, chunk_bytes=chunk_bytes) == oracle(train, labels, test, k)


@pytest.mark.parametrize(
    ("distance", "weights"), [("euclidean", "inverse"), ("cosine", "softmax"), ("cosine", "uniform")]
)
@pytest.mark.parametrize("chunk_bytes", [400, 4000, 1 << 20])
def test_weighted_votes_equal_brute_force(distance: str, weights: str, chunk_bytes: int) -> None:
    rng = np.random.default_rng(1)
    train, test, labels = rng.normal(size=(150, 8)), rng.normal(size=(60, 8)), rng.integers(0, 5, 150)
    train, test = train.astype(np.float32), test.astype(np.float32)
    test[:10] = train[:10]  # distance 0, where the inverse is largest
    options = {"distance": distance, "weights": weights}
    assert predict(train, labels, test, 7, chunk_bytes=chunk_bytes, **options) == oracle(
        train, labels, test, 7, **options
    )


def test_weights_change_the_result() -> None:
    """Two far neighbors outvote a near one if all votes are equal, but not if the distance counts."""
    train, labels, test = [[0.0, 1], [1, 0], [1, 0]], [1, 0, 0], [[0.1, 1.0]]
    assert predict(train, labels, test, 3) == [0]
    assert predict(train, labels, test, 3, weights="inverse") == [1]
    assert predict(train, labels, test, 3, distance="cosine", weights="softmax") == [1]


def test_a_collapsed_backbone_predicts_one_label() -> None:
    """All distances are equal, so the first k training images vote for every chunk size."""
    train, labels = np.full((500, 4), 0.3), np.arange(500) % 10 + 1
    labels[:5] = [3, 2, 2, 3, 9]
    for chunk_bytes in (64, 1000, 1 << 20):
        assert predict(train, labels, train[:7], 5, chunk_bytes=chunk_bytes) == [2] * 7


def test_only_a_tie_for_the_last_neighbor_is_searched_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the first chunk three features have equal distances. A later feature is nearer to 0, but none to 9."""
    rows: list[tuple[int, bool]] = []
    search = neighbors._search

    def watched(train, test, *, exact, **options):
        rows.append((len(test), exact))
        return search(train, test, exact=exact, **options)

    monkeypatch.setattr(neighbors, "_search", watched)
    train, labels = [[2.0], [2.0], [2.0], [1.0], [0.5], [-9.0]], [1, 2, 3, 4, 5, 6]
    assert predict(train, labels, [[0.0]], 1, chunk_bytes=12) == [5]
    assert rows == [(1, False)]
    assert predict(train, labels, [[0.0], [9.0]], 1, chunk_bytes=24) == [5, 1]
    assert rows[1:] == [(2, False), (1, True)]


@given(st.integers(1, 10**6), st.integers(1, 10**7), st.integers(4, 2**33))
def test_no_chunk_is_larger_than_allowed(n_test: int, n_train: int, chunk_bytes: int) -> None:
    rows, columns = chunk_shape(n_test, n_train, chunk_bytes)
    assert 1 <= rows <= n_test
    assert 1 <= columns <= n_train
    assert 4 * rows * columns <= chunk_bytes
    if 4 * n_test * n_train <= chunk_bytes:
        assert (rows, columns) == (n_test, n_train)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 4}, "k=4: only 3"),
        ({"k": 0}, "at least 1"),
        ({"k": 1, "distance": "manhattan"}, "euclidean, cosine"),
        ({"k": 1, "weights": "softmax"}, "uniform, inverse"),
        ({"k": 1, "distance": "cosine", "weights": "inverse"}, "uniform, softmax"),
        ({"k": 1, "temperature": 0.0}, "temperature"),
    ],
)
def test_impossible_settings_are_errors(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        predict([[0.0], [1.0], [2.0]], [0, 1, 2], [[0.5]], **options)


@pytest.mark.parametrize("name", ["knn", "linear", "finetune"])
def test_the_precision_is_part_of_the_identity_unless_it_is_the_default(name: str) -> None:
    task = find_task(name)
    data = DataConfig(kind="imagefolder", root="data")
    usual, half = (task.config(data=data, **options) for options in ({}, {"precision": "bf16"}))
    assert identity(half) == identity(usual) | {"precision": "bf16"} != identity(usual)
    assert task.protocol(half) == task.protocol(usual) | {"precision": "bf16"} != task.protocol(usual)
    with pytest.raises(ValueError, match="precision=fp16: expected fp32 or bf16"):
        task.config(data=data, precision="fp16")


# Digests from before the setting `precision` existed. Existing records have the identity of the default.
@pytest.mark.parametrize(
    ("task", "name", "expected"),
    [
        ("knn", "cifar10", "952ecb136130abca"),
        ("linear", "cifar10", "1c1bb0fd6a97d941"),
        ("linear", "imagenet", "8d44abdd304ce684"),
        ("finetune", "imagenet", "d4f5d445e435646d"),
    ],
)
def test_identities_of_the_default_do_not_change(task: str, name: str, expected: str) -> None:
    """They are those of records before `drop_last`, where an epoch left out its last images."""
    config = packaged(task, name)
    before = {"drop_last": True} if hasattr(config, "drop_last") else {}
    assert digest(identity(dataclasses.replace(config, **before)))[:16] == expected


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def extract(checkpoint, data: DataConfig, split: str = "train", crop: int | None = 16) -> torch.Tensor:
    return features.extract(
        checkpoint,
        open_source(data, split),
        normalization=normalization(data),
        resize=None,
        crop=crop,
        process=CPU,
        workers=0,
    ).features


def rewrite_keeping_times(path: Path) -> None:
    """Change the bytes of a file, but not its name, size or time."""
    status = path.stat()
    path.write_bytes(b"x" * status.st_size)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_features_are_those_of_the_backbone_in_eval_mode(workplace: Path) -> None:
    checkpoint, data = make_checkpoint(), DataConfig(kind="imagefolder", root=str(make_folder(workplace / "data")))
    source = open_source(data, "test")
    model = backbones.build_backbone("resnet10_narrow", stem="cifar").eval()
    model.load_state_dict(checkpoint.backbone)
    mean, std = (torch.tensor(values)[:, None, None] for values in normalization(data))
    with torch.no_grad():
        for index in (0, 5, 11):
            pixels = torch.from_numpy(source.image(index)).permute(2, 0, 1) / 255
            top, left = (pixels.shape[1] - 16) // 2, round((pixels.shape[2] - 16) / 2)
            expected = model(((pixels[:, top : top + 16, left : left + 16] - mean) / std)[None])[0]
            torch.testing.assert_close(extract(checkpoint, data, "test")[index], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet10_narrow", "resnet50"])
def test_folded_norms_do_not_change_the_features(name: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = backbones.build_backbone(name).eval()
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                for tensor, low, high in (
                    (module.running_mean, -0.5, 0.5),
                    (module.running_var, 0.1, 2),
                    (module.weight.data, 0.5, 2),
                    (module.bias.data, -0.5, 0.5),
                ):
                    tensor.uniform_(low, high)
        images = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        expected = model(images)
        features.fold_norms(model)
        found = model(images)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules())
    assert float((found - expected).norm() / expected.norm()) < 1e-5


def test_knn_and_linear_share_cached_features(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = DataConfig(kind="shapes", size=80)
    knn.run(make_checkpoint(), knn.KnnConfig(data=data, workers=0, device="cpu"), 0, folder=workplace)
    written = {path: path.stat().st_mtime_ns for path in features.FOLDER.iterdir()}
    assert "read from the cache" not in capsys.readouterr().err
    probe = linear.LinearConfig(data=data, workers=0, device="cpu", epochs=2, batch_size=20)
    linear.run(make_checkpoint(), probe, 0, folder=workplace)
    assert {path: path.stat().st_mtime_ns for path in features.FOLDER.iterdir()} == written
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(" cache")[0] for line in lines] == [f"features: {n} images, read from the" for n in (80, 20)]


def test_the_second_call_reads_the_cache(workplace: Path) -> None:
    checkpoint, data = make_checkpoint(), DataConfig(kind="imagefolder", root=str(make_folder(workplace / "data")))
    first = extract(checkpoint, data)
    (path,) = features.FOLDER.glob("*.npy")
    assert torch.equal(extract(checkpoint, data), first)
    assert list(features.FOLDER.glob("*.npy")) == [path]
    extract(make_checkpoint(seed=1), data)
    extract(checkpoint, data, crop=12)
    extract(checkpoint, dataclasses.replace(data, mean=(0.0, 0.0, 0.0)))
    for image in (workplace / "data").rglob("*.png"):
        rewrite_keeping_times(image)
    with pytest.raises(InputError, match="not a readable image"):
        extract(checkpoint, data)
    assert len(list(features.FOLDER.glob("*.npy"))) == 4


def test_features_in_bf16_are_cached_separately(workplace: Path) -> None:
    found = {}
    for precision in ("fp32", "bf16", "fp32", "bf16"):
        config = knn.KnnConfig(data=DataConfig(kind="shapes", size=80), workers=0, precision=precision)
        train, _ = features.extract_both(make_checkpoint(), config, CPU)
        assert torch.equal(found.setdefault(precision, train.features), train.features)
    assert len(list(features.FOLDER.glob("*.npy"))) == 4
    usual, half = found.values()
    assert half.dtype == torch.float32
    assert 1e-4 < float((half - usual).norm() / usual.norm()) < 1e-2


def test_a_changed_image_is_noticed(workplace: Path) -> None:
    checkpoint, data = make_checkpoint(), DataConfig(kind="imagefolder", root=str(make_folder(workplace / "data")))
    extract(checkpoint, data)
    path = next((workplace / "data" / "train").rglob("*.png"))
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(InputError, match=path.name):
        extract(checkpoint, data)


def test_changed_pixels_of_an_archive_are_noticed(workplace: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        f"{split}_{kind}": rng.integers(0, 255, (6, 16, 16, 3), np.uint8) if kind == "x" else np.arange(6) % 2
        for split in ("train", "test")
        for kind in "xy"
    }
    data = DataConfig(kind="npz", root="data.npz")
    np.savez("data.npz", **arrays)
    before = extract(make_checkpoint(), data)
    arrays["train_x"][3] ^= 255
    np.savez("data.npz", **arrays)
    after = extract(make_checkpoint(), data)
    assert [i for i in range(6) if not torch.equal(before[i], after[i])] == [3]


def test_a_changed_pack_is_noticed(workplace: Path) -> None:
    found = []
    for number in range(2):  # in the second pack the first and the last image are swapped
        folder = make_folder(workplace / str(number))
        if number:
            first, *_, last = sorted((folder / "train").rglob("*.png"))
            content = first.read_bytes()
            first.write_bytes(last.read_bytes())
            last.write_bytes(content)
        pack_command.write(pack_command.prepare(folder, workplace / "pack"))
        found.append(extract(make_checkpoint(), DataConfig(kind="imagefolder", root="pack")))
        shutil.rmtree("pack")
    same = [torch.equal(*pair) for pair in zip(*found, strict=True)]
    assert same == [False] + [True] * (len(same) - 2) + [False]


@pytest.mark.parametrize("damage", ["flipped bit", "truncated", "no digest"])
def test_a_damaged_cache_file_is_replaced(workplace: Path, damage: str) -> None:
    checkpoint, data = make_checkpoint(), DataConfig(kind="shapes", size=40)
    first = extract(checkpoint, data, crop=None)
    (path,) = features.FOLDER.glob("*.npy")
    content = bytearray(path.read_bytes())
    content[-3] ^= 64
    path.write_bytes(content[:-20] if damage == "truncated" else content)
    if damage == "no digest":
        path.write_bytes(content[: -seals.LENGTH])
    assert torch.equal(extract(checkpoint, data, crop=None), first)
    files.verify(path)
    written = path.stat().st_mtime_ns
    assert torch.equal(extract(checkpoint, data, crop=None), first)
    assert path.stat().st_mtime_ns == written


def test_errors_name_weights_that_do_not_match() -> None:
    checkpoint = make_checkpoint()
    lacking = {key: value for key, value in checkpoint.backbone.items() if key != "layer1.0.conv1.weight"}
    with pytest.raises(InputError, match=r"layer1\.0\.conv1\.weight is missing, expected \(32, 32, 3, 3\)"):
        features.build_backbone_of(dataclasses.replace(checkpoint, backbone=lacking))
    with pytest.raises(InputError, match="extra is not part of it"):
        features.build_backbone_of(
            dataclasses.replace(checkpoint, backbone={**checkpoint.backbone, "extra": torch.zeros(1)})
        )
    with pytest.raises(InputError, match=r"conv1\.weight is \(32, 3, 7, 7\), expected \(32, 3, 3, 3\)"):
        features.build_backbone_of(dataclasses.replace(checkpoint, backbone=make_checkpoint(stem="imagenet").backbone))


def test_weights_that_are_not_finite_are_errors(workplace: Path) -> None:
    checkpoint = make_checkpoint()
    broken = {**checkpoint.backbone, "conv1.weight": checkpoint.backbone["conv1.weight"] * torch.nan}
    with pytest.raises(InputError, match="not finite"):
        extract(dataclasses.replace(checkpoint, backbone=broken), DataConfig(kind="shapes", size=40), crop=None)
    assert not list(workplace.rglob("*.npy"))


def test_random_init_is_a_function_of_the_seed() -> None:
    checkpoint = make_checkpoint()
    before = torch.random.get_rng_state()
    one, again, other = (features.random_init(checkpoint, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert (one.method, one.epoch, one.seed) == ("Random init", 0, 1)
    assert one.weights_sha256 == again.weights_sha256
    assert len({one.weights_sha256, other.weights_sha256, checkpoint.weights_sha256}) == 3
    assert all(torch.equal(value, again.backbone[key]) for key, value in one.backbone.items())
    assert not torch.equal(one.backbone["conv1.weight"], other.backbone["conv1.weight"])
    features.build_backbone_of(one)


@pytest.mark.parametrize("name", ["default", "cifar10", "cifar100", "imagefolder", "solo_learn", "dino"])
def test_packaged_configs_load(name: str) -> None:
    config = packaged("knn", name)
    assert knn.protocol(config)["k"] == (20 if name in ("solo_learn", "dino") else 5)


def test_run_on_photos(test_data: Path, workplace: Path) -> None:
    data = DataConfig(kind="npz", root=str(test_data / "cifar10_subset.npz"))
    with np.load(data.root) as archive:
        small = {key: archive[key][: 600 if "train" in key else 200] for key in archive.files}
    np.savez("small.npz", **small)
    config = knn.KnnConfig(data=dataclasses.replace(data, root="small.npz"), workers=0, device="cpu")
    outcome = knn.run(make_checkpoint(), config, 0, folder=workplace / "work")
    train, test = (extract(make_checkpoint(), config.data, split, crop=None) for split in ("train", "test"))
    expected = oracle(train.numpy(), small["train_y"], test.numpy(), 5)
    # float32 may change the order of two neighbors whose distances are nearly equal.
    assert outcome.metrics["knn5"] == pytest.approx(100 * np.mean(expected == small["test_y"]), abs=0.5)
    assert outcome.details == {"train_images": 600, "test_images": 200, "correct": round(2 * outcome.metrics["knn5"])}
    with pytest.raises(InputError, match="k=601"):
        knn.run(make_checkpoint(), dataclasses.replace(config, k=601), 0, folder=workplace / "work")
