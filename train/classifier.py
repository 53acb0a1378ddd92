"""Train an image classifier: any NNX network, whichever data, one device or many.

    python -m jaxfmi.train.classifier --config demo --data ../data/tiny_imagenet20 --out runs/demo

Plain functions and a frozen dataclass. All randomness follows from the seed and the step: a run
can be repeated, and goes on from its checkpoint as if it had not stopped, whatever stopped it. A
step is one function of the state; the batch is spread over the devices, the state is on each.
"""

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jaxfmi.models.pretrained import load, save
from jaxfmi.train import checkpoint, loop, networks
from jaxfmi.train.attention import health
from jaxfmi.train.augment import augment, normalise
from jaxfmi.train.card import card, layer_of
from jaxfmi.train.config import Config, read_file
from jaxfmi.train.data import (
    Data,
    Records,
    Split,
    check_splits,
    first,
    load_data,
    steps_in_epoch,
)
from jaxfmi.train.journal import journal
from jaxfmi.train.loop import Run, State, spread
from jaxfmi.train.options import check_same, parse
from jaxfmi.train.schedule import optimizer as make_optimizer
from jaxfmi.train.sources import check_labels
from jaxfmi.whole import whole

__all__ = ["Config", "eval_step", "evaluate", "load_data", "loss_fn", "main", "train_step"]

MODULE = "jaxfmi.train.classifier"
WEIGHTS = (nnx.Param, nnx.BatchStat)
HEADS = {"logits": "accuracy", "aux_logits": "aux_accuracy"}  #: outputs with a loss, and its figure
AUGMENTATIONS = ("pad", "flip", "min_scale", "stretch", "jitter", "grey", "cast", "erase")
FREE = ("out", "keep", "save_every", "log_every", "panel_every", "time_budget", "workers")
FREE += ("devices", "data_dir", "layer", "half", "note")  # may change as a run goes on

Graph = tuple[nnx.GraphDef, nnx.GraphDef]


def outputs(model: nnx.Module, images: jax.Array) -> Mapping[str, jax.Array]:
    """What `model.forward` gives, or else the `logits` alone; logits at least in float32."""
    forward = getattr(model, "forward", None)
    out = dict(forward(images)) if forward else {"logits": model(images)}
    wide = {k: jnp.promote_types(out[k].dtype, jnp.float32) for k in HEADS if k in out}
    return out | {k: out[k].astype(dtype) for k, dtype in wide.items()}


def loss_fn(model, images, labels, smoothing=0.0):
    """Sum of the mean cross-entropies of all heads, for pictures [N, H, W, C] and labels [N].

    Returns (loss, what `outputs` gives).
    """
    out = outputs(model, images)
    targets = optax.smooth_labels(jax.nn.one_hot(labels, out["logits"].shape[-1]), smoothing)
    heads = [optax.softmax_cross_entropy(out[k], targets).mean() for k in HEADS if k in out]
    return sum(heads), out


def train_step(graph: Graph, state: State, images, labels, *, config: Config, size: int = 0):
    """One update from pictures uint8 [N, H, W, C] and labels [N]: the next state.

    `size` is the side of the pictures that the network sees; 0 for their own.
    """
    c = config
    model, optimizer = (nnx.merge(g, s) for g, s in zip(graph, state[:2], strict=True))
    model.train()
    key = jax.random.fold_in(state.key, optimizer.step[...])
    options = {name: getattr(c, name) for name in AUGMENTATIONS}
    if c.size:  # pictures were cropped as they were read
        options |= {"min_scale": 1.0, "stretch": 1.0}
    x = normalise(augment(key, images, size, **options), c.mean, c.std)
    gradient = nnx.value_and_grad(loss_fn, has_aux=True)
    (loss, out), grads = gradient(model, x, labels, c.label_smoothing)
    optimizer.update(model, grads)
    average: Any = state.average
    if c.ema:
        average = optax.incremental_update(nnx.state(model, WEIGHTS), average, 1 - c.ema)
    row = {"steps": 1.0, "loss": loss, "grad_norm": optax.tree.norm(grads)}
    row |= {v: (out[k].argmax(-1) == labels).mean() for k, v in HEADS.items() if k in out}
    if "aux_logits" in out:
        row["aux_loss"] = _cross_entropy(out["aux_logits"], labels).mean()
    sums = {name: state.sums[name] + value for name, value in row.items()}
    return State(nnx.state(model), nnx.state(optimizer), average, sums, state.key)


