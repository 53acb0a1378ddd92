r"""Train a network to compare: prototypical networks (Snell, Swersky and Zemel, 2017).

    python -m jaxfmi.train.few_shot --out runs/omniglot --rotations \
        --data ../shared/data/omniglot_images_background_small1.zip \
        --novel ../shared/data/omniglot_images_background_small2.zip

An episode draws some classes, and of each some support pictures, whose mean embedding is the
class's prototype, and some queries. The logits of a query are its negative squared distances to the
prototypes. The network is tested on classes that it was not trained on.

Five plain functions and a frozen dataclass. All randomness follows from the seed and the episode's
number: a run can be repeated, and goes on from its checkpoint as if it had not stopped.
"""

import math
import sys
import time
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jaxfmi.train import checkpoint, embedders
from jaxfmi.train.data import normalise
from jaxfmi.train.journal import rounds
from jaxfmi.train.options import parse
from jaxfmi.train.pictures import Pictures, choose, disjoint, read, rotations

__all__ = ["Config", "draw", "eval_step", "load_data", "loss_fn", "main", "train_step"]

MODULE = "jaxfmi.train.few_shot"


@dataclass(frozen=True)
class Config:
    """What a run is made of; every field is an option of the command line.

    Attributes:
      data: a packed `.npz` or a `.zip` of Omniglot's.
      out: folder for `log.jsonl`, the checkpoint, `model.safetensors` and `model.json`.
      novel: file of the pictures to test on; classes that `data` has too, by name, are left out.
      held_out: indices of classes of `data` to test on, instead of `novel`.
      size: side of the drawings, where they come from a `.zip`.
      rotations: take each class turned by 90, 180 and 270 degrees as three more.
      mirror: mirror pictures at random.
      way: classes of an episode.
      shot: support pictures of each class.
      query: pictures of each class to be recognised.
      episodes: how many to train with.
      learning_rate: Adam's; it falls to 0 along a cosine.
      scale: what squared distances are multiplied by. Means over positions are close together.
      test_way: classes of an episode of the test.
      test_shot: its support pictures.
      test_query: its pictures to be recognised.
      test_episodes: how many to test with, at each checkpoint.
      every: episodes between two checkpoints and tests.
      network: conv4 or resnet12.
      widths: of the network's blocks; the published ResNet-12 has 64 160 320 640.
      pools: blocks of conv4 that end in a max pool.
      mean: subtracted from the colours in 0..1; one number, or one per channel.
      std: divides them then.
      seed: of weights and episodes.

    """

    data: str
    out: str
    novel: str = ""
    held_out: tuple[int, ...] = ()
    size: int = 28
    rotations: bool = False
    mirror: bool = False
    way: int = 20
    shot: int = 5
    query: int = 5
    episodes: int = 800
    learning_rate: float = 1e-3
    scale: float = 10.0
    test_way: int = 5
    test_shot: int = 1
    test_query: int = 10
    test_episodes: int = 100
    every: int = 200
    network: str = "conv4"
    widths: tuple[int, ...] = (32, 64, 64, 64)
    pools: tuple[int, ...] = (1, 2)
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    seed: int = 0


def loss_fn(model, support, query, scale=1.0):
    """Mean cross-entropy of the queries' classes; returns (loss, logits [N, Q, N]).

    Args:
      model: pictures [B, H, W, C] to embeddings [B, E].
      support: [N, K, H, W, C], K pictures of each of N classes.
      query: [N, Q, H, W, C].
      scale: of the squared distances.

    """
    ways, shots = support.shape[:2]
    both = jnp.concatenate([support, query], 1)
    embeddings = model(both.reshape(-1, *both.shape[2:])).reshape(*both.shape[:2], -1)
    prototypes = embeddings[:, :shots].mean(1)
    difference = embeddings[:, shots:, None] - prototypes[None, None]
    logits = -scale * jnp.square(difference).sum(-1)
    labels = jnp.broadcast_to(jnp.arange(ways)[:, None], logits.shape[:2])
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), logits


@partial(nnx.jit, static_argnames="config")
def train_step(model, optimizer, images, key, *, config: Config):
    """One episode, in place, of pictures uint8 [N, K + Q, H, W, C]; returns metrics."""
    x = _input(images, config)
    if config.mirror:
        mirrored = jax.random.bernoulli(key, shape=(*x.shape[:2], 1, 1, 1))
        x = jnp.where(mirrored, x[..., ::-1, :], x)
    gradient = nnx.value_and_grad(loss_fn, has_aux=True)
    (loss, logits), grads = gradient(model, *_parts(x, config.shot), config.scale)
    optimizer.update(model, grads)
    return {"loss": loss, "accuracy": _accuracy(logits)}


@partial(nnx.jit, static_argnames="config")
def eval_step(model, images, *, config: Config):
    """Loss and accuracy of one episode of the test, for a model in eval mode."""
    x = _input(images, config)
    loss, logits = loss_fn(model, *_parts(x, config.test_shot), config.scale)
    return {"test_loss": loss, "test_accuracy": _accuracy(logits)}


