"""Golden arrays of FG-CAM's authors and closed forms, by which the twins are checked."""

from functools import partial

import numpy as np
import pytest
import reference_fg_cam as fg
import reference_net as net
import reference_relevance as rel
from layer_nets import golden_net, residual_net
from reference import finite_difference
from reference_layers import RELU, Conv, Dense, GlobalAvgPool, MaxPool, Tag, forward, pos
from reference_sise import softmax

T = 2  # the class explained


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def close(got, expected, rtol=1e-12):
    """Within rtol of the greatest expected value."""
    np.testing.assert_allclose(got, expected, rtol=0, atol=rtol * abs(np.asarray(expected)).max())


@pytest.fixture(scope="module")
def arrays(shared):
    return net.golden()


@pytest.mark.parametrize("denoised", [0, 1])
@pytest.mark.parametrize("t", [13, 12, 6, 2, -1])
def test_fg_cam_is_that_of_its_authors(arrays, denoised, t):
    layers, x = golden_net(arrays), arrays["x_nhwc"][0]
    components = fg.grad_cam_components(layers, x, T, "13")
    close(components, arrays["fgcam/I0"][0])
    if denoised:
        components = fg.denoise(components)
        close(components, arrays["fgcam/I0_denoised"][0])
    got = fg.fg_cam(fg.until(layers, "13"), x, components, None if t < 0 else str(t))
    close(got.sum(), [-0.35043433442823, 0.04829834595197][denoised])
    if (denoised, t) != (1, 13):
        close(got, arrays[f"fgcam/den{denoised}_t{t}"][0])


# Starts


Z = np.array([1.2, -0.4, -0.9, 0.3, 2.0])


def test_starts_by_hand():
    close(fg.one_class(Z, T), [0, 0, -0.9, 0, 0], 0)
    close(fg.relevance_cam_start(Z, T), [-0.2, -0.2, 1, -0.2, -0.2], 0)
    close(fg.clrp_starts(Z, T)[1], [-0.225, -0.225, 0, -0.225, -0.225])
    close(fg.gu_starts(Z, T), [[0, 0, 0.9, 0, 0], [1.2, 0.4, 0, 0.3, 2.0]], 0)
    close(fg.sglrp_start(Z, T), finite_difference(lambda z: softmax(z)[T], Z), 1e-6)
    assert abs(fg.sglrp_start(Z, T).sum()) < 1e-16


def test_contrasts():
    a, b = normal(2, 4, 5)
    assert abs(fg.matched(a, b).sum()) < 1e-14
    close(fg.matched(a, 0 * b), a, 0)
    got = fg.gu_contrast(abs(a), abs(b))
    assert (got.min(), got.max()) == (0, 1)
    assert not fg.gu_contrast(abs(a), abs(a)).any()


def test_the_dual_of_clrp2_negates_the_last_dense_layer_only():
    layers = [Dense(normal(3, 4)), RELU, Dense(normal(4, 2)), Tag("logits")]
    dual = fg.negated(layers)
    close(dual[2].w, -layers[2].w, 0)
    close(dual[0].w, layers[0].w, 0)
    assert dual[3] == Tag("logits")


def test_relevance_cam_of_a_linear_head():
    """R_k = A_k / (h w) sum_n W_kn R_n / z_n."""
    a, w = abs(normal(4, 5, 6)), normal(6, 5, seed=1)
    layers = [Tag("last"), GlobalAvgPool(), Dense(w)]
    z = a.mean((0, 1)) @ w
    weights = a.mean((0, 1)) / 20 * (w @ (fg.relevance_cam_start(z, T) / z))
    close(fg.relevance_cam(layers, a, T, "last", rel.epsilon_all(eps=0.0)), a @ weights, 1e-10)


# Denoising


def test_denoising_projects_on_the_first_eigenvectors_of_the_gram_matrix():
    components = normal(7, 6, 30)
    rows = components.reshape(42, 30).T
    centred = rows - rows.mean(1, keepdims=True)
    v = np.linalg.eigh(centred.T @ centred)[1][:, -3:]
    got = fg.denoise(components).reshape(42, 30).T
    close(got, centred @ v @ v.T)
    assert np.linalg.matrix_rank(got) == 3
    assert abs(got.sum(1)).max() < 1e-12
    restored = fg.denoise(components, restore_mean=True)
    close(restored.mean((0, 1)), rows.mean(1))
    close(fg.denoise(components, ratio=1.0, restore_mean=True), components)


def test_denoising_few_channels_leaves_one_part_and_nothing_in_the_reference():
    few = normal(7, 6, 9)
    assert np.linalg.matrix_rank(fg.denoise(few).reshape(42, 9)) == 1
    assert not fg.denoise(few, least=0).any()
    assert np.isfinite(fg.denoise(np.full((2, 2, 3), np.nan))).all()


# FG-CAM: laws


IMAGE = normal(12, 13, 3)
TAGS = [None, "pool", "block1", "block2", "last"]
EACH_TAG = pytest.mark.parametrize("at", TAGS)


@pytest.fixture(scope="module")
def features():
    return fg.until(residual_net(), "last")


@pytest.fixture(scope="module")
def components():
    return fg.grad_cam_components(residual_net(), IMAGE, T, "last")


