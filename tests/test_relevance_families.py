"""Every family of networks in `jaxfmi.models`, small, against the twin that walks its layers."""

from functools import cache, partial
from typing import NamedTuple

import jax
import numpy as np
import pytest
import reference_relevance as twin
from family_layers import LAST, fill, layers_of
from flax import nnx
from reference_fg_cam import fg_cam, grad_cam_components, one_class, until
from reference_layers import forward

import jaxfmi
from jaxfmi import models, rules
from jaxfmi.models import mobilenet, squeezenet, vgg
from jaxfmi.models.resnet import PadShortcut, ResNet

TABLES = (  # widths and depths that are no arguments
    (vgg, "WIDTHS", (4, 6)),
    (squeezenet, "FIRES", ((2, 4),)),
    (mobilenet, "V1", ((16, 1), (32, 2))),
    (mobilenet, "V2", ((1, 16, 1, 2), (2, 16, 1, 1))),
)


def small_vgg(**options):
    net, rngs = vgg.VGG((1, 1), **options), nnx.Rngs(0)
    net.fc1 = nnx.LinearGeneral((7, 7, 6), 10, axis=(-3, -2, -1), rngs=rngs)
    net.fc2, net.head = nnx.Linear(10, 8, rngs=rngs), nnx.Linear(8, 4, rngs=rngs)
    return net


def projected():
    backbone = models.Conv4((5, 4), (1, 2), flatten=True, padding="SYMMETRIC", bias=True)
    return models.Projected(backbone, models.Projection(3 * 3 * 4, 8, 4))


CIFAR = {"stem": "cifar", "num_classes": 4}
FAMILIES = {  # and the side of a picture
    "vgg": (small_vgg, 56),
    "vgg, normalised": (partial(small_vgg, norm=True), 56),
    "resnet, basic": (partial(ResNet, (1, 1), widths=(6, 8), num_classes=4), 33),
    "resnet, bottleneck": (
        partial(ResNet, (1,), widths=(4,), bottleneck=True, num_classes=4),
        33,
    ),
    "resnet, cifar": (partial(ResNet, (1, 1), widths=(4, 8), shortcut=PadShortcut, **CIFAR), 12),
    "squeezenet": (partial(models.SqueezeNet, 8, 3, (2,), num_classes=4), 23),
    "mobilenet 1": (partial(models.MobileNet, 1, width=0.5, num_classes=4), 15),
    "mobilenet 2": (partial(models.MobileNet, 2, width=0.5, num_classes=4), 15),
    "densenet": (partial(models.DenseNet, 4, (1, 1), 6, num_classes=4), 33),
    "conv-4": (partial(models.Conv4, (5, 4), (1, 2)), 12),
    "conv-4, projected": (projected, 12),
    "resnet-12": (partial(models.ResNet12, (4,)), 12),
    "lfi-cam of the demo": (
        lambda: models.LfiCam(models.DemoNet(4, (6,), (2,), 4, rngs=nnx.Rngs(0))),
        16,
    ),
    "abn": (lambda: models.Abn(ResNet((1, 1), widths=(4, 6), **CIFAR)), 12),
}

# Of the largest relevance; gamma without biases divides by what may be nearly 0.
ROUNDING = {"flat": 1e-12, "box": 1e-11, "fg_cam": 1e-12}

# Networks that lose relevance even without biases. Sums of branches hand some to negative units,
# where z+ loses it if nothing contributes positively. MobileNetV2 has sums without a ReLU behind
# them, where the positive split loses it if both branches are negative.
LOSSY = {
    "flat": {"resnet, basic", "resnet, bottleneck", "mobilenet 2", "lfi-cam of the demo", "abn"},
    "box": set(),
    "fg_cam": {"mobilenet 2"},
}


@pytest.fixture(autouse=True, scope="module")
def _small_and_in_float64():
    with jax.enable_x64(True), pytest.MonkeyPatch.context() as patch:
        for table in TABLES:
            patch.setattr(*table)
        yield


@cache
def network(name):
    return nnx.eval_shape(FAMILIES[name][0])


