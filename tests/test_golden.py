"""The library on the golden network: the numbers that other programs computed.

The arrays are in shared/golden, whose README says which program made which, and to what tolerance
they are to be met; the tests skip where that folder is missing.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference as ref
import reference_net as net
from nets import golden_model

import jaxfmi as jf
from jaxfmi import class_score
from jaxfmi.ablation import _shares_lost
from jaxfmi.cam import _plus_plus, _share_of_sum
from jaxfmi.explainer import activation, activations_and_gradients, head

TARGET = 2
RAW = {"relu": False, "size": None}
PGC = {
    "grad_cam": "GradCAM",
    "grad_cam_pp": "GradCAMPlusPlus",
    "xgrad_cam": "XGradCAM",
    "layer_cam": "LayerCAM",
    "hires_cam": "HiResCAM",
    "eigen_cam": "EigenCAM",
    "ablation_cam": "AblationCAM",
}
WEIGH = {
    "grad_cam": lambda a, g: g.mean((0, 1)),
    "grad_cam_pp": _plus_plus,
    "xgrad_cam": _share_of_sum,
}


def close(got, expected, atol):
    np.testing.assert_allclose(got, expected, rtol=0, atol=atol)


def near(got, expected, share):
    close(got, expected, share * np.abs(expected).max())


def explain(name, score, layer, *args, **options):
    return jax.jit(getattr(jf, name)(score, layer, **options))(*args)


@pytest.fixture(params=[True, False], ids=["float64", "float32"])
def wide(request):
    with jax.enable_x64(request.param):
        yield request.param


@functools.cache
def golden():
    return net.golden()


@pytest.fixture
def golden_score(wide):
    """A score of the golden network and its image, in both precisions; needs shared/golden."""
    arrays = golden()
    model = golden_model({k: v.astype(float if wide else np.float32) for k, v in arrays.items()})
    x = jnp.asarray(arrays["x_nhwc"][0], jnp.float64 if wide else jnp.float32)
    with jax.default_matmul_precision("highest"):
        yield class_score(model), x


def test_forward(golden_score, wide):
    score, x = golden_score
    out, found = jf.capture(score, "13")(x, TARGET)
    close(out, golden()["logits"][0, TARGET], 1e-13 if wide else 2e-6)
    close(found["13"], golden()["pgc/A"], 1e-13 if wide else 1e-5)


@pytest.mark.parametrize("name", WEIGH)
def test_weights(golden_score, wide, name):
    score, x = golden_score
    values, grads = jax.jit(lambda x: activations_and_gradients(score, ["13"], x, TARGET))(x)
    got = WEIGH[name](values[0], grads[0]).ravel()
    close(got, golden()[f"pgc/{PGC[name]}/weights"][0], 1e-12 if wide else 1e-6)


def test_ablation_weights(golden_score, wide):
    """pytorch-grad-cam divides by the score, here negative, so that the sign turns."""
    score, x = golden_score
    a, rest = activation(score, "13", x, TARGET), head(score, "13", x, TARGET)
    got = jax.jit(lambda a: _shares_lost(a, rest, 8))(a)
    close(-got, golden()["pgc/AblationCAM/weights"][0], 5e-7 if wide else 5e-6)


@pytest.mark.parametrize("name", PGC)
def test_maps(golden_score, wide, name):
    score, x = golden_score
    sign = -1 if name == "ablation_cam" else 1
    got = sign * explain(name, score, "13", x, TARGET, **RAW)
    pipeline = ref.pgc_pipeline(np.asarray(got), (28, 28))
    close(pipeline, golden()[f"pgc/{PGC[name]}/map"][0], 5e-6 if wide else 5e-5)


def test_signed_map(golden_score, wide):
    """FG-CAM starts from Grad-CAM without its ReLU: the one map that is stored as it is."""
    score, x = golden_score
    expected = golden()["fgcam/den0_t13"][0]
    near(explain("grad_cam", score, "13", x, TARGET, **RAW), expected, 1e-12 if wide else 5e-6)


def test_xgrad_cam_is_all_zeros(golden_score):
    score, x = golden_score
    assert not explain("xgrad_cam", score, "13", x, TARGET).any()
    assert (explain("xgrad_cam", score, "13", x, TARGET, **RAW) < 0).all()


# Gradient methods, against the numpy network with the same parameters


@jax.enable_x64(True)
def explained(method, **options):
    arrays = golden()
    x = jnp.asarray(arrays["x_nhwc"][0])
    return jax.jit(method(class_score(golden_model(arrays)), **options))(x, 2)


def test_input_x_gradient():
    expected = golden()["grad_times_input"][0]
    got = explained(jf.input_x_gradient, reduce=lambda v: v)
    near(got, expected, 1e-12)


@pytest.mark.parametrize(
    ("method", "rule"), [(jf.guided_backprop, "guided"), (jf.deconvnet, "deconvnet")]
)
def test_relu_rules(method, rule):
    arrays = golden()
    layers = net.golden_layers(arrays)
    expected = net.score_gradient(layers, 2, rule)(arrays["x_nhwc"][0]).sum(2)
    near(explained(method), expected, 1e-10)


def test_integrated_gradients():
    arrays = golden()
    x, slope = arrays["x_nhwc"][0], net.score_gradient(net.golden_layers(arrays), 2)
    expected = ref.integrated_gradients(x, 0 * x, slope, 3)
    got = explained(jf.integrated_gradients, steps=3, chunk=2)
    near(got, expected, 1e-10)
