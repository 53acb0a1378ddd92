"""The embedding networks: sizes, tags, shapes, padding and weights from other programs' files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from jaxfmi.models import Conv4, Projected, Projection, ResNet12, load, save
from jaxfmi.taps import capture, tags


def shapes(build, *shape):
    """Shapes of the tagged activations and of the output, without computing any."""
    graph, state = nnx.split(nnx.eval_shape(build))
    x = jax.ShapeDtypeStruct(shape, jnp.float32)

    def apply(state, x):
        return nnx.merge(graph, state)(x)

    return tags(apply, state, x), jax.eval_shape(apply, state, x).shape


def parameters(build):
    state = nnx.state(nnx.eval_shape(build), nnx.Param)
    return sum(int(np.prod(v.shape)) for v in jax.tree.leaves(state))


def test_parameters_are_as_many_as_published():
    assert parameters(ResNet12) == 12_424_320
    assert parameters(lambda: Conv4(bias=True)) == 113_088


def test_resnet12_of_the_usual_input():
    found, out = shapes(ResNet12, 2, 84, 84, 3)
    assert found == {
        "block1": (2, 42, 42, 64),
        "block2": (2, 21, 21, 160),
        "block3": (2, 10, 10, 320),
        "block4": (2, 5, 5, 640),
    }
    assert out == (2, 640)


@pytest.mark.parametrize(
    ("size", "widths", "pools", "last"),
    [
        (28, (32, 64, 64, 64), (1, 2), (1, 7, 7, 64)),
        (64, (32, 32, 64, 64), (1, 2, 3), (1, 8, 8, 64)),
        (32, (16, 32, 64, 128), (1, 2), (1, 8, 8, 128)),
        (28, (64, 64, 64, 64), (1, 2, 3, 4), (1, 1, 1, 64)),
    ],
)
def test_conv4_pools_where_it_is_told(size, widths, pools, last):
    found, out = shapes(lambda: Conv4(widths, pools, channels=1), 1, size, size, 1)
    assert list(found) == ["block1", "block2", "block3", "block4"]
    assert found["block4"] == last
    assert out == (1, widths[-1])


def test_conv4_as_published_flattens_84_pixels_to_1600():
    _, out = shapes(lambda: Conv4(flatten=True, padding="SYMMETRIC"), 3, 84, 84, 3)
    assert out == (3, 1600)


def test_conv4_refuses_pools_of_blocks_that_it_lacks():
    with pytest.raises(ValueError, match=r"blocks 1 to 2, got \(0, 3\)"):
        Conv4((4, 4), (0, 3))


@pytest.mark.parametrize("flatten", [False, True])
def test_embedding_is_the_last_map_and_not_of_norm_one(flatten):
    model = Conv4((4, 6), (1,), flatten=flatten)
    x = jax.random.normal(jax.random.key(0), (2, 8, 10, 3))
    out, found = capture(model, "block2")(x)
    a = found["block2"]
    np.testing.assert_allclose(a, model.features(x), rtol=1e-6)
    np.testing.assert_allclose(out, a.reshape(2, -1) if flatten else a.mean((1, 2)), rtol=1e-6)
    assert (a >= 0).all()
    doubled = model(x * 2)
    assert (jnp.linalg.norm(doubled, axis=1) > 1.5 * jnp.linalg.norm(out, axis=1)).all()


def test_a_flat_picture_stays_flat_under_reflection_only():
    flat = jnp.ones((1, 8, 8, 3))
    reflected = Conv4((4,), ()).features(flat)
    zeros = Conv4((4,), (), padding="SYMMETRIC").features(flat)
    np.testing.assert_allclose(reflected, jnp.broadcast_to(reflected[:, :1, :1], (1, 8, 8, 4)))
    assert np.ptp(zeros, axis=(1, 2)).max() > 0.01


def test_resnet12_block_is_the_published_one():
    model = ResNet12((4, 6))
    x = jax.random.normal(jax.random.key(0), (2, 8, 12, 3))
    block = model.blocks[0]
    y = x
    for i, conv in enumerate(block.convs):
        y = conv(y)
        y = y if i == 2 else jnp.where(y > 0, y, 0.1 * y)
    y += block.shortcut(x)
    y = jnp.where(y > 0, y, 0.1 * y).reshape(2, 4, 2, 6, 2, 4).max((2, 4))
    np.testing.assert_allclose(block(x), y, rtol=1e-5, atol=1e-6)
    assert model(x).shape == (2, 6)
    assert model.features(x).shape == (2, 2, 3, 6)
    assert (model.features(x) < 0).any()


def test_weights_of_other_programs_fit(tmp_path):
    """Their names, torch's layout: the file is written by hand from a model of ours."""
    for build in (lambda: Conv4((4, 6), (1,), bias=True), lambda: ResNet12((4, 6))):
        model = build()
        (names,) = model.names().values()
        flat = nnx.to_flat_state(nnx.state(model, (nnx.Param, nnx.BatchStat)))
        leaves = {"kernel": "weight", "scale": "weight", "mean": "running_mean"}
        entries = {}
        for place, variable in flat:
            *layer, leaf = map(str, place)
            value = np.asarray(variable[...]) + 0.5
            value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value
            key = f"{names['.'.join(layer)]}.{leaves.get(leaf, leaf).replace('var', 'running_var')}"
            entries[key] = np.ascontiguousarray(value)
        save_file(entries, tmp_path / "theirs.safetensors")
        loaded = load(build(), tmp_path / "theirs.safetensors")
        for ours, before in zip(
            jax.tree.leaves(nnx.state(loaded)), jax.tree.leaves(nnx.state(model)), strict=True
        ):
            np.testing.assert_allclose(ours, before + 0.5)


def test_projection_is_the_formula_and_is_saved_with_its_backbone(tmp_path):
    head = Projection(5, 7, 3)
    h = jax.random.normal(jax.random.key(0), (4, 5))
    w1, w2 = head.hidden.kernel[...], head.out.kernel[...]
    np.testing.assert_allclose(head(h), jnp.maximum(h @ w1, 0) @ w2, rtol=1e-5, atol=1e-6)
    model = Projected(Conv4((4, 5), (1,)), head)
    x = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
    np.testing.assert_allclose(model(x), head(model.backbone(x)), rtol=1e-6)
    save(model, tmp_path / "model.safetensors")
    other = Projected(Conv4((4, 5), (1,), rngs=nnx.Rngs(1)), Projection(5, 7, 3, rngs=nnx.Rngs(1)))
    load(other, tmp_path / "model.safetensors")
    np.testing.assert_array_equal(other(x), model(x))
    assert list(tags(model, x)) == ["block1", "block2"]
