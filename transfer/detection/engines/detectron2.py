"""The engine Detectron2: its model, trainer and data loader. Only files with this name import Detectron2.

The inputs and outputs are those of the built-in engine, so one evaluator scores both. Detectron2 draws the order, sizes
and flips of images and the regions from global generators. So a result is reproducible only with the same numbers of
workers and processes and without an interruption. A resumed run keeps the weights, the optimizer and the schedule, but
Detectron2 does not keep its position in the data. A resumed run therefore has new random streams, seeded with (seed,
iteration); with the old ones it would see the first images again.
"""

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from intl_bench.core import distributed, files
from intl_bench.core.errors import DivergedError, InputError, ResourceError
from intl_bench.core.progress import Progress
from intl_bench.core.seeding import torch_seed
from intl_bench.core.signals import StopRequest
from pretrain import states
from pretrain.finite import Features
from transfer.detection.annotations.objects import Annotations
from transfer.detection.config import DetectionConfig
from transfer.detection.engines import detectron2_settings as names
from transfer.detection.engines import saved
from transfer.detection.engines.log import RunLog
from transfer.detection.modeling.resnet import load_backbone, require_matching_weights

try:
    from detectron2.config import CfgNode, get_cfg
    from detectron2.data import build_detection_test_loader, build_detection_train_loader
    from detectron2.data.samplers import TrainingSampler
    from detectron2.engine import HookBase, SimpleTrainer, hooks
    from detectron2.evaluation.coco_evaluation import instances_to_coco_json
    from detectron2.layers import ShapeSpec, get_norm
    from detectron2.modeling import ROI_HEADS_REGISTRY, build_model, build_resnet_backbone
    from detectron2.modeling.backbone.resnet import BasicBlock, ResNet
    from detectron2.modeling.roi_heads import Res5ROIHeads
    from detectron2.solver import build_lr_scheduler, build_optimizer
    from detectron2.utils import comm
    from detectron2.utils.env import seed_all_rng

    from transfer.detection.engines.detectron2_data import DatasetDicts, has_encodings, stopped_by_parent
    from transfer.detection.engines.detectron2_mapper import Mapper
except ImportError as error:
    raise InputError(
        f"engine=detectron2: cannot import Detectron2: {error}; install it from "
        "github.com/facebookresearch/detectron2, or use --engine builtin"
    ) from error

_LOG_EVERY = 20

Result = dict[str, Any]

# Detectron2 logs the traceback of every error that ends a training. Here the command line reports it in one line.
logging.getLogger("detectron2.engine.train_loop").setLevel(logging.CRITICAL)
logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)  # it warns of a call of Detectron2's


class Res5ROIHeadsExtraNorm(Res5ROIHeads):
    """`Res5ROIHeads` with a norm after res5, as in MoCo's detection code, also for ResNet-18 and ResNet-34."""

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        parts: dict[str, Any] = super().from_config(cfg, input_shape)
        resnet = cfg.MODEL.RESNETS
        channels = 8 * resnet.RES2_OUT_CHANNELS
        if resnet.DEPTH < 50:  # the head of Detectron2 has only bottleneck blocks
            strides = [2, 1] if resnet.DEPTH == 18 else [2, 1, 1]
            blocks = ResNet.make_stage(
                BasicBlock,
                len(strides),
                stride_per_block=strides,
                in_channels=channels // 2,
                out_channels=channels,
                norm=resnet.NORM,
            )
            parts["res5"] = nn.Sequential(*blocks)
        parts["res5"].add_module("norm", get_norm(resnet.NORM, channels))
        return parts


if names.HEADS not in ROI_HEADS_REGISTRY:
    ROI_HEADS_REGISTRY.register(Res5ROIHeadsExtraNorm)


