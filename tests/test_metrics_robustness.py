"""Robustness: noise, other classes, other references, other models, and chance."""

from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_similarity as ref
from nets import CLASSES, images, tiny

import jaxfmi as jf
from jaxfmi.metrics import (
    class_discriminability,
    max_sensitivity,
    pearson,
    random_logit,
    reference_insensitivity,
    ssim,
    stability,
    stability_chance,
)
from jaxfmi.metrics.robustness import draw_noise, draw_other

NET = tiny("nnx")
SCORE = jf.class_score(NET)
EXPLAIN = jf.input_x_gradient(SCORE)
X = images(1)[0]
LABEL = 2
HEATMAP = jax.jit(EXPLAIN)(X, LABEL)
KEY = jax.random.key(3)
MAPS = np.random.default_rng(5).standard_normal((4, 5, 9, 8))


def close(got, expected, atol=1e-5):
    np.testing.assert_allclose(got, expected, rtol=0, atol=atol)


def brightness(x, label=0):
    """A map that knows nothing of classes."""
    return x.sum(-1)


# Noise


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("radius", [0.02, 0.5])
def test_max_sensitivity_is_the_largest_change(relative, radius):
    measure = max_sensitivity(EXPLAIN, radius=radius, samples=5, relative=relative, chunk=2)
    explain = jax.jit(EXPLAIN)
    noise = [draw_noise(jax.random.fold_in(KEY, i), X, radius) for i in range(5)]
    assert all(0.9 * radius < np.abs(n).max() <= radius for n in noise)
    changes = [np.linalg.norm(explain(X + n, LABEL) - HEATMAP) for n in noise]
    expected = max(changes) / (np.linalg.norm(HEATMAP) if relative else 1)
    close(jax.jit(measure)(X, HEATMAP, LABEL, key=KEY), expected, 1e-4)


def test_a_map_that_stays_has_no_sensitivity():
    still = lambda x: 0 * x.sum(-1) + 1  # noqa: E731
    measure = jax.jit(max_sensitivity(still))
    assert measure(X, jnp.ones(X.shape[:2]), key=KEY) == 0
    moved = measure(X, jnp.zeros(X.shape[:2]), key=KEY)
    close(moved, np.sqrt(HEATMAP.size))  # nothing to be relative to


def test_max_sensitivity_of_a_linear_map_grows_with_the_radius():
    one, two = (max_sensitivity(brightness, radius=r)(X, X.sum(-1), key=KEY) for r in (0.1, 0.2))
    close(two, 2 * one)
    assert one > 0


# Other classes


def test_random_logit_is_the_likeness_to_the_map_of_the_drawn_class():
    other = int(draw_other(KEY, LABEL, CLASSES))
    there = jax.jit(EXPLAIN)(X, other)
    got = jax.jit(random_logit(EXPLAIN, CLASSES))(X, HEATMAP, LABEL, key=KEY)
    close(got, ref.ssim(HEATMAP, there), 1e-4)
    got = random_logit(EXPLAIN, CLASSES, similarity=pearson)(X, HEATMAP, LABEL, key=KEY)
    close(got, ref.pearson(HEATMAP, there), 1e-4)


def test_the_drawn_class_is_any_other():
    keys = jax.random.split(KEY, 200)
    for label in range(3):
        drawn = jax.vmap(lambda k: draw_other(k, label, 3))(keys)
        assert set(drawn.tolist()) == {0, 1, 2} - {label}


def test_maps_that_know_no_class_and_maps_that_do():
    blind = random_logit(brightness, CLASSES)(X, X.sum(-1), LABEL, key=KEY)
    close(blind, 1)
    assert random_logit(EXPLAIN, CLASSES)(X, HEATMAP, LABEL, key=KEY) < 0.9
    close(class_discriminability(brightness)(X, X.sum(-1), 1), 1)
    got = class_discriminability(EXPLAIN)(X, HEATMAP, 4)
    close(got, ref.spearman(HEATMAP, jax.jit(EXPLAIN)(X, 4)), 1e-4)
    assert got < 0.9


@pytest.mark.parametrize("classes", [1, 0])
def test_another_class_needs_two(classes):
    with pytest.raises(ValueError, match=f"2 classes at least, got {classes}"):
        random_logit(EXPLAIN, classes)


# Other references


def test_reference_insensitivity_is_the_mean_over_pairs():
    baselines = (-1.0, 0.5, 2.0)
    explainers = [jf.integrated_gradients(SCORE, baseline=b, steps=4) for b in baselines]
    maps = [HEATMAP, *(jax.jit(e)(X, LABEL) for e in explainers)]
    expected = np.mean([ref.spearman(a, b) for a, b in combinations(maps, 2)])
    got = jax.jit(reference_insensitivity(explainers))(X, HEATMAP, LABEL)
    close(got, expected, 1e-3)
    same = reference_insensitivity([EXPLAIN, EXPLAIN], similarity=ssim)
    close(jax.jit(same)(X, HEATMAP, LABEL), 1)


def test_no_reference():
    with pytest.raises(ValueError, match="one explainer at least"):
        reference_insensitivity([])


# What they share


METRICS = {
    "max_sensitivity": (lambda s: max_sensitivity(jf.saliency(s), samples=2), True),
    "random_logit": (lambda s: random_logit(jf.saliency(s), CLASSES), True),
    "class_discriminability": (lambda s: class_discriminability(jf.saliency(s)), False),
    "reference_insensitivity": (lambda s: reference_insensitivity([jf.saliency(s)]), False),
}
ALL = pytest.mark.parametrize(("name", "method", "random"), [(k, *v) for k, v in METRICS.items()])


