"""Few-shot and contrastive runs: the network that is opened again is the one that was trained."""

import json
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from typer.testing import CliRunner

from jaxfmi.cli import app
from jaxfmi.command import networks
from jaxfmi.train import contrastive, few_shot
from jaxfmi.train.embedders import build, open_embedder
from jaxfmi.train.journal import read_log, rounds
from jaxfmi.train.pictures import Pictures, drawing

SIDE = 12


def pictures(channels, seed):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (24, SIDE, SIDE, channels), np.uint8)
    return Pictures(images, np.repeat(np.arange(4), 6), ("a", "b", "c", "d"))


def data(channels):
    return pictures(channels, 0), pictures(channels, 1)


def few(out, **options):
    common = {"way": 3, "shot": 2, "query": 2, "episodes": 2, "every": 2, "test_episodes": 1}
    tests = {"test_way": 2, "test_query": 2, "widths": (4, 6), "pools": (1,)}
    return few_shot.Config(**({"data": "", "out": str(out)} | common | tests | options))


@pytest.mark.parametrize("network", ["conv4", "resnet12"])
def test_few_shot_network_is_opened_again(tmp_path, network):
    config = few(tmp_path / "run", network=network, mean=(0.4,), std=(0.2,))
    model = few_shot.main(config, data=data(3))
    found = open_embedder(config.out)
    x = np.random.default_rng(2).normal(size=(2, SIDE, SIDE, 3)).astype(np.float32)
    np.testing.assert_array_equal(found.model(x), model(x))
    assert type(found.model) is type(model)
    assert found.preprocess.size == (SIDE, SIDE)
    pixels = pictures(3, 5).images[0]
    given = found.preprocess(Image.fromarray(pixels))
    expected = few_shot._input(pixels[None, None], config)[0, 0]
    np.testing.assert_allclose(given, expected, atol=1e-6)


def test_contrastive_network_is_opened_without_its_head(tmp_path):
    config = contrastive.Config(
        "", str(tmp_path / "run"), "", epochs=1, batch_size=8, widths=(4, 6), projection=(5, 3)
    )
    whole = contrastive.main(config, data=data(3))
    found = open_embedder(config.out)
    x = np.random.default_rng(2).normal(size=(2, SIDE, SIDE, 3)).astype(np.float32)
    np.testing.assert_array_equal(found.model(x), whole.backbone(x))


def test_a_drawing_is_read_as_in_training(tmp_path):
    """Ink is 1 and paper 0, less the mean; grey pictures of a packed file keep their sign."""
    config = few(tmp_path / "run", data="drawings.zip", mean=(0.1,), std=(0.5,))
    few_shot.main(config, data=data(1))
    file = tmp_path / "drawing.png"
    strokes = np.where(np.random.default_rng(3).random((5 * SIDE, 7 * SIDE)) < 0.2, 0, 255)
    Image.fromarray(strokes.astype(np.uint8)).save(file)
    trained = few_shot._input(drawing(file.read_bytes(), SIDE)[None, None], config)[0, 0]
    preprocess = open_embedder(config.out).preprocess
    given = preprocess(Image.open(file))
    assert given.shape == (SIDE, SIDE, 1)
    np.testing.assert_allclose(given, trained, atol=1e-6)
    assert given.std() > 0.1  # it was made smaller in both
    shown = preprocess.invert(given)
    assert shown.shape == (SIDE, SIDE, 3)
    np.testing.assert_allclose(1 - shown[..., :1], given * 0.5 + 0.1, atol=1e-6)

    packed = replace(config, data="grey.npz", out=str(tmp_path / "packed"))
    few_shot.main(packed, data=data(1))
    grey = open_embedder(packed.out).preprocess(Image.open(file))
    np.testing.assert_allclose(grey * 0.5 + 0.1, shown[..., :1], atol=1e-6)


