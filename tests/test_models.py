"""The networks: sizes, tags, shapes and pools, against published figures and plain arithmetic."""

from functools import cache, partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxfmi.models import MODELS, ResNet, cifar_resnet20, mobilenet_v1, resnet18
from jaxfmi.models.layers import ConvNorm, adaptive_avg_pool, avg_pool, convolve, max_pool
from jaxfmi.taps import tags

PARAMETERS = {
    "vgg11": 132_863_336,
    "vgg16": 138_357_544,
    "vgg16_bn": 138_365_992,
    "vgg19_bn": 143_678_248,
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "squeezenet1_0": 1_248_424,
    "squeezenet1_1": 1_235_496,
    "mobilenet_v1": 4_231_976,
    "mobilenet_v2": 3_504_872,
    "densenet121": 7_978_856,
    "densenet161": 28_681_000,
    "densenet169": 14_149_480,
    "densenet201": 20_013_928,
    "cifar_resnet20": 269_722,
    "cifar_resnet32": 464_154,
    "cifar_resnet44": 658_586,
    "cifar_resnet56": 853_018,
    "cifar_resnet110": 1_727_962,
}

LARGE = ("resnet152", "densenet161", "densenet169", "densenet201")

# Channels @ size of the last tag of each run of equal sizes, at 224×224.
LAST_OF_SIZE = {
    "vgg16": "64@224 128@112 256@56 512@28 512@14",
    "vgg16_bn": "64@224 128@112 256@56 512@28 512@14",
    "resnet18": "64@112 64@56 128@28 256@14 512@7",
    "resnet34": "64@112 64@56 128@28 256@14 512@7",
    "resnet50": "64@112 256@56 512@28 1024@14 2048@7",
    "densenet121": "64@112 128@56 256@28 512@14 1024@7",
    "mobilenet_v1": "64@112 128@56 256@28 512@14 1024@7",
    "mobilenet_v2": "16@112 24@56 32@28 96@14 1280@7",
}

NAMES = {
    "vgg11": "relu1_1 relu2_1 relu3_1 relu3_2 relu4_1 relu4_2 relu5_1 relu5_2",
    "resnet18": "stem stage1/0 stage1 stage2/0 stage2 stage3/0 stage3 stage4/0 stage4",
    "squeezenet1_1": "conv1 fire2 fire3 fire4 fire5 fire6 fire7 fire8 fire9 conv_final",
    "mobilenet_v1": "conv0 " + " ".join(f"block{i}" for i in range(1, 14)),
    "mobilenet_v2": "stem " + " ".join(f"block{i}" for i in range(1, 18)) + " head",
    "cifar_resnet20": "stem "
    + " ".join(f"stage{s}{b}" for s in (1, 2, 3) for b in ("/0", "/1", "")),
}


@cache
def split(name):
    """The network's structure and the shapes of its state, without computing any."""
    return nnx.split(nnx.eval_shape(MODELS[name].build))


def tag_shapes(name, size):
    graph, state = split(name)
    x = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    return tags(lambda state, x: nnx.merge(graph, state)(x), state, x)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in LARGE else ()) for n in PARAMETERS]
)
def test_parameters_are_as_many_as_published(name):
    parameters = nnx.state(nnx.merge(*split(name)), nnx.Param)
    assert sum(np.prod(v.shape) for v in jax.tree.leaves(parameters)) == PARAMETERS[name]


@pytest.mark.parametrize("name", LAST_OF_SIZE)
def test_last_tag_of_each_size(name):
    shapes = list(tag_shapes(name, 224).values())
    last = [a for a, b in pairwise(shapes) if b[1] < 0.9 * a[1]] + shapes[-1:]
    assert " ".join(f"{c}@{h}" for _, h, _, c in last) == LAST_OF_SIZE[name]


@pytest.mark.parametrize("name", NAMES)
def test_tags_come_in_order(name):
    assert list(tag_shapes(name, 64)) == NAMES[name].split()


def test_tags_of_densenet():
    found = tag_shapes("densenet121", 224)
    assert len(found) == 1 + sum((6, 12, 24, 16)) + 4 + 3 + 1
    assert [n for n in found if "/" not in n] == (
        "stem block1 transition1 block2 transition2 block3 transition3 block4 norm5".split()
    )
    assert found["block1/0"] == (1, 56, 56, 32)
    assert found["block1"] == (1, 56, 56, 256)


@pytest.mark.parametrize("name", ["vgg11_bn", "squeezenet1_0", "densenet121", "cifar_resnet20"])
def test_logits_of_the_usual_input(name):
    shape = (2, *MODELS[name].preprocess.size, 3)
    logits = output(nnx.merge(*split(name)), *shape)
    assert logits.shape == (2, 10 if "cifar" in name else 1000)


@pytest.mark.parametrize(
    ("name", "smallest"), [("squeezenet1_0", 21), ("densenet121", 29), ("vgg11", 32)]
)
def test_too_small_an_input_is_an_error(name, smallest):
    tag_shapes(name, smallest)
    with pytest.raises(ValueError, match="does not fit 1 entries"):
        tag_shapes(name, smallest - 1)


