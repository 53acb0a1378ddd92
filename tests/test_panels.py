"""Panels of similarities: what they hold, that rows share a scale, and bad input."""

import numpy as np
import pytest
from PIL import Image

from jaxfmi.panels import RIGHT, WRONG, episode_panel, joint, overlays, retrieval_panel

RNG = np.random.default_rng(0)
PICTURES = [RNG.random((20, 30, 3)), RNG.random((40, 30, 3)), RNG.random((16, 16))]


def maps(count):
    return [RNG.standard_normal((5, 7)) for _ in range(count)]


def shown(figure):
    return [ax for ax in figure.axes if ax.images]


def titles(figure):
    return [ax.get_title() for ax in figure.axes if ax.get_title()]


def test_maps_of_a_row_share_a_scale():
    picture, strong = np.full((8, 8, 3), 0.5), np.ones((8, 8))
    one, weak = overlays([picture] * 2, [strong, 0.1 * strong])
    assert np.abs(one - weak).max() > 0.2
    alone = overlays([picture], [0.1 * strong])[0]
    np.testing.assert_allclose(alone, one)
    assert joint([strong, -2 * strong]) == (2.0, True)
    assert joint([0 * strong]) == (1.0, False)


def test_retrieval(tmp_path):
    path = tmp_path / "panel.png"
    figure = retrieval_panel(
        PICTURES[0],
        PICTURES,
        maps(3),
        maps(3),
        [0.9, 0.5, -0.1],
        labels=["a", "b", "c"],
        correct=[True, False, True],
        path=path,
    )
    assert len(shown(figure)) == 1 + 3 * 3
    assert titles(figure) == ["query", "1. a 0.9", "2. b 0.5", "3. c -0.1"]
    colours = [ax.title.get_color() for ax in figure.axes if ax.get_title()][1:]
    assert colours == [RIGHT, WRONG, RIGHT]
    with Image.open(path) as image:
        assert np.asarray(image.convert("L")).std() > 10


def test_episode():
    supports = [PICTURES[:2], PICTURES[1:2], PICTURES]
    figure = episode_panel(
        supports,
        PICTURES[0],
        maps(3),
        [0.1, 0.8, 0.3],
        support_maps=[maps(2), maps(1), maps(3)],
        shares=[[0.05, 0.05], [0.8], [0.1, 0.1, 0.1]],
        truth=1,
    )
    assert len(shown(figure)) == 2 + 1 + 3 + 3 + 1
    assert "query: class 2" in titles(figure)
    best = next(ax for ax in figure.axes if ax.get_title() == "score 0.8")
    assert best.title.get_color() == RIGHT
    assert len(shown(episode_panel(supports, PICTURES[0], maps(3), [1, 2, 3]))) == 6 + 3 + 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: retrieval_panel(PICTURES[0], [], [], [], []), "at least one partner"),
        (
            lambda: retrieval_panel(PICTURES[0], PICTURES, maps(2), maps(3), [1, 2, 3]),
            "2 maps for 3 pictures",
        ),
        (
            lambda: retrieval_panel(PICTURES[0], PICTURES, maps(3), maps(3), [1]),
            "1 scores for 3 pictures",
        ),
        (
            lambda: retrieval_panel(
                PICTURES[0], PICTURES, maps(3), maps(3), [1, 2, 3], labels=["a"]
            ),
            "1 labels for 3 pictures",
        ),
        (
            lambda: retrieval_panel(
                PICTURES[0], PICTURES[:1], [np.full((2, 2), np.nan)], maps(1), [1]
            ),
            "NaN",
        ),
        (
            lambda: episode_panel(
                [PICTURES[:2], PICTURES[:1]],
                PICTURES[0],
                maps(2),
                [1, 2],
                support_maps=[maps(1), maps(2)],
            ),
            r"\[1, 2\] support maps for classes of \[2, 1\] supports",
        ),
        (
            lambda: episode_panel([PICTURES[:2]], PICTURES[0], maps(1), [1], shares=[[1.0]]),
            r"\[1\] shares for classes of \[2\] supports",
        ),
        (lambda: episode_panel([PICTURES, []], PICTURES[0], maps(2), [1, 2]), "class 1 is empty"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
