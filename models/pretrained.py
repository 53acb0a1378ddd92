"""Fill a network with weights from a file, whoever named them, without torch and without pickle.

A file's names and a model's differ in two ways: what a layer is called, which the model's own
`names()` tells for each convention it knows, and what a layer's arrays are called and how their
axes are ordered, which is torch's way (`weight` `[O, I, H, W]`) or ours (`kernel` `[H, W, I, O]`).
Every pair of the two is a `Convention`; the one that accounts for most of a file reads it.
"""

import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TypeVar
from zipfile import BadZipFile

import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from jaxfmi.whole import whole

Model = TypeVar("Model", bound=nnx.Module)
Shape = tuple[int, ...]

TORCH = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
PICKLES = (".pth", ".pt", ".bin", ".pkl", ".pickle", ".ckpt", ".tar")
UNREADABLE = (ValueError, TypeError, OSError, EOFError, BadZipFile, zlib.error, SafetensorError)
SHOWN = 8


@dataclass(frozen=True)
class Convention:
    """What a file calls a layer (`layers`) and its arrays (`leaves`); what is not there is ours."""

    label: str
    layers: Mapping[str, str]
    leaves: Mapping[str, str]

    def key(self, ours: str) -> str:
        """The file's name of our entry `ours`, such as `stem.conv.kernel`."""
        layer, _, leaf = ours.rpartition(".")
        return f"{self.layers.get(layer, layer)}.{self.leaves.get(leaf, leaf)}".lstrip(".")

    def shape(self, ours: Shape) -> Shape:
        """The file's shape of an entry of ours: torch has the outputs first, then the inputs."""
        return (*ours[:-3:-1], *ours[:-2]) if self.leaves else ours

    def arrange(self, array: np.ndarray, ours: Shape) -> np.ndarray:
        """Give an entry of the file our shape and order of axes."""
        array = array.reshape(self.shape(ours))
        return (
            array.transpose(*range(2, array.ndim), 1, 0)
            if self.leaves and array.ndim > 1
            else array
        )


def load(
    model: Model,
    source: str | Path,
    *,
    filename: str = "model.safetensors",
    revision: str | None = None,
    skip: Sequence[str] = (),
) -> Model:
    """Fill `model` in place with the weights of `source`, and return it.

    Args:
        model: an NNX module. All its parameters and batch statistics are replaced, so that
            `nnx.eval_shape(resnet50)`, which computes nothing, will do for one without dropout.
        source: a `.safetensors` or `.npz` file, or a repository of the Hugging Face hub:
            `"hf:owner/name"`, or `"owner/name"` where there is no such file.
        filename: the file of the repository.
        revision: the branch, tag or commit of the repository.
        skip: layers, such as `"head"`, that keep what they have; the file's are left alone.

    The names in the file may be those of `save`, with `.` or `/` in them, or of any convention in
    `model.names()`: torchvision's, timm's, .... A prefix `module.` and `num_batches_tracked` are
    dropped; every number becomes the model's type, float32.

    Raises:
        ValueError: the file can't be read, is a pickle, or does not fit: the message lists what is
            missing, unexpected, or of another shape, and nothing was loaded.
        FileNotFoundError: there is no such file.
        ImportError: `huggingface_hub` is needed and absent.

    """
    path = locate(source, filename, revision)
    entries = _read(path)
    state = nnx.state(model, (nnx.Param, nnx.BatchStat))
    slots = {".".join(map(str, place)): variable for place, variable in nnx.to_flat_state(state)}
    convention = max(_conventions(model), key=lambda c: len({*map(c.key, slots)} & entries.keys()))
    kept = _within(slots, skip)
    for name in kept:
        entries.pop(convention.key(name), None)
    shapes = {name: slots[name].shape for name in slots if name not in kept}
    _check(path, convention, shapes, entries)
    for name, shape in shapes.items():
        array = convention.arrange(entries[convention.key(name)], shape)
        slots[name].set_value(jnp.asarray(array, slots[name].dtype))
    nnx.update(model, state)
    return model