def eval_step(graph: nnx.GraphDef, weights: nnx.State, images, labels, *, config: Config):
    """Figures [N] of pictures uint8 [N, H, W, C]: loss, accuracy, and what the map is like."""
    model = nnx.merge(graph, weights)
    model.eval()
    out = outputs(model, normalise(images.astype(float) / 255, config.mean, config.std))
    logits = out["logits"]
    rows = {"loss": _cross_entropy(logits, labels), "accuracy": logits.argmax(-1) == labels}
    if logits.shape[-1] >= 10:
        rows["top5"] = (jax.lax.top_k(logits, 5)[1] == labels[:, None]).any(-1)
    if "aux_logits" in out:
        rows["aux_loss"] = _cross_entropy(out["aux_logits"], labels)
        rows["aux_accuracy"] = out["aux_logits"].argmax(-1) == labels
    return rows | health(out)


def look(graph: nnx.GraphDef, weights: nnx.State, images, *, config: Config) -> jax.Array | None:
    """The maps [N, h, w] that a model makes for itself, or None."""
    model = nnx.merge(graph, weights)
    model.eval()
    out = outputs(model, normalise(images.astype(float) / 255, config.mean, config.std))
    return out["attention"][..., 0] if "attention" in out else None


def evaluate(model: nnx.Module, split: Split | Records, config: Config) -> dict[str, float]:
    """Mean figures of a network on a split: what `eval_step` gives, and the number of `images`.

    Raises:
      ValueError: the network has another number of classes, or the devices do not divide a batch.
    """
    everywhere, batch = spread(config)
    _figures(model, first(split, config), len(split.names))
    graph, weights = nnx.split(model)
    measure = jax.jit(partial(eval_step, graph, config=config))
    return loop.figures(measure, jax.device_put(weights, everywhere), split, config, batch)


def main(
    config: Config,
    model: nnx.Module | None = None,
    data: Data | None = None,
    *,
    shown: bool | None = None,
) -> nnx.Module:
    """Train a network, going on from a checkpoint in `config.out`.

    A run that came to its end leaves `model.safetensors` and `model.json`; one that `time_budget`
    stopped does not. A SIGTERM or an interrupt makes it save and leave.

    Args:
      config: all about the run.
      model: pictures [N, H, W, C] to logits [N, K], or with a method `forward` that gives them and
        more by name; None for the network that `config` names.
      data: splits by name; None for those that `config` names.
      shown: show a bar; None for on a terminal only.

    Returns:
      A copy in eval mode, with the weights that `config.select` says (and averaged, with `ema`).

    Raises:
      ValueError: data, network, checkpoint and `config` do not go together; says what does not.
      FileNotFoundError: there is no such data.
      FloatingPointError: the loss or its gradient is not finite.
      OSError: a checkpoint can't be written; the one before is there.
      KeyboardInterrupt, SystemExit: after an interrupt, or SIGTERM; the state is saved.
    """
    stop_at = time.monotonic() + (config.time_budget or np.inf)
    data = load_data(config) if data is None else data
    _check(config, data)
    if model is None:
        options = config.model_options, config.precision, config.seed
        model = networks.build(config.model, len(data["train"].names), *options)
    if config.start and checkpoint.latest(Path(config.out, "checkpoint")) is None:
        load(model, config.start)
    run, state = _begin(config, model, data)
    done, state = _resume(run, state)
    with journal(run.out, done, run.total, shown) as tell:
        done, state = loop.train(run, state, done, tell, stop_at)
        if done < run.total:
            tell.say(f"time is up: {run.total - done} steps are left; the same command goes on")
            return _filled(model, loop.weights(state))
    return _finish(run, model, state)


