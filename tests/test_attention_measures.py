"""The measures behind the LFI-CAM benchmark: published and printed values, and plain twins."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
import attention_measures as measures
import attention_runs as runs

from jaxfmi import models

ROWS = {  # centres: row IoU with and without wrap, image IoU with and without
    ((16, 12), (16, 12)): (1, 1, 1, 1),
    ((16, 12), (16, 14)): (0.867764, 0.871931, 0.684211, 0.695906),
    ((16, 12), (16, 18)): (0.706743, 0.710032, 0.291480, 0.300448),
    ((4, 4), (27, 27)): (0.312500, 0.312500, 0, 0),
    ((8, 8), (24, 24)): (0.187500, 0.187500, 0, 0),
    ((8, 8), (8, 24)): (0.593750, 0.593750, 0, 0),
}


def blob(centre):
    y, x = np.mgrid[:32, :32]
    return np.exp(-((y - centre[0]) ** 2 + (x - centre[1]) ** 2) / 50)


@pytest.mark.parametrize("centres", ROWS)
def test_iou_is_the_references(centres):
    a, b = map(blob, centres)
    wrapped, plain, *whole = ROWS[centres]
    np.testing.assert_allclose(measures.iou_ref(a, b), wrapped, atol=5.1e-7)
    np.testing.assert_allclose(measures.iou_ref(a, b, wrap=False), plain, atol=5.1e-7)
    for wrap, expected in zip((True, False), whole, strict=True):
        p, q = (measures._bits(m, 100, wrap) for m in (a, b))
        np.testing.assert_allclose((p & q).sum() / (p | q).sum(), expected, atol=5.1e-7)


def test_dice_of_empty_rows_is_two():
    a = blob((16, 12))
    np.testing.assert_allclose(measures.iou_ref(a, a, dice=True), 1.593750, atol=5e-6)


def test_auc_counts_pairs():
    rng = np.random.default_rng(0)
    m, region = rng.integers(0, 5, (6, 7)).astype(np.float32), rng.random((6, 7)) < 0.4
    pairs = m[region][:, None] - m[~region][None]
    expected = (pairs > 0).mean() + 0.5 * (pairs == 0).mean()
    np.testing.assert_allclose(
        measures.pixel_auc(jnp.asarray(m), jnp.asarray(region)), expected, rtol=1e-6
    )
    assert np.isnan(measures.pixel_auc(jnp.asarray(m), jnp.ones((6, 7), bool)))


def test_pairs_by_what_differs():
    runs = [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    found = measures.kinds_of_pairs(runs)
    assert found == dict(
        zip(measures.DIFFER, [[(0, 1)], [(0, 2), (1, 3)], [(0, 3), (1, 2)]], strict=True)
    )


def test_steadiness_of_equal_maps_is_one_and_chance_is_not():
    maps = np.stack([blob(c) for c in ((8, 8), (8, 24), (24, 8), (24, 24))]).astype(np.float32)
    right = np.array([True, True, False, True])
    found = measures.steadiness([maps, maps], [right, right], [(0, 1)])
    for name in ("IoU", "IoU, both right", "matched", "pearson", "spearman", "row IoU"):
        np.testing.assert_allclose(found[name], 1, atol=1e-6)
    assert found["chance"] == 0
    assert 0.1 < found["row chance"] < 0.6


def test_box_of_a_map():
    """A map that fills the object's box hits it at every level, one elsewhere never."""
    region = np.zeros((2, 20, 20), bool)
    region[:, 4:10, 2:12] = True
    np.testing.assert_allclose(measures.extent(region[0]), [0.1, 0.2, 0.6, 0.5])
    maps = np.stack([region[0], np.roll(region[0], 9, 0)]).astype(np.float32)
    found = measures.placed(maps, {"box": region}, np.zeros(2, bool))["box"]
    assert [found[f"box at {level}"] for level in measures.LEVELS] == [0.5, 0.5, 0.5]
    assert found["pointing"] == 0.5


def test_curves_and_confidence_of_a_network():
    """Twins in NumPy: the picture times the map for the drop, a curve of 21 pictures."""
    model = models.lfi_cam_resnet8(width=4, num_classes=3, rngs=nnx.Rngs(0))
    model.eval()
    graph, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)
    state = runs.State(params, stats, (), 0)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 8, 3)), jnp.float32)
    m = np.random.default_rng(1).random((2, 8, 8)).astype(np.float32)
    found = measures.curves(graph, state, x, {"map": m})["map"]
    p = jax.nn.softmax(model(x))
    label = p.argmax(-1)
    clean = p[jnp.arange(2), label]
    spread = (m - m.min((1, 2), keepdims=True)) / np.ptp(m, (1, 2), keepdims=True)
    kept = jax.nn.softmax(model(x * spread[..., None]))[jnp.arange(2), label]
    drop = 100 * np.maximum(0, clean - kept) / clean
    np.testing.assert_allclose(found["drop"], drop.mean(), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(found["increase"], 100 * (kept > clean).mean())
    curve = []
    for step in range(measures.STEPS + 1):
        gone = np.argsort(-m.reshape(2, -1), 1)[:, : round(64 * step / measures.STEPS)]
        y = np.array(x).reshape(2, 64, 3)
        for row, at in zip(y, gone, strict=True):
            row[at] = 0
        curve.append(jax.nn.softmax(model(y.reshape(x.shape)))[jnp.arange(2), label] / clean)
    area = np.trapezoid(np.stack(curve), dx=1 / measures.STEPS, axis=0)
    np.testing.assert_allclose(found["deletion"], area.mean(), rtol=5e-3)
