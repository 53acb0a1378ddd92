"""Relevance through single operations, and through the architectures that are made of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_relevance as twin
from flax import nnx
from reference_layers import Conv
from test_relevance import W, X, close, conv, relevance, settings

from jaxfmi import models, rules
from jaxfmi.models import layers
from jaxfmi.modules import functional
from jaxfmi.pending import Settings
from jaxfmi.regrade import regrade
from jaxfmi.relevance import transport

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


GATED = {
    "sigmoid": lambda y: y * jax.nn.sigmoid(y.mean((0, 1)))[None, None],
    "gate first": lambda y: jax.nn.sigmoid(y.mean((0, 1)))[None, None] * y,
    "hard sigmoid": lambda y: y * jax.nn.hard_sigmoid(y),
    "silu": jax.nn.silu,
    "hard swish": jax.nn.hard_swish,
    "gelu": jax.nn.gelu,
    "exact gelu": lambda y: jax.nn.gelu(y, approximate=False),
    "leaky relu": jax.nn.leaky_relu,
    "relu6": lambda y: jax.nn.relu6(4 * y),
    "tanh": jnp.tanh,
    "elu": jax.nn.elu,
    "gelu by hand": lambda y: 0.5 * y * (1 + jnp.tanh(0.8 * (y + 0.045 * y**3))),
    "a scaled gate alone": lambda y: 1.7 * jnp.tanh(y) * 2,
    "softplus": jax.nn.softplus,
    "average pool": lambda y: nnx.avg_pool(y[None], (3, 3), (2, 2), "SAME"),
    "global maximum": lambda y: y.max((0, 1)),
    "selection": lambda y: jnp.where(y > 0, y, 0.1 * y),
    "parts of a gate": lambda y: sum(
        a * g for a, g in zip(jnp.split(y, 2, 2), jnp.split(jax.nn.sigmoid(y), 2, 2), strict=True)
    ),
    "layout": lambda y: jnp.concatenate([y.transpose(1, 0, 2)[::-1], y.reshape(10, 13, 4)], 2),
    "indexing": lambda y: y[1::2, jnp.array([0, 3, 3])],
    "a cast": lambda y: y.astype(jnp.float32).astype(jnp.float64),
}


@pytest.mark.parametrize("name", GATED)
def test_whatever_passes_relevance_on_conserves_it(name):
    """Between two layers that conserve it themselves; maxima and casts up to rounding."""

    def f(x):
        y = GATED[name](conv(x, W))
        return y.reshape(-1, y.shape[-1]) @ jnp.ones((y.shape[-1], 1))

    composite = rules.every(rules.epsilon(0.0))
    y, pull = transport(f, jnp.asarray(X), ["input"], settings(composite))
    total = pull(jnp.ones_like(y))["input"].sum()
    close(total, y.sum(), 1e-5 if name == "a cast" else 1e-9)


def test_a_gate_behind_the_last_layer_is_a_gate():
    """Squeeze and excitation before a mere mean: its dense layer is the last one, not the score."""
    squeeze = RNG.standard_normal((4, 4))

    def f(x):
        y = jax.nn.relu(conv(x, W))
        return (y * jax.nn.sigmoid(y.mean((0, 1)) @ squeeze)[None, None]).mean()

    def at_that_gate(x):
        y = jax.nn.relu(conv(x, W))
        gate = jax.nn.sigmoid(jax.nn.relu(conv(jnp.asarray(X), W)).mean((0, 1)) @ squeeze)
        return (y * gate[None, None]).mean()

    got, expected = (
        relevance(g, X, rules.epsilon_plus(), g(jnp.asarray(X))) for g in (f, at_that_gate)
    )
    close(got["input"], expected["input"])


@pytest.mark.parametrize("composite", ["epsilon_plus_flat", "deep_taylor", "epsilon_gamma_box"])
@pytest.mark.parametrize("stride", [1, 2])
def test_an_unpadded_layer_is_one_with_its_normalisation(stride, composite):
    """Although `convolve` takes a row of its output away."""
    layout = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "feature_group_count": 1}
    layout |= {"lhs_dilation": (1, 1), "rhs_dilation": (1, 1), "precision": None}
    second = RNG.standard_normal((3, 3, 4, 4))

    def net(convolution, x):
        for kernel in (W, second):
            y = convolution(x[None], kernel, (stride, stride), ((0, 0), (0, 0)), **layout)[0]
            x = jax.nn.relu(y * jnp.array([[[0.5, -1.0, 2.0, 1.5]]]) + 0.3)
        return x.mean((0, 1)) @ jnp.ones(4)

    got, expected = (
        relevance(lambda x, f=f: net(f, x), X, rules.NAMED[composite], 1.0)["input"]
        for f in (layers.convolve, jax.lax.conv_general_dilated)
    )
    close(got, expected)


def test_a_gate_that_a_constant_changes_keeps_its_value():
    """Whether it then multiplies something, or is an activation itself."""

    def f(x):
        y = 2 * jax.nn.sigmoid(conv(x, W)) - 1
        return (y @ jnp.ones((4, 1))).sum()

    y, _ = transport(f, jnp.asarray(X), ["input"], settings(rules.every(rules.epsilon(0.0))))
    close(y, f(jnp.asarray(X)))


PADDED = {
    "reflect": lambda x: jnp.pad(x, ((1, 1), (1, 1), (0, 0)), "reflect"),
    "edge": lambda x: jnp.pad(x, ((1, 1), (1, 1), (0, 0)), "edge"),
    "wrap": lambda x: jnp.pad(x, ((1, 1), (1, 1), (0, 0)), "wrap"),
    "zeros": lambda x: jnp.pad(x, ((1, 1), (1, 1), (0, 0))),
    "cut": lambda x: x[:-1, 1:],
    "in parts": lambda x: jnp.concatenate(jnp.split(x, 2, 1)[::-1], 1),
}


@pytest.mark.parametrize("name", PADDED)
def test_pixels_stay_the_input_however_they_are_padded(name):
    """The first layer is known, its bounds are the picture's, and it conserves relevance."""
    x, known = jnp.asarray(X) + 5, []  # 5 moves the picture away from the 0 of padding

    def composite(layer):
        known.append(layer.start)
        return rules.z_box()

    def f(x):
        return jax.nn.relu(conv(PADDED[name](x), W)).sum()

    y, pull = transport(f, x, ["input"], settings(composite))
    close([known[-1].low, known[-1].high], [x.min(), x.max()])
    close(pull(jnp.ones_like(y))["input"].sum(), y, 1e-6 * abs(y))