def settings(
    config: DetectionConfig,
    *,
    seed: int,
    output: Path,
    weights: Path | None = None,
    processes: int = 1,
    bitmaps: bool = False,
) -> CfgNode:
    """Convert the settings to a configuration of Detectron2. Its `dump()` gives the YAML for Detectron2's tools.

    The arguments and errors are those of `detectron2_settings.values`. `run` does not use `weights`, because it gets
    the tensors of the backbone.
    """
    cuda = config.device == "cuda" or (config.device == "auto" and torch.cuda.is_available())
    known = names.values(
        config, seed=seed, output=output, weights=weights, cuda=cuda, processes=processes, bitmaps=bitmaps
    )
    return _make_cfg(known)


def _make_cfg(values: dict[str, Any]) -> CfgNode:
    """Make a configuration of Detectron2 from its defaults and `values`."""
    cfg = get_cfg()
    cfg.merge_from_other_cfg(CfgNode(values))  # rejects unknown names and other types
    return cfg


def backbone_features(state: dict[str, Tensor], images: Tensor, depth: int) -> Tensor:
    """Compute the global average of res5 of Detectron2's ResNet in eval mode.

    Args:
        state: weights named stem.*, res2.*, ..., res5.*.
        images: (N, 3, H, W) float32, normalized.
        depth: 18, 34, 50, 101 or 152.

    Returns:
        (N, F) float32.

    Raises:
        InputError: a weight is missing, unknown or of another shape.
    """
    cfg = _make_cfg({"MODEL": names.backbone(depth, len(state["stem.conv1.weight"]), "BN")})
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res5"]
    with torch.random.fork_rng(devices=[]):
        resnet = build_resnet_backbone(cfg, ShapeSpec(channels=3)).eval()
    require_matching_weights(state, resnet.state_dict())
    resnet.load_state_dict(state, strict=False)
    with torch.no_grad():
        features: Tensor = resnet(images)["res5"].mean((2, 3))
    return features


class _Trainer(SimpleTrainer):
    """Detectron2's trainer. If a loss of one process is not finite, all processes raise an error."""

    def __init__(self, model: nn.Module, loader: Any, optimizer: Any, device: torch.device) -> None:
        super().__init__(model, loader, optimizer)
        self.device = device

    def run_step(self) -> None:
        reason = None
        try:
            super().run_step()
        except FloatingPointError as error:
            reason = " ".join(str(error).split())
        if distributed.any_process(reason is not None, self.device):
            raise DivergedError(
                f"diverged in step {self.iter + 1}: {reason or 'a loss is not finite'}; the saved state is from an "
                "earlier step; lower lr, or increase warmup_iterations"
            )


@dataclasses.dataclass
class _Run:
    """A training run.

    Attributes:
        cfg: the settings as a configuration of Detectron2.
        session_seed: seed of the draws since the run started or resumed.
        identity: settings that a state to resume from must have.
    """

    config: DetectionConfig
    cfg: CfgNode
    seed: int
    process: distributed.Process
    stop: StopRequest
    model: nn.Module
    session_seed: int
    identity: dict[str, Any]

    @property
    def label(self) -> str:
        return f"{self.config.data.kind} seed {self.seed}"

    def batches(self, annotations: Annotations) -> Any:
        """Load the training batches of this process without end, with Detectron2."""
        sampler = TrainingSampler(len(annotations), seed=self.session_seed)
        mapper = Mapper(self.cfg, True)
        dicts = DatasetDicts(annotations)
        return stopped_by_parent(build_detection_train_loader(self.cfg, dataset=dicts, sampler=sampler, mapper=mapper))

    def stop_between(self, where: str) -> None:
        if self.process.world_size == 1 and self.stop.received is not None:
            raise self.stop.error(where)


