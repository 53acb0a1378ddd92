"""The network that a command works with: built by name, filled, with its pictures and classes.

What a user can get wrong about a network is found here, before anything is computed, and said in
one ValueError.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxfmi import taps
from jaxfmi.command.words import assignment, pick, value
from jaxfmi.explainer import layer_names
from jaxfmi.models import CAFFE, CIFAR, IMAGENET, MODELS, TENSORFLOW, Preprocess, load, pretrained
from jaxfmi.models.demo import WEIGHTS, demo_model
from jaxfmi.modules import check_labels, functional
from jaxfmi.train.embedders import open_embedder

DEMO = "demo"
PREPROCESS = {"imagenet": IMAGENET, "caffe": CAFFE, "tensorflow": TENSORFLOW, "cifar": CIFAR}
SHOWN = 10  # names of classes in an error

#: Counted once, because building the deepest takes seconds; a test counts again.
PARAMETERS = {
    "vgg11": 132_863_336,
    "vgg11_bn": 132_868_840,
    "vgg13": 133_047_848,
    "vgg13_bn": 133_053_736,
    "vgg16": 138_357_544,
    "vgg16_bn": 138_365_992,
    "vgg19": 143_667_240,
    "vgg19_bn": 143_678_248,
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "squeezenet1_0": 1_248_424,
    "squeezenet1_1": 1_235_496,
    "mobilenet_v1": 4_231_976,
    "mobilenet_v2": 3_504_872,
    "densenet121": 7_978_856,
    "densenet161": 28_681_000,
    "densenet169": 14_149_480,
    "densenet201": 20_013_928,
    "cifar_resnet20": 269_722,
    "cifar_resnet32": 464_154,
    "cifar_resnet44": 658_586,
    "cifar_resnet56": 853_018,
    "cifar_resnet110": 1_727_962,
    "lfi_cam_resnet18": 21_130_792,
    "lfi_cam_resnet50": 176_568_360,
    "lfi_cam_vgg16_bn": 147_807_272,
    "lfi_cam_resnet8": 226_010,
    "lfi_cam_resnet20": 420_442,
    "lfi_cam_resnet32": 614_874,
    "lfi_cam_resnet44": 3_045_402,
    "lfi_cam_resnet56": 3_230_874,
    "lfi_cam_resnet110": 4_065_498,
    "lfi_cam_densenet100": 4_982_602,
    "abn_resnet18": 21_607_266,
    "abn_resnet50": 43_584_866,
    "abn_resnet8": 136_750,
    "abn_resnet20": 479_150,
    "abn_resnet32": 821_550,
    "abn_resnet44": 1_205_230,
    "abn_resnet56": 1_531_502,
    "abn_resnet110": 2_999_726,
    "abn_densenet100": 1_049_958,
    "lfi_cam_demo": 913_668,
}


class Network(NamedTuple):
    """A model in evaluation mode, what its pictures go through, and its classes by index."""

    model: nnx.Module
    preprocess: Preprocess
    classes: tuple[str | None, ...]
    card: dict[str, Any]  #: what a manifest says about it


def open_network(
    name: str = DEMO,
    weights: str | None = None,
    options: Iterable[str] = (),
    preprocess: str | None = None,
    size: tuple[int, int] | None = None,
    classes: Path | None = None,
) -> Network:
    """Build a network and fill it.

    Args:
      name: ``demo``, the embedded one, which has its weights; or one of ``MODELS``.
      weights: a file or a repository of the Hugging Face hub, for all but the embedded network.
      options: words ``key=value`` for the network's constructor.
      preprocess: one of ``PREPROCESS``; None for that of the network's usual weights.
      size: height and width of the input; None for that of the preprocessing.
      classes: a file of names, for ``read_classes``.

    Raises:
      ValueError: there is no such name, weights are missing, or something does not fit.
      OSError: a file can't be read.
    """
    if name == DEMO:
        network = _embedded(weights, list(options))
    else:
        network = _built(pick("model", name, [DEMO, *MODELS]), weights, list(options))
    network = _with_input(network, preprocess, size)
    count = outputs(network)
    names = network.classes or (None,) * count
    return network._replace(classes=read_classes(classes, count) if classes else names)


def is_run(name: str) -> bool:
    """Whether a name is no network's, but a folder."""
    return name not in (DEMO, *MODELS) and Path(name).is_dir()


