"""The laws of FAM (P1 to P20 of its specification) and cases by hand, that check its twin."""

import numpy as np
import pytest
import reference_afmi as fmi
import reference_embedding as emb
import reference_fam as fam
import reference_net as net
from reference import finite_difference, grad_cam, min_max, relu, resize_bilinear

POOLED = [emb.gap()]
A = np.array([[[6, 0], [0, 8]]], float)  # q = (3, 4)
B = np.array([[[8, 0]], [[0, 6]]], float)  # s = (4, 3)
Q, S, OTHER, MU = np.array([[3, 4], [4, 3], [0, 5], [0, 1]], float)
ROOT = 360**0.5  # |q - mu| |s - mu|


def close(got, expected, atol=1e-10):
    np.testing.assert_allclose(got, expected, rtol=0, atol=atol)


def cos(q, s):
    return q @ s / np.linalg.norm(q) / np.linalg.norm(s)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def images(rng):
    """Two activations of different size, at least 0 and partly 0, and their embeddings by GAP."""
    a, b = (relu(rng.standard_normal((h, w, 5))) for h, w in ((3, 4), (2, 3)))
    return a, b, a.mean((0, 1)), b.mean((0, 1))


# By hand


@pytest.mark.parametrize(
    ("similarity", "partner", "reference", "expected", "contribution", "f", "f0"),
    [
        (emb.dot, S, fam.constant(0), [12, 12], [12, 12], 24, 0),
        (emb.cosine, S, fam.constant(0), [0.48, 0.48], [0.48, 0.48], 0.96, 0),
        (emb.true_cosine, S, fam.constant(0), [0.1344, -0.1344], [0.1344, -0.1344], 0.96, 0),
        (emb.margin, [S, OTHER], fam.constant(0), [24, -16], [24, -16], 8, 0),
        (emb.margin, [S, 2 * Q], fam.constant(0), [-12, -40], [-12, -40], 23, 75),
        (emb.corpus, [S, OTHER], fam.constant(0), [12, -8], [12, -8], 4, 0),
        (
            emb.centred_cosine(MU),
            S,
            fam.constant(MU),
            [11 / ROOT, 7 / ROOT],
            [12 / ROOT, 6 / ROOT],
            18 / ROOT,
            0,
        ),
    ],
)
def test_similarities_by_hand(similarity, partner, reference, expected, contribution, f, f0):
    got = fam.fam(POOLED, A, partner, similarity, reference=reference)
    close(got.map, [expected])
    close(got.contribution, contribution)
    close([got.f, got.f0], [f, f0])


def test_distance_by_hand():
    close(fam.delta(A, S), [[-2.5, 4.5]])
    for multiplier, factor in ((fmi.path(1), 1), (fmi.trapezoid, 1), (fmi.gradient, 2)):
        got = fam.fam(
            POOLED,
            A,
            S,
            emb.neg_squared_distance,
            reference=fam.constant(S),
            multiplier=multiplier,
        )
        close(got.map, [[factor * 2.5, factor * -4.5]])
        close(got.contribution, [-factor, -factor])
        close([got.f, got.f0], [-2, 0])


@pytest.mark.parametrize(
    ("similarity", "weight", "normalise", "expected"),
    [
        (emb.dot, fam.share, "none", [12, 12]),
        (emb.dot, fam.share, "l1", [1 / 2, 1 / 2]),
        (emb.true_cosine, fam.share, "none", [0.1344, -0.1344]),
        (emb.true_cosine, fam.share, "l1", [1 / 2, -1 / 2]),
        (emb.true_cosine, fam.share, "max", [1, -1]),
        (emb.true_cosine, fam.share, "minmax", [1, 0]),
        (emb.dot, fam.share, "minmax", [0, 0]),
        (emb.dot, fam.share, "softmax", [1 / 2, 1 / 2]),
        (emb.cosine, fam.inverse, "none", [1 / 2, 1 / 2]),
        (emb.cosine, fam.gaussian(2), "none", [np.exp(-1 / 2), np.exp(-1 / 2)]),
    ],
)
def test_contribution_by_hand(similarity, weight, normalise, expected):
    m, w = fam.contribution(POOLED, A, S, similarity, weight, normalise)
    close(w, expected)
    close(m, [[6 * w[0], 8 * w[1]]])


