r"""Train a network without labels: SimCLR (Chen, Kornblith, Norouzi and Hinton, 2020).

    python -m jaxfmi.train.contrastive --out runs/simclr --pictures 10000 \
        --data ../shared/data/cifar10_jpeg_train.npz --val ../shared/data/cifar10_jpeg_test.npz

Every picture is seen twice, cropped, mirrored and recoloured at random; the network learns to tell
which two of a batch belong together. A head on its embedding is for training only.

Five plain functions and a frozen dataclass. All randomness follows from the seed, the epoch and the
step: a run can be repeated, and goes on from its checkpoint as if it had not stopped.

What differs from the paper: colours always change, and by gains of the channels instead of the hue;
there is no blur; Adam on small batches instead of LARS on large ones.
"""

import math
import sys
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jaxfmi.models.embedding import Projected
from jaxfmi.train import checkpoint, embedders
from jaxfmi.train.data import augment, normalise
from jaxfmi.train.journal import rounds
from jaxfmi.train.options import parse
from jaxfmi.train.pictures import Pictures, read

__all__ = ["Config", "eval_step", "load_data", "loss_fn", "main", "neighbours", "train_step"]

MODULE = "jaxfmi.train.contrastive"


@dataclass(frozen=True)
class Config:
    """What a run is made of; every field is an option of the command line.

    Attributes:
      data: a packed `.npz` of pictures to train on; their labels are not looked at.
      out: folder for `log.jsonl`, the checkpoint, `model.safetensors` and `model.json`.
      val: a packed `.npz` of pictures to test on. Where both have labels, what 20 nearest
        neighbours get right joins the figures.
      pictures: how many of `data`, chosen at random (0: all).
      val_pictures: how many of `val`.
      epochs: passes over the pictures.
      batch_size: pictures in a step; the rest of an epoch that fills no batch is left out.
      temperature: what cosines are divided by.
      learning_rate: Adam's; it falls to 0 along a cosine.
      min_scale: smallest crop, as a share of the picture's area.
      stretch: largest change of the crop's aspect ratio, as a factor.
      jitter: largest change of brightness, contrast and saturation.
      grey: probability of taking all colour away.
      cast: largest change of the colours' balance.
      network: conv4 or resnet12.
      widths: of the network's blocks; the published ResNet-12 has 64 160 320 640.
      pools: blocks of conv4 that end in a max pool.
      projection: hidden and output size of the head.
      mean: subtracted from the colours in 0..1.
      std: divides them then.
      seed: of weights, order and views.

    """

    data: str
    out: str
    val: str
    pictures: int = 0
    val_pictures: int = 2000
    epochs: int = 20
    batch_size: int = 256
    temperature: float = 0.2
    learning_rate: float = 2e-3
    min_scale: float = 0.25
    stretch: float = 1.33
    jitter: float = 0.4
    grey: float = 0.2
    cast: float = 0.2
    network: str = "conv4"
    widths: tuple[int, ...] = (16, 32, 64, 128)
    pools: tuple[int, ...] = (1, 2)
    projection: tuple[int, int] = (128, 64)
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    seed: int = 0


def loss_fn(model, first, second, temperature=0.2):
    """NT-Xent of two views [N, H, W, C] of N pictures; returns (loss, cosines / t [2N, 2N]).

    For every view the logits are its cosines to the 2N - 1 others over the temperature, and the
    right answer is the other view of its picture (Chen et al., eq. 1).
    """
    z = model(jnp.concatenate([first, second]))
    # Below the root, so that a projection of 0 has the gradient 0 instead of NaN.
    z /= jnp.sqrt(jnp.square(z).sum(1, keepdims=True).clip(1e-12))
    others = jnp.where(jnp.eye(len(z), dtype=bool), -jnp.inf, z @ z.T / temperature)
    answers = jnp.roll(jnp.arange(len(z)), len(first))
    return optax.softmax_cross_entropy_with_integer_labels(others, answers).mean(), others


@partial(nnx.jit, static_argnames="config")
def train_step(model, optimizer, images, key, *, config: Config):
    """One update, in place, from pictures uint8 [N, H, W, C]; returns metrics."""
    gradient = nnx.value_and_grad(loss_fn, has_aux=True)
    one, other = _views(key, images, config)
    (loss, logits), grads = gradient(model, one, other, config.temperature)
    optimizer.update(model, grads)
    return {"loss": loss, "accuracy": _accuracy(logits)}


@partial(nnx.jit, static_argnames="config")
def eval_step(model, images, key, *, config: Config):
    """Loss and share of pairs found, for a model in eval mode."""
    loss, logits = loss_fn(model, *_views(key, images, config), config.temperature)
    return {"val_loss": loss, "val_accuracy": _accuracy(logits)}


def load_data(config: Config) -> tuple[Pictures, Pictures]:
    """Read what to train on and what to test on.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: a file is not of a kind that is known.

    """
    train, val = read(config.data), read(config.val)
    rng = np.random.default_rng(config.seed)
    return _some(train, config.pictures, rng), _some(val, config.val_pictures, rng)