class Explained(NamedTuple):
    ours: np.ndarray  # relevance at the pixels
    theirs: np.ndarray  # the twin's
    start: float  # what is handed back
    lost: float  # by us


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    """Its name, then what methods make of it with biases, and without."""
    model, side = network(request.param), FAMILIES[request.param][1]
    graph, x = nnx.graphdef(model), np.random.default_rng(1).standard_normal((side, side, 3))

    @jax.jit
    def explain(state, label):
        score = jaxfmi.class_score(nnx.merge(graph, state))
        flat, box = rules.epsilon_plus_flat(0.0), rules.epsilon_gamma_box(eps=0.0)
        return (
            jaxfmi.lrp_terms(score, flat)(x, label),
            jaxfmi.lrp_terms(score, box, bias=False)(x, label),
            jaxfmi.fg_cam(score, size=None)(x, label),
        )

    def case(bias):
        fill(model, bias)
        layers = layers_of(model, x)
        z = forward(layers, x)[-1]
        label = z.argmax()
        flat, box, cam = explain(nnx.state(model), label)

        start, rule = one_class(z, label), twin.epsilon_plus_flat(eps=0.0)
        flats = flat.relevance, twin.relevance(layers, x, start, rule)
        rule = twin.epsilon_gamma_box(x.min(), x.max(), eps=0.0, bias=False)
        boxes = box.relevance, twin.relevance(layers, x, start, rule, shift=False)
        components = grad_cam_components(layers, x, label, LAST)
        cams, total = (cam, fg_cam(until(layers, LAST), x, components)), components.sum()
        return {
            "flat": Explained(*flats, z[label], flat.lost),
            "box": Explained(*boxes, z[label], box.lost),
            "fg_cam": Explained(*cams, total, total - cam.sum()),
        }

    return request.param, case(bias=True), case(bias=False)


def test_a_family_is_its_twin(family):
    """At every pixel, and in what is lost."""
    for case in family[1:]:
        for method, (ours, theirs, start, lost) in case.items():
            assert theirs.any()
            atol = ROUNDING[method] * np.abs(theirs).max()
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=atol)
            assert abs(lost - (start - theirs.sum())) < 1e-12 * np.abs(theirs).sum()


def test_a_family_without_biases_conserves(family):
    """All that it starts with, but for what the twin loses as well."""
    name, _, case = family
    for method, found in case.items():
        share = abs(found.lost) / np.abs(found.ours).sum()
        assert share > 1e-3 if name in LOSSY[method] else share < 1e-12


def test_no_relevance_bypasses_a_layer_by_the_attention():
    """LFI-CAM looks at the picture once more, but what made an attention has no relevance."""
    model, x = network("lfi-cam of the demo"), np.random.default_rng(1).standard_normal((16, 16, 3))
    fill(model, bias=False)
    score, places = jaxfmi.class_score(model), ["attended", "block1", "stem", "input"]
    maps = jax.jit(jaxfmi.fg_cam(score, "attended", at=places, size=None))(x, 2)
    assert abs(maps[0].sum()) > 1e-3 * np.abs(maps[0]).sum()
    for each in maps[1:]:
        np.testing.assert_allclose(each.sum(), maps[0].sum(), rtol=1e-12)
    box = rules.epsilon_gamma_box(eps=0.0)
    pixels = jaxfmi.lrp_terms(score, box, bias=False)(x, 2)
    stem = jaxfmi.lrp_terms(score, box, bias=False, at="stem")(x, 2)
    np.testing.assert_allclose(stem.relevance.sum(), pixels.relevance.sum(), rtol=1e-11)
    with pytest.raises(ValueError, match="bypass 'importance'"):
        jaxfmi.lrp(score, at="importance")(x, 2)


def test_all_families_are_here():
    there = {type(part) for name in FAMILIES for _, part in nnx.iter_modules(network(name))}
    exported = [getattr(models, name) for name in models.__all__]
    known = {one for one in exported if isinstance(one, type) and issubclass(one, nnx.Module)}
    made = {entry.build.__annotations__["return"] for entry in models.MODELS.values()}
    assert known | made <= there