def load_data(config: Config) -> tuple[Pictures, Pictures]:
    """Read what to train on and what to test on, which have no class in common.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: it is not clear what to test on, or a file is not of a kind that is known.

    """
    if bool(config.novel) == bool(config.held_out):
        raise ValueError("give either `novel`, a file, or `held_out`, indices of classes of `data`")
    train = read(config.data, config.size)
    if config.novel:
        novel = disjoint(read(config.novel, config.size), train)
    else:
        novel = choose(train, config.held_out)
        train = choose(train, sorted(set(train.labels.tolist()) - set(config.held_out)))
    return (rotations(train) if config.rotations else train), novel


def main(
    config: Config,
    model: nnx.Module | None = None,
    data: tuple[Pictures, Pictures] | None = None,
) -> nnx.Module:
    """Train `model` (None: the one that is named), going on from a checkpoint in `config.out`.

    `model` maps pictures [B, H, W, C] to embeddings [B, E]. `data` is what `load_data` returns, for
    arrays that are in no file. Returns the model, in eval mode. Raises what `load_data` raises;
    ValueError for too few classes, pictures or episodes, and FloatingPointError when the loss is
    not finite.
    """
    for name in ("episodes", "test_episodes", "every"):
        if (given := getattr(config, name)) < 1:
            raise ValueError(f"{name} is at least 1, got {given}")
    train, novel = load_data(config) if data is None else data
    _check(train, config.way, config.shot + config.query, "to train on")
    _check(novel, config.test_way, config.test_shot + config.test_query, "to test on")
    named, shape = model is None, train.images.shape[1:]
    model = model or embedders.build(config, shape[-1], nnx.Rngs(config.seed))
    schedule = optax.cosine_decay_schedule(config.learning_rate, config.episodes)
    optimizer = nnx.Optimizer(model, optax.adam(schedule), wrt=nnx.Param)
    out = embedders.begin(config)
    done, state = checkpoint.restore(out / "checkpoint", nnx.state((model, optimizer)))
    nnx.update((model, optimizer), state)
    with rounds(out, range(done + 1, -(-config.episodes // config.every))) as (numbers, write):
        for number in numbers:
            metrics = _round(number, model, optimizer, train, config) | _test(model, novel, config)
            write(metrics)
            checkpoint.save(out / "checkpoint", number, nnx.state((model, optimizer)))
    model.eval()
    embedders.keep(model, config, _test(model, novel, config), MODULE, shape, named=named)
    return model


def draw(rng: np.random.Generator, labels: np.ndarray, way: int, each: int) -> np.ndarray:
    """Draw `way` classes and `each` pictures of every one: indices [way, each], none twice."""
    classes = rng.choice(np.unique(labels), way, replace=False)
    return np.stack([rng.choice(np.flatnonzero(labels == c), each, replace=False) for c in classes])


def _round(number: int, model, optimizer, train: Pictures, config: Config) -> dict[str, float]:
    """The episodes up to the next checkpoint; returns the means of their metrics."""
    start = time.perf_counter()
    steps = range(number * config.every, min((number + 1) * config.every, config.episodes))
    key = jax.random.key(config.seed)
    model.train()
    rows = []
    for step in steps:
        rng = np.random.default_rng((config.seed, 0, step))
        images = train.images[draw(rng, train.labels, config.way, config.shot + config.query)]
        rows.append(
            train_step(model, optimizer, images, jax.random.fold_in(key, step), config=config)
        )
    means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    if not math.isfinite(loss := means["loss"]):
        where = f"episodes {steps.start} to {steps.stop - 1}"
        lower = f"try a learning rate below {config.learning_rate}"
        raise FloatingPointError(f"the loss is {loss} in {where}: {lower}")
    return {"episodes": steps.stop, "seconds": time.perf_counter() - start} | means


def _test(model, novel: Pictures, config: Config) -> dict[str, float]:
    """Means over the same episodes of new classes every time, and a 95 % interval's half width."""
    c, rows = config, []
    model.eval()
    for number in range(c.test_episodes):
        rng = np.random.default_rng((c.seed, 1, number))
        chosen = draw(rng, novel.labels, c.test_way, c.test_shot + c.test_query)
        rows.append(eval_step(model, novel.images[chosen], config=c))
    values = {name: np.array([float(row[name]) for row in rows]) for name in rows[0]}
    half = 1.96 * values["test_accuracy"].std() / math.sqrt(len(rows))
    return {name: float(v.mean()) for name, v in values.items()} | {"test_interval": float(half)}


def _input(images, config: Config) -> jax.Array:
    """Pictures uint8 [N, K, H, W, C] as the network takes them."""
    flat = images.reshape(-1, *images.shape[2:]) / jnp.float32(255)
    return normalise(flat, config.mean, config.std).reshape(images.shape)


def _parts(x: jax.Array, shot: int) -> tuple[jax.Array, jax.Array]:
    """Support and query."""
    return x[:, :shot], x[:, shot:]


def _accuracy(logits: jax.Array) -> jax.Array:
    """Share of the queries [N, Q] whose nearest prototype is their own class's."""
    return (logits.argmax(-1) == jnp.arange(len(logits))[:, None]).mean()


def _check(pictures: Pictures, way: int, each: int, purpose: str) -> None:
    counts = np.unique(pictures.labels, return_counts=True)[1]
    if len(counts) < way or min(counts, default=0) < each:
        there = f"{len(counts)} with at least {min(counts, default=0)}"
        raise ValueError(
            f"an episode needs {way} classes of {each} pictures {purpose}: got {there}"
        )


if __name__ == "__main__":
    try:
        main(parse(Config, MODULE, __doc__))
    except (OSError, ValueError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
