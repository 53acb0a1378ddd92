"""The runs behind ``lfi_cam.py``: which networks are trained on what, and the loop that does it.

An arm is a network and its loss, a setting is batch, rate and weight decay, a run is both and a
seed. The loop is that of ``jaxfmi.train`` in small, with its loss, schedule and augmentation: all
data is on the device, and an epoch is one compiled program.
"""

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jaxfmi import metrics, models
from jaxfmi.train.augment import augment, normalise
from jaxfmi.train.classifier import loss_fn
from jaxfmi.train.config import Config
from jaxfmi.train.digits import CLASSES, draw_digits
from jaxfmi.train.schedule import optimizer
from jaxfmi.train.sources import load_split

ARMS = {
    "baseline": ("lfi_cam_resnet", {"attention": "off"}),
    "deep": ("lfi_cam_resnet", {"attention": "deep"}),
    "uniform": ("lfi_cam_resnet", {"attention": "uniform"}),
    "lfi": ("lfi_cam_resnet", {}),
    "abn": ("abn_resnet", {}),
}
METHODS = ("baseline", "lfi", "abn")  # at all settings; the controls at the first only
REFRESH = 20  # batches that give an untrained network its statistics


class Setting(NamedTuple):
    """Batch size, highest rate of learning, weight decay."""

    batch: int
    rate: float
    decay: float


class Data(NamedTuple):
    """Pictures uint8, labels, and where the objects of the test pictures are."""

    images: np.ndarray
    labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    regions: Mapping[str, np.ndarray]  #: bool [N, S, S] each, at the size S of the scores
    small: np.ndarray  #: bool [N]: the object's box covers half of the picture at most
    size: int  #: S
    classes: int
    mean: Any
    std: Any


class Experiment(NamedTuple):
    """Data, network and recipe."""

    data: Callable[[Path, int], Data]  #: (folder, limit of pictures or 0)
    depth: int
    width: int
    epochs: int
    settings: Mapping[str, Setting]
    pad: int = 0
    flip: bool = False
    seeds: tuple[int, ...] = (0, 1, 2)


class Run(NamedTuple):
    """One network that is trained."""

    arm: str
    setting: str
    seed: int

    @property
    def name(self) -> str:
        """What its files are called."""
        return f"{self.arm}-{self.setting}-{self.seed}"


def digits(classes: int, size: int, count: int, folder: Path, limit: int) -> Data:
    """Digits on textures: 1000 test pictures; regions are the digit's box and its strokes."""
    train, test = (
        draw_digits(limit or n, split, size=size, classes=classes)
        for n, split in ((count, "train"), (1000, "test"))
    )
    boxes = boxed(test.boxes, size)
    everywhere = np.ones(len(test.labels), bool)
    shown = (test.images, test.labels, {"box": boxes, "strokes": test.masks}, everywhere)
    return Data(train.images, train.labels, *shown, size, len(CLASSES[classes]), [0.45], [0.25])


