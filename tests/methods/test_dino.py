"""Test DINO: the equations of the paper, center, schedules, several processes, exact resumption, and errors."""

import itertools
import math
import warnings

import pytest
import torch
from method_cases import TinyBackbone, assert_resumes, needs_lightly, setup, views
from method_worker import assert_processes_agree, assert_trains_as, like
from torch import nn
from torch.nn import functional as F

from pretrain.methods import dino
from pretrain.projector import ProjectorConfig

pytestmark = needs_lightly

# Temperatures that float32 represents exactly, because lightly rounds that of the teacher to float32.
SMALL = {
    "outputs": 12,
    "warmup_teacher_temperature": 1 / 32,
    "teacher_temperature": 1 / 16,
    "warmup_epochs": 3,
    "base_momentum": 0.75,
}


def method(n: int = 2, *, seed: int = 1, **settings: object) -> dino.DINO:
    """Build the method with two steps per epoch."""
    torch.manual_seed(seed)
    return dino.build(dino.Config(**(SMALL | settings)), setup(views=n, steps_per_epoch=2)).double()


# The paper's equations


@pytest.mark.parametrize(
    ("settings", "sizes"),
    [
        ({}, (8, 8)),
        ({"batch_norm": True, "student_temperature": 0.3, "center_momentum": 0.5}, (8, 8, 6, 6)),
        ({"warmup_epochs": 0, "freeze_last_layer_epochs": 0}, (8, 8, 6)),
        ({"warmup_epochs": 2, "freeze_last_layer_epochs": 2}, (8, 8)),
    ],
)
def test_training_goes_as_in_the_paper(settings: dict, sizes: tuple[int, ...]) -> None:
    """In four epochs of two steps, the last layer is frozen, then trained; the temperature rises, then is constant."""
    run = method(len(sizes), **settings)
    config, step = run.config, itertools.count()
    temperatures = {0: [1 / 16] * 4, 2: [1 / 32, *[1 / 16] * 3], 3: [1 / 32, 3 / 64, 1 / 16, 1 / 16]}
    center = torch.zeros(12, dtype=torch.float64)

    def head() -> list[nn.Module]:
        layers: list[nn.Module] = []
        for width in (24, 32):
            norm = [nn.BatchNorm1d(32)] if config.batch_norm else []
            layers += [nn.Linear(width, 32, bias=not config.batch_norm), *norm, nn.GELU()]
        return [*layers, nn.Linear(32, 16)]

    def last(layer: nn.Module) -> nn.Linear:
        assert torch.equal(layer.weight_g, torch.ones_like(layer.weight_g))
        twin = nn.Linear(16, 12, bias=False).double().requires_grad_(layer.weight_v.requires_grad)
        twin.weight.data.copy_(layer.weight_v)
        return twin

    student = like(run.backbone, *TinyBackbone()), like(run.projector, *head()), last(run.last_layer)
    backbone, teachers = run.momentum_encoder
    teacher = like(backbone, *TinyBackbone()), like(teachers.layers, *head()), last(teachers.last_layer)

    def outputs(network: tuple[nn.Module, ...], view: torch.Tensor, train_last: bool = True) -> torch.Tensor:
        weight = network[2].weight
        weight = weight if train_last else weight.detach() + 0 * weight
        z = network[1](network[0](view))
        return (z / z.norm(dim=1, keepdim=True)) @ (weight / weight.norm(dim=1, keepdim=True)).T

    def loss(batch: list[torch.Tensor]) -> torch.Tensor:
        nonlocal center
        epoch = next(step) // 2
        with torch.no_grad():
            taught = [outputs(teacher, view) for view in batch[:2]]
        learned = [outputs(student, view, epoch >= config.freeze_last_layer_epochs) for view in batch]
        terms = []
        for t, s in itertools.product(range(2), range(len(batch))):
            if t != s:
                p = torch.exp((taught[t] - center) / temperatures[config.warmup_epochs][epoch])
                q = torch.exp(learned[s] / config.student_temperature)
                p, q = p / p.sum(dim=1, keepdim=True), q / q.sum(dim=1, keepdim=True)
                terms.append(-(p * q.log()).sum(dim=1).mean())
        mean = torch.cat(taught).mean(dim=0)
        center = config.center_momentum * center + (1 - config.center_momentum) * mean
        return torch.stack(terms).mean()

    def after_step(step: int) -> None:
        m = 1 - (1 - 0.75) * (math.cos(math.pi * (step + 1) / 8) + 1) / 2
        for old, new in zip(nn.ModuleList(teacher).parameters(), nn.ModuleList(student).parameters(), strict=True):
            old.data = m * old.data + (1 - m) * new.data

    assert_trains_as(run, student, loss, after_step=after_step, sizes=sizes, steps=8)
    torch.testing.assert_close(run.distillation.center.flatten(), center, rtol=1e-9, atol=1e-12)
    ours = [p for p in run.momentum_encoder.parameters() if p.shape != (12, 1)]
    for found, expected in zip(ours, nn.ModuleList(teacher).parameters(), strict=True):
        torch.testing.assert_close(found.data, expected.data, rtol=1e-9, atol=1e-12)


