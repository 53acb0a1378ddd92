"""Relevance by gates: against the twin that walks layer by layer, on nets with all that nets have.

And the laws: values stay as they are, relevance is conserved, what has no rule is an error.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_relevance as twin
from layer_nets import SILU, residual_net
from layers_in_jax import network
from nets import images, tiny
from reference_layers import RELU, Conv, forward

import jaxfmi as jf
from jaxfmi import rules
from jaxfmi.modules import functional
from jaxfmi.pending import Settings
from jaxfmi.regrade import regrade
from jaxfmi.relevance import transport

RNG = np.random.default_rng(0)
X = RNG.standard_normal((13, 10, 3))
LOW, HIGH = X.min() - 0.1, X.max() + 0.2


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def close(got, expected, rtol=1e-11):
    """Within rtol of the largest expected value."""
    scale = np.abs(np.asarray(expected)).max()
    np.testing.assert_allclose(got, expected, rtol=0, atol=rtol * scale)


def settings(composite, **options):
    return Settings(composite, **options)


def relevance(f, x, composite, start, places=("input",), **options):
    """What ``start`` at the output of ``f`` is at the places."""

    def explain(x):
        y, pull = transport(f, x, places, settings(composite, **options))
        return pull(jf.heatmap.divide(start, y).astype(y.dtype))

    return jax.jit(explain)(jnp.asarray(x))


COMPOSITES = {
    "epsilon": (rules.every(rules.epsilon()), twin.epsilon_all()),
    "epsilon_plus": (rules.epsilon_plus(), twin.epsilon_plus()),
    "epsilon_plus_flat": (rules.epsilon_plus_flat(), twin.epsilon_plus_flat()),
    "epsilon_alpha2_beta1": (rules.epsilon_alpha2_beta1(), twin.epsilon_alpha2_beta1()),
    "epsilon_gamma_box": (
        rules.epsilon_gamma_box(LOW, HIGH, g=0.4),
        twin.epsilon_gamma_box(LOW, HIGH, g=0.4),
    ),
    "w_square": (
        rules.every(rules.epsilon(), rules.w_square()),
        twin.wsquare_first(),
    ),
}
NETS = {
    "relu": {},
    "scales of both signs": {"signed": True},
    "silu": {"act": SILU},
    "without biases": {"bias": False},
}


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("name", COMPOSITES)
def test_every_composite_is_its_twin(name, net):
    layers = residual_net(**NETS[net])
    ours, theirs = COMPOSITES[name]
    start = RNG.standard_normal(5)
    got = relevance(network(layers), X, ours, start)["input"]
    close(got, twin.relevance(layers, X, start, theirs), 1e-9)


@pytest.mark.parametrize("split", ["proportional", "positive"])
@pytest.mark.parametrize("norm", ["merge", "pass"])
def test_normalisation_and_branches(norm, split):
    layers, start = residual_net(signed=True), RNG.standard_normal(5)
    got = relevance(network(layers), X, rules.epsilon_plus(), start, norm=norm, split=split)
    expected = twin.relevance(
        layers,
        X,
        start,
        twin.epsilon_plus(),
        bn={"merge": "merge", "pass": "rule"}[norm],
        add=getattr(twin, split),
    )
    close(got["input"], expected)


def test_several_places_from_one_pass():
    layers, start = residual_net(), RNG.standard_normal(5)
    places = ("input", "pool", "block1", "block2", "last")
    got = relevance(network(layers), X, rules.epsilon_plus(), start, places)
    for place in places:
        at = None if place == "input" else place
        close(got[place], twin.relevance(layers, X, start, twin.epsilon_plus(), at=at))
    alone = relevance(network(layers), X, rules.epsilon_plus(), start, ("block1",))
    close(alone["block1"], got["block1"])


@pytest.mark.parametrize("composite", rules.NAMED)
def test_no_rule_changes_a_value(composite):
    f = network(residual_net(signed=True))
    ruled, _ = transport(f, jnp.asarray(X), ["input"], settings(rules.NAMED[composite]))
    close(ruled, f(jnp.asarray(X)), 1e-14)


def conv(x, w, **options):
    layout = ("NHWC", "HWIO", "NHWC")
    options = {"window_strides": (1, 1), "padding": "SAME"} | options
    return jax.lax.conv_general_dilated(x[None], w, dimension_numbers=layout, **options)[0]


W = RNG.standard_normal((3, 3, 3, 4))
D = RNG.standard_normal((4, 5))
B = RNG.standard_normal(4)[None, None]
UNITS = {
    "bias behind": lambda x: conv(x, W) + B,
    "bias before": lambda x: B + conv(x, W),
    "subtracted": lambda x: conv(x, W) - B,
    "turned": lambda x: B - conv(x, W),
    "scaled": lambda x: (conv(x, W) - 0.3) * B / 0.7,
    "negated": lambda x: -conv(x, W) + B,
    "tagged": lambda x: jf.tag(conv(x, W), "between") * B,
    "inner jit": lambda x: jax.jit(lambda y: conv(jax.nn.relu(y), W[:, :, :2].repeat(2, 2)))(
        conv(x, W)
    ),
    "remat": lambda x: jax.checkpoint(lambda y: y * B)(conv(x, W)),
}


@pytest.mark.parametrize("name", UNITS)
def test_what_follows_a_layer_is_taken_along(name):
    """LRP-0 with the bias is input times gradient, for all that is piecewise linear."""
    f, x = UNITS[name], jnp.asarray(X)
    out, back = jax.vjp(f, x)
    start = RNG.standard_normal(out.shape)
    got = relevance(f, x, rules.every(rules.epsilon(0.0)), start * out)["input"]
    close(got, x * back(jnp.asarray(start))[0], 1e-9)


FOLDED = {  # what the units make of a kernel, and their biases
    "bias before": (1.0, B),
    "subtracted": (1.0, -B),
    "turned": (-1.0, B),
    "scaled": (B / 0.7, -0.3 * B / 0.7),
    "negated": (-1.0, B),
    "tagged": (B, 0.0),
    "remat": (B, 0.0),
}


@pytest.mark.parametrize("name", FOLDED)
def test_what_follows_a_layer_is_a_part_of_its_kernel(name):
    """By a rule that tells positive from negative weights, as the twin has it."""
    scale, shift = (np.broadcast_to(v, (1, 1, 4)) for v in FOLDED[name])
    folded = Conv(W * scale[None], shift[0, 0], padding=1)
    start = RNG.standard_normal(forward([folded], X)[-1].shape)
    got = relevance(UNITS[name], X, rules.every(rules.gamma()), start)["input"]
    close(got, twin.gamma(folded, X, start), 1e-9)


def test_a_scale_that_varies_over_positions_ends_the_layer():
    by_place, start = RNG.random((13, 10, 1)), RNG.random((13, 10, 4))
    got = relevance(lambda x: conv(x, W) * by_place, X, rules.every(rules.z_plus()), start)
    twin_of = relevance(lambda x: conv(x, W), X, rules.every(rules.z_plus()), start)
    close(got["input"], twin_of["input"])


@pytest.mark.parametrize(
    ("options", "layer"),
    [
        ({"window_strides": (2, 2)}, {"stride": 2, "padding": "SAME"}),
        ({"rhs_dilation": (2, 2)}, {"dilation": 2, "padding": 2}),
        ({"padding": [(1, 0), (2, 1)]}, {"padding": ((1, 0), (2, 1))}),
        ({"feature_group_count": 3}, {"groups": 3, "padding": 1}),
    ],
)
@pytest.mark.parametrize("rule", ["epsilon", "z_plus", "alpha_beta", "gamma", "w_square", "flat"])
def test_rules_on_convolutions_of_all_kinds(rule, options, layer):
    w = RNG.standard_normal((3, 3, 1 if "groups" in layer else 3, 6))
    one = Conv(w, **layer)
    y = forward([one], X)[-1]
    start = RNG.standard_normal(y.shape)
    got = relevance(lambda x: conv(x, w, **options), X, rules.every(getattr(rules, rule)()), start)
    close(got["input"], getattr(twin, rule)(one, X, start), 1e-9)


RULES = {
    "epsilon": rules.epsilon(1e-12),
    "z_plus": rules.z_plus(1e-12),
    "alpha_beta": rules.alpha_beta(2, 1, 1e-12),
    "gamma": rules.gamma(0.25, 1e-12),
    "z_box": rules.z_box(LOW, HIGH, 1e-12),
    "w_square": rules.w_square(1e-12),
    "flat": rules.flat(1e-12),
}


@pytest.mark.parametrize("name", RULES)
def test_every_rule_conserves(name):
    start = RNG.standard_normal((13, 10, 4))
    got = relevance(lambda x: conv(x, W), X, rules.every(RULES[name]), start)["input"]
    assert abs(got.sum() - start.sum()) < 1e-11 * np.abs(start).sum()


def test_rules_meet_at_their_limits():
    start = RNG.standard_normal((13, 10, 4))
    y = np.asarray(conv(jnp.asarray(X), W))

    def handed(rule, w=W, start=start):
        return relevance(lambda x: conv(x, w), X, rules.every(rule), start)["input"]

    positive = handed(rules.z_plus(), start=np.where(y > 0, start, 0))
    negative = handed(rules.z_plus(), -W, np.where(y < 0, start, 0))
    close(handed(rules.gamma(1e9, 0.0)), positive + negative, 1e-5)
    alike = np.where(RNG.random(W.shape) < 0.5, -0.7, 0.7)
    close(handed(rules.w_square(), alike), handed(rules.flat(), alike), 1e-4)
    floor = lambda p: jnp.where(p < 0, -1.0, 1.0) * jnp.maximum(jnp.abs(p), 1e-6)  # noqa: E731
    close(handed(rules.z_plus(floor)), handed(rules.z_plus(0.0)), 1e-6)


def test_pass_hands_each_output_to_its_place():
    start = RNG.standard_normal((13, 10, 3))
    w = RNG.standard_normal((3, 3, 3, 3))
    got = relevance(lambda x: conv(x, w), X, rules.every(rules.pass_through()), start)["input"]
    close(got, start)


def test_a_value_is_kept_where_its_denominator_is_zero():
    """Over negative pixels z+ of a positive kernel is 0, but the layer's output is not."""

    def f(x):
        return conv(x, np.abs(W))

    x = -jnp.abs(jnp.asarray(X))
    for rule in (rules.z_plus(), rules.z_plus(0.0)):
        y, pull = transport(f, x, ["input"], settings(rules.every(rule)))
        np.testing.assert_array_equal(y, f(x))
        assert y.any()
        assert not pull(jnp.ones_like(y))["input"].any()