def tiny_imagenet(halve: bool, folder: Path, limit: int) -> Data:
    """Twenty classes of Tiny-ImageNet with a box each; maps are scored at 64×64."""
    train, test = (load_split(folder / f"tiny_imagenet20_{part}.npz") for part in ("train", "val"))
    few = slice(None, None, max(len(train.labels) // limit, 1) if limit else 1)
    boxes = boxed(test.boxes[few], 64)
    regions, small = {"box": boxes}, boxes.mean((1, 2)) <= 0.5
    pair = [np.asarray(s.images[few]) for s in (train, test)]
    if halve:
        pair = [p.reshape(-1, 32, 2, 32, 2, 3).mean((2, 4)).round().astype(np.uint8) for p in pair]
    shown = (pair[1], test.labels[few], regions, small)
    return standardised(pair[0], train.labels[few], *shown, 64, len(train.names))


def cifar(per_class: int, folder: Path, limit: int) -> Data:
    """CIFAR-10 out of lossy JPEGs, the first pictures of each class; there are no boxes."""
    train, test = (load_split(folder / f"cifar10_jpeg_{part}.npz") for part in ("train", "test"))
    first = np.concatenate(
        [np.flatnonzero(train.labels == k)[: limit or per_class] for k in range(10)]
    )
    few = slice(None, None, len(test.labels) // limit if limit else 1)
    shown = (test.images[few], test.labels[few], {}, np.zeros(len(test.labels[few]), bool))
    return standardised(train.images[first], train.labels[first], *shown, 32, 10)


def boxed(boxes: np.ndarray, size: int) -> np.ndarray:
    """Masks [N, size, size] of boxes x1, y1, x2, y2, both ends included."""
    corners = np.stack([boxes[:, 1], boxes[:, 0], boxes[:, 3] + 1, boxes[:, 2] + 1], 1)
    return np.stack([metrics.region(box, (size, size)) for box in corners])


def standardised(images, labels, *rest) -> Data:
    """Data with mean and standard deviation of its training pictures' colours."""
    scaled = images.reshape(-1, 3) / np.float32(255)
    return Data(images, labels, *rest, scaled.mean(0).tolist(), scaled.std(0).tolist())


C1 = {"a": Setting(64, 0.05, 5e-4), "b": Setting(32, 0.05, 1e-4), "c": Setting(64, 0.1, 1e-4)}
SMALL = {"a": C1["a"]}
G1 = {"a": Setting(128, 0.1, 5e-4), "b": Setting(64, 0.05, 5e-4), "c": Setting(128, 0.05, 1e-4)}
G2 = {"a": Setting(128, 0.1, 1e-4), "b": Setting(64, 0.05, 5e-4), "c": Setting(256, 0.1, 5e-4)}
EXPERIMENTS = {
    "C1-10": Experiment(partial(digits, 10, 24, 2000), 8, 8, 12, C1),
    "C1-2": Experiment(partial(digits, 2, 24, 2000), 8, 8, 12, C1),
    "C2": Experiment(partial(tiny_imagenet, True), 8, 8, 8, SMALL, 4, True),
    "C3": Experiment(partial(cifar, 1000), 8, 8, 8, SMALL, 4, True),
    "G1": Experiment(partial(tiny_imagenet, False), 20, 16, 60, G1, 8, True),
    "G2": Experiment(partial(cifar, 5000), 20, 16, 60, G2, 4, True),
    "G3-10": Experiment(partial(digits, 10, 32, 20_000), 8, 16, 30, C1),
    "G3-2": Experiment(partial(digits, 2, 32, 20_000), 8, 16, 30, C1),
}


def listed(experiment: Experiment, settings, seeds) -> list[Run]:
    """All runs: every arm at the first setting, the methods at the others; seeds outermost."""
    first = next(iter(experiment.settings))
    return [
        Run(arm, setting, seed)
        for seed in seeds
        for setting in settings
        for arm in (ARMS if setting == first else METHODS)
    ]


class State(NamedTuple):
    """What training changes."""

    params: Any
    stats: Any
    moments: Any
    epoch: int


class Trainer:
    """The compiled parts that the seeds of an arm at a setting share."""

    def __init__(self, experiment: Experiment, data: Data, arm: str, setting: Setting):
        kind, options = ARMS[arm]
        options = options | {"width": experiment.width, "num_classes": data.classes}
        build = partial(getattr(models, f"{kind}{experiment.depth}"), **options)
        self.graph = nnx.split(nnx.eval_shape(build), nnx.Param, nnx.BatchStat)[0]
        self.build = build  # not compiled as a whole: drawing all weights at once compiles slowly
        self.experiment, self.data, self.batch = experiment, data, setting.batch
        self.steps = len(data.labels) // setting.batch
        rates = {"learning_rate": setting.rate, "weight_decay": setting.decay}
        config = Config("", "", epochs=experiment.epochs, batch_size=setting.batch, **rates)
        self.tx = optimizer(config, self.steps)
        self.images, self.labels = jnp.asarray(data.images), jnp.asarray(data.labels)
        self._one = jax.jit(self._step)
        self._whole = jax.jit(self._scan)
        self._forward = jax.jit(self._train_forward)

    def start(self, seed: int) -> State:
        """New weights."""
        model = self.build(rngs=nnx.Rngs(seed))
        _, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)
        return State(params, stats, self.tx.init(params), 0)

    def epoch(self, state: State, seed: int) -> tuple[State, float]:
        """One pass over the data; also gives the mean loss."""
        order, keys = self._order(seed, state.epoch)
        inner = state[:3]
        if jax.default_backend() == "cpu":  # convolutions are four times slower in a loop there
            losses = []
            for index, key in zip(order, keys, strict=True):
                inner, loss = self._one(inner, (index, key), self.images, self.labels)
                losses.append(loss)
        else:
            inner, losses = self._whole(inner, (order, keys), self.images, self.labels)
        return State(*inner, state.epoch + 1), float(np.mean(jax.device_get(losses)))

    def refreshed(self, state: State, seed: int) -> State:
        """The same weights with statistics of batches, as a network has that was never trained."""
        order, keys = self._order(seed, 0)
        for index, key in zip(order[:REFRESH], keys[:REFRESH], strict=True):
            stats = self._forward(state.params, state.stats, self._pictures(index, key))
            state = state._replace(stats=stats)
        return state

    def _order(self, seed: int, epoch: int):
        order = np.random.default_rng((seed, epoch)).permutation(len(self.data.labels))
        order = order[: self.steps * self.batch].reshape(self.steps, self.batch)
        key = jax.random.fold_in(jax.random.key(seed + 1), epoch)
        return jnp.asarray(order), jax.random.split(key, self.steps)

    def _pictures(self, index, key, images=None):
        chosen = (self.images if images is None else images)[index]
        x = augment(key, chosen, pad=self.experiment.pad, flip=self.experiment.flip)
        return normalise(x, *_colours(self.data))

    def _step(self, state, inputs, images, labels):
        params, stats, moments = state
        x, y = self._pictures(*inputs, images), labels[inputs[0]]

        def loss(params):
            model = nnx.merge(self.graph, params, stats, copy=True)
            model.train()
            value, _ = loss_fn(model, x, y)
            return value, nnx.state(model, nnx.BatchStat)

        (value, stats), grads = jax.value_and_grad(loss, has_aux=True)(params)
        updates, moments = self.tx.update(grads, moments, params)
        return (optax.apply_updates(params, updates), stats, moments), value

    def _scan(self, state, inputs, images, labels):
        return jax.lax.scan(lambda s, i: self._step(s, i, images, labels), state, inputs)

    def _train_forward(self, params, stats, x):
        model = nnx.merge(self.graph, params, stats, copy=True)
        model.train()
        model(x)
        return nnx.state(model, nnx.BatchStat)


def _colours(data: Data):
    return (np.broadcast_to(np.asarray(v, np.float32), 3) for v in (data.mean, data.std))


def inputs(data: Data) -> jax.Array:
    """The test pictures as networks take them, [N, H, W, 3]."""
    return normalise(data.test_images / np.float32(255), *_colours(data))


def train(trainer: Trainer, run: Run, folder: Path, deadline: float) -> tuple[State, list[float]]:
    """Train a run to its end, or until the deadline, when what it has come to is written down.

    Raises:
      TimeoutError: the deadline came first; the next call goes on from there.
    """
    path = folder / f"{run.name}.part.npz"
    state, losses = trainer.start(run.seed), []
    if path.exists():
        state, losses = _read(path, state)
    while state.epoch < trainer.experiment.epochs:
        if time.monotonic() > deadline:
            leaves = jax.device_get(jax.tree.leaves(state[:3]))
            np.savez(path, *leaves, epoch=state.epoch, losses=losses)
            raise TimeoutError(f"{run.name} stops after epoch {state.epoch}")
        state, loss = trainer.epoch(state, run.seed)
        losses.append(loss)
    path.unlink(missing_ok=True)
    return state, losses


def _read(path: Path, like: State) -> tuple[State, list[float]]:
    with np.load(path) as found:
        leaves = [jnp.asarray(found[f"arr_{i}"]) for i in range(len(found.files) - 2)]
        inner = jax.tree.unflatten(jax.tree.structure(like[:3]), leaves)
        return State(*inner, int(found["epoch"])), found["losses"].tolist()
