"""Chunks bound memory and change nothing else."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core
from jax.sharding import AxisType, PartitionSpec

import jaxfmi as jf
from jaxfmi.chunks import chunk_map, chunk_mean
from jaxfmi.metrics import parameter_randomisation
from jaxfmi.taps import REMAT

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
DENSE = ((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))  # the same, as numbers
on_cpu = pytest.mark.skipif(jax.default_backend() != "cpu", reason="of a CPU")


def named(name, jaxpr):
    """The operations of this name, in loops and functions too."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == name:
            yield eqn
        for inner in core.jaxprs_in_params(eqn.params):
            yield from named(name, inner)


def layouts(f, *args, loop):
    """The layouts of convolutions inside of such loops."""
    program = jax.make_jaxpr(f)(*args).jaxpr
    bodies = [i for eqn in named(loop, program) for i in core.jaxprs_in_params(eqn.params)]
    found = [named("conv_general_dilated", body) for body in bodies]
    return [eqn.params["dimension_numbers"] for eqns in found for eqn in eqns]


@on_cpu
@pytest.mark.parametrize("layout", [NHWC, ("NCHW", "OIHW", "NCHW")], ids=["NHWC", "NCHW"])
@pytest.mark.parametrize("change", ["stride", "dilation", "groups"])
@jax.enable_x64(True)
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
    kernel = jnp.asarray(kernel.transpose(["HWIO".index(axis) for axis in layout[1]]))

    def energy(x, kernel):
        y = jax.lax.conv_general_dilated(
            x[None], kernel, padding=((1, 0), (2, 1)), dimension_numbers=layout, **options
        )
        return (jnp.tanh(y) * jnp.arange(y.size).reshape(y.shape)).mean()

    def slopes(x):
        return jax.grad(energy, (0, 1))(x, kernel)

    expected = jax.vmap(slopes)(x)
    jax.tree.map(close, chunk_map(slopes, x, 2), expected)
    jax.tree.map(close, chunk_mean(slopes, x, 2), jax.tree.map(lambda g: g.mean(0), expected))
    assert layouts(lambda x: chunk_map(slopes, x, 2), x, loop="scan") == [DENSE] * 3


KERNEL = np.random.default_rng(1).standard_normal((4, 3, 3, 3)).astype(np.float32)
PICTURE = np.random.default_rng(2).standard_normal((16, 16, 3)).astype(np.float32)
KEY = jax.random.key(0)


def score(x):
    """Of one convolution, NCHW, as other libraries have it."""
    y = jax.lax.conv(x.transpose(2, 0, 1)[None], KERNEL, (1, 1), "SAME")
    return jnp.tanh(jf.tag(y[0].transpose(1, 2, 0), "maps")).mean()


LOOPS = {
    "integrated_gradients": ("scan", jf.integrated_gradients(score, steps=4, chunk=2)),
    "smooth_grad": ("scan", jf.smooth_grad(jf.saliency(score), samples=4, chunk=2)),
    "extremal": ("scan", jf.extremal_perturbation(score, areas=(0.2,), iterations=2)),
    "rise": ("while", jf.rise(score, samples=4, cells=2, chunk=2)),
    "score_cam": ("while", jf.score_cam(score, "maps", chunk=2)),
}


@on_cpu
@pytest.mark.parametrize("name", LOOPS)
def test_so_are_those_in_the_loops_of_explainers(name):
    loop, explain = LOOPS[name]
    key = {"key": KEY} if name in ("smooth_grad", "rise") else {}
    found = layouts(partial(explain, **key), PICTURE, loop=loop)
    assert found
    assert set(found) == {DENSE}


@on_cpu
def test_so_are_those_of_the_randomisation_of_parameters():
    def model(kernel, x):
        y = jax.lax.conv(jf.tag(x.transpose(0, 3, 1, 2), "x"), kernel["conv"], (1, 1), "SAME")
        return y.mean((2, 3))

    measure = parameter_randomisation(jf.saliency, (model, {"conv": jnp.asarray(KERNEL)}))
    found = layouts(partial(measure, key=KEY), PICTURE, 1, loop="scan")
    assert found
    assert set(found) == {DENSE}


def test_functions_in_a_loop_are_known_by_what_they_are():
    @jax.jit
    def conv_general_dilated(x):
        return 2 * x

    close(chunk_map(conv_general_dilated, XS, 2), 2 * XS)


def test_checkpoints_in_a_loop_stay():
    def f(x):
        return jax.checkpoint(lambda x: jnp.sin(jnp.sin(x)))(x).sum()

    def kept(g):
        program = jax.make_jaxpr(lambda xs: chunk_map(g, xs, 2))(XS).jaxpr
        return any(
            any(named(name, loop.params["jaxpr"].jaxpr))
            for loop in named("scan", program)
            for name in REMAT
        )

    assert kept(f)
    assert kept(jax.grad(f))
    close(chunk_map(jax.grad(f), XS, 2), jnp.cos(jnp.sin(XS)) * jnp.cos(XS))


def test_loops_inside_of_a_sharded_function():
    """Where there are axes of a mesh, and values that are told to differ along them."""
    mesh = jax.make_mesh((jax.device_count(),), ("part",), axis_types=(AxisType.Auto,))
    x = jnp.stack([PICTURE + i for i in range(mesh.size)])

    def weighed(x):
        return score(x) * (1 + jax.lax.axis_index("part"))

    def explain(part):
        mean = chunk_mean(lambda t: jax.grad(weighed)(part[0] + t), jnp.arange(3.0), 1)
        return mean[None]

    spread = PartitionSpec("part")
    got = jax.jit(jax.shard_map(explain, mesh=mesh, in_specs=spread, out_specs=spread))(x)
    for i, picture in enumerate(x):
        alone = np.mean([jax.grad(score)(picture + t) for t in range(3)], 0)
        close(got[i], (1 + i) * alone)
