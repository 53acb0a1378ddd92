"""Score-CAM and its kin against their twins, on the golden model, and by their laws."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_perturbation as ref
import reference_sise as sise
from nets import g3_model, images, pooled_score, tiny

import jaxfmi as jf
from jaxfmi import references, tag
from jaxfmi.score_cam import AUTHORS, NAMED

X = sise.g3_image()
PROBABILITY, LOGIT = sise.g3_score(), sise.g3_score(of=sise.logit)
CONVENTIONS = {
    "authors": (ref.AUTHORS, PROBABILITY, jf.probability),
    "softmax": (ref.SOFTMAX._replace(upsample_first=False), LOGIT, jf.logit),
    "pytorch-grad-cam": (ref.PYTORCH_GRAD_CAM, LOGIT, jf.logit),
    "torch-cam": (ref.TORCH_CAM, LOGIT, jf.logit),
}


def close(got, expected, atol=1e-12):
    np.testing.assert_allclose(got, expected, rtol=0, atol=atol)


def printed(got, expected, digits):
    """Equal to the last printed digit."""
    close(got, expected, 0.51 * 10.0**-digits)


def activation(tap="tap2"):
    return sise.g3_taps(X)[0][int(tap[-1])]


def run(method, of, *args, **options):
    """A method at tap2 of G3 for class 4, in float64."""
    with jax.enable_x64(True):
        explain = method(jf.class_score(g3_model, of), "tap2", chunk=5, **options)
        return np.asarray(jax.jit(explain)(jnp.asarray(X), 4, *args))


@pytest.mark.parametrize("name", NAMED)
def test_conventions_are_those_of_the_twins(name):
    convention, score, of = CONVENTIONS[name]
    expected = ref.score_cam(activation(), X, score, convention).map
    close(run(jf.score_cam, of, convention=name), expected, 1e-10)


def test_score_cam_on_the_golden_model():
    got = run(jf.score_cam, jf.probability)
    unit = np.asarray((got - got.min()) / np.ptp(got))
    printed(unit.mean(), 0.353787807, 9)
    printed(unit[13, 7], 0.228217150, 9)
    soft = run(jf.score_cam, jf.logit, convention="softmax")
    printed(((soft - soft.min()) / np.ptp(soft)).mean(), 0.352272744, 9)
    relative = run(jf.score_cam, jf.probability, relative=True)
    printed(((relative - relative.min()) / np.ptp(relative)).mean(), 0.387866331, 9)


@pytest.mark.parametrize("name", ["softmax", "pytorch-grad-cam", "torch-cam"])
def test_no_baseline_matters_under_a_softmax(name):
    plain = run(jf.score_cam, jf.logit, convention=name)
    close(run(jf.score_cam, jf.logit, convention=name, relative=True), plain)


def test_a_baseline_image_is_shown_where_masks_are_not():
    blurred = references.blur(3.0)
    got = run(jf.score_cam, jf.probability, baseline=blurred)
    with jax.enable_x64(True):
        image = np.asarray(blurred(jnp.asarray(X)))
    masks = ref.half_pixel_masks(activation(), (32, 32))
    weights = [PROBABILITY(m[..., None] * X + (1 - m[..., None]) * image) for m in masks]
    close(got, ref.relu(ref.resize_bilinear((activation() * weights).sum(-1), (32, 32))), 1e-10)


@pytest.mark.parametrize("cumulative", [False, True])
def test_is_cam(cumulative):
    expected = ref.is_cam(
        activation(), X, LOGIT, 4, cumulative, ref.SOFTMAX._replace(upsample_first=False)
    )
    close(run(jf.is_cam, jf.logit, steps=4, cumulative=cumulative), expected.map, 1e-10)


def test_ss_cam_is_its_twin_of_the_same_noise():
    key, samples = jax.random.key(3), 3
    with jax.enable_x64(True):

        def one(k, n):
            own = jax.random.fold_in(jax.random.fold_in(key, k), n)
            return 0.5 * jax.random.normal(own, (32 * 32,), float).reshape(32, 32)

        noise = np.array([[one(k, n) for k in range(16)] for n in range(samples)])
        explain = jf.ss_cam(jf.class_score(g3_model), "tap2", samples=samples, sigma=0.5, chunk=7)
        got = jax.jit(functools.partial(explain, key=key))(jnp.asarray(X), 4)
    convention = ref.SOFTMAX._replace(upsample_first=False)
    close(got, ref.ss_cam(activation(), X, LOGIT, noise, convention).map, 1e-10)


def test_without_noise_or_ramp_both_are_score_cam():
    plain = run(jf.score_cam, jf.logit, convention="softmax")
    close(run(jf.is_cam, jf.logit, steps=1), plain)
    with jax.enable_x64(True):
        explain = jf.ss_cam(jf.class_score(g3_model), "tap2", samples=2, sigma=0.0)
        close(explain(jnp.asarray(X), 4, key=jax.random.key(0)), plain)


@pytest.mark.parametrize("groups", [1, 3, 4, 5, 16, 99])
def test_group_cam(groups):
    """Zeros for a baseline, and the logit's gradient; 3 groups of 16 leave a shorter one."""
    a = activation()
    g = sise.g3_taps(X, of=sise.logit)[1][2]
    expected = ref.group_cam(a, g, X, PROBABILITY, np.zeros_like(X), groups)
    select = jf.class_score(g3_model, jf.logit)
    got = run(jf.group_cam, jf.probability, groups=groups, baseline=0.0, select=select)
    close(got, expected.map, 1e-10)