def test_padding_with_zeros_keeps_a_value_positive():
    """So that z+ needs half the products; pointwise convolutions of our models pad by nothing."""
    signed = {}

    def composite(layer):
        signed[layer.w.shape] = layer.signed
        return rules.z_plus()

    def f(x):
        padded = jnp.pad(jax.nn.relu(conv(x, W)), ((1, 1), (1, 1), (0, 0)))
        below = jnp.pad(jax.nn.relu(padded @ D), ((1, 1), (1, 1), (0, 0)), constant_values=-1.0)
        return below @ D.T

    jax.eval_shape(lambda x: transport(f, x, ["input"], settings(composite))[0], X)
    assert signed == {W.shape: True, D.shape: False, D.T.shape: True}


def test_a_transposed_convolution_conserves():
    composite = rules.every(rules.z_plus(0.0))
    start = RNG.random((26, 20, 4))
    x = np.abs(X)
    got = relevance(
        lambda x: conv(x, np.abs(W), lhs_dilation=(2, 2), padding=[(2, 1)] * 2), x, composite, start
    )
    close(got["input"].sum(), start.sum())


def test_pixels_are_met_behind_their_normalisation():
    mean, std = np.array([0.1, -0.2, 0.3])[None, None], np.array([0.5, 0.7, 1.1])[None, None]
    f, start = network(residual_net()), RNG.standard_normal(5)
    for composite in (rules.epsilon_plus_flat(), rules.epsilon_gamma_box()):
        inside = relevance(lambda x: f((x - mean) / std), X, composite, start)["input"]
        close(inside, relevance(f, (X - mean) / std, composite, start)["input"])


