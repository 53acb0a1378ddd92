"""Scores and tags for every form that a model comes in, and errors for what is none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from jax.sharding import AxisType, PartitionSpec
from nets import CLASSES, LAYER_SIZE, TinyNnx, images, tiny

import jaxfmi as jf
from jaxfmi.modules import check_labels, functional

X = images(1)[0]
NET = tiny("nnx")
APPLY, PARAMS = functional(NET)
FORMS = {
    "nnx": NET,
    "linen": tiny("linen"),
    "f and params": (APPLY, PARAMS),
    "f": lambda x: APPLY(PARAMS, x),
}
LOGITS = NET(X[None])[0]
P = jax.nn.softmax(LOGITS)
every_form = pytest.mark.parametrize("form", FORMS)


def close(got, expected, atol=1e-6):
    np.testing.assert_allclose(got, expected, rtol=0, atol=atol)


@every_form
@pytest.mark.parametrize(
    ("of", "labels", "expected"),
    [
        (jf.logit, (3,), LOGITS[3]),
        (jf.probability, (3,), P[3]),
        (jf.log_odds, (3,), jnp.log(P[3] / (1 - P[3]))),
        (jf.margin, (3, 1), LOGITS[3] - LOGITS[1]),
        (lambda z: z.max(), (), LOGITS.max()),
        (lambda z, w: z @ w, (jnp.arange(5.0),), LOGITS @ jnp.arange(5.0)),
    ],
)
def test_scores(form, of, labels, expected):
    score = jf.class_score(FORMS[form], of=of)
    close(score(X, *labels), expected)
    close(jax.jit(score)(X, *labels), expected)
    close(jax.vmap(score)(X[None], *(jnp.asarray(v)[None] for v in labels)), expected[None])
    assert jf.saliency(score)(X, *labels).shape == X.shape[:2]


@pytest.mark.parametrize("scale", [1.0, 50.0])
@pytest.mark.parametrize("label", range(CLASSES))
def test_log_odds_are_exact_where_the_probability_saturates(label, scale):
    z = np.asarray(scale * LOGITS, np.float64)
    p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
    others = np.delete(p, label).sum()
    close(jf.log_odds(scale * LOGITS, label), np.log(p[label] / others), 1e-4)
    assert np.isfinite(jax.grad(jf.log_odds)(scale * LOGITS, label)).all()


def test_log_odds_of_a_lone_class_are_an_error():
    lone = jf.class_score(lambda x: x.mean((1, 2))[:, :1], of=jf.log_odds)
    with pytest.raises(ValueError, match="at least two classes"):
        jf.saliency(lone)(X, 0)
    with pytest.raises(ValueError, match="at least two classes"):
        jf.log_odds(jnp.ones(1), 0)


@every_form
@pytest.mark.parametrize("label", [-1, CLASSES, np.int64(99)])
def test_a_label_out_of_range(form, label):
    score = jf.class_score(FORMS[form])
    with pytest.raises(ValueError, match=f"label {label} is out of range: .* 5 classes, 0 to 4"):
        jf.saliency(score)(X, label)
    assert np.isnan(score(X, label))  # never another class's score
    assert np.isnan(jax.jit(score)(X, label))


@pytest.mark.parametrize("of", [jf.logit, jf.probability, jf.log_odds])
def test_a_label_out_of_range_is_nan_under_jit(of):
    score = jf.class_score(NET, of=of)
    assert np.isnan(jax.jit(score)(X, CLASSES))
    assert np.isnan(jax.jit(score)(X, -1))


def test_margin_checks_both_labels():
    with pytest.raises(ValueError, match="label 7 is out of range"):
        jf.saliency(jf.class_score(NET, of=jf.margin))(X, 1, 7)


@pytest.mark.parametrize("label", [1.0, np.float32(1), "1"])
def test_labels_are_integers(label):
    with pytest.raises((ValueError, TypeError), match="labels are integers"):
        jf.saliency(jf.class_score(NET))(X, label)


def test_other_functions_of_the_output_take_what_they_like():
    score = jf.class_score(NET, of=lambda z, w: (z * w).sum())
    assert np.isfinite(jf.saliency(score)(X, jnp.full(CLASSES, 99.0))).all()


def test_labels_of_images_that_are_spread_over_devices():
    """However the image lies, classes are counted; and only where a label can be checked."""
    mesh = jax.make_mesh((2,), ("part",), axis_types=(AxisType.Explicit,))
    calls = []

    def model(x):
        calls.append(x.shape)
        return x.mean((1, 2))

    score = jf.class_score(model)
    with jax.set_mesh(mesh):
        x = jax.device_put(np.ones((6, 4, 3), np.float32), PartitionSpec("part"))
        np.testing.assert_allclose(jf.saliency(score)(x, 1), 1 / 24, rtol=1e-6)
        with pytest.raises(ValueError, match="label 3 is out of range"):
            jf.saliency(score)(x, 3)
    calls.clear()
    shapes = jax.ShapeDtypeStruct((5, 4, 3), np.float32), jax.ShapeDtypeStruct((), np.int32)
    jax.eval_shape(jf.saliency(score), *shapes)
    assert len(calls) == 1


def test_check_labels():
    check_labels(np.arange(CLASSES), CLASSES)
    with pytest.raises(ValueError, match="label 5"):
        check_labels(np.arange(CLASSES + 1), CLASSES)


# Training mode


class Dropping(nnx.Module):
    def __init__(self):
        self.inner = nnx.Dropout(0.5, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.inner(x).mean((1, 2))


class LinenTraining(nn.Module):
    layer: nn.Module

    @nn.compact
    def __call__(self, x):
        return self.layer(x).mean((1, 2))


def training(net):
    net.train()
    return net


@pytest.mark.parametrize(
    ("net", "where"),
    [
        (training(TinyNnx()), r"norm0, norm1, norm2\)"),
        (training(Dropping()), "inner"),
        (training(nnx.BatchNorm(3, rngs=nnx.Rngs(0))), "BatchNorm"),
        (training(nnx.Sequential(*(nnx.Dropout(0.5) for _ in range(5)))), "and 2 more"),
    ],
)
@pytest.mark.parametrize("use", [jf.class_score, lambda net: jf.batched(jf.saliency, net)])
def test_an_nnx_network_in_training_mode(net, where, use):
    with pytest.raises(ValueError, match=rf"training mode \(.*{where}.*model\.eval\(\)"):
        use(net)


@pytest.mark.parametrize(
    "layer", [nn.BatchNorm(use_running_average=False), nn.Dropout(0.5, deterministic=False)]
)
def test_a_linen_network_in_training_mode(layer):
    net = LinenTraining(layer)
    variables = net.init({"params": jax.random.key(0), "dropout": jax.random.key(1)}, X[None])
    with pytest.raises(ValueError, match=r"linen model is in training mode: .*train=False"):
        jf.saliency(jf.class_score((net, variables)))(X, 0)


@pytest.mark.parametrize(
    "model", [3, "resnet", None, tiny("linen")[0], (1, 2), (NET, {}, {}), jnp.ones(3)]
)
def test_what_is_no_model(model):
    with pytest.raises(TypeError, match=r"expected an NNX module, \(linen module, variables\)"):
        jf.class_score(model)


def test_a_score_that_is_not_a_scalar():
    with pytest.raises(ValueError, match=r"one number per image, this one has shape \(1, 5\)"):
        jf.saliency(lambda x: FORMS["f"](x[None]))(X)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (X[None], r"one image \[H, W, C\].*batched or jax.vmap"),
        (X[..., 0], r"one image \[H, W, C\], got .*\(15, 11\)"),
        (np.zeros((15, 11, 3), np.uint8), "float image, got uint8"),
        (X.at[0, 0, :2].set(jnp.nan), "2 values that are NaN"),
        (X.at[0, 0, 0].set(jnp.inf), "1 values that are NaN or infinite"),
    ],
)
def test_what_is_no_image(x, message):
    with pytest.raises(ValueError, match=message):
        jf.grad_cam(jf.class_score(NET))(x, 0)


# Tags for models whose source is not ours


class Block(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(4, 4, (3, 3), rngs=rngs)

    def __call__(self, x):
        return jax.nn.relu(self.conv(x))


class Twice(nnx.Module):
    """A stem, a block that is used twice, a list, and a module that returns a pair."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.stem = nnx.Conv(3, 4, (3, 3), rngs=rngs)
        self.block = Block(rngs)
        self.heads = nnx.List([nnx.Linear(4, CLASSES, rngs=rngs)])
        self.pair = Pair()

    def __call__(self, x):
        x = self.block(self.block(self.stem(x)))
        return self.heads[0](self.pair(x)[0].mean((1, 2)))


