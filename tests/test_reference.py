"""The twins themselves meet the arrays of the reference programs and the closed forms."""

import numpy as np
import pytest
import reference as ref
import reference_net as net

TARGET = 2


def close(got, expected, atol=1e-10):
    np.testing.assert_allclose(got, expected, rtol=0, atol=atol)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


# The golden network


@pytest.fixture(scope="module")
def trained():
    """Arrays, layers, every value on the way and the gradients of logit 2 with respect to them."""
    arrays = net.golden()
    layers = net.golden_layers(arrays)
    values = net.forward(layers, arrays["x_nhwc"][0])
    gradients = net.backward(layers, values, np.eye(5)[TARGET])
    return arrays, layers, values, gradients


@pytest.fixture(scope="module")
def cams(trained):
    _, layers, values, gradients = trained
    a, g = values[14], gradients[14]
    return {
        "GradCAM": ref.grad_cam(a, g),
        "GradCAMPlusPlus": ref.grad_cam_pp(a, g),
        "XGradCAM": ref.xgrad_cam(a, g),
        "LayerCAM": ref.layer_cam(a, g),
        "HiResCAM": ref.hires_cam(a, g),
        "EigenCAM": ref.eigen_cam(a),
        "AblationCAM": ref.ablation_cam(a, net.score(layers[14:], TARGET), divide="score"),
    }


def test_golden_forward_and_backward(trained):
    arrays, _, values, gradients = trained
    close(values[-1], arrays["logits"][0], 1e-13)
    close(values[14], arrays["pgc/A"][0], 1e-13)
    close(values[0] * gradients[0], arrays["grad_times_input"][0], 1e-12)
    close(ref.grad_cam(values[14], gradients[14]).map, arrays["fgcam/den0_t13"][0], 1e-13)


@pytest.mark.parametrize(
    ("name", "atol"),
    [("GradCAM", 1e-12), ("GradCAMPlusPlus", 1e-12), ("XGradCAM", 1e-12), ("AblationCAM", 5e-7)],
)
def test_golden_weights(trained, cams, name, atol):
    close(cams[name].weights, trained[0][f"pgc/{name}/weights"][0], atol)


@pytest.mark.parametrize(
    "name",
    ["GradCAM", "GradCAMPlusPlus", "XGradCAM", "LayerCAM", "HiResCAM", "EigenCAM", "AblationCAM"],
)
def test_golden_maps(trained, cams, name):
    got = ref.pgc_pipeline(cams[name].map, (28, 28))
    close(got, trained[0][f"pgc/{name}/map"][0], 5e-6)


# Networks, gradients, resizing


@pytest.mark.parametrize("place", [0, 1, 2, 4])
def test_backward_is_the_derivative(rng, place):
    layers = net.little_net(rng)
    values = net.forward(layers, rng.standard_normal((5, 4, 3)))
    got = net.score_gradient(layers[place:], 1)(values[place])
    close(got, ref.finite_difference(net.score(layers[place:], 1), values[place], 1e-6), 1e-8)


def test_max_pool_and_batch_norm_backward(rng):
    layers = [net.batch_norm(*rng.random((4, 2)) + 0.5), net.max_pool(), net.flatten_chw()]
    x, column = rng.standard_normal((4, 6, 2)), rng.standard_normal((12, 1))
    layers = [*layers, net.dense(column, np.zeros(1))]
    got = net.score_gradient(layers, 0)(x)
    close(got, ref.finite_difference(net.score(layers, 0), x), 1e-9)


def test_relu_rules():
    """Values 1, -1, 1 and gradients 2, 3, -5 in front of a ReLU."""
    layers = [net.relu(), net.dense(np.array([[2.0], [3.0], [-5.0]]), np.zeros(1))]
    x = np.array([1.0, -1.0, 1.0])
    expected = {"plain": [2, 0, -5], "deconvnet": [2, 3, 0], "guided": [2, 0, 0]}
    for rule, gradient in expected.items():
        close(net.score_gradient(layers, 0, rule)(x), gradient)


def test_gradient_maps(rng):
    x, g = rng.standard_normal((2, 3, 4, 2))
    assert ref.saliency(g).shape == (3, 4)
    close(ref.saliency(g)[1, 2], max(abs(g[1, 2, 0]), abs(g[1, 2, 1])))
    close(ref.input_x_gradient(x, g)[1, 2], x[1, 2, 0] * g[1, 2, 0] + x[1, 2, 1] * g[1, 2, 1])


def test_integrated_gradients_are_complete(rng):
    x, x0 = rng.standard_normal((2, 3, 4, 2))
    got = ref.integrated_gradients(x, x0, lambda v: 2 * v, 1)
    close(got.sum(), (x**2).sum() - (x0**2).sum())


