"""A-FMI's engine in float64: every multiplier and reduction against the twin, and the laws.

T1 to T16 and S1 are numbered as in the method's specification. What holds for every explainer
(``vmap``, chunks, labels, keys) is in test_contract.py.
"""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_afmi as twin
import reference_net as net
from nets import pooled_score

import jaxfmi as jf
from jaxfmi import multipliers, reductions, references

H, W, C, K = 4, 5, 2, 3
KEY = jax.random.key(3)

_normal = np.random.default_rng(0).standard_normal
KERNEL, BIAS = _normal((3, 3, C, K)) / 3, _normal(K) / 2
W1, B1, W2, B2 = _normal((H * W * K, 7)) / 2, _normal(7) / 2, _normal((7, 1)), _normal(1)
X, X0 = _normal((2, H, W, C))

STEM = [net.conv(KERNEL, BIAS), net.relu()]
HEAD = [net.flatten_chw(), net.dense(W1, B1), net.relu(), net.dense(W2, B2)]
HEAD_SCORE, HEAD_GRADIENT = net.score(HEAD, 0), net.score_gradient(HEAD, 0)


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def normal():
    return np.random.default_rng(1).standard_normal


def stem(x):
    return net.forward(STEM, x)[-1]


def jax_stem(x):
    dimensions = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(
        x[None], jnp.asarray(KERNEL, x.dtype), (1, 1), "SAME", dimension_numbers=dimensions
    )
    return jax.nn.relu(y[0] + jnp.asarray(BIAS, x.dtype)[None, None])


def jax_head(a):
    w1, b1, w2, b2 = (jnp.asarray(v, a.dtype) for v in (W1, B1, W2, B2))
    return (jax.nn.relu(a.transpose(2, 0, 1).reshape(-1) @ w1 + b1) @ w2 + b2)[0]


def score(x):
    """Convolution, ReLU, the tag "a", then two dense layers with a ReLU between them."""
    return jax_head(jf.tag(jax_stem(x), "a"))


def identity_score(a):
    return jax_head(jf.tag(a, "a"))


def terms(x=X, x0=X0, of=score, **options):
    explain = jf.afmi_terms(of, "a", reference=x0, size=None, **options)
    return jax.tree.map(np.asarray, jax.jit(explain)(x, key=KEY))


def close(got, expected, atol=1e-10):
    np.testing.assert_allclose(got, expected, rtol=0, atol=atol)


# Against the twin


def _orders(count):
    """Any one of the permutations, or pairs of one and its reverse, that can be drawn."""
    orders = list(itertools.permutations(range(K)))
    return [[o] if count == 1 else [o, o[::-1]] for o in orders]


MULTIPLIERS = {
    "path": (multipliers.path(5), [twin.path(5)]),
    "path_input": (multipliers.path_input(5), [twin.path_input(5, stem, X, X0)]),
    "rescale": (multipliers.rescale(), [twin.rescale(HEAD, np.ones(1))]),
    "gradient": (multipliers.gradient(), [twin.gradient]),
    "trapezoid": (multipliers.trapezoid(), [twin.trapezoid]),
    "ablation": (multipliers.ablation(), [twin.ablation()]),
    "insertion": (multipliers.insertion(), [twin.insertion()]),
    "shapley 1": (multipliers.shapley(1), [twin.shapley(o) for o in _orders(1)]),
    "shapley 2": (multipliers.shapley(2), [twin.shapley(o) for o in _orders(2)]),
    "ablation halves": (multipliers.ablation(halves=True), [twin.ablation(True)]),
    "insertion halves": (multipliers.insertion(halves=True), [twin.insertion(True)]),
}
PER_MAP = ("ablation", "insertion", "shapley 1", "shapley 2")
FITS = {
    name: ("ratio", "proportional", "contribution")
    if name in PER_MAP
    else tuple(n for n in reductions.NAMED if n != "mean" or "halves" not in name)
    for name in MULTIPLIERS
}
every_multiplier = pytest.mark.parametrize("name", MULTIPLIERS)


