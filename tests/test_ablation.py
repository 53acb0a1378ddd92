"""Ablation-CAM, Recipro-CAM and FD-CAM: against their twins, on the golden model, by their laws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_net as net
import reference_perturbation as twin
import reference_sise as sise
from nets import g3_model, images, pooled_score, tiny

import jaxfmi as jf
from jaxfmi import class_score, tag

X = sise.g3_image()
LAYERS = {"tap2": 8, "features": 9}  # places among the values of the twin


def close(got, expected, atol=1e-10):
    np.testing.assert_allclose(got, expected, rtol=0, atol=atol)


def printed(got, expected, digits):
    """Equal to the last printed digit."""
    close(got, expected, 0.51 * 10.0**-digits)


def run(method, layer, of=jf.logit, **options):
    """A method on G3 for class 4, at the layer's size, in float64."""
    with jax.enable_x64(True):
        explain = method(class_score(g3_model, of), layer, size=None, chunk=5, **options)
        return np.asarray(jax.jit(explain)(jnp.asarray(X), 4))


def at(layer, of=sise.logit):
    """The twin's activation, its gradient, and the head."""
    layers, place = sise.g3_layers(), LAYERS[layer]
    values = net.forward(layers, X)
    gradients = net.backward(layers, values, of(values[-1], 4)[1])
    head = lambda a: of(net.forward(layers[place:], a)[-1], 4)[0]  # noqa: E731
    return values[place], gradients[place], head


def unit(m):
    return (m - m.min()) / np.ptp(m)


@pytest.mark.parametrize(
    ("layer", "maximum", "mean"),
    [("tap2", 0.052883073, 0.473475583), ("features", 0.054860257, 0.474859246)],
)
def test_ablation_cam_on_the_golden_model(layer, maximum, mean):
    got = run(jf.ablation_cam, layer)
    printed(got.max(), maximum, 9)
    assert np.unravel_index(got.argmax(), got.shape) == (0, 1)
    printed(unit(got).mean(), mean, 9)


@pytest.mark.parametrize("spread", [False, True])
@pytest.mark.parametrize("layer", LAYERS)
def test_recipro_cam(layer, spread):
    a, _, head = at(layer)
    close(run(jf.recipro_cam, layer, spread=spread), twin.recipro_cam(a, head, spread))


@pytest.mark.parametrize(
    ("layer", "of", "raw", "at_1_2", "mean"),
    [
        ("features", jf.logit, 0.424464952, 0.420276123, 0.387618892),
        ("features", jf.probability, 0.247059505, 0.246218868, 0.429549163),
        ("tap2", jf.probability, 0.245242763, 0.245650276, 0.545952864),
    ],
)
def test_recipro_cam_on_the_golden_model(layer, of, raw, at_1_2, mean):
    got = run(jf.recipro_cam, layer, of)
    printed(got.mean(), raw, 9)
    printed(got[1, 2], at_1_2, 9)
    printed(unit(got).mean(), mean, 9)


def test_recipro_cam_of_a_pooled_linear_head_is_cam():
    cam = run(lambda score, layer, size, chunk: jf.cam(score, layer, size=size), "features")
    close(run(jf.recipro_cam, "features"), cam / 16 + 0.4)


def test_a_position_that_the_head_ignores_has_the_bias():
    def score(x):
        a = tag(x, "a")
        return (a[1:] ** 2).sum() + 0.7

    got = jf.recipro_cam(score, "a")(images(1)[0])
    close(got[0], np.full(11, 0.7), 1e-6)
    assert (got[1:] > 0.7).all()


@pytest.mark.parametrize("theta", [0.0, 0.3, 0.5, 0.9])
def test_fd_cam(theta):
    a, g, head = at("tap2")
    expected = np.maximum(twin.fd_cam(a, g, head, theta).map, 0)
    close(run(jf.fd_cam, "tap2", theta=theta), expected)


@pytest.mark.parametrize(("layer", "mean"), [("tap2", 0.411191639), ("features", 0.469618176)])
def test_fd_cam_on_the_golden_model(layer, mean):
    printed(unit(run(jf.fd_cam, layer)).mean(), mean, 9)


def test_a_dead_channel_is_like_no_other():
    dead = jnp.array([1.0, 0.0, 2.0])[None, None]
    score = lambda x: (tag(jnp.abs(x) * dead, "a") ** 2).sum()  # noqa: E731
    with jax.debug_nans(True):
        for x in (images(1)[0], jnp.zeros((5, 4, 3))):
            assert np.isfinite(jf.fd_cam(score, "a")(x)).all()


@pytest.mark.parametrize("theta", [-0.1, 1.5])
def test_a_quantile_is_a_share(theta):
    with pytest.raises(ValueError, match=f"theta is a quantile, 0 to 1; got {theta}"):
        jf.fd_cam(pooled_score(np.ones(3)), theta=theta)


def test_only_the_head_runs_again():
    """The work of the compiled program grows with the head alone."""
    model = tiny("nnx")

    def flops(method, layer, chunk):
        run = jax.jit(method(class_score(model), layer, chunk=chunk))
        return run.lower(images(1)[0], 1).compile().cost_analysis()["flops"]

    stem = jax.jit(lambda x: jf.capture(class_score(model), "block")(x, 1)[1]["block"])
    once = stem.lower(images(1)[0]).compile().cost_analysis()["flops"]
    for method in (jf.ablation_cam, jf.recipro_cam):
        assert flops(method, "block", None) < 2.5 * once


def test_removed_channels_are_never_all_there():
    x = jnp.ones((40, 40, 64))
    score = lambda v: (tag(v, "a") ** 2).sum() ** 0.5  # noqa: E731
    method = jf.ablation_cam(score, "a", chunk=2)
    temporary = jax.jit(method).lower(x).compile().memory_analysis().temp_size_in_bytes
    assert temporary < 64 * x.size  # 16 copies of the activation, of 64


def test_ablation_of_negative_activations_removes_them():
    """A channel is set to 0 even where it is below: pytorch-grad-cam sinks it further."""
    a = -jnp.ones((2, 2, 3))
    got = jf.ablation_cam(lambda v: tag(v, "a").sum(), "a", relu=False)(a)
    close(got, 12 * (-4 / 12) * -np.ones((2, 2)) / 4)