def test_temperature_of_the_teacher() -> None:
    config = dino.Config(warmup_teacher_temperature=0.04, teacher_temperature=0.07, warmup_epochs=31)
    found = [dino.teacher_temperature(epoch, config) for epoch in (0, 1, 29, 30, 31, 800)]
    assert found == pytest.approx([0.04, 0.041, 0.069, 0.07, 0.07, 0.07])
    assert dino.teacher_temperature(0, dino.Config(teacher_temperature=0.07)) == 0.07


def test_frozen_last_layer_gives_the_same_outputs_under_weight_decay() -> None:
    run = method(freeze_last_layer_epochs=1)
    optimizer = torch.optim.SGD([p for p in run.parameters() if p.requires_grad], lr=0.5, weight_decay=0.1)
    z = views()[0][:, 0, 0, :1].expand(-1, 16)
    before = run.last_layer(z).detach()
    for run.step in range(3):
        optimizer.zero_grad()
        run(views(run.step))["distillation"].backward()
        optimizer.step()
        moved = (run.last_layer(z) - before).norm() / before.norm()
        assert moved < 1e-12 if run.step < 2 else moved > 1e-3


def test_half_precision_stops_at_the_loss() -> None:
    run = method().float()
    taught, learned = [], []
    run.last_layer.register_forward_hook(lambda module, inputs, output: learned.append(output.detach()))
    run.momentum_encoder.register_forward_hook(lambda module, inputs, output: taught.append(output.detach()))
    with torch.autocast("cpu", torch.bfloat16):
        loss = run([view.float() for view in views()])["distillation"]
    assert loss.dtype == run.distillation.center.dtype == torch.float32
    assert learned[0].dtype == taught[0].dtype == run.embedding.dtype == torch.bfloat16
    p = [F.softmax(output.double() * 32, dim=1) for output in taught]
    q = [F.log_softmax(output.double() / 0.1, dim=1) for output in learned]
    expected = -((p[0] * q[1]).sum(dim=1).mean() + (p[1] * q[0]).sum(dim=1).mean()) / 2
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    mean = torch.cat([output.double() for output in taught]).mean(dim=0)
    torch.testing.assert_close(run.distillation.center.flatten(), (0.1 * mean).float(), rtol=1e-5, atol=1e-8)


def test_prints_no_warning_about_the_weight_norm_of_lightly() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        method()


# Invariances of the loss


