"""Definitions and finite differences, by which the layers of the twins are checked."""

import numpy as np
import pytest
from layer_nets import SILU, residual_net
from reference import finite_difference
from reference_layers import RELU, Conv, Flatten, MaxPool, Tag, forward, gradients, leaky_relu


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def close(got, expected, rtol=1e-12):
    """Within rtol of the greatest expected value."""
    np.testing.assert_allclose(got, expected, rtol=0, atol=rtol * abs(np.asarray(expected)).max())


KERNEL, SIGNED = normal(3, 3, 2, 6), normal(7, 8, 4)
CONV = Conv(KERNEL, normal(6), stride=2, padding=((1, 2), (0, 1)), groups=2, dilation=2)


def test_convolution_by_its_definition():
    x = np.pad(SIGNED, ((1, 2), (0, 1), (0, 0)))
    y = forward([CONV], SIGNED)[-1]
    assert y.shape == (3, 3, 6)
    for i, j, o in np.ndindex(y.shape):
        window = x[2 * i : 2 * i + 5 : 2, 2 * j : 2 * j + 5 : 2, 2 * (o // 3) :][..., :2]
        np.testing.assert_allclose(y[i, j, o], (window * KERNEL[..., o]).sum() + CONV.b[o])


@pytest.mark.parametrize(("stride", "size"), [(1, (7, 8)), (2, (4, 4)), (3, (3, 3))])
def test_same_padding_has_its_odd_pixel_at_the_end(stride, size):
    w = normal(3, 3, 4, 1)
    got = forward([Conv(w, 0.0, stride, "SAME")], SIGNED)[-1]
    assert got.shape == (*size, 1)
    total = [max((n - 1) * stride + 3 - m, 0) for n, m in zip(size, SIGNED.shape, strict=False)]
    pads = tuple((p // 2, p - p // 2) for p in total)
    close(got, forward([Conv(w, 0.0, stride, pads)], SIGNED)[-1], 0)


@pytest.mark.parametrize("act", [RELU, leaky_relu(0.2), SILU])
def test_gradient_is_that_of_finite_differences(act):
    layers = [Tag("x"), *residual_net(act=act)]
    x = normal(9, 8, 3)
    expected = finite_difference(lambda v: forward(layers, v)[-1][2], x)
    close(gradients(layers, x, np.eye(5)[2])[0], expected, 1e-6)


def test_gradient_of_flatten_and_ties():
    g = normal(16)
    got = gradients([Flatten((2, 0, 1))], np.zeros((2, 2, 4)), g)[0]
    close(got, g.reshape(4, 2, 2).transpose(1, 2, 0), 0)
    first = gradients([MaxPool(2, 2)], np.ones((2, 2, 1)), np.ones((1, 1, 1)))[0]
    assert first.ravel().tolist() == [1, 0, 0, 0]
    padded = gradients([MaxPool(3, 2, 1)], np.zeros((3, 3, 1)), np.ones((2, 2, 1)))[0]
    assert padded[:, :, 0].tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 0]]
