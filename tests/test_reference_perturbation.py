"""Golden model G3, pytorch-grad-cam's arrays and closed forms, by which the twins are checked."""

import itertools

import numpy as np
import pytest
import reference_net as net
import reference_perturbation as ref
import reference_sise as sise
from reference import ablation_cam, min_max, pgc_pipeline, relu, resize_bilinear, weighted_map

SIZE = (32, 32)
TAP2, FEATURES = 8, 9  # places among the values of G3
DENSE = 2 * np.sin(0.5 + 1.1 * 4 + 0.9 * np.arange(16))  # of class 4, whose bias is 0.4


def close(got, expected, atol=1e-12):
    np.testing.assert_allclose(got, expected, rtol=0, atol=atol)


def printed(got, expected, digits):
    """Equal to the last printed digit."""
    close(got, expected, 0.51 * 10.0**-digits)


def argmax(m):
    return tuple(map(int, np.unravel_index(m.argmax(), m.shape)))


def normal(*shape):
    return np.random.default_rng(0).standard_normal(shape)


@pytest.fixture(scope="module")
def x():
    return sise.g3_image()


@pytest.fixture(scope="module")
def values(x):
    return net.forward(sise.g3_layers(), x)


@pytest.fixture(scope="module")
def gradients(values):
    """Of the logit of class 4."""
    return net.backward(sise.g3_layers(), values, np.eye(5)[4])


def head(place, of=sise.logit):
    """Activation at a place of G3 -> score of class 4."""
    layers = sise.g3_layers()[place:]
    return lambda a: of(net.forward(layers, a)[-1], 4)[0]


PROBABILITY, LOGIT = sise.g3_score(), sise.g3_score(of=sise.logit)


# Golden values


SCORE_CAM = [
    (
        PROBABILITY,
        ref.AUTHORS,
        ".30938640 .30875644 .30831881 .31003294 .31821454 .31296291 .31038185 .30443081 .30421325"
        " .31255431 .31551976 .31370728 .30858105 .30771499 .30793697 .31012345",
        (0.353787807, 0.228217150),
    ),
    (
        LOGIT,
        ref.SOFTMAX,
        ".06191703 .06172161 .06161632 .06233126 .06547386 .06391125 .06296243 .06063254 .06047550"
        " .06307574 .06397413 .06323475 .06186329 .06191785 .06203372 .06285871",
        (0.352272744, 0.227000325),
    ),
    (PROBABILITY, ref.AUTHORS._replace(baseline=ref.zero_image), "", (0.387866331, 0.278686268)),
]


@pytest.mark.parametrize(("score", "convention", "weights", "map_values"), SCORE_CAM)
def test_golden_score_cam(x, values, score, convention, weights, map_values):
    got = ref.score_cam(values[TAP2], x, score, convention)
    m = min_max(got.map)
    if weights:
        printed(got.weights, np.array(weights.split(), float), 8)
    printed((m.mean(), m[13, 7]), map_values, 9)
    if convention is ref.AUTHORS:
        assert argmax(m) == (30, 13)


def test_golden_score_of_the_zero_image(x):
    printed(ref.zero_image(PROBABILITY, x), 0.3007296376, 10)


def test_golden_score_cam_of_pytorch_grad_cam():
    """Weights and map of class 2 of the golden VGG, whose map is resized after its min-max."""
    arrays = net.golden()
    layers, image = net.golden_layers(arrays), arrays["x_nhwc"][0]
    a, score = arrays["pgc/A"][0], net.score(layers, 2)
    got = ref.score_cam(a, image, score, ref.PYTORCH_GRAD_CAM)
    close(got.weights, arrays["pgc/ScoreCAM/weights"][0], 1e-12)
    close(min_max(got.map), arrays["pgc/ScoreCAM/map"][0], 5e-6)
    close(pgc_pipeline(weighted_map(a, got.weights), (28, 28)), min_max(got.map), 1e-6)


ABLATION = (
    "-.02104654 -.00284514 .00651568 .09989224 .16103536 .00446876 -.04958567 -.00635767"
    " -.00144308 .02775580 .17867189 .15068218 .00067393 -.01427912 -.01660061 -.02294636"
)


@pytest.mark.parametrize(
    ("place", "peak", "mean"),
    [(TAP2, 0.052883073, 0.473475583), (FEATURES, 0.054860257, 0.474859246)],
)
def test_golden_ablation_cam(values, place, peak, mean):
    got = ablation_cam(values[place], head(place))
    printed(got.weights, np.array(ABLATION.split(), float), 8)
    printed((relu(got.map).max(), min_max(relu(got.map)).mean()), (peak, mean), 9)
    assert argmax(got.map) == (0, 1)