def test_compare_opens_a_run(tmp_path):
    few_shot.main(few(tmp_path / "run"), data=data(3))
    files = [tmp_path / f"{name}.png" for name in "abc"]
    for file, image in zip(files, pictures(3, 4).images, strict=False):
        Image.fromarray(image).save(file)
    words = ["compare", *map(str, files), "--model", str(tmp_path / "run")]
    result = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert found["model"]["name"] == "conv4"
    assert found["model"]["weights"]["source"] == str(tmp_path / "run")
    model, preprocess, _ = open_embedder(tmp_path / "run")
    e = np.stack([model(preprocess(Image.open(file))[None])[0] for file in files])
    e /= np.linalg.norm(e, axis=1, keepdims=True)
    scores = [entry["score"] for entry in found["entries"]]
    np.testing.assert_allclose(scores, e[1:] @ e[0], rtol=1e-4)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--weights", "x.npz"], "has weights and options of its own"),
        (["--model-option", "widths=3"], "has weights and options of its own"),
        (["--size", "1"], "pictures of 1x1"),
    ],
)
def test_compare_says_what_is_wrong_with_a_run(tmp_path, words, message):
    few_shot.main(few(tmp_path / "run", pools=(1, 2)), data=data(3))
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    given = ["compare", *[str(tmp_path / "a.png")] * 2, "--model", str(tmp_path / "run"), *words]
    result = CliRunner().invoke(app, [*given, "--out", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert message in result.stderr


def test_what_can_not_be_opened_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no finished run in .*: it has no model\.json"):
        open_embedder(tmp_path)
    config = few(tmp_path / "run")
    few_shot.main(config, build(config, 3, nnx.Rngs(0)), data(3))
    with pytest.raises(ValueError, match=r"names no network.*jaxfmi\.models\.load"):
        open_embedder(config.out)
    with pytest.raises(ValueError, match=r"no network 'resnet'.*there are \['conv4', 'resnet12'\]"):
        build(replace(config, network="resnet"), 3, nnx.Rngs(0))


def test_a_run_does_not_go_on_with_other_options(tmp_path):
    config = few(tmp_path / "run")
    few_shot.main(config, data=data(3))
    before = (tmp_path / "run" / "model.json").read_bytes()
    changed = replace(config, pools=(2,), seed=3)
    with pytest.raises(
        ValueError, match=r"has pools \[1\], not \[2\], seed 0, not 3: give another"
    ):
        few_shot.main(changed, data=data(3))
    assert (tmp_path / "run" / "model.json").read_bytes() == before


def test_a_run_without_a_checkpoint_begins_anew(tmp_path):
    """After a learning rate that was too high, say, another one is tried in the same folder."""
    config = few(tmp_path / "run", learning_rate=1e30)
    with pytest.raises(FloatingPointError):
        few_shot.main(config, data=data(3))
    few_shot.main(replace(config, learning_rate=1e-3), data=data(3))
    assert open_embedder(config.out).card["config"]["learning_rate"] == 1e-3


def test_pictures_of_other_channels_are_trained_on_all_the_same(tmp_path):
    config = few(tmp_path / "run")
    few_shot.main(config, data=data(4))
    assert (tmp_path / "run" / "model.safetensors").is_file()
    with pytest.raises(ValueError, match="names no network"):
        open_embedder(config.out)


def test_the_log_has_every_round_once(tmp_path):
    """A row that was cut short, and rows of rounds that come again, go."""
    path = tmp_path / "log.jsonl"
    path.write_text('{"episodes": 2}\n{"episodes": 4}\n{"epis')
    with rounds(tmp_path, range(1, 3)) as (numbers, write):
        for number in numbers:
            write({"episodes": 2 * number + 2})
    assert [row["episodes"] for row in read_log(path)] == [2, 4, 6]


def test_grey_networks_take_grey_pictures(tmp_path):
    config = few(tmp_path / "run")
    few_shot.main(config, data=data(1))
    with pytest.raises(
        ValueError, match="takes pictures of 1 channels; the preprocessing caffe gi"
    ):
        networks.open_run(config.out, preprocess="caffe")


def test_broken_cards_are_named(tmp_path):
    (tmp_path / "model.json").write_text("{")
    with pytest.raises(ValueError, match=r"model\.json' can't be read: "):
        open_embedder(tmp_path)
    (tmp_path / "model.json").write_text('{"network": "x"}')
    with pytest.raises(ValueError, match="names no network"):
        open_embedder(tmp_path)


def test_networks_are_those_of_the_options():
    config = few("", widths=(4, 6, 8), pools=(1, 3))
    assert build(config, 1, nnx.Rngs(0)).features(jnp.zeros((1, SIDE, SIDE, 1))).shape[1:] == (
        SIDE // 4,
        SIDE // 4,
        8,
    )
    deep = build(replace(config, network="resnet12"), 3, nnx.Rngs(0))
    assert deep.features(jnp.zeros((1, 16, 16, 3))).shape == (1, 2, 2, 8)
