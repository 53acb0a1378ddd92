"""SISE and Ada-SISE: the golden model, the laws of the specification, and its edge cases."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_sise as ref
from flax import nnx
from nets import g3_model, images, tiny

import jaxfmi as jf
from jaxfmi import fusion, models, tag
from jaxfmi.bilinear import resize
from jaxfmi.masks import areas
from jaxfmi.modules import functional

TAPS = ("tap0", "tap1", "tap2")
KEPT = [[0, 1, 2, 5, 6, 7], [2, 3, 7, 8], [2, 3, 4, 9, 10, 11]]
SIGMOID = {"link": jax.nn.sigmoid}


def close(got, expected, atol=1e-12):
    np.testing.assert_allclose(got, expected, rtol=0, atol=atol)


def printed(got, expected, digits):
    """Equal to the last printed digit."""
    close(got, expected, 0.51 * 10.0**-digits)


def places(terms):
    return [np.flatnonzero(layer.selected).tolist() for layer in terms.layers.values()]


def g3_score(of=jf.log_odds, scale=1.0):
    return jf.class_score(lambda x: scale * g3_model(x), of)


@functools.cache
def golden(x64=True, **options):
    """SISE's terms of class 4 of G3, by default of the log-odds and their sigmoid."""
    of = options.pop("of", jf.log_odds)
    with jax.enable_x64(x64):
        explain = jax.jit(jf.sise_terms(g3_score(of), TAPS, chunk=7, **options))
        kind = np.float64 if x64 else np.float32
        fast = explain.lower(jnp.asarray(ref.g3_image(), kind), 4).compile()
        return jax.tree.map(np.asarray, fast(jnp.asarray(ref.g3_image(), kind), 4))


@functools.cache
def twin(**options):
    activations, gradients = ref.g3_taps(ref.g3_image())
    return ref.sise(activations, gradients, ref.g3_image(), ref.g3_score(), **options)


# The golden model


def test_selection_of_the_golden_model():
    terms = golden()
    assert places(terms) == KEPT
    assert places(golden(of=jf.probability, link=None)) == KEPT
    logit = [[1, 2, 6, 7], [2, 3, 7, 8, 11], [2, 3, 4, 5, 9, 10, 11, 12]]
    assert places(golden(of=jf.logit)) == logit
    assert [len(p) for p in places(golden(mu=0.5))] == [2, 4, 6]


def test_gradients_are_those_of_the_twin():
    terms = golden(of=jf.probability)
    for layer, g in zip(terms.layers.values(), ref.g3_taps(ref.g3_image())[1], strict=True):
        close(layer.gradients, g.mean((0, 1)), 1e-15)


def test_masks_and_their_weights():
    sums = [
        [250.663663, 232.841873, 163.815930, 169.786209, 203.183512, 175.036465],
        [86.592085, 104.500886, 181.058824, 74.538701],
        [79.157564, 271.524596, 468.366761, 167.916879, 451.430258, 475.321071],
    ]
    weights = [
        [0.31725992, 0.31823316, 0.31699224, 0.32091488, 0.31753430, 0.32253131],
        [0.31145268, 0.31551504, 0.31449606, 0.31804356],
        [0.30831865, 0.31003285, 0.31821433, 0.31255416, 0.31551968, 0.31370716],
    ]
    layers = golden().layers.values()
    with jax.enable_x64(True):
        for layer, expected, expected_weights in zip(layers, sums, weights, strict=True):
            printed(areas(layer.masks, (32, 32))[layer.selected], expected, 6)
            printed(layer.weights[layer.selected], expected_weights, 8)
            assert not layer.weights[~layer.selected].any()


def test_maps_of_the_layers():
    maps = [layer.heatmap for layer in golden().layers.values()]
    printed([m.mean() for m in maps], [0.397430240, 0.185911736, 0.218251240], 9)
    printed([m[13, 7] for m in maps], [0.439837853, 0.306175055, 0.162344000], 9)
    peaks = [np.unravel_index(m.argmax(), m.shape) for m in maps]
    assert [tuple(map(int, p)) for p in peaks] == [(31, 8), (2, 28), (0, 6)]
    thresholds = [layer.threshold for layer in golden().layers.values()]
    printed(thresholds, [0.398437500, 0.257812500, 0.355468750], 9)
    for m, layer in zip(maps, twin().layers, strict=True):
        close(m, layer.v)


