"""The engine: one stream of chunks for a whole batch, whatever is batched or wanted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxfmi as jf
from jaxfmi.perturbation import scores, under

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.standard_normal((4, 6, 5, 2)), jnp.float32)
SMALL = jnp.asarray(RNG.random((4, 7, 6, 5)), jnp.float32)
LARGE = jnp.asarray(RNG.random((4, 3, 12, 10)), jnp.float32)
W = jnp.asarray(RNG.standard_normal((6, 5, 2)), jnp.float32)
KEEP = jnp.asarray(RNG.random((4, 10)) < np.array([[0.1], [0.9], [0.0], [0.5]]))


def run(x, small, large, keep, w, chunk=4):
    """Two groups of items of different shapes; the model closes over its weights."""
    groups = [
        (under(x), small),
        (lambda m: under(x)(m[::2, ::2]), large),
    ]
    return scores(lambda image: jnp.tanh((image * w).sum()), groups, keep, chunk=chunk)


def expected(x, small, large, keep, w):
    masks = np.concatenate([small, large[:, ::2, ::2]])
    return np.where(keep, np.tanh((x[None] * masks[..., None] * w[None]).sum((1, 2, 3))), 0)


def close(got, want):
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)


def all_expected(w=W):
    rows = zip(X, SMALL, LARGE, KEEP, strict=True)
    return np.stack([expected(*map(np.asarray, row), np.asarray(w)) for row in rows])


@pytest.mark.parametrize("chunk", [1, 3, 7, 10, 64, None])
def test_single_images(chunk):
    for i in range(4):
        got = run(X[i], SMALL[i], LARGE[i], KEEP[i], W, chunk)
        close(got, all_expected()[i])


@pytest.mark.parametrize("chunk", [1, 3, 7, 40, 64, None])
def test_batches_of_ragged_counts(chunk):
    got = jax.jit(jax.vmap(lambda *row: run(*row, W, chunk)))(X, SMALL, LARGE, KEEP)
    close(got, all_expected())


def test_a_batch_of_anything():
    """Of images alone, of weights that are closed over, of both, in either order."""
    weights = jnp.stack([W, -2 * W])
    one = (SMALL[0], LARGE[0], KEEP[1])
    close(
        jax.vmap(lambda x: run(x, *one, W))(X),
        np.stack([expected(*map(np.asarray, (x, *one, W))) for x in X]),
    )
    close(
        jax.vmap(lambda w: run(X[0], *one, w))(weights),
        np.stack([expected(*map(np.asarray, (X[0], *one, w))) for w in weights]),
    )
    both = jax.vmap(lambda w: jax.vmap(lambda *row: run(*row, w))(X, SMALL, LARGE, KEEP))(weights)
    close(both, np.stack([all_expected(w) for w in weights]))
    turned = jax.vmap(lambda x: jax.vmap(lambda w: run(x, *one, w))(weights))(X)
    want = [[expected(*map(np.asarray, (x, *one, w))) for w in weights] for x in X]
    close(turned, np.array(want))


@pytest.mark.parametrize(("chunk", "chunks"), [(1, 16), (4, 4), (5, 4), (16, 1), (None, 1)])
def test_a_batch_is_one_stream_of_full_chunks(chunk, chunks):
    calls = []

    def evaluate(image):
        jax.debug.callback(lambda _: calls.append(1), image[0, 0, 0])
        return image.sum()

    keep = jnp.arange(40).reshape(4, 10) % 5 < 2

    def explain(x, keep):
        return scores(evaluate, [(lambda i: x * i, jnp.arange(10.0))], keep, chunk=chunk)

    jax.jit(jax.vmap(explain))(X, keep)
    jax.effects_barrier()
    assert len(calls) == chunks * (chunk or 40)


def test_another_count_does_not_recompile():
    run_jit = jax.jit(run)
    for i in range(4):
        run_jit(X[i], SMALL[i], LARGE[i], KEEP[i], W)
    assert run_jit._cache_size() == 1


def test_what_is_not_wanted_is_not_evaluated():
    def evaluate(v):
        return 1 / v

    with jax.debug_nans(True):
        got = scores(
            evaluate,
            [(lambda v: v, jnp.array([0.0, 2.0, 0.0, 4.0]))],
            jnp.array([False, True, False, True]),
            chunk=3,
        )
    close(got, [0, 0.5, 0, 0.25])
    assert not scores(evaluate, [(lambda v: v, jnp.zeros(3))], jnp.zeros(3, bool), chunk=2).any()


def test_memory_is_that_of_a_chunk():
    """Not of 8 images with 100 masks each."""
    x, masks = jnp.ones((8, 64, 64, 3)), jnp.ones((8, 100, 4, 4))

    def explain(x, masks):
        def masked(m):
            return under(x)(jnp.repeat(jnp.repeat(m, 16, 0), 16, 1))

        return scores(lambda v: jnp.sin(v).sum(), [(masked, masks)], chunk=4)

    compiled = jax.jit(jax.vmap(explain)).lower(x, masks).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 16 * x[0].size * 4


@pytest.mark.parametrize("over", [(0,), (None,)])
def test_forward_derivatives(over):
    w = W if over == (None,) else jnp.stack([W] * 4)

    def f(x, w):
        return run(x, SMALL[0], LARGE[0], KEEP[1], w)

    got = jax.vmap(lambda x, w: jax.jvp(f, (x, w), (x, w))[1], (0, *over))(X, w)
    step = 1e-3
    up, down = (jax.vmap(f, (0, *over))(X * (1 + s), w * (1 + s)) for s in (step, -step))
    np.testing.assert_allclose(got, (up - down) / (2 * step), atol=2e-3)
    tangents = jax.vmap(lambda t: jax.jvp(lambda x: f(x, W), (X[0],), (t,))[1])(X)
    assert tangents.shape == (4, 10)


@pytest.mark.parametrize("chunk", [0, -2])
def test_chunks_are_at_least_one(chunk):
    with pytest.raises(ValueError, match=f"at least 1; got {chunk}"):
        scores(jnp.sum, [(lambda v: v, jnp.ones((3, 2)))], chunk=chunk)


def test_something_to_evaluate():
    with pytest.raises(ValueError, match="nothing to evaluate"):
        scores(jnp.sum, [(lambda v: v, jnp.ones((0, 2)))], chunk=1)


@pytest.mark.parametrize("baseline", [0.0, -1.5, jnp.ones((6, 5, 2)), lambda x: x[::-1]])
def test_what_is_shown_under_a_mask(baseline):
    x, mask = X[0], SMALL[0, 0]
    other = baseline(x) if callable(baseline) else baseline
    m = mask[..., None]
    close(under(x, baseline)(mask), m * x + (1 - m) * other)
    assert under(x.astype(jnp.bfloat16), baseline)(mask).dtype == jnp.bfloat16


def test_a_baseline_is_made_once_per_image():
    made = []

    def baseline(x):
        jax.debug.callback(lambda _: made.append(1), x[0, 0, 0])
        return x[::-1]

    def explain(x):
        return jf.rise(lambda x: x.sum(), samples=9, cells=3, baseline=baseline, chunk=2)(
            x, key=jax.random.key(0)
        )

    jax.vmap(explain)(X[:3])
    jax.effects_barrier()
    assert len(made) == 3
