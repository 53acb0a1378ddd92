"""ABN: the authors' numbers, both heads, the branch around any backbone, and its sizes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from attention_nets import (
    LABELS,
    closed_form_images,
    descent,
    filled,
    forward,
    golden_net,
    gradients,
    merge,
)
from flax import nnx

import jaxfmi as jf
from jaxfmi import models
from jaxfmi.command import networks
from jaxfmi.models.abn import Abn, abn
from jaxfmi.models.resnet import projected_resnet, resnet34, resnet101, resnet152

X = closed_form_images()
LOSSES = [2.13228056, 1.71711452, 1.44631902, 1.27782955]


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def close(got, expected, atol=1e-9):
    np.testing.assert_allclose(got, expected, rtol=0, atol=atol)


@pytest.fixture(scope="module")
def arrays(shared):
    arrays = dict(np.load(shared / "golden" / "lficam_golden.npz"))
    return {k: v.transpose(0, 2, 3, 1) if v.ndim == 4 else v for k, v in arrays.items()}


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32])
def test_outputs_are_the_authors(arrays, mode, dtype):
    graph, state = golden_net("abn")
    state = jax.tree.map(lambda a: a.astype(dtype), state)
    run = jax.jit(functools.partial(forward, graph), static_argnums=2)
    out = run(state, jnp.asarray(X, dtype), mode == "train")
    names = {"logits": "logits", "aux_logits": "attlogits", "attention": "att"}
    for name, key in (names | {"features": "layer3"}).items():
        single = 1e-5 if mode == "eval" else 5e-5
        close(out[name], arrays[f"abn_{mode}_{key}"], 1e-9 if dtype == jnp.float64 else single)


def test_loss_and_gradients_are_the_authors():
    graph, state = golden_net("abn")
    loss, out, grads, _ = jax.jit(functools.partial(gradients, graph))(state, X)
    close(loss, 2.1322805619, 1e-10)
    entropy = optax.softmax_cross_entropy_with_integer_labels
    both = [entropy(out[k], LABELS).mean() for k in ("logits", "aux_logits")]
    close(loss, both[0] + both[1], 1e-12)
    leaves = dict(nnx.to_flat_state(grads))
    close(np.sqrt(sum((g[...] ** 2).sum() for g in leaves.values())), 3.5249560123)
    close(np.linalg.norm(leaves["backbone", "stem", "conv", "kernel"][...]), 1.6579521128)


def test_four_steps_of_sgd_are_the_authors():
    graph, state = golden_net("abn")
    losses, _ = jax.jit(functools.partial(descent, graph))(state, X)
    close(losses, LOSSES, 1e-8 + 5e-9)  # 1e-8, and half of the last digit that is printed


@functools.cache
def small():
    return nnx.split(filled(lambda: models.abn_resnet8(width=4, num_classes=5)))


def pictures(n=3, size=(24, 20)):
    return jnp.asarray(np.random.default_rng(0).standard_normal((n, *size, 3)))


def test_the_map_is_between_zero_and_one_and_acts_before_the_last_stage():
    graph, state = small()
    model, x = merge(graph, state), pictures()
    out = model.forward(x)
    assert out["attention"].shape == (3, 12, 10, 1)
    assert 0 < out["attention"].min() < out["attention"].max() < 1
    early = model.backbone.early(x)
    features = model.backbone.last_stage((1 + out["attention"]) * early)
    close(out["features"], features, 1e-12)
    close(out["logits"], model.backbone.classify(features), 1e-12)
    close(model.features(x), features, 1e-12)
    off = jf.edit(lambda x: model(x), {"attention": jnp.zeros_like})(x)
    close(off, model.backbone(x), 1e-12)


def test_tags():
    graph, state = small()
    found = jf.tags(lambda x: merge(graph, state)(x), pictures())
    assert list(found) == "stem stage1 stage2 attention attended stage3".split()
    assert found["attended"] == found["stage2"] == (3, 12, 10, 8)


def test_an_image_does_not_know_its_batch():
    graph, state = small()
    run, x = jax.jit(functools.partial(forward, graph)), pictures()
    whole, turned = run(state, x), run(state, x[::-1])
    for name, value in whole.items():
        close(turned[name][::-1], value, 1e-12)


@pytest.mark.parametrize("fill", [0.0, 1.0])
def test_constant_images_have_finite_gradients(fill):
    graph, state = small()
    with jax.debug_nans(True):
        loss, out, grads, _ = jax.jit(functools.partial(gradients, graph))(
            state, jnp.full((4, 24, 20, 3), fill)
        )
    assert np.isfinite(loss)
    assert all(np.isfinite(v).all() for v in jax.tree.leaves((out, grads)))


def test_bfloat16_makes_its_map_in_float32():
    with jax.enable_x64(False):
        build = functools.partial(models.abn_resnet8, width=4, dtype=jnp.bfloat16)
        model = filled(build, jnp.float32)
        out = jax.eval_shape(model.forward, pictures().astype(jnp.float32))
    assert out["logits"].dtype == jnp.bfloat16
    assert out["attention"].dtype == jnp.float32


@pytest.mark.parametrize(
    ("build", "size", "maps"),
    [
        (functools.partial(models.DenseNet, 4, (2, 2, 2), 8, stem="cifar"), 16, (4, 4)),
        (functools.partial(models.ResNet, (1, 1), widths=(4, 6)), 16, (4, 4)),
        (
            functools.partial(models.ResNet, (1, 2), widths=(4, 6), bottleneck=True, stem="cifar"),
            8,
            (8, 8),
        ),
    ],
)
def test_any_backbone(build, size, maps):
    model = filled(lambda: Abn(build(num_classes=3, rngs=nnx.Rngs(0))))
    out = jax.jit(lambda x: model.forward(x))(pictures(2, (size, size)))
    assert out["attention"].shape == (2, *maps, 1)
    assert out["logits"].shape == out["aux_logits"].shape == (2, 3)


def test_a_vgg_takes_a_branch():
    model = nnx.eval_shape(lambda: abn(models.vgg11_bn, {"num_classes": 7}))
    graph, state = nnx.split(model)
    x = jax.ShapeDtypeStruct((2, 64, 96, 3), jnp.float32)
    out = jax.eval_shape(lambda state, x: nnx.merge(graph, state).forward(x), state, x)
    assert out["attention"].shape == (2, 8, 12, 1)
    assert out["features"].shape == (2, 4, 6, 512)


def counted(build):
    return networks.count(nnx.eval_shape(build))


COUNTS = {  # depth: 10 and 100 classes
    8: (136_750, 159_250),
    20: (479_150, 501_650),
    32: (821_550, 844_050),
    44: (1_205_230, 1_262_290),
    56: (1_531_502, 1_588_562),
    110: (2_999_726, 3_056_786),
}


@pytest.mark.parametrize(
    "depth", [8, 20, *(pytest.param(d, marks=pytest.mark.slow) for d in (32, 44, 56, 110))]
)
def test_parameters_of_cifar_networks(depth):
    for classes, parameters in zip((10, 100), COUNTS[depth], strict=True):
        build = functools.partial(projected_resnet, depth, num_classes=classes)
        assert counted(lambda: abn(build, {})) == parameters


def test_parameters_of_other_sizes():
    build = functools.partial(models.abn_resnet8, width=8)
    assert counted(build) == 35_078
    assert counted(lambda: build(num_classes=2)) == 34_374
    assert counted(lambda: models.abn_resnet20(num_classes=20)) == 480_850


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "parameters"),
    [
        (models.resnet18, 21_607_266),
        (resnet34, 36_436_066),
        (models.resnet50, 43_584_866),
        (resnet101, 62_576_994),
        (resnet152, 78_220_642),
    ],
)
def test_parameters_of_imagenet_networks(build, parameters):
    assert counted(lambda: abn(build, {})) == parameters
