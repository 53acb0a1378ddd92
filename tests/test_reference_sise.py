"""Golden model G3 and the laws of SISE, by which its twin is checked."""

from itertools import pairwise

import numpy as np
import pytest
import reference_net as net
import reference_sise as ref
from reference import finite_difference, min_max

SIZE = (32, 32)


def printed(got, expected, digits):
    """Equal to the last printed digit."""
    np.testing.assert_allclose(got, expected, rtol=0, atol=0.51 * 10.0**-digits)


def places(kept):
    return [np.flatnonzero(k).tolist() for k in kept]


def means(gradients):
    return [g.mean((0, 1)) for g in gradients]


@pytest.fixture(scope="module")
def x():
    return ref.g3_image()


@pytest.fixture(scope="module")
def tapped(x):
    """Activations, and the gradients of the probability of class 4."""
    return ref.g3_taps(x)


@pytest.fixture(scope="module")
def explained(x, tapped):
    activations, gradients = tapped
    return ref.sise(activations, gradients, x, ref.g3_score())


@pytest.fixture(scope="module")
def maps(explained):
    return [layer.v for layer in explained.layers]


def test_logits_and_probabilities(x):
    z = net.forward(ref.g3_layers(), x)[-1]
    printed(z, [-0.38256019, -0.33001246, 0.19245622, 0.7231688, 0.79143923], 8)
    printed(ref.softmax(z), [0.09913315, 0.10448166, 0.17617543, 0.29952349, 0.32068627], 8)


ALPHA = [
    "0.3530 5.7359 2.7157 -4.2830 -5.0071 1.6042 5.8653 1.5337",
    "-55.6033 -41.1618 33.5819 59.128 -1.9485 -60.1704 -30.2425 43.9908 53.7775 -15.2199 -61.9201"
    " -17.9072",
    "-7129.1128 -985.7996 5903.547 8325.207 4446.5163 -2797.2093 -7924.0626 -7054.1433 -845.789"
    " 6002.6416 8308.3927 4326.5179 -2929.5794 -7968.6294 -6977.1795 -705.5393",
]


def test_mean_gradients(tapped):
    for alpha, expected in zip(means(tapped[1]), ALPHA, strict=True):
        printed(1e6 * alpha, np.array(expected.split(), float), 4)


def test_smallest_mean_gradients_are_clear_of_zero(tapped):
    nearest = [abs(alpha).min() / alpha.max() for alpha in means(tapped[1])]
    printed(nearest, [0.060, 0.033, 0.085], 3)


def test_gradients_are_finite_differences(x, tapped):
    """Of a function of an added constant per channel, at each tap."""
    layers = ref.g3_layers()
    for l, alpha in enumerate(means(tapped[1])):
        rest, a = layers[3 * l + 2 :], tapped[0][l]

        def score(delta):
            return ref.probability(net.forward(rest, a + delta)[-1], 4)[0]

        slopes = finite_difference(score, np.zeros(a.shape[2]), step=1e-6) / a[:, :, 0].size
        np.testing.assert_allclose(slopes, alpha, rtol=1e-4, atol=1e-9)


PROBABILITY = [[0, 1, 2, 5, 6, 7], [2, 3, 7, 8], [2, 3, 4, 9, 10, 11]]
LOGIT = [[1, 2, 6, 7], [2, 3, 7, 8, 11], [2, 3, 4, 5, 9, 10, 11, 12]]


@pytest.mark.parametrize(
    ("of", "kept"),
    [(ref.probability, PROBABILITY), (ref.log_odds, PROBABILITY), (ref.logit, LOGIT)],
)
def test_kept_sets(x, of, kept):
    alphas = means(ref.g3_taps(x, of=of)[1])
    assert places(map(ref.positive(), alphas)) == kept


def test_logit_selection_at_the_last_layer_is_the_sign_of_the_dense_weights(x):
    z = net.forward(ref.g3_layers(), x)
    gradient = net.backward(ref.g3_layers(), z, np.eye(5)[4])[-2]
    weights = 2 * np.sin(0.5 + 1.1 * 4 + 0.9 * np.arange(16))
    assert sum(weights > 0) == len(LOGIT[2])
    np.testing.assert_array_equal(gradient > 0, weights > 0)


