"""Train an image classifier: any NNX network, whichever data, one device or many.

    python -m jaxfmi.train.classifier --config demo --data ../shared/data/tiny_imagenet20 --out runs/a

Plain functions and a frozen dataclass. All randomness follows from the seed and the step: a run
can be repeated, and goes on from its checkpoint as if it had not stopped, whatever stopped it. A
step is one function of the state; the batch is spread over the devices, the state is on each.
"""

import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxfmi.models.pretrained import load, save
from jaxfmi.train import attention, checkpoint, networks
from jaxfmi.train.augment import augment, normalise
from jaxfmi.train.card import card
from jaxfmi.train.config import Config, parse
from jaxfmi.train.data import Data, Records, Split, batches, count, load_data, sweep
from jaxfmi.train.journal import Journal, journal
from jaxfmi.train.schedule import optimizer as make_optimizer
from jaxfmi.train.schedule import schedule

__all__ = ["Config", "State", "eval_step", "evaluate", "load_data", "loss_fn", "main", "train_step"]

WEIGHTS = (nnx.Param, nnx.BatchStat)
HEADS = ("logits", "aux_logits")
PROBE = 500  #: pictures whose maps are held against their boxes
DRAWN = 8  #: of them, on a panel
TICK = 1.0  #: seconds between looks at the figures of the epoch
FREE = (
    "out",
    "keep",
    "save_every",
    "log_every",
    "panel_every",
    "time_budget",
    "workers",
    "devices",
)
FREE += ("data_dir", "layer", "half", "note", "select")  # may change when a run goes on

Graph = tuple[nnx.GraphDef, nnx.GraphDef]


class State(NamedTuple):
    """All that changes in a run, and so all that a checkpoint holds."""

    model: nnx.State
    optimizer: nnx.State  #: momentum and the number of steps
    average: nnx.State  #: of weights and batch statistics; empty without `ema`
    sums: dict[str, jax.Array]  #: of the figures of steps, since the last row of the log
    key: jax.Array  #: of all augmentation; a step's is folded from it


class Run(NamedTuple):
    """What does not change in a run."""

    config: Config
    data: Data
    steps: int  #: in an epoch
    graph: Graph
    step: Callable[..., State]
    measure: Callable[..., dict[str, jax.Array]]
    look: Callable[..., jax.Array | None]
    batch: NamedSharding
    out: Path


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
    x = normalise(augment(key, images, size, **options), c.mean, c.std)
    gradient = nnx.value_and_grad(loss_fn, has_aux=True)
    (loss, out), grads = gradient(model, x, labels, c.label_smoothing)
    optimizer.update(model, grads)
    average = state.average
    if c.ema:
        average = optax.incremental_update(nnx.state(model, WEIGHTS), average, 1 - c.ema)
    row = {"steps": 1.0, "loss": loss, "grad_norm": optax.tree.norm(grads)}
    row |= {f"{k}_hits": (out[k].argmax(-1) == labels).mean() for k in HEADS if k in out}
    if "aux_logits" in out:
        row["aux_loss"] = _cross_entropy(out["aux_logits"], labels).mean()
    sums = {name: state.sums[name] + value for name, value in row.items()}
    return State(nnx.state(model), nnx.state(optimizer), average, sums, state.key)


AUGMENTATIONS = ("pad", "flip", "min_scale", "stretch", "jitter", "grey", "cast", "erase")


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
    return rows | attention.health(out)


def evaluate(model: nnx.Module, split: Split | Records, config: Config) -> dict[str, float]:
    """Mean figures of a network on a split: what `eval_step` gives, and the number of pictures."""
    graph, weights = nnx.split(model)
    whole, batch = _devices(config)
    measure = jax.jit(partial(eval_step, graph), static_argnames="config")
    return _sweep(measure, jax.device_put(weights, whole), split, config, batch)


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
      model: pictures [N, H, W, C] to logits [N, K]; None for the one that `config` names.
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
    started = time.monotonic()
    data = load_data(config) if data is None else data
    if model is None:
        options = config.model_options, config.precision, config.seed
        model = networks.build(config.model, len(data["train"].names), *options)
    if config.start:
        load(model, config.start)
    run, state = _begin(config, model, data)
    done, state = _resume(run, state)
    total = config.epochs * run.steps
    with journal(run.out, done, total, shown) as tell:
        if not config.time_budget or done == total:
            stop_at = float("inf")
        else:
            stop_at = started + config.time_budget
        done, state = _train(run, state, done, tell, stop_at)
        if done < total:
            tell.say(f"time is up: {total - done} steps left; the same command goes on")
            return _model(run, state)
    return _finish(run, state)


