"""Hand-computed values and closed forms, by which the rules of the relevance twin are checked."""

from functools import partial

import numpy as np
import pytest
import reference_relevance as rel
from reference_layers import AvgPool, Conv, Dense, value


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def close(got, expected, rtol=1e-12):
    """Within rtol of the greatest expected value."""
    np.testing.assert_allclose(got, expected, rtol=0, atol=rtol * abs(np.asarray(expected)).max())


# Rules, by hand: four inputs of contributions 2 -2 -3 2 and one output


W, X = np.array([[1.0], [-2], [3], [-1]]), np.array([2.0, 1, -1, -2])


@pytest.mark.parametrize(
    ("rule", "b", "expected"),
    [
        (partial(rel.epsilon, bias=False), 0.5, [-2, 2, 3, -2]),
        (rel.epsilon, 0.5, [-4, 4, 6, -4]),
        (rel.epsilon, 1.0, [0, 0, 0, 0]),
        (partial(rel.z_plus, bias=False), 0.5, [0.5, 0, 0, 0.5]),
        (rel.z_plus, 1.0, [0.4, 0, 0, 0.4]),
        (rel.z_plus, -1.0, [0.5, 0, 0, 0.5]),
        (rel.alpha_beta, 0.0, [1, -0.4, -0.6, 1]),
        (rel.alpha_beta, 1.0, [0.8, -0.4, -0.6, 0.8]),
        (partial(rel.alpha_beta, bias=False), -1.0, [1, -0.4, -0.6, 1]),
        (partial(rel.alpha_beta, alpha=3, beta=2), -5.0, [1.5, -0.4, -0.6, 1.5]),
        (partial(rel.gamma, g=1, bias=False), 0.5, [-1 / 3, 2 / 3, 1, -1 / 3]),
        (partial(rel.gamma, g=1), 0.5, [-4 / 11, 8 / 11, 12 / 11, -4 / 11]),
        (partial(rel.gamma, g=1, bias=False), 2.0, [4 / 3, -2 / 3, -1, 4 / 3]),
        (partial(rel.gamma, g=1), 2.0, [4 / 7, -2 / 7, -3 / 7, 4 / 7]),
        (partial(rel.gamma, g=1), 1.0, [0, 0, 0, 0]),
        (partial(rel.z_box, low=-3, high=4), 9.0, np.array([5, 6, 6, 6]) / 23),
        (partial(rel.w_square, bias=False), 2.0, np.array([1, 4, 9, 1]) / 15),
        (rel.w_square, 2.0, np.array([1, 4, 9, 1]) / 19),
        (rel.flat, 2.0, [0.25] * 4),
        (partial(rel.z_box, low=X - 1, high=X + 1), 0.0, np.array([1, 2, 3, 1]) / 7),
    ],
)
def test_rules_by_hand(rule, b, expected):
    """An output of exactly 0 drops its relevance where the rule divides by it."""
    np.testing.assert_allclose(
        rule(Dense(W, np.array([b])), X, np.ones(1), eps=0.0), expected, rtol=0, atol=1e-15
    )


def test_double_bias_of_relevance_cam():
    got = rel.z_plus_double_bias(Dense(W, np.array([-1.0])), X, np.ones(1))
    close(got, [1, 0, 0, 1])


@pytest.mark.parametrize(
    ("eps", "expected"),
    [
        (1e-6, [1e-6, 1.01e-6, -1.01e-6, 1.000001, -1.000001]),
        (rel.clipped(1e-6), [1e-6, 1e-6, -1e-6, 1, -1]),
        (
            rel.scaled_to_norm(1e-6),
            np.array([0, 1e-8, -1e-8, 1, -1]) + 0.4**0.5 * 1e-6 * np.array([1, 1, -1, 1, -1]),
        ),
    ],
)
def test_stabilisers(eps, expected):
    got = rel.stabilise(np.array([0, 1e-8, -1e-8, 1, -1]), eps)
    np.testing.assert_allclose(got, expected, rtol=1e-9)


