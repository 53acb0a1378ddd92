"""Every family of networks in `jaxfmi.models`, small, against the twin that walks its layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_fg_cam as fg_cam
import reference_relevance as twin
from family_layers import filled, layers_of
from flax import nnx
from reference_layers import BatchNorm, Conv, forward

import jaxfmi
from jaxfmi import models, rules
from jaxfmi.heatmap import divide
from jaxfmi.models import densenet, mobilenet, resnet, squeezenet, vgg
from jaxfmi.pending import Settings
from jaxfmi.relevance import transport

RNG = np.random.default_rng(0)
EPS = 1e-12


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


FAMILIES = {
    "vgg": (lambda: vgg.VGG((1, 1, 1, 1, 1)), 32),
    "vgg, normalised": (lambda: vgg.VGG((1, 1, 1, 1, 1), norm=True), 32),
    "resnet, basic": (lambda: resnet.ResNet((1, 2), widths=(6, 8)), 33),
    "resnet, bottleneck": (lambda: resnet.ResNet((1, 2), widths=(4, 6), bottleneck=True), 33),
    "resnet, cifar": (
        lambda: resnet.ResNet(
            (1, 2), widths=(4, 8), stem="cifar", shortcut=resnet.PadShortcut, num_classes=4
        ),
        12,
    ),
    "squeezenet": (lambda: squeezenet.SqueezeNet(8, 3, (2, 4), num_classes=12), 39),
    "mobilenet 1": (lambda: mobilenet.MobileNet(1, width=0.1), 33),
    "mobilenet 2": (lambda: mobilenet.MobileNet(2, width=0.1), 33),
    "densenet": (lambda: densenet.DenseNet(4, (2, 2), 6), 33),
}


def passed_unless_zero(layer, x, r):
    """Pass; what a multiplier carries ends where the value is 0."""
    return np.where(x == 0, 0, r)


LRP = (
    Settings(rules.epsilon_plus_flat(EPS)),
    twin.composite(
        lambda *a: twin.z_plus(*a, eps=EPS),
        lambda *a: twin.epsilon(*a, eps=EPS),
        {Conv: lambda *a: twin.flat(*a, eps=EPS)},
        other=passed_unless_zero,
    ),
    twin.proportional,
)


def fg_cam_of(x):
    """FG-CAM's, which pass normalisation."""
    inner = fg_cam.improve_resolution(x.min(), x.max())

    def rule(layer, first):
        return passed_unless_zero if isinstance(layer, BatchNorm) else inner(layer, first)

    composite = rules.every(rules.z_plus(0.0), rules.z_box(eps=0.0))
    return Settings(composite, "pass", False, "positive"), rule, twin.positive


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_its_twin(name):
    build, side = FAMILIES[name]
    model, x = filled(build), RNG.standard_normal((side, side, 3))
    layers = layers_of(model)
    a = forward(layers, x)[-1]
    start = np.where(a == 0, 0, RNG.standard_normal(a.shape))

    graph, state = nnx.split(model)

    def explain(state, x, settings):
        features = nnx.merge(graph, state).features
        y, pull = transport(lambda x: features(x[None])[0], x, ["input"], settings)
        return y, pull(divide(start, y))["input"]

    for settings, rule, add in (LRP, fg_cam_of(x)):
        y, got = jax.jit(explain, static_argnums=2)(state, jnp.asarray(x), settings)
        np.testing.assert_allclose(y, a, rtol=1e-9, atol=1e-9)
        bn = "merge" if settings.norm == "merge" else "rule"
        expected = twin.relevance(layers, x, start, rule, bn=bn, add=add)
        largest = np.abs(expected).max()
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-8 * largest)


@pytest.mark.parametrize("name", ["vgg", "mobilenet 2"])
def test_fg_cam_is_the_transport_of_its_features(name):
    """They are cut out of the network first, and their operations must still be known."""
    build, side = FAMILIES[name]
    model, x = filled(build), jnp.asarray(RNG.standard_normal((side, side, 3)))

    def features(x):
        return model.features(x[None])[0]

    def transported(x):
        y, pull = transport(features, x, ["input"], settings)
        cam = y * jax.nn.one_hot([[2]], y.shape[-1]) / y[..., 0].size
        return pull(divide(cam, y))["input"].sum(-1)

    settings, explain = (
        fg_cam_of(x)[0],
        jaxfmi.fg_cam(lambda x: features(x).mean((0, 1))[2], size=None),
    )
    got, expected = jax.jit(explain)(x), jax.jit(transported)(x)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-9 * np.abs(expected).max())


def test_all_families_are_here():
    """But for those that put attention around one of them."""
    there = {type(nnx.eval_shape(f)) for f, _ in FAMILIES.values()}
    known = {entry.build.__annotations__["return"] for entry in models.MODELS.values()}
    assert known - {models.LfiCam, models.Abn} == there