def test_padding_gets_no_flat_share():
    def padded(x):
        return conv(jnp.pad(x, ((1, 1), (1, 1), (0, 0))), W, padding="VALID")

    composite, start = rules.every(rules.epsilon(), rules.flat()), RNG.random((13, 10, 4))
    got = relevance(padded, X, composite, start)["input"]
    close(got, relevance(lambda x: conv(x, W), X, composite, start)["input"])
    close(got.sum(), start.sum(), 1e-5)


def test_black_pixels_get_their_share():
    x = np.where(RNG.random(X.shape) < 0.5, 0, X)
    for rule in (rules.flat(), rules.w_square(), rules.z_box(LOW, HIGH)):
        composite = rules.every(rules.epsilon(), rule)
        got = relevance(lambda x: conv(x, W), x, composite, np.ones((13, 10, 4)))
        assert (got["input"][x == 0] != 0).mean() > 0.99


def test_a_rule_at_a_hidden_layer_leaves_out_what_is_zero():
    w = RNG.standard_normal((3, 3, 4, 2))
    layers = [Conv(W, 0.0, 1, 1), RELU]
    a = forward(layers, X)[-1]
    start = RNG.standard_normal((13, 10, 2))
    for rule in ("flat", "w_square"):
        got = relevance(
            lambda x: conv(jf.tag(jax.nn.relu(conv(x, W)), "a"), w),
            X,
            rules.every(getattr(rules, rule)()),
            start,
            ("a",),
        )
        expected = getattr(twin, rule)(Conv(w, padding=1), a, start)
        close(got["a"], np.where(a == 0, 0, expected))