def test_alpha_and_beta_are_checked():
    with pytest.raises(ValueError, match="must be 1"):
        rel.alpha_beta(Dense(W), X, np.ones(1), 2, 2)


# Rules: laws of one layer


LAYERS = {
    "dense": (Dense(normal(40, 5), normal(5, seed=1)), normal(40, seed=2)),
    "conv": (Conv(normal(3, 3, 4, 5), normal(5, seed=1), 2, 1), normal(7, 6, 4, seed=2)),
    "grouped": (Conv(normal(3, 2, 5, 6), normal(6, seed=1), 1, 0, 2, 2), normal(7, 6, 10, seed=2)),
}
EACH_LAYER = pytest.mark.parametrize(("layer", "x"), LAYERS.values(), ids=LAYERS)
RULES = {
    "epsilon": rel.epsilon,
    "z_plus": rel.z_plus,
    "alpha_beta": rel.alpha_beta,
    "gamma": rel.gamma,
    "z_box": partial(rel.z_box, low=-4, high=5),
    "w_square": rel.w_square,
    "flat": rel.flat,
}


@EACH_LAYER
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_rules_conserve(layer, x, rule):
    r = abs(normal(*value(layer, x).shape))
    assert abs(rule(layer, x, r, eps=1e-12, bias=False).sum() / r.sum() - 1) < 1e-10


@EACH_LAYER
def test_identities_of_rules(layer, x):
    y = value(layer, x)
    r, bare = normal(*y.shape), layer._replace(b=0 * layer.b)
    plus = rel.z_plus(layer, x, r)
    close(rel.alpha_beta(layer, x, r, 1, 0), plus, 1e-14)
    close(rel.gamma(layer, x, r, 0), rel.epsilon(layer, x, r))
    minus = layer._replace(w=-layer.w, b=-layer.b)
    excited = rel.z_plus(layer, x, r * (y > 0)) + rel.z_plus(minus, x, r * (y < 0))
    close(rel.gamma(layer, x, r, 1e9), excited, 1e-6)
    close(rel.z_box(layer, x, r, 0, 0), rel.epsilon(bare, x, r))
    equal = layer._replace(w=0.3 * np.sign(layer.w))
    close(rel.w_square(equal, x, r, eps=0.0, bias=False), rel.flat(equal, x, r, eps=0.0))


@EACH_LAYER
def test_alpha_beta_without_a_sign_doubles(layer, x):
    layer, r = layer._replace(w=abs(layer.w)), abs(normal(*value(layer, x).shape))
    got = rel.alpha_beta(layer, abs(x), r, eps=0.0, bias=False)
    assert abs(got.sum() / r.sum() - 2) < 1e-12


@EACH_LAYER
@pytest.mark.parametrize("name", ["z_box", "w_square", "flat", "epsilon", "z_plus"])
def test_black_pixels_have_their_share_where_the_input_does_not_decide(layer, x, name):
    got = RULES[name](layer, 0 * x, np.ones_like(value(layer, x)))
    assert got.any() == (name in ("z_box", "w_square", "flat"))


def test_norm_of_cancelling_operands():
    a, b, r = np.array([3.0, 1, 2]), np.array([-1.0, -1, 2]), np.ones(3)
    close(rel.proportional([a, b], r), [[1.5, 0, 0.5], [-0.5, 0, 0.5]])
    close(rel.proportional([a, b], r, 1e-6)[0], [3 / 2.000001, 1e6, 2 / 4.000001])
    close(rel.positive([a, b], r), [[1, 1, 0.5], [0, 0, 0.5]])


def test_average_pool_with_padding_conserves():
    x, r = abs(normal(5, 4, 2)), abs(normal(3, 2, 2))
    got = rel.norm(AvgPool(3, 2, 1), x, r)
    close(got.sum((0, 1)), r.sum((0, 1)))
