"""Galleries: ranks and maps, streams of images with bounded memory, and the closed form."""

import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from embedders import GAP, A, Q, S, activations, close, conv_embedder

import jaxfmi as jf
from jaxfmi import similarities as sim

RNG = np.random.default_rng(8)
PARTNERS = RNG.random((9, 5)).astype(np.float32)
NEAR = PARTNERS[2] * np.float32(1 + 1e-7)  # a centre where one of them is, up to rounding
X = A.astype(np.float32)


def near(got, expected):
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)


def test_the_best_of_a_gallery():
    found = jax.jit(jf.gallery(GAP, "a", top=4))(X, PARTNERS)
    cosines = PARTNERS @ X.mean((0, 1)) / np.linalg.norm(PARTNERS, axis=1)
    order = np.argsort(-cosines)[:4]
    np.testing.assert_array_equal(found.order, order)
    near(found.scores, cosines[order] / np.linalg.norm(X.mean((0, 1))))
    near(found.heatmaps, jax.vmap(jf.fam(GAP, "a"), (None, 0))(X, PARTNERS[order]))
    few = jf.gallery(GAP, "a", top=4, chunk=3)(X, PARTNERS)
    for one, other in zip(few, found, strict=True):
        near(one, other)


def test_the_centre_may_be_traced():
    mu = PARTNERS.mean(0)

    def best(x, mu):
        explain = jf.gallery(GAP, "a", top=2, similarity=sim.centred_cosine(mu))
        return explain(x, jnp.asarray(PARTNERS))

    for one, other in zip(jax.jit(best)(X, mu), best(X, mu), strict=True):
        near(one, other)


def test_a_gallery_smaller_than_what_is_asked_for():
    assert jf.gallery(GAP, "a", top=10)(X, PARTNERS[:3]).heatmaps.shape == (3, 3, 4)


def test_pairs_and_options():
    pairs = np.stack([PARTNERS[:3], PARTNERS[3:6]], 1)
    found = jf.gallery(GAP, "a", similarity="margin", size=None)(X, pairs)
    explain = jf.fam(GAP, "a", similarity="margin", size=None)
    for place, heatmap in zip(found.order, found.heatmaps, strict=True):
        near(heatmap, explain(X, pairs[place]))


def test_embeddings_do_not_depend_on_the_chunk():
    embed = conv_embedder()
    images = RNG.standard_normal((7, 6, 5, 3)).astype(np.float32)
    expected = jax.vmap(embed)(images)
    for chunk in (2, 7, 20):
        got = jf.embed_images(embed, images, chunk=chunk)
        assert isinstance(got, np.ndarray)
        near(got, expected)


def test_a_stream_is_never_whole_in_memory():
    class Counted(np.ndarray):
        pass

    alive, most, chunk, count = weakref.WeakSet(), 0, 2, 15

    def stream():
        nonlocal most
        for i in range(count):
            image = np.full((3, 4, 5), i + 1, np.float32).view(Counted)
            alive.add(Held(image))
            yield image
            del image
            most = max(most, len(alive))

    class Held:
        """Lives as long as its image does."""

        def __init__(self, image):
            self.image = weakref.ref(image)
            image.held = self

    traced = 0

    def embed(x):
        nonlocal traced
        traced += 1
        return GAP(x)

    got = jf.embed_images(embed, stream(), chunk=chunk)
    near(got, np.repeat(np.arange(1.0, count + 1)[:, None], 5, 1))
    assert most <= 2 * chunk
    assert traced == 1


def test_closed_form():
    with jax.enable_x64(True):
        queries = np.stack(activations(3, (3, 4, 5), (3, 4, 5)))
        queries[1] *= 4
        partners = np.stack([S, 3 * Q, 0 * Q])
        got = jf.pooled_maps(queries, partners)
        assert got.shape == (2, 3, 3, 4)
        explain = jf.fam(GAP, "a")
        for q, maps in zip(queries, got, strict=True):
            for s, heatmap in zip(partners[:2], maps, strict=False):
                close(heatmap, explain(q, s))
        close(got[:, 2], 0)
        close(jf.pooled_maps(queries, partners, chunk=None), got)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: jf.gallery(GAP, "a")(X, np.ones((0, 5))), "the gallery is empty"),
        (lambda: jf.gallery(GAP, "a")(X, np.ones(5)), "an unexpected rank"),
        (lambda: jf.gallery(GAP, "a")(X, np.ones((2, 4))), "because the image's embedding has 5"),
        (lambda: jf.gallery(GAP, "a")(X, np.eye(5) * [1, 0, 1, 1, 1]), "1 embeddings.*at 1"),
        (lambda: jf.gallery(GAP, "a")(0 * X, PARTNERS), "the image's embedding is zero"),
        (
            lambda: jf.gallery(GAP, "a", similarity=sim.centred_cosine(NEAR))(X, PARTNERS),
            "1 embeddings of the gallery are zero or at the centre, the first at 2",
        ),
        (lambda: jf.gallery(GAP, "a", top=0), "at least 1; got 0"),
        (lambda: jf.embed_images(GAP, []), "the gallery is empty"),
        (lambda: jf.embed_images(GAP, iter(())), "the gallery is empty"),
        (lambda: jf.embed_images(GAP, [X], chunk=0), "at least 1; got 0"),
        (lambda: jf.embed_images(GAP, [X, X[:2]]), "of one size"),
        (lambda: jf.embed_images(GAP, [X, X[:2]], chunk=1), "of one size"),
        (lambda: jf.embed_images(GAP, [X[0]]), r"expected images \[H, W, C\]"),
        (lambda: jf.embed_images(GAP, [X.astype(int)]), "expected float images"),
        (lambda: jf.embed_images(GAP, [X * np.nan]), "NaN or infinite"),
        (lambda: jf.pooled_maps(X[None], PARTNERS[:, :4]), "as many numbers as there are maps"),
        (lambda: jf.pooled_maps(X[None], PARTNERS[:0]), "the gallery is empty"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_zeros_where_the_cosine_is_not_asked_for():
    partners = jnp.zeros((2, 5))
    assert not jf.gallery(GAP, "a", similarity=sim.dot)(X, partners).heatmaps.any()
    assert not jax.jit(jf.gallery(GAP, "a"))(X, partners).scores.any()
