"""FG-CAM: the authors' arrays, the twin on residual nets, what it conserves, and bad input."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_fg_cam as twin
import reference_net as net
from layer_nets import residual_net
from layers_in_jax import network
from nets import golden_model, images, tiny

import jaxfmi as jf
from jaxfmi.cam import WEIGHTS
from jaxfmi.fg_cam import denoised
from jaxfmi.pending import Settings
from jaxfmi.relevance import transport
from jaxfmi.rules import every, z_box, z_plus

T = 2
X = np.random.default_rng(0).standard_normal((13, 10, 3))
PLACES = ("last", "block2", "block1", "pool", "input")


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def close(got, expected, rtol=1e-12):
    """Within rtol of the largest expected value."""
    scale = np.abs(np.asarray(expected)).max()
    np.testing.assert_allclose(got, expected, rtol=0, atol=rtol * scale)


@pytest.fixture(scope="module")
def arrays(shared):
    return net.golden()


@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("denoise", [0, 1])
def test_maps_are_the_authors(arrays, denoise, wide):
    kind = jnp.float64 if wide else jnp.float32
    model = jax.tree.map(
        lambda a: a.astype(kind) if hasattr(a, "astype") else a, golden_model(arrays)
    )
    at = {12: "12", 6: "6", 2: "2", -1: "input"} | ({} if denoise else {13: "13"})
    explain = jf.fg_cam(
        jf.class_score(model), "13", at=list(at.values()), denoise=0.1 * denoise, size=None
    )
    found = jax.jit(explain)(jnp.asarray(arrays["x_nhwc"][0], kind), T)
    for t, got in zip(at, found, strict=True):
        assert got.dtype == kind
        close(
            got, arrays[f"fgcam/den{denoise}_t{t}"][0], 1e-12 if wide else 5e-6 + 1.5e-5 * denoise
        )


def score_of(layers):
    return jf.class_score(lambda x: network(layers)(x[0])[None])


@pytest.mark.parametrize("options", [{}, {"norm": "merge"}, {"norm": "merge", "bias": True}])
@pytest.mark.parametrize("split", ["positive", "proportional"])
def test_maps_are_the_twins(split, options):
    layers = residual_net(signed=True)
    components = twin.grad_cam_components(layers, X, T, "last")
    explain = jf.fg_cam(score_of(layers), "last", at=PLACES, split=split, size=None, **options)
    bn = {0: "pass", 1: "fold", 2: "fold_bias"}[len(options)]
    for place, got in zip(PLACES, jax.jit(explain)(X, T), strict=True):
        at = None if place == "input" else place
        to_last = twin.until(layers, "last")
        expected = twin.fg_cam(to_last, X, components, at, bn=bn, residual=split)
        close(got, components.sum(-1) if place == "last" else expected, 1e-10)


@pytest.mark.parametrize("base", ["grad_cam", "hires_cam", "layer_cam", "score_cam"])
def test_the_sum_is_that_of_the_cam(base):
    layers = residual_net(bias=False)
    score = (
        score_of(layers)
        if base != "score_cam"
        else jf.class_score(lambda x: network(layers)(x[0])[None], jf.probability)
    )
    maps = jax.jit(jf.fg_cam(score, "last", at=PLACES, base=base, size=None))(X, T)
    if base != "score_cam":
        close(maps[0], getattr(jf, base)(score, "last", relu=False, size=None)(X, T))
    else:
        assert maps[0].min() >= 0
        assert maps[-1].min() >= -1e-12
    if base == "hires_cam":  # the head is linear and has no bias
        close(maps[0].sum(), score(X, T))
    for heatmap in maps:
        close(heatmap.sum(), maps[0].sum(), 1e-13)


def test_exact_contributions_are_the_composite_on_a_net_without_biases():
    """HiRes components of a linear head: LRP-0 behind the layer, z+ before it."""
    layers = residual_net(bias=False)
    score = score_of(layers)
    rules = jf.rules

    def composite(layer):
        if layer.dense:
            return rules.epsilon(0.0)
        return rules.z_box(eps=0.0) if layer.first else rules.z_plus(0.0)

    got = jax.jit(jf.fg_cam(score, "last", base="hires_cam", split="proportional"))(X, T)
    # The gate's own branch is dense, but the signal takes all of its relevance.
    close(got, jax.jit(jf.lrp(score, composite, bias=False))(X, T), 1e-10)


@pytest.mark.parametrize("signed", [False, True])
def test_folding_is_passing_where_scales_are_positive(signed):
    score = score_of(residual_net(signed=signed))
    passed, merged = (jax.jit(jf.fg_cam(score, "last", norm=n))(X, T) for n in ("pass", "merge"))
    apart = np.abs(merged - passed).max() / np.abs(passed).max()
    assert apart > 1e-2 if signed else apart < 1e-10


def test_maps_are_linear_in_the_components():
    score = score_of(residual_net())

    def explain(weigh):
        return jax.jit(jf.fg_cam(score, "last", base=weigh))(X, T)

    one, other = (WEIGHTS[name] for name in ("grad_cam", "hires_cam"))
    both = explain(lambda a, g: 2 * one(a, g) - 3 * other(a, g))
    close(both, 2 * explain(one) - 3 * explain(other), 1e-10)


def test_relevance_never_grows_on_its_way():
    """Signed components: sums over positions and channels of absolute values."""
    f = network(twin.until(residual_net(), "last"))
    composite = every(z_plus(0.0), first=z_box(eps=0.0))
    places = list(PLACES[1:])
    settings = Settings(composite, "pass", False, "positive")

    def explain(x):
        a, pull = transport(f, x, places, settings, until="last")
        components = jnp.where(a == 0, 0, np.random.default_rng(1).standard_normal(a.shape))
        found = pull(jf.heatmap.divide(components, a))
        return [jnp.abs(r).sum() for r in (components, *(found[p] for p in places))]

    sums = [float(each) for each in jax.jit(explain)(jnp.asarray(X))]
    assert all(low <= high * (1 + 1e-12) for high, low in pairwise(sums))


def test_a_linen_network_has_the_maps_of_the_same_one_in_nnx():
    x, at = images(1)[0], ("block", "down", "stem", "input")
    for denoise in (0.0, 0.1):
        ours, theirs = (
            jax.jit(jf.fg_cam(jf.class_score(tiny(kind)), at=at, denoise=denoise, size=None))(x, 1)
            for kind in ("linen", "nnx")
        )
        for one, other in zip(ours, theirs, strict=True):
            assert one.ndim == 2
            close(one, other, 1e-4)
        if not denoise:
            for one in ours:
                close(one.sum(), ours[0].sum(), 1e-6)


def test_several_classes_share_one_transport():
    score = score_of(residual_net())
    explain = jf.fg_cam(score, "last")
    labels = jnp.arange(5)
    every = jax.vmap(explain, (None, 0))
    got = jax.jit(every)(X, labels)
    for label in (0, 3):
        close(got[label], explain(X, label), 1e-9)
    one, five = (_convolutions_of_one(f, X, l) for f, l in ((explain, 0), (every, labels)))
    assert one - five == 8  # only what is pulled back runs for each class, once per layer


def _convolutions_of_one(f, *args):
    """How many convolutions have a batch of one."""
    text = str(jax.make_jaxpr(f)(*args))
    return sum("conv_general_dilated" in line and ":f64[1," in line for line in text.splitlines())


def test_a_batch_has_its_own_bounds():
    score, x = (
        jf.class_score(tiny("nnx")),
        images(3) * jnp.array([1.0, 5.0, 0.1])[:, None, None, None],
    )
    explain = jf.fg_cam(score, "block")
    got = jax.jit(jax.vmap(explain))(x, jnp.array([0, 1, 2]))
    for i in range(3):
        close(got[i], explain(x[i], i), 1e-4)


@pytest.mark.parametrize("shape", [(7, 7, 24), (2, 3, 40), (5, 5, 4)])
@pytest.mark.parametrize("restore", [False, True])
def test_denoising_is_the_truncated_svd(shape, restore):
    components = np.random.default_rng(1).standard_normal(shape)
    close(denoised(jnp.asarray(components), 0.2, restore), twin.denoise(components, 0.2, restore))
    assert (
        np.linalg.matrix_rank(denoised(jnp.asarray(components), 0.01).reshape(-1, shape[-1])) == 1
    )


@pytest.mark.parametrize("denoise", [0.0, 0.1])
def test_nothing_to_see_is_zero_and_finite(denoise):
    score = jf.class_score(tiny("nnx"))
    with jax.debug_nans(True):
        for x in (jnp.zeros((15, 11, 3)), jnp.ones((15, 11, 3))):
            for base in ("grad_cam", "score_cam"):
                got = jf.fg_cam(score, "block", base=base, denoise=denoise)(x, 1)
                assert np.isfinite(got).all()
        dead = jf.fg_cam(lambda x: jf.tag(jax.nn.relu(x - 9), "a").sum(), "a", denoise=denoise)
        assert not dead(jnp.ones((5, 4, 3))).any()


def test_positive_components_give_positive_maps():
    got = jf.fg_cam(score_of(residual_net()), "last", positive=True)(X, T)
    assert got.min() >= -1e-12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"at": None}, "at is a tag, 'input', or several of these; got None"),
        ({"at": []}, r"or several of these; got \[\]"),
        ({"bounds": 3.0}, "bounds are two, low and high"),
        ({"denoise": "0.1"}, "denoise is a share of the rank, 0 to 1; got 0.1"),
        ({"base": "grad"}, "no base 'grad'; there are grad_cam, "),
        ({"denoise": 2.0}, "a share of the rank"),
        ({"norm": "gradient"}, "norm is one of merge, pass; got 'gradient'"),
        ({"split": "none"}, "split is one of"),
        ({"at": "blok"}, r"no tag 'blok' \(did you mean 'block'"),
        ({"at": "pooled"}, "bypass 'pooled'"),
        ({"layer": ("stem", "down")}, "explains one layer"),
    ],
)
def test_bad_options(options, message):
    options = {"layer": "block"} | options
    with pytest.raises(ValueError, match=message):
        jf.fg_cam(jf.class_score(tiny("nnx")), **options)(images(1)[0], 1)
