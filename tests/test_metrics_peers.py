"""The metrics against other programs: the same maps, pixels and function, with matching options.

Each test names the option, or the conversion, that makes two definitions one. For Quantus see
``test_metrics_quantus.py``.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from peers import import_torchvision
from peers_case import (
    COUNT,
    KEY,
    PIXELS,
    SAMPLES,
    agree,
    gradient_map,
    import_torch,
    make_case,
    sensitivity,
    sensitivity_noise,
)
from scipy.ndimage import gaussian_filter

from jaxfmi import class_score, metrics

pytestmark = [
    pytest.mark.peers,
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),  # ROAD's
]


@pytest.fixture(params=[1, 3])
def case(request):
    return make_case(request.param)


# RISE, from its definition.


def blur(x):
    """Convolve with the smoothed point that RISE takes for a kernel."""
    torch = import_torch()
    point = np.zeros((11, 11))
    point[5, 5] = 1
    kernel = torch.tensor(gaussian_filter(point, 5), dtype=torch.float32)
    kernels = kernel.repeat(x.shape[1], 1, 1, 1)
    return torch.nn.functional.conv2d(x, kernels, padding=5, groups=x.shape[1])


def causal_metric(case, start, end, maps, step):
    """Give the scores on the way from start to end, and the area with equal weights."""
    torch, steps = import_torch(), -(-PIXELS // step)
    order = np.argsort(maps.reshape(COUNT, -1), axis=1, kind="stable")[:, ::-1].copy()
    now, rows, scores = start.clone().flatten(2), np.arange(COUNT), []
    for i in range(steps + 1):
        with torch.no_grad():
            found = case.network(now.reshape(start.shape)).softmax(-1)[rows, case.labels]
        scores.append(found.numpy())
        for row, places in enumerate(order[:, i * step : (i + 1) * step]):
            now[row][:, places] = end.flatten(2)[row][:, places]
    scores = np.stack(scores, 1)
    return scores, (scores.sum(1) - scores[:, 0] / 2 - scores[:, -1] / 2) / steps


@pytest.mark.parametrize("step", [48, 50])
@pytest.mark.parametrize("tied", [False, True])
def test_rise(case, step, tied):
    """With ``equal=True`` and the later of tied pixels first; 50 does not divide the image."""
    case = case._replace(maps=np.round(case.maps, 1)) if tied else case
    x, options = case.tensor(), {"step": step, "ties": "last", "equal": True}
    scores, auc = causal_metric(case, x, x * 0, case.maps, step)
    curve = case.measure(lambda s: metrics.deletion_curve(s, **options))
    agree(curve.scores, scores)
    agree(curve.auc, auc)
    scores, auc = causal_metric(case, blur(x), x, case.maps, step)
    curve = case.measure(lambda s: metrics.insertion_curve(s, **options))
    agree(curve.scores, scores)
    agree(curve.auc, auc)


def test_rise_blur(case):
    agree(jax.vmap(metrics.rise_blur)(case.images), np.moveaxis(blur(case.tensor()).numpy(), 1, -1))


# torch-cam.


class GivenMap:
    """What torch-cam asks for a map, with a map that is there already."""

    def __init__(self, case, i):
        self.model, self.map = case.network, import_torch().tensor(case.maps[i : i + 1])

    def __call__(self, *args, **kwargs):
        return [self.map]

    def fuse_cams(self, maps):
        return maps[0]

    def _hooks_off(self):
        return import_torch().no_grad()


def torch_cam(case, name, **options):
    """Ask one of torch-cam's metrics about one image after the other."""
    module = pytest.importorskip("torchcam.metrics", reason="needs the extra `peers`: torchcam")
    softmax = functools.partial(import_torch().softmax, dim=-1)
    for i, label in enumerate(case.labels.tolist()):
        metric = getattr(module, name)(GivenMap(case, i), softmax, **options)
        metric.update(case.tensor()[i : i + 1], label)
        yield metric.summary()


@pytest.mark.parametrize("steps", [20, 28])
@pytest.mark.parametrize("tied", [False, True])
def test_torch_cam_deletion_insertion(case, steps, tied):
    """From zeros both; their 20 steps; areas over true fractions, the first of ties first."""
    case = case._replace(maps=np.round(case.maps, 1)) if tied else case
    theirs = list(torch_cam(case, "DeletionInsertionMetric", steps=steps))
    for name in ("deletion", "insertion"):
        method = functools.partial(getattr(metrics, name), steps=steps, baseline=0.0)
        agree(case.measure(method), [summary[f"{name}_auc"] for summary in theirs])


def test_torch_cam_drop_and_increase(case):
    """As shares, ours per cent."""
    theirs = list(torch_cam(case, "ClassificationMetric"))
    agree(case.measure(metrics.drop) / 100, [summary["avg_drop"] for summary in theirs])
    ours = case.measure(metrics.increase) / 100
    np.testing.assert_array_equal(ours, [summary["conf_increase"] for summary in theirs])


