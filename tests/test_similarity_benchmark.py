"""The similarity benchmark: which pictures a slow method explains, and the measures, by hand."""

import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxfmi.models import Conv4

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
from similarities import maps, measures, protocol, retrieval, tiny


def test_a_part_has_the_pictures_that_are_drawn():
    images = np.zeros((1000, 1))
    at = protocol.part(images, 100)
    assert set(range(4)) <= set(at)
    assert len(at) == 103
    np.testing.assert_array_equal(np.diff(at[4:]), 10)
    np.testing.assert_array_equal(protocol.part(images[:7], 100), np.arange(7))


def test_what_is_missing_is_nan():
    found = protocol.spread({"a": np.array([[1, 2], [3, 4]])}, np.array([0, 3]), 5)["a"]
    np.testing.assert_array_equal(found[[0, 3]], [[1, 2], [3, 4]])
    assert np.isnan(found[[1, 2, 4]]).all()


@pytest.fixture(scope="module")
def network():
    return maps.take_apart(Conv4((4, 6), (1,), rngs=nnx.Rngs(0)), mean=(0.5,), std=(0.2,))


def test_every_method_has_its_own_pictures(network):
    """SBSM is that of the library for the pictures it explains, and says nothing of the others.

    Nor is anything said of other partners of pictures that keep theirs.
    """
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, 12, 12, 3), np.uint8)
    e = protocol.embedded(network, images, 6)
    own, other = np.roll(e, 1, 0), np.roll(e, 2, 0)
    region = np.zeros((6, 12, 12), bool)
    region[:, :6] = True
    options = {"partners": {"other": (other, own)}, "batch": 3, "size": (12, 12)}
    args = (network, e.mean(0), images, own, other, region)
    table, shown = protocol.map_test(*args, occluded=2, swapped=3, **options)
    np.testing.assert_array_equal(np.isfinite(table["same other"]["complete"]), [1, 1, 1, 1, 1, 0])
    np.testing.assert_array_equal(np.isfinite(table["peak"]["sbsm"]), [1, 1, 1, 1, 0, 0])
    assert np.isnan(shown["sbsm"][4:]).all()
    assert all(np.isfinite(table["peak"][n]).all() for n in maps.NAMES if n != "sbsm")
    expected = maps.sbsm(network.net.embed(network.state), window=3, stride=1)
    x = network.net.input(images[3])
    np.testing.assert_allclose(shown["sbsm"][3], expected(x, own[3]), atol=1e-5)
    summary = protocol.summary(table)
    assert summary["sbsm"]["pictures"] == 4
    assert summary["complete"]["pictures"] == 6
    assert summary["complete"]["missing"] < 1e-5
    boxes = np.tile([[0.0, 0.0, 1.0, 0.5]], (6, 1))
    found = tiny.boxes_by_map(shown, boxes, 5)
    assert (found["sbsm"]["pictures"], found["complete"]["pictures"]) == (4, 5)


def test_box_of_the_largest_component():
    heatmap = np.zeros((10, 10))
    heatmap[2:6, 1:5] = 1
    heatmap[8, 8] = 1
    overlap = measures.box_overlap(heatmap, np.array([0.1, 0.2, 0.5, 0.8]), (0.5,))
    np.testing.assert_allclose(overlap, 16 / 24)
    found = measures.box_accuracy([heatmap] * 3, [np.array([0.1, 0.2, 0.5, 0.8])] * 3)
    assert found["box@0.5"] == [1, 1, 1]
    assert found["box@0.7"] == [0, 0, 0]


def test_intervals_and_shares_of_a_range():
    values = np.random.default_rng(0).normal(3, 1, 400)
    mean, low, high = measures.interval([*values, np.nan])
    np.testing.assert_allclose(mean, values.mean())
    np.testing.assert_allclose([low, high], values.mean() + np.array([-1, 1]) * 0.098, atol=0.02)
    groups = np.repeat(np.arange(4), 100)
    wide = measures.interval(values + 3 * groups, groups)
    assert wide[2] - wide[1] > 3
    area = measures.share_of_range(np.full(4, 0.5), np.full(4, 0.9), np.full(4, 0.1))
    np.testing.assert_allclose(area, 0.5)


def test_another_of_a_class():
    labels = np.array([0, 1, 0, 2, 0])
    found = retrieval.another_of(labels, np.random.default_rng(0))
    np.testing.assert_array_equal(labels[found], labels)
    assert found[1] == 1
    assert found[3] == 3
    assert all(found[i] != i for i in (0, 2, 4))


def test_maps_come_in_the_order_of_their_names(network):
    x = jnp.zeros((12, 12, 3))
    found = {"random": maps._bare(x[..., :1]), "complete": maps._bare(x[..., :1])}
    assert list(maps.heatmaps(found, (4, 4))) == ["complete", "random"]
