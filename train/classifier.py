"""Train an image classifier: the loop that made the embedded model, for any NNX classifier.

    python -m jaxfmi.train.classifier --data ../shared/data/tiny_imagenet20 --out runs/demo

Five plain functions and a frozen dataclass. All randomness follows from the seed, the epoch and the
step: a run can be repeated, and goes on from its checkpoint as if it had not stopped. No picture of
the validation split takes part in any choice: the recipe is fixed and the last epoch counts.
"""

import argparse
import json
import math
import sys
import time
from dataclasses import MISSING, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from rich.progress import Progress

from jaxfmi.models.demo import DemoNet
from jaxfmi.models.pretrained import load, save
from jaxfmi.train import checkpoint
from jaxfmi.train.card import card
from jaxfmi.train.data import Split, augment, load_data, normalise

__all__ = ["Config", "eval_step", "load_data", "loss_fn", "main", "train_step"]

WEIGHTS = (nnx.Param, nnx.BatchStat)


@dataclass(frozen=True)
class Config:
    """What a run is made of; every field is an option of the command line.

    Attributes:
      data: reads `<data>_train.npz` and `<data>_val.npz`.
      out: folder for `log.jsonl`, the checkpoint, `model.safetensors` and `model.json`.
      start: weights to start from, as `jaxfmi.models.pretrained.load` takes them, or "".
      epochs: passes over the training split.
      batch_size: pictures in a step; the rest of an epoch that fills no batch is left out.
      sizes: sides of the training pictures, in equal shares of the epochs. Small pictures first
        make a run shorter; validation takes pictures as they are.
      learning_rate: the highest, reached after `warmup_epochs`; it falls to 0 along a cosine.
      warmup_epochs: epochs of linear warm-up, at the most all but the last step.
      momentum: Nesterov's.
      weight_decay: of the loss's gradient, for tensors of rank 2 and more (no bias, no norm).
      label_smoothing: share of the target that is spread over all classes.
      ema: decay of the averages of weights and batch statistics: these are evaluated and kept.
      min_scale: smallest crop, as a share of the picture's area.
      stretch: largest change of the crop's aspect ratio, as a factor.
      jitter: largest change of brightness, contrast and saturation.
      grey: probability of taking all colour away.
      cast: largest change of the colours' balance.
      erase: probability of blanking a rectangle.
      mean: subtracted from the colours in 0..1.
      std: divides them then.
      layer: tag where Grad-CAM's peak is held against the boxes of the validation split, or "".
      note: kept in `model.json`: licence, origin.
      seed: of weights, order and augmentation.

    """

    data: str
    out: str
    start: str = ""
    epochs: int = 40
    batch_size: int = 64
    sizes: tuple[int, ...] = (32, 40, 48, 48)
    learning_rate: float = 0.1
    warmup_epochs: float = 2.0
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_smoothing: float = 0.1
    ema: float = 0.995
    min_scale: float = 0.2
    stretch: float = 1.5
    jitter: float = 0.4
    grey: float = 0.2
    cast: float = 0.3
    erase: float = 0.1
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    layer: str = "auto"
    note: str = ""
    seed: int = 0


def loss_fn(model, images, labels, smoothing=0.0):
    """Mean cross-entropy of pictures [N, H, W, C] and labels [N]; returns (loss, logits [N, K])."""
    logits = model(images)
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), smoothing)
    return optax.softmax_cross_entropy(logits, targets).mean(), logits


@partial(nnx.jit, static_argnames=("config", "size"))
def train_step(model, optimizer, average, images, labels, key, *, config: Config, size: int):
    """One update, in place, from pictures uint8 [N, H, W, C]; returns (average, metrics)."""
    c = config
    x = augment(key, images, size, c.min_scale, c.stretch, c.jitter, c.grey, c.cast, c.erase)
    x = normalise(x, c.mean, c.std)
    gradient = nnx.value_and_grad(loss_fn, has_aux=True)
    (loss, logits), grads = gradient(model, x, labels, c.label_smoothing)
    optimizer.update(model, grads)
    average = optax.incremental_update(nnx.state(model, WEIGHTS), average, 1 - c.ema)
    return average, {"loss": loss, "accuracy": (logits.argmax(-1) == labels).mean()}


@partial(nnx.jit, static_argnames="config")
def eval_step(model, images, labels, *, config: Config):
    """Sums of loss and hits over pictures uint8 [N, H, W, C], for a model in eval mode."""
    x = normalise(images / 255.0, config.mean, config.std)
    loss, logits = loss_fn(model, x, labels)
    return {"val_loss": loss * len(labels), "val_accuracy": (logits.argmax(-1) == labels).sum()}