def test_hard_fusion_of_the_golden_model():
    terms = golden()
    assert np.unravel_index(terms.raw.argmax(), (32, 32)) == (2, 14)
    printed(terms.raw.max(), 1.991672165, 9)
    assert (terms.heatmap > 0).sum() == 149
    printed(terms.heatmap.mean(), 0.052864431, 9)
    close(terms.heatmap, twin().map)


@pytest.mark.parametrize(
    ("options", "mean"),
    [
        ({"fusion": "soft"}, 0.024906499),
        ({"fusion": "simple"}, 0.085213745),
        ({"area": False}, 0.088232287),
        ({"of": jf.logit, "link": None}, 0.050827701),
        ({"mu": 0.5}, 0.051836783),
        ({"eps": 1e-8}, 0.052864427),
        ({"of": jf.probability, "link": None}, 0.052864431),
        ({"of": jf.log_odds, "link": jax.nn.sigmoid}, 0.052864431),
    ],
)
def test_options_on_the_golden_model(options, mean):
    printed(golden(**options).heatmap.mean(), mean, 9)


def test_simple_fusion_of_the_golden_model():
    raw = golden(fusion="simple").raw
    printed(raw.max(), 1.239577582, 9)
    assert np.unravel_index(raw.argmax(), (32, 32)) == (2, 14)


def test_ada_sise_on_the_golden_model():
    terms = golden(mu="otsu")
    assert places(terms) == [[1, 6], [3, 8], [3, 10]]
    least = [layer.least for layer in terms.layers.values()]
    printed(least, [0.463004439, 0.743992255, 0.721020103], 9)
    printed(terms.heatmap.mean(), 0.142133369, 9)
    assert (terms.heatmap > 0).sum() == 497
    printed(golden(mu="otsu", fusion="soft").heatmap.mean(), 0.036353839, 9)
    by_bytes = golden(mu="otsu-256")
    assert places(by_bytes) == [[1, 2, 6], [3, 7, 8], [3, 9, 10]]
    printed(by_bytes.heatmap.mean(), 0.104444468, 9)


def test_float32_on_the_golden_model():
    terms, wide = golden(x64=False), golden()
    assert places(terms) == KEPT
    assert terms.heatmap.dtype == np.float32
    for layer, other in zip(terms.layers.values(), wide.layers.values(), strict=True):
        close(layer.heatmap, other.heatmap, 1e-5)
    close(terms.heatmap, wide.heatmap, 1e-5)
    np.testing.assert_array_equal(terms.heatmap > 0, wide.heatmap > 0)
    close(golden(x64=False, fusion="soft").heatmap, golden(fusion="soft").heatmap, 1e-4)


@pytest.mark.parametrize(("scale", "label", "counts"), [(100, 0, [4, 7, 10]), (400, 4, [3, 6, 7])])
def test_log_odds_select_where_probabilities_saturate(scale, label, counts):
    x = jnp.asarray(ref.g3_image(), jnp.float32)

    def run(of, x):
        explain = jf.sise_terms(g3_score(of, scale), TAPS)
        return places(jax.jit(explain)(x, label))

    with jax.enable_x64(True):
        wide = run(jf.log_odds, jnp.asarray(x, float))
    assert run(jf.log_odds, x) == wide
    assert [len(p) for p in wide] == counts
    assert run(jf.probability, x) != wide


def test_the_functions_are_the_heatmaps_of_the_terms():
    with jax.enable_x64(True):
        x = jnp.asarray(ref.g3_image())
        for explain, mu in (
            (jf.sise(g3_score(), TAPS, mu=0.5), 0.5),
            (jf.ada_sise(g3_score(), TAPS), "otsu"),
            (jf.ada_sise(g3_score(), TAPS, bins=256), "otsu-256"),
        ):
            close(jax.jit(explain)(x, 4), golden(mu=mu).heatmap)


@pytest.mark.parametrize(
    ("mu", "gate"),
    [
        *((mu, "hard") for mu in (0.0, 0.3, 0.5, 0.9, "otsu", "otsu-256")),
        *(("otsu", "soft"), (0.0, "simple")),
    ],
)
def test_other_selections_come_from_one_table(mu, gate):
    with jax.enable_x64(True):
        again = jf.reselect(golden(), mu=mu, fusion=gate)
        expected = golden(mu=mu, **({} if gate == "hard" else {"fusion": gate}))
        assert places(again) == places(expected)
        close(again.heatmap, expected.heatmap)