def test_group_cam_on_the_golden_model():
    options = {"groups": 4, "baseline": 0.0}
    by_logit = run(
        jf.group_cam, jf.probability, select=jf.class_score(g3_model, jf.logit), **options
    )
    unit = (by_logit - by_logit.min()) / np.ptp(by_logit)
    printed(unit.mean(), 0.479437914, 9)
    printed(unit[13, 7], 0.531039874, 9)


def test_one_channel_is_itself():
    x = jnp.abs(images(1)[0])
    score = lambda x: tag(x[..., :1] - 0.5, "a").sum() ** 2  # noqa: E731
    got = jf.score_cam(score, "a")(x)
    expected = jax.nn.relu(x[..., 0] - 0.5)
    close(got / got.max(), expected / expected.max(), 1e-6)


def test_constant_channels_have_no_weight_and_cost_nothing():
    rows = []

    def score(x):
        jax.debug.callback(lambda _: rows.append(1), x[0, 0, 0])
        return (tag(x * jnp.array([1.0, 0.0, 2.0])[None, None] + 1, "a") ** 2).sum()

    x = images(1)[0]
    rows.clear()
    got = jf.score_cam(score, "a", chunk=1)(x)
    jax.effects_barrier()
    assert len(rows) == 3  # one for the activation, and two masks
    assert np.isfinite(got).all()
    with jax.debug_nans(True):
        for convention in NAMED:
            flat = jf.score_cam(score, "a", convention=convention)(jnp.ones((5, 4, 3)))
            assert not flat.any()


def test_batched_gives_every_method_the_score_it_asks_for():
    model, x = tiny("nnx"), images(2)
    explain = jf.batched(lambda s: jf.score_cam(s, "block"), model, batch_size=2)
    expected = jf.score_cam(jf.class_score(model, jf.probability), "block")(x[0], 1)
    close(explain(x, [1, 2])[0], expected, 1e-6)
    chosen = jf.batched(lambda s: jf.score_cam(s, "block"), model, batch_size=2, of=jf.logit)
    expected = jf.score_cam(jf.class_score(model), "block")(x[0], 1)
    close(chosen(x, [1, 2])[0], expected, 1e-6)
    several = jf.batched(lambda s: jf.sise(s), model, batch_size=2)
    expected = jf.sise(jf.class_score(model, jf.log_odds))(x[0], 1)
    close(several(x, [1, 2])[0], expected, 1e-5)
    plain = jf.batched(lambda s: jf.grad_cam(s, "block"), model, batch_size=2)
    close(plain(x, [1, 2])[0], jf.grad_cam(jf.class_score(model), "block")(x[0], 1), 1e-6)


def test_scores_of_the_user_are_what_they_are():
    weights = np.array([0.3, -0.2, 0.5], np.float32)
    x = jnp.abs(images(1)[0])
    score = pooled_score(weights)
    masks = ref.half_pixel_masks(np.asarray(x, float), x.shape[:2])
    y = [float(score(x * m[..., None])) for m in masks]
    close(jf.score_cam(score, "a")(x), np.maximum((np.asarray(x) * y).sum(-1), 0), 1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda s: jf.score_cam(s, convention="mine"), "no convention 'mine'; there are authors"),
        (lambda s: jf.group_cam(s, groups=0), "at least 1; got 0"),
        (lambda s: jf.ss_cam(s, samples=0), "at least 1 sample or step per channel, got 0"),
        (lambda s: jf.is_cam(s, steps=0), "at least 1 sample or step per channel, got 0"),
        (lambda s: jf.score_cam(s, chunk=-1), "at least 1; got -1"),
        (lambda s: jf.score_cam(s, "blok"), "did you mean 'block'"),
    ],
)
def test_what_is_none(make, message):
    with pytest.raises(ValueError, match=message):
        make(jf.class_score(tiny("nnx")))(images(1)[0], 0)


def test_a_convention_of_ones_own():
    mine = AUTHORS._replace(eps=0.5)
    masks = [m * 1.0 for m in ref.half_pixel_masks(activation(), (32, 32))]
    got = run(jf.score_cam, jf.probability, convention=mine)
    spans = [np.ptp(ref.resize_bilinear(activation(), (32, 32))[..., k]) for k in range(16)]
    weights = [
        PROBABILITY((m * r / (r + 0.5))[..., None] * X) for m, r in zip(masks, spans, strict=True)
    ]
    close(got, ref.relu(ref.resize_bilinear((activation() * weights).sum(-1), (32, 32))), 1e-10)
