"""Files and folders that hold weights in a form that is not read here: what they are, and what to do."""

import re
from collections.abc import Iterable
from pathlib import Path

_SIMCLR = (
    "convert them with tonylins/simclr-converter (SimCLR v1) or Separius/SimCLRv2-Pytorch (v2), and give that file"
)
_TENSORFLOW = f"variables of TensorFlow; those of SimCLR: {_SIMCLR}"
_SHARDS = (
    "one part of a distributed checkpoint (torch.distributed.checkpoint); join the parts: "
    "python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER OUT.pth, and give OUT.pth"
)
_ZERO = (
    "optimizer states of DeepSpeed; run python zero_to_fp32.py . OUT in the folder of the checkpoint, which has that "
    "program, and give OUT"
)
# By the name of a file.
_NAMES = (
    (r".*\.distcp|\.metadata", _SHARDS),
    (r"(bf16_)?zero_pp_rank_\d+_mp_rank_\d+_optim_states\.pt", _ZERO),
    (r"zero_pp_rank_\d+_mp_rank_\d+_model_states\.pt", _ZERO.replace("optimizer states", "one part of the weights")),
    (
        r".*\.(safetensors|bin)\.index\.json",
        "an index of the files that share the weights; load each with safetensors.torch.load_file (.safetensors) or "
        "torch.load (.bin), put all into one dictionary, and save that with torch.save",
    ),
    (r"saved_model\.pb(txt)?|.*\.ckpt-\d+(\.(index|meta|data-\d+-of-\d+))?|.*\.index|.*\.data-\d+-of-\d+", _TENSORFLOW),
    (r".*\.onnx", "an ONNX graph, whose names and batch norms are changed; give the checkpoint that it was made from"),
    (
        r".*\.msgpack",
        "parameters of Flax; convert them to PyTorch (from_flax=True of transformers), and give that file",
    ),
    (r".*\.(h5|keras)", "weights of Keras; convert them to PyTorch and give that file"),
)
# By the first bytes of a file.
_CONTENTS = (
    (rb"\s*<(!doctype|html|\?xml)", "a web page, not weights; download it again"),
    (rb"version https://git-lfs", "a Git LFS pointer, not the file; run `git lfs pull`"),
    (rb"\x1f\x8b|BZh|\xfd7zXZ|7z\xbc\xaf", "a compressed file; decompress it first"),
    (rb"(?s:.{257})ustar", "a tar archive; unpack it and give the file of weights in it"),
    (rb"\x89HDF", "an HDF5 file; expected a PyTorch file, safetensors or a pickle"),
    (rb"\x93NUMPY", "one array of NumPy (.npy); expected all weights, such as an .npz file"),
    (
        rb"\s*\{\s*\"(metadata|weight_map)\"",
        "an index of the files that share the weights, in JSON; put these files into one dictionary and save that",
    ),
)
# By the parts of a zip archive.
_ARCHIVES = (
    (
        r"(^|/)constants\.pkl$",
        "a TorchScript archive (torch.jit.save; the files of OpenAI's CLIP are such); load it with "
        "torch.jit.load(FILE, map_location='cpu'), save its state_dict() with torch.save, and give that file",
    ),
    (r"(^|/)(serialized_exported_program\.json|models/.*\.json)$", "a program of torch.export; save its state_dict()"),
    (r"(^|/)model\.weights\.h5$", "a model of Keras; convert its weights to PyTorch and give that file"),
    (r"(^|/)saved_model\.pb$", _TENSORFLOW),
    (r"\.(pth|pt|ckpt|safetensors|bin|tar)$", "a zip archive of files; unpack it and give the file of weights in it"),
)
# By the names in a folder.
_FOLDERS = (
    (r".*\.distcp|\.metadata", _SHARDS.replace("one part of ", "")),
    (
        r"zero_to_fp32\.py|latest|(bf16_)?zero_pp_rank_.*|mp_rank_\d+.*",
        f"a checkpoint of DeepSpeed; {_ZERO.split('; ')[1]}",
    ),
    (r"saved_model\.pb|.*\.ckpt-\d+.*|variables", _TENSORFLOW),
    (r"_CHECKPOINT_METADATA|manifest\.ocdbt", "a checkpoint of Orbax (JAX); convert it to PyTorch and give that file"),
    (r"data\.pkl|byteorder|version", "the unpacked parts of a PyTorch file; give the file, which is a zip archive"),
)
_WEIGHTS = re.compile(r".*\.(safetensors|pth|pt|ckpt|bin|pkl|tar|npz)")


def by_name(path: Path) -> str:
    """Return what a file is whose content is not read, by its name; "" for an ordinary name."""
    if not path.exists():  # the name of a checkpoint of TensorFlow, which is the beginning of the names of its files
        return _TENSORFLOW if path.with_name(f"{path.name}.index").exists() else ""
    return next((text for pattern, text in _NAMES if re.fullmatch(pattern, path.name)), "")


def by_content(head: bytes) -> str:
    """Return what a file is by its first bytes; "" for a kind that is read."""
    return next((text for pattern, text in _CONTENTS if re.match(pattern, head, re.IGNORECASE)), "")


def archive(parts: Iterable[str]) -> str:
    """Return what a zip archive is by the names of its parts; "" for a kind that is read."""
    listing = "\n".join(parts)
    return next((text for pattern, text in _ARCHIVES if re.search(pattern, listing, re.MULTILINE | re.IGNORECASE)), "")


def folder(path: Path) -> str:
    """Return what a folder is by the names in it, and what to give instead.

    Raises:
        OSError: the folder cannot be read.
    """
    names = sorted(one.name for one in path.iterdir())
    for pattern, text in _FOLDERS:
        if any(re.fullmatch(pattern, name) for name in names):
            return f"a folder: {text}"
    files = [name for name in names if _WEIGHTS.fullmatch(name)]
    if files:
        return f"a folder; expected a file; give {' or '.join(str(path / name) for name in files[:3])}"
    return "a folder; expected a file; of a sharded checkpoint give the consolidated file"