@pytest.mark.parametrize(
    ("place", "of", "raw", "at", "mean"),
    [
        (FEATURES, sise.logit, 0.424464952, 0.420276123, 0.387618892),
        (FEATURES, sise.probability, 0.247059505, 0.246218868, 0.429549163),
        (TAP2, sise.probability, 0.245242763, 0.245650276, 0.545952864),
    ],
)
def test_golden_recipro_cam(values, place, of, raw, at, mean):
    got = ref.recipro_cam(values[place], head(place, of))
    printed((got.mean(), got[1, 2], min_max(got).mean()), (raw, at, mean), 9)
    if of is sise.logit:
        assert argmax(got) == (0, 1)


FD_CAM = (
    "-.5 .01823036 1.40510351 2.02149863 1.58856094 .12214622 -.39011451 -.49819742 -.08823187"
    " 1.35478461 2.10037778 1.96271301 .78043866 -.37393086 -.49583455 -.21967349"
)


@pytest.mark.parametrize(("place", "mean"), [(TAP2, 0.411191639), (FEATURES, 0.469618176)])
def test_golden_fd_cam(values, gradients, place, mean):
    got = ref.fd_cam(values[place], gradients[place], head(place), 0.5)
    printed(min_max(relu(got.map)).mean(), mean, 9)
    if place == TAP2:
        printed(got.weights, np.array(FD_CAM.split(), float), 8)
        assert (ref.similar_channels(values[place], 0.5).sum(1) == 8).all()


def test_golden_group_cam(x, values, gradients):
    got = ref.group_cam(values[TAP2], gradients[TAP2], x, PROBABILITY, 0.0, 4)
    printed(got.weights, [0.00710685, 0.01349154, 0.01401735, 0.00903333], 8)
    printed((min_max(got.map).mean(), min_max(got.map)[13, 7]), (0.479437914, 0.531039874), 9)


@pytest.fixture(scope="module")
def rise_masks():
    n, a, b = np.indices((16, 4, 4))
    grids = np.sin(1 + 0.7 * n + 1.3 * a + 2.9 * b) > 0
    assert grids.sum() == 131
    return ref.rise_masks(grids, [(i % 8, 3 * i % 8) for i in range(16)], SIZE)


def test_golden_rise_masks(x, rise_masks):
    assert rise_masks.shape == (16, 32, 32)
    printed((rise_masks.mean(), rise_masks[3, 5, 6]), (0.519031525, 0.575), 9)
    printed(PROBABILITY(ref.masked(x, rise_masks[0])), 0.321248417, 9)


@pytest.mark.parametrize(
    ("normalise", "mean", "at"),
    [("expectation", 0.329184904, 0.367574890), ("pixel", 0.317105223, 0.317730861)],
)
def test_golden_rise(x, rise_masks, normalise, mean, at):
    got = ref.rise(x, rise_masks, PROBABILITY, 0.5, normalise)
    printed((got.mean(), got[13, 7]), (mean, at), 9)
    if normalise == "expectation":
        assert argmax(got) == (2, 1)


# RISE


def test_rise_where_every_cell_is_kept_is_the_constant_score(x):
    masks = ref.rise_masks(np.ones((3, 4, 4)), np.zeros((3, 2), int), SIZE)
    for normalise in ("expectation", "pixel"):
        close(ref.rise(x, masks, PROBABILITY, 1.0, normalise), PROBABILITY(x))


def test_rise_is_linear_in_the_score(x, rise_masks):
    got = ref.rise(x, rise_masks, lambda v: 2 * LOGIT(v) - 3 * PROBABILITY(v), 0.5)
    parts = [ref.rise(x, rise_masks, score, 0.5) for score in (LOGIT, PROBABILITY)]
    close(got, 2 * parts[0] - 3 * parts[1])


def test_rise_of_an_additive_model_over_all_masks_is_its_closed_form():
    """All 2x2 grids at all shifts: E[M] = p, and the mean map has the masks' covariance."""
    grids = np.array(list(itertools.product((0, 1), repeat=4))).reshape(-1, 2, 2)
    every = list(itertools.product(grids, np.ndindex(2, 2)))
    masks = ref.rise_masks([g for g, _ in every], [shift for _, shift in every], (4, 3))
    flat = masks.reshape(len(masks), -1)
    close(flat.mean(0), 0.5)
    w, image = normal(4, 3, 2), np.abs(normal(4, 3, 2))
    seen = (w * image).sum(2)
    expected = 0.5 * seen.sum() + np.cov(flat.T, bias=True) @ seen.ravel() / 0.5
    got = ref.rise(image, masks, lambda v: (w * v).sum(), 0.5)
    close(got, expected.reshape(4, 3))


