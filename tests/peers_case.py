"""One small network in PyTorch and in JAX, with images and maps, to ask two programs about it."""

import functools
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxfmi import batched, input_x_gradient, metrics
from jaxfmi.metrics.robustness import draw_noise
from jaxfmi.modules import logit, probability

COUNT, SIDE, CLASSES, SAMPLES = 4, 24, 5, 12
PIXELS = SIDE * SIDE
KEY = jax.random.key(0)


class Case(NamedTuple):
    """One network in two programs, images, their labels, and a map for each."""

    network: Any  #: PyTorch's
    model: Any  #: ours, with the same weights
    images: np.ndarray  #: [COUNT, SIDE, SIDE, C]
    maps: np.ndarray  #: [COUNT, SIDE, SIDE], in (0, 1], no two values alike
    labels: np.ndarray

    def measure(self, method, of=probability, key=None):
        """Ask our metric about all images."""
        ask = batched(method, self.model, batch_size=COUNT, of=of)
        return ask(self.images, self.maps, self.labels, key=key)

    def pixels(self):
        """Give the images as [COUNT, C, SIDE, SIDE]."""
        return np.moveaxis(self.images, -1, 1).copy()

    def tensor(self):
        return import_torch().from_numpy(self.pixels())


@functools.cache
def import_torch() -> ModuleType:
    return pytest.importorskip("torch", reason="needs the extra `peers`: torch")


@functools.cache
def make_case(channels: int) -> Case:
    torch = import_torch()
    torch.manual_seed(0)
    convolutions = torch.nn.Conv2d(channels, 6, 5, 2), torch.nn.Conv2d(6, 8, 3)
    dense, relu, flatten = torch.nn.Linear(8 * 8 * 8, CLASSES), torch.nn.ReLU(), torch.nn.Flatten()
    network = torch.nn.Sequential(convolutions[0], relu, convolutions[1], relu, flatten, dense)
    for module in (*convolutions, dense):
        module.weight.data *= 2.5  # so that probabilities move
    params = [(m.weight.detach().numpy(), m.bias.detach().numpy()) for m in (*convolutions, dense)]
    rng = np.random.default_rng(channels)
    maps = np.stack([rng.permutation(PIXELS) for _ in range(COUNT)]).reshape(-1, SIDE, SIDE)
    images = rng.normal(size=(COUNT, SIDE, SIDE, channels)).astype(np.float32)
    scaled = np.float32((maps + 1) / PIXELS)
    return Case(network.eval(), (logits, params), images, scaled, np.arange(COUNT))


def logits(params, x):
    x = jnp.moveaxis(x, -1, 1)
    for (kernel, bias), stride in zip(params[:2], (2, 1), strict=True):
        x = jax.lax.conv(x, kernel, (stride, stride), "VALID")
        x = jax.nn.relu(x + bias[None, :, None, None])
    return x.reshape(len(x), -1) @ params[2][0].T + params[2][1][None]


def agree(ours, theirs):
    """Check equality to 1e-4, of values that are not all alike."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    assert np.ptp(theirs) > 1e-3
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def gradient_map(case, x, labels):
    """Input times gradient of logits, summed over channels: [N, C, H, W] -> [N, 1, H, W]."""
    torch = import_torch()
    with torch.enable_grad():
        x = x.detach().clone().requires_grad_()
        case.network(x)[np.arange(len(x)), labels].sum().backward()
        return (x * x.grad).sum(1, keepdim=True).detach()


def sensitivity(case, radius):
    """Our max-sensitivity of input times gradient, for all images."""
    maps = gradient_map(case, case.tensor(), case.labels)[:, 0].numpy()
    options = {"radius": radius, "samples": SAMPLES}
    return case._replace(maps=maps).measure(
        lambda score: metrics.max_sensitivity(input_x_gradient(score), **options), logit, KEY
    )


def sensitivity_noise(case, radius):
    """Draw the noise that it adds to the images, [COUNT, SAMPLES, C, SIDE, SIDE]."""
    keys = [
        jax.random.fold_in(jax.random.fold_in(KEY, i), j) for i, j in np.ndindex(COUNT, SAMPLES)
    ]
    drawn = np.stack([draw_noise(key, case.images[0], radius) for key in keys])
    return np.moveaxis(drawn.reshape(COUNT, SAMPLES, *case.images.shape[1:]), -1, 2)