def twin_terms(name, reduction, contribution=None, x0=X0, **options):
    """The twin's result; for drawn orders, of those that give this contribution."""
    results = [
        twin.afmi(
            stem(X),
            stem(x0),
            HEAD_SCORE,
            m,
            getattr(twin, reduction),
            grad=HEAD_GRADIENT,
            **options,
        )
        for m in MULTIPLIERS[name][1]
    ]
    return min(results, key=lambda r: np.abs(r.contribution - contribution).sum())


@every_multiplier
def test_t16_every_pair_that_fits_equals_the_twin(name):
    def every(x):
        return {
            r: jf.afmi_terms(score, "a", reference=X0, multiplier=MULTIPLIERS[name][0], reduce=r)(
                x, key=KEY
            )
            for r in FITS[name]
        }

    atol = 1e-8 if name == "path_input" else 1e-10  # that twin takes finite differences
    for reduction, got in jax.jit(every)(X).items():
        expected = twin_terms(name, reduction, got.contribution)
        importance = expected.fmi
        if reduction == "none":  # no number per map: the library's stand-in is that of absmean
            importance = twin_terms(name, "absmean", got.contribution).fmi
        close(got.map, expected.map, atol)
        close(got.heatmap, expected.map, atol)  # the layer has the size of the image
        close(got.fmi, importance, atol)
        close(got.contribution, expected.contribution, atol)
        close(got.score, expected.f)
        close(got.reference_score, expected.f0)
        close(got.residual, expected.residual, 5 * atol)
        close(got.dropped, expected.dropped, atol)
        close(got.leak, 0)
        assert got.kept.all()
        assert not got.spread.any()


@every_multiplier
def test_t16_the_other_pairs_raise_and_say_why(name):
    why = "zeros" if "halves" in name else "ratio, proportional and contribution do, or halves=True"
    for reduction in set(reductions.NAMED) - set(FITS[name]):
        with pytest.raises(ValueError, match=f"'{reduction}' does not fit .* {why}"):
            terms(multiplier=MULTIPLIERS[name][0], reduce=reduction)


@pytest.mark.parametrize(("name", "reduction"), [("path", "signed"), ("ablation", "ratio")])
@pytest.mark.parametrize("relevance", [0.0, 0.3, 0.9])
def test_relevance_equals_the_twin(name, reduction, relevance):
    got = terms(multiplier=MULTIPLIERS[name][0], reduce=reduction, relevance=relevance, chunk=2)
    expected = twin_terms(name, reduction, got.contribution, relevance=relevance)
    np.testing.assert_array_equal(got.kept, expected.kept)
    assert got.kept.all() == (relevance == 0)
    close(got.map, expected.map)
    close(got.dropped, expected.dropped)
    close(got.residual, expected.residual)


def test_several_references_are_averaged(normal):
    x0s = normal((3, H, W, C))
    a0s = np.array([stem(x0) for x0 in x0s])
    m, c, spread = twin.over_references(
        stem(X), a0s, HEAD_SCORE, twin.path(5), twin.signed, grad=HEAD_GRADIENT
    )
    drawn = references.Random(lambda key, x: jnp.asarray(x0s))
    at_layer = references.AtLayer(lambda a: jnp.asarray(a0s))
    for reference in (x0s, lambda x: jnp.asarray(x0s), drawn, at_layer):
        got = terms(x0=reference, multiplier=multipliers.path(5))
        close(got.map, m)
        close(got.contribution, c)
        close(got.spread, spread)
        close(got.residual, got.score - got.reference_score - m.sum())
    alone = [terms(x0=x0, relevance=0.3).kept for x0 in x0s]
    np.testing.assert_array_equal(terms(x0=x0s, relevance=0.3).kept, np.all(alone, 0))


def test_references_at_the_layer(normal):
    a, vector = stem(X), normal(K)
    for reference, a0 in (
        (references.zero_activation, 0 * a),
        (references.constant_activation(), 0 * a + a.mean((0, 1))),
        (references.constant_activation(vector), 0 * a + vector),
    ):
        got = terms(x0=reference, multiplier="trapezoid")
        expected = twin.afmi(a, a0, HEAD_SCORE, twin.trapezoid, grad=HEAD_GRADIENT)
        close(got.map, expected.map)
        close(got.reference_score, expected.f0)
        assert got.leak == 0