class Pair(nnx.Module):
    def __call__(self, x):
        return x, 2 * x


MAPS = (1, 15, 11, 4)
TWICE = {
    "stem": MAPS,
    "block/conv": MAPS,
    "block": MAPS,
    "block/conv#2": MAPS,
    "block#2": MAPS,
    "heads/0": (1, CLASSES),
}


def test_tag_modules_of_nnx():
    net = Twice()
    tagged = jf.tag_modules(net)
    score = jf.class_score(tagged)
    assert list(jf.tags(score, X, 0).items()) == list(TWICE.items())
    assert jf.tags(score, X, 0) == TWICE  # and the same when it is called again
    close(tagged(X[None]), net(X[None]))
    assert jf.tags(jf.class_score(net), X, 0) == {}  # the original is untouched
    assert type(net.block) is Block
    assert isinstance(tagged, Twice)
    assert isinstance(tagged.block, Block)
    assert type(tagged.block).__name__ == "Block"
    close(jf.capture(score, "block#2")(X, 0)[1]["block#2"], net.block(net.block(net.stem(X[None]))))


def test_tag_modules_of_linen():
    module, variables = tiny("linen")
    score = jf.class_score(jf.tag_modules((module, variables)))
    found = jf.tags(score, X, 0)
    assert found["conv0"] == (1, 15, 11, 6)
    assert found["norm1"] == found["conv1"] == (1, *LAYER_SIZE, 8)
    assert found["dense"] == (1, CLASSES)
    assert jf.tags(score, X, 0) == found
    assert "conv0" not in jf.tags(jf.class_score((module, variables)), X, 0)
    close(score(X, 1), LOGITS[1])