def open_run(
    folder: str,
    weights: str | None = None,
    options: Sequence[str] = (),
    preprocess: str | None = None,
    size: tuple[int, int] | None = None,
) -> Network:
    """Open the network that a run of few-shot or contrastive training left, without classes.

    Raises:
      ValueError: weights or options are given, which the run has; its network has no name, or
        does not take such pictures.
      OSError: the run has not come to its end, or a file can't be read.
    """
    if weights or options:
        raise ValueError(f"the run in '{folder}' has weights and options of its own")
    model, expected, about = open_embedder(folder)
    source = _provenance(Path(folder) / "model.safetensors")
    card = about["network"] | {"weights": source | {"source": folder}}
    network = _with_input(Network(model, expected, (), card), preprocess, size)
    given, channels = network.preprocess.shape[-1], expected.shape[-1]
    if given != channels:
        raise ValueError(
            f"the network of '{folder}' takes pictures of {channels} channels; the preprocessing "
            f"{preprocess} gives {given}"
        )
    outputs(network)
    return network


def blank(name: str, options: Iterable[str] = ()) -> tuple[nnx.Module, Preprocess]:
    """A network without weights, whose arrays are only shapes, and what it expects of pictures."""
    if name == DEMO:
        demo = demo_model()
        return demo.model, demo.preprocess
    entry = MODELS[pick("model", name, [DEMO, *MODELS])]
    given = dict(map(assignment, options))
    for key in given:
        pick("option", key, _model_options(entry.build), name)
    try:
        model = nnx.eval_shape(lambda: entry.build(**given))
    except (TypeError, KeyError) as error:
        raise ValueError(f"{name} can't be built with {given}: {error}") from error
    return _without_dropout(model), entry.preprocess


def outputs(network: Network) -> int:
    """The number of classes.

    Raises:
      ValueError: the network does not take pictures of this size, or gives no [N, classes].
    """
    apply, params = functional(network.model)
    height, width, channels = network.preprocess.shape
    x = jax.ShapeDtypeStruct((1, height, width, channels), jnp.float32)
    try:
        shape = jax.eval_shape(apply, params, x).shape
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"the model does not take pictures of {height}x{width}: {error}"
        ) from error
    if len(shape) != 2:
        raise ValueError(f"a classifier gives [N, classes]; this model gives {shape}")
    return shape[-1]


def layers(model: nnx.Module, size: tuple[int, int]) -> tuple[dict[str, tuple[int, ...]], str]:
    """The tags that a model meets, in order, with their shapes [h, w, K]; and which is "auto"."""
    apply, params = functional(model)
    x = jax.ShapeDtypeStruct((*size, 3), jnp.float32)

    def score(x, params):
        return apply(params, x[None])[0, 0]

    found = taps.tags(score, x, params)
    (auto,) = layer_names(score, "auto", x, params)
    return {name: shape[1:] for name, shape in found.items()}, auto


def count(model: nnx.Module) -> int:
    """The number of parameters, without statistics."""
    return sum(math.prod(p.shape) for p in jax.tree.leaves(nnx.state(model, nnx.Param)))


def read_size(text: str | None) -> tuple[int, int] | None:
    """Height and width from 192 or 192x256."""
    if text is None:
        return None
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)?", text):
        raise ValueError(f"a size is like 192 or 192x256 (height x width), got {text!r}")
    height, _, width = text.partition("x")
    return int(height), int(width or height)


def read_classes(path: Path, classes: int) -> tuple[str, ...]:
    """The names of classes in a file: lines, a JSON list, or Keras' ``{"0": ["n..", "name"]}``.

    Weights from TensorFlow have a class for the background before the others: where there is
    exactly one name too few, for 1000 names, the first class is called "background".

    Raises:
      ValueError: the file is none of these, or has another number of names.
    """
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        names = _json_classes(path, text)
    else:
        names = [line.strip() for line in text.splitlines() if line.strip()]
    if len(names) == 1000 and classes == 1001:
        names = ["background", *names]
    if len(names) != classes:
        raise ValueError(f"'{path}' names {len(names)} classes, the model has {classes}")
    return tuple(names)