# Laws


def test_t1_on_a_pooled_linear_head_all_settings_agree(normal):
    a, a0 = normal((2, H, W, K))
    w = normal(K)
    expected = (a - a0) @ w / (H * W)
    sensible = ("mean", "ratio", "signed", "none")

    def every(a):
        return [
            jf.afmi(pooled_score(w), "a", reference=a0, multiplier=MULTIPLIERS[name][0], reduce=r)(
                a, key=KEY
            )
            for name in MULTIPLIERS
            for r in sensible
            if r in FITS[name]
        ]

    maps = jax.jit(every)(a)
    assert len(maps) == 5 * 4 + 4 + 2 * 3
    for m in maps:
        close(m, expected)


def test_t2_path_is_complete_up_to_quadrature(normal):
    """On average over pairs; for one pair neither 1 % nor the fall with the steps is certain."""
    a, a0 = normal((2, 20, H, W, K))

    def gap(steps):
        def one(a, a0):
            m = multipliers.path(steps)
            found = jf.afmi_terms(identity_score, "a", reference=a0, multiplier=m)(a)
            return jnp.abs(found.residual), jnp.abs(found.score - found.reference_score)

        return jnp.mean(jnp.stack(jax.vmap(one)(a, a0)), 1)

    gaps = jax.jit(lambda: [gap(n) for n in (1, 4, 16, 64)])()
    residuals = [float(r) for r, _ in gaps]
    assert residuals == sorted(residuals, reverse=True)
    assert residuals[-1] < 1e-2 * gaps[-1][1]


@pytest.mark.parametrize("multiplier", [multipliers.path(1), multipliers.trapezoid()])
@pytest.mark.parametrize("reduction", ["signed", "none", "proportional", "ratio"])
def test_t2_one_midpoint_is_exact_for_a_quadratic(multiplier, reduction, normal):
    q, w = normal((2, H, W, C))

    def quadratic(a):
        return (q * jf.tag(a, "a") ** 2 + w * a).sum()

    got = terms(of=quadratic, multiplier=multiplier, reduce=reduction, allow_bypass=True)
    close(got.contribution.sum(), ((q * (X + X0)) * (X - X0)).sum(), 1e-10)


@pytest.mark.parametrize("name", ["rescale", "shapley 1", "shapley 2"])
def test_t3_rescale_and_shapley_are_complete(name):
    got = terms(multiplier=MULTIPLIERS[name][0], reduce="proportional")
    assert abs(got.score - got.reference_score) > 0.1
    close(got.residual, 0, 1e-13)


def test_t4_what_mean_loses_is_a_covariance():
    a, a0 = stem(X), stem(X0)
    m, d = twin.path(5)(a, a0, HEAD_SCORE, HEAD_GRADIENT).value, a - a0
    covariance = sum(
        np.cov(m[..., k].ravel(), d[..., k].ravel(), bias=True)[0, 1] for k in range(K)
    )
    options = {"multiplier": multipliers.path(5)}
    lost = terms(reduce="none", **options).map.sum() - terms(reduce="mean", **options).map.sum()
    close(lost, H * W * covariance)


def test_t5_signed_stays_in_the_range_of_the_multiplier():
    m = twin.path(5)(stem(X), stem(X0), HEAD_SCORE, HEAD_GRADIENT).value
    fmi = terms(multiplier=multipliers.path(5)).fmi
    assert fmi.shape == (2, K)
    assert (fmi >= m.min((0, 1)) - 1e-12).all()
    assert (fmi <= m.max((0, 1)) + 1e-12).all()


def test_t5_signed_is_ratio_and_proportional_where_the_difference_has_one_sign(normal):
    a0 = normal((H, W, K))
    a = a0 + np.abs(normal((H, W, K)))
    of = {r: terms(a, a0, identity_score, reduce=r) for r in ("signed", "ratio", "proportional")}
    for other in ("ratio", "proportional"):
        close(of["signed"].map, of[other].map)
        close(of["signed"].fmi, np.stack([of[other].fmi, 0 * of[other].fmi]))  # no half falls


