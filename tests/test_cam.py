"""The CAM family against its twins, closed forms and laws."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference as ref
from nets import LAYER_SIZE, images, pooled_score, tiny, widened

import jaxfmi as jf
from jaxfmi import class_score, tag

RAW = {"relu": False, "size": None}
TWINS = {
    "grad_cam": ref.grad_cam,
    "grad_cam_pp": ref.grad_cam_pp,
    "xgrad_cam": ref.xgrad_cam,
    "hires_cam": ref.hires_cam,
    "layer_cam": ref.layer_cam,
    "eigen_cam": lambda a, g: ref.eigen_cam(a),
    "eigen_grad_cam": ref.eigen_grad_cam,
    "ablation_cam": None,
}
every_method = pytest.mark.parametrize("name", TWINS)


def close(got, expected, atol=1e-10):
    np.testing.assert_allclose(got, expected, rtol=0, atol=atol)


def near(got, expected, share):
    close(got, expected, share * np.abs(expected).max())


def explain(name, score, layer, *args, **options):
    return jax.jit(getattr(jf, name)(score, layer, **options))(*args)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(params=[True, False], ids=["float64", "float32"])
def wide(request):
    with jax.enable_x64(request.param):
        yield request.param


# Twins on the tiny network, at a layer with a nonlinear part behind it


@functools.cache
def tiny_values():
    """Activation, gradient and head of class 3 at the layer "down", in float64, from JAX."""
    model, x = tiny("nnx"), images(1, seed=1)[0]
    with jax.enable_x64(True):
        score, x = class_score(widened(model)), jnp.asarray(x, jnp.float64)
        a = jf.capture(score, "down")(x, 3)[1]["down"][0]
        head = jax.jit(lambda a: jf.edit(score, {"down": lambda _: a[None]})(x, 3))
        return np.asarray(a), np.asarray(jax.grad(head)(a)), head


@every_method
def test_twins(name, wide):
    a, g, head = tiny_values()
    with jax.enable_x64(True):
        twin = TWINS[name] or (lambda a, g: ref.ablation_cam(a, lambda v: head(jnp.asarray(v))))
        expected = twin(a, g).map
    model = widened(tiny("nnx")) if wide else tiny("nnx")
    x = jnp.asarray(images(1, seed=1)[0], jnp.float64 if wide else jnp.float32)
    got = explain(name, class_score(model), "down", x, 3, **RAW)
    assert got.dtype == x.dtype
    near(got, expected, 1e-10 if wide else 2e-5)
    got = explain(name, class_score(model), "down", x, 3)
    near(got, ref.resize_bilinear(ref.relu(expected), (15, 11)), 1e-10 if wide else 2e-5)


# Closed forms: global average pooling and a dense layer


@pytest.fixture
def pooled(rng):
    """Activation >= 0 with a dead channel, and weights of the class."""
    a, w = np.maximum(rng.standard_normal((3, 4, 5)), 0), rng.standard_normal(5)
    a[:, :, 2] = 0
    return a, w


def pooled_map(name, a, w, **options):
    score = pooled_score(jnp.asarray(w))
    return explain(name, score, "a", jnp.asarray(a), **(RAW | options))


@jax.enable_x64(True)
def test_closed_forms_of_a_pooled_head(pooled):
    a, w = pooled
    expected = ref.cam(a, w).map / 12
    close(pooled_map("cam", a, w), 12 * expected)
    close(pooled_map("grad_cam", a, w), expected)
    close(pooled_map("hires_cam", a, w), expected)
    close(pooled_map("hires_cam", a, w).sum() + 0.3, a.mean((0, 1)) @ w + 0.3)
    close(pooled_map("xgrad_cam", a, w), expected, 1e-7)  # the 1e-7 in its denominator
    close(pooled_map("layer_cam", a, w), ref.cam(a, np.maximum(w, 0)).map / 12)
    y = a.mean((0, 1)) @ w + 0.3
    close(pooled_map("ablation_cam", a, w), ref.cam(a, w * a.mean((0, 1)) / abs(y)).map)
    g = w / 12
    expected = 12 * np.maximum(g, 0) * g**2 / (2 * g**2 + a.sum((0, 1)) * g**3 + 1e-6)
    close(pooled_map("grad_cam_pp", a, w), ref.cam(a, expected).map)


@jax.enable_x64(True)
def test_an_ablated_score_of_zero_is_divided_by_one(pooled):
    a, _ = pooled
    total = jnp.asarray(a).sum()
    got = explain("ablation_cam", lambda v: tag(v, "a").sum() - total, "a", jnp.asarray(a), **RAW)
    close(got, ref.cam(a, a.sum((0, 1))).map)


@jax.enable_x64(True)
def test_grad_cam_of_a_cosine_sums_to_zero(pooled, rng):
    a, w = pooled

    def cosine(v):
        v = tag(v, "a").mean((0, 1))
        return v @ w / jnp.linalg.norm(v)

    close(explain("grad_cam", cosine, "a", jnp.asarray(a), **RAW).sum(), 0)


# Laws, on a head that is not linear


def bilinear(v, w):
    """v [h, w, K], w [K, 3] -> scalar, whose gradient differs between positions."""
    hidden = jax.nn.relu(v @ w - 0.2)
    return (hidden[1:] * hidden[:-1]).sum() + hidden.sum()


def tagged(f):
    return lambda v, *args: f(tag(v, "a"), *args)


@pytest.fixture
def operands(pooled, rng):
    with jax.enable_x64(True):
        yield jnp.asarray(pooled[0]), jnp.asarray(rng.standard_normal((5, 3)))


def raw(name, f, *args):
    return explain(name, tagged(f), "a", *args, **RAW)


METHODS = [n for n in TWINS if not n.startswith("eigen")]


@pytest.mark.parametrize("name", METHODS)
def test_channels(operands, rng, name):
    """Order, dead channels and channels that the head ignores change nothing."""
    a, w = operands
    expected = raw(name, bilinear, a, w)
    assert np.isfinite(expected).all()
    order, live = rng.permutation(5), np.array([0, 1, 3, 4])
    close(raw(name, bilinear, a[..., order], w[order]), expected)
    close(raw(name, bilinear, a[..., live], w[live]), expected)
    ignored = jnp.concatenate([a, a[..., :1] + 2], -1), jnp.concatenate([w, 0 * w[:1]])
    close(raw(name, bilinear, *ignored), expected)


@pytest.mark.parametrize("name", [n for n in METHODS if n != "grad_cam_pp"])
def test_scaling_and_shifting_the_score(operands, name):
    plain = raw(name, bilinear, *operands)
    scaled = raw(name, lambda *v: 3 * bilinear(*v), *operands)
    close(scaled, plain if name == "ablation_cam" else 3 * plain)
    if name != "ablation_cam":  # its weights are shares of the score
        close(raw(name, lambda *v: bilinear(*v) + 7, *operands), plain)


@pytest.mark.parametrize("name", ["grad_cam", "hires_cam"])
def test_linear_in_the_score(operands, name):
    def sine(v, w):
        return jnp.sin(v).sum()

    def mixed(*v):
        return 2 * bilinear(*v) - 5 * sine(*v)

    expected = 2 * raw(name, bilinear, *operands) - 5 * raw(name, sine, *operands)
    close(raw(name, mixed, *operands), expected)


def test_cancelling_channels(operands):
    """XGrad-CAM's weight of a channel whose sum cancels is large, and finite where it vanishes."""
    a = jnp.stack([jnp.ones((3, 4)), jnp.tile(jnp.array([1.0, -1.0]), (3, 2))], -1)
    got = raw("xgrad_cam", lambda v: (v[..., 0] + v[..., 1] ** 2).sum(), a)
    close(got, 1 + 24 / 1e-7 * a[..., 1], 1e-6 * 24 / 1e-7)


