"""Digits on textures: where the digit is said to be it is, splits share nothing, bad input."""

import functools
import sys

import numpy as np
import pytest

from jaxfmi.train import digits
from jaxfmi.train.digits import digits_on_textures, draw_digits

pytest.importorskip("sklearn", reason="needs the extra `train`: scikit-learn")
pytest.importorskip("skimage", reason="needs the extra `demo`: scikit-image")


@functools.cache
def drawn(split="train", **options):
    return draw_digits(60, split, **options)


def test_shapes():
    found = drawn()
    assert found.images.shape == (60, 24, 24, 3)
    assert found.images.dtype == np.uint8
    assert found.masks.shape == (60, 24, 24)
    assert set(found.labels) == set(range(10))


@pytest.mark.parametrize(("size", "height", "width"), [(24, 11, 9), (32, 14, 12)])
def test_boxes_hold_the_strokes(size, height, width):
    found, inside = drawn(size=size), []
    for (x1, y1, x2, y2), mask in zip(found.boxes, found.masks, strict=True):
        assert (y2 - y1 + 1, x2 - x1 + 1) == (height, width)
        assert 0 <= y1 < y2 < size
        assert mask.any()
        inside.append(mask[y1 : y2 + 1, x1 : x2 + 1].sum() / mask.sum())
    assert min(inside) > 0.85
    assert np.mean(inside) > 0.98
    assert len(np.unique(found.boxes[:, :2], axis=0)) > 40


def test_digits_are_bright():
    found = drawn()
    brightness = found.images.mean(-1)
    inside, outside = brightness[found.masks].mean(), brightness[~found.masks].mean()
    assert inside > 1.4 * outside


def test_a_seed_decides_and_splits_differ():
    np.testing.assert_array_equal(draw_digits(60).images, drawn().images)
    assert (draw_digits(60, seed=1).images != drawn().images).any()
    assert (drawn("test").images != drawn().images).any()


def test_no_scan_is_in_both_splits(monkeypatch):
    """Scans that are their own numbers, so that pictures tell which they are of."""
    numbers = np.arange(1797)
    scans = np.broadcast_to((numbers / 1797)[:, None, None], (1797, 11, 11))
    monkeypatch.setattr(digits, "_scans", lambda side: (scans, numbers))
    monkeypatch.setitem(digits.CLASSES, 10, tuple(map(str, numbers)))
    train, test = (set(draw_digits(400, split).labels) for split in ("train", "test"))
    assert not train & test


def test_two_classes_are_halves_of_ten():
    np.testing.assert_array_equal(drawn(classes=2).labels, drawn().labels >= 5)


def test_splits_for_training():
    found = digits_on_textures(5, 3)
    assert {k: len(s.labels) for k, s in found.items()} == {"train": 5, "test": 3}
    assert found["train"].names == tuple("0123456789")
    assert digits_on_textures(5, 3, classes=2)["test"].names == ("below 5", "5 or more")


def test_bad_input():
    with pytest.raises(ValueError, match="10 or 2 classes, got 3"):
        draw_digits(1, classes=3)
    with pytest.raises(ValueError, match=r"'train', 'test'.*'val'"):
        draw_digits(1, "val")
    with pytest.raises(ValueError, match="16 to 128, got 8"):
        draw_digits(1, size=8)


def test_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    digits._scans.cache_clear()
    with pytest.raises(ImportError, match=r'scikit-learn: pip install "jaxfmi\[train\]"'):
        draw_digits(1)