def output(model, *shape):
    """What the network would return for an input of that shape, without computing it."""
    graph, state = nnx.split(model)
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    return jax.eval_shape(lambda state, x: nnx.merge(graph, state)(x), state, x)


def test_options():
    options = {"num_classes": 7, "channels": 1, "width": 0.25, "norm": False, "padding": "SAME"}
    model = nnx.eval_shape(lambda: mobilenet_v1(**options))
    assert output(model, 2, 33, 40, 1).shape == (2, 7)
    assert not nnx.state(model, nnx.BatchStat)


def test_options_of_small_inputs():
    model = nnx.eval_shape(lambda: resnet18(stem="cifar"))
    assert output(model, 1, 32, 24, 3).shape == (1, 1000)
    assert model.stem.conv.kernel_size == (3, 3)


@pytest.mark.parametrize(("stride", "equal"), [(1, True), (2, False)])
def test_same_padding_differs_at_stride_2_only(stride, equal):
    x = jax.random.normal(jax.random.key(0), (1, 8, 8, 3))
    symmetric, same = (
        ConvNorm(3, 4, 3, stride=stride, padding=p, norm=False, rngs=nnx.Rngs(0))
        for p in ("SYMMETRIC", "SAME")
    )
    assert symmetric(x).shape == same(x).shape
    assert np.allclose(symmetric(x), same(x), atol=1e-6) == equal


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("size", [7, 8, 9])
@pytest.mark.parametrize("window", [3, 4])
def test_an_unpadded_convolution_is_xlas(size, window, stride):
    layout = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "feature_group_count": 1}
    layout |= {"lhs_dilation": (1, 1), "rhs_dilation": (1, 1), "precision": "highest"}

    def program(conv, x, kernel):
        return conv(x, kernel, (stride, stride), "VALID", **layout)

    x = jax.random.normal(jax.random.key(0), (2, size, size, 3))
    kernel = jax.random.normal(jax.random.key(1), (window, window, 3, 5))
    given, back = jax.vjp(partial(program, convolve), x, kernel)
    expected, back_of_xla = jax.vjp(partial(program, jax.lax.conv_general_dilated), x, kernel)
    np.testing.assert_allclose(given, expected, atol=1e-5)
    for one, other in zip(back(expected), back_of_xla(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-3)


LAYOUT = {
    "dimension_numbers": ("NHWC", "HWIO", "NHWC"),
    "lhs_dilation": (1, 1),
    "rhs_dilation": (1, 1),
    "precision": "highest",
}


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("count", "parts"), [(1, 1), (8, 1), (20, 3), (130, 15)])
def test_the_gradient_of_a_kernel_is_xlas_over_parts_of_the_batch(count, parts, groups):
    x, kernel, dx, dkernel = (
        jax.random.normal(jax.random.key(i), shape)
        for i, shape in enumerate([(count, 5, 6, 4), (3, 3, 4 // groups, 6)] * 2)
    )

    def program(conv, x, kernel):
        return conv(x, kernel, (1, 2), ((1, 1), (1, 1)), feature_group_count=groups, **LAYOUT)

    ours, xla = (partial(program, f) for f in (convolve, jax.lax.conv_general_dilated))
    y, back = jax.vjp(ours, x, kernel)
    for got, expected in (
        (back(y), jax.vjp(xla, x, kernel)[1](y)),
        (jax.jvp(ours, (x, kernel), (dx, dkernel)), jax.jvp(xla, (x, kernel), (dx, dkernel))),
        (
            jax.jvp(ours, (x, kernel), (0 * dx, dkernel)),
            jax.jvp(xla, (x, kernel), (0 * dx, dkernel)),
        ),
    ):
        for one, other in zip(got, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-3)

    def convolutions(argument):
        loss = jax.grad(lambda *a: (ours(*a) ** 2).sum(), argument)
        return str(jax.make_jaxpr(loss)(x, kernel)).count("conv_general_dilated[")

    assert convolutions(0) == 2  # an explanation pays for no gradient of the kernel
    assert convolutions(1) == 1 + parts


def test_second_derivatives_of_a_kernel():
    x = jax.random.normal(jax.random.key(0), (10, 5, 6, 2))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 2, 3))

    def curvature(conv):
        def loss(kernel, x):
            y = conv(x, kernel, (1, 1), "SAME", feature_group_count=1, **LAYOUT)
            return jnp.tanh(y).sum()

        slope = lambda k, x: (jax.grad(loss)(k, x) * kernel).sum()  # noqa: E731
        return jax.grad(slope, (0, 1))(kernel, x)

    for one, other in zip(
        curvature(convolve), curvature(jax.lax.conv_general_dilated), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-3)


def test_bfloat16_computes_in_it_and_keeps_parameters():
    model = nnx.eval_shape(lambda: cifar_resnet20(dtype=jnp.bfloat16))
    assert output(model, 1, 32, 32, 3).dtype == jnp.bfloat16
    assert {v.dtype for v in jax.tree.leaves(nnx.state(model, nnx.Param))} == {jnp.dtype("float32")}


def test_default_parameters_are_fixed():
    first, same, other = (ResNet((1,), widths=(4,), rngs=r) for r in (None, None, nnx.Rngs(1)))
    np.testing.assert_array_equal(first.stem.conv.kernel, same.stem.conv.kernel)
    assert not np.allclose(first.stem.conv.kernel, other.stem.conv.kernel)


def test_evaluation_changes_nothing_and_training_does():
    x = jax.random.normal(jax.random.key(0), (4, 32, 32, 3))
    model = ResNet((1, 1), widths=(4, 8), stem="cifar")
    before = jax.tree.map(jnp.copy, nnx.state(model, nnx.BatchStat))
    evaluated = model(x)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, before, nnx.state(model, nnx.BatchStat)))
    model.train()
    model(x)
    assert not jax.tree.all(jax.tree.map(jnp.array_equal, before, nnx.state(model, nnx.BatchStat)))
    model.eval()
    assert not np.allclose(model(x), evaluated)