@pytest.mark.parametrize("name", TWINS)
@pytest.mark.parametrize("value", [0.0, -1.0, 1.0])
def test_flat_and_negative_activations_give_no_nan(operands, name, value):
    """Grad-CAM++ at g = 0 and A = 0 among them."""
    a = jnp.full((3, 4, 5), value)
    with jax.debug_nans(True):
        for f in (lambda v: (v**2).sum(), lambda v: v[0, 0, 0], lambda v: 0 * v.sum()):
            assert np.isfinite(raw(name, f, a)).all()


@pytest.mark.parametrize("name", [n for n in METHODS if n != "layer_cam"])
def test_a_map_that_is_negative_everywhere_becomes_zeros(name, operands):
    a = operands[0] + 0.1

    def falling(v):
        return -v.mean((0, 1)).sum()

    assert (raw(name, falling, a) <= 0).all()
    got = explain(name, tagged(falling), "a", a, size=(9, 7))
    assert not got.any()
    assert not jf.heatmap.unit(got).any()


@pytest.mark.parametrize("shape", [(3, 4, 5), (5, 4, 6), (2, 2, 9)])  # both Gram matrices
def test_eigen_cam_points_its_largest_value_up(rng, shape):
    with jax.enable_x64(True):
        for a in rng.standard_normal((4, *shape)):
            got = raw("eigen_cam", jnp.sum, jnp.asarray(a))
            close(got, ref.eigen_cam(a).map, 1e-12)
            assert np.abs(got).max() == got.max()
            close(raw("eigen_cam", jnp.sum, -jnp.asarray(a)), got, 1e-12)


