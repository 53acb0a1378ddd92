"""FullGrad: its terms add up to the score, whatever way the biases come in."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference as ref
import reference_net as net
from nets import images, tiny, twins, widened

import jaxfmi as jf
from jaxfmi import class_score

LABEL = 1
X = np.random.default_rng(5).standard_normal((6, 8, 2))


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def close(got, expected, atol=1e-10):
    np.testing.assert_allclose(got, expected, rtol=0, atol=atol)


def total(score, x, *args):
    pixels, biases = jax.jit(jf.full_grad_terms(score))(x, *args)
    return pixels.sum() + sum(b.sum() for b in biases)


def test_twin():
    layers, score, biases = twins()
    values = net.forward(layers, X)
    gradients = net.backward(layers, values, np.eye(3)[LABEL])
    pairs = [(biases[0], gradients[2]), (biases[1], gradients[4])]
    got = jax.jit(jf.full_grad(score))(jnp.asarray(X), LABEL)
    close(got, ref.full_grad(pairs, X, gradients[0]))


def test_terms_of_the_twin():
    layers, score, biases = twins()
    values = net.forward(layers, X)
    gradients = net.backward(layers, values, np.eye(3)[LABEL])
    pixels, terms = jf.full_grad_terms(score)(jnp.asarray(X), LABEL)
    close(pixels, X * gradients[0])
    spatial = [b.reshape(6, 8, -1) for b in terms if b.size % 48 == 0]
    for got, bias, gradient in zip(spatial, biases, (gradients[2], gradients[4]), strict=True):
        close(got, bias * gradient)
    close(pixels.sum() + sum(b.sum() for b in terms), values[-1][LABEL])


@pytest.mark.parametrize("kind", ["nnx", "linen"])
@pytest.mark.parametrize("label", [0, 3])
def test_networks_are_complete(kind, label):
    score, x = class_score(widened(tiny(kind))), jnp.asarray(images(1)[0], float)
    close(total(score, x, label), score(x, label))


W = np.random.default_rng(0).standard_normal((2, 3))


@pytest.mark.parametrize(
    "f",
    [
        lambda x: (jax.nn.relu(x @ W) + 1).sum(),
        lambda x: (jax.nn.relu(1 - x @ W) * 2).sum(),
        lambda x: jax.nn.relu((x - 0.5) / 0.2 @ W - 1).sum(),
        lambda x: jax.nn.relu((x @ W + 1) * 3 - 2).sum() / 7,
        lambda x: jax.nn.relu(-(x @ W + 1) / 3).sum() + 5,
        lambda x: jax.nn.relu(2 * (x @ W) + (x @ W + 1)).sum(),
        lambda x: (x @ W + 1).sum(),
        lambda x: jnp.maximum(x @ W + 1, x @ W - 1).max(),
        lambda x: jnp.where(x[..., :1] > 0, x @ W + 1, 2 - x @ W).sum(),
        lambda x: jax.jit(lambda v: v + 1)(jax.jit(lambda v: v * 2 - 1)(x)).sum(),
        lambda x: jax.checkpoint(lambda v: jax.nn.relu(v @ W + 1))(x).sum(),
        lambda x: jnp.concatenate([x + 1, x]).reshape(-1)[3:20].sum(),
        lambda x: (x + jnp.ones(())).astype(jnp.float32).sum(),
        lambda x: x.sum() + x.shape[0],
        lambda x: x.sum() - 0 * (x > 0).astype(jnp.int32).sum().astype(float),
        lambda x: jnp.sum((x + 1) @ W - jnp.mean(x @ W + 2)),
    ],
)
def test_piecewise_linear_scores_are_complete(f):
    x = jnp.asarray(X)
    close(total(f, x), f(x), 1e-4 if f(x).dtype == jnp.float32 else 1e-10)


def test_biases_of_dense_layers_are_terms_but_not_shown():
    def score(x):
        return x.mean((0, 1)).sum() + 3.0

    pixels, biases = jf.full_grad_terms(score)(jnp.asarray(X))
    assert [float(b.sum()) for b in biases] == [3.0]
    close(jf.full_grad(score)(jnp.asarray(X)), ref.full_grad([], X, np.asarray(pixels) / X))


def test_the_map_of_a_batch_of_one():
    """A leading axis of 1 is no layer of its own."""
    single = jf.full_grad(lambda x: jax.nn.relu(x + 0.3).sum())(jnp.asarray(X))
    close(jf.full_grad(lambda x: jax.nn.relu(x[None] + 0.3).sum())(jnp.asarray(X)), single)


def test_size():
    score = twins().score
    assert jf.full_grad(score, size=(3, 5))(jnp.asarray(X), 0).shape == (3, 5)
    whole = jf.full_grad(score)(jnp.asarray(X), 0)
    close(jf.full_grad(score, size=None)(jnp.asarray(X), 0), whole)


def test_a_nonlinearity_with_a_value_of_its_own_is_a_bias_that_is_not_listed():
    """relu6 gives 6 where it clips: neither a slope nor a constant that is added."""
    x = jnp.array([-1.0, 1.0, 9.0])[:, None, None]
    close(total(lambda x: jax.nn.relu6(x).sum(), x), 1)
    close(total(lambda x: jax.nn.relu(x).sum(), x), 10)
