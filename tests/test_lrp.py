"""LRP and its kin as a user meets them: golden arrays, the twin, starts, laws and bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_fg_cam as starts
import reference_net as net
import reference_relevance as twin
from layer_nets import residual_net
from layers_in_jax import network
from nets import golden_model, images, tiny
from reference_layers import forward

import jaxfmi as jf
from jaxfmi import rules
from jaxfmi.command import methods
from jaxfmi.regrade import regrade

T = 2
X = np.random.default_rng(0).standard_normal((13, 10, 3))
Z_PLUS = twin.composite(
    lambda *a: twin.z_plus(*a, bias=False), lambda *a: twin.z_plus(*a, bias=False)
)


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def close(got, expected, rtol=1e-12):
    """Within rtol of the largest expected value."""
    scale = np.abs(np.asarray(expected)).max()
    np.testing.assert_allclose(got, expected, rtol=0, atol=rtol * scale)


# The golden arrays


@pytest.fixture(scope="module")
def arrays(shared):
    return net.golden()


def golden_with_norm(arrays, dtype=jnp.float64):
    """With zennit's rule for the average pooling of one pixel that its network has."""
    apply, params = golden_model(arrays)

    def norm(a):
        still = jax.lax.stop_gradient(a)
        return regrade(a, [(still / (still + jnp.where(still < 0, -1e-6, 1e-6)), a)])

    return jf.edit(apply, {"13": norm}), jax.tree.map(lambda p: p.astype(dtype), params)


def composite(name, arrays):
    if name == "epsilon_gamma_box":
        return rules.epsilon_gamma_box(arrays["zennit/low"], arrays["zennit/high"])
    if name == "wsquare_first":
        return rules.every(rules.epsilon(), rules.w_square())
    return {"excitation_backprop": "z_plus", "epsilon_all": "epsilon"}.get(name, name)


ZENNIT = (
    "epsilon_plus epsilon_plus_flat epsilon_alpha2_beta1 epsilon_alpha2_beta1_flat"
    " epsilon_gamma_box excitation_backprop epsilon_all wsquare_first"
).split()


def zennit(arrays, name, dtype):
    """Ours of all four kinds, by zennit's names of them."""
    score = jf.class_score(golden_with_norm(arrays, dtype))
    x = jnp.asarray(arrays["x_nhwc"][0], dtype)
    norm = "gradient" if name == "excitation_backprop" else "pass"

    def every(x):
        return {
            f"merge{merge}_zerobias{zero}": jf.lrp_terms(
                score, composite(name, arrays), norm="merge" if merge else norm, bias=not zero
            )(x, T).relevance
            for merge in (0, 1)
            for zero in (0, 1)
        }

    return jax.jit(every)(x)


@pytest.mark.parametrize("name", ZENNIT)
def test_composites_are_zennits(arrays, name):
    for kind, got in zennit(arrays, name, jnp.float64).items():
        tight = 1e-10 if name in ("epsilon_all", "wsquare_first") else 1e-12
        close(got, arrays[f"zennit/{name}/{kind}"][0], tight)


@pytest.mark.parametrize("name", ZENNIT[:6])
def test_composites_in_float32(arrays, name):
    for kind, got in zennit(arrays, name, jnp.float32).items():
        assert got.dtype == jnp.float32
        expected = arrays[f"zennit/{name}/{kind}"][0]
        close(got, expected, 5e-4 if name == "epsilon_gamma_box" else 5e-5)


def test_contrastive_starts(arrays):
    """The start is a multiplier at the logits: a score whose gradient is start / logit."""
    x = jnp.asarray(arrays["x_nhwc"][0])
    for name in ("relcam", "clrp1_target", "clrp1_dual", "sglrp"):
        start = arrays[f"contrast/init_{name}"][0]
        model = golden_with_norm(arrays)
        score = jf.class_score(model, lambda z, start=start: started(z, start))
        terms = jf.lrp_terms(score, composite("epsilon_gamma_box", arrays), bias=False)
        close(jax.jit(terms)(x).relevance, arrays[f"contrast/R_{name}"][0])


def started(z, start):
    return (jax.lax.stop_gradient(start / z) * z).sum()


# Starts against the twin


def score_of(layers):
    return jf.class_score(lambda x: network(layers)(x[0])[None])