@pytest.mark.parametrize(
    ("scale", "label", "odds", "kept"), [(100, 0, -117, [4, 7, 10]), (400, 4, 27, [3, 6, 7])]
)
def test_kept_numbers_by_log_odds_of_a_saturated_softmax(x, scale, label, odds, kept):
    gradients = ref.g3_taps(x, label, ref.log_odds, scale)[1]
    assert [ref.positive()(alpha).sum() for alpha in means(gradients)] == kept
    assert ref.g3_score(label, ref.log_odds, scale)(x) == pytest.approx(odds, abs=0.6)


def test_a_greater_mu_keeps_a_subset(tapped):
    for alpha in means(tapped[1]):
        sets = [ref.positive(mu)(alpha) for mu in (0, 0.25, 0.5, 0.9)]
        assert all((more | less == more).all() for more, less in pairwise(sets))
    assert [ref.positive(0.5)(alpha).sum() for alpha in means(tapped[1])] == [2, 4, 6]


MASK_SUMS = [
    [250.663663, 232.841873, 163.815930, 169.786209, 203.183512, 175.036465],
    [86.592085, 104.500886, 181.058824, 74.538701],
    [79.157564, 271.524596, 468.366761, 167.916879, 451.430258, 475.321071],
]
WEIGHTS = [
    [0.31725992, 0.31823316, 0.31699224, 0.32091488, 0.31753430, 0.32253131],
    [0.31145268, 0.31551504, 0.31449606, 0.31804356],
    [0.30831865, 0.31003285, 0.31821433, 0.31255416, 0.31551968, 0.31370716],
]


def test_masks_and_weights(explained):
    for layer, sums, weights in zip(explained.layers, MASK_SUMS, WEIGHTS, strict=True):
        printed(layer.masks.sum((1, 2)), sums, 6)
        printed(layer.weights, weights, 8)


def test_visualisation_maps(maps):
    printed([v.mean() for v in maps], [0.397430240, 0.185911736, 0.218251240], 9)
    printed([v[13, 7] for v in maps], [0.439837853, 0.306175055, 0.162344000], 9)
    peaks = [tuple(map(int, np.unravel_index(v.argmax(), SIZE))) for v in maps]
    assert peaks == [(31, 8), (2, 28), (0, 6)]


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [
        (ref.otsu, [0.257813, 0.355469]),
        (ref.otsu_skimage, [0.255859, 0.349609]),
        (ref.otsu_cv2, [0.254902, 0.349020]),
        (ref.otsu_tau, [0.257813, 0.533203]),
    ],
)
def test_thresholds(maps, threshold, expected):
    printed([threshold(v) for v in maps[1:]], expected, 6)


def test_default_thresholds_are_splits_of_256(maps):
    assert [256 * ref.otsu(v) for v in maps] == [102, 66, 91]


def test_hard_fusion(explained):
    raw = explained.raw
    printed(raw.max(), 1.991672165, 9)
    assert np.unravel_index(raw.argmax(), SIZE) == (2, 14)
    assert (explained.map > 0).sum() == 149
    printed(explained.map.mean(), 0.052864431, 9)


@pytest.mark.parametrize(
    ("gate", "mean", "support"),
    [
        (ref.hard(ref.otsu_skimage), 0.053439156, 150),
        (ref.hard_cv2, 0.052864431, 149),
        (ref.soft, 0.024906499, 1024),
        (ref.simple, 0.085213745, None),
    ],
)
def test_other_gates(maps, gate, mean, support):
    e = ref.fuse(maps, gate, SIZE)
    printed(min_max(e).mean(), mean, 9)
    assert support is None or (e > 0).sum() == support


def test_simple_fusion_peaks_where_hard_fusion_does(maps):
    e = ref.fuse(maps, ref.simple, SIZE)
    printed(e.max(), 1.239577582, 9)
    assert np.unravel_index(e.argmax(), SIZE) == (2, 14)


