"""Chunks bound memory and change nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

from jaxfmi.chunks import chunk_map, chunk_mean

N = 7
XS = jnp.asarray(np.random.default_rng(0).standard_normal((N, 3)))


def close(got, expected):
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)


def f(x):
    return {"sum": x.sum(), "twice": 2 * x}


@pytest.mark.parametrize("wrap", [lambda g: g, jax.jit], ids=["eager", "jit"])
@pytest.mark.parametrize("chunk", [1, 2, 3, N - 1, N, N + 5, None])
def test_chunks_do_not_matter(wrap, chunk):
    mapped = wrap(lambda xs: chunk_map(f, xs, chunk))(XS)
    close(mapped["sum"], XS.sum(1))
    close(mapped["twice"], 2 * XS)
    mean = wrap(lambda xs: chunk_mean(f, xs, chunk))(XS)
    close(mean["sum"], XS.sum(1).mean())
    close(mean["twice"], 2 * XS.mean(0))


@pytest.mark.parametrize("chunk", [2, None])
def test_trees_of_operands(chunk):
    operands = (XS, {"scale": jnp.arange(N)})
    got = chunk_map(lambda v: v[0] * v[1]["scale"], operands, chunk)
    close(got, XS * np.arange(N)[:, None])
    close(chunk_mean(lambda v: v[0] * v[1]["scale"], operands, chunk), got.mean(0))


@pytest.mark.parametrize("chunk", [1, 3, None])
def test_keys_and_single_values(chunk):
    keys = jax.random.split(jax.random.key(0), N)
    expected = jax.vmap(jax.random.normal)(keys)
    close(chunk_map(jax.random.normal, keys, chunk), expected)
    close(chunk_mean(jax.random.normal, keys, chunk), expected.mean())
    close(chunk_mean(f, XS[:1], chunk)["twice"], 2 * XS[0])


@pytest.mark.parametrize("chunk", [2, 3, None])
def test_derivatives_and_batches(chunk):
    def loss(xs):
        mapped = chunk_map(lambda x: (x**3).sum(), xs, chunk).sum()
        return mapped + chunk_mean(lambda x: (x**2).sum(), xs, chunk)

    close(jax.grad(loss)(XS), 3 * XS**2 + 2 * XS / N)
    close(jax.vmap(loss)(jnp.stack([XS, 2 * XS])), [loss(XS), loss(2 * XS)])


@pytest.mark.parametrize("chunked", [chunk_map, chunk_mean])
@pytest.mark.parametrize("chunk", [0, -1])
def test_a_chunk_is_at_least_one(chunked, chunk):
    with pytest.raises(ValueError, match=f"at least 1; got {chunk}"):
        chunked(f, XS, chunk)


def test_only_a_chunk_of_values_is_there():
    """The mean of 100 large values, five at a time."""

    def large(x):
        return jnp.outer(x, x)

    xs = jnp.ones((100, 50))
    whole = 4 * 100 * 50 * 50

    def memory(chunk):
        compiled = jax.jit(lambda xs: chunk_mean(large, xs, chunk)).lower(xs).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert memory(5) < whole / 8


def shapes(jaxpr):
    """The shapes of all values that a program computes, in its loops too."""
    for eqn in jaxpr.eqns:
        yield from (v.aval.shape for v in eqn.outvars)
        for inner in core.jaxprs_in_params(eqn.params):
            yield from shapes(inner)


@pytest.mark.parametrize(("chunk", "most"), [(1, 1), (30, 30), (None, 100)])
@pytest.mark.parametrize(
    ("method", "large"),
    [
        (chunk_mean, lambda x: jnp.outer(x, jnp.ones(1000))),
        (chunk_map, lambda x: jnp.outer(x, jnp.ones(1000)).sum()),
    ],
)
def test_no_more_than_a_chunk_is_computed_at_once(method, large, chunk, most):
    program = jax.make_jaxpr(lambda xs: method(large, xs, chunk))(jnp.ones((100, 4)))
    biggest = max(np.prod(shape, initial=1) for shape in shapes(program.jaxpr))
    assert biggest == most * 4 * 1000


NHWC = ("NHWC", "HWIO", "NHWC")


@pytest.mark.parametrize("layout", [NHWC, ("NCHW", "OIHW", "NCHW")], ids=["NHWC", "NCHW"])
@pytest.mark.parametrize("change", ["stride", "dilation", "groups"])
def test_convolutions_in_loops_are_those_a_cpu_is_quick_with(layout, change):
    """Those of gradients too, with what they were given beside the layout; values stay."""
    options = {
        "stride": {"window_strides": (2, 1)},
        "dilation": {"window_strides": (1, 1), "rhs_dilation": (1, 2)},
        "groups": {"window_strides": (1, 1), "feature_group_count": 2},
    }[change]
    rng = np.random.default_rng(0)
    x = np.moveaxis(rng.standard_normal((4, 6, 7, 4)), -1, layout[0].index("C"))
    kernel = rng.standard_normal((3, 2, 2 if change == "groups" else 4, 6))
    kernel = kernel.transpose(["HWIO".index(axis) for axis in layout[1]])

    def energy(x):
        y = jax.lax.conv_general_dilated(
            x[None], kernel, padding=((1, 0), (2, 1)), dimension_numbers=layout, **options
        )
        return (jnp.tanh(y) * jnp.arange(y.size).reshape(y.shape)).mean()

    def gradients(chunk):
        slope = jax.grad(energy)
        return lambda xs: (chunk_map(slope, xs, chunk), chunk_mean(slope, xs, chunk))

    def layouts(jaxpr):
        return [e.params["dimension_numbers"] for e in _named("conv_general_dilated", jaxpr)]

    with jax.enable_x64(True):
        expected = jax.vmap(jax.grad(energy))(x)
        jax.tree.map(close, gradients(2)(x), (expected, expected.mean(0)))
        program = jax.make_jaxpr(gradients(2))(x).jaxpr
        plain = jax.make_jaxpr(gradients(4))(x).jaxpr
    inside = [d for loop in _named("scan", program) for d in layouts(loop.params["jaxpr"].jaxpr)]
    dense = ((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))
    assert inside == [dense] * 4  # forwards and backwards, in both
    assert any(d != dense for d in layouts(plain))


def _named(name, jaxpr):
    """The operations of this name, in loops and functions too."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == name:
            yield eqn
        for inner in core.jaxprs_in_params(eqn.params):
            yield from _named(name, inner)