def test_lrp_terms_account_for_the_score():
    layers = residual_net()
    terms = jax.jit(jf.lrp_terms(score_of(layers), "epsilon_plus"))(X, T)
    z = forward(layers, X)[-1]
    expected = twin.relevance(layers, X, starts.one_class(z, T), twin.epsilon_plus())
    close(terms.relevance, expected, 1e-11)
    close(terms.heatmap, expected.sum(-1), 1e-11)
    close(terms.score, z[T])
    close(terms.lost, z[T] - expected.sum(), 1e-9)


@pytest.mark.parametrize("own", [False, True])
def test_clrp(own):
    layers = residual_net()
    z = forward(layers, X)[-1]
    pair = (starts.gu_starts if own else starts.clrp_starts)(z, T)
    one, other = (twin.relevance(layers, X, s, Z_PLUS) for s in pair)
    expected = one / one.sum() - other / other.sum() if own else starts.matched(one, other)
    got, positive = (
        jax.jit(jf.clrp(score_of(layers), "z_plus", own=own, relu=relu))(X, T)
        for relu in (False, True)
    )
    close(got, expected.sum(-1), 1e-10)
    close(positive, np.maximum(got, 0))
    assert abs(got.sum()) < 1e-10 * np.abs(got).sum()


@pytest.mark.parametrize("matched", [False, True])
def test_sglrp(matched):
    layers = residual_net()
    start = starts.sglrp_start(forward(layers, X)[-1], T)
    halves = np.maximum(start, 0), np.maximum(-start, 0)
    one, other = (twin.relevance(layers, X, s, Z_PLUS) for s in halves)
    expected = starts.matched(one, other) if matched else one - other
    got = jax.jit(jf.sglrp(score_of(layers), "z_plus", matched=matched))(X, T)
    close(got, expected.sum(-1), 1e-10)
    if matched:
        assert abs(got.sum()) < 1e-10 * np.abs(got).sum()


def test_sglrp_adds_up_to_nothing_where_nothing_is_lost():
    """As its start does; gamma without biases loses nothing."""
    score, composite = score_of(residual_net(bias=False)), rules.every(rules.gamma(eps=0.0))
    got = jax.jit(jf.sglrp(score, composite))(X, T)
    assert abs(got.sum()) < 1e-13 * np.abs(got).sum()


def test_relevance_cam():
    layers = residual_net()
    got = jax.jit(jf.relevance_cam(score_of(layers), ("pool", "block2"), size=None))(X, T)
    for name, heatmap in zip(("pool", "block2"), got, strict=True):
        close(heatmap, starts.relevance_cam(layers, X, T, name, Z_PLUS), 1e-10)
    assert jf.relevance_cam(score_of(layers), relu=True)(X, T).shape == X.shape[:2]


def test_excitation_backprop_is_z_plus_without_biases():
    layers = residual_net()
    z = forward(layers, X)[-1]
    expected = twin.relevance(layers, X, starts.one_class(z, T), Z_PLUS).sum(-1)
    close(jf.excitation_backprop(score_of(layers))(X, T), expected, 1e-11)


# Laws


def test_lrp_0_is_input_times_gradient():
    score = jf.class_score(tiny("nnx"))
    x = images(1)[0]
    exact = rules.every(rules.epsilon(0.0))
    close(jf.lrp(score, exact)(x, 1), jf.input_x_gradient(score)(x, 1), 1e-5)


def test_rules_that_are_one():
    layers = residual_net(signed=True)
    score = score_of(layers)

    def explain(rule, first=None):
        return jax.jit(jf.lrp(score, rules.every(rule, first)))(X, T)

    close(explain(rules.gamma(0.0)), explain(rules.epsilon()), 1e-9)
    zero_box = explain(rules.epsilon(), rules.z_box(0.0, 0.0))
    close(zero_box, explain(rules.epsilon(), _without_bias(rules.epsilon())), 1e-9)


def test_composites_of_the_command_line_have_settings():
    """As bounds, which FG-CAM has as an option."""
    score = score_of(residual_net())
    words = "lrp.composite=epsilon_gamma_box(low=-5,high=6)", "fg_cam.bounds=-5,6"
    given = methods.settings(["lrp", "fg_cam"], words)
    got = jax.jit(methods.build("lrp", given["lrp"], None)(score))(X, T)
    close(got, jax.jit(jf.lrp(score, rules.epsilon_gamma_box(-5, 6)))(X, T))
    assert given["fg_cam"]["bounds"] == (-5, 6)
    with pytest.raises(ValueError, match="no value with settings 'z_plus'"):
        methods.settings(["lrp"], ["composite=z_plus(eps=1)"])