def test_a_constant_in_the_teacher_is_absorbed_by_the_center() -> None:
    """If the center has the constant too, the loss is unchanged at once; otherwise as the moving average adapts."""
    plain, shifted = method(), method()
    constant = torch.linspace(-3, 3, 12, dtype=torch.float64)
    shifted.momentum_encoder.register_forward_hook(lambda module, inputs, output: output + constant)
    shifted.distillation.center += constant
    for step in range(3):
        a, b = (run(views(step))["distillation"].item() for run in (plain, shifted))
        assert b == pytest.approx(a, rel=1e-10)
    shifted.distillation.center -= constant
    assert shifted(views())["distillation"].item() != pytest.approx(plain(views())["distillation"].item(), rel=1e-2)
    for _ in range(9):
        plain(views()), shifted(views())
    gap = (shifted.distillation.center - plain.distillation.center).flatten()
    torch.testing.assert_close(gap, (1 - 0.9**10) * constant, rtol=1e-9, atol=1e-12)


def test_order_of_images_and_of_the_teacher_s_views_does_not_matter() -> None:
    loss = method(3)(views(n=3))["distillation"].item()
    order = torch.randperm(32, generator=torch.Generator().manual_seed(0))
    first, second, third = (view[order] for view in views(n=3))
    assert method(3)([second, first, third])["distillation"].item() == pytest.approx(loss, rel=1e-11)
    assert method(3)([third, second, first])["distillation"].item() != pytest.approx(loss, rel=1e-6)


def test_teacher_starts_as_the_student() -> None:
    run = method()
    images = views()[0]
    learned = run.last_layer(F.normalize(run.projector(run.backbone(images)), dim=1))
    torch.testing.assert_close(run.momentum_encoder(images), learned, rtol=1e-12, atol=0)


def test_no_gradient_reaches_the_teacher() -> None:
    run = method()
    run.step = 2
    run(views())["distillation"].backward()
    assert not any(p.requires_grad for p in run.momentum_encoder.parameters())
    trained = [p for p in run.parameters() if p.requires_grad]
    assert all(p.grad is not None and p.grad.norm() > 0 for p in trained)


# Resumption and two processes


def test_resumes_exactly() -> None:
    assert_resumes(method, part="distillation.center")


@pytest.mark.parametrize(("batch_norm", "frozen", "sizes"), [(True, 1, (8, 8, 6)), (False, 0, (8, 8))])
def test_processes_together_do_what_one_does(batch_norm: bool, frozen: int, sizes: tuple[int, ...]) -> None:
    """Each step is an epoch."""
    settings = SMALL | {"batch_norm": batch_norm, "freeze_last_layer_epochs": frozen}
    alone = assert_processes_agree("dino", settings, sizes=sizes, steps_per_epoch=1)
    moves = [float(alone[f"step{step}/gradient/last_layer.weight_v"].norm()) > 0 for step in range(2)]
    assert moves == [frozen < 1, True]
    assert float(alone["state/distillation.center"].norm()) > 0


# Failures


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"outputs": 1}, "outputs=1: expected at least 2"),
        ({"student_temperature": 0}, "student_temperature=0: expected more than 0"),
        ({"teacher_temperature": -1}, "teacher_temperature=-1: expected more than 0"),
        ({"warmup_teacher_temperature": 0}, "warmup_teacher_temperature=0: expected more than 0"),
        ({"warmup_epochs": -1}, "warmup_epochs=-1: expected at least 0"),
        ({"center_momentum": 1.5}, r"center_momentum=1\.5: expected at most 1"),
        ({"base_momentum": -0.1}, r"base_momentum=-0\.1: expected at least 0"),
        ({"freeze_last_layer_epochs": -1}, "freeze_last_layer_epochs=-1: expected at least 0"),
    ],
)
def test_bad_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dino.Config(**(SMALL | settings))


def test_a_setup_that_does_not_suit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"batch_size=1: .* at least 2"):
        dino.build(dino.Config(), setup(batch_size=1))
    with pytest.raises(ValueError, match=r"projector\.layers=2: expected 3"):
        dino.build(dino.Config(), setup(projector=ProjectorConfig(layers=2)))