def test_layers_stay_in_order_under_jit():
    """The "stem" comes before "block", whatever the alphabet says."""
    x, score = images(1)[0], jf.class_score(tiny("nnx"), jf.log_odds)
    terms = jax.jit(jf.sise_terms(score, fusion="soft"))(x, 1)
    assert list(terms.layers) == ["stem", "block"]
    close(jf.reselect(terms, fusion="soft").heatmap, terms.heatmap, 1e-6)


def test_kept_sets_are_nested():
    kept = [places(golden(mu=mu)) for mu in (0.0, 0.3, 0.5, 0.9)]
    for few, many in [*zip(kept[1:], kept[:-1], strict=True), (places(golden(mu="otsu")), kept[0])]:
        assert all(set(f) <= set(m) for f, m in zip(few, many, strict=True))


# Laws


@pytest.mark.parametrize("chunk", [1, 16, None])
def test_chunks_do_not_matter(chunk):
    explain = jf.sise(g3_score(), TAPS, chunk=chunk)
    x = jnp.asarray(ref.g3_image(), jnp.float32)
    close(jax.jit(explain)(x, 4), golden(x64=False).heatmap, 1e-6)


def test_a_batch_is_its_images():
    """Different classes and images select very different numbers of maps."""
    x = jnp.asarray(ref.g3_image(), jnp.float32)
    batch = jnp.stack([x, x[::-1], jnp.zeros_like(x), x.swapaxes(0, 1), 1 - x])
    labels = jnp.array([4, 0, 2, 1, 3])
    explain = jf.sise_terms(g3_score(), TAPS, chunk=8)
    together = jax.jit(jax.vmap(explain))(batch, labels)
    counts = sum(np.asarray(layer.selected).sum(1) for layer in together.layers.values())
    assert len(set(counts.tolist())) > 2
    for i in range(5):
        alone = jax.jit(explain)(batch[i], labels[i])
        close(together.heatmap[i], alone.heatmap, 1e-5)
        for layer, one in zip(together.layers.values(), alone.layers.values(), strict=True):
            np.testing.assert_array_equal(layer.selected[i], one.selected)
            close(layer.weights[i], one.weights, 1e-6)


@pytest.mark.parametrize(
    ("name", "gate"), [("hard", ref.hard()), ("soft", ref.soft), ("simple", ref.simple)]
)
def test_fusion_is_its_closed_form(name, gate):
    terms = golden(fusion=name)
    maps = [layer.heatmap for layer in terms.layers.values()]
    gates = [gate(v) for v in maps]
    close(terms.raw, sum(v * np.prod(gates[max(i, 1) :], axis=0) for i, v in enumerate(maps)))


def test_sums_of_masks_need_no_masks():
    with jax.enable_x64(True):
        for layer in golden().layers.values():
            dense = np.asarray(resize(jnp.asarray(layer.masks), (32, 32)))
            dense, weights = dense[layer.selected], layer.weights[layer.selected]
            total = (weights / (dense.sum((1, 2)) + 1e-6)) @ dense.reshape(len(weights), -1)
            expected = (total - total.min()) / np.ptp(total)
            close(layer.heatmap.ravel(), expected)


def permuted(order):
    """G3's tags with the channels of tap1 in another order; extra ones are constant 0.3."""

    def score(x, label):
        def shuffle(a):
            more = jnp.full((*a.shape[:-1], order.count(None)), 0.3, a.dtype)
            kept = jnp.array([k for k in order if k is not None])
            seen = tag(jnp.concatenate([a[..., kept], more], -1), "seen")
            return seen[..., jnp.argsort(kept)] + 0 * a

        model = jf.edit(lambda x: g3_model(x[None])[0], {"tap1": shuffle})
        return jf.log_odds(model(x), label)

    return score


@pytest.mark.parametrize("more", [0, 2])
@jax.enable_x64(True)
def test_order_and_constant_channels_do_not_matter(more):
    order = [*np.random.default_rng(0).permutation(12).tolist(), *[None] * more]
    explain = jf.sise(permuted(order), ("tap0", "seen", "tap2"), **SIGMOID)
    close(explain(jnp.asarray(ref.g3_image()), 4), golden().heatmap)