def _check(config: Config, data: Data) -> None:
    """Raise ValueError for what can be seen before a network is built."""
    spread(config)
    check_splits(data, config)
    steps_in_epoch(data["train"], config)
    names = data["train"].names
    for split, held in data.items():
        if held.labels is not None:
            check_labels(held.labels, held.names, split)
        if held.names != names:
            raise ValueError(
                f"the classes of {split} are {_listed(held.names)}; those of train "
                f"{_listed(names)}: they have to be the same, in the same order"
            )
    folder = Path(config.out, "checkpoint")
    if (at := checkpoint.latest(folder)) is not None:
        check_same(config, checkpoint.read_meta(folder, at)["config"], FREE)


def _begin(config: Config, model: nnx.Module, data: Data) -> tuple[Run, State]:
    """Compile nothing yet, and make the first state."""
    everywhere, batch = spread(config)
    steps = steps_in_epoch(data["train"], config)
    optimizer = nnx.Optimizer(model, make_optimizer(config, steps), wrt=nnx.Param)
    (graph, weights), (rest, momentum) = nnx.split(model), nnx.split(optimizer)
    picture = first(data["train"], config)
    sums = loop.zeros(_figures(model, picture, len(data["train"].names)))
    layer_of(_filled(model, weights), picture, config.layer)  # now, and not at the end
    average = nnx.state(model, WEIGHTS) if config.ema else nnx.State({})
    state = State(weights, momentum, average, sums, jax.random.key(config.seed))
    state = jax.device_put(
        jax.tree.map(jnp.copy, state), everywhere
    )  # a step gives its memory away
    step = partial(train_step, (graph, rest), config=config)
    run = Run(
        config,
        data,
        steps,
        jax.jit(step, static_argnames="size", donate_argnums=0, out_shardings=everywhere),
        jax.jit(partial(eval_step, graph, config=config)),
        jax.jit(partial(look, graph, config=config)),
        batch,
        Path(config.out).absolute(),
    )
    return run, state


def _figures(model: nnx.Module, images: np.ndarray, classes: int) -> list[str]:
    """Names of the figures of a step. Raises ValueError where classes and logits differ."""
    x = jnp.asarray(images, float)
    out = nnx.eval_shape(lambda m: outputs(m, x), model)
    if out["logits"].shape != (len(images), classes):
        raise ValueError(
            f"the data has {classes} classes, but the network gives {out['logits'].shape} for "
            f"{len(images)} picture"
        )
    found = ["loss", *(v for k, v in HEADS.items() if k in out)]
    return ["steps", "grad_norm", *found, *(["aux_loss"] if "aux_logits" in out else [])]


def _resume(run: Run, state: State) -> tuple[int, State]:
    """The latest checkpoint, or else the beginning."""
    run.out.mkdir(parents=True, exist_ok=True)
    if checkpoint.latest(run.folder) is None:
        (run.out / "config.json").write_text(json.dumps(asdict(run.config), indent=1) + "\n")
    at, state = checkpoint.restore(run.folder, state)
    return max(at, 0), state


def _finish(run: Run, model: nnx.Module, state: State) -> nnx.Module:
    """Take the weights that count, measure them on all that was held out, write them and a card."""
    c, selected = run.config, "the last epoch"
    if c.select != "last":
        step, state = checkpoint.restore(run.folder, state, checkpoint.best(run.folder))
        selected = f"step {step}, the best on {c.select}"
    model, found = _filled(model, loop.weights(state)), {}
    save(model, run.out / "model.safetensors", half=c.half)
    held = {name: run.data[name] for name in ("val", "test") if name in run.data}
    for name, split in held.items():
        figures = loop.figures(run.measure, loop.weights(state), split, c, run.batch)
        found |= {f"{name}_{key}": value for key, value in figures.items()}
    reported = held["test"] if "test" in held else held["val"]
    about = card(model, reported, c, found, MODULE) | {"selected": selected}
    with whole(run.out / "model.json") as partial:
        partial.write_text(json.dumps(about, indent=1) + "\n")
    return model


def _filled(model: nnx.Module, weights: nnx.State) -> nnx.Module:
    """A copy in eval mode, on one device."""
    graph, _ = nnx.split(model)
    model = nnx.merge(graph, jax.device_put(weights, jax.devices()[0]))
    model.eval()
    return model


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _cross_entropy(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


if __name__ == "__main__":
    try:
        main(parse(Config, MODULE, __doc__, read=read_file))
    except (OSError, ValueError, ImportError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
