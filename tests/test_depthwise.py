"""The depthwise convolution against XLA's: values, gradients, and every way of batching it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxfmi.models.depthwise import depthwise_conv

SIZES = [  # rows and columns, kernel, strides, padding
    ((9, 8), (3, 3), (2, 2), ((0, 1), (1, 1))),
    ((7, 7), (3, 3), (1, 1), ((1, 1), (1, 1))),
    ((10, 11), (5, 3), (3, 2), ((2, 0), (0, 2))),
    ((6, 6), (1, 1), (2, 2), ((0, 0), (0, 0))),
    ((6, 5), (2, 2), (3, 3), ((0, 0), (0, 0))),
]


@pytest.fixture(params=SIZES, ids=str)
def case(request):
    """Ours, XLA's, an input and a kernel."""
    size, window, strides, padding = request.param
    rng = np.random.default_rng(0)

    def xla(x, kernel):
        layout = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, kernel, strides, padding, dimension_numbers=layout, feature_group_count=4
        )

    def ours(x, kernel):
        return depthwise_conv(x, kernel, strides, padding)

    with jax.enable_x64(True):
        x = jnp.asarray(rng.normal(size=(2, *size, 4)))
        yield ours, xla, x, jnp.asarray(rng.normal(size=(*window, 1, 4)))


def close(ours, theirs):
    np.testing.assert_allclose(ours, theirs, atol=1e-12)


def test_value_and_gradients(case):
    ours, xla, x, kernel = case
    value, back = jax.vjp(ours, x, kernel)
    expected, expected_back = jax.vjp(xla, x, kernel)
    close(value, expected)
    for one, other in zip(back(expected), expected_back(expected), strict=True):
        close(one, other)


def test_second_order_in_both_modes(case):
    ours, _, x, kernel = case
    check_grads(ours, (x, kernel), order=2, modes=("fwd", "rev"))


def test_a_batch_is_its_members(case):
    ours, xla, x, kernel = case
    both, kernels = jnp.stack([x, 2 * x], 1), jnp.stack([kernel, -kernel])
    value = xla(x, kernel)
    close(jax.vmap(ours, (1, None))(both, kernel), jnp.stack([value, 2 * value]))
    close(jax.vmap(ours, (None, 0))(x, kernels), jnp.stack([value, -value]))
    close(jax.vmap(ours, (1, 0))(both, kernels), jnp.stack([value, -2 * value]))


def test_gradients_of_a_batch(case):
    ours, xla, x, kernel = case
    gradients = [
        jax.vmap(jax.grad(lambda x, conv=conv: (conv(x, kernel) ** 2).sum()), 1)(
            jnp.stack([x, 2 * x], 1)
        )
        for conv in (ours, xla)
    ]
    close(*gradients)