def test_shares_below_a_negative_sum_flip():
    close(fam.by_sum(np.array([1, -3.0])), [-1 / 2, 3 / 2])
    close(fam.by_sum(np.array([3, -3.0])), [0, 0])
    close(fam.by_max(np.array([1, -4.0])), [1 / 4, -1])


def test_point_to_point_by_hand():
    p = fam.point_to_point(POOLED, A, B)
    close(p[0, :, :, 0], [[0.48, 0], [0, 0.48]])
    negative = p - [[[[0.5], [0.0]], [[0.0], [0.0]]]]
    there, back = fam.overall(negative, clip=True)
    close(there, [[0, 1]])
    close(back, [[0], [1]])
    close(fam.overall(negative)[0], [[-0.02, 0.48]])
    close(fam.clipped(-p), 0)


def test_support_shares_by_hand():
    """Prototype of (4, 3) and (0, 5): (2, 4), so |q| |p| = 10 root 5."""
    lone = np.array([[[0, 6]], [[0, 4]]], float)
    maps, shares = fam.support_shares(POOLED, Q, [B, lone])
    root = 10 * 5**0.5
    close(maps[0], np.array([[6], [6]]) / root)
    close(maps[1], np.array([[6], [4]]) / root)
    close(shares, [12 / root, 10 / root])


# The laws


def test_p1_p2_totals_on_both_sides(images):
    a, b, q, s = images
    for similarity, score in ((emb.dot, q @ s), (emb.cosine, cos(q, s))):
        there, back, value = fam.pair(POOLED, a, b, similarity)
        close([value, there.sum(), back.sum()], score)
        close(fam.fam(POOLED, a, s, similarity).contribution.sum(), score)
    got = fam.fam(POOLED, a, s, emb.neg_squared_distance)
    close(got.f, -((q - s) ** 2).sum())
    assert abs(got.residual) > 0.1  # zero is not the reference of a distance


def test_every_reduction_is_the_partner_as_classifier(images):
    a, _, q, s = images
    expected = fam.partner_as_classifier(a, s / np.linalg.norm(q) / np.linalg.norm(s))
    for reduction in (fam.complete, fam.mean, fmi.none):
        close(fam.fam(POOLED, a, s, reduction=reduction).map, expected, 1e-12)


def test_p3_p4_p5_swapped_identical_disjoint(images):
    a, b, q, _ = images
    there, back, value = fam.pair(POOLED, a, b)
    back_first, there_second, same_value = fam.pair(POOLED, b, a)
    close(there_second, there)
    close(back_first, back)
    close(same_value, value)
    there, back, value = fam.pair(POOLED, a, a)
    close(there, back)
    close([value, there.sum()], 1)
    seen = np.array([1, 1, 0, 0, 0])
    assert not fam.fam(POOLED, a * seen, q * (1 - seen)).map.any()


def test_p6_contribution_over_mass_is_complete(images):
    a, _, _, s = images
    got = fam.fam(POOLED, a, s)
    close(fam.unit_mass(a, got.contribution), got.map, 1e-15)


def test_total_of_the_contribution_map(images):
    a, _, q, s = images
    m, c = fam.contribution(POOLED, a, s, normalise="none")
    close(m.sum(), 12 * (c * q).sum())
    assert abs(m.sum() - cos(q, s)) > 0.1


def test_p7_rescaled_weights_give_one_display_map(images):
    a, _, _, s = images
    shown = {n: min_max(fam.contribution(POOLED, a, s, normalise=n)[0]) for n in fam.NORMALISE}
    for name in ("l1", "sum", "max"):
        close(shown[name], shown["none"])
    for name in ("softmax", "minmax"):
        assert np.abs(shown[name] - shown["none"]).max() > 0.001


def test_p8_grad_cam_on_cosine(images):
    a, _, q, s = images
    got = fam.grad_cam_on_cosine(POOLED, a, s)
    close(got.sum(), 0)
    complete, own = fam.fam(POOLED, a, s).map, fam.self_map(POOLED, a)
    close(own.sum(), q @ q)
    close(got, complete - cos(q, s) * own / (q @ q))

    def score(at):
        return cos(at.mean((0, 1)), s)

    close(got, grad_cam(a, finite_difference(score, a)).map, 1e-7)