PLACES = np.broadcast_to(np.linspace(-1, 1, len(X))[:, None, None], (*X.shape[:2], 1))
BESIDE = PADDED | {
    "coordinates": lambda x: jnp.concatenate([x[..., :2], PLACES], 2),
    "a border of ones": lambda x: jnp.pad(x, ((1, 1), (1, 1), (0, 0)), constant_values=1.0),
    "normalised with its border": lambda x: (PADDED["zeros"](x) - 2) / 3,
    "resized with its border": lambda x: jax.image.resize(PADDED["zeros"](x), (9, 7, 3), "linear"),
}


@pytest.mark.parametrize("name", BESIDE)
def test_a_network_sees_its_input_whatever_is_put_beside_it(name):
    """And LRP-0 gives the layer's input times its gradient to all that is made of pixels."""
    x = jnp.asarray(X)

    def layer(x):
        return jax.nn.relu(conv(x, W))

    composite = rules.every(rules.epsilon(0.0))
    y, pull = transport(lambda x: layer(BESIDE[name](x)), x, ["input"], settings(composite))
    fed, moved = jax.jvp(BESIDE[name], (x,), (jnp.ones_like(x),))
    expected, slope = jax.jvp(layer, (fed,), (jnp.where(moved == 0, 0, fed),))
    close(y, expected)
    close(pull(jnp.ones_like(y))["input"].sum(), slope.sum(), 1e-9)