@every_multiplier
def test_t6_no_difference_no_importance(name):
    def every(x):
        found = [
            jf.afmi_terms(
                score, "a", reference=X, multiplier=MULTIPLIERS[name][0], reduce=r, relevance=0.1
            )(x, key=KEY)
            for r in FITS[name]
        ]
        return [t._replace(score=0, reference_score=0, kept=0) for t in found]

    with jax.debug_nans(True):
        found = jax.jit(every)(X)
    for value in jax.tree.leaves(found):
        close(value, 0, 1e-12)  # a batch of heads may round otherwise than one head


@pytest.mark.parametrize("reduction", reductions.NAMED)
def test_t6_an_unchanged_map_has_no_importance_and_leaves_the_others_alone(reduction, normal):
    a, a0 = normal((2, H, W, K))
    same = a0.copy()
    same[..., 1] = a[..., 1]
    of = pooled_score(normal(K))
    before, after = (terms(a, r, of, reduce=reduction) for r in (a0, same))
    assert not after.fmi[..., 1].any()
    assert after.contribution[1] == 0
    close(after.fmi[..., [0, 2]], before.fmi[..., [0, 2]])


@pytest.mark.parametrize("name", ["path", "rescale", "shapley 2"])
def test_t7_swapping_image_and_reference_changes_the_sign(name):
    options = {"multiplier": MULTIPLIERS[name][0], "reduce": "proportional"}
    there, back = terms(X, X0, **options), terms(X0, X, **options)
    close(there.contribution, -back.contribution)
    close(there.map, -back.map)


@pytest.mark.parametrize("halves", [False, True])
def test_t7_ablation_backwards_is_insertion(halves):
    removed = terms(X0, X, multiplier=multipliers.ablation(halves), reduce="ratio").contribution
    put_in = terms(X, X0, multiplier=multipliers.insertion(halves), reduce="ratio").contribution
    close(removed, -put_in)


@pytest.mark.parametrize(
    ("reduction", "method"),
    [("mean", jf.grad_cam), ("none", jf.hires_cam)],
    ids=["grad_cam", "hires_cam"],
)
def test_t8_grad_cam_and_hires_cam_are_settings(reduction, method, normal):
    def of(x):
        return score(x[::2, ::2])

    options = {"reference": "zero_activation", "multiplier": "gradient", "reduce": reduction}
    every = (
        jf.afmi_terms(of, "a", **options),
        method(of, "a", relu=False),
        method(of, "a", relu=False, size=None),
        method(of, "a"),
    )
    x = normal((2 * H, 2 * W, C))
    explain = jax.jit(lambda x: [f(x) for f in every])
    got, signed, raw, expected = explain(x)
    close(got.heatmap, signed)
    close(got.map, raw)
    close(jf.heatmap.resize(jax.nn.relu(got.map), x.shape[:2]), expected)
    assert np.abs(jax.nn.relu(got.heatmap) - expected).max() > 1e-3  # the other order differs


def test_path_without_maps_is_layer_integrated_gradients():
    a, a0 = stem(X), stem(X0)
    ways = [a0 + t * (a - a0) for t in (np.arange(9) + 0.5) / 9]
    expected = (np.mean([HEAD_GRADIENT(way) for way in ways], 0) * (a - a0)).sum(-1)
    close(terms(multiplier=multipliers.path(9), reduce="none").map, expected)


@pytest.mark.parametrize("name", ["path", "rescale", "insertion halves", "shapley 2"])
def test_t9_a_map_that_the_head_ignores(name):
    seen = np.arange(K) != 1

    def ignoring(x):
        return jax_head(jf.tag(jax_stem(x), "a") * seen[None, None])

    for reduction in {"ratio", "signed"} & set(FITS[name]):
        got = terms(of=ignoring, multiplier=MULTIPLIERS[name][0], reduce=reduction)
        close(got.contribution[1], 0, 1e-14)
        close(got.fmi[..., 1], 0, 1e-14)
        assert np.abs(got.contribution[[0, 2]]).min() > 0


@pytest.mark.parametrize("name", ["path", "rescale", "ablation"])
def test_t10_the_order_of_the_maps_does_not_matter(name):
    order = np.array([2, 0, 1])

    def permuted(x):
        return jax_head(jf.tag(jax_stem(x)[..., order], "a")[..., np.argsort(order)])

    options = {"multiplier": MULTIPLIERS[name][0], "reduce": "ratio"}
    plain, got = terms(**options), terms(of=permuted, **options)
    close(got.map, plain.map)
    close(got.fmi, plain.fmi[..., order])


