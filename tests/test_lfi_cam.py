"""LFI-CAM: the authors' numbers, its parts by hand, what it is equal to, and bad input."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_nets import (
    LABELS,
    closed_form_images,
    descent,
    filled,
    forward,
    golden_net,
    gradients,
    loss_fn,
    merge,
)
from flax import nnx

import jaxfmi as jf
from jaxfmi import models
from jaxfmi.command import networks
from jaxfmi.models.abn import Abn
from jaxfmi.models.lfi_cam import (
    Importance,
    LfiCam,
    _unit_channels,
    attend,
    attention_map,
    lfi_cam,
    masked_features,
)
from jaxfmi.models.resnet import projected_resnet, resnet34, resnet101, resnet152

X = closed_form_images()
LOSSES = [1.26324559, 0.70473419, 0.46857225, 0.29047087]
NORMS = {
    ("backbone", "stem", "conv", "kernel"): 2.9865322397,
    ("backbone", "stem", "norm", "scale"): 0.2187955121,
    ("backbone", "stages", 2, 0, "convs", 1, "conv", "kernel"): 2.7213547520,
    ("fin", "convs", 0, "conv", "kernel"): 0.0231771953,
    ("fin", "convs", 3, "norm", "bias"): 0.0087689394,
    ("backbone", "head", "kernel"): 2.5236146378,
    ("backbone", "head", "bias"): 0.3387153514,
}


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def close(got, expected, atol=1e-9):
    np.testing.assert_allclose(got, expected, rtol=0, atol=atol)


@functools.cache
def compiled(training=False, dtype=jnp.float64):
    """``x -> outputs`` of the golden network."""
    graph, state = golden_net("lfi")
    state = jax.tree.map(lambda a: a.astype(dtype), state)
    run = jax.jit(functools.partial(forward, graph), static_argnums=2)
    return lambda x: run(state, jnp.asarray(x, dtype), training)


# The authors' numbers


@pytest.fixture(scope="module")
def arrays(shared):
    arrays = dict(np.load(shared / "golden" / "lficam_golden.npz"))
    return {k: v.transpose(0, 2, 3, 1) if v.ndim == 4 else v for k, v in arrays.items()}


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32])
def test_outputs_are_the_authors(arrays, mode, dtype):
    close(X, arrays["x"])
    out = compiled(mode == "train", dtype)(X)
    for name, key in (("logits", "logits"), ("attention", "att"), ("features", "layer3")):
        single = 1e-5 if mode == "eval" else 5e-5
        close(out[name], arrays[f"lfi_{mode}_{key}"], 1e-9 if dtype == jnp.float64 else single)


def test_importance_is_as_even_as_the_authors():
    w = compiled()(X)["importance"]
    effective = np.exp(-(w * np.log(w)).sum(-1)) / 64
    close(effective, [0.997524894, 0.985717683, 0.994111334, 0.991914003])


def test_loss_and_gradients_are_the_authors():
    graph, state = golden_net("lfi")
    loss, _, grads, _ = jax.jit(functools.partial(gradients, graph))(state, X)
    close(loss, 1.2632455908, 1e-10)
    leaves = dict(nnx.to_flat_state(grads))
    close(np.sqrt(sum((g[...] ** 2).sum() for g in leaves.values())), 6.7426969330)
    for place, norm in NORMS.items():
        close(np.linalg.norm(leaves[place][...]), norm)


def test_four_steps_of_sgd_are_the_authors():
    graph, state = golden_net("lfi")
    losses, state = jax.jit(functools.partial(descent, graph))(state, X)
    close(losses, LOSSES, 1e-8)
    norm = merge(graph, state).backbone.stem.norm
    close(norm.mean[:3], [0.003381673, -0.004496505, 0.001655332])
    close(norm.var[:3], [0.735273714, 0.750020635, 0.725321747])
    n = 4 * 32 * 32
    first = (0.9**4 - norm.var[:3]) * (n - 1) / n  # the share of running variance that is of data
    close(0.9**4 - first * (n / (n - 1)) ** 2, [0.735293, 0.750044, 0.725339], 1e-6)


# Its parts, by hand


def test_grey_is_the_mean_of_the_central_pixels():
    image = jnp.arange(1024.0).reshape(32, 32, 1)
    grey = masked_features(jnp.ones((8, 8, 1)), image)[..., 0]
    close(grey[0], [49.5, 53.5, 57.5, 61.5, 65.5, 69.5, 73.5, 77.5])
    wide = jax.random.normal(jax.random.key(0), (1, 224, 224, 3))
    cells = wide.mean(-1).reshape(1, 14, 16, 14, 16)[:, :, 7:9, :, 7:9].mean((2, 4))
    close(masked_features(jnp.ones((1, 14, 14, 1)), wide)[..., 0], cells)


ROWS = np.array(
    [[0, 0, 0, 0], [1, 0, 3, 0], [2, 2, 2, 2], [1, 2, 3, 5], [-1, 0, 1, 3]], dtype=float
)
UNIT = [[0, 0, 0, 0], [1 / 3, 0, 1, 0], [1, 1, 1, 1], [0, 0.25, 0.5, 1], [0, 0, 0.5, 1]]
SLOPE = [
    [0, 0, 0, 0],
    [1 / 3, -2 / 9, -1 / 9, 0],
    [0, 0, 0, 0],
    [-0.3125, 0.25, 0.25, -0.1875],
    [-0.125, 0, 0.25, -0.125],
]


def test_channels_are_scaled_one_by_one():
    maps = jnp.asarray(ROWS.T.reshape(2, 2, 5))
    close(_unit_channels(maps).reshape(4, 5).T, UNIT, 1e-15)
    with jax.debug_nans(True):
        slope = jax.grad(lambda f: _unit_channels(f).sum())(maps)
    close(slope.reshape(4, 5).T, SLOPE, 1e-15)


def test_the_map_and_what_it_does():
    features = jnp.asarray(
        np.stack([[[0, 1], [2, 4]], [[4, 0], [0, 0]], np.zeros((2, 2))], -1), float
    )
    a = attention_map(features, jnp.asarray([0.6, 0.25, 0.15]))
    close(a[..., 0], [[2 / 9, 0], [1 / 3, 1]], 1e-15)
    close(attend(features, a).mean((0, 1)), [2.916667, 1.222222, 0], 5e-7)


def test_a_constant_sum_stays_what_it_is():
    close(attention_map(jnp.full((2, 3, 1), 0.7), jnp.ones(1)), np.full((2, 3, 1), 0.7))
    close(attention_map(jnp.full((2, 3, 1), -0.7), jnp.ones(1)), np.zeros((2, 3, 1)))


# What holds for any network


def small(attention="learned", fin="paired"):
    """``(graph, state)`` of a narrow network in float64."""
    kinds = {"attention": attention, "fin": fin}
    return nnx.split(filled(lambda: models.lfi_cam_resnet8(width=4, num_classes=5, **kinds)))


@functools.cache
def shared_small():
    return small()


def pictures(n=4, size=(24, 20), seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal((n, *size, 3)))


def test_an_image_does_not_know_its_batch():
    graph, state = shared_small()
    run, x = jax.jit(functools.partial(forward, graph)), pictures()
    whole = run(state, x)
    alone = jax.jit(jax.vmap(functools.partial(forward, graph), (None, 0)))(state, x[:, None])
    other = run(state, x[::-1])
    for name, value in whole.items():
        close(alone[name][:, 0], value, 1e-12)
        close(other[name][::-1], value, 1e-12)


def test_weights_and_maps_are_normalised():
    out = forward(*shared_small(), pictures())
    assert out["importance"].min() >= 0
    close(out["importance"].sum(-1), np.ones(4), 1e-12)
    np.testing.assert_array_equal(out["attention"].min((1, 2, 3)), np.zeros(4))
    close(out["attention"].max((1, 2, 3)), np.ones(4), 1e-15)


def test_scale_and_order_of_maps_do_not_matter():
    rng = np.random.default_rng(0)
    features, w = rng.random((5, 6, 7)), jax.nn.softmax(rng.standard_normal(7))
    image, order = rng.standard_normal((20, 24, 3)), rng.permutation(7)
    close(masked_features(3 * features, image), masked_features(features, image), 1e-12)
    close(attention_map(3 * features, w), attention_map(features, w), 1e-12)
    close(attention_map(features[..., order], w[order]), attention_map(features, w), 1e-12)


def test_brightness_reaches_the_map_through_the_weights_only():
    graph, state = shared_small()
    x, features = pictures(), forward(graph, state, pictures())["features"]
    model = merge(graph, state)
    moved = model.importance(features, x + 0.5)
    assert np.abs(moved - model.importance(features, x)).max() > 1e-6
    fixed = jnp.full_like(moved, 1 / moved.shape[-1])
    for grey in (x, x + 0.5):  # with fixed weights there is no way for the picture to the map
        run = jax.grad(lambda g: attention_map(features, fixed + 0 * g.sum()).sum())
        close(run(grey), np.zeros_like(grey), 0)


def test_without_attention_it_is_the_backbone():
    graph, state = shared_small()
    x, model = pictures(), merge(graph, state)
    plain = jax.jit(lambda x: model.backbone(x))(x)
    off = jf.edit(lambda x: model(x), {"attention": jnp.zeros_like})
    np.testing.assert_array_equal(jax.jit(off)(x), plain)
    arm = nnx.eval_shape(lambda: models.lfi_cam_resnet8(width=4, num_classes=5, attention="off"))
    nnx.update(arm.backbone, nnx.state(model.backbone))
    np.testing.assert_array_equal(jax.jit(lambda x: arm(x))(x), plain)


def test_without_attention_a_step_is_the_backbones():
    graph, state = shared_small()
    x, labels = pictures(), jnp.arange(4)

    def loss(model, edited):
        f = jf.edit(model, {"attention": jnp.zeros_like}) if edited else model.backbone
        return loss_fn({"logits": f(x)}, labels)

    found = []
    for edited in (True, False):
        model = merge(graph, state)  # statistics stay as they are: an edit traces the network
        grads = nnx.grad(functools.partial(loss, edited=edited))(model)
        found.append(dict(nnx.to_flat_state(grads)))
    for place, grad in found[1].items():
        close(found[0][place][...], grad[...], 1e-12)


def test_grad_cam_of_what_is_attended_is_cam_times_attention():
    graph, state = shared_small()
    model, x = merge(graph, state), pictures(1)[0]
    out, k = model.forward(x[None]), 2
    got = jf.grad_cam(lambda x, k: model(x[None])[0, k], "attended", size=None)(x, k)
    features, a = out["features"][0], out["attention"][0, ..., 0]
    cam = features @ model.backbone.head.kernel[:, k]
    close(got, jax.nn.relu((1 + a) * cam) / a.size, 1e-15)


def test_sizes_that_do_not_divide():
    out = forward(*shared_small(), pictures(2, (31, 45)))
    assert out["attention"].shape == (2, 8, 12, 1)
    assert np.isfinite(out["logits"]).all()


@pytest.mark.parametrize("fill", [0.0, 1.0])
def test_constant_images_have_finite_gradients(fill):
    graph, state = shared_small()
    x = jnp.full((4, 24, 20, 3), fill)
    with jax.debug_nans(True):
        loss, out, grads, _ = jax.jit(functools.partial(gradients, graph))(state, x)
    assert np.isfinite(loss)
    assert all(np.isfinite(v).all() for v in jax.tree.leaves((out, grads)))


@pytest.mark.parametrize("channel", ["zero", "dead", "constant"])
def test_channels_that_say_nothing_have_finite_gradients(channel):
    graph, state = shared_small()
    model, x = merge(graph, state), pictures()
    features = model.forward(x)["features"]
    features = {
        "zero": jnp.zeros_like(features),
        "dead": features.at[..., 0].set(0),
        "constant": features.at[..., 0].set(2.5),
    }[channel]

    def loss(features):
        a = attention_map(features, model.importance(features, x))
        logits = model.backbone.classify(attend(features, a))
        return loss_fn({"logits": logits}, LABELS)

    with jax.debug_nans(True):
        value, slope = jax.jit(jax.value_and_grad(loss))(features)
    assert np.isfinite(value)
    assert np.isfinite(slope).all()


def test_bfloat16_makes_its_map_in_float32():
    with jax.enable_x64(False):
        build, x = models.lfi_cam_resnet8, pictures(2).astype(jnp.float32)
        models_ = [
            filled(functools.partial(build, width=4, dtype=dtype), jnp.float32)
            for dtype in (jnp.bfloat16, None)
        ]
        out, expected = (jax.jit(lambda x, model=m: model.forward(x))(x) for m in models_)
    assert out["features"].dtype == jnp.bfloat16
    assert out["attention"].dtype == out["importance"].dtype == jnp.float32
    close(out["attention"], expected["attention"], 0.1)


# The arms, the forms, the sizes


def test_tags():
    graph, state = shared_small()
    found = jf.tags(lambda x: merge(graph, state)(x), pictures(2))
    assert list(found) == "stem stage1 stage2 stage3 importance attention attended".split()
    assert found["importance"] == (2, 16)
    assert found["attention"] == (2, 6, 5, 1)
    assert found["attended"] == found["stage3"] == (2, 6, 5, 16)


def test_editing_the_features_reaches_all_their_uses():
    graph, state = shared_small()
    model, x = merge(graph, state), pictures(1)
    halved = jf.edit(lambda x: model.forward(x), {"stage3": lambda f: f.at[:, 0].set(0)})(x)
    features = model.forward(x)["features"].at[:, 0].set(0)
    w = model.importance(features, x)
    close(halved["importance"], w, 1e-12)
    close(halved["attention"], attention_map(features, w), 1e-12)


def test_uniform_weighs_all_channels_alike():
    graph, state = small("uniform")
    model = merge(graph, state)
    assert model.fin is None
    out = model.forward(pictures())
    close(out["importance"], np.full((4, 16), 1 / 16))
    close(out["attention"], attention_map(out["features"], jnp.ones((4, 16))), 1e-12)


def test_deep_is_as_large_as_lfi_cam_and_pays_no_attention():
    graph, state = small("deep")
    model = merge(graph, state)
    assert networks.count(model) == networks.count(merge(*shared_small()))
    out = model.forward(pictures())
    assert set(out) == {"logits", "features"}
    stage3 = model.backbone.features(pictures())
    close(out["features"], model.fin(stage3), 1e-12)
    assert list(jf.tags(lambda x: model(x), pictures()))[-1] == "deep"


def test_forms_of_fin_differ_in_their_relus():
    graph, state = small(fin="every")
    x = jnp.asarray(np.random.default_rng(2).standard_normal((1, 6, 5, 16)))
    y = x
    for conv in merge(graph, state).fin.convs:
        y = jax.nn.relu(conv(y))
    close(merge(graph, state).fin(x), y, 1e-12)
    paired = filled(lambda: Importance(16, dtype=None, rngs=nnx.Rngs(0)))
    paired.eval()
    a, b, c, d = paired.convs
    close(paired(x), jax.nn.relu(d(c(jax.nn.relu(b(a(x)))))), 1e-12)


def test_initial_weights_are_torchs():
    model = models.lfi_cam_resnet20(rngs=nnx.Rngs(0))
    kernel = np.asarray(model.fin.convs[1].conv.kernel)
    close(kernel.std(), np.sqrt(2 / (9 * 64)), 2e-3)
    assert np.abs(kernel).max() > 2.5 * kernel.std()  # not truncated at two
    head = model.backbone.head
    assert 0.11 < np.abs(head.kernel).max() <= 1 / 8
    assert 0 < np.abs(head.bias).max() <= 1 / 8
    close(kernel, models.lfi_cam_resnet20(rngs=nnx.Rngs(0)).fin.convs[1].conv.kernel, 0)


COUNTS = {  # depth: baseline, LFI-CAM; 10 and 100 classes
    8: (78_042, 226_010, 83_892, 231_860),
    20: (272_474, 420_442, 278_324, 426_292),
    32: (466_906, 614_874, 472_756, 620_724),
    44: (684_058, 3_045_402, 707_188, 3_068_532),
    56: (869_530, 3_230_874, 892_660, 3_254_004),
    110: (1_704_154, 4_065_498, 1_727_284, 4_088_628),
}


def counted(build):
    return networks.count(nnx.eval_shape(build))


@pytest.mark.parametrize("depth", [8, 20, pytest.param(44, marks=pytest.mark.slow)])
def test_parameters_of_cifar_networks(depth):
    check_counts(depth)


@pytest.mark.slow
@pytest.mark.parametrize("depth", [32, 56, 110])
def test_parameters_of_deeper_cifar_networks(depth):
    check_counts(depth)


def check_counts(depth):
    baseline, learned, more_baseline, more_learned = COUNTS[depth]
    model = nnx.eval_shape(lambda: getattr(models, f"lfi_cam_resnet{depth}")())
    assert networks.count(model) == learned
    assert networks.count(model.backbone) == baseline
    maps = 256 if depth >= 44 else 64
    assert networks.count(model.fin) == 36 * maps**2 + 8 * maps
    assert more_learned - learned == more_baseline - baseline == 90 * (maps + 1)


def test_parameters_of_the_test_size():
    for classes, baseline, learned in ((10, 19_954, 57_074), (2, 19_690, 56_810)):
        build = functools.partial(models.lfi_cam_resnet8, width=8, num_classes=classes)
        assert counted(build) == counted(lambda: build(attention="deep")) == learned
        assert counted(lambda: build(attention="off")) == baseline
        assert counted(lambda: build(attention="uniform")) == baseline


def test_parameters_of_twenty_classes():
    assert counted(lambda: models.lfi_cam_resnet20(num_classes=20)) == 421_092
    assert counted(lambda: projected_resnet(20, num_classes=20)) == 273_124


@pytest.mark.slow
def test_parameters_of_densenet():
    model = nnx.eval_shape(lambda: models.lfi_cam_densenet100(num_classes=100))
    assert networks.count(model) == 5_013_472
    assert networks.count(model.fin) == 4_213_440
    assert model.backbone.maps == 342


def test_parameters_of_imagenet_networks():
    model = nnx.eval_shape(models.lfi_cam_resnet18)
    assert networks.count(model) == 21_130_792
    assert networks.count(model.backbone) == 11_689_512
    assert networks.count(model.fin) == 9_441_280
    x = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    graph, state = nnx.split(model)
    out = jax.eval_shape(lambda state, x: nnx.merge(graph, state).forward(x), state, x)
    assert out["features"].shape == (1, 14, 14, 512)
    assert model.fin.form == "every"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "parameters"),
    [
        (resnet34, 31_238_952),
        (models.resnet50, 176_568_360),
        (resnet101, 195_560_488),
        (resnet152, 211_204_136),
    ],
)
def test_parameters_of_deeper_imagenet_networks(build, parameters):
    assert counted(lambda: lfi_cam(functools.partial(build, stem="fine"), {})) == parameters


@pytest.mark.parametrize(
    ("build", "size", "maps"),
    [
        (functools.partial(models.DenseNet, 4, (2, 2, 2), 8, stem="cifar"), 16, (4, 4, 16)),
        (functools.partial(models.DenseNet, 4, (2, 2), 8), 32, (4, 4, 16)),
        (functools.partial(models.ResNet, (1, 1), widths=(4, 6), stem="fine"), 16, (4, 4, 6)),
        (functools.partial(models.DemoNet, widths=(4, 6), strides=(2, 2), stem=4), 16, (2, 2, 6)),
    ],
)
def test_any_backbone(build, size, maps):
    model = filled(lambda: LfiCam(build(rngs=nnx.Rngs(0))))
    x = pictures(2, (size, size))
    out = jax.jit(lambda x: model.forward(x))(x)
    assert out["features"].shape == (2, *maps)
    assert out["attention"].shape == (2, *maps[:2], 1)
    assert out["logits"].shape == (2, model.backbone.head.out_features)
    assert [*jf.tags(lambda x: model(x), x)].count("attention") == 1


def test_a_vgg_takes_attention():
    model = nnx.eval_shape(lambda: models.lfi_cam_vgg16_bn(num_classes=7))
    graph, state = nnx.split(model)
    x = jax.ShapeDtypeStruct((2, 96, 64, 3), jnp.float32)
    out = jax.eval_shape(lambda state, x: nnx.merge(graph, state).forward(x), state, x)
    assert out["logits"].shape == (2, 7)
    assert out["attention"].shape == (2, 6, 4, 1)


# Bad input


@pytest.mark.parametrize("wrap", [LfiCam, Abn])
def test_a_backbone_keeps_its_weights(wrap):
    backbone = projected_resnet(8, width=4, rngs=nnx.Rngs(3))
    before = jax.tree.map(jnp.copy, nnx.state(backbone))
    jax.tree.map(np.testing.assert_array_equal, nnx.state(wrap(backbone).backbone), before)


def test_maps_of_one_position_are_refused():
    with pytest.raises(ValueError, match=r"the maps have one: \(4, 1, 1, 16\)"):
        forward(*shared_small(), pictures(size=(4, 4)))


def test_unknown_kinds():
    with pytest.raises(ValueError, match=r"'learned', 'uniform', 'off', 'deep'.*'none'"):
        models.lfi_cam_resnet8(attention="none")
    with pytest.raises(ValueError, match="'paired' or 'every', got 'each'"):
        models.lfi_cam_resnet8(fin="each")