class _Bookkeeping(HookBase):
    """The work after every step: progress, log, state, evaluation, and a stop after a signal."""

    def __init__(
        self,
        run: _Run,
        first: int,
        folder: Path,
        mark: dict[str, int] | None,
        test: Annotations,
        evaluate: Callable[[list[Result]], dict[str, float]],
    ) -> None:
        self.run, self.path, self.test, self.evaluate = run, folder / saved.STATE, test, evaluate
        self.vote = distributed.StopVote(run.stop, run.process.device)
        config, main = run.config, run.process.is_main
        self.log = RunLog(folder, first, mark) if main else None
        self.progress = Progress(
            config.iterations, done=first, images_per_step=config.batch_size, label=run.label, enabled=main
        )

    def after_step(self) -> None:
        config, done = self.run.config, self.trainer.iter + 1
        last = done == config.iterations
        stopping = self.vote.ask()
        saving = done % config.checkpoint_every == 0 or last or stopping > 0
        if self.log is not None:  # the main process; the others have no losses
            latest = {name: value for name, (value, _) in self.trainer.storage.latest().items()}
            self.progress.step(latest["data_time"], {"loss": latest["total_loss"]})
            if saving or done % _LOG_EVERY == 0:
                self.log.append(done, {**self._means(), "img/s": self.progress.images_per_second})
            if saving:
                saved.save_state(self.log.lines, self.run.identity, self.run.model, self.trainer.optimizer, done)
        else:
            self.progress.step()
        if stopping and not last:
            self.progress.close()
            where = f"after step {done} of {config.iterations}, saved in {self.path}"
            distributed.stop_together(self.run.stop, where, stopping)
        if config.eval_every and done % config.eval_every == 0 and not last:
            # The test loader draws sizes and seeds from the global streams, which must not change the training.
            drawn = np.random.get_state()  # noqa: NPY002
            with torch.random.fork_rng(devices=[]):
                results = _detect(self.run, self.test)
            np.random.set_state(drawn)  # noqa: NPY002
            if self.log is not None:
                self.log.append(done, self.evaluate(results))

    def after_train(self) -> None:
        self.progress.close()

    def _means(self) -> dict[str, float]:
        storage = self.trainer.storage
        names = [name for name in storage.histories() if name.startswith("loss_")]
        means = {name: float(storage.history(name).avg(_LOG_EVERY)) for name in [*names, "total_loss"]}
        return {"lr": storage.history("lr").latest(), "loss": means.pop("total_loss"), **means}


def run(
    backbone: dict[str, Tensor],
    config: DetectionConfig,
    seed: int,
    *,
    folder: Path,
    train: Annotations,
    test: Annotations,
    identity: dict[str, Any],
    evaluate: Callable[[list[Result]], dict[str, float]],
    process: distributed.Process,
    stop: StopRequest,
    about: dict[str, Any] | None = None,
) -> list[Result]:
    """Train and detect with Detectron2. If the training file has run-length encodings, all masks become bitmaps.

    The arguments and the result are those of `run` of the built-in engine. `folder` also receives `detectron2.yaml`,
    the configuration of Detectron2.

    Raises:
        InputError: the backbone, weights, state or images are invalid or not supported by Detectron2.
        DivergedError: a loss is not finite.
        ResourceError: a data worker died.
        Preempted: a signal stopped the run; the state is saved.
    """
    comm._get_global_gloo_group.cache_clear()  # it may hold the process group of an earlier run in this process
    cfg = settings(config, seed=seed, output=folder, processes=process.world_size, bitmaps=has_encodings(train))
    path = folder / saved.STATE
    state = saved.load_state(path, identity, config.iterations)
    first = state["iteration"] if state else 0
    session_seed = torch_seed(seed, "detectron2 resumed", first) % 2**31 if first else cfg.SEED
    seed_all_rng(session_seed + process.rank)
    model = _build_model(cfg, config, process)
    load_backbone(model, backbone)
    run = _Run(config, cfg, seed, process, stop, model, session_seed, identity)
    if process.is_main:
        files.write_text(folder / "detectron2.yaml", cfg.dump())
    with _errors_in_one_line():
        if state:
            states.restore_weights(model, state["model"], path)
        if first < config.iterations:
            optimizer = build_optimizer(cfg, model)
            trainer = _Trainer(process.parallel(model), run.batches(train), optimizer, process.device)
            scheduler = build_lr_scheduler(cfg, optimizer)
            if state:
                states.restore_optimizer(optimizer, state.get("optimizer"), path)
                scheduler.last_epoch = first
                for group, lr in zip(optimizer.param_groups, scheduler.get_lr(), strict=True):
                    group["lr"] = lr
            schedule = hooks.LRScheduler(optimizer, scheduler)
            bookkeeping = _Bookkeeping(run, first, folder, state and state.get("log"), test, evaluate)
            trainer.register_hooks([hooks.IterationTimer(), schedule, bookkeeping])
            trainer.train(first, config.iterations)
        if config.precise_bn:
            _precise_batch_norm(run, train)
        states.require_finite(model.state_dict(), where="before the detection in the test images")
        results = _detect(run, test)
    if process.is_main:
        saved.write_detector(folder, model, about)
    return results


