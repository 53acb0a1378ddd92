"""Many images: one compilation, padded batches, every device, and what is no batch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.core import Tracer
from nets import CLASSES, HEIGHT, LAYER_SIZE, WIDTH, images, tiny

import jaxfmi as jf
from jaxfmi import multipliers
from jaxfmi.modules import functional

N = 7
X = np.asarray(images(N))
LABELS = np.arange(N) % CLASSES


def grad_cam(score):
    return jf.grad_cam(score, "down")


def noisy(score):
    return jf.smooth_grad(jf.grad_cam(score, "down"), samples=3)


@functools.cache
def expected():
    return jax.jit(jax.vmap(grad_cam(jf.class_score(tiny("nnx")))))(X, LABELS)


def close(got, wanted, atol=1e-6):
    np.testing.assert_allclose(got, wanted, rtol=0, atol=atol)


@pytest.mark.parametrize("batch_size", [1, 4, 5, N, 100])
@pytest.mark.parametrize("kind", ["nnx", "linen"])
def test_batches_are_padded_and_cut(kind, batch_size):
    got = jf.batched(grad_cam, tiny(kind), batch_size=batch_size)(X, LABELS)
    assert isinstance(got, np.ndarray)
    assert got.dtype == np.float32
    assert got.shape == (N, HEIGHT, WIDTH)
    close(got, expected())


@pytest.mark.parametrize("batch_size", range(1, N + 2))
def test_every_batch_size_on_one_device(batch_size):
    def model(x):
        return (x**2).mean((1, 2))

    devices = jax.devices()[:1]
    explain = jf.batched(jf.input_x_gradient, model, batch_size=batch_size, devices=devices)
    one_hot = np.eye(3)[LABELS % 3]
    close(explain(X, LABELS % 3), 2 * np.einsum("nijc,nc->nij", X**2, one_hot) / (HEIGHT * WIDTH))


def test_options_of_the_compiler():
    options = {"xla_backend_optimization_level": 1}
    close(jf.batched(grad_cam, tiny("nnx"), compiler_options=options)(X, LABELS), expected())
    explain = jf.batched(grad_cam, tiny("nnx"), compiler_options={"no_such_option": 1})
    with pytest.raises(jax.errors.JaxRuntimeError, match="no_such_option"):
        explain(X, LABELS)


@pytest.mark.parametrize("form", ["(f, params)", "f(x)"])
def test_models_that_are_functions(form):
    apply, params = functional(tiny("nnx"))
    model = (apply, params) if form == "(f, params)" else functools.partial(apply, params)
    close(jf.batched(grad_cam, model, batch_size=4)(X, LABELS), expected())


def test_bfloat16_models_and_images_get_float32_heatmaps():
    explain = jf.batched(grad_cam, tiny("nnx", jnp.bfloat16), batch_size=4)
    for x in (X, jnp.asarray(X, jnp.bfloat16)):
        got = explain(x, LABELS)
        assert got.dtype == np.float32
        assert np.linalg.norm(got - expected()) < 0.07 * np.linalg.norm(expected())


@pytest.mark.parametrize("devices", [1, 2, 3, None])
def test_devices_do_not_matter(devices):
    used = None if devices is None else jax.devices()[:devices]
    assert len(jax.devices()) == 4
    close(jf.batched(grad_cam, tiny("nnx"), batch_size=3, devices=used)(X, LABELS), expected())


def test_one_compilation_for_all_labels_and_batches():
    traced = []

    def method(score):
        traced.append(score)
        return grad_cam(score)

    explain = jf.batched(method, tiny("nnx"), batch_size=4)
    explain(X[:4], LABELS[:4])
    once = len(traced)
    explain(X, LABELS)  # a whole and a short batch
    explain(X[:1], LABELS[:1])  # a single image
    explain(X[::-1], (LABELS + 1) % CLASSES)
    explain(list(X), LABELS.astype(np.int32).tolist())
    assert len(traced) == once


def test_weights_are_arguments():
    """As constants they would be copied into the program, once for each compilation."""
    seen = []

    def f(params, x):
        seen.append(isinstance(params, Tracer))
        return jf.tag(jax.nn.relu(x), "down").mean((1, 2)) @ params

    jf.batched(grad_cam, (f, jnp.ones((3, CLASSES))))(X, LABELS)
    assert seen
    assert all(seen)


def test_large_weights_are_no_constants_of_the_program(monkeypatch):
    programs = []
    compile_function = jax.jit

    def jit(f, *args, **kwargs):
        jitted = compile_function(f, *args, **kwargs)

        def call(*args):
            programs.append(jitted.lower(*args).as_text())
            return jitted(*args)

        return call

    apply, params = functional(tiny("nnx"))
    large = (lambda p, x: p[1].mean() * apply(p[0], x), (params, jnp.ones(50_000)))
    monkeypatch.setattr(jax, "jit", jit)
    unresized = functools.partial(jf.grad_cam, layer="down", size=None)  # resizing has constants
    explain = jf.batched(unresized, large)
    monkeypatch.undo()
    close(jf.heatmap.resize(explain(X, LABELS), X.shape[1:3]), expected())
    (program,) = programs
    assert "50000xf32" in program  # it is there, as an argument
    assert len(program) < 200_000
    assert 'dense<"0x' not in program


def test_later_changes_of_the_weights_are_not_seen():
    model = tiny("nnx")
    explain = jf.batched(grad_cam, model)
    model.dense.kernel[...] = 0 * model.dense.kernel[...]
    close(explain(X, LABELS), expected())


def test_lists_and_terms():
    model, of = tiny("nnx"), jf.class_score(tiny("nnx"))
    maps = jf.batched(lambda s: jf.grad_cam(s, ["stem", "down"]), model, batch_size=4)(X, LABELS)
    assert isinstance(maps, list)
    close(maps[1], expected())

    def method(score):
        return jf.afmi_terms(score, "down", multiplier=multipliers.path(2))

    terms = jf.batched(method, model, batch_size=4)(X, LABELS)
    assert isinstance(terms, jf.FMI)
    assert terms.map.shape == (N, *LAYER_SIZE)
    assert terms.fmi.shape == (N, 2, 8)
    assert terms.kept.shape == (N, 8)
    assert terms.kept.dtype == bool
    assert terms.residual.shape == (N,)
    close(terms.score, jax.vmap(of)(X, LABELS), 1e-5)
    jax.tree.map(lambda v, w: close(v, w, 1e-5), terms, jax.jit(jax.vmap(method(of)))(X, LABELS))


@functools.cache
def expected_noisy():
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(3), i))(jnp.arange(N))
    explain = noisy(jf.class_score(tiny("nnx")))
    return jax.jit(jax.vmap(lambda x, k, key: explain(x, k, key=key)))(X, LABELS, keys)


@pytest.mark.parametrize(("batch_size", "devices"), [(1, 1), (4, 4), (5, 2), (32, 3)])
def test_randomness_does_not_depend_on_the_batch(batch_size, devices):
    used = jax.devices()[:devices]
    explain = jf.batched(noisy, tiny("nnx"), batch_size=batch_size, devices=used)
    close(explain(X, LABELS, key=jax.random.key(3)), expected_noisy(), 1e-5)


def test_another_key_is_another_map():
    explain = jf.batched(noisy, tiny("nnx"))
    one, again = (explain(X, LABELS, key=jax.random.key(3)) for _ in range(2))
    np.testing.assert_array_equal(one, again)
    assert not np.allclose(one, explain(X, LABELS, key=jax.random.key(4)))
    with pytest.raises(ValueError, match="call it with key="):
        explain(X, LABELS)


def test_every_score():
    pair = (LABELS, (LABELS + 2) % CLASSES)
    of = jf.class_score(tiny("linen"), of=jf.margin)
    got = jf.batched(jf.saliency, tiny("linen"), of=jf.margin, batch_size=4)(X, *pair)
    close(got, jax.vmap(jf.saliency(of))(X, *pair))
    weights = np.eye(CLASSES, dtype=np.float32)[LABELS]
    got = jf.batched(grad_cam, tiny("nnx"), of=lambda z, w: z @ w)(X, weights)
    close(got, expected())
    got = jf.batched(grad_cam, tiny("nnx"), of=lambda z: z.max())(X)
    assert got.shape == expected().shape


@pytest.mark.parametrize("n", [1, N])
def test_progress(n, capsys):
    explain = jf.batched(grad_cam, tiny("nnx"), batch_size=4, progress=True)
    close(explain(X[:n], LABELS[:n]), expected()[:n])
    assert "explaining" in capsys.readouterr().out


@pytest.mark.parametrize("batch_size", [0, -1])
def test_what_is_no_batch_size(batch_size):
    with pytest.raises(ValueError, match=f"at least 1; got {batch_size}"):
        jf.batched(grad_cam, tiny("nnx"), batch_size=batch_size)


broken = X.copy()
broken[2, 3, 4, :2] = np.nan


@pytest.mark.parametrize(
    ("x", "labels", "message"),
    [
        (X[:0], LABELS[:0], r"at least one; got shape \(0, 15, 11, 3\)"),
        (X[0], LABELS[:1], r"images \[N, H, W, C\].* got shape \(15, 11, 3\)"),
        ((255 * X).astype(np.uint8), LABELS, "float images, got uint8"),
        (broken, LABELS, "the batch has 2 values that are NaN or infinite"),
        (X, LABELS[:-1], r"7 images, but labels .* of shape \(6,\)"),
        (X, 3, r"7 images, but labels .* of shape \(\)"),
        (X, LABELS + 1, "label 5 is out of range: the model has 5 classes, 0 to 4"),
        (X, LABELS - 1, "label -1 is out of range"),
        (X, LABELS.astype(float), "labels are integers, got float64"),
    ],
)
def test_what_is_no_batch(x, labels, message):
    with pytest.raises(ValueError, match=message):
        jf.batched(grad_cam, tiny("nnx"))(x, labels)


def test_what_is_no_model():
    with pytest.raises(TypeError, match="expected an NNX module"):
        jf.batched(grad_cam, "resnet50")


def test_errors_of_the_explainer_come_through():
    with pytest.raises(ValueError, match="no tag 'dwn'"):
        jf.batched(lambda s: jf.grad_cam(s, "dwn"), tiny("nnx"))(X, LABELS)
