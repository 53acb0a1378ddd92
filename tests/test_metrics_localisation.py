"""Localisation: golden values, the twin, uniform and perfect maps, bad regions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_metrics as ref
from test_metrics_faithfulness import golden_maps

from jaxfmi.metrics import (
    box_hit,
    energy_pointing,
    iou,
    pointing,
    region,
    relevance_mass,
    relevance_rank,
    top_k_intersection,
)

ALL = (energy_pointing, iou, pointing, relevance_mass, relevance_rank, top_k_intersection)
EVERY = pytest.mark.parametrize("metric", ALL, ids=lambda f: f.__name__)
CENTRE = [(0, 8, 16, 24)]
SIZE = (20, 30)


def close(got, expected, atol=1e-6):
    np.testing.assert_allclose(got, expected, rtol=0, atol=atol)


@pytest.mark.parametrize(
    ("name", "energy", "swapped", "hit", "union"),
    [
        ("hard", 0.305283, 0.018099, 0.312500, 0.147132),
        ("soft", 0.367487, 4.4e-8, 0.226562, 0.100478),
    ],
)
@jax.enable_x64(True)
def test_golden_values(name, energy, swapped, hit, union):
    heatmap, inside = jnp.asarray(golden_maps()[name]), region(CENTRE, (32, 32))
    assert inside.sum() == 256
    close(energy_pointing(heatmap, inside), energy)
    close(energy_pointing(heatmap, inside.T), swapped)
    close(box_hit(heatmap, inside), hit)
    close(iou(heatmap, inside), union)


@EVERY
@pytest.mark.parametrize("seed", range(4))
@jax.enable_x64(True)
def test_values_are_the_twins(metric, seed):
    rng = np.random.default_rng(seed)
    heatmap = np.round(rng.standard_normal(SIZE), 1)
    inside = region([(1, 2, 9, 5 + seed), (4, 3, 12, 29)][: 1 + seed % 2], SIZE)
    close(metric(heatmap, inside), getattr(ref, metric.__name__)(heatmap, inside), 1e-7)


@EVERY
def test_jit_and_vmap(metric):
    rng = np.random.default_rng(0)
    heatmaps = jnp.asarray(rng.random((3, *SIZE)), jnp.float32)
    regions = jnp.stack([region(b, SIZE) for b in ([(0, 0, 3, 4)], [(5, 6, 20, 9)], [])])
    got = jax.jit(jax.vmap(metric))(heatmaps, regions)
    assert got.dtype == jnp.float32
    close(got, [metric(h, r) for h, r in zip(heatmaps, regions, strict=True)])
    assert np.isnan(got[2])


@EVERY
def test_no_region_is_nan(metric):
    assert np.isnan(metric(jnp.ones(SIZE), np.zeros(SIZE, bool)))


@pytest.mark.parametrize("metric", [energy_pointing, relevance_mass])
def test_a_map_of_zeros_has_no_energy(metric):
    assert np.isnan(metric(jnp.zeros(SIZE), region(CENTRE, (20, 30))))


def test_a_uniform_map_has_the_regions_share():
    inside = region([(2, 3, 12, 9)], SIZE)
    close(energy_pointing(jnp.full(SIZE, 0.7), inside), inside.mean())


@pytest.mark.parametrize("metric", [energy_pointing, relevance_mass, relevance_rank, pointing])
def test_the_perfect_map_has_all(metric):
    inside = region([(2, 3, 12, 9), (1, 20, 4, 28)], SIZE)
    assert metric(inside.astype(np.float32), inside) == 1
    assert metric((~inside).astype(np.float32), inside) == (metric is pointing)  # 15 pixels near


def test_the_perfect_map_reaches_the_bound_of_iou():
    inside = region([(0, 0, 12, 10)], SIZE)  # 120 of 600 pixels: the share of 0.2
    assert iou(inside.astype(np.float32), inside) == 1


def test_negative_values_have_no_energy():
    heatmap = jnp.zeros((4, 4)).at[0, 0].set(2.0).at[3, 3].set(-1.0).at[2, 2].set(2.0)
    inside = region([(0, 0, 2, 2)], (4, 4))
    assert energy_pointing(heatmap, inside) == 0.5
    close(relevance_mass(heatmap, inside), 2 / 3)


@pytest.mark.parametrize(
    "change", [lambda m: m + 2.0, lambda m: 3 * m, jnp.exp], ids=["shift", "scale", "exp"]
)
@pytest.mark.parametrize("metric", [iou, pointing, relevance_rank, top_k_intersection])
def test_increasing_changes_change_no_metric_of_ranks(metric, change):
    heatmap = jnp.asarray(np.random.default_rng(3).standard_normal(SIZE), jnp.float32)
    inside = region([(2, 3, 12, 9)], SIZE)
    assert metric(heatmap, inside) == metric(change(heatmap), inside)


@pytest.mark.parametrize(("offset", "hit"), [((14, 5), 1), ((15, 0), 0), ((0, -14), 1)])
def test_pointing_hits_nearer_than_15_pixels(offset, hit):
    inside = region([(30, 30, 31, 31)], (64, 64))
    for shift in (0, 3):  # of both together
        peak = (30 + offset[0] + shift, 30 + offset[1] + shift)
        heatmap = jnp.zeros((64, 64)).at[peak].set(1.0)
        assert pointing(heatmap, np.roll(inside, (shift, shift), (0, 1))) == hit


@pytest.mark.parametrize("tolerance", [0, 3, 4.5])
def test_any_of_one_peak_is_the_first(tolerance):
    rng, inside = np.random.default_rng(0), region([(5, 6, 12, 9)], SIZE)
    for heatmap in rng.random((30, *SIZE)):
        first, one = (pointing(heatmap, inside, tolerance, ties) for ties in ("first", "any"))
        assert first == one


def test_pointing_without_tolerance_and_with_several_peaks():
    heatmap = jnp.zeros(SIZE).at[3, 4].set(1.0).at[8, 9].set(1.0)
    assert pointing(heatmap, region([(3, 4, 4, 5)], SIZE), tolerance=0) == 1
    second = region([(8, 9, 9, 10)], SIZE)
    assert pointing(heatmap, second, tolerance=0) == 0  # not the first
    assert pointing(heatmap, second, tolerance=0, ties="any") == 1
    with pytest.raises(ValueError, match="'first' counts or 'any'; got 'last'"):
        pointing(heatmap, second, ties="last")


def test_regions_are_unions_of_boxes_rows_first():
    inside = region([(1, 2, 3, 9), (2, 8, 5, 10)], SIZE)
    assert inside.sum() == 2 * 7 + 3 * 2 - 1
    assert inside[1, 8]
    assert not inside[8, 1]
    assert not region([], SIZE).any()


@pytest.mark.parametrize(
    "box", [(0, 0, 0, 5), (3, 4, 2, 8), (0, 0, 21, 5), (-1, 0, 3, 5), (0, 0, 5, 31)]
)
def test_boxes_are_inside_and_not_empty(box):
    with pytest.raises(ValueError, match=r"bottom <= 20 .* right <= 30; got \("):
        region([(0, 0, 2, 2), box], SIZE)


@EVERY
def test_bad_input_is_said(metric):
    inside = region([(0, 0, 2, 2)], SIZE)
    with pytest.raises(ValueError, match="compares a map with a region"):
        metric(jnp.ones(SIZE), None)
    with pytest.raises(ValueError, match=r"region of bool \(20, 30\), got int"):
        metric(jnp.ones(SIZE), inside.astype(int))
    with pytest.raises(ValueError, match=r"got bool \(30, 20\)"):
        metric(jnp.ones(SIZE), inside.T)
    with pytest.raises(ValueError, match="600 values that are NaN"):
        metric(jnp.full(SIZE, jnp.nan), inside)


def test_bad_options_are_said():
    inside = region([(0, 0, 2, 2)], SIZE)
    with pytest.raises(ValueError, match="share is one of the pixels"):
        iou(jnp.ones(SIZE), inside, share=0)
    with pytest.raises(ValueError, match="k is a number of pixels, at least 1; got 0"):
        top_k_intersection(jnp.ones(SIZE), inside, k=0)
    with pytest.raises(ValueError, match="tolerance is a number of pixels"):
        pointing(jnp.ones(SIZE), inside, tolerance=-1)
