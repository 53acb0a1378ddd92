"""Controls are explainers that ignore the network, and lose to those that do not."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest

from jaxfmi.command.statistics import paired
from jaxfmi.controls import centre_gaussian, edge_map, random_map


def score(x, *args):
    return x.sum()


def test_random_maps_are_uniform_and_belong_to_their_key():
    explain = random_map(score)
    x = jnp.zeros((40, 30, 3))
    one, two = (explain(x, 0, key=jax.random.key(k)) for k in (0, 1))
    assert one.shape == (40, 30)
    np.testing.assert_array_equal(one, explain(x, 1, key=jax.random.key(0)))
    assert abs(np.corrcoef(one.ravel(), two.ravel())[0, 1]) < 0.1
    assert abs(np.sort(one.ravel()) - np.linspace(0, 1, one.size)).max() < 0.05


def test_the_gaussian_lies_on_the_centre():
    heatmap = np.asarray(centre_gaussian(score, sigma=0.1)(jnp.zeros((11, 21, 1)), 0))
    assert np.unravel_index(heatmap.argmax(), heatmap.shape) == (5, 10)
    assert heatmap[5, 10] == 1
    np.testing.assert_allclose(heatmap, heatmap[::-1, ::-1], rtol=1e-5)
    offset = 2 / 11  # two rows up
    assert heatmap[3, 10] == pytest.approx(np.exp(-(offset**2) / (2 * 0.1**2)), rel=1e-5)
    wide = np.asarray(centre_gaussian(score)(jnp.zeros((11, 21, 1)), 0))
    assert (wide >= heatmap - 1e-7).all()


@pytest.mark.parametrize("sigma", [0, -1.0, float("nan")])
def test_a_gaussian_has_a_width(sigma):
    with pytest.raises(ValueError, match="above 0"):
        centre_gaussian(score, sigma=sigma)


def test_edges_are_where_the_picture_changes():
    x = jnp.zeros((8, 10, 3)).at[:, 5:].set(1.0)
    heatmap = np.asarray(edge_map(score)(x, 0))
    np.testing.assert_array_equal(heatmap[:, [4, 5]], 4.0)
    assert heatmap.sum() == 4 * 16
    np.testing.assert_array_equal(edge_map(score)(jnp.swapaxes(x, 0, 1)), heatmap.T)


def test_edges_agree_with_scipy():
    from scipy import ndimage

    x = np.random.default_rng(0).normal(size=(12, 9, 3)).astype(np.float32)
    grey = x.mean(-1)
    across, down = (ndimage.sobel(grey, axis, mode="nearest") for axis in (0, 1))
    np.testing.assert_allclose(edge_map(score)(x), np.hypot(across, down), atol=1e-5)


@pytest.mark.parametrize("method", [centre_gaussian, edge_map])
def test_jit_and_vmap(method):
    x = jnp.asarray(np.random.default_rng(1).normal(size=(3, 6, 7, 3)), jnp.float32)
    explain = method(score)
    batch = jax.jit(jax.vmap(explain))(x)
    np.testing.assert_allclose(batch, jnp.stack([explain(one) for one in x]), atol=1e-6)
    assert batch.dtype == jnp.float32


# The leaderboard, which is part of the repository

LOCALISATION = ("energy_pointing", "pointing", "iou", "box_hit")
TABLES = sorted((Path(__file__).parents[1] / "benchmarks" / "leaderboard").glob("*/table.parquet"))


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.parent.name)
def test_noise_is_worse_than_every_method_in_placing_objects(path):
    """On the same pictures, by Wilcoxon's test with Holm's correction.

    Of methods with at least 50 pictures: costly ones have fewer, and five can show nothing. But for
    two on SqueezeNet, whose maps are zero for most pictures. Deconvnet lacks the masks of the
    ReLUs, so that the gradient of the last average is the same in all places, and is gone where the
    weights turn it negative; FD-CAM gives every map but the class's own a negative weight.
    """
    rows = pl.read_parquet(path)
    if path.parent.name.startswith("cifar"):
        assert not set(LOCALISATION) & set(rows.columns)  # no boxes there
        return
    counts = dict(rows["method"].value_counts().iter_rows())
    methods = sorted(name for name, n in counts.items() if n >= 50 and name != "random_map")
    worse = {
        method
        for metric in LOCALISATION
        for method, difference, p in paired(rows, metric, "random_map", methods)
        .select("method", "difference", "p_holm")
        .iter_rows()
        if not (difference > 0 and p < 0.05)
    }
    nothing = rows.group_by("method").agg(pl.col("energy_pointing").is_nan().mean())
    empty = {name for name, share in nothing.iter_rows() if share > 0.5}
    assert worse == empty
    assert empty <= {"deconvnet", "fd_cam"}