def test_rise_cells_round_up_and_a_pixel_that_no_mask_shows_is_zero():
    masks = ref.rise_masks(np.zeros((1, 3, 3)), [(3, 2)], (10, 7))
    assert masks.shape == (1, 10, 7)
    assert not ref.rise(np.ones((10, 7, 1)), masks, np.sum, 0.5, "pixel").any()


# Score-CAM and its variants


CONVENTIONS = [ref.AUTHORS, ref.SOFTMAX, ref.PYTORCH_GRAD_CAM, ref.TORCH_CAM]
NAMED = pytest.mark.parametrize("convention", CONVENTIONS, ids=["authors", "softmax", "pgc", "tc"])


@pytest.mark.parametrize("baseline", [ref.nothing, ref.clean, ref.zero_image])
def test_a_softmax_over_the_channels_ignores_the_baseline(x, values, baseline):
    got = ref.score_cam(values[TAP2], x, LOGIT, ref.SOFTMAX._replace(baseline=baseline))
    close(got.weights, ref.score_cam(values[TAP2], x, LOGIT, ref.SOFTMAX).weights, 1e-14)


@NAMED
def test_ss_cam_without_noise_and_is_cam_of_one_step_are_score_cam(x, values, convention):
    a = values[TAP2]
    expected = ref.score_cam(a, x, LOGIT, convention)
    for got in (
        ref.ss_cam(a, x, LOGIT, np.zeros((2, 1, *SIZE)), convention),
        ref.is_cam(a, x, LOGIT, 1, convention=convention),
        ref.is_cam(a, x, LOGIT, 1, cumulative=True, convention=convention),
    ):
        close(got.weights, expected.weights, 1e-14)
        close(got.map, expected.map, 1e-14)


@pytest.mark.parametrize(
    ("cumulative", "factor"), [(False, (0.25 + 0.5 + 0.75 + 1) / 4), (True, (1 + 3 + 6 + 10) / 16)]
)
def test_is_cam_of_a_linear_score_scales_the_scores(cumulative, factor):
    a, image, w = np.abs(normal(3, 3, 4)), normal(7, 5, 2), normal(7, 5, 2)
    plain = ref.Convention()
    scores = ref.score_cam(a, image, lambda v: (w * v).sum(), plain).weights
    got = ref.is_cam(a, image, lambda v: (w * v).sum(), 4, cumulative, plain)
    close(got.weights, factor * scores)


def test_ss_cam_of_a_linear_score_adds_the_mean_noise():
    a, image, w = np.abs(normal(3, 3, 4)), normal(7, 5, 2), normal(7, 5, 2)
    noise, plain = normal(6, 4, 7, 5), ref.Convention()

    def score(v):
        return (w * v).sum()

    shift = [score(ref.masked(image, n)) for n in noise.mean(0)]
    got = ref.ss_cam(a, image, score, noise, plain)
    close(got.weights, ref.score_cam(a, image, score, plain).weights + shift)


@NAMED
def test_score_cam_of_one_channel_is_its_activation(x, values, convention):
    a = values[TAP2][:, :, 3:4] - 0.1
    got = ref.score_cam(a, x, PROBABILITY, convention)
    assert got.weights[0] > 0
    size = x.shape[:2]
    up = resize_bilinear(a, size)[:, :, 0]
    expected = relu(up) if convention.upsample_first else resize_bilinear(relu(a), size)[:, :, 0]
    close(got.map, got.weights[0] * expected)


@NAMED
def test_score_cam_does_not_mind_the_order_of_the_channels_nor_a_constant_one(
    x, values, convention
):
    a, order = values[TAP2][:, :, :6], [4, 1, 5, 0, 2, 3]
    expected = ref.score_cam(a, x, LOGIT, convention)
    got = ref.score_cam(np.dstack([a[:, :, order], np.full((8, 8), 0.7)]), x, LOGIT, convention)
    assert got.weights[-1] == 0
    close(got.weights[:-1], expected.weights[order], 1e-14)
    close(got.map, expected.map, 1e-14)