def test_smooth_grad_of_a_quadratic(rng):
    x, noise = rng.standard_normal((3, 4, 2)), rng.standard_normal((6, 3, 4, 2))
    close(ref.smooth_grad(x, noise, lambda v: 2 * v), 2 * (x + noise.mean(0)))


def test_guided_grad_cam_of_a_negative_map_is_zero(rng):
    guided = rng.standard_normal((6, 8, 3))
    close(ref.guided_grad_cam(guided, -rng.random((3, 4))), 0 * guided)
    close(ref.guided_grad_cam(guided, np.full((3, 4), 2.0)), 2 * guided)


def test_occlusion_of_an_additive_score():
    """Windows 2x2 with stride 2 on 5x4 rest on rows 0-1, 2-3 and, shifted, 3-4."""
    x = np.arange(20.0).reshape(5, 4, 1)
    got = ref.occlusion(np.sum, x, (2, 2), (2, 2))
    close(got[0, 0], 0 + 1 + 4 + 5)
    close(got[3, 0], ((8 + 9 + 12 + 13) + (12 + 13 + 16 + 17)) / 2)
    close(got[4, 3], 14 + 15 + 18 + 19)


def test_resize(rng):
    close(ref.resize_bilinear([[0.0, 1.0]], (1, 4)), [[0, 0.25, 0.75, 1]])
    close(ref.resize_bilinear([[0.0, 1.0, 2.0, 3.0]], (1, 2)), [[0.5, 2.5]])
    m = rng.standard_normal((3, 5))
    close(ref.resize_bilinear(m, (3, 5)), m)
    peak = np.zeros((7, 7))
    peak[3, 3] = 1
    close(ref.resize_bilinear(peak, (224, 224)).max(), (1 - 1 / 64) ** 2)


# CAM


@pytest.fixture
def pooled(rng):
    """GAP + dense: A >= 0 with a dead channel, the class's column w, gradient w / hw, head."""
    a, w, bias = np.maximum(rng.standard_normal((3, 4, 5)), 0), rng.standard_normal(5), 0.3
    a[:, :, 2] = 0
    return a, w, np.zeros_like(a) + w / 12, lambda v: v.mean((0, 1)) @ w + bias


def test_closed_forms_of_a_pooled_head(pooled):
    a, w, g, head = pooled
    expected = ref.cam(a, w).map / 12
    close(ref.grad_cam(a, g).map, expected, 1e-12)
    close(ref.hires_cam(a, g).map, expected, 1e-12)
    close(ref.xgrad_cam(a, g).map, expected, 1e-7)  # its 1e-7 in the denominator
    close(ref.hires_cam(a, g).map.sum() + 0.3, head(a), 1e-12)
    close(ref.layer_cam(a, g).map, ref.cam(a, np.maximum(w, 0)).map / 12, 1e-12)
    close(ref.ablation_cam(a, head, "score").weights, w * a.mean((0, 1)) / head(a), 1e-12)
    close(ref.ablation_cam(a, head).weights, w * a.mean((0, 1)) / abs(head(a)), 1e-12)
    gk = w / 12
    expected_pp = 12 * np.maximum(gk, 0) * gk**2 / (2 * gk**2 + a.sum((0, 1)) * gk**3 + 1e-6)
    close(ref.grad_cam_pp(a, g).weights, expected_pp, 1e-12)


def test_dead_channel_and_order_of_channels(pooled, rng):
    a, _, _, head = pooled
    g, order = rng.standard_normal(a.shape), rng.permutation(5)
    live = [0, 1, 3, 4]
    for method in (ref.grad_cam, ref.grad_cam_pp, ref.xgrad_cam, ref.hires_cam, ref.layer_cam):
        close(method(a, g).map, method(a[:, :, live], g[:, :, live]).map)
        close(method(a, g).map, method(a[:, :, order], g[:, :, order]).map)
    assert ref.ablation_cam(a, head).weights[2] == 0
    # A score of 0 is divided by 1.
    close(ref.ablation_cam(a, lambda v: v.sum() - a.sum()).weights, a.sum((0, 1)))


def test_eigen_cam_of_one_pattern(rng):
    """A = pattern x direction: the map is the centred pattern, times |direction|, peak upwards."""
    pattern, direction = rng.standard_normal((3, 4)), rng.standard_normal(5)
    a = pattern[:, :, None] * direction
    centred = (pattern - pattern.mean()) * np.linalg.norm(direction)
    sign = np.sign(centred.flat[np.abs(centred).argmax()])
    close(ref.eigen_cam(a).map, sign * centred)
    close(ref.eigen_grad_cam(a, 2 * np.ones_like(a)).map, 2 * sign * centred)


def test_full_grad():
    x, dx = np.arange(4.0).reshape(2, 2, 1), np.ones((2, 2, 1))
    pairs = [(np.array([1.0]), -4 * x), (np.array([2.0]), np.ones((1, 1, 1)))]
    close(ref.full_grad(pairs, x, dx), 2 * x[:, :, 0] / 3)