def test_bounds_of_pixels_that_are_resized_with_their_border():
    """As those of a network that is fed with them: each pixel of it has its own share of border."""
    fed, low, high = BESIDE["resized with its border"], X.min(), X.max()

    def f(x):
        return conv(fed(x), W)

    start = RNG.standard_normal((9, 7, 4))
    got = relevance(f, X, rules.every(rules.z_box()), start)["input"].sum()
    at = np.asarray(fed(jnp.ones_like(X)))
    layer = Conv(W, padding=1)
    expected = twin.z_box(layer, np.asarray(fed(X)), start, low=at * low, high=at * high)
    close(got, expected.sum(), 1e-9)


def test_padding_apart_is_padding_of_the_layer():
    x = jnp.asarray(X) + 5

    def around(x, kernel):
        return jax.nn.relu(conv(PADDED["zeros"](x), kernel))[1:-1, 1:-1]

    for composite in ("deep_taylor", "epsilon_plus_flat"):
        maps = [
            relevance(lambda x, g=g: g(x, W).sum(), x, rules.NAMED[composite], 1.0)["input"]
            for g in (around, lambda x, w: jax.nn.relu(conv(x, w)))
        ]
        close(*maps)


def test_what_is_put_beside_pixels_is_none_of_them():
    """Coordinates, before the picture or behind it."""
    places = jnp.broadcast_to(jnp.linspace(-1, 1, len(X))[:, None, None], (*X.shape[:2], 1))
    kernel = RNG.standard_normal((3, 3, 1, 4))

    def relevance_of(turn):
        def f(x):
            both = jnp.concatenate([x, places][::turn], 2)
            return jax.nn.relu(conv(both, jnp.concatenate([W, kernel][::turn], 2))).sum()

        return relevance(f, X, rules.NAMED["epsilon_plus_flat"], 1.0)["input"]

    close(relevance_of(-1), relevance_of(1))
    assert relevance_of(1).sum() < 1.01  # flat relevance is shared by three of four channels alone


def test_a_grey_picture_may_be_normalised_by_channel():
    mean, kernel = jnp.array([[[0.1, 0.2, 0.3]]]), RNG.standard_normal((3, 3, 3, 4))

    def f(x):
        return jax.nn.relu(conv((x - mean) / mean, kernel)).sum()

    y, pull = transport(
        f, jnp.asarray(X[..., :1]), ["input"], settings(rules.NAMED["epsilon_plus_flat"])
    )
    close(pull(jnp.ones_like(y))["input"].sum(), y, 1e-5 * abs(y))


def test_a_grey_picture_may_have_bounds_by_channel():
    """Those of the channels that the network makes of it."""
    mean, kernel = np.array([[[0.1, 0.2, 0.3]]]), RNG.standard_normal((3, 3, 3, 4))
    low, high = (X[..., :1].min() - mean[0, 0]) / 2, (X[..., :1].max() - mean[0, 0]) / 2
    start = RNG.standard_normal((13, 10, 4))
    got = relevance(
        lambda x: conv((x - mean) / 2, kernel),
        X[..., :1],
        rules.every(rules.z_box(low, high)),
        start,
    )["input"]
    x = (X[..., :1] - mean) / 2
    expected = twin.z_box(Conv(kernel, padding=1), x, start, low=low, high=high)
    close(got, expected.sum(-1, keepdims=True))


def test_pixels_of_more_digits_than_the_network():
    """A float64 image of a float32 network, also with a border and with bounds."""
    w = W.astype(np.float32)

    def f(x):
        return conv(jnp.pad(x.astype(jnp.float32), ((1, 1), (0, 0), (0, 0))), w)

    start = RNG.standard_normal((15, 10, 4))
    for rule in (rules.z_box(-4.0, 4.0), rules.flat(), rules.epsilon()):
        got, expected = (
            relevance(f, x, rules.every(rule), start)["input"] for x in (X, X.astype(np.float32))
        )
        close(got, expected, 1e-5)


def test_normalisation_before_a_layer_absorbs_as_a_bias_does():
    """LRP-0 is gradient x input there too; without biases it conserves instead."""
    second = RNG.standard_normal((3, 3, 4, 4))

    def f(x):
        y = jax.nn.relu(conv(x, W)) * jnp.array([[[0.5, 1.0, 2.0, 1.5]]]) - 0.4
        return jax.nn.relu(conv(jax.nn.relu(y), second)).sum()

    x, composite = jnp.asarray(X), rules.every(rules.epsilon(0.0))
    close(relevance(f, x, composite, f(x))["input"], x * jax.grad(f)(x), 1e-8)
    close(relevance(f, x, rules.every(rules.z_plus()), 1.0, bias=False)["input"].sum(), 1.0, 1e-6)