@pytest.mark.parametrize("name", ["vgg11", "squeezenet1_0", "mobilenet_v2"])
def test_dropout_is_for_training(name):
    model = nnx.eval_shape(MODELS[name].build)
    assert model.dropout.deterministic
    model.train()
    assert not model.dropout.deterministic


def plain_max_pool(x, window, stride, padding, ceil_mode):
    """One window after the other; torch's rule for the last: it begins before the far padding."""
    n, h, w, c = x.shape
    rounding = np.ceil if ceil_mode else np.floor
    rows, cols = (int(rounding((s + 2 * padding - window) / stride)) + 1 for s in (h, w))
    starts = [
        [i * stride - padding for i in range(count) if i * stride - padding < size]
        for count, size in ((rows, h), (cols, w))
    ]
    out = np.empty((n, len(starts[0]), len(starts[1]), c), x.dtype)
    for i, top in enumerate(starts[0]):
        for j, left in enumerate(starts[1]):
            inside = x[:, max(top, 0) : top + window, max(left, 0) : left + window]
            out[:, i, j] = inside.max(axis=(1, 2))
    return out


@pytest.mark.parametrize("size", [(6, 7), (9, 4), (13, 12)])
@pytest.mark.parametrize(("window", "stride", "padding"), [(2, 2, 0), (3, 2, 0), (3, 2, 1)])
@pytest.mark.parametrize("ceil_mode", [False, True])
def test_max_pool_value(size, window, stride, padding, ceil_mode):
    x = np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)
    expected = plain_max_pool(x, window, stride, padding, ceil_mode)
    given = max_pool(jnp.asarray(x), window, stride, padding, ceil_mode)
    np.testing.assert_array_equal(given, expected)


@pytest.mark.parametrize("size", [(6, 7), (9, 4), (13, 12)])
@pytest.mark.parametrize(("window", "stride", "padding"), [(2, 2, 0), (3, 2, 0), (3, 2, 1)])
def test_max_pool_value_and_gradient_equal_flax(size, window, stride, padding):
    x = jax.random.normal(jax.random.key(0), (2, *size, 3))
    pads = ((padding, padding),) * 2

    def ours(x):
        return jnp.sum(max_pool(x, window, stride, padding) ** 3)

    def flax(x):
        return jnp.sum(nnx.max_pool(x, (window, window), (stride, stride), pads) ** 3)

    for given, expected in zip(
        jax.value_and_grad(ours)(x), jax.value_and_grad(flax)(x), strict=True
    ):
        np.testing.assert_allclose(given, expected, rtol=1e-6)


def test_max_pool_shares_the_gradient_of_ties():
    gradient = jax.grad(lambda x: jnp.sum(max_pool(x, 2, 2)))(jnp.ones((1, 2, 2, 1)))
    np.testing.assert_array_equal(gradient.ravel(), [1 / 8, 1 / 8, 1 / 4, 1 / 2])


def test_max_pool_takes_half_precision_and_one_example():
    x = jnp.arange(32, dtype=jnp.bfloat16).reshape(4, 4, 2)
    pooled = max_pool(x, 3, 2, padding=1)
    assert pooled.dtype == jnp.bfloat16
    np.testing.assert_array_equal(pooled[..., 0], [[10, 14], [26, 30]])


def test_avg_pool():
    x = jnp.arange(15.0).reshape(1, 3, 5, 1)
    np.testing.assert_array_equal(avg_pool(x, 2)[0, ..., 0], [[3.0, 5.0]])


def test_adaptive_avg_pool_overlaps_and_repeats():
    x = jnp.arange(5.0).reshape(1, 5, 1, 1)
    pooled = adaptive_avg_pool(x, 3)
    assert pooled.shape == (1, 3, 3, 1)
    for column in range(3):
        np.testing.assert_allclose(pooled[0, :, column, 0], [0.5, 2.0, 3.5])
