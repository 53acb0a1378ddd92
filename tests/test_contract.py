"""What every explainer must do: one table of all of them, and the same laws for each.

A new method joins with a row; one that is another's program with other numbers says which, and is
held to the laws of values only. Laws that do not depend on what a model is made of are checked on
the NNX network alone, for the linen one must get the same heatmaps.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from nets import HEIGHT, LAYER_SIZE, WIDTH, images, tiny, transposed, widened

import jaxfmi as jf
from jaxfmi import multipliers, references
from jaxfmi.explainer import LOGITS

LABELS = np.array([3, 0, 4, 1])
KEY = jax.random.key(7)


class Case(NamedTuple):
    """A row: how to make the explainer, ``make(score, **options)``, and what it claims."""

    make: Callable
    sized: bool = False  # takes ``size``
    evaluations: int = 0  # takes ``chunk``, and evaluates something this often
    random: bool = False  # takes ``key``
    reverse: bool = True  # has derivatives in reverse mode too
    upright: bool = False  # treats rows and columns differently
    derivatives: bool = True  # of the heatmap are what JAX finds
    stepped: bool = False  # decides by thresholds, which bfloat16 crosses
    share: float = 0.0  # tolerance, where rounding grows: extremal masks begin with equal values
    like: str = ""  # the row that has all laws that this one shares its program with


def at_layer(method, layer="down", **fixed):
    return lambda score, **options: method(score, layer, **fixed, **options)


def smooth(method):
    def make(score, chunk=4, **options):
        return jf.smooth_grad(method(score, **options), samples=5, chunk=chunk)

    return make


def at_layers(method, **fixed):
    return lambda score, **options: method(score, ("stem", "block"), **fixed, **options)


def map_of_sise_terms(score, **options):
    terms = jf.sise_terms(score, ("stem", "down"), **options)
    return lambda x, *args: terms(x, *args).heatmap


def heatmap_of_terms(score, **options):
    terms = jf.afmi_terms(score, "down", multiplier=multipliers.path(5), **options)
    return lambda x, *args: terms(x, *args).heatmap


def map_of_lrp_terms(score):
    terms = jf.lrp_terms(score)
    return lambda x, *args: terms(x, *args).heatmap


def of_own_map(method):
    """For methods that read the map a network makes: the tiny ones are given one."""

    def make(score, **options):
        def attending(x, *args):
            value, found = jf.capture(score, "down")(x, *args)
            return value + jf.tag(found["down"].mean(-1, keepdims=True), "attention").sum()

        return method(attending, **options)

    return make


def to_partners(method, layer="down", **fixed):
    """A method of similarities: the logits are the embedding, a label chooses the partner."""

    def make(score, **options):
        explain = method(score_of_logits(score), layer, **fixed, **options)
        return lambda x, label, **key: explain(x, jnp.asarray(PARTNERS, x.dtype)[label], **key)

    return make


def score_of_logits(score):
    return getattr(score, LOGITS)


def heatmap_of_fam_terms(embed, layer, **options):
    terms = jf.fam_terms(embed, layer, **options)
    return lambda x, partner: terms(x, partner).heatmap


def sbsm(score, **options):
    explain = jf.sbsm(score_of_logits(score), window=(5, 3), stride=(4, 2), **options)
    return lambda x, label: explain(x, jnp.asarray(PARTNERS, x.dtype)[label])


PARTNERS = np.random.default_rng(2).standard_normal((5, 5))
AFMI = functools.partial(at_layer, jf.afmi)
CASES = {
    "cam": Case(at_layer(jf.cam, "block"), sized=True),
    "grad_cam": Case(at_layer(jf.grad_cam), sized=True),
    "grad_cam_pp": Case(at_layer(jf.grad_cam_pp), sized=True),
    "xgrad_cam": Case(at_layer(jf.xgrad_cam), sized=True),
    "hires_cam": Case(at_layer(jf.hires_cam), sized=True, like="grad_cam"),
    "layer_cam": Case(at_layer(jf.layer_cam), sized=True, like="grad_cam"),
    "eigen_cam": Case(at_layer(jf.eigen_cam), sized=True),
    "eigen_grad_cam": Case(at_layer(jf.eigen_grad_cam), sized=True, like="eigen_cam"),
    "ablation_cam": Case(at_layer(jf.ablation_cam), sized=True, evaluations=8, reverse=False),
    "recipro_cam": Case(at_layer(jf.recipro_cam), sized=True, evaluations=48, reverse=False),
    "fd_cam": Case(at_layer(jf.fd_cam), sized=True, evaluations=8, reverse=False, stepped=True),
    "score_cam": Case(at_layer(jf.score_cam), evaluations=8, like="score_cam softmax"),
    "score_cam softmax": Case(
        at_layer(jf.score_cam, convention="softmax"), sized=True, evaluations=8, reverse=False
    ),
    "ss_cam": Case(
        at_layer(jf.ss_cam, samples=2), sized=True, evaluations=16, random=True, reverse=False
    ),
    "is_cam": Case(at_layer(jf.is_cam, steps=2), sized=True, evaluations=16, like="ss_cam"),
    "group_cam": Case(at_layer(jf.group_cam, groups=3), evaluations=3, reverse=False),
    "rise": Case(
        functools.partial(jf.rise, samples=9, cells=3), evaluations=9, random=True, reverse=False
    ),
    "sise": Case(at_layers(jf.sise, fusion="soft"), evaluations=14, like="sise_terms"),
    "ada_sise": Case(at_layers(jf.ada_sise), evaluations=14, like="sise_terms"),
    "sise_terms": Case(map_of_sise_terms, evaluations=14, reverse=False, stepped=True),
    "extremal_perturbation": Case(
        functools.partial(
            jf.extremal_perturbation, areas=(0.2, 0.4), iterations=3, step=4, sigma=6.0
        ),
        upright=True,
        share=0.03,
    ),
    "afmi": Case(AFMI(multiplier=multipliers.path(5)), sized=True, evaluations=5),
    "afmi_terms": Case(heatmap_of_terms, sized=True, evaluations=5, like="afmi"),
    "afmi gradient": Case(AFMI(multiplier="gradient", reduce="mean"), sized=True),
    "afmi trapezoid": Case(AFMI(multiplier="trapezoid", reduce="none"), sized=True),
    "afmi rescale": Case(AFMI(multiplier="rescale"), sized=True),
    "afmi path_input": Case(
        AFMI(multiplier=multipliers.path_input(5), reduce="none"), sized=True, evaluations=5
    ),
    "afmi ablation": Case(
        AFMI(multiplier=multipliers.ablation(halves=True)), sized=True, evaluations=8
    ),
    "afmi insertion": Case(AFMI(multiplier="insertion", reduce="ratio"), sized=True, evaluations=8),
    "afmi shapley": Case(
        AFMI(multiplier=multipliers.shapley(2), reduce="proportional"),
        sized=True,
        evaluations=18,
        random=True,
    ),
    "afmi noise": Case(
        AFMI(multiplier="rescale", reference=references.several(references.gaussian(1.0), 2)),
        sized=True,
        random=True,
    ),
    "attention": Case(of_own_map(jf.attention), sized=True),
    "lfi_cam": Case(of_own_map(jf.lfi_cam), sized=True, like="attention"),
    "guided_grad_cam": Case(at_layer(jf.guided_grad_cam)),
    "fam": Case(to_partners(jf.fam), sized=True),
    "fam_terms": Case(to_partners(heatmap_of_fam_terms), sized=True, like="fam"),
    "sfam": Case(to_partners(jf.sfam), sized=True, like="fam"),
    "similarity_grad_cam": Case(to_partners(jf.similarity_grad_cam), sized=True, like="fam"),
    "self_map": Case(to_partners(jf.self_map), sized=True, like="fam"),
    "lafam": Case(to_partners(jf.lafam), sized=True, like="fam"),
    # Small differences of distances, 1e-7 of which are rounding.
    "sbsm": Case(sbsm, evaluations=20, like="occlusion", share=1e-4),
    "saliency": Case(jf.saliency),
    "input_x_gradient": Case(jf.input_x_gradient),
    "integrated_gradients": Case(
        functools.partial(jf.integrated_gradients, steps=5), evaluations=5
    ),
    "smooth_grad saliency": Case(smooth(jf.saliency), evaluations=5, random=True),
    "smooth_grad grad_cam": Case(
        smooth(at_layer(jf.grad_cam)), sized=True, evaluations=5, random=True
    ),
    "guided_backprop": Case(jf.guided_backprop),
    "deconvnet": Case(jf.deconvnet, like="guided_backprop"),
    "full_grad": Case(jf.full_grad),
    "lrp": Case(jf.lrp, derivatives=False),
    "lrp_terms": Case(map_of_lrp_terms, derivatives=False, like="lrp"),
    "clrp": Case(jf.clrp, derivatives=False, like="lrp"),
    "sglrp": Case(jf.sglrp, derivatives=False, like="lrp"),
    "excitation_backprop": Case(jf.excitation_backprop, derivatives=False, like="lrp"),
    "relevance_cam": Case(at_layer(jf.relevance_cam), sized=True, derivatives=False),
    "fg_cam": Case(at_layer(jf.fg_cam), derivatives=False),
    "occlusion": Case(
        functools.partial(jf.occlusion, window=(5, 3), stride=(4, 2)),
        evaluations=20,
        reverse=False,
    ),
}
NOT_ONE_MAP = set("full_grad_terms pair point_map point_to_point overall_map gallery".split())
OWN = {name: case for name, case in CASES.items() if not case.like}
every_case = pytest.mark.parametrize("name", CASES)
own_case = pytest.mark.parametrize("name", OWN)
both_nets = pytest.mark.parametrize("kind", ["nnx", "linen"])


@functools.cache
def model(kind="nnx", dtype=None):
    return tiny(kind, dtype)


@functools.cache
def score(kind="nnx"):
    return jf.class_score(model(kind))


def explainer(name, of=None, **options):
    """``(x, label, key) -> heatmap``, for methods with and without randomness."""
    case = CASES[name]
    explain = case.make(of or score(), **options)
    return lambda x, label, key: explain(x, label, **({"key": key} if case.random else {}))


def compiled(explain):
    return jax.jit(jax.vmap(explain))


@functools.cache
def batch_explainer(name, kind="nnx"):
    return compiled(explainer(name, score(kind)))


@functools.cache
def batch():
    return images(4), jnp.asarray(LABELS), jax.random.split(KEY, 4)


@functools.cache
def heatmaps(name):
    return np.asarray(batch_explainer(name)(*batch()))


def close(got, expected, share=1e-5):
    """Equal but for a share of the largest value."""
    np.testing.assert_allclose(got, expected, rtol=0, atol=share * np.abs(expected).max() + 1e-9)


def test_the_table_is_complete():
    """All that ``explainer`` decorates, and what goes around explainers."""
    names = {name.split()[0] for name in CASES}
    explained = {n for n in jf.__all__ if hasattr(getattr(jf, n), "__wrapped__")}
    assert (explained | {"smooth_grad"}) - NOT_ONE_MAP == names


@own_case
def test_jit_of_vmap_is_a_loop_of_eager_calls(name):
    explain, i = explainer(name), 3
    got = explain(*(values[i] for values in batch()))
    close(heatmaps(name)[i], got, CASES[name].share or 1e-5)


@every_case
def test_heatmaps_are_float32_of_the_images_size_and_say_something(name):
    got = heatmaps(name)
    assert got.shape == (4, HEIGHT, WIDTH)
    assert got.dtype == np.float32
    assert np.isfinite(got).all()
    assert np.ptp(got, axis=(1, 2)).max() > 0


@every_case
def test_nnx_and_linen_agree(name):
    close(batch_explainer(name, "linen")(*batch()), heatmaps(name), CASES[name].share or 1e-4)


@own_case
@both_nets
def test_another_class_does_not_recompile(name, kind):
    explain, (x, labels, keys) = batch_explainer(name, kind), batch()
    explain(x, labels, keys)
    explain(x[::-1], (labels + 1) % 5, keys)
    assert explain._cache_size() == 1


@own_case
def test_sharded_is_unsharded(name):
    mesh = Mesh(np.array(jax.devices()), ("batch",), axis_types=(AxisType.Auto,))
    assert mesh.size == 4
    spread = jax.device_put(batch(), NamedSharding(mesh, PartitionSpec("batch")))
    got = batch_explainer(name, "linen")(*spread)
    assert len(got.sharding.device_set) == 4
    close(got, heatmaps(name), CASES[name].share or 1e-4)


@pytest.mark.parametrize("name", [n for n, case in OWN.items() if case.evaluations])
def test_chunks_do_not_matter(name):
    """Three at a time, of which some leave a rest; most take all at once else."""
    close(compiled(explainer(name, chunk=3))(*batch()), heatmaps(name))


@pytest.mark.parametrize("name", [n for n, case in OWN.items() if case.sized])
def test_sizes(name):
    raw = compiled(explainer(name, size=None))(*batch())
    assert raw.shape == (4, *LAYER_SIZE)
    for size in ((HEIGHT, WIDTH), (4, 9)):
        sized = jax.vmap(lambda m: jf.heatmap.resize(m, size))(raw)
        if size == (HEIGHT, WIDTH):
            close(sized, heatmaps(name))
        else:
            close(compiled(explainer(name, size=size))(*batch()), sized)


@pytest.mark.parametrize("name", [n for n, case in CASES.items() if case.random])
def test_a_key_decides(name):
    x, labels, keys = batch()
    explain = batch_explainer(name)
    np.testing.assert_array_equal(explain(x, labels, keys), heatmaps(name))
    assert not np.allclose(explain(x, labels, keys[::-1]), heatmaps(name))
    with pytest.raises(ValueError, match="key"):
        CASES[name].make(score())(x[0], labels[0])


@every_case
def test_constant_images_give_no_nan(name):
    _, labels, keys = batch()
    levels = jnp.array([0.0, 0.0, 1.0, -2.0])[:, None, None, None]
    x = jnp.broadcast_to(levels, images(4).shape)
    with jax.debug_nans(True):
        assert np.isfinite(batch_explainer(name)(x, labels, keys)).all()
        explainer(name)(x[0], labels[0], keys[0])


@own_case
def test_bfloat16_models_get_float32_heatmaps(name):
    """Of bfloat16 images too; where these have random numbers of their own, with other values."""
    x, labels, keys = batch()
    half, random = x.astype(jnp.bfloat16), CASES[name].random
    explain = compiled(explainer(name, jf.class_score(model("nnx", jnp.bfloat16))))
    got = explain(x if random else half, labels, keys)
    near = np.linalg.norm(got - heatmaps(name)) < 0.07 * np.linalg.norm(heatmaps(name))
    assert near or CASES[name].stepped
    assert got.dtype == jax.eval_shape(explain, half, labels, keys).dtype == jnp.float32


@functools.cache
def in_float64(name):
    """The first image's heatmap, and the slope of a weighted sum of it by two ways."""
    _, labels, keys = batch()
    plain, x, direction = model(), *np.asarray([batch()[0][0], images(1, seed=9)[0]])
    with jax.enable_x64(True):
        x, direction = jnp.asarray(x, float), jnp.asarray(direction, float)
        explain = explainer(name, jf.class_score(widened(plain)))

        def weighed(x):
            heatmap = explain(x, labels[0], keys[0])
            return (heatmap * direction[..., 0]).sum(), heatmap

        def by_reverse(x):
            (value, heatmap), slope = jax.value_and_grad(weighed, has_aux=True)(x)
            return value, (slope * direction).sum(), heatmap

        def by_forward(x):
            return jax.jvp(weighed, (x,), (direction,), has_aux=True)

        mode = by_reverse if CASES[name].reverse else by_forward
        run = jax.jit(mode)
        up, down = (run(x + step * direction)[0] for step in (1e-6, -1e-6))
        _, slope, heatmap = run(x)
        return heatmap, slope, (up - down) / 2e-6


@own_case
def test_float64(name):
    heatmap, _, _ = in_float64(name)
    assert heatmap.dtype == np.float64
    assert heatmap.shape == (HEIGHT, WIDTH)
    if not CASES[name].random:  # random numbers of another precision are other numbers
        close(heatmap, heatmaps(name)[0], CASES[name].share or 1e-4)


@pytest.mark.parametrize("name", [n for n, case in OWN.items() if case.derivatives])
def test_heatmaps_are_differentiable(name):
    """The derivative that JAX finds is that of the heatmap, by central differences."""
    _, slope, difference = in_float64(name)
    np.testing.assert_allclose(slope, difference, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "name", [n for n, case in OWN.items() if not (case.random or case.upright)]
)
def test_transposing_network_and_image_transposes_the_heatmap(name):
    x, labels, keys = batch()
    options = {"window": (3, 5), "stride": (2, 4)} if name == "occlusion" else {}
    of = jf.class_score(transposed(model()))
    got = compiled(explainer(name, of, **options))(x.swapaxes(1, 2), labels, keys)
    assert got.shape == (4, WIDTH, HEIGHT)
    close(got.swapaxes(1, 2), heatmaps(name), 1e-4)