def test_t10_a_mirrored_activation_has_the_mirrored_map_on_a_pooled_head(normal):
    a, a0 = normal((2, H, W, K))
    w1, w2 = normal((K, 6)), normal(6)

    def pooled(a):
        return jax.nn.relu(jf.tag(a, "a").mean((0, 1)) @ w1) @ w2

    close(terms(a[:, ::-1], a0[:, ::-1], pooled).map, terms(a, a0, pooled).map[:, ::-1])


@pytest.mark.parametrize("name", ["path", "path_input", "rescale", "ablation", "shapley 1"])
def test_t12_the_map_is_linear_in_the_score(name):
    options = {"multiplier": MULTIPLIERS[name][0], "reduce": "ratio"}
    plain, got = terms(**options), terms(of=lambda x: 7 - 3 * score(x), **options)
    close(got.map, -3 * plain.map)
    close(got.residual, -3 * plain.residual)


def test_t15_halves_on_a_pooled_linear_head_are_the_gradient(normal):
    a, a0 = normal((2, H, W, K))
    of = pooled_score(normal(K))
    for reduction in ("signed", "ratio", "none"):
        expected = terms(a, a0, of, multiplier="gradient", reduce=reduction)
        for m in (multipliers.ablation(halves=True), multipliers.insertion(halves=True)):
            got = terms(a, a0, of, multiplier=m, reduce=reduction)
            close(got.map, expected.map)
            close(got.fmi, expected.fmi)


@pytest.mark.parametrize(
    ("multiplier", "total"),
    [("gradient", 0), ("path", 1), ("rescale", 1), ("ablation", 1), ("insertion", 1)],
)
def test_s1_saturation(multiplier, total):
    """F = 1 - relu(1 - mean a): flat at a = 2, although it rose by 1 on the way from 0."""

    def saturated(a):
        return 1 - jax.nn.relu(1 - jf.tag(a, "a").mean())

    got = terms(np.full((2, 2, 1), 2.0), 0.0, saturated, multiplier=multiplier, reduce="ratio")
    close(got.map.sum(), total)


def test_float32_is_float64_up_to_rounding():
    wide = terms()
    with jax.enable_x64(False):
        narrow = terms(X.astype(np.float32), X0.astype(np.float32))
    assert narrow.map.dtype == np.float32
    close(narrow.map, wide.map, 1e-5)


# Bypasses of the layer


def behind(x):
    return score(x) + 3 * x.mean()


def one_branch(x):
    return jax_head(jf.tag(jax_stem(x), "a") + x.sum(-1, keepdims=True))


def dead(x):
    """A way around the layer that has no gradient at X, and carries something at X0."""
    return score(x) + jax.nn.relu(jnp.where(X[0, 0, 0] < X0[0, 0, 0], 1, -1) * (x - X)[0, 0, 0])


@pytest.mark.parametrize("of", [behind, one_branch, dead])
@pytest.mark.parametrize("method", [jf.afmi, jf.afmi_terms])
def test_t13_a_bypass_raises_at_trace_time_unless_it_is_allowed(of, method):
    for transform in (lambda f: f, jax.vmap):
        x = jnp.asarray(X)[None] if transform is jax.vmap else jnp.asarray(X)
        with pytest.raises(ValueError, match=r"around layer 'a'.*allow_bypass=True"):
            jax.eval_shape(transform(method(of, "a")), x)
    leak = of(X0) - jf.edit(of, {"a": lambda a: jnp.asarray(stem(X0))})(X)
    got = terms(of=of, allow_bypass=True, multiplier="gradient")
    close(got.leak, -leak)
    assert abs(got.leak) > 0.1


def test_t13_a_residual_sum_is_no_bypass():
    def residual(x):
        x = jax_stem(x)
        return jax_head(jf.tag(x + jax.jit(jax.nn.relu)(x @ np.eye(K)), "a"))

    assert terms(of=residual, multiplier="gradient").leak == 0
    ones_like = jnp.ones_like  # uses the shape of x alone
    assert terms(of=lambda x: score(x) + ones_like(x).sum(), multiplier="gradient").leak == 0