def test_eigen_cam_ignores_the_class():
    score, x = class_score(tiny("nnx")), images(1)[0]
    close(explain("eigen_cam", score, "down", x, 1), explain("eigen_cam", score, "down", x, 4))


# Layers


@pytest.mark.parametrize("name", [*TWINS, "guided_grad_cam"])
def test_several_layers_are_single_layers(name):
    score, x = class_score(tiny("nnx")), images(1)[0]
    layers = ["stem", "block", "down"]
    maps = explain(name, score, layers, x, 1)
    assert isinstance(maps, list)
    for layer, m in zip(layers, maps, strict=True):
        near(m, np.asarray(explain(name, score, layer, x, 1)), 1e-5)
    assert explain(name, score, ("down",), x, 1)[0].shape == x.shape[:2]


def convolutions(f, *args) -> int:
    return jax.jit(f).lower(*args).compile().as_text().count(" convolution(")


@pytest.mark.parametrize("name", ["grad_cam", "layer_cam"])
def test_layers_share_one_backward_pass(name):
    """Of three convolutions forward, and backward those behind the shallowest layer."""
    score, x = class_score(tiny("nnx")), images(1)[0]
    method = getattr(jf, name)
    assert convolutions(jax.value_and_grad(score), x, 1) == 6
    assert convolutions(method(score, ["stem", "down", "block"]), x, 1) == 3 + 2
    assert convolutions(method(score, ["block", "down"]), x, 1) == 3 + 1
    assert convolutions(method(score, "block"), x, 1) == 3


def test_ablation_runs_only_what_is_behind_the_layer():
    score, x = class_score(tiny("nnx")), images(1)[0]
    method = functools.partial(jf.ablation_cam, score, chunk=None)
    assert convolutions(method("block"), x, 1) == 3
    assert convolutions(method("down"), x, 1) <= 3 + 2  # the head: on A, and on all channels' A


def test_cam_needs_a_linear_head():
    score, x = class_score(tiny("nnx")), images(1)[0]
    with pytest.raises(ValueError, match=r"linear in layer 'down'.*hires_cam and grad_cam"):
        jf.cam(score, "down")(x, 1)
    with pytest.raises(ValueError, match="linear in layer 'block'"):
        jf.cam(lambda x, k: score(x, k) ** 2, "block")(x, 1)
    got = explain("cam", score, "block", x, 1, size=None)
    near(got, 48 * np.asarray(explain("grad_cam", score, "block", x, 1, **RAW)), 1e-5)


@pytest.mark.parametrize("name", [*TWINS, "cam", "afmi"])
@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("blok", r"no tag 'blok' \(did you mean 'block'\?\)"),
        ("pooled", r"layer 'pooled' has shape \(1, 8\); expected an activation \[h, w, K\]"),
    ],
)
def test_a_layer_that_does_not_fit(name, layer, message):
    with pytest.raises(ValueError, match=message):
        getattr(jf, name)(class_score(tiny("nnx")), layer)(images(1)[0], 1)


def test_a_leading_batch_axis_is_squeezed_and_no_other():
    x = images(1)[0]
    plain = explain("grad_cam", lambda v: (tag(v, "a") ** 3).sum(), "a", x)
    close(explain("grad_cam", lambda v: (tag(v[None], "a") ** 3).sum(), "a", x), plain)
    with pytest.raises(ValueError, match=r"shape \(2, 15, 11, 3\)"):
        explain("grad_cam", lambda v: tag(jnp.stack([v, v]), "a").sum(), "a", x)


def test_sizes():
    score, x = class_score(tiny("nnx")), images(1)[0]
    small = explain("grad_cam", score, "down", x, 1, size=None)
    assert small.shape == LAYER_SIZE
    near(explain("grad_cam", score, "down", x, 1), ref.resize_bilinear(small, (15, 11)), 1e-6)
    near(
        explain("grad_cam", score, "down", x, 1, size=(4, 7)),
        ref.resize_bilinear(small, (4, 7)),
        1e-6,
    )