@pytest.mark.parametrize("gate", [ref.hard(), ref.soft, ref.simple])
def test_fusion_is_its_closed_form(maps, gate):
    b = [np.ones(SIZE), *map(gate, maps[1:])]
    closed = sum(maps[i] * np.prod(b[max(i, 1) :], axis=0) for i in range(3))
    np.testing.assert_allclose(ref.fuse(maps, gate, SIZE), closed, atol=1e-14)


@pytest.mark.parametrize(
    ("options", "mean"),
    [
        ({"area": False}, 0.088232287),
        ({"select": ref.positive(0.5)}, 0.051836783),
        ({"eps": 1e-8}, 0.052864427),
    ],
)
def test_options(x, tapped, options, mean):
    activations, gradients = tapped
    got = ref.sise(activations, gradients, x, ref.g3_score(), **options)
    printed(got.map.mean(), mean, 9)


def test_logit_throughout(x):
    got = ref.sise(*ref.g3_taps(x, of=ref.logit), x, ref.g3_score(of=ref.logit))
    printed(got.map.mean(), 0.050827701, 9)


def test_an_absent_first_layer_keeps_its_place(maps):
    gated = min_max(ref.fuse([None, *maps[1:]], ref.hard(), SIZE)).mean()
    printed(gated, 0.064670820, 9)
    printed(min_max(ref.fuse(maps[1:], ref.hard(), SIZE)).mean(), 0.073448686, 9)


def test_nothing_positive_gives_zeros(x, tapped):
    got = ref.sise(tapped[0], [-abs(g) for g in tapped[1]], x, ref.g3_score())
    assert [layer.v for layer in got.layers] == [None] * 3
    assert not got.map.any()


def test_a_constant_image_shows_the_border():
    flat = np.full((32, 32, 3), 0.5)
    printed(ref.sise(*ref.g3_taps(flat), flat, ref.g3_score()).map.mean(), 0.0464, 4)


@pytest.mark.parametrize(
    ("threshold", "kept", "mean"),
    [
        (ref.exact_otsu, [[1, 6], [3, 8], [3, 10]], 0.142133369),
        (ref.otsu_cv2, [[1, 2, 6], [3, 7, 8], [3, 9, 10]], 0.104444468),
        (ref.otsu_skimage, [[1, 2, 6], [3, 8], [3, 10]], 0.135971647),
    ],
)
def test_ada_sise(x, tapped, threshold, kept, mean):
    activations, gradients = tapped
    got = ref.sise(activations, gradients, x, ref.g3_score(), select=ref.adaptive(threshold))
    assert places(layer.kept for layer in got.layers) == kept
    printed(got.map.mean(), mean, 9)
    if threshold is ref.exact_otsu:
        assert (got.map > 0).sum() == 497
        soft = ref.fuse([layer.v for layer in got.layers], ref.soft, SIZE)
        printed(min_max(soft).mean(), 0.036353839, 9)


def test_ada_thresholds(tapped):
    ratios = [alpha[alpha > 0] / alpha.max() for alpha in means(tapped[1])]
    printed([ref.exact_otsu(z) for z in ratios], [0.463004439, 0.743992255, 0.721020103], 9)


@pytest.mark.parametrize(
    ("alpha", "kept"), [([-1, 2, -3], [1]), ([2, -1, 2], [0, 2]), ([-1, 0, -2], [])]
)
def test_ada_sise_of_few_values(alpha, kept):
    assert np.flatnonzero(ref.adaptive()(np.array(alpha, float))).tolist() == kept


def test_otsu_by_brute_force():
    """Otsu's split minimises the variance within the two classes."""
    rng = np.random.default_rng(0)
    for counts in rng.integers(0, 9, (5, 12)):
        values = np.repeat(np.arange(12), counts)
        within = [
            sum(
                part.var() * len(part)
                for part in (values[values < j], values[values >= j])
                if len(part)
            )
            for j in range(1, 12)
        ]
        assert ref.otsu_split(counts) == 1 + int(np.argmin(np.round(within, 9)))
