"""Relatives of FAM against their twins, and how they hang together."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_fam as twin
from embedders import EMBEDDERS, GAP, LAYERS, A, B, H, Q, S, W, activations, close, cos

import jaxfmi as jf


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("pool", ["gap", "projection", "max"])
def test_point_to_point(pool):
    layers, embed = EMBEDDERS[pool]
    p = twin.point_to_point(layers, A, B)
    points = jax.jit(jf.point_to_point(embed, "a", chunk=2))(A, B)
    close(points, p)
    point = jax.jit(jf.point_map(embed, "a", size=None))
    for at in ((0, 0), (1, 3), (2, 1)):
        close(point(A, B, at), twin.point_map(p, at, A.shape[:2]))


def test_total_and_marginals():
    points = jf.point_to_point(GAP, "a")(A, B)
    close(points.sum(), cos(Q, S))
    a, b, _ = jf.pair(GAP, "a", size=None)(A, B)
    close(points.sum((2, 3)), a)  # P9
    close(points.sum((0, 1)), b)
    close(jf.overall_map(GAP, "a", clip=False)(A, B), a)
    close(jf.point_to_point(GAP, "a", similarity="dot")(A, B).sum(), Q @ S)


def test_clipped_as_the_authors_do():
    x, y = (a - 0.3 for a in (A, B))
    p = twin.point_to_point(LAYERS, x, y)
    assert p.min() < 0
    close(jf.point_to_point(GAP, "a", clip=True)(x, y), twin.clipped(p))
    close(jf.overall_map(GAP, "a")(x, y), twin.overall(p, clip=True)[0])


def test_an_embedding_of_zeros_has_no_cosine():
    for of in (jf.point_to_point, jf.overall_map):
        with pytest.raises(ValueError, match="the partner's embedding is zero: the cosine"):
            of(GAP, "a")(A, 0 * B)
        assert not of(GAP, "a", similarity="dot")(A, 0 * B).any()


def test_points_between_places():
    """A pixel of an image larger than the layer is bilinear on its grid, the edge repeated."""

    def embed(x):
        return jf.tag(x.reshape(2, 2, 2, 3, -1).mean((1, 3)), "a").mean((0, 1))

    (x,) = activations(2, (4, 6, 5))
    p = twin.point_to_point(LAYERS, x.reshape(2, 2, 2, 3, 5).mean((1, 3)), np.asarray(A[:2, :2]))

    def partner_embed(y):
        return GAP(y)

    def either(x):
        return embed(x) if x.shape == (4, 6, 5) else partner_embed(x)

    point = jf.point_map(either, "a", size=None)
    for at in ((0, 0), (1, 2), (3, 5), (2, 3)):
        close(point(x, A[:2, :2], at), twin.point_map(p, at, (4, 6)))


def test_maps_of_one_gradient():
    close(jf.similarity_grad_cam(GAP, "a", relu=False)(A, S), twin.grad_cam_on_cosine(LAYERS, A, S))
    close(
        jf.similarity_grad_cam(GAP, "a")(A, S),
        np.maximum(twin.grad_cam_on_cosine(LAYERS, A, S), 0),
    )
    close(jf.self_map(GAP, "a")(A, S), twin.self_map(LAYERS, A))
    close(jf.self_map(GAP, "a")(A).sum(), Q @ Q)
    close(jf.lafam(GAP, "a")(A, S), twin.lafam(A))


@pytest.mark.parametrize("chunk", [1, 3, None])
def test_sbsm(chunk):
    (x,) = activations(4, (6, 7, 5))
    starts = [(i, j) for i in (0, 2, 3) for j in (0, 2, 4)]
    windows = np.zeros((len(starts), 6, 7), bool)
    for window, (i, j) in zip(windows, starts, strict=True):
        window[i : i + 3, j : j + 3] = True
    got = jf.sbsm(GAP, window=3, stride=2, fill=0.5, chunk=chunk)(x, S)
    close(got, twin.sbsm(lambda x: x.mean((0, 1)), x, S, windows, 0.5))
    assert got.min() >= 0
    assert got.max() > 0


def test_occluding_what_is_at_the_partner_already():
    """The distance has no slope at 0, but the map stays finite."""
    with jax.debug_nans(True):
        got = jf.sbsm(GAP, window=2, stride=2)(A, Q)
    assert got.shape == (H, W)
    assert np.isfinite(got).all()


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (lambda: jf.point_map(GAP, "a"), (A, B, (H, 0)), r"the point \(3, 0\) is outside"),
        (lambda: jf.point_map(GAP, "a"), (A, B, (0, -1)), "outside of the image"),
        (lambda: jf.point_map(GAP, "a", similarity="margin"), (A, B, (0, 0)), "cosine.*or.*dot"),
        (lambda: jf.point_to_point(GAP, "a", similarity="margin"), (A, B), "cosine.*or.*dot"),
        (lambda: jf.point_to_point(GAP, "a"), (A, S), "expected one image"),
        (lambda: jf.sbsm(GAP, window=2, stride=3), (A, S), "1 <= stride <= window"),
        (lambda: jf.sbsm(GAP, window=2, stride=1), (A, S[:2]), "expected one embedding"),
        (lambda: jf.sbsm(GAP), (A, S), r"a window of \(50, 50\) covers all of a picture of"),
        (lambda: jf.lafam(GAP, "b"), (A,), "no tag 'b'"),
        (lambda: jf.lafam(GAP, ("a",)), (A,), "explains one layer"),
    ],
)
def test_bad_input(make, arguments, message):
    with pytest.raises(ValueError, match=message):
        make()(*arguments)


def test_points_are_traced():
    traces = []

    def embed(x):
        traces.append(1)
        return GAP(x)

    program = jax.jit(jf.point_map(embed, "a"))
    program(A, B, (jnp.asarray(0), jnp.asarray(1)))
    once = len(traces)
    program(A, B, (jnp.asarray(2), jnp.asarray(3)))
    assert len(traces) == once > 0