# pytorch-grad-cam.


def grad_cam(case, module, name, *args):
    """Ask one of pytorch-grad-cam's metrics about all images, of their probabilities."""
    import_torchvision()
    reason = "needs the extra `peers`: grad-cam"
    module = pytest.importorskip(f"pytorch_grad_cam.metrics.{module}", reason=reason)
    targets = [lambda z, k=k: z.softmax(-1)[k] for k in case.labels.tolist()]
    return getattr(module, name)(*args)(case.tensor(), case.maps, targets, case.network)


def test_grad_cam_drop_and_increase(case):
    """Their drop is absolute: ours times the clean score; and shares, ours per cent."""
    ours = case.measure(metrics.confidence)
    agree(ours.drop * ours.clean / 100, grad_cam(case, "cam_mult_image", "DropInConfidence"))
    increase = grad_cam(case, "cam_mult_image", "IncreaseInConfidence")
    np.testing.assert_array_equal(ours.increase / 100, increase)


PERCENTILES = np.arange(10, 100, 10)


@pytest.fixture
def noiseless(monkeypatch):
    """Take the noise, which has no seed, out of pytorch-grad-cam's ROAD."""
    torch = import_torch()
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)


@pytest.mark.usefixtures("noiseless")
def test_grad_cam_road(case):
    """A percentile keeps what our share removes; their values are differences."""
    shares = 1 - PERCENTILES / 100
    road = case.measure(lambda s: metrics.road_curve(s, shares=shares, noise=0, tolerance=1e-6))
    for name, scores in (("Most", road.morf), ("Least", road.lerf)):
        for i, percentile in enumerate(PERCENTILES):
            theirs = grad_cam(case, "road", f"ROAD{name}RelevantFirst", percentile)
            agree(scores[:, i] - road.clean, theirs)
        averages = grad_cam(case, "road", f"ROAD{name}RelevantFirstAverage")
        agree(scores.mean(1) - road.clean, averages)
    agree(road.combined, grad_cam(case, "road", "ROADCombined"))


@pytest.mark.usefixtures("noiseless")
@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
def test_grad_cam_imputation(case, share):
    import_torchvision()
    reason = "needs the extra `peers`: grad-cam"
    module = pytest.importorskip("pytorch_grad_cam.metrics.road", reason=reason)
    torch, known = import_torch(), case.maps > share
    theirs = [
        module.NoisyLinearImputer()(x, torch.tensor(np.float32(mask))).numpy()
        for x, mask in zip(case.tensor(), known, strict=True)
    ]
    fill = jax.vmap(functools.partial(metrics.impute, tolerance=1e-6))
    agree(fill(case.images, known), np.moveaxis(np.stack(theirs), 1, -1))


# Captum.


def import_captum():
    reason = "needs the extra `peers`: captum"
    return pytest.importorskip("captum.metrics", reason=reason)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("perturb", [metrics.gaussian_noise(0.2), metrics.square_removal(7)])
def test_captum_infidelity(case, perturb, normalize):
    """With our perturbations. Theirs are of channels, over which a map is spread evenly."""
    torch, channels = import_torch(), case.images.shape[-1]
    for i, label in enumerate(case.labels.tolist()):
        x, heatmap = jnp.asarray(case.images[i]), case.maps[i] - 0.5
        keys = jax.vmap(functools.partial(jax.random.fold_in, KEY))(jnp.arange(SAMPLES))
        drawn = jax.tree.map(np.array, jax.vmap(lambda k: perturb(k, x))(keys))
        weights = torch.tensor(drawn.weights)[:, None].repeat(1, channels, 1, 1)
        changed = torch.tensor(np.moveaxis(drawn.image, -1, 1))
        theirs = import_captum().infidelity(
            lambda z: case.network(z),
            lambda z: (weights, changed),
            case.tensor()[i : i + 1],
            torch.tensor(heatmap / channels).repeat(1, channels, 1, 1),
            target=label,
            n_perturb_samples=SAMPLES,
            normalize=normalize,
        )
        options = {"perturb": perturb, "samples": SAMPLES, "normalize": normalize}
        ours = metrics.infidelity(class_score(case.model), **options)(x, heatmap, label, key=KEY)
        np.testing.assert_allclose(ours, theirs.item(), rtol=1e-4)


def test_captum_max_sensitivity(case):
    """With our noise."""
    torch = import_torch()
    drawn = torch.tensor(sensitivity_noise(case, 0.1)).flatten(0, 1)

    def explain(x):
        x = x[0] if isinstance(x, tuple) else x
        return (gradient_map(case, x, np.repeat(case.labels, len(x) // COUNT)),)

    theirs = import_captum().sensitivity_max(
        explain, case.tensor(), lambda x: x + drawn, n_perturb_samples=SAMPLES
    )
    agree(sensitivity(case, 0.1), theirs)
