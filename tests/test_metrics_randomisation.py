"""Parameter randomisation: the order of layers, what is random, and what Adebayo et al. saw."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from nets import CLASSES, images, tiny

import jaxfmi as jf
from jaxfmi.metrics import (
    normal_like,
    parameter_layers,
    parameter_randomisation,
    pearson,
    shuffled,
    ssim,
)
from jaxfmi.metrics.randomisation import redrawn
from jaxfmi.modules import functional

NET = tiny("nnx")
APPLY, PARAMS = functional(NET)
FORMS = {
    "nnx": NET,
    "linen": tiny("linen"),
    "f and the state": (APPLY, PARAMS),
    "f and linen's variables": jf.tag_modules(tiny("linen")),
}
LAYERS = ["conv0", "norm0", "conv1", "norm1", "conv2", "norm2", "dense"]
X = images(1)[0]
LABEL = 2
KEY = jax.random.key(11)
METHOD = jf.input_x_gradient
MODES = pytest.mark.parametrize("mode", ["cascading", "independent"])


def close(got, expected, atol=1e-5):
    np.testing.assert_allclose(got, expected, rtol=0, atol=atol)


# Layers


@pytest.mark.parametrize("form", FORMS)
def test_layers_are_in_the_order_of_the_network(form):
    assert parameter_layers(FORMS[form], X) == LAYERS


def dense(p, x):
    return x @ p["w"] + p["b"][None]


def run(p, x):
    """Used in another order than the tree has, cast beforehand, in jit, remat and a custom rule."""
    p = jax.tree.map(lambda w: w.astype(jnp.float32), p)
    x = jax.jit(lambda p, x: jax.nn.silu(dense(p, x)))(p["z"], x.mean((1, 2)))
    x = jax.checkpoint(dense)(p["m"][1], jax.checkpoint(dense)(p["m"][0], x))
    x = _twice(dense(p["a"], x) * jnp.exp(p["gain"])[None], p["late"])
    return dense(p["z"], x)


@jax.custom_vjp
def _twice(x, p):
    return dense(p, x)


_twice.defvjp(lambda x, p: (_twice(x, p), None), lambda _, g: (g, None))


def tree(n=3):
    layer = {"w": jnp.eye(n, dtype=jnp.bfloat16), "b": jnp.ones(n, jnp.bfloat16)}
    names = dict.fromkeys(("a", "z", "late", "unused"), layer)
    return {**names, "m": [layer, layer], "gain": jnp.ones(n), "steps": jnp.arange(3)}


def test_layers_of_a_tree_are_in_the_order_of_their_use():
    assert parameter_layers((run, tree()), X) == ["z", "m/0", "m/1", "a", "gain", "late"]


def test_layers_of_a_flat_tree_are_named_up_to_the_dot():
    params = {f"{name}.{k}": v for name in ("10", "2") for k, v in tree()["a"].items()}

    def f(p, x):
        layers = [{k: p[f"{name}.{k}"].astype(jnp.float32) for k in "wb"} for name in ("2", "10")]
        return dense(layers[1], dense(layers[0], x.mean((1, 2))))

    assert parameter_layers((f, params), X) == ["2", "10"]
    assert parameter_layers(
        (lambda p, x: x.mean((1, 2)) @ p["v"] @ p["u"], {"u": jnp.eye(3), "v": jnp.eye(3)}), X
    ) == ["v", "u"]


def test_a_layer_that_is_used_twice_counts_once():
    class Twice(nnx.Module):
        def __init__(self):
            self.last = nnx.Linear(3, 3, rngs=nnx.Rngs(0))
            self.first = nnx.List([nnx.Linear(3, 3, rngs=nnx.Rngs(0))])

        def __call__(self, x):
            return self.last(self.first[0](self.first[0](x.mean((1, 2)))))

    assert parameter_layers(Twice(), X) == ["first/0", "last"]


def test_compact_linen_modules():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.BatchNorm(use_running_average=True)(nn.Conv(4, (3, 3))(x))
            return nn.Dense(5)(x.mean((1, 2)))

    model = (Net(), Net().init(jax.random.key(0), X[None]))
    assert parameter_layers(model, X) == ["Conv_0", "BatchNorm_0", "Dense_0"]


@pytest.mark.parametrize("model", [lambda x: x.mean((1, 2)), (lambda p, x: x, {"n": np.arange(3)})])
def test_models_without_parameters(model):
    with pytest.raises(ValueError, match="no parameters to be made random"):
        parameter_layers(model, X)


def test_parameters_that_are_not_used():
    with pytest.raises(ValueError, match="none of the model's parameters meets"):
        parameter_layers((lambda p, x: x.mean((1, 2)), {"w": jnp.ones(3)}), X)


# Draws


def test_draws():
    w = 3 + 2 * jax.random.normal(KEY, (40, 50))
    other = normal_like(jax.random.key(1), w)
    close([other.mean(), other.std()], [w.mean(), w.std()], 0.2)
    assert abs(pearson(w, other)) < 0.1
    mixed = shuffled(jax.random.key(1), w)
    np.testing.assert_array_equal(jnp.sort(mixed.ravel()), jnp.sort(w.ravel()))
    assert abs(pearson(w, mixed)) < 0.1
    assert normal_like(KEY, w.astype(jnp.bfloat16)).dtype == jnp.bfloat16


@pytest.mark.parametrize("form", FORMS)
def test_parameters_are_redrawn_and_statistics_are_not(form):
    _, params = functional(FORMS[form])
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), params, redrawn(params, KEY))
    flat = {
        jax.tree_util.keystr(path, simple=True, separator="/"): change
        for path, change in jax.tree_util.tree_flatten_with_path(changed)[0]
    }
    assert len(flat) == 20
    for name, change in flat.items():
        assert change == (not any(k in name for k in ("mean", "var")))


# Randomisation


@functools.cache
def compared(mode="cascading", form="nnx", draw=normal_like):
    names = {"ssim": ssim, "pearson": pearson}
    return parameter_randomisation(METHOD, FORMS[form], mode=mode, draw=draw, similarities=names)


@functools.cache
def heatmap_of(random: frozenset[str]):
    """The map of the network with these layers random, put together by hand."""
    state = jax.tree.map(lambda a: a, PARAMS)
    drawn = redrawn(PARAMS, KEY)
    for name in random:
        state[name] = drawn[name]
    return jax.jit(METHOD(jf.class_score((APPLY, state))))(X, LABEL)


@MODES
def test_stages_are_those_put_together_by_hand(mode):
    got = compared(mode)(X, LABEL, key=KEY)
    assert {k: v.shape for k, v in got.items()} == {"ssim": (7,), "pearson": (7,)}
    clean = heatmap_of(frozenset())
    for i in range(7):
        down = LAYERS[::-1]
        random = frozenset(down[: i + 1] if mode == "cascading" else down[i : i + 1])
        close(got["pearson"][i], pearson(clean, heatmap_of(random)))
        close(got["ssim"][i], ssim(clean, heatmap_of(random)))


def test_the_last_stage_of_cascading_is_a_random_network():
    random = jf.class_score((APPLY, redrawn(PARAMS, KEY)))
    expected = pearson(heatmap_of(frozenset()), jax.jit(METHOD(random))(X, LABEL))
    close(compared()(X, LABEL, key=KEY)["pearson"][-1], expected)


def test_modes_agree_on_the_output_alone():
    one, other = (compared(m)(X, LABEL, key=KEY)["pearson"] for m in ("cascading", "independent"))
    close(one[0], other[0])
    assert (np.abs(one[1:] - other[1:]) > 1e-3).all()


def test_a_map_that_is_not_the_models_stays():
    test = parameter_randomisation(lambda score: lambda x, label: x.sum(-1), NET)
    for values in test(X, LABEL, key=KEY).values():
        close(values, np.ones(7))


def test_absolute_values():
    sign = lambda score: lambda x, label: x.sum(-1) * jnp.sign(score(x, label) - score(x, 0))  # noqa: E731
    compare = functools.partial(parameter_randomisation, sign, NET, similarities={"r": pearson})
    signs = compare()(X, LABEL, key=KEY)["r"]
    close(np.abs(signs), np.ones(7))
    assert signs.min() < 0
    close(compare(absolute=True)(X, LABEL, key=KEY)["r"], np.ones(7))


def test_constant_maps_are_no_nan():
    flat = lambda score: lambda x, label: 0 * x.sum(-1) + score(x, label)  # noqa: E731
    got = parameter_randomisation(flat, NET)(X, LABEL, key=KEY)
    close(got["spearman"], np.zeros(7))
    close(got["ssim"], np.ones(7))


def test_keys_draws_and_labels():
    test = compared()
    first = test(X, LABEL, key=KEY)["pearson"]
    np.testing.assert_array_equal(test(X, LABEL, key=KEY)["pearson"], first)
    assert (test(X, LABEL, key=jax.random.key(1))["pearson"] != first).all()
    assert (test(X, 0, key=KEY)["pearson"] != first).any()
    assert (compared(draw=shuffled)(X, LABEL, key=KEY)["pearson"] != first).all()


def test_forms_of_a_model_give_the_same_stages():
    expected = compared()(X, LABEL, key=KEY)
    close(compared(form="f and the state")(X, LABEL, key=KEY)["ssim"], expected["ssim"])
    linen = compared(form="linen")(X, LABEL, key=KEY)
    assert linen["ssim"].shape == (7,)
    assert linen["ssim"][-1] < 0.9


@pytest.mark.parametrize("shared", [True, False])
def test_vmap_is_a_loop(shared):
    xs, labels = images(2), jnp.array([0, 3])
    keys = jnp.stack([KEY, KEY if shared else jax.random.key(5)])
    one = lambda x, label, key: compared()(x, label, key=key)["pearson"]  # noqa: E731
    got = jax.jit(jax.vmap(one, (0, 0, None if shared else 0)))(xs, labels, KEY if shared else keys)
    close(got, [one(*each) for each in zip(xs, labels, keys, strict=True)])


def test_bad_input():
    with pytest.raises(ValueError, match="'cascading' or 'independent', got 'random'"):
        parameter_randomisation(METHOD, NET, mode="random")
    with pytest.raises(ValueError, match="parameter_randomisation is random"):
        compared()(X, LABEL)
    with pytest.raises(ValueError, match=f"label {CLASSES} is out of range"):
        compared()(X, CLASSES, key=KEY)
    with pytest.raises(ValueError, match="one image"):
        compared()(X[None], LABEL, key=KEY)


# A trained network


@pytest.fixture(scope="module")
def photographs():
    from PIL import Image

    from jaxfmi.models import demo_model

    data = pytest.importorskip("skimage.data", reason="needs the extra `demo`: scikit-image")
    demo = demo_model()
    pictures = (demo.preprocess(Image.fromarray(p)) for p in (data.chelsea(), data.coffee()))
    xs = jnp.stack([jnp.asarray(p) for p in pictures])
    return demo.model, xs, demo.model(xs).argmax(-1)


@pytest.mark.slow
def test_guided_backpropagation_hardly_sees_the_model_and_grad_cam_does(photographs):
    """As Adebayo et al. (2018) found; here over the half of the layers that is next to the output.

    Three random networks; one of them alone may leave Grad-CAM's map of one picture its order.
    """
    model, xs, labels = photographs
    half = len(parameter_layers(model, xs[0])) // 2
    keys = jax.random.split(KEY, 3)

    def stages(method):
        test = parameter_randomisation(method, model, absolute=True)
        each = [jax.vmap(lambda x, k: test(x, k, key=key))(xs, labels) for key in keys]
        return jax.tree.map(lambda *runs: np.stack(runs)[..., :half], *each)

    guided, cam = stages(jf.guided_backprop), stages(jf.grad_cam)
    for name in ("ssim", "spearman"):
        assert guided[name].shape == (3, 2, half)
        assert guided[name][..., 0].min() > 0.75  # the output layer is random
        assert guided[name].mean() > 0.7
        assert cam[name].mean() < 0.45
        assert (guided[name].mean((1, 2)) > cam[name].mean((1, 2)) + 0.25).all()
