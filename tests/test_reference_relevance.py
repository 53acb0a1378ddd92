"""zennit's golden arrays and closed forms, by which the twin of relevance is checked."""

import numpy as np
import pytest
import reference_fg_cam as fg
import reference_net as net
import reference_relevance as rel
from layer_nets import SILU, golden_net, residual_net
from reference_layers import RELU, BatchNorm, Conv, Residual, Tag, forward, gradients, neg, op, pos

T = 2  # the class explained


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def close(got, expected, rtol=1e-12):
    """Within rtol of the greatest expected value."""
    np.testing.assert_allclose(got, expected, rtol=0, atol=rtol * abs(np.asarray(expected)).max())


@pytest.fixture(scope="module")
def arrays(shared):
    return net.golden()


@pytest.fixture(scope="module")
def golden(arrays):
    """Layers with zennit's Norm step, image, logits."""
    layers, x = golden_net(arrays, norm_pool=True), arrays["x_nhwc"][0]
    return layers, x, forward(layers, x)[-1]


# Golden values


def test_logits_and_gradient(arrays, golden):
    layers, x, z = golden
    close(z, arrays["logits"][0], 1e-13)
    close(x * gradients(layers, x, np.eye(5)[T])[0], arrays["grad_times_input"][0], 1e-13)


COMPOSITES = (
    "epsilon_plus epsilon_plus_flat epsilon_alpha2_beta1 epsilon_alpha2_beta1_flat"
    " epsilon_gamma_box excitation_backprop epsilon_all wsquare_first"
).split()


@pytest.mark.parametrize("zero_bias", [0, 1])
@pytest.mark.parametrize("merge", [0, 1])
@pytest.mark.parametrize("name", COMPOSITES)
def test_composites_are_those_of_zennit(arrays, golden, name, merge, zero_bias):
    layers, x, z = golden
    bounds = (arrays["zennit/low"], arrays["zennit/high"]) if name == "epsilon_gamma_box" else ()
    rule = getattr(rel, name)(*bounds, norm_eps=1e-6, bias=not zero_bias)
    got = rel.relevance(layers, x, fg.one_class(z, T), rule, bn="merge" if merge else "rule")
    expected = arrays[f"zennit/{name}/merge{merge}_zerobias{zero_bias}"][0]
    close(got, expected, 1e-10 if name in ("epsilon_all", "wsquare_first") else 1e-12)


STARTS = {
    "relcam": (fg.relevance_cam_start, 0.199999),
    "clrp1_target": (lambda z, t: fg.clrp_starts(z, t)[0], -0.8832),
    "clrp1_dual": (lambda z, t: fg.clrp_starts(z, t)[1], -0.8832),
    "sglrp": (fg.sglrp_start, -1e-8),
}


@pytest.mark.parametrize("name", STARTS)
def test_contrasts_are_those_of_zennit(arrays, golden, name):
    layers, x, z = golden
    start, total = STARTS[name]
    close(start(z, T), arrays[f"contrast/init_{name}"][0], 1e-14)
    rule = rel.epsilon_gamma_box(
        arrays["zennit/low"], arrays["zennit/high"], norm_eps=1e-6, bias=False
    )
    got = rel.relevance(layers, x, start(z, T), rule)
    close(got, arrays[f"contrast/R_{name}"][0])
    assert abs(got.sum() - total) < 1e-5


def test_leaving_out_the_norm_step_costs_what_the_readme_says(arrays, golden):
    layers, x, z = golden
    rule = rel.epsilon_plus(norm_eps=1e-6)
    without = rel.relevance(golden_net(arrays), x, fg.one_class(z, T), rule)
    expected = arrays["zennit/epsilon_plus/merge1_zerobias0"][0]
    assert 1e-7 < abs(without - expected).max() / abs(expected).max() < 2e-5
    close(rel.relevance(layers, x, fg.one_class(z, T), rel.epsilon_plus()), without)


# Networks


IMAGE = normal(12, 13, 3)
CONSERVING = {
    "epsilon_plus": rel.epsilon_plus(eps=1e-12),
    "epsilon_plus_flat": rel.epsilon_plus_flat(eps=1e-12),
    "epsilon_gamma_box": rel.epsilon_gamma_box(-3.0, np.array([3.0, 4, 5]), eps=1e-12),
    "epsilon_all": rel.epsilon_all(eps=1e-12),
    "wsquare_first": rel.wsquare_first(eps=1e-12),
}
EACH_SUM = pytest.mark.parametrize("add", [rel.proportional, rel.positive])


def leak(layers, rule, **options):
    """What the pixels lack of the start, and the scale of their relevance."""
    r = fg.one_class(forward(layers, IMAGE)[-1], T)
    got = rel.relevance(layers, IMAGE, r, rule, **options)
    return r.sum() - got.sum(), abs(got).sum()


@pytest.mark.parametrize("rule", CONSERVING.values(), ids=CONSERVING)
def test_composites_conserve_without_biases(rule):
    lost, scale = leak(residual_net(bias=False), rule, add=rel.positive)
    assert abs(lost) < 1e-9 * scale