def test_masks_of_the_conventions():
    """A peak inside: pre-normalised it does not reach 1; corner to corner it lies elsewhere."""
    a = np.zeros((4, 4, 1))
    a[1, 2] = 3
    makers = (ref.half_pixel_masks, ref.corner_masks, ref.unit_first_masks)
    half, corner, first = (np.array(make(a, (8, 8))[0]) for make in makers)
    assert half.max() == 1
    close(first, resize_bilinear(a / 3, (8, 8))[:, :, 0], 1e-8)
    close(half, first / first.max(), 1e-7)
    assert abs(half - corner).max() > 0.1


def test_resizing_by_corners_is_exact_on_a_plane():
    i, j = np.indices((4, 3), float)
    u, v = np.indices((10, 9)) / np.array([9, 8]).reshape(2, 1, 1)
    close(ref.resize_corners(2 * i - 5 * j, (10, 9)), 6 * u - 10 * v)


# Group-CAM


def test_group_cam_of_single_channels_has_the_masks_of_score_cam(x, values):
    a = values[TAP2]
    g = np.ones_like(a) * np.linspace(0.1, 2, 16)
    got = ref.group_cam(a, g, x, PROBABILITY, 0.0, 16)
    close(got.masks, ref.half_pixel_masks(a, SIZE), 1e-14)
    gain = ref.score_cam(a, x, PROBABILITY, ref.AUTHORS._replace(baseline=ref.zero_image)).weights
    close(got.weights, relu(gain))


@pytest.mark.parametrize(
    ("groups", "lengths"), [(1, [16]), (3, [6, 6, 4]), (5, [4, 4, 4, 4]), (16, [1] * 16)]
)
def test_groups_are_runs_of_which_the_last_may_be_short(groups, lengths):
    a = np.arange(1.0, 17) * np.indices((2, 2))[0][:, :, None]
    image = np.ones((2, 2, 1))
    got = ref.group_cam(a, np.ones_like(a), image, np.sum, 0.0, groups)
    close(got.weights, np.full(len(lengths), 2.0))
    close(got.map[1], 2 * a[1, 0].sum())
    assert got.masks.shape == (len(lengths), 2, 2)


def test_a_dead_group_has_weight_zero(x, values, gradients):
    a = values[TAP2].copy()
    a[:, :, :4] = 0
    got = ref.group_cam(a, gradients[TAP2], x, PROBABILITY, x.mean((0, 1)), 4)
    assert got.weights[0] == 0
    assert not got.masks[0].any()
    assert got.map.any()


def test_group_cam_of_an_image_that_is_its_baseline_is_zero(x, values, gradients):
    """Up to rounding: m x + (1 - m) x is not x to the last bit."""
    close(ref.group_cam(values[TAP2], gradients[TAP2], x, PROBABILITY, x, 4).map, 0, 1e-15)


# Feature space


def test_recipro_cam_of_a_linear_head_is_cam(values):
    a = values[FEATURES]
    got = ref.recipro_cam(a, head(FEATURES))
    close(got, weighted_map(a, DENSE) / 16 + 0.4, 1e-14)


def test_spread_recipro_cam_of_a_linear_head_is_smoothed_cam(values):
    a = values[FEATURES]
    band = (2 * np.eye(4) + np.eye(4, k=1) + np.eye(4, k=-1)) / 4
    smooth = band @ weighted_map(a, DENSE) @ band / 16 + 0.4
    close(ref.recipro_cam(a, head(FEATURES), spread=True), smooth, 1e-14)


def test_recipro_cam_of_a_head_that_ignores_a_position(values):
    def blind(a):
        a = a.copy()
        a[2, 1] = 0
        return head(FEATURES)(a)

    close(ref.recipro_cam(values[FEATURES], blind)[2, 1], 0.4)


def test_ablation_weights_of_a_linear_head(values):
    a = values[FEATURES]
    got = ablation_cam(a, head(FEATURES)).weights
    close(got, DENSE * a.mean((0, 1)) / head(FEATURES)(a), 1e-15)
    close(got, ablation_cam(values[TAP2], head(TAP2)).weights, 1e-15)


def test_fd_cam_of_a_linear_head(values, gradients):
    """on + y - off = twice the part of the channels that are on, plus the bias."""
    a = values[FEATURES]
    similar = ref.similar_channels(a, 0.5)
    scores = 2 * similar @ (DENSE * a.mean((0, 1))) + 0.4
    expected = np.exp(min_max(scores)) * min_max(DENSE) - 0.5
    close(ref.fd_cam(a, gradients[FEATURES], head(FEATURES), 0.5).weights, expected)


