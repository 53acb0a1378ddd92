"""The laws by which the twins of ROAD, region perturbation and the correlations are checked."""

import numpy as np
import pytest
import reference_correlation as correlation
import reference_metrics as metrics
import reference_road as road


def close(got, expected, atol=1e-10):
    np.testing.assert_allclose(got, expected, rtol=0, atol=atol)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def example(rng):
    """An image [8,9,2] and a map without ties."""
    return rng.random((8, 9, 2)), rng.permutation(72).reshape(8, 9) / 71


@pytest.fixture
def linear(rng):
    """A linear score on [9,12,1], the image, its gradient and its contributions, [9,12]."""
    x, w = rng.standard_normal((2, 9, 12, 1))
    return (lambda x: float((x * w).sum())), x, w[..., 0], (w * x)[..., 0]


# ROAD


def test_neighbours_weigh_one_altogether():
    close(sum(road.WEIGHTS.values()), 1)


def test_a_constant_image_is_imputed_as_itself(rng):
    x = np.full((7, 9, 2), 0.3)
    close(road.impute(x, rng.random((7, 9)) < 0.8), x)


def test_a_ramp_is_imputed_as_itself_inside(rng):
    i, j = np.indices((9, 11))
    x = (2 * i - 3 * j)[..., None].astype(float)
    mask = np.pad(rng.random((7, 9)) < 0.9, 1)
    close(road.impute(x, mask), x)


@pytest.mark.parametrize(
    ("place", "neighbours"),
    [
        ((2, 2), {(1, 2): 2, (3, 2): 2, (2, 1): 2, (2, 3): 2}),
        ((0, 0), {(0, 1): 2, (1, 0): 2}),
        ((4, 1), {(3, 1): 2, (4, 0): 2, (4, 2): 2}),
    ],
)
def test_one_pixel_is_the_weighted_mean_of_its_neighbours(rng, place, neighbours):
    """Sides count double, corners once."""
    x, mask = rng.random((5, 5, 1)), np.zeros((5, 5), bool)
    mask[place] = True
    i, j = place
    corners = [(a, b) for a in (i - 1, i + 1) for b in (j - 1, j + 1) if min(a, b) >= 0 and a < 5]
    weights = neighbours | dict.fromkeys(corners, 1)
    mean = sum(w * x[p] for p, w in weights.items()) / sum(weights.values())
    close(road.impute(x, mask)[place], mean)


def test_two_pixels_by_hand():
    """a = (2 b + rest) / 12 where both are alone in a row of zeros but for one 3 beside a."""
    x, mask = np.zeros((3, 6, 1)), np.zeros((3, 6), bool)
    mask[1, 2:4] = True
    x[1, 1] = 3
    got = road.impute(x, mask)[1, 2:4, 0]
    close(got, [6 / 12 / (1 - 1 / 36), 1 / 12 / (1 - 1 / 36)])


def test_noise_reaches_the_imputed_pixels_only(example, rng):
    x, heatmap = example
    mask, noise = metrics.top(heatmap, 20), rng.standard_normal(x.shape)
    change = road.impute(x, mask, noise) - road.impute(x, mask)
    close(change, noise * mask[..., None])


@pytest.mark.parametrize("percentile", [1, 10, 50, 72.5, 90, 99])
def test_what_is_kept_lies_below_the_percentile(example, percentile):
    heatmap = example[1]
    below = heatmap < np.percentile(heatmap, percentile)
    np.testing.assert_array_equal(road.removed(heatmap, percentile), ~below)


def test_a_score_that_sees_one_pixel_hand_computed():
    """A bump in a flat image: it goes first, or last, and flat neighbours fill it in."""
    x, heatmap = np.zeros((5, 5, 1)), -np.arange(25.0).reshape(5, 5)
    x[2, 2], heatmap[2, 2] = 1, 1

    def f(x):
        return float(x[2, 2, 0])

    close(road.road_curve(f, x, heatmap, [96]), -1)
    close(road.road_curve(f, x, -heatmap, [96]), 0)
    close(road.road(f, x, heatmap, [96]), 0.5)