@pytest.mark.parametrize("act", [RELU, SILU], ids=["relu", "silu"])
def test_the_proportional_split_loses_what_z_plus_is_asked_for_where_nothing_excites(act):
    """It sends relevance to negative operands; SiLU leaves it at negative outputs."""
    drops = []

    def watched(layer, x, r):
        excited = op(layer, pos(x), pos(layer.w)) + op(layer, neg(x), neg(layer.w))
        drops.append(r[excited == 0].sum())
        return rel.z_plus(layer, x, r, eps=1e-12, bias=False)

    rule = rel.composite(watched, watched)
    lost, scale = leak(residual_net(bias=False, act=act), rule)
    assert abs(lost) > 1e-4 * scale
    assert abs(lost - sum(drops)) < 1e-9 * scale


@pytest.mark.parametrize("name", ["epsilon_gamma_box", "epsilon_all", "wsquare_first"])
def test_composites_that_divide_by_the_output_conserve_whatever_the_activation(name):
    lost, scale = leak(residual_net(bias=False, act=SILU), CONSERVING[name])
    assert abs(lost) < 1e-9 * scale


def test_lrp_0_is_input_times_gradient_with_biases():
    layers = residual_net(extras=False)
    z = forward(layers, IMAGE)[-1]
    expected = IMAGE * gradients(layers, IMAGE, np.eye(5)[T])[0]
    for bn in ("merge", "rule"):
        got = rel.relevance(layers, IMAGE, fg.one_class(z, T), rel.epsilon_all(eps=0.0), bn=bn)
        assert (abs(got - expected).max() < 1e-10 * abs(expected).max()) == (bn == "merge")


@EACH_SUM
def test_relevance_is_linear_in_its_start(add):
    layers, rule = residual_net(), rel.epsilon_gamma_box(-3, 3)
    r = normal(2, 5)
    one, two, both = (
        rel.relevance(layers, IMAGE, s, rule, add=add) for s in (*r, 2 * r[0] - 3 * r[1])
    )
    close(both, 2 * one - 3 * two, 1e-11)


def test_merging_keeps_values_and_reaches_through_tags():
    layers = residual_net(signed=True)
    folded = rel.merged(layers)
    close(forward(folded, IMAGE)[-1], forward(layers, IMAGE)[-1])
    conv, norm = layers[:2]
    (merged, tag), plain = rel.merged([conv, Tag("a"), norm]), rel.merged([conv, norm])[0]
    assert tag == Tag("a")
    close(merged.w, plain.w, 0)


@pytest.mark.parametrize("signed", [False, True])
def test_passing_is_merging_where_scales_are_positive_and_biases_off(signed):
    layers, rule = residual_net(signed=signed), rel.epsilon_plus_flat(bias=False, eps=0.0)
    r = fg.one_class(forward(layers, IMAGE)[-1], T)
    merge, passed = (rel.relevance(layers, IMAGE, r, rule, bn=bn) for bn in ("merge", "rule"))
    assert (abs(merge - passed).max() < 1e-10 * abs(merge).max()) != signed


def test_preprocessing_within_the_network_is_that_without():
    layers, rule = residual_net(), rel.epsilon_gamma_box(-3, 3)
    mean, deviation = np.array([0.4, 0.5, 0.6]), np.array([0.2, 0.3, 0.1])
    preprocess = BatchNorm(1.0, 0.0, mean, deviation**2, 0.0)
    r, raw = np.eye(5)[T], IMAGE * deviation + mean
    expected = rel.relevance(layers, IMAGE, r, rule)
    close(rel.relevance([preprocess, Tag("x"), *layers], raw, r, rule), expected, 1e-10)


def test_a_batch_norm_that_follows_no_convolution_absorbs_or_passes():
    norm = BatchNorm(2.0, 3.0, 0.0, 1.0, 0.0)
    layers, x, r = [RELU, norm], np.array([1.0, 2]), np.ones(2)
    close(rel.relevance(layers, x, r, rel.epsilon_plus()), [2 / 5, 4 / 7])
    close(rel.relevance(layers, x, r, rel.epsilon_plus(), bn="rule"), r, 0)
    close(rel.relevance(layers, x, r, rel.excitation_backprop(), bn="rule"), [2, 2], 0)
    with pytest.raises(ValueError, match="'pass'"):
        rel.relevance(layers, x, r, rel.epsilon_plus(), bn="pass")


def test_relevance_at_a_tag_is_that_of_what_follows_and_has_no_first_layer():
    layers, r = residual_net(), np.eye(5)[T]
    rule, above = rel.epsilon_plus(), fg.until(layers, "block1")
    got = rel.relevance(layers, IMAGE, r, rule, at="block1")
    a = forward(above, IMAGE)[-1]
    close(got, rel.relevance(layers[len(above) :], a, r, rule))
    tagged = [Tag("x"), *layers]
    first, hidden = (
        rel.relevance(tagged, IMAGE, r, rel.epsilon_plus_flat(), at=at) for at in (None, "x")
    )
    close(hidden, rel.relevance(layers, IMAGE, r, rule))
    assert abs(first - hidden).max() > 0.01 * abs(first).max()


def test_both_branches_of_an_input_are_first():
    w, r = abs(normal(2, 1, 1, 3, 3)), normal(*IMAGE.shape)
    layers = [Residual([Conv(w[0])], [Conv(w[1])])]
    got = rel.relevance(layers, abs(IMAGE), r, rel.epsilon_plus_flat(eps=0.0))
    close(got, np.broadcast_to(r.mean(2, keepdims=True), r.shape))
