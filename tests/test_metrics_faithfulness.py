"""Deletion, insertion, drop and the like: golden values, the twin, and laws."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_metrics as ref
import reference_sise as g3
from nets import HEIGHT, LAYER_SIZE, WIDTH, g3_model, images, tiny
from reference import min_max

import jaxfmi
from jaxfmi import class_score, metrics, probability
from jaxfmi.metrics import (
    confidence,
    deletion,
    deletion_curve,
    insertion,
    insertion_curve,
    region_perturbation,
)

CURVES = pytest.mark.parametrize("curve", [deletion_curve, insertion_curve])


def close(got, expected, atol=1e-6):
    np.testing.assert_allclose(got, expected, rtol=0, atol=atol)


@functools.cache
def golden_maps():
    """The SISE maps of G3, class 4, with hard and with soft fusion.

    Rounded, for two pixels of the hard one are equal or not by the processor's last bit.
    """
    x = g3.g3_image()
    hard = g3.sise(*g3.g3_taps(x), x, g3.g3_score())
    soft = g3.fuse([layer.v for layer in hard.layers], g3.soft, (32, 32))
    return {"hard": hard.map.round(15), "soft": min_max(soft)}


@pytest.fixture
def golden():
    """``measure(metric, map)`` on G3, class 4, probability, in float64."""
    with jax.enable_x64(True):
        x, score = jnp.asarray(g3.g3_image()), class_score(g3_model, probability)
        yield lambda metric, heatmap, **options: jax.jit(metric(score, **options))(
            x, jnp.asarray(golden_maps().get(heatmap, heatmap)), 4
        )


# Golden values


@pytest.mark.parametrize(
    ("name", "removed", "shown"),
    [("hard", 0.305357, 0.315958), ("soft", 0.270068, 0.264903)],
)
def test_deletion_and_insertion(golden, name, removed, shown):
    curve = golden(deletion_curve, name, steps=32)
    assert curve.scores.shape == (33,)
    close(curve.scores[jnp.array([0, -1])], [0.32068627, 0.30072964], 1e-8)
    close(curve.auc, removed)
    close(golden(insertion, name, steps=32, baseline=0.0), shown)


def test_the_other_tie_rule(golden):
    """The golden .291678 and .310380 hold pixels 734 and 735 for different, by a rounding."""
    close(golden(deletion, "hard", steps=32, ties="last"), 0.291711)
    close(golden(insertion, "hard", steps=32, ties="last", baseline=0.0), 0.310332)
    close(golden(deletion, "soft", steps=32, ties="last"), 0.270068)


@pytest.mark.parametrize(
    ("name", "removed", "shown"),
    [
        ("hard", (0.309062, 0.308646), (0.318664, 0.318911)),
        ("soft", (0.263445, 0.266653), (0.265631, 0.269460)),
    ],
)
def test_a_short_last_step(golden, name, removed, shown):
    """By true fractions, and with equal weights as in RISE's code."""
    for equal in (False, True):
        close(golden(deletion, name, step=100, equal=equal), removed[equal])
        close(golden(insertion, name, step=100, equal=equal, baseline=0.0), shown[equal])


@pytest.mark.parametrize(
    ("name", "explained", "drop"),
    [("hard", 0.31876378, 0.5995), ("soft", 0.31127820, 2.9337)],
)
def test_drop(golden, name, explained, drop):
    close(golden(confidence, name).explained, explained, 1e-8)
    close(golden(metrics.drop, name), drop, 5e-5)
    close(golden(metrics.increase, name), 0)
    close(golden(metrics.gain, name), 0)


def test_drop_of_the_highest_pixels(golden):
    close(golden(confidence, "soft", keep=0.15).explained, 0.30934871, 1e-8)
    close(golden(metrics.drop, "soft", keep=0.15), 3.5354, 5e-5)


def test_conventions_of_others(golden):
    """SISE's strict comparison leaves out the plateau; pytorch-grad-cam's drop is no share."""
    for name, explained, lost in (("hard", 0.31065098, 3.1293), ("soft", 0.30934871, 3.5354)):
        found = golden(confidence, name, keep=0.15, strict=True)
        close(found.explained, explained, 1e-8)
        close(found.drop, lost, 5e-5)
    plain = golden(confidence, "soft", keep=0.15, relative=False)
    close(plain.drop, 100 * (plain.clean - plain.explained), 1e-9)
    assert plain.gain == 0
    with pytest.raises(ValueError, match="strict is about the pixels that keep"):
        confidence(lambda x: x.sum(), strict=True)