@ALL
def test_eager_jit_vmap_and_batched(name, method, random):
    xs, labels, measure = images(3), jnp.array([0, 4, 2]), method(SCORE)
    heatmaps = xs.sum(-1)
    keyed = lambda i: {"key": jax.random.fold_in(KEY, i)} if random else {}  # noqa: E731
    one = jax.jit(lambda i, *each: measure(*each, **keyed(i)))
    each = [one(*row) for row in zip(range(3), xs, heatmaps, labels, strict=True)]
    close(measure(xs[0], heatmaps[0], labels[0], **keyed(0)), each[0])
    batch = jf.batched(method, NET, batch_size=4)
    close(batch(xs, heatmaps, labels, key=KEY if random else None), each)
    assert measure.__name__ == name


@ALL
@pytest.mark.parametrize("value", [0.0, 0.1])
def test_constant_maps(name, method, random, value):
    flat = lambda x: 0 * x.mean((1, 2)) @ jnp.ones((3, CLASSES))  # noqa: E731
    measure = method(jf.class_score(flat))
    options = {"key": KEY} if random else {}
    assert np.isfinite(measure(X, jnp.full(X.shape[:2], value), LABEL, **options))


@ALL
def test_bad_input(name, method, random):
    measure = method(SCORE)
    with pytest.raises(ValueError, match=r"heatmap of the size \(15, 11\), got \(8, 6\)"):
        measure(X, np.zeros((8, 6)), LABEL)
    with pytest.raises(ValueError, match="label 7 is out of range"):
        measure(X, HEATMAP, 7)
    if random:
        with pytest.raises(ValueError, match=f"{name} is random: .*key=jax.random.key"):
            measure(X, HEATMAP, LABEL)


def test_a_map_of_another_size():
    explain = jf.grad_cam(SCORE, "block", size=None)
    with pytest.raises(ValueError, match=r"heatmap of the size \(15, 11\), got \(8, 6\)"):
        class_discriminability(explain)(X, HEATMAP, LABEL)


# Other models


def expected_stability(pairs):
    def iou(a, b):
        return (a & b).sum() / (a | b).sum()

    def high(m):
        return (m - m.min()) / np.ptp(m) > 100 / 256

    def quarter(m):
        return m >= np.sort(m.ravel())[-(m.size // 4)]

    return [
        np.mean([iou(high(a), high(b)) for a, b in pairs]),
        np.mean([iou(quarter(a), quarter(b)) for a, b in pairs]),
        np.mean([ref.pearson(a, b) for a, b in pairs]),
        np.mean([ref.spearman(a, b) for a, b in pairs]),
    ]


def test_stability_is_the_mean_over_pairs():
    maps = MAPS[:, 0]
    close(jax.jit(stability)(maps), expected_stability(list(combinations(maps, 2))))
    some = jax.jit(lambda maps: stability(maps, pairs=[(0, 3), (2, 1)], chunk=1))
    close(some(maps), expected_stability([(maps[0], maps[3]), (maps[2], maps[1])]))
    close(jax.jit(stability)(np.stack([maps[0]] * 4)), np.ones(4))


def test_pairs_of_constant_maps_are_left_out_of_the_iou_alone():
    maps = [np.zeros((9, 8)), np.ones((9, 8)), MAPS[0, 0], MAPS[0, 0]]
    got = jax.jit(stability)(np.stack(maps))
    close(got.iou, 1 / 5)  # six pairs, one of them without a pixel
    close(got.pearson, 1 / 6)
    assert np.isfinite(got[1:]).all()
    assert np.isnan(jax.jit(stability)(np.zeros((4, 9, 8))).iou)


def test_chance_compares_every_image_with_another():
    maps, order = MAPS[:2], np.asarray(jax.random.permutation(KEY, 5))
    pairs = [(maps[0, order[i]], maps[1, order[(i + 1) % 5]]) for i in range(5)]
    close(jax.jit(stability_chance)(maps, key=KEY), expected_stability(pairs))
    assert sorted(order) == list(range(5))


def test_chance_is_below_the_stability_of_equal_models():
    base = MAPS[0]
    models = base + 0.3 * MAPS  # models that agree on each image
    stable = np.mean([jax.jit(stability)(models[:, n]) for n in range(5)], 0)
    chance = np.asarray(jax.jit(lambda m: stability_chance(m, key=KEY, chunk=7))(models))
    assert (stable > chance + 0.1).all()
    assert np.abs(chance[2:]).max() < 0.15


@pytest.mark.parametrize(
    ("maps", "options", "message"),
    [
        (MAPS[0, 0], {}, r"maps \[M, H, W\] of two models at least, got shape \(9, 8\)"),
        (MAPS[:1, 0], {}, r"got shape \(1, 9, 8\)"),
        (MAPS[0], {"pairs": [(0, 5)]}, r"pairs of models from 0 to 4, got \[\(0, 5\)\]"),
        (MAPS[0], {"pairs": []}, "pairs of models"),
        (np.where(MAPS[0] > 2, np.nan, MAPS[0]), {}, "NaN or infinite"),
        (MAPS, {"key": KEY, "pairs": [(4, 0)]}, "pairs of models from 0 to 3"),
        (MAPS[:, :1], {"key": KEY}, "two at least, got one"),
        (MAPS[0], {"key": KEY}, r"maps \[M, N, H, W\]"),
    ],
)
def test_what_are_no_maps_of_models(maps, options, message):
    with pytest.raises(ValueError, match=message):
        (stability_chance if "key" in options else stability)(maps, **options)