def _begin(config: Config, model: nnx.Module, data: Data) -> tuple[Run, State]:
    """Check that the parts fit, make the first state, and compile nothing yet."""
    whole, batch = _devices(config)
    steps = count(data["train"]) // config.batch_size
    if not steps:
        batches(data["train"], config)  # says so
    model = nnx.clone(model)
    optimizer = nnx.Optimizer(model, make_optimizer(config, steps), wrt=nnx.Param)
    (model_graph, weights), (rest, momentum) = nnx.split(model), nnx.split(optimizer)
    first = next(sweep(data["train"], config, 1)).images[:1]
    heads = _heads(model, first, len(data["train"].names))
    average = nnx.state(model, WEIGHTS) if config.ema else nnx.State({})
    state = State(weights, momentum, average, _zeros(heads), jax.random.key(config.seed))
    state = jax.device_put(jax.tree.map(jnp.copy, state), whole)  # no two may share memory
    step = partial(train_step, (model_graph, rest), config=config)
    run = Run(
        config,
        data,
        steps,
        (model_graph, rest),
        jax.jit(step, static_argnames="size", donate_argnums=0, out_shardings=whole),
        jax.jit(partial(eval_step, model_graph), static_argnames="config"),
        jax.jit(partial(_look, model_graph), static_argnames="config"),
        batch,
        Path(config.out).absolute(),
    )
    return run, state