@pytest.mark.parametrize(("name", "tied"), [("hard", 0.870117), ("soft", 0)])
def test_the_share_of_ties_is_reported(golden, name, tied):
    close(golden(deletion_curve, name, steps=2).tied, tied)
    close(golden(insertion_curve, name, steps=2).tied, tied)


@jax.enable_x64(True)
def test_counting_bright_pixels():
    x = jnp.asarray(g3.g3_image())
    curve = deletion_curve(lambda x: (x.mean(2) > 0.5).mean(), steps=32)(x, x.mean(2))
    assert curve.scores[0] == 0.5087890625
    close(curve.auc, 0.1295318603515625, 1e-15)


# The twin


@pytest.fixture
def example():
    """An image [13, 11, 2], a map with ties, and a score of both languages, in float64."""
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((13, 11, 2))
    heatmap = np.round(rng.standard_normal((13, 11)), 1)

    def score(x):
        return jax.nn.sigmoid((weights * x * x).mean() + x[3, 4, 0])

    with jax.enable_x64(True):
        yield jnp.asarray(rng.random((13, 11, 2))), heatmap, score


OPTIONS = [
    {},
    {"steps": 7},
    {"step": 10},
    {"steps": 1},
    {"step": 1000},
    {"baseline": 0.3},
    {"baseline": np.array([0.1, 0.7])},
    {"baseline": lambda x: x[::-1]},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", ["deletion_curve", "insertion_curve"])
def test_curves_are_the_twins(example, name, options):
    x, heatmap, score = example
    got = getattr(metrics, name)(score, **options)(x, heatmap)
    expected = getattr(ref, name)(lambda x: float(score(x)), x, heatmap, **options)
    for a, b in zip(got, expected, strict=True):
        close(a, b, 1e-12)


@pytest.mark.parametrize("options", [{}, {"patch": 3}, {"patch": 4, "regions": 5}])
def test_region_perturbation_is_the_twins(example, options):
    x, heatmap, score = example
    heatmap = heatmap + np.random.default_rng(2).random(heatmap.shape)  # sums do not tie
    got = metrics.region_perturbation(score, baseline=0.2, **options)(x, heatmap)
    f, x = (lambda x: float(score(x))), np.asarray(x)
    close(got, ref.region_perturbation(f, x, heatmap, baseline=0.2, **options), 1e-12)


@pytest.mark.parametrize("options", [{}, {"keep": 0.15}, {"keep": 1.0}, {"baseline": 0.4}])
def test_confidence_is_the_twins(example, options):
    x, heatmap, score = example
    heatmap = np.asarray(jaxfmi.heatmap.unit(heatmap))
    got = confidence(score, **options)(x, heatmap)
    expected = ref.confidence(lambda x: float(score(x)), np.asarray(x), heatmap, **options)
    for a, b in zip(got, expected, strict=True):
        close(a, b, 1e-12)


def test_rise_blur_is_the_twins(example):
    close(metrics.rise_blur(example[0]), ref.rise_blur(np.asarray(example[0])), 1e-12)


def test_rise_blurs_kernel():
    point = jnp.zeros((31, 31, 1)).at[15, 15].set(1.0)
    kernel = metrics.rise_blur(point)[10:21, 10:21, 0]
    close([kernel[5, 5], kernel[0, 0], kernel.sum()], [0.008832628, 0.007736635, 1], 1e-6)
    close(kernel, kernel.T, 1e-9)


# Laws


@jax.enable_x64(True)
def test_insertion_is_deletion_of_the_negated_map_reversed():
    rng = np.random.default_rng(1)
    x, heatmap = jnp.asarray(rng.random((8, 9, 1))), rng.permutation(72).reshape(8, 9)
    one = insertion_curve(lambda x: x[2:5].mean(), step=8, baseline=0.0)(x, heatmap)
    other = deletion_curve(lambda x: x[2:5].mean(), step=8)(x, -heatmap)
    close(one.scores, other.scores[::-1], 1e-15)


@CURVES
def test_the_area_of_the_mean_curve_is_the_mean_of_the_areas(curve):
    x, heatmaps = images(3), images(3, seed=5)[..., 0]
    score = class_score(tiny("nnx"), probability)
    found = jax.vmap(curve(score, step=30))(x, heatmaps, jnp.array([0, 1, 2]))
    close(jnp.trapezoid(found.scores.mean(0), found.fractions[0]), found.auc.mean())


@CURVES
def test_a_constant_added_to_the_score_is_added_to_the_area(curve):
    x, heatmap = images(1)[0], images(1, seed=5)[0, ..., 0]
    score = class_score(tiny("nnx"), probability)
    shifted = curve(lambda x: score(x, 2) + 3.0)(x, heatmap)
    close(shifted.auc, curve(score)(x, heatmap, 2).auc + 3, 1e-5)


@pytest.mark.parametrize(
    "change", [lambda m: m + 2.0, lambda m: 3 * m, jnp.exp], ids=["shift", "scale", "exp"]
)
def test_increasing_changes_of_the_map_change_nothing(change):
    x, heatmap = images(1)[0], images(1, seed=5)[0, ..., 0]
    score = class_score(tiny("nnx"), probability)
    measures = [deletion(score), insertion(score), confidence(score, keep=0.2)]
    for measure in measures:
        one, other = (jax.tree.leaves(measure(x, m, 2)) for m in (heatmap, change(heatmap)))
        close(one, other, 1e-7)


@pytest.mark.parametrize("chunk", [1, 3, 5, 1000, None])
@CURVES
def test_the_chunk_does_not_matter(curve, chunk):
    x, heatmap = images(1)[0], images(1, seed=5)[0, ..., 0]
    score = class_score(tiny("nnx"), probability)
    got = curve(score, steps=10, chunk=chunk)(x, heatmap, 2).scores
    close(got, curve(score, steps=10)(x, heatmap, 2).scores)


def test_keeping_everything_loses_nothing():
    x, score = images(1)[0], class_score(tiny("nnx"), probability)
    found = confidence(score)(x, jnp.ones((HEIGHT, WIDTH)), 1)
    close(found[:3], [0, 0, 0])
    assert found.clean == found.explained


def test_pixels_may_be_permuted_with_the_map():
    x, heatmap = images(1)[0], images(1, seed=5)[0, ..., 0]
    order = np.random.default_rng(0).permutation(HEIGHT * WIDTH)

    def score(x):
        return jax.nn.sigmoid((x**2).mean() - x[..., 0].max())

    def shuffled(a):
        return a.reshape(HEIGHT * WIDTH, -1)[order].reshape(a.shape)

    close(deletion(score)(x, heatmap), deletion(score)(shuffled(x), shuffled(heatmap)))
    one, other = confidence(score, keep=0.3), (shuffled(x), shuffled(heatmap))
    close(one(x, heatmap), one(*other), 1e-4)  # per cent


def test_a_score_of_zero_has_no_drop():
    found = confidence(lambda x: 0 * x.sum())(images(1)[0], jnp.ones((HEIGHT, WIDTH)))
    assert np.isnan([found.drop, found.increase, found.gain]).all()


@pytest.mark.parametrize("share", [0.07, 0.29, 0.57, 0.58])
def test_a_share_of_pixels_is_no_victim_of_rounding(share):
    x = jnp.ones((10, 10, 1))
    kept = confidence(lambda x: x.mean(), keep=share)(x, x[..., 0])
    close(kept.explained, share, 1e-7)


@pytest.mark.parametrize("value", [0.0, 1.0, -3.0])
def test_a_constant_map_has_an_order(value):
    """That of its pixels, all of which are tied: no NaN, and the same for every constant."""
    score, x = class_score(tiny("nnx"), probability), images(1)[0]
    flat = jnp.full((HEIGHT, WIDTH), value)
    ordered = -jnp.arange(flat.size, dtype=flat.dtype).reshape(flat.shape)
    with jax.debug_nans(True):
        for make in (deletion_curve, insertion_curve):
            got, expected = (make(score, steps=6)(x, m, 1) for m in (flat, ordered))
            close(got.scores, expected.scores)
            close(got.tied, 1 - 1 / flat.size, 1e-6)
        aopc = region_perturbation(score, patch=1, regions=6)
        close(aopc(x, flat, 1), aopc(x, ordered, 1))
        key = jax.random.key(0)
        values = [metrics.road(score)(x, m, 1, key=key) for m in (flat, ordered)]
        close(*values, 1e-5)


def test_a_score_of_one_can_gain_nothing():
    found = confidence(lambda x: 1 + 0 * x.sum())(images(1)[0], jnp.ones((HEIGHT, WIDTH)))
    assert found.gain == 0


# Feature space


def test_positions_of_a_layer():
    """At the first layer of a function that has the image itself there, both spaces agree."""
    x, heatmap = images(1)[0], images(1, seed=5)[0, ..., 0]
    score = class_score(tiny("nnx"), probability)

    def tagged(x, label):
        return score(jaxfmi.tag(x, "image"), label)

    here = deletion_curve(tagged, layer="image", steps=9)(x, heatmap, 1)
    close(here.scores, deletion_curve(score, steps=9)(x, heatmap, 1).scores)


def test_a_layers_map_has_the_layers_size():
    x, score = images(1)[0], class_score(tiny("nnx"), probability)
    explain = jaxfmi.grad_cam(class_score(tiny("nnx")), "down", size=None)
    heatmap = explain(x, 1)
    assert heatmap.shape == LAYER_SIZE
    a0 = jaxfmi.capture(score, "down")(0 * x, 1)[1]["down"][0]
    curve = deletion_curve(score, layer="down", baseline=a0)(x, heatmap, 1)
    close(curve.scores[-1], score(0 * x, 1))
    close(curve.scores[0], score(x, 1))
    up = insertion_curve(score, layer="down", baseline=a0)(x, heatmap, 1)
    close(up.scores[0], curve.scores[-1])
    with pytest.raises(ValueError, match=r"size \(8, 6\), got \(15, 11\)"):
        deletion(score, layer="down")(x, jnp.zeros((HEIGHT, WIDTH)), 1)


# Bad input


def test_bad_input_is_said():
    x, score = images(1)[0], class_score(tiny("nnx"), probability)
    good = jnp.ones((HEIGHT, WIDTH))
    for wrong, message in [
        (good[:3], r"heatmap of the size \(15, 11\), got \(3, 11\)"),
        (good[None, None], r"one heatmap \[H, W\]"),
        (good * jnp.nan, "165 values that are NaN"),
    ]:
        with pytest.raises(ValueError, match=message):
            deletion(score)(x, wrong, 1)
    with pytest.raises(ValueError, match="label 9 is out of range"):
        insertion(score)(x, good, 9)
    with pytest.raises(ValueError, match=r"in \[0, 1\], got 1 to 3"):
        metrics.drop(score)(x, good.at[0, 0].set(3.0), 1)
    with pytest.raises(ValueError, match=r"keep is a share .* got 1.5"):
        metrics.drop(score, keep=1.5)
    with pytest.raises(ValueError, match="steps and step are numbers of at least 1; got 0"):
        deletion(score, steps=0)
    with pytest.raises(ValueError, match="needs a baseline of activations"):
        insertion(score, layer="down")
    with pytest.raises(ValueError, match="ties go 'first' or 'last', got 'random'"):
        deletion(score, ties="random")(x, good, 1)
    with pytest.raises(ValueError, match="patch and regions are at least 1; got 0"):
        metrics.region_perturbation(score, patch=0)


def test_a_batch_with_its_checks():
    x, heatmaps, labels = images(5), images(5, seed=5)[..., 0], np.arange(5)
    measure = jaxfmi.batched(
        lambda score: deletion(score), tiny("nnx"), batch_size=4, of=probability
    )
    single = deletion(class_score(tiny("nnx"), probability))
    single = [single(*one) for one in zip(x, heatmaps, labels, strict=True)]
    close(measure(x, heatmaps, labels), single)
    with pytest.raises(ValueError, match="label 5 is out of range"):
        measure(x, heatmaps, labels + 3)
    drop = jaxfmi.batched(lambda score: metrics.drop(score), tiny("nnx"), of=probability)
    with pytest.raises(ValueError, match=r"expected a map in \[0, 1\], got 0.5 to 7"):
        drop(x, np.full_like(heatmaps, 0.5) + 6.5 * (np.arange(5)[:, None, None] == 3), labels)
    with pytest.raises(ValueError, match="the heatmap has 11 values that are NaN"):
        measure(
            x, np.where(x[..., 0] > 1e9, 0, np.where(np.arange(15)[:, None] < 1, np.nan, 0)), labels
        )
