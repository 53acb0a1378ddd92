"""The laws by which the twins of the metrics that need no model are checked."""

import numpy as np
import pytest
import reference_metrics as ref
import reference_similarity as sim
from reference import min_max


def close(got, expected, atol=1e-10):
    np.testing.assert_allclose(got, expected, rtol=0, atol=atol)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


# Ranking and localisation


def test_ranking_is_stable_and_descending():
    np.testing.assert_array_equal(
        ref.ranks(np.array([[1, 3, 1], [3, 0, 2]])), [[3, 0, 4], [1, 5, 2]]
    )


@pytest.mark.parametrize("n", [0, 1, 7, 12])
def test_exactly_n_are_highest_whatever_the_ties(n):
    assert ref.top(np.zeros((3, 4)), n).sum() == n


def test_boxes_are_rows_first_with_exclusive_ends():
    inside = ref.region([(1, 0, 3, 5), (0, 4, 2, 6)], (4, 6))
    expected = np.zeros((4, 6), bool)
    expected[1:3, 0:5] = expected[0:2, 4:6] = True
    np.testing.assert_array_equal(inside, expected)


BOX = ref.region([(2, 1, 5, 9)], (10, 12))


def test_a_uniform_map_points_by_area():
    uniform = np.full((10, 12), 0.7)
    close(ref.energy_pointing(uniform, BOX), 24 / 120)
    close(ref.relevance_mass(uniform, BOX), 24 / 120)


def test_a_perfect_map():
    perfect = BOX.astype(float)
    shares = ref.energy_pointing, ref.relevance_mass, ref.relevance_rank, ref.pointing
    assert [share(perfect, BOX) for share in shares] == [1, 1, 1, 1]
    assert ref.iou(perfect, BOX, share=0.2) == 1
    assert ref.top_k_intersection(perfect, BOX, 24) == 1


def test_a_map_beside_the_region():
    beside = np.roll(BOX, 5, axis=0).astype(float)
    assert ref.energy_pointing(beside, BOX) == ref.relevance_mass(beside, BOX) == 0
    assert ref.box_hit(beside, BOX) == ref.iou(beside, BOX, share=0.2) == 0


def test_negative_values_count_in_the_mass_only():
    heatmap = np.array([[3.0, -1.0], [1.0, 1.0]])
    left = np.array([[True, False], [True, False]])
    close(ref.energy_pointing(heatmap, left), 4 / 5)
    close(ref.relevance_mass(heatmap, left), 4 / 4)


def test_undefined_is_nan():
    heatmap, nowhere = np.ones((4, 5)), np.zeros((4, 5), bool)
    metrics = ref.energy_pointing, ref.relevance_mass, ref.iou, ref.box_hit, ref.pointing
    assert np.isnan([metric(heatmap, nowhere) for metric in metrics]).all()
    assert np.isnan(ref.top_k_intersection(heatmap, nowhere))
    assert np.isnan([metric(0 * heatmap, ~nowhere) for metric in metrics[:2]]).all()
    assert np.isnan(ref.energy_pointing(-heatmap, ~nowhere))


@pytest.mark.parametrize(("offset", "hit"), [((14, 5), 1), ((15, 0), 0), ((0, -14), 1)])
@pytest.mark.parametrize("start", [(16, 16), (20, 25)])
def test_pointing_is_within_fifteen_pixels_wherever_it_is(offset, hit, start):
    heatmap, inside = np.zeros((40, 42)), np.zeros((40, 42), bool)
    heatmap[start] = 1
    inside[start[0] + offset[0], start[1] + offset[1]] = True
    assert ref.pointing(heatmap, inside) == hit


def test_the_first_maximum_points():
    heatmap = np.zeros((3, 3))
    heatmap[0, 2] = heatmap[2, 0] = 1
    assert ref.pointing(heatmap, heatmap == 1, tolerance=1) == 1
    assert ref.pointing(heatmap, ref.region([(2, 0, 3, 1)], (3, 3)), tolerance=1) == 0


@pytest.mark.parametrize(("k", "share"), [(1, 1), (4, 0.5), (12, 1 / 3), (1000, 1 / 3)])
def test_top_k_intersection(k, share):
    heatmap = -np.arange(12.0).reshape(3, 4)
    inside = ref.region([(0, 0, 2, 2)], (3, 4))
    close(ref.top_k_intersection(heatmap, inside, k), share)


# Similarity


@pytest.mark.parametrize("size", [(11, 11), (13, 20), (24, 17)])
def test_ssim_is_that_of_scikit_image(rng, size):
    metrics = pytest.importorskip("skimage.metrics", reason="needs scikit-image to compare with")
    a = rng.random(size)
    b = a + 0.3 * rng.standard_normal(size)
    expected = metrics.structural_similarity(
        min_max(a),
        min_max(b),
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=1,
    )
    close(sim.ssim(a, b), expected)


@pytest.mark.parametrize("similarity", [sim.ssim, sim.pearson, sim.spearman])
def test_a_map_is_like_itself_rescaled(rng, similarity):
    a, b = rng.random((2, 13, 14))
    close(similarity(a, 3 * a + 2), 1)
    close(similarity(a, b), similarity(b, a))
    assert similarity(a, b) < 0.5


def test_correlations(rng):
    a, b = rng.random((2, 5, 6))
    close(sim.pearson(a, b), np.corrcoef(a.ravel(), b.ravel())[0, 1])
    close(sim.pearson(a, -a), -1)
    close(sim.spearman(a, np.exp(9 * a)), 1)
    assert sim.pearson(a, np.full((5, 6), 0.1)) == sim.spearman(a, np.full((5, 6), 0.1)) == 0


def test_spearman_with_ties_is_that_of_scipy(rng):
    stats = pytest.importorskip("scipy.stats", reason="needs SciPy to compare with")
    a, b = rng.integers(0, 4, (2, 30))
    np.testing.assert_array_equal(sim.average_ranks(a), stats.rankdata(a))
    close(sim.spearman(a, b), stats.spearmanr(a, b).statistic)


# Concentration

ONE = np.eye(20)[:1].reshape(4, 5)


@pytest.mark.parametrize(
    ("heatmap", "gini", "entropy", "count"),
    [
        (np.full((4, 5), -0.3), 0, np.log(20), 20),
        (ONE, 1 - 1 / 20, 0, 1),
        (-7 * ONE, 1 - 1 / 20, 0, 1),
        (np.array([[1.0, 3.0]]), 0.25, 2 * np.log(2) - 0.75 * np.log(3), 2),
        (np.zeros((4, 5)), np.nan, np.nan, 0),
    ],
)
def test_concentration_by_hand(heatmap, gini, entropy, count):
    close(sim.sparseness(heatmap), gini)
    close(sim.complexity(heatmap), entropy)
    assert sim.effective_complexity(heatmap) == count


def test_effective_complexity_is_relative_to_the_maximum():
    heatmap = np.array([[1e3, 2e-2, 5e-3]])
    assert sim.effective_complexity(heatmap) == 2
    assert sim.effective_complexity(heatmap, eps=0.5) == 1