def _train(run: Run, state: State, done: int, tell: Journal, stop_at: float) -> tuple[int, State]:
    """Go on after `done` steps to the end, or until time is up; returns (steps done, state)."""
    c, folder, maps = run.config, run.out / "checkpoint", None
    total, since, seen = c.epochs * run.steps, [done, time.perf_counter()], time.perf_counter()
    train = batches(run.data["train"], c, done) if done < total else iter(())
    with checkpoint.saving(folder, c.keep) as write, _signals() as caught:
        for at, (images, labels) in enumerate(train, done + 1):
            epoch = (at - 1) // run.steps
            size = c.sizes[epoch * len(c.sizes) // c.epochs] if c.sizes else 0
            pair = jax.device_put((images, labels), run.batch)
            state = run.step(state, *pair, size=size)
            ends, score = at % run.steps == 0, None
            if ends or (c.log_every and at % c.log_every == 0):
                row, state = _row(run, state, at, size, since)
                if ends and ((epoch + 1) % c.evaluate_every == 0 or at == total):
                    figures, maps = _examine(run, state, epoch, maps)
                    row |= figures
                    score = figures[f"{_watched(run)}_accuracy"]
                tell.write(row)
                since[:] = [at, time.perf_counter()]
            if time.perf_counter() - seen > TICK:
                seen = time.perf_counter()
                speed = c.batch_size * (at - since[0]) / max(seen - since[1], 1e-9)
                tell.tick(at, _figures(run, state, at) | {"images/s": speed})
            stop = bool(caught) or time.monotonic() > stop_at
            due = at % c.save_every == 0 if c.save_every else ends
            if due or stop or score is not None or at == total:
                _figures(run, state, at)  # never save what is not finite
                write(at, state, {"config": asdict(c), "position": at}, score)
            if stop and at < total:
                _leave(caught, at, tell)
                return at, state
    return total, state


def _row(run: Run, state: State, at: int, size: int, since: list) -> tuple[dict[str, float], State]:
    """The figures since the last row, and the state that counts anew."""
    c, seconds = run.config, time.perf_counter()
    figures = _figures(run, state, at)
    seconds = time.perf_counter() - since[1]
    row = {"epoch": (at - 1) // run.steps, "step": at, "seconds": seconds}
    row |= {"images_per_second": c.batch_size * (at - since[0]) / seconds}
    row |= {"size": size} if size else {}
    rate = float(schedule(c, run.steps)(at - 1))
    zeros = jax.device_put(_zeros(state.sums), state.key.sharding)
    return row | {"learning_rate": rate} | figures, state._replace(sums=zeros)


def _figures(run: Run, state: State, at: int) -> dict[str, float]:
    """Means since the last row. Raises FloatingPointError where they are not finite."""
    sums = {name: float(value) for name, value in jax.device_get(state.sums).items()}
    n = sums.pop("steps")
    if not n:
        return {}
    for name, what in (("loss", "loss"), ("grad_norm", "norm of the gradient")):
        if not np.isfinite(sums[name]):
            last = checkpoint.latest(run.out / "checkpoint")
            kept = (
                "there is no checkpoint"
                if last is None
                else f"the checkpoint of step {last} is good"
            )
            raise FloatingPointError(
                f"the {what} is {sums[name]} in epoch {(at - 1) // run.steps}, at step {at} or "
                f"little before; {kept}; try a learning rate below {run.config.learning_rate}"
            )
    names = {"logits_hits": "accuracy", "aux_logits_hits": "aux_accuracy"}
    return {names.get(name, name): value / n for name, value in sums.items()}


def _examine(run: Run, state: State, epoch: int, before: np.ndarray | None):
    """Evaluate, and look at the maps: (figures, maps of the first pictures, if there are any)."""
    c, name = run.config, _watched(run)
    split, weights = run.data[name], _weights(state)
    figures = _sweep(run.measure, weights, split, c, run.batch)
    maps, images, labels = _maps(run, weights, split)
    if maps is not None:
        figures |= attention.steadiness(maps, before)
        boxes = split.boxes if isinstance(split, Split) else None
        if boxes is not None:
            figures |= attention.localise(maps, boxes[: len(maps)], images.shape[1:3])
        if c.panel_every and (epoch + 1) // c.evaluate_every % c.panel_every == 0:
            captions = [split.names[label].split(",")[0] for label in labels[:DRAWN]]
            path = run.out / "attention" / f"epoch_{epoch:04}.png"
            attention.draw(path, images[:DRAWN], maps[:DRAWN], captions)
    return {f"{name}_{key}": value for key, value in figures.items() if key != "images"}, maps


def _maps(run: Run, weights: nnx.State, split: Split | Records):
    """Maps [n, h, w], pictures and labels of the first pictures; maps are None without any."""
    found, c = [], run.config
    for images, labels in sweep(split, c, PROBE):
        maps = run.look(weights, jax.device_put(images, run.batch), config=c)
        if maps is None:
            return None, None, None
        found.append((np.asarray(maps, np.float32), images, labels))
    n = min(PROBE, count(split))
    maps, images, labels = (np.concatenate(parts)[:n] for parts in zip(*found, strict=True))
    return maps, images, labels


def _look(graph: nnx.GraphDef, weights: nnx.State, images, *, config: Config):
    """The maps [N, h, w] that a model makes for itself, or None."""
    model = nnx.merge(graph, weights)
    model.eval()
    out = outputs(model, normalise(images.astype(float) / 255, config.mean, config.std))
    return out["attention"][..., 0] if "attention" in out else None


def _sweep(measure, weights, split: Split | Records, config: Config, batch) -> dict[str, float]:
    n, sums = count(split), {}
    for i, (images, labels) in enumerate(sweep(split, config)):
        valid = min(config.batch_size, n - i * config.batch_size)
        rows = measure(weights, *jax.device_put((images, labels), batch), config=config)
        for name, values in rows.items():
            sums[name] = sums.get(name, 0.0) + float(np.asarray(values, float)[:valid].sum())
    return {name: total / n for name, total in sums.items()} | {"images": n}


def _finish(run: Run, state: State) -> nnx.Module:
    """Take the weights that count, measure them on all that was held out, write them and a card."""
    c, step = run.config, None
    if c.select != "last":
        step = checkpoint.best(run.out / "checkpoint")
        _, state = checkpoint.restore(run.out / "checkpoint", state, step)
    model = _model(run, state)
    figures: dict[str, Any] = {}
    for name in ("val", "test"):
        if name in run.data:
            found = _sweep(run.measure, _weights(state), run.data[name], c, run.batch)
            figures |= {f"{name}_{key}": value for key, value in found.items()}
    save(model, run.out / "model.safetensors", half=c.half)
    held = run.data[_reported(run)]
    about = card(model, held, c, figures) | {
        "selected": "the last epoch" if step is None else f"step {step}, best on {c.select}"
    }
    (run.out / "model.json").write_text(json.dumps(about, indent=1) + "\n")
    return model


def _resume(run: Run, state: State) -> tuple[int, State]:
    """The latest checkpoint, if any, of a run with the same options."""
    folder = run.out / "checkpoint"
    run.out.mkdir(parents=True, exist_ok=True)
    at, state = checkpoint.restore(folder, state)
    if at < 0:
        text = json.dumps(asdict(run.config), indent=1)
        (run.out / "config.json").write_text(text + "\n")
        return 0, state
    there = checkpoint.read_meta(folder, at)["config"]
    here = json.loads(json.dumps(asdict(run.config)))
    if other := [k for k in here if k not in FREE and here[k] != there.get(k, here[k])]:
        changes = ", ".join(f"{k} {there[k]!r}, not {here[k]!r}" for k in other)
        raise ValueError(f"the run in '{run.out}' has {changes}: give another --out, or these")
    return at, state


def _leave(caught: list[int], at: int, tell: Journal) -> None:
    """After a signal: say so, and go."""
    if caught:
        tell.say(f"stopped by {signal.Signals(caught[0]).name}; step {at} is saved")
        if caught[0] == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + caught[0])


@contextmanager
def _signals() -> Iterator[list[int]]:
    """SIGTERM and SIGINT are put in a list; a second one interrupts."""
    caught: list[int] = []

    def catch(number: int, _: Any) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield caught
        return
    before = {s: signal.signal(s, catch) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _devices(config: Config) -> tuple[NamedSharding, NamedSharding]:
    """How the state lies on the devices, whole on each, and how a batch does, in parts."""
    there = jax.devices()
    if config.devices > len(there):
        raise ValueError(f"--devices {config.devices}, but there are {len(there)}: {there}")
    used = np.array(there[: config.devices or None])
    if config.batch_size % len(used):
        raise ValueError(
            f"a batch of {config.batch_size} can't be spread evenly over {len(used)} devices: "
            "give a multiple, or fewer with --devices"
        )
    mesh = Mesh(used, ("data",))
    return NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))


