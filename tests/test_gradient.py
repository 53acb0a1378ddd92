"""Gradient methods against twins with backward passes written by hand, and their laws."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference as ref
import reference_net as net
from flax import nnx
from nets import images, tiny, twins

import jaxfmi as jf
from jaxfmi import class_score, gradient

LABEL = 1
X = np.random.default_rng(5).standard_normal((6, 8, 2))


def close(got, expected, atol=1e-10):
    np.testing.assert_allclose(got, expected, rtol=0, atol=atol)


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


@functools.cache
def layers_and_score():
    return twins()[:2]


def explained(method, *args, **options):
    _, score = layers_and_score()
    return jax.jit(method(score, *args, **options))(jnp.asarray(X), LABEL)


def slope(rule="plain"):
    return net.score_gradient(layers_and_score()[0], LABEL, rule)


def test_the_twin_networks_agree():
    layers, score = layers_and_score()
    close(score(jnp.asarray(X), LABEL), net.score(layers, LABEL)(X), 1e-12)
    values = net.forward(layers, X)
    for name, place in {"relu0": 3, "relu1": 5, "pool": 6}.items():
        close(jf.capture(score, name)(jnp.asarray(X), LABEL)[1][name], values[place], 1e-12)


def test_saliency_and_input_x_gradient():
    close(explained(jf.saliency), ref.saliency(slope()(X)))
    close(explained(jf.input_x_gradient), ref.input_x_gradient(X, slope()(X)))
    close(explained(jf.saliency, reduce=gradient.channel_sum), slope()(X).sum(2))


@pytest.mark.parametrize(
    ("method", "rule"), [(jf.guided_backprop, "guided"), (jf.deconvnet, "deconvnet")]
)
def test_guided_backprop_and_deconvnet(method, rule):
    expected = slope(rule)(X)
    assert not np.allclose(expected, slope()(X))
    close(explained(method), expected.sum(2))
    close(explained(method, reduce=gradient.absolute_maximum), np.abs(expected).max(2))


def test_guided_grad_cam():
    layers, _ = layers_and_score()
    values = net.forward(layers, X)
    gradients = net.backward(layers, values, np.eye(3)[LABEL])
    guided, coarse = slope("guided")(X), ref.grad_cam(values[5], gradients[5]).map
    expected = ref.guided_grad_cam(guided, coarse)
    close(explained(jf.guided_grad_cam, "relu1"), expected.sum(2))
    first = explained(jf.guided_grad_cam, ["relu1", "relu0"], reduce=lambda v: v[..., 0])[0]
    close(first, expected[..., 0])


@pytest.mark.parametrize(
    ("baseline", "full"),
    [(0.0, 0 * X), (-0.3, 0 * X - 0.3), ([0.1, 0.4], 0 * X + [0.1, 0.4]), (X[::-1], X[::-1])],
    ids=["zero", "value", "colour", "image"],
)
def test_integrated_gradients(baseline, full):
    expected = ref.integrated_gradients(X, full, slope(), 6)
    close(explained(jf.integrated_gradients, baseline=jnp.asarray(baseline), steps=6), expected)


def test_integrated_gradients_are_complete():
    layers, _ = layers_and_score()
    total = explained(jf.integrated_gradients, baseline=0.2, steps=512, chunk=64).sum()
    change = net.score(layers, LABEL)(X) - net.score(layers, LABEL)(0 * X + 0.2)
    close(total, change, 1e-2 * abs(change))
    one = jf.integrated_gradients(lambda x: (x**2).sum(), baseline=0.3, steps=1)
    close(one(jnp.asarray(X)).sum(), (X**2).sum() - X.size * 0.3**2)  # exact for a quadratic


@pytest.mark.parametrize("chunk", [1, 4, 5, None])
def test_smooth_grad_with_the_same_noise(chunk):
    _, score = layers_and_score()
    key = jax.random.key(4)
    smoothed = jf.smooth_grad(jf.saliency(score), noise=0.2, samples=5, chunk=chunk)
    normals = [jax.random.normal(jax.random.fold_in(key, i), X.shape, float) for i in range(5)]
    noise = 0.2 * np.ptp(X) * np.array(normals)
    assert noise.std() > 0.1
    expected = ref.smooth_grad(X, noise, lambda v: ref.saliency(slope()(v)))
    close(jax.jit(smoothed)(jnp.asarray(X), LABEL, key=key), expected)


def test_smooth_grad_of_lists_and_terms():
    _, score = layers_and_score()
    x, key = jnp.asarray(X), jax.random.key(0)
    maps = jf.smooth_grad(jf.grad_cam(score, ["relu0", "relu1"]), samples=2)(x, LABEL, key=key)
    assert [m.shape for m in maps] == [(6, 8), (6, 8)]
    one = jf.smooth_grad(jf.grad_cam(score, "relu1"), samples=2)(x, LABEL, key=key)
    close(maps[1], one)
    silent = jf.smooth_grad(jf.saliency(score), noise=0.0, samples=3)(x, LABEL, key=key)
    close(silent, jf.saliency(score)(x, LABEL))


RELUS = {
    "jax.nn.relu": jax.nn.relu,
    "nnx.relu": nnx.relu,
    "jnp.maximum(x, 0)": lambda x: jnp.maximum(x, 0),
    "jnp.maximum(0, x)": lambda x: jnp.maximum(0.0, x),
    "jnp.clip(x, 0)": lambda x: jnp.clip(x, 0),
    "jit": jax.jit(lambda x: jax.nn.relu(x)),
    "remat": jax.checkpoint(lambda x: jnp.maximum(x, 0)),
    "relu6": lambda x: 4 * jax.nn.relu6(x / 4),  # nothing is above 24
}


@pytest.mark.parametrize("spelling", RELUS)
@pytest.mark.parametrize(
    ("method", "rule"), [(jf.guided_backprop, "guided"), (jf.deconvnet, "deconvnet")]
)
def test_every_spelling_of_relu_counts(method, rule, spelling):
    score = twins(relu=RELUS[spelling])[1]
    got = jax.jit(jax.vmap(method(score)))(jnp.asarray(X)[None], jnp.array([LABEL]))
    close(got[0], slope(rule)(X).sum(2))


def test_relu6_passes_nothing_where_it_clips():
    x = jnp.array([-1.0, 1.0, 7.0])[:, None, None]
    guided = jf.guided_backprop(lambda x: jax.nn.relu6(x).sum())(x)
    close(guided[:, 0], [0, 1, 0])
    close(jf.deconvnet(lambda x: jax.nn.relu6(x).sum())(x)[:, 0], [1, 1, 1])


def test_a_maximum_of_two_activations_is_no_relu():
    with pytest.raises(ValueError, match="no ReLU"):
        jf.guided_backprop(lambda x: jnp.maximum(x, 2 * x).sum())(jnp.asarray(X))
    with pytest.raises(ValueError, match="no ReLU"):
        jf.deconvnet(lambda x: jnp.maximum(x, 1).sum())(jnp.asarray(X))


def test_the_value_under_a_relu_rule_is_the_score():
    """Guided backpropagation changes gradients alone: a rewritten score is the score."""
    _, score = layers_and_score()
    seen = []

    def watched(x, label):
        seen.append(score(x, label))
        return seen[-1]

    jf.guided_backprop(watched)(jnp.asarray(X), LABEL)
    assert len(seen) == 1


def test_the_input_gradient_of_a_network_matches_jax():
    with jax.enable_x64(False):
        score, x = class_score(tiny("nnx")), images(1)[0]
        expected = jax.grad(score)(x, 3)
        close(jf.saliency(score)(x, 3), np.abs(expected).max(-1), 1e-6)
        close(jf.input_x_gradient(score)(x, 3), (x * expected).sum(-1), 1e-6)
