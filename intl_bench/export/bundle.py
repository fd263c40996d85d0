"""Write the folder of an export. The weights are read back and compared by `transfer.convert`."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

from omegaconf import OmegaConf

from intl_bench import provenance
from intl_bench.core import files, inputs, run_folders
from intl_bench.core.errors import InputError
from intl_bench.core.names import require_title
from intl_bench.export import libraries
from intl_bench.export.card import write_card
from intl_bench.records import RecordStore, ResultRecord
from pretrain.checkpoint import Checkpoint, Preprocessing, about
from pretrain.images.data import DataConfig
from transfer.convert import convert, read

CARD, SUMS, RECIPE = "MODEL_CARD.md", "SHA256SUMS", "recipe.yaml"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export:
    """What was written.

    Attributes:
        folder: of the export.
        files: the names of all files.
        records: the number of records among them.
    """

    folder: Path
    files: list[str]
    records: int


def export(
    run: Path,
    out: Path | None = None,
    *,
    layout: str = "auto",
    license: str | None = None,
    results: Path = Path("results"),
    fresh: bool = False,
) -> Export:
    """Write a backbone for each library that has its network, with a card, the recipe and the records of its scores.

    Args:
        run: the folder of a pre-training, or a checkpoint of this or another project.
        out: a folder. None means exports/NAME-seedK, or exports/FILE.
        layout: of the file, as for `transfer.convert`.
        license: of the weights, such as "CC-BY-4.0".
        results: folder of the records.
        fresh: replace the files of an earlier export.

    Raises:
        InputError: the checkpoint is refused (see `transfer.convert.read`), or files are there already.
        ResourceError: the disk is full.
    """
    path = run_folders.checkpoint_in(run)
    if license is not None:
        try:
            require_title(license, "--license")
        except ValueError as error:
            raise InputError(str(error)) from error
    checkpoint = read(path, layout)
    if out is None:
        recipe = checkpoint.recipe
        out = Path("exports") / (path.name.split(".")[0] if recipe is None else f"{recipe.name}-seed{recipe.seed}")
    if not fresh and (there := [name for name in (libraries.SAFETENSORS, CARD) if (out / name).exists()]):
        raise InputError(
            f"{out / there[0]}: an export is there already; add --fresh to replace it, or give another folder"
        )
    pixels = checkpoint.preprocessing or Preprocessing.of(DataConfig())
    store = RecordStore(results / "records")
    records = [record for record in store.load() if record.weights_sha256 == checkpoint.weights_sha256]
    if others := [
        old for old in RecordStore(out / "records").load() if old.weights_sha256 != checkpoint.weights_sha256
    ]:
        raise InputError(f"{others[0].file}: a record of other weights; give another folder than {out}, or delete it")
    written, warnings = _write_weights(path, checkpoint, pixels, out, layout)
    if checkpoint.recipe is not None:
        text = OmegaConf.to_yaml(OmegaConf.create(about(checkpoint)["recipe"]))
        files.write_text(out / RECIPE, f"# {checkpoint.method}: the settings of this backbone, without paths.\n{text}")
        written.append(RECIPE)
    written += _write_records(records, out)
    digests = {name: files.sha256(out / name) for name in written}
    files.write_text(out / SUMS, "".join(f"{digest}  {name}\n" for name, digest in digests.items()))
    card = write_card(checkpoint, pixels, records, digests, warnings, license=license, version=_version())
    files.write_text(out / CARD, card)
    return Export(folder=out, files=[*written, SUMS, CARD], records=len(records))


def _write_weights(
    path: Path, checkpoint: Checkpoint, pixels: Preprocessing, out: Path, layout: str
) -> tuple[list[str], list[str]]:
    """Write the files of all libraries that have the network; return their names, and how the network differs."""
    known = {library.name for library in libraries.libraries(checkpoint)}
    whole = checkpoint.architecture.stem == "imagenet"  # other stems are loaded from safetensors
    targets = {libraries.SAFETENSORS: "safetensors"}
    if whole and "torchvision" in known:
        targets[libraries.TORCHVISION] = "torchvision"
    if "Detectron2" in known:
        targets[libraries.DETECTRON2] = "detectron2"
    written, warnings = [], []
    for name, target in targets.items():
        conversion = convert(path, out / name, to=target, source=layout)
        written += [name, f"{name}.json"]
        warnings = [line.removeprefix("warning: ") for line in conversion.lines if line.startswith("warning: ")]
    texts: dict[str, Callable[[], str]] = {}
    if whole and "timm" in known:
        texts[libraries.TIMM_CONFIG] = lambda: json.dumps(libraries.timm_config(checkpoint, pixels), indent=2) + "\n"
    if "Detectron2" in known:
        settings = libraries.detectron2_config(checkpoint)
        texts[libraries.DETECTRON2_CONFIG] = lambda: OmegaConf.to_yaml(OmegaConf.create(settings))
    for name, make in texts.items():
        files.write_text(out / name, make())
    return [*written, *texts], warnings


def _write_records(records: list[ResultRecord], out: Path) -> list[str]:
    """Copy records as they are, so that `intl-bench tables --results` reads them; return their names."""
    names = []
    for record in records:
        source = Path(record.file)
        name = f"records/{record.task}/{source.name}"
        files.write_bytes(out / name, inputs.read_bytes(source))
        names.append(name)
    return names


def _version() -> str:
    code = provenance.code()
    commit = f" ({code['commit'][:7]}{', modified' if code['modified'] else ''})" if code["commit"] else ""
    return f"intl-bench {code['version']}{commit}"