def _heads(model: nnx.Module, images: np.ndarray, classes: int) -> list[str]:
    """Names of the figures of a step. Raises ValueError where classes and logits differ."""
    x = jnp.asarray(images, float)
    out = nnx.eval_shape(lambda m: outputs(m, x), model)
    if out["logits"].shape != (len(images), classes):
        raise ValueError(
            f"the data has {classes} classes, but the network gives {out['logits'].shape} for "
            f"{len(images)} picture"
        )
    heads = [f"{k}_hits" for k in HEADS if k in out]
    return ["steps", "loss", "grad_norm", *heads, *(["aux_loss"] if "aux_logits" in out else [])]


def _zeros(names) -> dict[str, jax.Array]:
    return {name: jnp.zeros(()) for name in names}


def _cross_entropy(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def _weights(state: State) -> nnx.State:
    """The model's state, with the averages where there are any."""
    return nnx.merge_state(state.model, state.average)


def _model(run: Run, state: State) -> nnx.Module:
    """The network in eval mode, on one device."""
    one = jax.devices()[0]
    model = nnx.merge(run.graph[0], jax.device_put(_weights(state), one))
    model.eval()
    return model


def _watched(run: Run) -> str:
    """The split that is evaluated while the run goes on."""
    return (
        run.config.select if run.config.select != "last" else "val" if "val" in run.data else "test"
    )


def _reported(run: Run) -> str:
    return "test" if "test" in run.data else "val"


if __name__ == "__main__":
    try:
        main(parse(doc=__doc__))
    except (OSError, ValueError, ImportError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