def test_alpha_beta_without_beta_is_where_the_others_lead():
    """In one layer relevance is linear in beta, but 1 and 0 have a rule of their own, z+."""
    score = score_of(residual_net(signed=True))

    def explain(beta):
        first = rules.alpha_beta(1 + beta, beta)
        return jf.lrp(score, rules.every(rules.epsilon(), first))(X, T)

    none, half, one = jax.jit(lambda: [explain(beta) for beta in (0.0, 0.5, 1.0)])()
    close(none, 2 * half - one)
    assert np.abs(none - one).max() > 0.1 * np.abs(none).max()


def _without_bias(rule):
    return lambda layer: rule(layer._replace(b=jnp.zeros_like(layer.b)))


def test_the_start_is_linear():
    score = score_of(residual_net())
    maps = [jf.lrp(score)(X, label) for label in (0, 1)]
    both = jf.lrp(lambda x: score(x, 0) + score(x, 1))(X)
    close(both, maps[0] + maps[1], 1e-11)


def test_a_composite_of_ones_own():
    seen = []

    def mine(layer):
        seen.append((layer.first, layer.dense))
        return rules.flat() if layer.first else rules.epsilon()

    jf.lrp(jf.class_score(tiny("linen")), mine)(images(1)[0], 1)
    assert set(seen) == {(True, False), (False, False), (False, True)}


# Bad input


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        (
            jf.lrp,
            {"composite": "epsilonplus"},
            "no composite 'epsilonplus'; there are epsilon_plus",
        ),
        (jf.lrp, {"norm": "fold"}, "norm is one of merge, pass, gradient; got 'fold'"),
        (jf.lrp, {"split": "half"}, "split is one of proportional, positive"),
        (jf.lrp, {"at": "blok"}, r"no tag 'blok' \(did you mean 'block'"),
        (jf.lrp, {"at": None}, "at is 'input' or one tag, got None"),
        (jf.lrp, {"at": ["stem", "block"]}, r"at is 'input' or one tag, got \['stem'"),
        (jf.lrp, {"composite": rules.every(rules.epsilon(-1e-3))}, "is at least 0, got -0.001"),
        (jf.relevance_cam, {"layer": "blok"}, "no tag 'blok'"),
    ],
)
def test_bad_options(method, options, message):
    with pytest.raises(ValueError, match=message):
        method(jf.class_score(tiny("nnx")), **options)(images(1)[0], 1)


def test_bad_numbers_of_rules():
    with pytest.raises(ValueError, match="alpha - beta is 1"):
        rules.alpha_beta(2, 2)
    with pytest.raises(ValueError, match="gamma is at least 0"):
        rules.gamma(-1)
    with pytest.raises(ValueError, match=r"the low bound is above the high one: 1.0 and 0.0"):
        rules.z_box(1.0, 0.0)
    with pytest.raises(ValueError, match="equal shapes"):
        jf.lrp(jf.class_score(tiny("nnx")), rules.every(rules.pass_through()))(images(1)[0], 1)


def test_a_score_without_logits_has_no_contrast():
    for method in (jf.clrp, jf.sglrp, jf.relevance_cam):
        with pytest.raises(ValueError, match="needs all logits"):
            method(lambda x, label: x.sum())(images(1)[0], 1)


def test_a_place_that_is_bypassed():
    def score(x):
        return (jf.tag(jax.nn.relu(x[..., :1]), "branch") + x[..., 1:2]).sum()

    with pytest.raises(ValueError, match="the score depends on the image by ways that bypass"):
        jf.lrp(score, at="branch")(images(1)[0])


def test_a_layer_of_relevance_cam_that_is_bypassed():
    def net(_, x):
        a, b = jax.nn.relu(x), x[..., :1]
        return jnp.stack([jf.tag(a, "branch").mean((1, 2, 3)), b.mean((1, 2, 3))], 1)

    with pytest.raises(ValueError, match="the score depends on the image by ways that bypass"):
        jf.relevance_cam(jf.class_score((net, {})), "branch")(images(1)[0], 1)
