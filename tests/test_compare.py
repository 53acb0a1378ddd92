"""``jaxfmi compare``: what it writes, and what it says when something is wrong."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from typer.testing import CliRunner

from jaxfmi import fam_terms
from jaxfmi.cli import app
from jaxfmi.command import networks
from jaxfmi.models import Preprocess
from jaxfmi.models.demo import DemoNet, Pretrained
from jaxfmi.models.lfi_cam import LfiCam

SIZES = {"query.png": (20, 30), "one.png": (40, 16), "two.png": (16, 24)}


@pytest.fixture(autouse=True, scope="module")
def network():
    """A tiny network in the place of the embedded one."""
    model = nnx.jit(lambda: DemoNet(3, (4, 6), (2, 2), 4, rngs=nnx.Rngs(0)))()
    model.eval()
    small = Pretrained(model, ("a", "b", "c"), Preprocess((16, 24), (0.5,) * 3, (0.5,) * 3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(networks, "demo_model", lambda: small)
        yield small


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for name, size in SIZES.items():
        Image.fromarray(rng.integers(0, 256, (*size, 3)).astype(np.uint8)).save(folder / name)
    return [folder / name for name in SIZES]


def run(*words):
    return CliRunner().invoke(app, ["compare", *map(str, words)])


def test_writes_maps_of_both_sides_a_panel_and_a_manifest(tmp_path, pictures, network):
    out = tmp_path / "out"
    result = run(*pictures, "--layer", "block1", "--out", out)
    assert result.exit_code == 0, result.output
    found = json.loads((out / "manifest.json").read_text())
    assert found["complete"]
    assert (found["layer"], found["similarity"], found["weighting"]) == (
        "block1",
        "cosine",
        "complete",
    )
    assert len(found["model"]["weights"]["sha256"]) == 64
    entry = found["entries"][0]
    assert entry["files"] == {
        "query": {"overlay": "query.query.one.png", "map": "query.query.one.npy"},
        "partner": {"overlay": "one.partner.png", "map": "one.partner.npy"},
    }
    x, y = (jnp.asarray(network.preprocess(Image.open(path))) for path in pictures[:2])

    def embed(x):
        return network.model.features(x[None])[0].mean((0, 1))

    explain = fam_terms(embed, "block1")
    for side, expected in (("query", explain(x, y)), ("partner", explain(y, x))):
        heatmap = np.load(out / entry["files"][side]["map"])
        assert heatmap.dtype == np.float32
        np.testing.assert_allclose(heatmap, expected.heatmap, atol=1e-5)
        assert entry["score"] == pytest.approx(float(expected.score), rel=1e-4)
    for name, size in (("query.query.one.png", (30, 20)), ("one.partner.png", (16, 40))):
        with Image.open(out / name) as overlay:
            assert overlay.size == size
    with Image.open(out / "panel.png") as image:
        assert np.asarray(image.convert("L")).std() > 10
    assert "one.png: cosine" in result.output
    assert len(list(out.iterdir())) == 2 * 4 + 2


def test_a_network_with_attention_is_compared_by_what_it_classifies(
    tmp_path, pictures, network, monkeypatch
):
    model = nnx.jit(lambda: LfiCam(DemoNet(3, (4, 6), (2, 2), 4, rngs=nnx.Rngs(0))))()
    model.eval()
    monkeypatch.setattr(networks, "demo_model", lambda: network._replace(model=model))
    result = run(*pictures[:2], "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    entry = json.loads((tmp_path / "out" / "manifest.json").read_text())["entries"][0]
    x = jnp.stack([jnp.asarray(network.preprocess(Image.open(path))) for path in pictures[:2]])
    e = np.asarray(model.features(x).mean((1, 2)))
    assert entry["score"] == pytest.approx(e[0] @ e[1] / np.linalg.norm(e, axis=1).prod(), rel=1e-4)
    kernel, bias = (np.asarray(v) for v in (model.backbone.head.kernel, model.backbone.head.bias))
    np.testing.assert_allclose(e @ kernel + bias, model(x), atol=1e-6)


@pytest.mark.parametrize(
    "words",
    [
        ("--similarity", "centred_cosine"),
        ("--similarity", "centred_cosine", "--weighting", "contribution"),
        ("--similarity", "neg_squared_distance"),
        ("--similarity", "neg_squared_distance", "--layer", "block2"),
    ],
)
def test_other_similarities(tmp_path, pictures, words):
    out = tmp_path / "out"
    result = run(*pictures, *words, "--out", out)
    if "contribution" in words:
        assert result.exit_code == 0, result.output
        return
    for entry in json.loads((out / "manifest.json").read_text())["entries"]:
        assert abs(entry["residual"]) < 1e-4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--similarity", "cosin"], "no similarity 'cosin' (did you mean 'cosine'?)"),
        (["--similarity", "margin"], "no similarity 'margin'"),
        (["--weighting", "all"], "no weighting 'all'"),
        (["--layer", "block9"], "no tag 'block9'"),
        (["--layer", "block1", "--similarity", "centred_cosine"], "the last maps, 'block2'"),
        (["--layer", "block1", "--similarity", "neg_squared_distance"], "the last maps, 'block2'"),
        (["--model", "resnet18"], "needs --weights"),
        (["--size", "3"], "does not take pictures of 3x3"),
    ],
)
def test_one_line_of_what_is_wrong(tmp_path, pictures, words, message):
    result = run(*pictures, *words, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_one_picture_thrice_has_no_centred_cosine(tmp_path, pictures):
    copies = [tmp_path / f"{i}.png" for i in range(3)]
    for copy in copies:
        copy.write_bytes(pictures[0].read_bytes())
    result = run(*copies, "--similarity", "centred_cosine", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "picture 1 has an embedding that is the mean of all" in result.output.replace("\n", " ")


def test_files_that_are_not_there_or_in_the_way(tmp_path, pictures):
    (tmp_path / "text.png").write_text("no picture")
    for words, message in (
        ([pictures[0], tmp_path / "none.png"], "none.png"),
        ([pictures[0], tmp_path / "text.png"], "cannot read"),
        ([*pictures[:2], "--similarity", "centred_cosine"], "at least three pictures"),
        ([*pictures, "--out", pictures[0]], "is a file"),
        ([*pictures, "--out", pictures[0].parent], "is not empty"),
    ):
        result = run(*words, *([] if "--out" in words else ["--out", tmp_path / "out"]))
        assert result.exit_code == 2
        assert message in result.stderr
    assert run(pictures[0]).exit_code == 2