def test_the_negated_map_has_the_negated_road(example):
    x, heatmap = example
    noise = np.random.default_rng(1).standard_normal((2, 3, 8, 9, 2))

    def f(x):
        return float((x**2).mean())

    there = road.road(f, x, heatmap, (20, 50, 80), noise)
    back = road.road(f, x, -heatmap, (20, 50, 80), noise[::-1])
    close(there, -back)


# Region perturbation


@pytest.mark.parametrize(
    ("order", "regions", "aopc"),
    [
        ([4, 3, 2, 1], 100, 0.4),
        ([1, 2, 3, 4], 100, 0.1),
        ([4, 3, 2, 1], 2, 1 / 3),
        ([1, 2, 3, 4], 2, 0),
    ],
)
def test_region_perturbation_by_hand(order, regions, aopc):
    """Four patches of 5x5; the score is half the brightness of the first."""
    heatmap = np.kron(np.reshape(order, (2, 2)), np.ones((5, 5)))
    got = metrics.region_perturbation(
        lambda x: x[:5, :5].mean() / 2, np.ones((10, 10, 1)), heatmap, 5, regions
    )
    close(got, aopc)


def test_patches_are_cut_by_the_border():
    """10x10 in 8x8: 64, 16, 16 and 4 pixels, of equal sums in this order."""
    heatmap = np.ones((10, 10))
    got = metrics.region_perturbation(np.mean, np.ones((10, 10, 1)), heatmap)
    close(got, np.mean([0, 0.64, 0.80, 0.96, 1]))


# Correlations


@pytest.mark.parametrize("baseline", [0.0, 0.5])
def test_a_linear_score_and_its_contributions_correlate_fully(linear, rng, baseline):
    f, x, w, _ = linear
    heatmap = w * (x[..., 0] - baseline)
    subsets = rng.random((15, 9, 12)) < 0.3
    close(correlation.sensitivity_n(f, x, heatmap, subsets, baseline), 1)
    close(correlation.sensitivity_n(f, x, -heatmap, subsets, baseline), -1)
    grid = rng.random((15, 3, 3)) < 0.4
    close(correlation.mu_fidelity(f, x, heatmap, grid, baseline), 1)
    close(correlation.mu_fidelity(f, x, -heatmap, grid, baseline), -1)


def test_a_zero_map_correlates_with_nothing(linear, rng):
    f, x, w, _ = linear
    assert correlation.sensitivity_n(f, x, 0 * w, rng.random((9, 9, 12)) < 0.5) == 0
    assert correlation.mu_fidelity(f, x, 0 * w, rng.random((9, 3, 3)) < 0.5) == 0


def test_cells_are_super_pixels():
    subset = np.eye(3, dtype=bool)[None]
    expected = np.kron(np.eye(3), np.ones((3, 4))).astype(bool)
    np.testing.assert_array_equal(correlation.cells(subset, (9, 12))[0], expected)
    assert correlation.cells(subset, (10, 7))[0].any(1).all()


def test_infidelity_of_a_linear_score_and_its_gradient_is_zero(linear, rng):
    f, x, w, _ = linear
    perturbations = rng.standard_normal((20, 9, 12, 1))
    close(correlation.infidelity(f, x, w, perturbations), 0)
    close(correlation.infidelity(f, x, 7 * w, perturbations, normalize=True), 0)
    drops = np.array([f(i) for i in perturbations])
    close(correlation.infidelity(f, x, 3 * w, perturbations), 4 * (drops**2).mean())
    close(correlation.infidelity(f, x, 0 * w, perturbations, normalize=True), (drops**2).mean())


def test_infidelity_spreads_the_map_over_the_channels(linear, rng):
    _, x, w, _ = linear
    wide = np.repeat(x, 3, 2)
    perturbations = rng.standard_normal((5, 9, 12, 3))
    got = correlation.infidelity(lambda x: float((x * w[..., None]).sum()), wide, w, perturbations)
    close(got, 0)