class LinenTwice(nn.Module):
    @nn.compact
    def __call__(self, x):
        block = nn.Conv(3, (3, 3), name="block")
        return nn.Dense(CLASSES, name="dense")(block(block(x)).mean((1, 2)))


def test_tag_modules_of_linen_counts_calls():
    net = LinenTwice()
    variables = net.init(jax.random.key(0), X[None])
    score = jf.class_score(jf.tag_modules((net, variables)))
    assert list(jf.tags(score, X, 0)) == ["block", "block#2", "dense"]


@pytest.mark.parametrize("kind", ["nnx", "linen"])
def test_tagged_modules_are_explained_like_tags(kind):
    model = jf.tag_modules(tiny(kind))
    x, labels = images(3), np.array([0, 4, 2])
    expected = jax.vmap(jf.grad_cam(jf.class_score(tiny("nnx")), "down"))(x, labels)
    by_module = jf.batched(lambda s: jf.grad_cam(s, "down"), model, batch_size=2)(x, labels)
    close(by_module, expected)
    score = jf.class_score(model)
    got = jax.jit(jax.vmap(jf.grad_cam(score, "norm2")))(x, labels)
    head = jf.edit(score, {"norm2": lambda a: a})
    close(got, jax.vmap(jf.grad_cam(head, "norm2"))(x, labels))
    assert np.ptp(got) > 0


def test_tag_modules_of_what_it_cannot_open():
    with pytest.raises(TypeError, match=r"jaxfmi\.tag"):
        jf.tag_modules(lambda x: x)


def test_auto_takes_the_last_spatial_activation():
    score = jf.class_score(NET)
    close(jf.grad_cam(score)(X, 1), jf.grad_cam(score, "block")(X, 1))
    with pytest.raises(ValueError, match=r"'auto' needs a tagged activation.*no tags"):
        jf.grad_cam(lambda x: x.sum())(X)
    with pytest.raises(ValueError, match=r"'auto' needs .*there are 'pooled' \(3,\)"):
        jf.grad_cam(lambda x: jf.tag(x.mean((0, 1)), "pooled").sum())(X)