def test_dead_and_equal_channels_of_fd_cam(values):
    dead = values[FEATURES].copy()
    dead[:, :, 2] = 0
    similar = ref.similar_channels(dead, 0.5)
    assert not similar[2].any()
    got = ref.fd_cam(np.ones((3, 3, 4)), np.ones((3, 3, 4)), np.sum, 0.5)
    close(got.weights, -0.5)


# Edge cases


@pytest.mark.parametrize("case", ["zero image", "constant", "negative"])
def test_all_are_finite(x, values, gradients, case):
    image = np.zeros_like(x) if case == "zero image" else x
    a = {"constant": np.full((8, 8, 16), 0.3), "negative": -values[TAP2]}.get(case, values[TAP2])
    maps = [ref.score_cam(a, image, LOGIT, convention).map for convention in CONVENTIONS]
    maps.append(ref.group_cam(a, gradients[TAP2], image, PROBABILITY, 0.0, 5).map)
    maps.append(ref.fd_cam(a, gradients[TAP2], head(TAP2), 0.5).map)
    maps.append(ref.recipro_cam(a, head(TAP2), spread=True))
    assert all(np.isfinite(m).all() for m in maps)
    if case != "zero image":
        assert not any(m.any() for m in maps[:4])


# Extremal Perturbation


def test_extremal_mask_of_nothing_and_of_one_cell():
    assert not ref.extremal_mask(np.zeros((3, 4)), (20, 26), margin=2).any()
    one = np.zeros((5, 5))
    one[2, 2] = 1
    m = ref.extremal_mask(one, (35, 35), margin=0, sigma=10)
    assert argmax(m) in {(i, j) for i in range(9, 20) for j in range(9, 20)}
    weight = np.exp(20) / (np.exp(20) + 24)
    close([m[14, 14], m[14, 19], m[9, 14]], weight, 1e-15)  # flat within half of sigma
    v = np.exp(-2 * 0.5**2)
    close(m[14, 24], v * np.exp(20 * v) / (np.exp(20 * v) + 24), 1e-15)
    near = ref.extremal_mask(one, (35, 35), margin=0, sigma=10, reach=1)
    close(near[14, 14], np.exp(20) / (np.exp(20) + 8), 1e-15)
    assert near[14, 28] == 0


@pytest.mark.parametrize("reach", [None, 4])
def test_extremal_mask_of_ones_is_nearly_one_inside(reach):
    m = ref.extremal_mask(np.ones((6, 6)), (42, 42), reach=reach)
    assert m.shape == (84, 84)
    assert m[21:-21, 21:-21].min() > 0.9
    assert m.max() <= 1
    assert m[0, 0] < 0.5


@pytest.mark.parametrize(("area", "loss"), [(0.0, 0.3), (0.2, 0.1), (0.3, 0), (0.5, 0.2), (1, 0.7)])
def test_area_loss_of_a_binary_mask_is_the_share_that_is_wrong(area, loss):
    m = np.zeros((2, 5))
    m[[0, 0, 1], [1, 4, 2]] = 1
    close(ref.area_loss(m, area), loss)


def test_area_loss_of_a_soft_mask():
    close(ref.area_loss(np.array([[0.9, 0.2], [0.5, 0.1]]), 0.5), (0.01 + 0.04 + 0.25 + 0.01) / 4)


def test_extremal_descent_by_hand():
    seen = []

    def gradient(grid, weight, t):
        seen.append((weight, t))
        return np.array([1.0, -1.0, 60.0])

    got = ref.extremal_descent(gradient, np.ones(3), iterations=3)
    assert len(got) == 4
    # velocities 1, 0.9 + 0.1, 0.9 + 0.1: a constant gradient is its own velocity
    close([g[0] for g in got], [1, 0.99, 0.98, 0.97])
    close([g[1] for g in got], 1)
    close([g[2] for g in got], [1, 0.4, 0, 0])
    close(seen, [(300 * 1.0035**t, t) for t in range(3)])


def test_extremal_descent_dampens_every_gradient_but_the_first():
    slopes = [2.0, 0.0, 1.0]
    got = ref.extremal_descent(lambda grid, weight, t: np.array([slopes[t]]), [1.0], 3, rate=0.1)
    close([g[0] for g in got], [1, 0.8, 0.62, 1 - 0.2 - 0.18 - 0.1 * (0.81 * 2 + 0.1)])
