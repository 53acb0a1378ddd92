"""FAM in float64: against the twin, and its laws, P1 to P21 of the method's specification."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_afmi as fmi
import reference_embedding as emb
import reference_fam as twin
from embedders import (
    EMBEDDERS,
    GAP,
    LAYERS,
    MU,
    A,
    B,
    C,
    H,
    K,
    Q,
    S,
    T,
    W,
    activations,
    close,
    conv_embedder,
    cos,
)

import jaxfmi as jf
from jaxfmi import similarities as sim
from jaxfmi import weightings
from jaxfmi.multipliers import path
from jaxfmi.references import constant_activation


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


@functools.cache
def compiled(embed, options):
    return jax.jit(jf.fam_terms(embed, "a", size=None, **dict(options)))


def terms(x=A, partner=S, embed=GAP, **options):
    explain = compiled(embed, tuple(options.items()))
    partner = None if partner is None else jnp.asarray(partner)
    return jax.tree.map(np.asarray, explain(jnp.asarray(x), partner))


# Against the twin

FREE = sim.cosine(freeze_norms=False)
CENTRED = {"similarity": sim.centred_cosine(MU), "reference": constant_activation(MU)}
DISTANCE = {"similarity": "neg_squared_distance", "reference": "partner", "multiplier": path(1)}
CASES = {  # options, what the twin is told, whether the partner is a pair
    "cosine": ({}, {}, False),
    "dot": ({"similarity": "dot"}, {"similarity": emb.dot}, False),
    "true cosine": (
        {"similarity": FREE},
        {"similarity": emb.true_cosine},
        False,
    ),
    "margin": ({"similarity": "margin"}, {"similarity": emb.margin}, True),
    "mean": ({"weighting": "mean"}, {"reduction": fmi.mean}, False),
    "none": ({"weighting": "none"}, {"reduction": fmi.none}, False),
}


@pytest.mark.parametrize("pool", EMBEDDERS)
@pytest.mark.parametrize("case", ["cosine", "margin", "mean"])
def test_twin(case, pool):
    check_twin(case, pool)


@pytest.mark.parametrize("case", ["dot", "true cosine", "none"])
def test_twin_of_one_pooling(case):
    check_twin(case, "projection")


def check_twin(case, pool):
    options, of_twin, pair = CASES[case]
    layers, embed = EMBEDDERS[pool]
    partner = emb.embed(layers, C)
    partner = np.stack([partner, 2 * emb.embed(layers, A)]) if pair else partner
    got, expected = (
        terms(partner=partner, embed=embed, **options),
        twin.fam(layers, A, partner, **of_twin),
    )
    close(got.map, expected.map)
    close(got.contribution, expected.contribution)
    close([got.score, got.reference_score], [expected.f, expected.f0])
    close(got.residual, got.score - got.reference_score - got.map.sum())


@pytest.mark.parametrize("options", [CENTRED, DISTANCE], ids=["centred", "distance"])
def test_twin_with_a_reference(options):
    centred = options is CENTRED
    expected = twin.fam(
        LAYERS,
        A,
        S,
        emb.centred_cosine(MU) if centred else emb.neg_squared_distance,
        reference=twin.constant(MU if centred else S),
        multiplier=fmi.gradient if centred else fmi.path(1),
    )
    got = terms(**options)
    close(got.map, expected.map)
    close(got.contribution, expected.contribution)
    close(got.residual, 0)


def test_a_distance_has_its_reference():
    for chosen in ({}, {"reference": "partner"}, {"multiplier": path(1)}):
        close(terms(similarity="neg_squared_distance", **chosen).map, terms(**DISTANCE).map)
    around = terms(similarity="neg_squared_distance", reference="zero_activation")
    close(around.residual, 0)  # the midpoint is exact from there, too
    assert np.abs(around.map - terms(**DISTANCE).map).max() > 0.1
    literal = {"similarity": "neg_squared_distance", "weighting": "contribution"}
    close(terms(**literal).map, terms(**literal, reference="zero_activation").map)


def test_a_head_with_biases_needs_a_path():
    rng = np.random.default_rng(3)
    w, v, b, c = (jnp.asarray(rng.normal(size=s)) for s in ((K, 8), (8, K), 8, K))

    def embed(x):
        return jnp.tanh(jf.tag(x, "a").mean((0, 1)) @ w + b) @ v + c

    partner = embed(jnp.asarray(B))
    along = terms(embed=embed, partner=partner, multiplier=path(64))
    at_once = terms(embed=embed, partner=partner)
    close(along.score, cos(embed(A), partner))
    assert abs(along.residual) < 1e-3 < 0.02 < abs(at_once.residual)
    assert abs(along.reference_score) > 0.01  # what the biases alone have in common


@pytest.mark.parametrize("weight", ["share", "inverse", "gaussian"])
def test_contribution(weight):
    ours, theirs = getattr(weightings, weight), getattr(twin, weight)
    if weight == "gaussian":
        ours, theirs = ours(0.2), theirs(0.2)
    got = terms(weighting=weightings.contribution(ours), normalise="max")
    m, w = twin.contribution(LAYERS, A, S, emb.cosine, theirs, "max")
    close(got.map, m)
    close(got.fmi, w)


@pytest.mark.parametrize("name", weightings.NORMALISE)
def test_normalisations(name):
    for w in (Q * S, Q - S, 0 * Q):
        close(weightings.NORMALISE[name](jnp.asarray(w)), twin.NORMALISE[name](w))


def test_sfam():
    close(jf.sfam(GAP, "a", size=None)(A, S), twin.contribution(LAYERS, A, S)[0])
    got = jf.sfam(GAP, "a", similarity="neg_squared_distance", size=None)(A, S)
    close(got, twin.contribution(LAYERS, A, S, weight=twin.inverse)[0])


def test_pair():
    a, b, score = jf.pair(GAP, "a", size=None)(A, B)
    expected = twin.pair(LAYERS, A, B)
    for got, wanted in zip((a, b, score), expected, strict=True):
        close(got, wanted)
    close([a.sum(), b.sum()], score)  # P2, and different sizes
    back = jf.pair(GAP, "a", size=None)(B, A)
    for got, wanted in zip(back, (b, a, score), strict=True):  # P3
        close(got, wanted)
    big = jf.pair(GAP, "a")(A, B)
    assert [m.shape for m in big[:2]] == [A.shape[:2], B.shape[:2]]


def test_pair_at_a_distance():
    a, b, score = jf.pair(GAP, "a", size=None, **DISTANCE)(A, B)
    close([a.sum(), b.sum(), score], -((Q - S) ** 2).sum())


@pytest.mark.parametrize("mask", [None, np.array([1, 0, 1], bool)])
def test_support_shares(mask):
    supports = np.stack(activations(3, *[(2, 3, K)] * 3))
    maps, shares = jf.support_shares(GAP, "a", size=None)(A, supports, mask)
    expected = twin.support_shares(LAYERS, Q, supports, mask)
    close(maps, expected[0])
    close(shares, expected[1])
    shots = supports.mean((1, 2))
    p = jf.prototype(shots, mask)
    close(p, twin.prototype(shots, mask))
    close([shares.sum(), maps.sum()], cos(Q, np.asarray(p)))  # P11
    chunked = jf.support_shares(GAP, "a", size=None, chunk=2)(Q, supports, mask)
    close(chunked[0], maps)


# Laws


def test_complete_map_is_cam_with_the_partner_as_classifier():
    weights = S / np.linalg.norm(Q) / np.linalg.norm(S)
    got = terms()
    close(got.map, twin.partner_as_classifier(A, weights))
    close(got.contribution, Q * weights)
    close(got.map, twin.unit_mass(A, got.contribution))  # P6
    close([got.map.sum(), got.contribution.sum(), got.score], cos(Q, S))  # P1, P2
    close(terms(B, Q).map.sum(), cos(Q, S))


def test_identical_images_and_disjoint_channels():
    a, b, score = jf.pair(GAP, "a", size=None)(A, A)
    close(a, b)  # P4
    close(score, 1)
    left, right = A * (np.arange(K) < 2), A * (np.arange(K) >= 2)
    close(jf.pair(GAP, "a", size=None)(left, right)[0], np.zeros((H, W)))  # P5


def test_weights_of_channels_add_up_to_the_similarity():
    pair = jnp.stack([S, T])
    for similarity, partner in (
        ("cosine", S),
        ("dot", S),
        ("neg_squared_distance", S),
        (sim.centred_cosine(MU), S),
        (sim.corpus(S, T), None),
    ):
        got = terms(A, partner, similarity=similarity, weighting="contribution", normalise="none")
        close(got.fmi.sum(), got.score)
    got = terms(A, pair, similarity="margin", weighting="contribution", normalise="none")
    close(got.fmi, 2 * Q * (S - T))


def test_normalisations_that_look_alike():
    c = terms(weighting="contribution", normalise="none").fmi

    def shown(normalise):
        return jf.heatmap.unit(jnp.asarray(A @ weightings.NORMALISE[normalise](c)))

    close(terms(weighting="contribution", normalise="none").map, A @ c)
    for same in ("sum", "max", "none"):
        close(shown(same), shown("l1"))  # P7
    for other in ("softmax", "minmax"):
        assert np.abs(shown(other) - shown("l1")).max() > 1e-3


def test_the_pitfall_of_grad_cam_on_the_cosine():
    got = terms(similarity=FREE, weighting="mean")
    own = terms(partner=Q, similarity="dot").map
    close(got.map, terms().map - got.score * own / (Q @ Q))  # P8
    close(got.map.sum(), 0)
    close(got.residual, got.score)  # which shows it


def test_an_embedding_of_unit_length_is_reported():
    def embed(a):
        q = GAP(a)
        return q / jnp.linalg.norm(q)

    with pytest.warns(UserWarning, match="L2 normalisation"):
        got = jf.fam_terms(embed, "a", similarity="dot")(A, S / np.linalg.norm(S))
    close(got.map.sum(), 0)  # P20
    close(got.score, cos(Q, S))


def test_distance_and_margin():
    close(terms(**DISTANCE).map, -twin.delta(A, S))
    close(terms(**DISTANCE).contribution, -((Q - S) ** 2))
    close(twin.delta(A, S).sum(), ((Q - S) ** 2).sum())  # P10
    doubled = terms(**(DISTANCE | {"multiplier": "gradient"}))
    close(doubled.map, -2 * twin.delta(A, S))
    got = terms(partner=np.stack([S, T]), similarity="margin")
    close(got.map.sum() + got.reference_score, got.score)
    close(got.score, ((Q - T) ** 2).sum() - ((Q - S) ** 2).sum())
    close(got.contribution, 2 * Q * (S - T))


def test_prototype_of_the_dot_product_is_the_mean_of_pairs():
    each = [terms(partner=s, similarity="dot").map for s in (S, T)]
    close(terms(partner=jf.prototype([S, T]), similarity="dot").map, np.mean(each, 0))  # P11
    close(jf.prototype([S]), S)  # P12
    maps, shares = jf.support_shares(GAP, "a", size=None)(A, B[None])
    _, back, score = jf.pair(GAP, "a", size=None)(A, B)
    close(maps[0], back)
    close(shares, [score])


def test_pooling():
    tied = A.copy()
    tied[0, 0] = tied[2, 1] = A.max() + 1
    _, pool = EMBEDDERS["max"]
    got = terms(tied, embed=pool, similarity="dot", weighting="none")
    close(got.map.sum(), got.score)
    close(got.map[0, 0], got.map[2, 1])  # P13
    assert np.count_nonzero(got.map) == 2
    for name in ("gem", "dense"):
        layers, pool = EMBEDDERS[name]
        partner = emb.embed(layers, C)
        for weighting in ("complete", "none"):
            got = terms(partner=partner, embed=pool, weighting=weighting)
            close(got.map.sum(), got.score, 1e-5 if name == "gem" else 1e-12)
        assert abs(terms(partner=partner, embed=pool, weighting="mean").residual) > 1e-3


def test_a_projections_bias_is_reported_and_not_painted():
    layers, embed = EMBEDDERS["projection"]
    partner = emb.embed(layers, C)
    got = terms(partner=partner, embed=embed)
    q = emb.embed(layers, A)
    bias = layers[1].forward(np.zeros(K))
    close(got.reference_score, bias @ partner / np.linalg.norm(q) / np.linalg.norm(partner))  # P14
    close(got.map.sum() + got.reference_score, got.score)


def test_scale_does_not_matter():
    for x, partner in ((7 * A, S), (A, 0.2 * S), (3 * A, 5 * S)):
        close(terms(x, partner).map, terms().map)  # P15


def test_zero_embeddings_give_zeros_under_jit():
    with jax.debug_nans(True):
        for x, partner in ((0 * A, S), (A, 0 * S), (0 * A, 0 * S)):
            for options in ({}, {"similarity": FREE}):
                got = terms(x, partner, **options)
                assert not np.any(got.map)  # P16
                assert got.score == 0


def test_planted():
    """A quadrant copied from the partner, beside what has other channels: most mass is inside."""
    rng = np.random.default_rng(4)
    image = np.zeros((8, 8, 6))
    image[:, :, :3] = rng.random((8, 8, 3))
    image[:4, :4] = 0
    image[:4, :4, 3:] = part = rng.random((4, 4, 3))
    partner = np.zeros(6)
    partner[3:] = part.mean((0, 1))
    got = terms(image, partner).map
    assert got[:4, :4].sum() > 0.99 * got[got > 0].sum()  # P17


def test_centred():
    got = terms(**CENTRED)
    close([got.map.sum(), got.contribution.sum(), got.score], cos(Q - MU, S - MU))  # P18
    close(got.contribution, (Q - MU) * (S - MU) / np.linalg.norm(Q - MU) / np.linalg.norm(S - MU))


def test_corpus_is_the_difference_of_mean_maps():
    sets = np.random.default_rng(6).random((2, 4, K))
    got = terms(partner=None, similarity=sim.corpus(*sets.mean(1)))
    maps = [[terms(partner=e, similarity="dot").map for e in each] for each in sets]
    close(got.map, np.mean(maps[0], 0) - np.mean(maps[1], 0))  # P19


def test_partners_decide():
    """Contrast changes with the partner; a map without a partner cannot."""
    x, one, other = activations(9, (6, 6, K), (K,), (K,))
    maps = [jf.fam(GAP, "a", **CENTRED)(x, s) for s in (one, other)]
    assert np.corrcoef(np.ravel(maps[0]), np.ravel(maps[1]))[0, 1] < 0.9
    swap = [
        jf.fam(GAP, "a", similarity="margin")(x, np.stack(p)) for p in ((one, other), (other, one))
    ]
    close(swap[0], -swap[1])
    close(jf.lafam(GAP, "a")(x, one), jf.lafam(GAP, "a")(x, other))


def test_an_image_is_its_embedding():
    close(terms(partner=B).map, terms(partner=S).map)
    close(terms(partner=list(S)).map, terms(partner=S).map)


def test_the_query_is_looked_at_once():
    """P21: only convolutions of one image, and, compiled, as many as the network has."""
    with jax.enable_x64(False):
        embed = conv_embedder()
        x, partners = jnp.ones((8, 9, 3)), jnp.ones((7, 4))
        explain = jax.vmap(jf.fam(embed, "a"), (None, 0))
        for eqn in jax.make_jaxpr(explain)(x, partners).eqns:
            if eqn.primitive.name == "conv_general_dilated":
                assert eqn.outvars[0].aval.shape[0] == 1
        compiled = [
            jax.jit(f).lower(*args).compile().as_text().count(" convolution(")
            for f, args in (
                (embed, [x]),
                (explain, [x, partners]),
                (jf.gallery(embed, "a", top=3), [x, partners]),
            )
        ]
        assert compiled == [1, 1, 1]


def test_names_are_the_functions_they_stand_for():
    assert sim.NAMED["cosine"] is sim.cosine
    for name, similarity in sim.NAMED.items():
        partner = np.stack([S, T]) if name == "margin" else S
        q = jnp.asarray(Q)
        close(similarity(q, partner)(q), terms(partner=partner, similarity=name).score)


# Bad input


@functools.cache
def bypassed():
    def embed(x):
        return jf.tag(2 * x, "a").mean((0, 1)) + x.max((0, 1))

    return embed


def test_a_layer_that_does_not_determine_the_embedding():
    for explain in (jf.fam(bypassed(), "a"), jf.point_map(bypassed(), "a")):
        arguments = (A, B, (0, 0)) if explain.__name__ == "point_map" else (A, S)
        with pytest.raises(ValueError, match="does not determine the embedding"):
            explain(*arguments)
    assert np.isfinite(jf.fam(bypassed(), "a", allow_bypass=True)(A, S)).all()


@pytest.mark.parametrize(
    ("x", "partner", "options", "message"),
    [
        (0 * A, S, {}, "the image's embedding is zero"),
        (A, 0 * S, {}, "the partner's embedding is zero"),
        (A, S, {"similarity": sim.centred_cosine(S)}, "from the centre, is zero"),
        (A, S[:3], {}, r"shape \(3,\); expected one embedding, of shape \(5,\)"),
        (A, S, {"similarity": "margin"}, "expected a pair of embeddings"),
        (A, np.ones((3, K)), {}, r"shape \(3, 5\)"),
        (A, np.ones((1, 1, 1, K)), {}, "for many partners, jax.vmap"),
        (A, None, {}, "needs a partner"),
        (A, S, {"similarity": sim.corpus(S, T)}, "has its partners"),
        (A, np.full(K, np.nan), {}, "the partner has 5 values that are NaN"),
        (A, S, {"similarity": sim.centred_cosine(MU[:2])}, "the centre has shape"),
        (A, S, {"similarity": "cosin"}, "did you mean 'cosine'"),
        (A, S, {"weighting": "total"}, "no weighting is called 'total'"),
        (A, S, {"weighting": "contribution", "normalise": "l2"}, "no normalisation is called"),
        (A, S, {"normalise": "sum"}, "normalise is for the weighting contribution"),
        (A, S, {"weighting": "contribution", "reference": "fill"}, "has no reference"),
        (A, S, {"weighting": weightings.contribution(weightings.inverse), "embed": "projection"},
         "channel by channel"),
        (A, S, {"reference": "partner", "embed": "projection"}, "as many as the layer has maps"),
        (A[None], S, {}, "expected one image"),
        (A.astype(int), S, {}, "expected a float image"),
    ],
)  # fmt: skip
def test_bad_input(x, partner, options, message):
    options = dict(options)
    name = options.pop("embed", "gap")
    layers, embed = EMBEDDERS[name]
    partner = emb.embed(layers, C) if name != "gap" else partner
    with pytest.raises(ValueError, match=message):
        jf.fam(embed, "a", **options)(x, partner)


def test_a_layer_that_is_not_there():
    with pytest.raises(ValueError, match=r"no tag 'b'; there are 'a'"):
        jf.fam(GAP, "b")(A, S)


def test_an_embedding_is_a_vector():
    with pytest.raises(ValueError, match=r"one vector \[E\], this one has shape \(3, 4, 5\)"):
        jf.fam(lambda x: jf.tag(x, "a"), "a")(A, S)


def test_bad_support():
    shares = jf.support_shares(GAP, "a")
    for supports, mask, message in (
        (np.ones((0, 2, 3, K)), None, "support set is empty"),
        (np.ones((2, 2, 3, K)), [False, False], "the mask keeps none"),
        (np.ones((2, 2, 3, K)), [True], "expected a mask"),
        (B, None, "expected supports"),
        (0 * np.ones((2, 2, 3, K)), None, "embedding is zero"),
    ):
        with pytest.raises(ValueError, match=message):
            shares(A, supports, mask)
    with pytest.raises(ValueError, match="empty"):
        jf.prototype(np.ones((0, K)))
    with pytest.raises(ValueError, match="above 0"):
        weightings.gaussian(0)


@pytest.mark.parametrize("scale", [1e-19, 1e19])
def test_the_cosine_has_no_scale(scale):
    """In float32 squares of such activations are 0 or infinite."""
    a, s = jnp.asarray(A, jnp.float32), jnp.asarray(S, jnp.float32)
    terms = jf.fam_terms(GAP, "a", size=None)
    plain, scaled = terms(a, s), terms(a * scale, s / scale)
    np.testing.assert_allclose(scaled.score, plain.score, rtol=1e-5)
    np.testing.assert_allclose(scaled.map, plain.map, rtol=1e-4, atol=1e-6)