def find_class(wanted: str, classes: Sequence[str | None]) -> int:
    """The index of a class, given as that or by its name or one of its synonyms.

    Case and underscores don't matter: "tabby" finds "tabby, tabby cat".

    Raises:
      ValueError: the index is out of range, no class has the name, or several have.
    """
    if type(index := value(wanted)) is int:
        check_labels(np.asarray(index), len(classes))
        return index
    names = {i: _spellings(name) for i, name in enumerate(classes) if name}
    if not names:
        raise ValueError(f"no class {wanted!r}: the classes have no names; give --classes FILE")
    found = [i for i, spellings in names.items() if _plain(wanted) in spellings]
    if len(found) > 1:
        raise ValueError(f"{wanted!r} is the name of classes {found}; give an index")
    if not found:
        hint = taps.suggestion(_plain(wanted), set().union(*names.values()))
        raise ValueError(f"no class {wanted!r}{hint}; there are {_shown(classes)}")
    return found[0]


def _with_input(network: Network, preprocess: str | None, size: tuple[int, int] | None) -> Network:
    """The network with what was chosen for its pictures instead of the usual."""
    chosen = network.preprocess
    if preprocess is not None:
        chosen = PREPROCESS[pick("preprocessing", preprocess, PREPROCESS)]
    chosen = replace(chosen, size=size or chosen.size)
    return network._replace(preprocess=chosen, card=network.card | {"input": asdict(chosen)})


def _embedded(weights: str | None, options: list[str]) -> Network:
    if weights or options:
        raise ValueError(f"the model '{DEMO}' has weights of its own; choose another with --model")
    demo = demo_model()
    card = {"name": DEMO, "options": {}, "weights": _provenance(WEIGHTS / "demo.safetensors")}
    return Network(demo.model, demo.preprocess, demo.classes, card)


def _built(name: str, weights: str | None, options: list[str]) -> Network:
    if weights is None:
        raise ValueError(
            f"{name} needs --weights: a .safetensors or .npz file, or owner/name on the hub "
            "(random weights explain nothing)"
        )
    model, preprocess = blank(name, options)
    path = pretrained.locate(weights)
    card = {"name": name, "options": dict(map(assignment, options))}
    card["weights"] = _provenance(path) | {"source": weights}
    return Network(load(model, path), preprocess, (), card)


def _without_dropout(model: nnx.Module) -> nnx.Module:
    """Take the random streams from what is inactive anyway: they would stay without values."""
    for _, module in nnx.iter_modules(model):
        if isinstance(module, nnx.Dropout):
            module.rngs = None
    return model


def _model_options(build: Callable[..., nnx.Module]) -> list[str]:
    """The options of a network's constructor that a word can give."""
    (options,) = get_args(build.__annotations__["options"])
    return [key for key in options.__annotations__ if key != "rngs"]


def _provenance(path: Path) -> dict[str, str]:
    with path.open("rb") as file:
        return {"path": str(path), "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _json_classes(path: Path, text: str) -> list[str]:
    try:
        names = json.loads(text)
        if isinstance(names, dict):
            names = [names[str(i)] for i in range(len(names))]
        names = [name if isinstance(name, str) else name[-1] for name in names]
    except (json.JSONDecodeError, KeyError, TypeError, IndexError) as error:
        expected = '["name", ...] or {"0": ["n01440764", "name"], ...}'
        raise ValueError(f"'{path}' is not {expected}: {error!r}") from error
    return [str(name) for name in names]


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").casefold().split())


def _spellings(name: str) -> set[str]:
    return {_plain(name), *map(_plain, name.split(","))}


def _shown(classes: Sequence[str | None]) -> str:
    more = f" and {len(classes) - SHOWN} more" if len(classes) > SHOWN else ""
    return ", ".join(repr(name) for name in classes[:SHOWN]) + more