@jax.custom_vjp
def strange(x):
    return x


strange.defvjp(lambda x: (x, None), lambda _, g: (2 * g,))
UNKNOWN = {
    "mul": lambda y: y * y[::-1],
    "div": lambda y: y / y.sum(),
    "sort": lambda y: jnp.sort(y, 0),
    "custom_vjp_call|strange": strange,
    "scan|while": lambda y: jax.lax.fori_loop(0, 2, lambda i, y: y + 1, y),
    "dot_general": lambda y: y @ y[0].T,
    "exp": jnp.exp,
    "square|integer_pow": lambda y: y**2,
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_operation_without_a_rule_is_an_error_that_names_it(name):
    def f(x):
        y = UNKNOWN[name](conv(x, W))
        return y.reshape(-1).mean()

    with pytest.raises(ValueError, match=rf"'({name})'.* at .*test_relevance_operations\.py"):
        relevance(f, X, rules.every(rules.epsilon()), 1.0)


@jax.jit
def relu(x):
    return conv(x, SECOND)


@jax.jit
def squeeze(x):
    return jax.nn.relu(conv(x, SECOND))


@jax.custom_jvp
def leaky_relu(x):
    return conv(x, SECOND)


leaky_relu.defjvp(lambda x, t: (leaky_relu(*x), conv(*t, SECOND)))
SECOND = RNG.standard_normal((3, 3, 4, 4))


@pytest.mark.parametrize("impostor", [relu, squeeze, leaky_relu])
def test_a_name_says_nothing_of_functions_that_anyone_may_have_written(impostor):
    """They are opened, and what is in them has its rule."""

    def net(inner):
        return lambda x: jax.nn.relu(inner(jax.nn.relu(conv(x, W)))).sum(2)

    def plain(y):
        y = conv(y, SECOND)
        return jax.nn.relu(y) if impostor is squeeze else y

    start = RNG.random((13, 10))
    found, expected = (
        relevance(net(f), X, rules.every(rules.z_plus()), start)["input"] for f in (impostor, plain)
    )
    close(found, expected)


@jax.jit
def neg(x):
    return jnp.exp(x)


def test_a_curve_by_another_name_is_refused():
    with pytest.raises(ValueError, match=r"no rule for 'exp' .*test_relevance_operations"):
        relevance(lambda x: neg(conv(x, W)).sum(), X, rules.every(rules.epsilon()), 1.0)


def test_pixels_that_are_resized_are_the_input_still():
    """The first layer is the first convolution, whose rule knows where pixels are."""

    def resized(x):
        return jax.image.resize(x, (26, 20, 3), "bilinear")

    composite = rules.every(rules.z_plus(), first=rules.flat(0.0))
    got = relevance(lambda x: conv(resized(x), W), X, composite, start := RNG.random((26, 20, 4)))
    whole = relevance(lambda x: conv(x, W), resized(jnp.asarray(X)), composite, start)["input"]
    back = jax.vjp(resized, jnp.asarray(X))[1](jnp.asarray(whole))[0]
    close(got["input"], back)
    assert float(np.ptp(np.asarray(got["input"]).sum(2), 1).min()) > 0


def test_of_two_gates_the_signal_is_the_one_that_has_a_sign():
    def net(gated):
        return lambda x: gated(conv(x, W), conv(x, W[::-1])).sum(2)

    start, composite = RNG.random((13, 10)), rules.every(rules.epsilon(0.0))
    one, other = (
        relevance(net(f), X, composite, start)["input"]
        for f in (
            lambda a, b: jnp.tanh(a) * jax.nn.sigmoid(b),
            lambda a, b: jax.nn.sigmoid(b) * jnp.tanh(a),
        )
    )
    close(one, other)
    frozen = jax.nn.sigmoid(conv(jnp.asarray(X), W[::-1]))
    close(
        one,
        relevance(lambda x: (jnp.tanh(conv(x, W)) * frozen).sum(2), X, composite, start)["input"],
    )


def test_a_product_of_gates_is_a_gate():
    def net(x):
        y = conv(x, W)
        of_channels = jax.nn.sigmoid(y.mean((0, 1)))[None, None]
        return (y * (of_channels * jax.nn.sigmoid(y.mean(2, keepdims=True)))).sum(2)

    def frozen(x):
        y, z = conv(x, W), conv(jnp.asarray(X), W)
        of_channels = jax.nn.sigmoid(z.mean((0, 1)))[None, None]
        return (y * (of_channels * jax.nn.sigmoid(z.mean(2, keepdims=True)))).sum(2)

    start, composite = RNG.random((13, 10)), rules.every(rules.z_plus())
    close(*(relevance(f, X, composite, start)["input"] for f in (net, frozen)))
    with pytest.raises(ValueError, match=r"a product of two gates.*test_relevance_operations"):
        relevance(
            lambda x: (jnp.tanh(conv(x, W)) * jnp.tanh(conv(x, W))).sum(2), X, composite, start
        )


@pytest.mark.parametrize("moved", [False, True])
def test_bounds_move_with_the_pixels(moved):
    """A network that has its channels first takes those of channels that come last."""
    low, high = (sign * np.array([3.0, 4.0, 5.0]) for sign in (-1, 1))

    def f(x):
        if not moved:
            return conv(jnp.pad(x / 2, ((1, 2), (0, 0), (0, 0))), W)
        x = jnp.pad(x.transpose(2, 0, 1)[None] / 2, ((0, 0), (0, 0), (1, 2), (0, 0)))
        names = ("NCHW", "HWIO", "NCHW")
        y = jax.lax.conv_general_dilated(x, W, (1, 1), "SAME", dimension_numbers=names)
        return y[0].transpose(1, 2, 0)

    start = RNG.standard_normal((16, 10, 4))
    got = relevance(f, X, rules.every(rules.z_box(low, high)), start)["input"]
    padded = np.pad(X / 2, ((1, 2), (0, 0), (0, 0)))
    at = np.pad(np.ones((13, 10, 1)), ((1, 2), (0, 0), (0, 0)))
    layer = Conv(W, padding=1)
    expected = twin.z_box(layer, padded, start, low=at * low, high=at * high)
    close(got, expected[1:-2])


def test_bounds_that_do_not_fit_are_refused():
    composite = rules.every(rules.z_box(-np.ones(4), 1))
    with pytest.raises(ValueError, match=r"broadcast to the input \(13, 10, 3\), unlike \(4,\)"):
        relevance(lambda x: conv(x, W), X, composite, np.ones((13, 10, 4)))


def test_a_dead_branch_behind_the_logits_does_not_matter():
    """Nor does what follows on a softmax there: the score's own is behind the last layer."""

    @jax.jit
    def heads(x):
        z = conv(x, W).mean((0, 1))
        return z, jax.nn.softmax(z) @ jnp.ones((4, 2))

    scores = [
        lambda x: jax.nn.log_softmax(heads(x)[0])[1],
        lambda x: jax.nn.log_softmax(conv(x, W).mean((0, 1)))[1],
    ]
    composite = rules.every(rules.epsilon())
    got, expected = (relevance(f, X, composite, 1.0)["input"] for f in scores)
    close(got, expected)


HALF = {
    "loop": lambda y: jax.lax.fori_loop(0, 2, lambda _, y: y * 2, y),
    "branch": lambda y: jax.lax.cond(y.sum() > 0, lambda y: y, lambda y: -y, y),
    "scan": lambda y: jax.lax.scan(lambda c, r: (c, r + c), y[0], y)[1],
}


@pytest.mark.parametrize("name", HALF)
def test_loops_of_half_precision_are_gates_or_refused(name):
    """They compute as they are; how a gate was made is nobody's business."""

    def f(x, gated):
        y = conv(x.astype(jnp.bfloat16), W.astype(jnp.bfloat16))
        made = HALF[name](y)
        return y * jax.nn.sigmoid(made) if gated else made

    start, composite = np.ones((13, 10, 4)), rules.every(rules.epsilon(0.0))
    x = jnp.asarray(X, jnp.float32)
    y, pull = transport(lambda x: f(x, True), x, ["input"], settings(composite))
    got = pull(jnp.ones_like(y))["input"]
    assert got.dtype == jnp.float32
    close(got.sum(), y.sum(), 1e-4)
    close(y, f(x, True).astype(jnp.float32), 0.02)
    with pytest.raises(ValueError, match="relevance has no rule for"):
        relevance(lambda x: f(x, False), X, composite, start)


def test_a_gradient_of_its_own_counts_in_half_precision():
    """That of ``regrade``, by which a network may have been given rules before."""
    x, kernel = (jnp.asarray(a, jnp.bfloat16) for a in (X, W))

    def f(x):
        y = conv(x, kernel)
        return regrade(y, [(2 * jnp.ones_like(y), y)])

    composite, start = rules.every(rules.epsilon(0.0)), np.ones((13, 10, 4))
    got, plain = (
        relevance(g, x, composite, start)["input"] for g in (f, lambda x: conv(x, kernel))
    )
    close(got, 2 * plain, 1e-6)


def test_what_can_be_read_is_read_in_half_precision():
    """A maximum with 0 is a ReLU under ``jit`` too, behind which no data is negative."""
    signed = []

    def composite(layer):
        signed.append(layer.signed)
        return rules.z_plus()

    def f(x):
        y = jnp.maximum(conv(x, W.astype(jnp.bfloat16)), 0)
        return conv(y, jnp.ones((3, 3, 4, 2), jnp.bfloat16))

    relevance(f, X.astype(jnp.bfloat16), composite, np.ones((13, 10, 2)))
    assert signed[-1] is False


def test_a_cast_to_whole_numbers_is_refused():
    with pytest.raises(ValueError, match=r"no relevance passes a cast to int.*test_relevance_op"):
        relevance(
            lambda x: (3 * conv(x, W)).astype(int).astype(float).sum(2),
            X,
            rules.every(rules.epsilon()),
            np.ones((13, 10)),
        )


@pytest.mark.parametrize("wrong", [rules.epsilon(), rules.epsilon_plus])
def test_rules_and_composites_are_told_apart(wrong):
    with pytest.raises(ValueError, match=r"a composite is a function from a layer to its rule"):
        relevance(lambda x: conv(x, W), X, wrong, np.ones((13, 10, 4)))


# Real architectures

FAMILIES = (
    "cifar_resnet20",
    # Of all the test of families has small ones.
    *(
        pytest.param(n, marks=pytest.mark.slow)
        for n in (
            *"resnet18 squeezenet1_1 mobilenet_v1 mobilenet_v2 vgg11_bn resnet50".split(),
            "densenet121",
        )
    ),
)


def without_biases(name):
    """A network whose biases and running means are 0, and whose scales are not."""
    apply, params = functional(nnx.eval_shape(lambda: getattr(models, name)(num_classes=4)))

    def fill(path, p):
        words, key = jax.tree_util.keystr(path), jax.random.key(len(jax.tree_util.keystr(path)))
        if not jnp.issubdtype(p.dtype, jnp.floating):
            return jax.random.key(0)
        if "bias" in words or "mean" in words:
            return jnp.zeros(p.shape)
        if "kernel" in words:
            return jax.random.normal(key, p.shape) * (2 / np.prod(p.shape[:-1])) ** 0.5
        return jax.random.uniform(key, p.shape, minval=0.5, maxval=1.5)

    return apply, jax.tree.map_with_path(fill, params)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_conserves(name):
    apply, params = without_biases(name)
    side = 32 if name.startswith("cifar") else 64
    x = jnp.asarray(RNG.standard_normal((side, side, 3)))

    def explain(x, params):
        y, pull = transport(
            lambda x: apply(params, x[None])[0, 1],
            x,
            ["input"],
            Settings(rules.epsilon_plus_flat(1e-12)),
        )
        return y, pull(jnp.ones_like(y))["input"].sum()

    y, total = jax.jit(explain)(x, params)
    close(total, y, 1e-9)
