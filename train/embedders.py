"""Networks that embed: built from a run's options, kept at its end, and opened again.

Few-shot and contrastive training share this, and ``jaxfmi compare`` opens what they leave.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxfmi.models.embedding import Conv4, Projected, Projection, ResNet12
from jaxfmi.models.preprocess import Preprocess
from jaxfmi.models.pretrained import load, save
from jaxfmi.taps import suggestion
from jaxfmi.train import checkpoint
from jaxfmi.train.options import check_same, command
from jaxfmi.whole import whole

__all__ = [
    "NETWORKS",
    "Embedder",
    "begin",
    "build",
    "keep",
    "open_embedder",
    "projected",
]

NETWORKS = {"conv4": Conv4, "resnet12": ResNet12}
CARD, WEIGHTS, OPTIONS = "model.json", "model.safetensors", "config.json"


class Embedder(NamedTuple):
    """A network in eval mode with `features`, and what pictures go through."""

    model: Any
    preprocess: Preprocess
    card: dict[str, Any]  #: what `model.json` says


def build(config: Any, channels: int, rngs: nnx.Rngs) -> nnx.Module:
    """The network that the options of a run name.

    Raises:
      ValueError: there is no such network, or `pools` names a block that there is not.
    """
    return _build(config.network, **_options(config, channels), rngs=rngs)


def projected(
    model: Any, sizes: Sequence[int], shape: Sequence[int], rngs: nnx.Rngs | None = None
) -> Projected:
    """A backbone and a head that fits what it makes of pictures of `shape` [H, W, C].

    `sizes` are the head's, hidden and output.
    """
    model.eval()
    like = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    inputs = nnx.eval_shape(lambda m, x: m(x), model, like).shape[-1]
    return Projected(model, Projection(inputs, *sizes, rngs=rngs))


def begin(config: Any) -> Path:
    """Make the folder of a run and write its options there; returns the folder.

    Raises:
      ValueError: the run whose checkpoint is there was begun with other options.
    """
    out = Path(config.out).absolute()
    out.mkdir(parents=True, exist_ok=True)
    path, begun = out / OPTIONS, checkpoint.latest(out / "checkpoint") is not None
    if begun and path.is_file():
        check_same(config, json.loads(path.read_text()), ("out",))
    path.write_text(json.dumps(asdict(config), indent=1) + "\n")
    return out


def keep(
    model: nnx.Module,
    config: Any,
    figures: Mapping[str, float],
    module: str,
    shape: tuple[int, ...],
    *,
    named: bool,
) -> None:
    """Write weights and their card to the run's folder.

    Args:
      model: in eval mode.
      config: the dataclass of the training script `module`.
      figures: what it was measured to do.
      module: the script.
      shape: of the pictures, [H, W, C].
      named: the network is the one that `build` makes; others can't be opened by their card, nor
        can those of pictures with other than 1 or 3 channels.
    """
    save(model, Path(config.out) / WEIGHTS)
    card: dict[str, Any] = {
        "figures": dict(figures),
        "command": command(config, module),
        "config": asdict(config),
    }
    if known := shape[-1] in (1, 3):  # others come from no picture file
        card["preprocess"] = asdict(_preprocess(config, shape))
    if named and known:
        options = _options(config, shape[-1])
        card["network"] = {"name": config.network, "options": options, "shape": shape}
    with whole(Path(config.out) / CARD) as partial:
        partial.write_text(json.dumps(card, indent=1) + "\n")


def open_embedder(run: str | Path) -> Embedder:
    """Open what a run of few-shot or contrastive training left at its end.

    Raises:
      FileNotFoundError: the run has not come to its end.
      ValueError: its network is none that has a name.
    """
    path = Path(run) / CARD
    if not path.is_file():
        raise FileNotFoundError(f"no finished run in '{run}': it has no {CARD}")
    try:
        card = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"'{path}' can't be read: {error}") from error
    given, weights = card.get("network"), path.with_name(WEIGHTS)
    if not isinstance(given, dict) or not {"name", "options", "shape"} <= given.keys():
        raise ValueError(
            f"'{path}' names no network: the run is not of few-shot or contrastive training, is "
            "of an earlier version, or was given a network of its own; build that and use "
            "jaxfmi.models.load"
        )
    model = _build(given["name"], **given["options"])
    if head := card["config"].get("projection"):
        model = load(projected(model, head, given["shape"]), weights).backbone
    else:
        model = load(model, weights)
    options: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in card["preprocess"].items()
    }
    return Embedder(model, Preprocess(**options), card)


def _build(name: str, **options: Any) -> nnx.Module:
    if name not in NETWORKS:
        hint = suggestion(name, NETWORKS)
        raise ValueError(f"no network {name!r}{hint}; there are {[*NETWORKS]}")
    return NETWORKS[name](**options)


def _options(config: Any, channels: int) -> dict[str, Any]:
    pools = {"pools": config.pools} if config.network == "conv4" else {}
    return {"widths": config.widths, "channels": channels} | pools


def _preprocess(config: Any, shape: tuple[int, ...]) -> Preprocess:
    """What makes of a picture file what the network was trained on.

    Drawings of a `.zip` were read with ink 1 and paper 0: `(1 - p / 255 - mean) / std`.
    """
    height, width, channels = shape
    mean, std = (tuple(v * channels if len(v) == 1 else v) for v in (config.mean, config.std))
    if channels != 1:
        return Preprocess((height, width), mean, std)
    if not str(config.data).endswith(".zip"):
        return Preprocess((height, width), mean, std, order="L")
    ink = tuple(m - 1 for m in mean)
    return Preprocess((height, width), ink, std, order="L", scale=-255.0)