def test_p9_marginals_and_point_maps(images):
    a, b, q, s = images
    p = fam.point_to_point(POOLED, a, b)
    there, back, _ = fam.pair(POOLED, a, b)
    for got, expected in zip(fam.overall(p), (there, back), strict=True):
        close(got, expected)
    close(p.sum(), cos(q, s))
    fine = resize_bilinear(p.reshape(3, 4, -1), (7, 10)).reshape(7, 10, 2, 3)
    for point in np.ndindex(7, 10):
        close(fam.point_map(p, point, (7, 10)), fine[point])
    close(fam.point_map(p, (1, 2), (3, 4)), p[1, 2])


def test_p10_distance_and_margin(images, rng):
    a, _, q, s = images
    close(fam.delta(a, s).sum(), ((q - s) ** 2).sum())
    for multiplier in (fmi.path(1), fmi.trapezoid):
        got = fam.fam(
            POOLED,
            a,
            s,
            emb.neg_squared_distance,
            reference=fam.constant(s),
            multiplier=multiplier,
        )
        close(got.map, -fam.delta(a, s))
        close(got.residual, 0)
    other = rng.standard_normal(5)
    got = fam.fam(POOLED, a, [s, other], emb.margin)
    b = -(s @ s - other @ other)
    close(got.f0, b)
    close(got.map.sum() + b, ((q - other) ** 2).sum() - ((q - s) ** 2).sum())


def test_p11_p12_prototypes(images, rng):
    a, b, q, _ = images
    shots = [b, relu(rng.standard_normal((4, 2, 5))), relu(rng.standard_normal((3, 3, 5)))]
    embeddings = np.array([emb.embed(POOLED, shot) for shot in shots])
    p = fam.prototype(embeddings)
    each = fam.gallery(POOLED, [a], embeddings, emb.dot)[0]
    close(fam.fam(POOLED, a, p, emb.dot).map, each.mean(0))
    assert np.abs(fam.fam(POOLED, a, p).map - fam.gallery(POOLED, [a], embeddings)[0].mean(0)).any()
    equal = [shots[0], shots[0] + 1, shots[0] * 2]
    maps, shares = fam.support_shares(POOLED, q, equal)
    score = cos(q, fam.prototype([emb.embed(POOLED, shot) for shot in equal]))
    close([maps.sum(), shares.sum()], score)
    close(maps.sum((1, 2)), shares)
    maps, shares = fam.support_shares(POOLED, q, equal, mask=[1, 0, 0])
    close(maps[0], fam.pair(POOLED, a, b)[1])
    assert not maps[1:].any()
    assert not shares[1:].any()
    maps, shares = fam.support_shares(POOLED, q, equal, mask=[0, 0, 0])
    assert not maps.any()
    assert not shares.any()


def test_p13_poolings(images):
    a, _, _, s = images
    close(emb.embed([emb.gem(1)], a + 1), (a + 1).mean((0, 1)))
    close(fam.fam([emb.gem(1)], a + 1, s).map, fam.fam(POOLED, a + 1, s).map)
    tied = np.array([[[3.0], [1.0]], [[3.0], [0.0]]])
    close(fam.fam([emb.global_max()], tied, [2.0], emb.dot, fmi.none).map, [[3, 0], [3, 0]])
    gem = fam.fam([emb.gem(3)], a, s, emb.dot, fmi.none)
    share = a**3 / (a**3).sum((0, 1))
    close(gem.map, share @ (emb.embed([emb.gem(3)], a) * s))


@pytest.mark.parametrize(
    "layers", [[emb.gem(3)], [emb.global_max()], [emb.flatten()]], ids=lambda l: l[0].name
)
def test_p13_totals_of_other_poolings(images, rng, layers):
    a, _, _, _ = images
    s = relu(rng.standard_normal(len(emb.embed(layers, a))))
    for reduction in (fam.complete, fmi.none):
        got = fam.fam(layers, a, s, reduction=reduction)
        close(got.map.sum(), got.f)
    assert abs(fam.fam(layers, a, s, reduction=fam.mean).residual) > 0.01
    close(fam.positions(layers, a).sum((0, 1)), emb.embed(layers, a))