@jax.enable_x64(True)
def test_gradients_are_finite_differences():
    x, score = jnp.asarray(ref.g3_image()), g3_score()
    for name, layer in golden().layers.items():
        for k in (0, 3):
            step = jnp.zeros(len(layer.gradients)).at[k].set(1e-6)

            def at(sign, step=step, name=name):
                shifted = jf.edit(score, {name: lambda a: a + sign * step[None, None, None]})
                return shifted(x, 4)

            slope = (at(1) - at(-1)) / 2e-6 / layer.masks[0].size
            np.testing.assert_allclose(layer.gradients[k], slope, rtol=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_otsu_is_the_best_of_all_splits(seed):
    rng = np.random.default_rng(seed)
    values = rng.beta(*rng.uniform(0.3, 3, 2), 500)
    with jax.enable_x64(True):
        assert fusion.otsu(jnp.asarray(values)) == ref.otsu(values)
        v = jnp.asarray(values)
        close(fusion.soft(v, fusion.otsu(v)), ref.soft(values))


@pytest.mark.parametrize(
    ("values", "kept"),
    [
        ([0.2, 0.9, 1.0, 0.3], [1, 2]),
        ([-1.0, 0.5, -2.0], [1]),
        ([0.7, 0.7, -0.1, 0.7], [0, 1, 3]),
        ([-0.3, -0.2], []),
        ([0.0, 0.0], []),
    ],
)
def test_ada_sise_of_few_gradients(values, kept):
    """Equal ones are all kept, a single one is kept, and none where none is positive."""
    from jaxfmi.sise import _selection

    _, selected = _selection(jnp.array(values), "otsu")
    assert np.flatnonzero(selected).tolist() == kept
    assert np.flatnonzero(ref.adaptive()(np.array(values))).tolist() == kept


# Layers


def test_auto_is_the_rule():
    x = jnp.zeros((32, 32, 3))
    assert jf.sise_layers(g3_score(), x, 4) == [*TAPS, "features"]
    score = jf.class_score(tiny("nnx"))
    assert jf.sise_layers(score, images(1)[0], 0) == ["stem", "block"]


RESNET = "64@112 {}@56 {}@28 {}@14 {}@7"
VGG = "64@224 128@112 256@56 512@28 512@14"
DENSENET = "{}@112 {}@56 {}@28 {}@14 {}@7"
AUTO = {
    **dict.fromkeys([name for name in models.MODELS if name.startswith("vgg")], VGG),
    "resnet18": RESNET.format(64, 128, 256, 512),
    "resnet34": RESNET.format(64, 128, 256, 512),
    "resnet50": RESNET.format(256, 512, 1024, 2048),
    "resnet101": RESNET.format(256, 512, 1024, 2048),
    "resnet152": RESNET.format(256, 512, 1024, 2048),
    "densenet121": DENSENET.format(64, 128, 256, 512, 1024),
    "densenet161": DENSENET.format(96, 192, 384, 1056, 2208),
    "densenet169": DENSENET.format(64, 128, 256, 640, 1664),
    "densenet201": DENSENET.format(64, 128, 256, 896, 1920),
    "mobilenet_v1": "64@112 128@56 256@28 512@14 1024@7",
    "mobilenet_v2": "16@112 24@56 32@28 96@14 1280@7",
    "squeezenet1_0": "96@109 256@54 512@27 1000@13",
    "squeezenet1_1": "64@111 128@55 256@27 1000@13",
    **dict.fromkeys([n for n in models.MODELS if n.startswith("cifar")], "16@32 32@16 64@8"),
    "lfi_cam_demo": "32@32 64@16 72@8",
    "lfi_cam_resnet18": "64@224 64@112 128@56 256@28 512@14",
    "lfi_cam_resnet50": "64@224 256@112 512@56 1024@28 2048@14",
    "lfi_cam_vgg16_bn": VGG,
    "abn_resnet18": RESNET.format(64, 128, 256, 512),
    "abn_resnet50": RESNET.format(256, 512, 1024, 2048),
    **{
        f"{kind}_{name}": sizes
        for kind in ("lfi_cam", "abn")
        for names, sizes in (
            (("resnet8", "resnet20", "resnet32"), "16@32 32@16 64@8"),
            (("resnet44", "resnet56", "resnet110"), "64@32 128@16 256@8"),
            (("densenet100",), "108@32 150@16 342@8"),
        )
        for name in names
    },
}
SLOW = set("densenet161 densenet169 densenet201 resnet101 resnet152 cifar_resnet110".split()) | {
    f"{kind}_{name}"
    for kind in ("lfi_cam", "abn")
    for name in "resnet20 resnet32 resnet44 resnet50 resnet56 resnet110 densenet100".split()
}


def test_auto_is_specified_for_all():
    assert {*AUTO} == {*models.MODELS}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in AUTO]
)
def test_auto_is_the_specification_for_every_family(name):
    model = nnx.eval_shape(getattr(models, name))
    apply, params = functional(model)
    side = models.MODELS[name].preprocess.size[0]
    x = jnp.zeros((side, side, 3))

    def score(x, params):
        return apply(params, x[None])[0, 0]

    found = jf.tags(score, x, params)
    layers = jf.sise_layers(score, x, params)
    assert " ".join(f"{found[n][-1]}@{found[n][-2]}" for n in layers) == AUTO[name]