@EACH_TAG
def test_fg_cam_conserves_without_biases(at):
    layers = residual_net(bias=False)
    features = fg.until(layers, "last")
    components = fg.grad_cam_components(layers, IMAGE, T, "last")
    got = fg.fg_cam(features, IMAGE, components, at)
    assert abs(got.sum() - components.sum()) < 1e-12 * abs(components).sum()


def test_outputs_that_only_a_bias_excites_drop_their_relevance():
    layers, x = [Conv(-np.ones((1, 1, 1, 1)), 3.0), RELU], np.ones((2, 2, 1))
    start = forward([Tag("x"), *layers], x)[-1]
    assert (start == 2).all()
    assert not fg.fg_cam([Tag("x"), *layers], x, start, "x").any()


@EACH_TAG
@pytest.mark.parametrize("residual", ["positive", "proportional"])
def test_fg_cam_is_linear_and_the_cam_at_its_layer(features, components, at, residual):
    def explain(c):
        return fg.fg_cam(features, IMAGE, c, at, residual=residual)

    other = normal(*components.shape)
    mixed = 2 * explain(components) - 3 * explain(other)
    close(explain(2 * components - 3 * other), mixed, 1e-11)
    if at == "last":
        close(explain(components), components.sum(-1), 0)


def test_fg_cam_is_positive_and_contracts(features, components):
    totals = []
    for at in TAGS:
        assert fg.fg_cam(features, IMAGE, abs(components), at).min() >= 0
        totals.append(abs(fg.transport(features, IMAGE, components, at)).sum())
    assert (np.diff(totals) >= -1e-12).all()
    assert totals[0] < totals[-1]


def test_the_proportional_split_is_not_positive(features, components):
    got = fg.fg_cam(features, IMAGE, abs(components), residual="proportional")
    assert got.min() < 0


@pytest.mark.parametrize("signed", [False, True])
def test_batch_norm_passes_as_it_folds_where_scales_are_positive(signed):
    features = fg.until(residual_net(signed=signed), "last")
    start = normal(*forward(features, IMAGE)[-1].shape)
    passed, folded, biased = (
        fg.fg_cam(features, IMAGE, start, bn=bn) for bn in ("pass", "fold", "fold_bias")
    )
    assert (abs(folded - passed).max() < 1e-11 * abs(passed).max()) != signed
    assert abs(biased - folded).max() > 0.01 * abs(folded).max()


def test_fg_cam_of_hires_components_is_a_composite(arrays):
    """With a classifier without biases: LRP-0, then z+ and the box, from the class score."""
    layers = golden_net(arrays)
    layers = [a._replace(b=0.0) if isinstance(a, Dense) else a for a in layers]
    x = arrays["x_nhwc"][0]
    z, features = forward(layers, x)[-1], fg.until(layers, "13")
    got = fg.fg_cam(features, x, fg.hires_components(layers, x, T, "13"))
    close(got.sum(), z[T])
    options = {"eps": 0.0, "bias": False}
    rule = rel.composite(
        partial(rel.z_plus, **options),
        partial(rel.epsilon, **options),
        {Conv: partial(rel.z_box, low=x.min(), high=x.max(), eps=0.0)},
    )
    close(rel.relevance(layers, x, fg.one_class(z, T), rule, bn="rule").sum(-1), got)


def test_pixels_have_the_bounds_of_their_image_and_a_tag_none(features, components):
    got = fg.fg_cam(features, IMAGE, components)
    same = fg.fg_cam(features, IMAGE, components, bounds=(IMAGE.min(), IMAGE.max()))
    close(got, same, 0)
    wide = fg.fg_cam(features, IMAGE, components, bounds=(-9.0, np.array([7.0, 8, 9])))
    assert abs(got - wide).max() > 0.01 * abs(got).max()
    tagged = [Tag("x"), *features]
    first = fg.fg_cam(tagged, IMAGE, components, "x")
    assert abs(got - first).max() > 0.01 * abs(got).max()


def test_relevance_of_silent_units_and_of_pools_of_zeros_is_dropped():
    x = np.zeros((4, 4, 1))
    x[3, 3] = 2.0
    got = fg.transport([Tag("x"), RELU], x, np.ones_like(x), "x")
    close(got, x / 2, 0)
    rule = fg.improve_resolution(0.0, 1.0)
    got = rel.relevance([MaxPool()], x, np.ones((2, 2, 1)), rule)
    close(got, x / 2, 0)


def test_grayscale_has_the_box_rule_too():
    layers, x = [Conv(normal(3, 3, 1, 4), normal(4), padding=1), RELU], normal(6, 6, 1)
    start = pos(forward(layers, x)[-1])
    got = fg.transport(layers, x, start)
    close(got, rel.z_box(layers[0], x, start, x.min(), x.max(), eps=0.0), 0)


@pytest.mark.parametrize("image", [np.zeros((12, 13, 3)), np.full((12, 13, 3), 0.4)])
def test_constant_images_are_finite(features, image):
    start = fg.grad_cam_components(residual_net(), image, T, "last")
    assert np.isfinite(fg.fg_cam(features, image, start)).all()