def test_p14_linear_projection(images, rng):
    a, b, q, _ = images
    w, bias = rng.standard_normal((5, 4)), rng.standard_normal(4)
    layers = [emb.gap(), net.dense(w, bias)]
    s = emb.embed(layers, b)
    got = fam.fam(layers, a, s, emb.dot)
    close(got.map, fam.partner_as_classifier(a, w @ s))
    close(got.map.sum() + bias @ s, (q @ w + bias) @ s)
    close(got.f0, bias @ s)
    got = fam.fam(layers, a, s)
    close(got.map.sum() + got.f0, cos(q @ w + bias, s))
    maps, shares = fam.support_shares(layers, emb.embed(layers, a), [b, b * 2])
    p = fam.prototype([s, emb.embed(layers, 2 * b)])
    close(shares.sum(), cos(emb.embed(layers, a), p))
    e = emb.embed(layers, a)
    close(shares.sum() - maps.sum(), bias @ e / np.linalg.norm(e) / np.linalg.norm(p))


def test_mlp_without_biases_is_exact(images, rng):
    a, _, _, _ = images
    w, v, s = (rng.standard_normal(n) for n in ((5, 8), (8, 4), 4))
    layers = [emb.gap(), net.dense(w, 0), net.relu(), net.dense(v, 0)]
    got = fam.fam(layers, a, s, emb.dot)
    close(got.map.sum(), got.f)
    biased = [emb.gap(), net.dense(w, rng.standard_normal(8)), net.relu(), net.dense(v, 0)]
    assert abs(fam.fam(biased, a, s, emb.dot).residual) > 0.01
    assert abs(fam.fam(biased, a, s, emb.dot, multiplier=fmi.path(1000)).residual) < 0.01


def test_p15_scale_of_either_side(images):
    a, b, _, s = images
    expected = fam.fam(POOLED, a, s).map
    close(fam.fam(POOLED, 3 * a, s).map, expected)
    close(fam.fam(POOLED, a, 7 * s).map, expected)
    close(fam.grad_cam_on_cosine(POOLED, 3 * a, s), fam.grad_cam_on_cosine(POOLED, a, s))
    close(fam.point_to_point(POOLED, 2 * a, 5 * b), fam.point_to_point(POOLED, a, b))


def test_p16_nothing_in_one_of_the_images(images):
    a, _, q, s = images
    zero, none = np.zeros_like(a), np.zeros(5)
    for similarity in (emb.dot, emb.cosine, emb.true_cosine):
        assert not fam.fam(POOLED, zero, s, similarity).map.any()
        assert not fam.fam(POOLED, a, none, similarity).map.any()
    for name in ("none", "l1", "sum", "max", "minmax", "softmax"):
        assert not fam.contribution(POOLED, zero, s, normalise=name)[0].any()
    assert not fam.point_to_point(POOLED, zero, a).any()
    assert not fam.support_shares(POOLED, q, [zero])[0].any()
    at_mean = fam.fam(POOLED, a, s, emb.centred_cosine(q), reference=fam.constant(q))
    assert not at_mean.map.any()


def test_p17_planted_texture():
    """Stripes in one quadrant, from the partner; others in the opposite one. 3x3 edge filters."""
    edge = np.array([[1, 0, -1], [2, 0, -2], [1, 0, -1]]) / 4
    kernel = np.stack([edge, -edge, edge.T, -edge.T], -1)[:, :, None, :]
    stem = [net.conv(kernel, 0), net.relu()]
    i, j = np.indices((16, 16))
    planted = np.where((i < 8) & (j < 8), np.sin(2.0 * j), 0)[:, :, None]
    distractor = np.where((i >= 8) & (j >= 8), np.sin(2.0 * i), 0)[:, :, None]
    a, b, c = (net.forward(stem, v)[-1] for v in (planted + distractor, planted, distractor))
    s, other = emb.embed(POOLED, b), emb.embed(POOLED, c)

    def inside(m):
        return relu(m)[:8, :8].sum() / relu(m).sum()

    assert inside(fam.fam(POOLED, a, s).map) > 0.7
    assert inside(fam.contribution(POOLED, a, s)[0]) > 0.7
    assert inside(fam.fam(POOLED, a, [s, other], emb.margin).map) > 0.8
    assert inside(fam.grad_cam_on_cosine(POOLED, a, s)) > 0.8
    assert inside(fam.fam(POOLED, a, other).map) < 0.2
    assert 0.3 < inside(fam.lafam(a)) < 0.5
    assert inside(-fam.delta(a, s)) < 0.1  # its own strong activations are what differs