# A shared reference


def test_t14_a_shared_reference_runs_through_the_stem_once():
    def apply(kernel, x):
        y = jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jf.tag(jax.nn.relu(y), "a").mean((1, 2))

    def explain(kernel, x, label, **options):
        return jf.afmi(jf.class_score((apply, kernel)), "a", **options)(x, label)

    def convolutions(**options):
        batch = jax.vmap(lambda *args: explain(*args, **options), (None, 0, 0))
        x, labels = jnp.zeros((7, 6, 5, C), jnp.float32), jnp.zeros(7, int)
        program = jax.jit(batch).lower(jnp.asarray(KERNEL, jnp.float32), x, labels).compile()
        return sorted(re.findall(r"= f32\[([\d,]+)\]\S* convolution\(", program.as_text()))

    assert convolutions(reference=references.black(0.5, 0.2)) == ["1,6,5,3", "7,6,5,3"]
    assert convolutions(reference=jnp.ones((6, 5, C))) == ["1,6,5,3", "7,6,5,3"]
    assert convolutions(reference="zero_activation") == ["7,6,5,3"]
    assert convolutions(reference=references.blur(1.0)) == ["7,6,5,3", "7,6,5,3"]


# Names and errors


def test_names_stand_for_functions():
    by_name = terms(x0="constant_activation", multiplier="path", reduce="proportional")
    reference, multiplier = references.constant_activation(), multipliers.path(32)
    by_function = terms(x0=reference, multiplier=multiplier, reduce=reductions.proportional)
    np.testing.assert_array_equal(by_name.map, by_function.map)


def test_options_of_ones_own():
    def half(view):
        return multipliers.PerElement(jnp.full_like(view.a, 0.5))

    def total(multiplied, d, a):
        return d.sum((0, 1), keepdims=True), multiplied.m * d

    got = terms(multiplier=half, reduce=total)
    close(got.map, 0.5 * (stem(X) - stem(X0)).sum(-1))
    close(got.fmi, (stem(X) - stem(X0)).sum((0, 1)))


def vector(x):
    return jf.tag(x.mean((0, 1)), "a").sum()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"multiplier": "pathh"}, r"no multiplier .*'pathh' \(did you mean 'path'\?\); .*shapley"),
        ({"reduce": "sign"}, r"no reduc.*'sign' \(did you mean 'signed'\?\); there are signed, "),
        (
            {"x0": "blurred"},
            r"no reference .*'blurred' \(did you mean 'blur'\?\); there are fill, ",
        ),
        ({"x0": "xyz"}, r"no reference .*'xyz'; there are fill, "),
        ({"x0": np.zeros((H, W + 1, C))}, r"shape \(4, 6, 2\); .* \(4, 5, 2\), or several"),
        ({"x0": np.zeros((1, 2, H, W, C))}, r"the reference image has shape \(1, 2, 4, 5, 2\)"),
        ({"x0": references.AtLayer(lambda a: a[1:])}, r"reference activation has shape \(3, 5, 3"),
        ({"x0": "zero_activation", "multiplier": "path_input"}, "needs a reference image"),
        ({"of": vector}, r"layer 'a' has shape \(2,\); expected an activation \[h, w, K\]"),
        ({"of": lambda x: x.sum()}, "no tag 'a'"),
        ({"of": lambda x: jf.tag(2 * x, "b").sum()}, r"no tag 'a'; there are 'b' \(4, 5, 2\)"),
        ({"chunk": 0}, "at least 1; got 0"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        terms(**options)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"multiplier": "shapley", "reduce": "ratio"}, "shapley is random"),
        ({"reference": references.uniform(0.0, 1.0)}, "this reference is random"),
    ],
)
def test_random_options_need_a_key(options, what):
    explain = jf.afmi(score, "a", **options)
    with pytest.raises(ValueError, match=rf"{what}: .* key=jax\.random\.key\(seed\)"):
        explain(X)
    assert jax.eval_shape(explain, X, key=KEY).shape == (H, W)