def main(config: Config, model: nnx.Module | None = None) -> nnx.Module:
    """Train `model` (None: the demo network), going on from a checkpoint in `config.out`.

    `model` maps pictures [N, H, W, C] to logits [N, K]. Returns a copy in eval mode that has the
    averaged weights. Raises what `load_data` raises, and FloatingPointError when the loss is not
    finite.
    """
    train, val = load_data(config.data)
    model = DemoNet(len(train.names), rngs=nnx.Rngs(config.seed)) if model is None else model
    if config.start:
        load(model, config.start)
    optimizer = nnx.Optimizer(model, _optimizer(config, len(train.labels)), wrt=nnx.Param)
    average = jax.tree.map(jnp.copy, nnx.state(model, WEIGHTS))
    out = Path(config.out).absolute()
    out.mkdir(parents=True, exist_ok=True)
    state = {"live": nnx.state((model, optimizer)), "average": average}
    done, state = checkpoint.restore(out / "checkpoint", state)
    nnx.update((model, optimizer), state["live"])
    average = state["average"]
    with Progress() as progress, (out / "log.jsonl").open("a") as log:
        for epoch in progress.track(range(done + 1, config.epochs)):
            average, metrics = _epoch(epoch, model, optimizer, average, train, config)
            metrics |= _evaluate(_averaged(model, average), val, config)
            print(json.dumps(metrics), file=log, flush=True)
            progress.console.print(*(f"{k} {v:.4g}" for k, v in metrics.items()), soft_wrap=True)
            state = {"live": nnx.state((model, optimizer)), "average": average}
            checkpoint.save(out / "checkpoint", epoch, state)
    final = _averaged(model, average)
    save(final, out / "model.safetensors", half=True)
    text = json.dumps(card(final, val, config, _evaluate(final, val, config)), indent=1)
    (out / "model.json").write_text(text + "\n")
    return final


def _epoch(epoch, model, optimizer, average, train: Split, config: Config):
    """One pass over the training split; returns (average, metrics)."""
    start, n = time.perf_counter(), min(config.batch_size, len(train.labels))
    size = config.sizes[epoch * len(config.sizes) // config.epochs]
    order = np.random.default_rng((config.seed, epoch)).permutation(len(train.labels))
    batches = order[: len(order) // n * n].reshape(-1, n)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), epoch), len(batches))
    model.train()
    rows = []
    for batch, key in zip(batches, keys, strict=True):
        data = train.images[batch], train.labels[batch], key
        average, row = train_step(model, optimizer, average, *data, config=config, size=size)
        rows.append(row)
    means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    if not math.isfinite(loss := means["loss"]):
        lower = f"try a learning rate below {config.learning_rate}"
        raise FloatingPointError(f"the loss is {loss} in epoch {epoch}: {lower}")
    return average, {"epoch": epoch, "size": size, "seconds": time.perf_counter() - start} | means


def _evaluate(model, val: Split, config: Config) -> dict[str, float]:
    """Mean loss and accuracy on a split, for a model in eval mode."""
    n = len(val.labels)
    cuts = [slice(i, i + 100) for i in range(0, n, 100)]
    rows = [eval_step(model, val.images[c], val.labels[c], config=config) for c in cuts]
    return {name: float(sum(row[name] for row in rows)) / n for name in rows[0]}


def _averaged(model: nnx.Module, average) -> nnx.Module:
    """A copy in eval mode that has the averaged weights."""
    model = nnx.clone(model)
    nnx.update(model, average)
    model.eval()
    return model


def _optimizer(config: Config, pictures: int) -> optax.GradientTransformation:
    steps = max(pictures // config.batch_size, 1)
    total = config.epochs * steps
    warmup = min(round(config.warmup_epochs * steps), total - 1)
    schedule = optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, warmup, total)
    decayed = partial(jax.tree.map, lambda p: p.ndim > 1)
    return optax.chain(
        optax.add_decayed_weights(config.weight_decay, decayed),
        optax.sgd(schedule, config.momentum, nesterov=True),
    )


def _config(arguments: list[str] | None = None) -> Config:
    """Read a Config from the command line: one option for each of its fields."""
    parser = argparse.ArgumentParser("python -m jaxfmi.train.classifier", description=__doc__)
    for field in fields(Config):
        option, default = f"--{field.name.replace('_', '-')}", field.default
        if default is MISSING:
            parser.add_argument(option, required=True)
        elif isinstance(default, tuple):
            parser.add_argument(option, nargs="+", type=type(default[0]), default=default)
        else:
            parser.add_argument(option, type=type(default), default=default)
    values: dict[str, Any] = vars(parser.parse_args(arguments))
    lists: dict[str, Any] = {k: tuple(v) for k, v in values.items() if isinstance(v, list)}
    return Config(**values | lists)


if __name__ == "__main__":
    try:
        main(_config())
    except (OSError, ValueError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