def test_a_run_outlasts_convolutions_without_padding_but_no_stride_or_upsampling():
    sizes = {"a": (20, 20), "b": (19, 19), "c": (18, 18), "d": (8, 8), "e": (4, 4), "f": (8, 8)}

    def score(x):
        tag(x, "image")
        for name, (h, w) in sizes.items():
            x = tag(x[:1, :1, :2] * jnp.ones((h, w, 2)), name)
        return tag(x.mean((0, 1), keepdims=True), "pooled").sum()

    assert jf.sise_layers(score, jnp.ones((20, 20, 3))) == ["c", "d", "e", "f"]


def test_layers_that_are_none():
    x = images(1)[0]
    score = jf.class_score(tiny("nnx"), jf.log_odds)
    with pytest.raises(ValueError, match=r"shallow to deep: expected \['stem', 'block'\]"):
        jf.sise(score, ("block", "stem"))(x, 0)
    with pytest.raises(ValueError, match="shallow to deep"):
        jf.sise(score, ("block", "block"))(x, 0)
    with pytest.raises(ValueError, match=r"no tag 'blok'.*did you mean 'block'"):
        jf.sise(score, ("stem", "blok"))(x, 0)
    with pytest.raises(ValueError, match="got none"):
        jf.sise(score, ())(x, 0)
    with pytest.raises(ValueError, match="has shape"):
        jf.sise(score, ("stem", "pooled"))(x, 0)
    with pytest.raises(ValueError, match="layers='auto' needs tagged activations"):
        jf.sise(lambda x: x.sum())(x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fusion": "medium"}, "no fusion 'medium'; there are hard, soft, simple"),
        ({"mu": -0.1}, "mu is a share in"),
        ({"mu": "half"}, "mu is a share in"),
        ({"link": "sigmoid"}, "link is a function of scores"),
        ({"chunk": 0}, "at least 1; got 0"),
    ],
)
def test_options_that_are_none(options, message):
    with pytest.raises(ValueError, match=message):
        jf.sise_terms(jf.class_score(tiny("nnx")), **options)(images(1)[0], 0)


def test_scores_that_are_none():
    with pytest.raises(ValueError, match="one number per image"):
        jf.sise(lambda x: tag(x * 2, "a").mean((0, 1)))(images(1)[0])
    with pytest.raises(ValueError, match="at least two classes"):
        jf.sise(jf.class_score(lambda x: tag(x, "a").mean((1, 2))[:, :1], jf.log_odds))(
            images(1)[0], 0
        )


def test_bins_that_are_none():
    with pytest.raises(ValueError, match="bins is None or 256, got 9"):
        jf.ada_sise(jf.class_score(tiny("nnx")), bins=9)


# Edge cases, with every NaN an error


def layered(signs):
    """A score whose layers l0, l1, ... have gradients of the given signs, all positions alike."""

    def score(x):
        total = 0.0
        for i, sign in enumerate(signs):
            x = tag(jax.nn.relu(x[:: 1 + (i > 0), :: 1 + (i > 0)]), f"l{i}")
            total = total + sign * x.mean()
        return total

    return score


