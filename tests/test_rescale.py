"""Rescale through every operation that has a rule: complete, symmetric, finite; and the errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_afmi as twin
import reference_net as net
from flax import nnx

import jaxfmi as jf
from jaxfmi.models.layers import max_pool
from jaxfmi.rescale import rescaled

H, W, K = 5, 6, 3
normal = np.random.default_rng(0).standard_normal
A, A0 = normal((2, H, W, K))
KERNEL, DENSE = normal((3, 3, K, 4)) / 3, normal((K, 7))
WEIGHTS = normal(2 * H * W * 7)


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def conv(a):
    dimensions = ("NHWC", "HWIO", "NHWC")
    kernel = jnp.asarray(KERNEL, a.dtype)
    return jax.lax.conv_general_dilated(
        a[None], kernel, (2, 1), "SAME", dimension_numbers=dimensions
    )[0]


def dense(a):
    return a @ jnp.asarray(DENSE, a.dtype)


@jax.custom_vjp
def doubled(a):
    return 2 * a


doubled.defvjp(lambda a: (2 * a, None), lambda _, g: (3 * g,))


MASK = normal((H, W, 1)) > 0
LINEAR = {
    "identity": lambda a: a,
    "convolution": conv,
    "dense": dense,
    "average": lambda a: a.mean((0, 1)),
    "average pooling": lambda a: nnx.avg_pool(a, (2, 2), (2, 1), "SAME"),
    "einsum": lambda a: jnp.einsum("ijk,kl->li", a, DENSE),
    "affine": lambda a: (3 - a) / 7 + a * 0.3 - (2 + a),
    "concatenation": lambda a: jnp.concatenate([a, 2 * a[::-1], jnp.ones((1, W, K))]),
    "padding": lambda a: jnp.pad(a, ((1, 0), (0, 2), (0, 0)), constant_values=3.0),
    "indexing": lambda a: a[1::2, jnp.array([0, 3, 3])] + a[2, 1][None, None],
    "transposition": lambda a: a.transpose(2, 0, 1).reshape(K, -1).T,
    "mask": lambda a: jnp.where(MASK, a, 2.0),
    "splits": lambda a: sum(jnp.split(a, 3, axis=1)),
    "cumsum": lambda a: jnp.cumsum(a, 1),
    "checkpoint": jax.checkpoint(lambda a: 2 * a),
    "custom derivative": doubled,
}
ELEMENTWISE = {
    "relu": jax.nn.relu,
    "maximum with 0": lambda a: jnp.maximum(a, 0),
    "relu6": lambda a: jax.nn.relu6(4 * a),
    "clip": lambda a: jnp.clip(a, -0.3, 0.8),
    "leaky_relu": jax.nn.leaky_relu,
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "softplus": jax.nn.softplus,
    "elu": jax.nn.elu,
    "selu": jax.nn.selu,
    "gelu as one function": jax.jit(jax.nn.gelu),
    "silu": jax.nn.silu,
    "hard_swish": jax.nn.hard_swish,
    "exp and log": lambda a: jnp.log(1 + jnp.exp(a)),
    "log of positive": lambda a: jnp.log(0.1 + jnp.abs(a)),
    "root": lambda a: jnp.sqrt(1 + a**2),
    "power": lambda a: (2 + jnp.tanh(a)) ** 1.7,
    "square": jnp.square,
    "reciprocal": lambda a: 1 / (3 + jnp.tanh(a)),
    "inner jit": jax.jit(lambda a: jnp.tanh(2 * a)),
}
MAXIMA = {
    "max_pool of flax": lambda a: nnx.max_pool(a, (2, 2), (2, 2)),
    "overlapping, padded": lambda a: nnx.max_pool(a, (3, 3), (2, 2), "SAME"),
    "of a batch": lambda a: nnx.max_pool(a[None], (3, 2), (1, 2), "VALID"),
    "max_pool of models": lambda a: max_pool(a, 3, 2, 1),
    "ceil mode": lambda a: max_pool(a, 2, 2, ceil_mode=True),
    "global": lambda a: a.max((0, 1)),
    "over channels": lambda a: a.max(-1),
    "over all": lambda a: a.max(),
    "of two": lambda a: jnp.maximum(a[:, 1:], a[:, :-1]),
    "of three branches": lambda a: jnp.maximum(jnp.maximum(a, 0.5 - a), jnp.tanh(a)),
    "of a masked map": lambda a: jnp.where(MASK, a, -jnp.inf).max((0, 1)),
}
NETWORKS = {
    "residual": lambda a: jax.nn.relu(a + jnp.tanh(dense(a))[..., :K]),
    "pool, conv, relu, average, dense": lambda a: (
        jax.nn.relu(conv(max_pool(jax.nn.relu(a), 3, 2))).mean((0, 1)) @ DENSE.T[:4]
    ),
    "flatten, dense, relu, dense, sigmoid": lambda a: jax.nn.sigmoid(
        jax.nn.relu(jax.nn.relu(dense(a)).reshape(-1, 5) @ DENSE[:1, :5].T) @ DENSE[:1, :2]
    ),
    "two ways": lambda a: jnp.concatenate([jax.nn.relu(conv(a)), max_pool(conv(a), 3, 1, 1)], -1),
}
HEADS = LINEAR | ELEMENTWISE | MAXIMA | NETWORKS
every_head = pytest.mark.parametrize("name", HEADS)


def make_head(part):
    """The part of a network, with its outputs weighed into one score."""

    def head(a):
        y = part(jf.tag(a, "a")).reshape(-1)
        return y @ jnp.asarray(WEIGHTS[: len(y)], y.dtype)

    return head


def value_and_multiplier(head, a, a0):
    explain = jax.jit(lambda a, a0: jax.value_and_grad(rescaled(head, "a", a0))(a))
    return jax.tree.map(np.asarray, explain(jnp.asarray(a), jnp.asarray(a0)))


def close(got, expected, atol=1e-12):
    np.testing.assert_allclose(got, expected, rtol=0, atol=atol)


@every_head
def test_complete_symmetric_and_finite(name):
    head = make_head(HEADS[name])

    def every(a, a0):
        def one(a, a0):
            return jax.value_and_grad(rescaled(head, "a", a0))(a)

        return one(a, a0), one(a0, a), one(a, a), head(a), head(a0), jax.grad(head)(a)

    there, back, same, f, f0, slope = jax.jit(every)(A, A0)
    close(there[0], f, 0)
    close((there[1] * (A - A0)).sum(), f - f0)
    assert abs(f - f0) > 0.01
    close(there[1], back[1])
    assert np.isfinite(same[1]).all()
    close(same[0], f, 0)
    if name != "custom derivative":  # Rescale opens it; the gradient believes what it is told
        close(same[1], slope)


@pytest.mark.parametrize("name", LINEAR)
def test_what_is_linear_has_the_gradient(name):
    head = make_head(LINEAR[name] if name != "custom derivative" else lambda a: 2 * a)
    close(value_and_multiplier(make_head(LINEAR[name]), A, A0)[1], jax.grad(head)(jnp.asarray(A)))


@pytest.mark.parametrize("name", ["relu", "tanh", "silu", "square", "sigmoid"])
def test_an_elementwise_function_has_its_slope(name):
    part = ELEMENTWISE[name]
    slope = (part(A) - part(A0)) / (A - A0)
    expected = np.asarray(slope) * WEIGHTS[: A.size].reshape(A.shape)
    close(value_and_multiplier(make_head(part), A, A0)[1], expected)


def test_a_maximum_of_two_by_hand():
    """max(a, b) = b + relu(a - b): the first gets the slope s of relu, the second 1 - s."""
    head = lambda a: jnp.maximum(*jf.tag(a, "a"))  # noqa: E731
    for (a, b), (a0, b0), s in (
        ((3.0, 1.0), (1.0, 0.0), 1),  # the first is the larger in both
        ((1.0, 3.0), (0.0, 1.0), 0),
        ((3.0, 1.0), (0.0, 2.0), 0.5),  # a - b goes from -2 to 2
    ):
        value, m = value_and_multiplier(head, [a, b], [a0, b0])
        assert value == max(a, b)
        close(m, [s, 1 - s])


C1, W0, W1 = normal((3, 3, K, K)), normal((K, 8)), normal((H * W * K, 8))
BIAS, W2, W3 = normal(8), normal((8, 6)), normal((6, 1))
TAIL = [net.relu(), net.dense(W2, 1.0), net.relu(), net.dense(W3, 0.5)]


def tail(z):
    return (jax.nn.relu(jax.nn.relu(z + BIAS) @ W2 + 1) @ W3)[0] + 0.5


def same_conv(a):
    dimensions = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        a[None], jnp.asarray(C1), (1, 1), "SAME", dimension_numbers=dimensions
    )[0]


@pytest.mark.parametrize(
    ("layers", "run"),
    [
        ([net.global_mean(), net.dense(W0, BIAS)], lambda a: a.mean((0, 1)) @ W0),
        ([net.flatten_chw(), net.dense(W1, BIAS)], lambda a: a.transpose(2, 0, 1).ravel() @ W1),
        (
            [net.conv(C1, 0), net.relu(), net.global_mean(), net.dense(W0, BIAS)],
            lambda a: jax.nn.relu(same_conv(a)).mean((0, 1)) @ W0,
        ),
    ],
    ids=["pooled", "flat", "convolution"],
)
def test_the_twin(layers, run):
    layers = layers + TAIL
    expected = twin.rescale(layers, np.ones(1))(A, A0, None, None).value
    value, m = value_and_multiplier(lambda a: tail(run(jf.tag(a, "a"))), A, A0)
    close(value, net.forward(layers, A)[-1][0], 1e-10)
    close(m, expected, 1e-10)


@pytest.mark.parametrize("name", NETWORKS)
def test_jit_and_vmap(name):
    head = make_head(NETWORKS[name])
    pairs = jnp.stack([jnp.stack([A, A0]), jnp.stack([A0, A]), jnp.stack([A, 2 * A])])

    def multiplier(pair):
        return jax.grad(rescaled(head, "a", pair[1]))(pair[0])

    batch = jax.jit(jax.vmap(multiplier))(pairs)
    for pair, m in zip(pairs, batch, strict=True):
        close(value_and_multiplier(head, *pair)[1], m)


@every_head
def test_float32(name):
    """Complete to rounding, also where the two activations nearly coincide."""
    head = make_head(HEADS[name])
    with jax.enable_x64(False):
        a = A.astype(np.float32)

        def parts(a0):
            m = jax.grad(rescaled(head, "a", a0))(a) * (a - a0)
            return m.sum(), jnp.abs(m).sum(), head(a) - head(a0), jnp.abs(head(a))

        explain = jax.jit(parts)
        for a0 in (A0.astype(np.float32), np.nextafter(a, np.inf), a * np.float32(1 + 1e-5)):
            with jax.debug_nans(True):
                total, size, change, scale = explain(a0)
            rounding = size + scale + np.abs(WEIGHTS).sum()  # of the sums that a head makes
            assert abs(total - change) <= 1e-6 * rounding


def gate(a):
    return a * jax.nn.sigmoid(a[..., ::-1])


@pytest.mark.parametrize(
    ("part", "operation"),
    [
        (gate, "'mul' of 2"),
        (jax.nn.gelu, "'mul' of 2"),
        (lambda a: a / a.sum(), "'div' of 2"),
        (jax.nn.softmax, "'stop_gradient' of 1"),
        (lambda a: a @ a[0, :3].T, "'dot_general' of 2"),
        (lambda a: jnp.minimum(a, a[::-1]), "'min' of 2"),
        (lambda a: a.min(0), "'reduce_min' of 1"),
        (lambda a: jnp.sort(a, 0), "'sort' of 1"),
        (lambda a: jnp.where(a > 0, a, 2 * a), "'gt' of 1"),
        (lambda a: jax.lax.map(jnp.tanh, a), "'scan' of 1"),
        (lambda a: a.prod(0), "'reduce_prod' of 1"),
    ],
)
def test_operations_without_a_rule(part, operation):
    explain = jf.afmi(make_head(part), "a", multiplier="rescale")
    message = rf"rescale has no rule for {operation} activations; take the multiplier path\(\)"
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(explain, jnp.asarray(A))
    explain = jf.afmi(make_head(part), "a", multiplier="path")
    assert jax.eval_shape(explain, jnp.asarray(A)).shape == (H, W)


def test_dilated_max_pooling_has_no_rule():
    def part(a):
        window = {"window_dimensions": (2, 2, 1), "window_strides": (1, 1, 1), "padding": "VALID"}
        return jax.lax.reduce_window(a, -jnp.inf, jax.lax.max, **window, window_dilation=(2, 2, 1))

    with pytest.raises(ValueError, match=r"no rule for a dilated max pooling; take path\(\)"):
        value_and_multiplier(make_head(part), A, A0)


def test_what_does_not_depend_on_the_layer_may_do_anything():
    def head(a):
        weights = jax.nn.softmax(jnp.sort(jnp.asarray(DENSE)))
        return (jf.tag(a, "a") @ weights).sum() + weights.prod()

    close(value_and_multiplier(head, A, A0)[1], jax.grad(head)(jnp.asarray(A)))
    _, m = value_and_multiplier(lambda a: 0 * jf.tag(a, "a").sum() + 1.0, A, A0)
    assert not m.any()