def detect(
    weights: dict[str, Tensor],
    config: DetectionConfig,
    *,
    test: Annotations,
    process: distributed.Process,
    stop: StopRequest,
) -> list[Result]:
    """Detect in `test` with a trained detector and Detectron2; see `detect` of the built-in engine."""
    comm._get_global_gloo_group.cache_clear()
    cfg = settings(config, seed=0, output=Path(), processes=process.world_size)
    model = _build_model(cfg, config, process)
    saved.load_weights(model, weights)
    with _errors_in_one_line():
        return _detect(_Run(config, cfg, 0, process, stop, model, 0, {}), test)


def _build_model(cfg: CfgNode, config: DetectionConfig, process: distributed.Process) -> nn.Module:
    model: nn.Module = build_model(cfg)
    if config.channels_last:
        model.to(memory_format=torch.channels_last)
    if config.precision == "bf16":  # the mixed precision of Detectron2 needs a GPU
        model.forward = torch.autocast(process.device.type, torch.bfloat16)(model.forward)
    return model


@contextlib.contextmanager
def _errors_in_one_line() -> Iterator[None]:
    """Remove the traceback from the message of an error of a data worker."""
    try:
        yield
    except InputError as error:
        lines = str(error).strip().splitlines()
        if len(lines) == 1:
            raise
        raise InputError(lines[-1].removeprefix(f"{InputError.__module__}.{InputError.__name__}: ")) from error
    except RuntimeError as error:
        if "DataLoader worker (pid" not in str(error):
            raise
        raise ResourceError(f"a data worker died: {' '.join(str(error).split())}; use fewer workers") from error


def _precise_batch_norm(run: _Run, train: Annotations) -> None:
    count = run.config.precise_bn
    progress = Progress(count, label=f"{run.label}: batch norm statistics", enabled=run.process.is_main)

    def batches() -> Iterator[Any]:
        for batch in run.batches(train):
            run.stop_between("while estimating batch norm statistics, after all steps were saved")
            progress.step()
            yield batch

    try:
        hooks.PreciseBN(0, run.model, batches(), count).update_stats()
    except FloatingPointError as error:
        raise DivergedError(
            f"diverged while estimating batch norm statistics: {' '.join(str(error).split())}"
        ) from error
    progress.close()


@torch.no_grad()
def _detect(run: _Run, test: Annotations) -> list[Result]:
    """Detect in all test images, a share in each process, and return the COCO results on the first process."""
    loader = stopped_by_parent(
        build_detection_test_loader(DatasetDicts(test), mapper=Mapper(run.cfg, False), num_workers=run.config.workers)
    )
    progress = Progress(len(loader), label=f"{run.label}: detecting", enabled=run.process.is_main)
    run.model.eval()
    features = Features(run.model.get_submodule("backbone"), run.process.device)
    results = []
    for inputs in loader:
        (output,) = run.model(inputs)
        found = instances_to_coco_json(output["instances"].to("cpu"), inputs[0]["image_id"])
        results += [{**result, "category_id": test.category_ids[result["category_id"]]} for result in found]
        progress.step()
        run.stop_between("while detecting; the last saved state stays")
    progress.close()
    features.require_finite("a test image")
    run.model.train()
    return distributed.collect(results)