@pytest.mark.parametrize(
    ("signs", "absent"),
    [
        ((-5, -1, 1), [True, True, False]),
        ((5, 1, -3), [False, True, True]),
        ((-1, -1, -1), [True, True, True]),
        ((1, 1, 1), [False, False, False]),
    ],
)
def test_absent_layers(signs, absent):
    x = jax.nn.relu(jnp.asarray(np.random.default_rng(1).standard_normal((16, 12, 2))))
    names = tuple(f"l{i}" for i in range(3))
    with jax.debug_nans(True):
        terms = jax.jit(jf.sise_terms(layered(signs), names))(x)
    assert [bool(layer.absent) for layer in terms.layers.values()] == absent
    assert bool(terms.absent) == all(absent)
    assert np.isfinite(terms.heatmap).all()
    if all(absent):
        assert not terms.heatmap.any()
    else:
        close((terms.heatmap.min(), terms.heatmap.max()), (0, 1), 1e-6)
        assert 1 - 1e-6 <= terms.raw.max() <= 3


@jax.enable_x64(True)
def test_an_absent_first_layer_keeps_its_place():
    maps = [jnp.asarray(layer.v) for layer in twin().layers]
    gates = [fusion.hard(v, fusion.otsu(v)) for v in maps]
    zero, one = jnp.zeros((32, 32)), jnp.ones((32, 32))
    gated = jf.heatmap.unit(fusion.cascade([zero, *maps[1:]], [one, *gates[1:]]))
    printed(gated.mean(), 0.064670820, 9)
    printed(jf.heatmap.unit(fusion.cascade(maps[1:], gates[1:])).mean(), 0.073448686, 9)


@pytest.mark.parametrize("value", [0.0, 0.5, -3.0])
@pytest.mark.parametrize("method", [jf.sise, jf.ada_sise])
def test_constant_images(method, value):
    with jax.debug_nans(True):
        got = jax.jit(method(g3_score(), TAPS))(jnp.full((32, 32, 3), value), 4)
    assert np.isfinite(got).all()


@jax.enable_x64(True)
def test_a_constant_image_shows_the_border():
    got = jf.sise(g3_score(), TAPS)(jnp.full((32, 32, 3), 0.5), 4)
    printed(got.mean(), 0.0464, 4)


def test_a_constant_model_gives_zeros():
    score = lambda x: 0 * tag(x[::2, ::2], "a").sum() + 2.0  # noqa: E731
    with jax.debug_nans(True):
        terms = jf.sise_terms(score, "a")(images(1)[0])
    assert bool(terms.absent)
    assert not terms.heatmap.any()


def test_dead_maps_are_not_scored():
    rows = []

    def score(x):
        jax.debug.callback(lambda _: rows.append(1), x[0, 0, 0])
        a = tag(jnp.concatenate([x[::2, ::2], jnp.zeros_like(x[::2, ::2])], -1), "a")
        return a.sum()

    explain = jf.sise_terms(score, "a", chunk=1)
    rows.clear()
    terms = explain(images(1)[0])
    jax.effects_barrier()
    assert terms.layers["a"].selected.sum() == 6
    assert len(rows) - 1 == 3  # one forward pass for the gradients, three live maps


def test_a_layer_larger_than_the_image_is_sampled():
    score = lambda x: tag(jnp.repeat(jnp.repeat(x, 3, 0), 3, 1), "a").mean()  # noqa: E731
    x = jnp.abs(images(1)[0])
    expected = jf.sise(lambda x: tag(x, "a").mean(), ("a",))(x)
    close(jf.sise(score, ("a",))(x), expected, 1e-5)


def test_the_masks_of_a_batch_fill_chunks():
    """Rows that were computed, over maps that were selected: 8 images, very unequal."""
    rows = []

    def model(x):
        jax.debug.callback(lambda _: rows.append(1), x[0, 0, 0, 0])
        return g3_model(x)

    x = jnp.asarray(ref.g3_image(), jnp.float32)
    batch = jnp.stack([jnp.roll(x, 3 * i, 0) * (i % 3 > 0) for i in range(8)])
    explain = jf.sise_terms(jf.class_score(model, jf.log_odds), TAPS, chunk=16)
    terms = jax.jit(jax.vmap(explain))(batch, jnp.arange(8) % 5)
    jax.effects_barrier()
    layers = terms.layers.values()
    selected = sum(int((l.selected & (np.ptp(l.masks, (2, 3)) > 0)).sum()) for l in layers)
    computed = len(rows) - 8  # but for the gradients' forward passes
    assert computed == -(-selected // 16) * 16
    assert computed <= 1.1 * selected
