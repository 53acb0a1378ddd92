"""The metrics against Quantus: the same maps, pixels and function, with matching options.

Left out are what shares a name but no definition: SensitivityN and ROAD, which correlate, or count
hits, over a set of images; and the similarity of windows in RandomLogit and MPRT.
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
    SIDE,
    agree,
    gradient_map,
    import_torch,
    make_case,
    sensitivity,
    sensitivity_noise,
)

from jaxfmi import metrics
from jaxfmi.metrics.correlation import draw_subset

pytestmark = pytest.mark.peers

REGIONS = np.random.default_rng(0).random((COUNT, SIDE, SIDE)) < np.array(
    [[[0.1]], [[0.3]], [[0.5]], [[0.9]]]
)
BLACK = {"black": lambda x: x.min(), 0.0: 0.0}  # Quantus' default, and another
PATCH = 8
PATCHES = (SIDE // PATCH) ** 2


@pytest.fixture(params=[1, 3])
def case(request):
    return make_case(request.param)


@functools.cache
def import_quantus():
    import_torchvision()
    return pytest.importorskip("quantus", reason="needs the extra `peers`: quantus")


def quantus(case, name, given=None, **options):
    """Ask a metric of Quantus about all images, of probabilities."""
    metric = getattr(import_quantus(), name)(disable_warnings=True, **options)
    given = {"s_batch": REGIONS[:, None]} if given is None else given
    scores = metric(
        model=case.network,
        x_batch=case.pixels(),
        y_batch=case.labels,
        a_batch=case.maps[:, None].copy(),  # Quantus writes into it
        channel_first=True,
        softmax=True,
        **given,
    )
    return np.asarray(scores)


@pytest.fixture
def signed(case):
    """The case with maps of both signs."""
    return case._replace(maps=case.maps - np.float32(0.3))


# Faithfulness.


@pytest.mark.parametrize("baseline", BLACK)
def test_pixel_flipping(case, baseline, monkeypatch):
    """All channels of 16 pixels at a time; no first point; an area in steps."""
    step, channels = 16, case.images.shape[-1]
    options = {"features_in_step": step * channels, "perturb_baseline": baseline}
    theirs = quantus(case, "PixelFlipping", **options)
    curve = case.measure(
        lambda score: metrics.deletion_curve(score, step=step, baseline=BLACK[baseline])
    )
    agree(curve.scores[:, 1:], theirs)
    monkeypatch.setattr(np, "trapz", np.trapezoid, raising=False)  # it is gone from NumPy 2.4
    area = quantus(case, "PixelFlipping", return_auc_per_sample=True, **options)
    agree(curve.auc, ((curve.scores[:, 0] + curve.scores[:, 1]) / 2 + area) * step / PIXELS)


@pytest.mark.parametrize("baseline", BLACK)
@pytest.mark.parametrize("regions", [4, PATCHES])
def test_region_perturbation(signed, baseline, regions):
    """The mean of their differences and of the 0 before them, where patches divide the image."""
    options = {"patch_size": PATCH, "regions_evaluation": regions, "perturb_baseline": baseline}
    theirs = quantus(signed, "RegionPerturbation", **options)
    options = {"patch": PATCH, "regions": regions, "baseline": BLACK[baseline]}
    ours = signed.measure(lambda score: metrics.region_perturbation(score, **options))
    agree(ours, theirs.sum(1) / (regions + 1))


def test_infidelity(signed):
    """With their patches, which are not put back, one for each of our samples."""
    theirs = quantus(signed, "Infidelity", perturb_patch_sizes=[PATCH], n_perturb_samples=1)

    def perturb(key, x, count):
        patch = jnp.arange(SIDE) // PATCH
        changed = SIDE // PATCH * patch[:, None] + patch[None] <= count
        image = jnp.where(changed[..., None], x.min(), x)
        return metrics.Perturbation(image, (x - image).sum(-1))

    errors = []
    for i in range(PATCHES):
        options = {"perturb": functools.partial(perturb, count=i), "samples": 1}
        ask = functools.partial(metrics.infidelity, **options)
        errors.append(signed.measure(ask, key=KEY))
    np.testing.assert_allclose(np.mean(errors, 0), theirs, rtol=1e-4)


def test_faithfulness_correlation_is_sensitivity_n(monkeypatch):
    """With our sets, for images of one channel: theirs are of values, not of pixels."""
    case, n = make_case(1), 60
    draw = jax.vmap(lambda key: draw_subset(key, (SIDE, SIDE), n))
    keys = [
        [jax.random.fold_in(jax.random.fold_in(KEY, i), j) for i in range(COUNT)]
        for j in range(SAMPLES)
    ]
    sets = iter(np.flatnonzero(drawn) for row in keys for drawn in draw(jnp.stack(row)))
    monkeypatch.setattr(np.random, "choice", lambda *args, **options: next(sets))
    options = {"nr_runs": SAMPLES, "subset_size": n, "return_aggregate": False}
    theirs = quantus(case, "FaithfulnessCorrelation", perturb_baseline=0.0, **options)
    ask = functools.partial(metrics.sensitivity_n, n=n, samples=SAMPLES)
    agree(case.measure(ask, key=KEY), theirs)


def test_max_sensitivity(case):
    """With our noise. Theirs too is relative to the norm of the map."""
    drawn = iter(np.moveaxis(sensitivity_noise(case, 0.2), 1, 0).reshape(SAMPLES, COUNT, -1))

    def explain(model, inputs, targets, **options):
        return gradient_map(case, import_torch().as_tensor(inputs), targets).numpy()

    maps = gradient_map(case, case.tensor(), case.labels)
    theirs = quantus(
        case._replace(maps=maps[:, 0].numpy()),
        "MaxSensitivity",
        {"explain_func": explain},
        nr_samples=SAMPLES,
        perturb_func=lambda arr, **options: np.float32(arr + next(drawn)),
    )
    agree(sensitivity(case, 0.2), theirs)


# Localisation, complexity, similarity.


@pytest.mark.parametrize(
    ("name", "measure", "options"),
    [
        ("RelevanceMassAccuracy", metrics.relevance_mass, {}),
        ("RelevanceRankAccuracy", metrics.relevance_rank, {}),
        ("TopKIntersection", metrics.top_k_intersection, {"k": 100}),
        ("TopKIntersection", metrics.top_k_intersection, {"k": 500}),
    ],
)
def test_localisation(signed, name, measure, options):
    ours = jax.vmap(functools.partial(measure, **options))(signed.maps, REGIONS)
    agree(ours, quantus(signed, name, **options))


def test_pointing_game(case):
    """With a tolerance of 0."""
    ours = jax.vmap(functools.partial(metrics.pointing, tolerance=0))(case.maps, REGIONS)
    np.testing.assert_array_equal(ours, quantus(case, "PointingGame"))
    assert 0 < ours.sum() < COUNT


@pytest.mark.parametrize(
    ("name", "measure"),
    [
        ("Sparseness", metrics.sparseness),
        ("Complexity", metrics.complexity),
        ("EffectiveComplexity", metrics.effective_complexity),
    ],
)
def test_complexity(signed, name, measure):
    maps = signed.maps * (np.abs(signed.maps) > np.linspace(0, 0.6, COUNT)[:, None, None])
    agree(jax.vmap(measure)(maps), quantus(signed._replace(maps=maps), name))


@pytest.mark.parametrize("name", ["pearson", "spearman"])
def test_correlations(case, name):
    theirs = getattr(import_quantus().similarity_func, f"correlation_{name}")
    a, b = case.maps, np.round(case.maps + 2 * case.maps[::-1], 1)
    expected = [theirs(p.ravel(), q.ravel()) for p, q in zip(a, b, strict=True)]
    agree(jax.vmap(getattr(metrics, name))(a, b), expected)