def test_a_layer_that_is_used_twice_and_one_that_leads_nowhere():
    w = RNG.standard_normal((3, 3, 3, 3))

    def twice(x):
        y = conv(x, w)
        conv(y, w).sum()
        return conv(jax.nn.relu(y), w) + y

    composite = rules.every(rules.epsilon(0.0))
    out, back = jax.vjp(twice, jnp.asarray(X))
    got = relevance(twice, X, composite, out)["input"]
    close(got, X * back(jnp.ones_like(out))[0], 1e-8)


def test_the_score_may_do_with_its_logits_what_it_likes():
    """Behind the last layer gradients are a start: here the softmax's."""
    layers = residual_net()
    f = network(layers)
    _, pull = transport(
        lambda x: jax.nn.softmax(f(x))[2], jnp.asarray(X), ["input"], settings(rules.epsilon_plus())
    )
    z = forward(layers, X)[-1]
    p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
    expected = twin.relevance(layers, X, z * p[2] * (np.eye(5)[2] - p), twin.epsilon_plus())
    close(pull(jnp.ones(()))["input"], expected)


def test_half_precision_has_the_relevance_of_its_kernels_in_float32():
    def rounded(path, p):
        """Linen normalises in float32 whatever the network's type is."""
        words = jax.tree_util.keystr(path)
        mine = "kernel" in words or ("bias" in words and "norm" not in words)
        return p.astype(jnp.bfloat16).astype(p.dtype) if mine else p

    with jax.enable_x64(False):
        x, (apply, params) = images(1)[0], functional(tiny("linen", jnp.bfloat16))
        full, fine = functional(tiny("linen"))[0], jax.tree.map_with_path(rounded, params)
        got, expected = (
            relevance(lambda x, f=f, p=p: f(p, x[None])[0], x, rules.epsilon_plus(), jnp.eye(5)[2])[
                "input"
            ]
            for f, p in ((apply, params), (full, fine))
        )
    assert got.dtype == jnp.float32
    close(got, expected, 1e-6)


def test_regrade_keeps_the_value_and_takes_the_gradient_of_terms():
    x = jnp.asarray(X)
    value, back = jax.vjp(lambda x: regrade(x**2, [(3.0, x), (x, 2 * x)]), x)
    close(value, x**2)
    close(back(jnp.ones_like(x))[0], 3 + 2 * x)