def test_p18_centred_cosine(images, rng):
    a, _, q, s = images
    mu = rng.standard_normal(5) / 5
    got = fam.fam(POOLED, a, s, emb.centred_cosine(mu), reference=fam.constant(mu))
    close(got.map.sum(), cos(q - mu, s - mu))
    close([got.f0, got.residual], 0)


def test_p19_corpus_and_foil(images, rng):
    a, _, _, _ = images
    near, far = rng.standard_normal((3, 5)), rng.standard_normal((4, 5))
    got = fam.fam(POOLED, a, [near.mean(0), far.mean(0)], emb.corpus).map
    means = [fam.gallery(POOLED, [a], some, emb.dot)[0].mean(0) for some in (near, far)]
    close(got, means[0] - means[1])


def test_p20_normalised_embeddings_have_no_total(images):
    a, b, q, s = images
    layers = [emb.gap(), emb.unit_length()]
    for similarity in (emb.dot, emb.cosine):
        for multiplier in (fmi.gradient, fmi.path(8)):
            got = fam.fam(layers, a, emb.embed(layers, b), similarity, multiplier=multiplier)
            close(got.map.sum(), 0)
            close([got.f, got.residual], cos(q, s))
    close(
        fam.fam(layers, a, s / np.linalg.norm(s), emb.dot).map, fam.grad_cam_on_cosine(POOLED, a, s)
    )


def test_normalised_embeddings_after_a_bias_do_have_one():
    """e = q - (3, 0) = (0, 4) and s = (1, 0): cosine 0, slope (1/4, 0), so 6/8 in the first place.

    Only what is homogeneous in the activation loses its total.
    """
    shifted = [emb.gap(), net.dense(np.eye(2), np.array([-3.0, 0]))]
    s = np.array([1.0, 0])
    for layers, similarity in (
        ([*shifted, emb.unit_length()], emb.dot),
        (shifted, emb.true_cosine),
    ):
        got = fam.fam(layers, A, s, similarity)
        close(got.map, [[0.75, 0]])
        close(got.f, 0)


# The parts


@pytest.mark.parametrize(
    "layer", [emb.gem(3), emb.global_max(), emb.flatten(), emb.unit_length()], ids=lambda l: l.name
)
def test_backward_passes_are_finite_differences(rng, layer):
    x = rng.uniform(0.5, 2, 6 if layer.name == "unit_length" else (2, 3, 4))
    g = rng.standard_normal(layer.forward(x).shape)
    close(layer.backward(x, g), finite_difference(lambda v: g @ layer.forward(v), x), 1e-7)


@pytest.mark.parametrize(
    "similarity",
    [
        emb.dot,
        emb.cosine,
        emb.true_cosine,
        emb.neg_squared_distance,
        emb.margin,
        emb.centred_cosine(np.arange(3.0)),
        emb.corpus,
    ],
)
def test_slopes_are_finite_differences(rng, similarity):
    q0, q, *pair = rng.standard_normal((4, 3))
    partner = np.array(pair) if similarity in (emb.margin, emb.corpus) else pair[0]
    score = similarity(q0, partner)
    close(score(q)[1], finite_difference(lambda v: score(v)[0], q), 1e-7)


def test_lafam_and_near_inverse_weights(images):
    a, _, q, _ = images
    close(min_max(fam.contribution(POOLED, a, q + 1e-6, weight=fam.inverse)[0]), fam.lafam(a))
    assert not fam.lafam(np.ones((2, 2, 3))).any()


def test_sbsm_by_hand():
    """Embedding (mean, 0), partner (1, 0): covering a pixel of 4 by 0 moves away, of -4 closer."""
    x = np.array([[[4.0], [-4.0]], [[0.0], [2.0]]])
    windows = np.eye(4).reshape(4, 2, 2) > 0

    def embedding(v):
        return np.array([v.mean(), 0])

    got = fam.sbsm(embedding, x, np.array([1.0, 0]), windows[:3])
    close(got, [[1, 0], [0, 0]])  # mean .5; without 4: -.5, a distance of 1.5 and not .5
    both = np.stack([windows[0], windows[0] | windows[3], np.zeros((2, 2), bool)])
    got = fam.sbsm(embedding, x, np.array([1.0, 0]), both)
    close(got, [[(1 + 1.5) / 2, 0], [0, 1.5]])