def main(
    config: Config,
    model: nnx.Module | None = None,
    data: tuple[Pictures, Pictures] | None = None,
) -> Projected:
    """Train `model` (None: the one that is named), going on from a checkpoint in `config.out`.

    `model` maps pictures [N, H, W, C] to embeddings [N, E]. `data` is what `load_data` returns, for
    arrays that are in no file. Returns the model as the backbone of a `Projected`, in eval mode.
    Raises what `load_data` raises; ValueError for fewer pictures than a batch, or none to test on,
    and FloatingPointError when the loss is not finite.
    """
    train, val = load_data(config) if data is None else data
    if not len(val.images):
        raise ValueError("there is no picture to test on")
    if len(train.images) < config.batch_size:
        given = f"{len(train.images)} pictures"
        raise ValueError(f"a batch has {config.batch_size} pictures, there are {given} to train on")
    named, shape, rngs = model is None, train.images.shape[1:], nnx.Rngs(config.seed)
    model = model or embedders.build(config, shape[-1], rngs)
    whole = embedders.projected(model, config.projection, shape, rngs)
    steps = config.epochs * (len(train.images) // config.batch_size)
    schedule = optax.cosine_decay_schedule(config.learning_rate, steps)
    optimizer = nnx.Optimizer(whole, optax.adam(schedule), wrt=nnx.Param)
    out = embedders.begin(config)
    done, state = checkpoint.restore(out / "checkpoint", nnx.state((whole, optimizer)))
    nnx.update((whole, optimizer), state)
    with rounds(out, range(done + 1, config.epochs)) as (numbers, write):
        for epoch in numbers:
            metrics = _epoch(epoch, whole, optimizer, train, config) | _test(whole, val, config)
            write(metrics)
            checkpoint.save(out / "checkpoint", epoch, nnx.state((whole, optimizer)))
    whole.eval()
    figures = _test(whole, val, config) | _neighbours(whole.backbone, train, val, config)
    embedders.keep(whole, config, figures, MODULE, shape, named=named)
    return whole


def neighbours(gallery, labels, queries, k: int = 20) -> jax.Array:
    """Give the class that most of the k nearest of a gallery have, [Q], by the cosine.

    Args:
      gallery: embeddings [N, E], from whose mean cosines are measured.
      labels: [N].
      queries: embeddings [Q, E].
      k: how many; of several classes that are equally frequent the first counts.

    """
    mean = gallery.mean(0, keepdims=True)
    a, b = (
        (v - mean) / jnp.linalg.norm(v - mean, axis=1, keepdims=True) for v in (gallery, queries)
    )
    _, nearest = jax.lax.top_k(b @ a.T, k)
    classes = int(np.max(labels)) + 1
    return jax.nn.one_hot(jnp.asarray(labels)[nearest], classes).sum(1).argmax(1)


def _epoch(epoch: int, model, optimizer, train: Pictures, config: Config) -> dict[str, float]:
    """One pass over the pictures; returns the means of the steps' metrics."""
    start, n = time.perf_counter(), config.batch_size
    order = np.random.default_rng((config.seed, epoch)).permutation(len(train.images))
    batches = order[: len(order) // n * n].reshape(-1, n)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), epoch), len(batches))
    model.train()
    rows = [
        train_step(model, optimizer, train.images[batch], key, config=config)
        for batch, key in zip(batches, keys, strict=True)
    ]
    means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    if not math.isfinite(loss := means["loss"]):
        lower = f"try a learning rate below {config.learning_rate}"
        raise FloatingPointError(f"the loss is {loss} in epoch {epoch}: {lower}")
    return {"epoch": epoch, "seconds": time.perf_counter() - start} | means


def _test(model, val: Pictures, config: Config) -> dict[str, float]:
    """Means over whole batches of the test's pictures, whose views are the same every time."""
    n = min(config.batch_size, len(val.images))
    starts = range(0, len(val.images) - n + 1, n)
    keys = jax.random.split(jax.random.key(config.seed), len(starts))
    model.eval()
    rows = [
        eval_step(model, val.images[i : i + n], key, config=config)
        for i, key in zip(starts, keys, strict=True)
    ]
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def _neighbours(model, train: Pictures, val: Pictures, config: Config) -> dict[str, float]:
    """The accuracy of 20 nearest neighbours, where there are labels."""
    if not len(train.labels) or not len(val.labels):
        return {}

    @nnx.jit
    def embed(model, images):
        return model(normalise(images / jnp.float32(255), config.mean, config.std))

    def embedded(images):
        return jnp.concatenate(
            [embed(model, images[i : i + 500]) for i in range(0, len(images), 500)]
        )

    gallery, queries = embedded(train.images), embedded(val.images)
    found = neighbours(gallery, train.labels, queries, min(20, len(gallery)))
    return {"neighbours": float((found == val.labels).mean())}


def _views(key, images, config: Config) -> tuple[jax.Array, jax.Array]:
    """Two random views of every picture, float32 as the network takes them."""
    one, other = jax.random.split(key)
    return _view(one, images, config), _view(other, images, config)


def _view(key, images, c: Config) -> jax.Array:
    crop = {"flip": True, "min_scale": c.min_scale, "stretch": c.stretch}
    colours = {"jitter": c.jitter, "grey": c.grey, "cast": c.cast}
    options: dict[str, Any] = crop | colours
    return normalise(augment(key, images, images.shape[1], **options), c.mean, c.std)


def _accuracy(logits: jax.Array) -> jax.Array:
    """Share of the views [2N] that are closest to the other view of their picture."""
    answers = jnp.roll(jnp.arange(len(logits)), len(logits) // 2)
    return (logits.argmax(1) == answers).mean()


def _some(pictures: Pictures, count: int, rng: np.random.Generator) -> Pictures:
    """`count` of the pictures at random, or all."""
    order = rng.permutation(len(pictures.images))[: count or None]
    return Pictures(pictures.images[order], pictures.labels[order], pictures.names)


if __name__ == "__main__":
    try:
        main(parse(Config, MODULE, __doc__))
    except (OSError, ValueError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
