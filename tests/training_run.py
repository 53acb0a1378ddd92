"""A run small enough to be stopped in many ways, in this process or as a program of its own."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxfmi.train import classifier
from jaxfmi.train.data import Split


class Net(nnx.Module):
    """Any classifier will do: this one has random numbers and running statistics of its own."""

    def __init__(self, seed=0):
        self.rngs = nnx.Rngs(seed)
        self.norm = nnx.BatchNorm(3, rngs=self.rngs)
        self.dropout = nnx.Dropout(0.1, rngs=self.rngs)
        self.layer = nnx.Linear(8 * 8 * 3, 2, rngs=self.rngs)

    def __call__(self, x):
        return self.layer(jnp.reshape(self.dropout(self.norm(x)), (len(x), -1)))


def pictures(n, seed=0, side=8):
    """Two classes, told apart by their colour; the box is the middle."""
    rng = np.random.default_rng(seed)
    labels = (np.arange(n) % 2).astype(np.int32)
    images = rng.integers(0, 60, (n, side, side, 3), np.uint8)
    images[np.arange(n), side // 4 : -side // 4, side // 4 : -side // 4, labels] = 220
    boxes = np.tile([side // 4, side // 4, side - side // 4 - 1, side - side // 4 - 1], (n, 1))
    return Split(images, labels, boxes, ("red", "green"), ())


def data():
    return {"train": pictures(32), "test": pictures(8, 1)}


def config(out, **changes):
    options = {"epochs": 10, "batch_size": 8, "learning_rate": 0.01, "ema": 0.5, "pad": 1}
    options |= {"flip": True, "layer": "", "devices": 1, "save_every": 1, "evaluate_every": 5}
    return classifier.Config("memory", str(out), **options | changes)


def weights(model):
    return [np.asarray(a) for a in jax.tree.leaves(nnx.state(model, classifier.WEIGHTS))]


def main(out):
    np.savez(Path(out) / "weights.npz", *weights(classifier.main(config(out), Net(), data())))


if __name__ == "__main__":
    main(sys.argv[1])
