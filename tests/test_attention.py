"""The map that a network makes: its own values, for every label the same, and bad input."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_nets import filled
from nets import images, tiny
from typer.testing import CliRunner

import jaxfmi as jf
from jaxfmi import models
from jaxfmi.bilinear import resize
from jaxfmi.cli import app
from jaxfmi.command.methods import METHODS, build
from jaxfmi.models import save


@functools.cache
def network(kind):
    return filled(lambda: getattr(models, f"{kind}_resnet8")(width=4), jnp.float32)


SLOW = pytest.mark.slow
X = np.random.default_rng(0).standard_normal((3, 24, 20, 3)).astype(np.float32)


@pytest.mark.parametrize("kind", ["lfi_cam", "abn"])
def test_it_is_the_models_own_map_resized(kind):
    model = network(kind)
    explain = jf.batched(jf.lfi_cam, model, batch_size=3)
    own = jax.jit(lambda x: model.forward(x)["attention"])(X)[..., 0]
    got = explain(X, np.array([0, 4, 9]))
    assert got.dtype == np.float32
    expected = np.stack([resize(m, (24, 20)) for m in own])
    np.testing.assert_allclose(got, expected, atol=1e-6)
    np.testing.assert_array_equal(explain(X, np.array([7, 1, 3])), got)
    raw = jf.batched(lambda s: jf.attention(s, size=None), model, batch_size=3)(X, np.zeros(3, int))
    np.testing.assert_allclose(raw, own, atol=1e-6)


def explained(name, kind, through):
    """A method of the command line, with its defaults, on such a network."""
    explain = build(name, {}, None)(jf.class_score(network(kind)))
    if "key" in inspect.signature(explain).parameters:
        explain = functools.partial(explain, key=jax.random.key(0))
    return through(explain, X[0], 2)


@pytest.mark.parametrize("kind", ["lfi_cam", pytest.param("abn", marks=SLOW)])
def test_every_method_takes_such_networks_as_they_are(kind):
    for name in METHODS:
        assert explained(name, kind, jax.eval_shape).shape == (24, 20), name


@pytest.mark.parametrize("kind", ["lfi_cam", "abn"])
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=() if n in ("grad_cam", "saliency", "sise", "lrp") else SLOW)
        for n in METHODS
    ],
)
def test_and_shows_something_of_them(name, kind):
    found = np.asarray(explained(name, kind, lambda explain, *args: jax.jit(explain)(*args)))
    assert found.shape == (24, 20)
    assert np.isfinite(found).all()
    assert np.ptp(found) > 0


def test_relevance_needs_a_rule_where_it_must_pass():
    def score(x, k):
        y = jax.lax.conv(x.transpose(2, 0, 1)[None], jnp.ones((4, 3, 3, 3)), (1, 1), "SAME")
        return (jax.nn.relu(y) / (1 + jnp.abs(y).mean())).sum()

    with pytest.raises(ValueError, match="no rule for 'div' of 2 activations"):
        jf.lrp(score)(X[0], 2)


def test_a_map_of_any_name():
    def score(x, k):
        return (jf.tag(jnp.abs(x).mean(-1), "mine") * x[..., 0]).sum()

    got = jf.attention(score, "mine")(X[0], 0)
    np.testing.assert_allclose(got, np.abs(X[0]).mean(-1), atol=1e-6)


def test_a_network_without_a_map():
    score = jf.class_score(tiny("nnx"))
    with pytest.raises(ValueError, match=r"no tag 'attention': this network makes no map.*'stem'"):
        jf.lfi_cam(score)(images(1)[0], 0)


def test_layers_that_are_no_map():
    score = jf.class_score(network("lfi_cam"))
    with pytest.raises(ValueError, match=r"'stage3' has shape \(6, 5, 16\); expected one map"):
        jf.attention(score, "stage3")(X[0], 0)
    with pytest.raises(ValueError, match=r"'pooled' has shape \(5,\)"):
        jf.attention(
            lambda x, k: jf.tag(x.mean((0, 1))[k] * jnp.ones(5), "pooled").sum(), "pooled"
        )(X[0], 0)


def test_the_command_line_reads_it_and_says_where_there_is_none(tmp_path):
    from PIL import Image

    save(network("lfi_cam"), tmp_path / "net.safetensors")
    Image.fromarray(np.uint8(255 * np.random.default_rng(0).random((32, 32, 3)))).save(
        tmp_path / "a.png"
    )
    words = [
        "explain",
        str(tmp_path / "a.png"),
        "--method",
        "lfi_cam",
        "--out",
        str(tmp_path / "o"),
    ]
    net = ["--model", "lfi_cam_resnet8", "--model-option", "width=4"]
    weights = ["--weights", str(tmp_path / "net.safetensors")]
    result = CliRunner().invoke(app, [*words, *net, *weights])
    assert result.exit_code == 0, result.output
    save(filled(models.cifar_resnet20, jnp.float32), tmp_path / "plain.safetensors")
    plain = ["--model", "cifar_resnet20", "--weights", str(tmp_path / "plain.safetensors")]
    result = CliRunner().invoke(app, [*words, *plain, "--overwrite"])
    assert result.exit_code != 0
    assert "makes no map of its own" in result.output.replace("\n", " ")
