"""`jaxfmi train` and `jaxfmi evaluate-classifier`: what they write, and how they refuse."""

import json
import shlex
import shutil
import tomllib
from dataclasses import MISSING, asdict, fields

import numpy as np
import pytest
from PIL import Image
from training_run import pictures, weights
from typer.testing import CliRunner

from jaxfmi.cli import app
from jaxfmi.models import MODELS
from jaxfmi.models.demo import WEIGHTS
from jaxfmi.train import contrastive, few_shot, prepare
from jaxfmi.train.classifier import MODULE
from jaxfmi.train.config import RECIPES, Config, read_file
from jaxfmi.train.finished import open_run
from jaxfmi.train.journal import read_log
from jaxfmi.train.options import command, explanations, parse

TINY = ["--model", "lfi_cam_resnet8", "--model-options", "width=2", "--devices", 1]
TINY += ["--batch-size", 8, "--learning-rate", 0.02, "--no-progress"]


def run(*words, code=0):
    result = CliRunner().invoke(app, [str(w) for w in words])
    assert result.exit_code == code, result.output
    return result


def refused(*words, code=2):
    line = run(*words, code=code).stderr.strip().splitlines()
    assert len(line) == 1
    return line[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("set")
    for name, split in {"train": pictures(24), "test": pictures(10, 1)}.items():
        for i, (image, label) in enumerate(zip(split.images, split.labels, strict=True)):
            place = path / name / split.names[label]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(place / f"{i}.png")
    return path


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    """The folder of a run of two epochs, which a configuration file describes."""
    out = tmp_path_factory.mktemp("run")
    file = out / "options.toml"
    file.write_text('epochs = 9\npad = 1\nflip = true\ndrops = [1]\nnote = "free"\n')
    words = ["--config", file, "--data", folder, "--out", out / "run", "--epochs", 2]
    output = run("train", *words, "--panel-every", 2, "--log-every", 2, *TINY).output
    assert "test_accuracy" in output
    assert "the last epoch" in output
    return out / "run"


def test_what_a_run_leaves(trained):
    config = json.loads((trained / "config.json").read_text())
    assert config["epochs"] == 2
    assert config["note"] == "free"
    assert config["drops"] == [1.0]
    card = json.loads((trained / "model.json").read_text())
    assert card["classes"] == ["green", "red"]
    assert card["selected"] == "the last epoch"
    assert card["figures"]["test_images"] == 10
    assert (trained / "model.safetensors").is_file()
    assert list((trained / "tensorboard").glob("events.*"))
    panel = np.asarray(Image.open(trained / "attention" / "epoch_0001.png"))
    assert panel.std() > 10


def test_the_log_has_the_curves(trained):
    rows = read_log(trained / "log.jsonl")
    assert [row["step"] for row in rows] == [2, 3, 4, 6]
    assert [row["epoch"] for row in rows] == [0, 0, 1, 1]
    last = rows[-1]
    for name in ("loss", "accuracy", "grad_norm", "learning_rate", "images_per_second"):
        assert np.isfinite(last[name])
    assert last["learning_rate"] == pytest.approx(0.002)
    assert 0 <= last["test_accuracy"] <= 1
    assert 0 < last["test_importance_effective"] <= 1 + 1e-6
    assert 0 < last["test_attention_mean"] < 1
    assert -1 <= last["test_attention_steadiness"] <= 1 + 1e-6
    assert "test_loss" not in rows[0]


def test_evaluating_gives_the_figures_of_the_run(trained, tmp_path):
    figures = json.loads((trained / "model.json").read_text())["figures"]
    out = tmp_path / "figures.json"
    run("evaluate-classifier", trained, "--out", out)
    found = json.loads(out.read_text())
    assert found["split"] == "test"
    assert found["figures"]["loss"] == pytest.approx(figures["test_loss"], rel=1e-5)
    chosen, last = (open_run(trained, which).model for which in ("", "last"))
    for a, b in zip(weights(chosen), weights(last), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match="weights are last or best, got 'first'"):
        open_run(trained, "first")


def test_other_data_is_measured_as_it_is(trained, folder, tmp_path):
    """All of what is asked for; with the classes of the run, and no others."""
    shutil.copytree(folder / "train", tmp_path / "other" / "train")
    found = run("evaluate-classifier", trained, "--data", tmp_path / "other", "--devices", 2)
    assert "train_images 24" in found.output
    (tmp_path / "other" / "train" / "green").rename(tmp_path / "other" / "train" / "blue")
    said = refused("evaluate-classifier", trained, "--data", tmp_path / "other")
    assert "has 2 classes, the run 2; they differ, such as 'blue'" in said


def test_digits_are_prepared_and_trained_on(tmp_path, capsys):
    """From the drawing to a network: with boxes and masks in files, read without TensorFlow."""
    pytest.importorskip("tensorflow_datasets", reason="needs the extra `train`")
    digits = "digits_on_textures(size=16,train=48,test=20)"
    prepare.main([digits, "--data-dir", str(tmp_path)])
    written = capsys.readouterr().out.splitlines()[-1]
    assert {f.stem.split(".")[0] for f in tmp_path.rglob("*.array_record*")} == {
        "digits_on_textures-train",
        "digits_on_textures-test",
    }
    run("train", "--data", written, "--out", tmp_path / "run", "--epochs", 2, *TINY)
    rows = read_log(tmp_path / "run" / "log.jsonl")
    assert [row["step"] for row in rows] == [6, 12]
    assert rows[1]["loss"] < rows[0]["loss"]
    assert np.isfinite(rows[1]["test_loss"])
    assert len(json.loads((tmp_path / "run" / "model.json").read_text())["classes"]) == 10


def test_a_finished_run_is_not_trained_again(trained, folder):
    before = read_log(trained / "log.jsonl")
    run("train", "--config", trained / "config.json", "--no-progress")
    assert read_log(trained / "log.jsonl") == before


def test_mistakes_are_one_line(trained, folder, tmp_path):
    words = ["train", "--data", folder, "--out", tmp_path / "out", *TINY]
    assert "error: data is missing: give --data" in refused("train")
    assert "no model 'lfi_cam_resnet9' (did you mean" in refused(
        *words, "--model", "lfi_cam_resnet9"
    )
    assert "can't be built with" in refused(*words, "--model-options", "depths=3")
    assert "error: drops can't be 'x'" in refused(*words, "--drops", "x")
    assert "select is last or val or test, got 'first'" in refused(*words, "--select", "first")
    assert "--hold-out N takes val" in refused(*words, "--select", "val")
    assert "fill no batch of 32" in refused(*words, "--batch-size", 32)
    assert "evenly over 4 devices" in refused(*words, "--devices", 0, "--batch-size", 6)
    assert "no data at" in refused("train", "--data", tmp_path / "none", "--out", tmp_path)
    assert "cifar10 is not prepared in" in refused(
        "train", "--data", "cifar10", "--data-dir", tmp_path, "--out", tmp_path
    )
    assert "has batch_size 8, not 4" in refused(
        "train", "--config", trained / "config.json", "--batch-size", 4
    )
    assert "no run in" in refused("evaluate-classifier", tmp_path)
    assert "no split 'val'" in refused("evaluate-classifier", trained, "--split", "val")


def test_configuration_files(tmp_path):
    file = tmp_path / "a.json"
    for text, message in {
        '{"epoch": 3}': "no option 'epoch' (did you mean 'epochs'?)",
        '{"epochs": "many"}': "epochs is of type int, got 'many'",
        "[1]": "holds no table",
        '{"epochs": ': "is no TOML (.toml) and no JSON",
    }.items():
        file.write_text(text)
        assert message in refused("train", "--config", file, "--data", "d", "--out", "o")
    assert "the recipes are ['cifar', 'demo', 'digits', 'imagenet']" in refused(
        "train", "--config", "none", "--data", "d", "--out", "o"
    )


def from_words(*words):
    return parse(Config, MODULE, words=words, read=read_file)


def test_recipes_name_networks_that_there_are():
    for file in RECIPES.glob("*.toml"):
        values = tomllib.loads(file.read_text())
        assert values["model"] in {*MODELS, "demo"}
        from_words("--config", file.stem, "--data", "d", "--out", "o")


@pytest.mark.parametrize("kind", [Config, contrastive.Config, few_shot.Config])
def test_every_option_is_explained(kind):
    for name, text in explanations(kind).items():
        assert len(text) > 10, name


def test_words_say_the_whole_config():
    changes = {
        str: "two words",
        int: 7,
        float: 0.25,
        bool: None,
        tuple[int, ...]: (3, 4),
        tuple[float, ...]: (0.5, 2.0),
        tuple[str, ...]: ("width=8", "fin=every"),
    }
    chosen = {"schedule": "cosine", "select": "test", "precision": "bfloat16"}
    values = {}
    for field in fields(Config):
        value = chosen.get(field.name, changes[field.type])
        values[field.name] = not field.default if field.type is bool else value
    config = Config(**values)
    assert from_words(*shlex.split(command(config, MODULE))[3:]) == config
    assert all(f.default is MISSING or values[f.name] != f.default for f in fields(Config))


def test_the_card_of_the_embedded_network_has_the_command_that_made_it():
    card = json.loads((WEIGHTS / "demo.json").read_text())
    for made in (card, card.get("first", card)):
        config = from_words(*shlex.split(made["command"])[3:])
        there = json.loads(json.dumps(asdict(config)))
        assert {k: there[k] for k in made["config"]} == made["config"]


def test_the_demo_recipe_is_that_of_the_embedded_network():
    recipe = read_file("demo")
    assert recipe["label_smoothing"] == 0.1
    assert recipe["ema"] == 0.995