def save(model: nnx.Module, path: str | Path, *, half: bool = False) -> None:
    """Write the parameters and batch statistics of `model` as safetensors, for `load` to read.

    Names are NNX paths joined by `/`. `half` stores kernels as float16; biases and the vectors of
    batch normalisation, whose range is wider, stay float32.

    Raises:
        ValueError: `path` does not end in `.safetensors`.
        OSError: it can't be written; a file that was there before is as it was.

    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"weights are saved as .safetensors, not as '{path.name}'")
    flat = nnx.to_flat_state(nnx.state(model, (nnx.Param, nnx.BatchStat)))
    arrays = {"/".join(map(str, place)): np.asarray(variable[...]) for place, variable in flat}
    kinds = {
        name: np.float16 if half and array.ndim > 1 else np.float32
        for name, array in arrays.items()
    }
    arrays = {name: np.ascontiguousarray(a, kinds[name]) for name, a in arrays.items()}
    try:
        with whole(path) as partial:
            save_file(arrays, partial)
    except SafetensorError as error:
        raise OSError(f"cannot write '{path}': {error}") from error


def _conventions(model: nnx.Module) -> list[Convention]:
    """Ours first, then those of the model's `names()`, each with our arrays and with torch's."""
    names = getattr(model, "names", dict)()
    return [
        Convention(label, layers, leaves)
        for label, layers in {"jaxfmi": {}, **names}.items()
        for leaves in ({}, TORCH)
    ]


def _within(names: Iterable[str], layers: Sequence[str]) -> set[str]:
    """Those of `names` that belong to one of `layers`, each of which has to have some."""
    found = {layer: {n for n in names if f"{n}.".startswith(f"{layer}.")} for layer in layers}
    for layer, members in found.items():
        if not members:
            there = ", ".join(sorted({name.split(".")[0] for name in names}))
            raise ValueError(f"no layer '{layer}' to skip; there are {there}")
    return set().union(*found.values())


def _check(
    path: Path,
    convention: Convention,
    shapes: Mapping[str, Shape],
    entries: Mapping[str, np.ndarray],
) -> None:
    """Raise one error about all that does not fit."""
    expected = {convention.key(name): convention.shape(shape) for name, shape in shapes.items()}
    common = [name for name in expected if name in entries]
    problems = {
        "missing": [f"{name} {expected[name]}" for name in expected if name not in entries],
        "unexpected": [f"{name} {entries[name].shape}" for name in entries if name not in expected],
        "of another shape": [
            f"{name} {entries[name].shape}, expected {expected[name]}"
            for name in common
            if not _same(entries[name].shape, expected[name])
        ],
    }
    if any(problems.values()):
        report = "".join(
            f"\n  {_listing(kind, which)}" for kind, which in problems.items() if which
        )
        names = f"{convention.label} names: {len(common)} of {len(expected)} entries found"
        raise ValueError(f"'{path}' does not fit the model ({names}); nothing was loaded{report}")


def _listing(kind: str, which: Sequence[str]) -> str:
    rest = f"; and {len(which) - SHOWN} more" if len(which) > SHOWN else ""
    return f"{len(which)} {kind}: {'; '.join(which[:SHOWN])}{rest}"


def _same(given: Shape, expected: Shape) -> bool:
    """Whether two shapes are the same up to axes of length 1, or up to a flattened input.

    A 1×1 convolution is a dense layer, and so is one that covers its whole input (VGG's first).
    """
    flat = (expected[0], int(np.prod(expected[1:]))) if expected else ()
    return given == flat or [n for n in given if n > 1] == [n for n in expected if n > 1]


def locate(
    source: str | Path, filename: str = "model.safetensors", revision: str | None = None
) -> Path:
    """The file that `source` names, fetched from the hub if need be."""
    if Path(source).is_file():
        return Path(source)
    text = str(source)
    known = Path(text).suffix in (".safetensors", ".npz", *PICKLES)
    if text.startswith("hf:") or (re.fullmatch(r"[\w.-]+/[\w.-]+", text) and not known):
        return _download(text.removeprefix("hf:"), filename, revision)
    raise FileNotFoundError(f"no weights '{text}': expected a file, or 'hf:owner/name'")


def _download(repository: str, filename: str, revision: str | None) -> Path:
    _refuse_pickle(Path(filename))
    try:
        hub = import_module("huggingface_hub")
    except ImportError as error:
        wanted = f"'{repository}' is fetched by huggingface_hub, which is not installed"
        raise ImportError(f'{wanted}: pip install "jaxfmi[hub]"') from error
    return Path(hub.hf_hub_download(repository, filename, revision=revision))


def _read(path: Path) -> dict[str, np.ndarray]:
    """The entries of a file: `/` becomes `.`, without what only torch needs."""
    _refuse_pickle(path)
    readers = {".safetensors": load_file, ".npz": _read_npz}
    if path.suffix not in readers:
        raise ValueError(f"'{path}': expected a file that ends in {' or '.join(readers)}")
    try:
        entries = readers[path.suffix](path)
    except UNREADABLE as error:
        raise ValueError(f"'{path}' can't be read, is it complete? {error}") from error
    wrapped = all(name.startswith("module.") for name in entries)
    return {
        name.removeprefix("module." if wrapped else "").replace("/", "."): array
        for name, array in entries.items()
        if not name.endswith("num_batches_tracked")
    }


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    # numpy leaves a file that it can't read open, unless it is not numpy's to close.
    with path.open("rb") as file, np.load(file, allow_pickle=False) as entries:
        return dict(entries)


def _refuse_pickle(path: Path) -> None:
    """Raise before a file is opened that could run code on being opened."""
    if path.suffix in PICKLES:
        raise ValueError(
            f"'{path}' is a pickle, which can run any code when it is opened; "
            "convert it where torch is installed and the file is trusted:\n"
            "  import torch; from safetensors.torch import save_file\n"
            f"  save_file(torch.load('{path}', weights_only=True), '{path.stem}.safetensors')"
        )
