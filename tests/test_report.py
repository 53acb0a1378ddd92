"""Panels: their size, that nothing is cut or blank, and that every map is visible."""

import numpy as np
import pytest
from PIL import Image

from jaxfmi.heatmap import overlay
from jaxfmi.report import lay, panel

RNG = np.random.default_rng(0)
PICTURES = [RNG.random((20, 30, 3)), RNG.random((40, 30, 3))]


def maps(titles):
    return {f"method_{i}": [RNG.random((5, 7)) for _ in PICTURES] for i in range(titles)}


@pytest.mark.parametrize(
    ("titles", "lines", "columns"), [(0, 1, 1), (2, 1, 3), (3, 1, 4), (5, 2, 4)]
)
def test_grid(titles, lines, columns):
    figure = panel(PICTURES, maps(titles), captions=["a", "b"], columns=4)
    assert len(figure.axes) == 2 * lines * columns
    shown = [ax for ax in figure.axes if ax.images]
    assert len(shown) == 2 * (1 + titles)
    assert [ax.get_title() for ax in shown[: 1 + titles]] == ["a", *maps(titles)]
    for ax in shown:
        assert ax.images[0].get_array().std() > 0.05


def test_nothing_is_cut(tmp_path):
    figure = panel(PICTURES, maps(5), captions=["a caption of some length"] * 2, columns=3)
    figure.savefig(tmp_path / "panel.png")
    edges = figure.bbox
    for ax in figure.axes:
        box = ax.get_tightbbox()
        if ax.images:
            assert box.x0 >= edges.x0
            assert box.y0 >= edges.y0
            assert box.x1 <= edges.x1
            assert box.y1 <= edges.y1


def test_file(tmp_path):
    path = tmp_path / "panel.png"
    panel(PICTURES, maps(2), path=path, dpi=100)
    with Image.open(path) as image:
        assert image.width == 630
        assert np.asarray(image.convert("L")).std() > 10


def test_a_few_large_values_leave_the_others_their_colour():
    heatmap = RNG.random((100, 100)).astype(np.float32)
    heatmap[0, 0] = 1e4
    grey = np.full((100, 100, 3), 0.5)
    assert overlay(grey, heatmap)[5:].std(axis=(0, 1)).max() < 0.01
    assert lay(grey, heatmap)[5:].std(axis=(0, 1)).max() > 0.1


def test_a_single_value_is_shown():
    heatmap = np.zeros((50, 50), np.float32)
    heatmap[25, 25] = 3
    shown = lay(np.full((50, 50, 3), 0.5), heatmap)
    assert np.abs(shown[25, 25] - shown[0, 0]).max() > 0.2


def test_signed_maps_have_one_look():
    picture, heatmap = RNG.random((20, 30, 3)), np.ones((20, 30), np.float32)
    heatmap[:10] = 0
    signed = lay(picture, heatmap, signed=True)
    heatmap[0, 0] = -1e-6
    np.testing.assert_allclose(lay(picture, heatmap), signed, atol=1e-3)
    assert (signed[15, :, 0] > signed[15, :, 2]).all()
    np.testing.assert_allclose(signed[5, :, 0], signed[5, :, 2], atol=1e-6)


def test_a_constant_map_has_no_nan():
    for value in (0, 2):
        shown = lay(PICTURES[0], np.full((5, 5), value, np.float32))
        assert np.isfinite(shown).all()


def test_wrong_input():
    with pytest.raises(ValueError, match="at least one picture"):
        panel([], {})
    with pytest.raises(ValueError, match="1 maps of 'cam' for 2 pictures"):
        panel(PICTURES, {"cam": [np.ones((2, 2))]})
