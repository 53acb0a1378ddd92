"""The command line: what it writes, what it says when something is wrong, and what it survives."""

import json
import os
import subprocess
import sys
from importlib.metadata import version

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from typer.testing import CliRunner

from jaxfmi import class_score, cli, grad_cam, log_odds, sise
from jaxfmi.cli import SHOWN, app
from jaxfmi.command import job, methods, networks
from jaxfmi.models import MODELS, Preprocess
from jaxfmi.models.demo import DemoNet, Pretrained

CLASSES = ("tabby, tabby cat", "espresso", "African_elephant", "espresso, black")
FORMATS = {  # file: size as stored (height, width), mode
    "grey.png": ((20, 30), "L"),
    "grey_alpha.png": ((20, 30), "LA"),
    "alpha.png": ((1, 7), "RGBA"),
    "palette.gif": ((33, 21), "P"),
    "bit.png": ((9, 40), "1"),
    "print.jpg": ((40, 16), "CMYK"),
    "deep.png": ((16, 25), "I;16"),
    "colour.webp": ((64, 64), "RGB"),
}


@pytest.fixture(autouse=True, scope="module")
def network():
    """A tiny network in the place of the embedded one."""
    model = nnx.jit(lambda: DemoNet(len(CLASSES), (4, 6), (2, 2), 4, rngs=nnx.Rngs(0)))()
    model.eval()
    small = Pretrained(model, CLASSES, Preprocess((16, 24), (0.5,) * 3, (0.5,) * 3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(networks, "demo_model", lambda: small)
        yield small


def run(*words):
    return CliRunner().invoke(app, [str(w) for w in words])


def explain(folder, *words, code=0):
    result = run("explain", *words, "--out", folder / "out")
    assert result.exit_code == code, result.output
    return json.loads((folder / "out" / "manifest.json").read_text())


def pixels(size, mode, seed=0):
    rng = np.random.default_rng(seed)
    if mode == "I;16":
        return Image.fromarray(rng.integers(0, 2**16, size).astype(np.uint16))
    return Image.fromarray(rng.integers(0, 256, (*size, 3)).astype(np.uint8)).convert(mode)


def picture(path, size=(20, 30), mode="RGB", **options):
    path.parent.mkdir(exist_ok=True)
    pixels(size, mode).save(path, **options)
    return path


def test_writes_maps_overlays_and_a_manifest(tmp_path, network):
    cat = picture(tmp_path / "cat.png")
    found = explain(tmp_path, cat, "--method", "grad_cam,saliency", "--layer", "block1")
    with Image.open(cat) as image:
        x = jnp.asarray(network.preprocess(image))
    logits = np.asarray(network.model(x[None]))[0]
    label = int(logits.argmax())
    first, second = found["entries"]
    assert first == {
        "image": str(cat),
        "picture_size": [20, 30],
        "method": "grad_cam",
        "options": {"relu": True, "size": "input"},
        "layer": "block1",
        "target": {"index": label, "name": CLASSES[label]},
        "score": {"kind": "logit", "value": pytest.approx(logits[label], rel=1e-4)},
        "probability": pytest.approx(np.exp(logits)[label] / np.exp(logits).sum(), rel=1e-4),
        "minimum": first["minimum"],
        "maximum": first["maximum"],
        "files": {"overlay": f"cat.{label}.grad_cam.png", "map": f"cat.{label}.grad_cam.npy"},
    }
    assert second["layer"] is None
    assert second["options"] == {"reduce": "absolute_maximum"}
    heatmap = np.load(tmp_path / "out" / first["files"]["map"])
    expected = grad_cam(class_score(network.model), "block1")(x, label)
    np.testing.assert_allclose(heatmap, expected, atol=1e-5)
    assert heatmap.dtype == np.float32
    assert (first["minimum"], first["maximum"]) == (heatmap.min(), heatmap.max())
    with Image.open(tmp_path / "out" / first["files"]["overlay"]) as overlay:
        assert overlay.size == (30, 20)
    assert found["complete"]
    assert found["versions"]["jaxfmi"] == version("jaxfmi")
    assert found["command"][:3] == ["jaxfmi", "explain", str(cat)]
    assert len(found["model"]["weights"]["sha256"]) == 64
    assert found["model"]["input"]["size"] == [16, 24]


def test_every_method_explains_the_score_it_asks_for(tmp_path, network):
    cat = picture(tmp_path / "cat.png")
    words = ["--method", "sise,group_cam,cam", "--option", "sise.fusion=soft"]
    one, two, three = explain(tmp_path, cat, *words)["entries"]
    assert one["layer"] == ["stem", "block1", "block2"]
    assert one["options"]["fusion"] == "soft"
    kinds = [entry["score"]["kind"] for entry in (one, two, three)]
    assert kinds == ["log_odds", "probability", "logit"]
    p = one["probability"]
    assert one["score"]["value"] == pytest.approx(np.log(p / (1 - p)), rel=1e-4)
    assert two["score"]["value"] == pytest.approx(p, rel=1e-5)
    with Image.open(cat) as image:
        x = jnp.asarray(network.preprocess(image))
    score = class_score(network.model, log_odds)
    expected = sise(score, fusion="soft")(x, one["target"]["index"])
    heatmap = np.load(tmp_path / "out" / one["files"]["map"])
    np.testing.assert_allclose(heatmap, expected, atol=1e-4)
    words = ["--method", "sise,grad_cam", "--score", "logit", "--layer", "block1,block2"]
    entries = explain(tmp_path, cat, *words, "--overwrite")["entries"]
    assert {entry["score"]["kind"] for entry in entries} == {"logit"}
    assert [e["layer"] for e in entries] == [["block1", "block2"], "block1", "block2"]


def test_pictures_of_any_kind_get_overlays_of_their_own_size(tmp_path):
    files = [picture(tmp_path / name, *kind) for name, kind in FORMATS.items()]
    sizes = [list(size) for size, _ in FORMATS.values()]
    turned = Image.Exif()
    turned[274] = 6  # to be shown turned by 90 degrees
    files.append(picture(tmp_path / "turned.jpg", (20, 30), exif=turned))
    found = explain(tmp_path, *files, "--batch-size", 4)
    entries = found["entries"]
    assert [e["image"] for e in entries] == list(map(str, files))
    assert [e["picture_size"] for e in entries] == [*sizes, [30, 20]]
    for entry in entries:
        with Image.open(tmp_path / "out" / entry["files"]["overlay"]) as overlay:
            assert [overlay.height, overlay.width] == entry["picture_size"]
            assert overlay.mode == "RGB"


def test_a_broken_picture_does_not_stop_the_others(tmp_path):
    good = [picture(tmp_path / "a.png"), picture(tmp_path / "b.jpg", (200, 200))]
    broken = [tmp_path / name for name in ("empty.png", "truncated.jpg", "text.png")]
    broken[0].touch()
    broken[1].write_bytes(good[1].read_bytes()[:2000])
    broken[2].write_text("no picture")
    words = ("explain", good[0], *broken, good[1], "--batch-size", 2, "--out", tmp_path / "out")
    result = run(*words)
    assert result.exit_code == 1
    lines = result.stderr.splitlines()
    assert [line.startswith("error: cannot read") for line in lines] == [True] * 3
    for line, path, why in zip(lines, broken, ("empty", "truncated", "identify"), strict=True):
        assert str(path) in line
        assert why in line
    found = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert [e["image"] for e in found["entries"]] == list(map(str, good))
    assert [f["image"] for f in found["failures"]] == list(map(str, broken))
    assert found["complete"]


WRONG = {
    "no command": (["expain"], "'explain'"),
    "no option": (["explain", "{cat}", "--methd", "cam"], "--method"),
    "no picture": (["explain"], "IMAGE"),
    "no file": (["explain", "gone.png"], "'gone.png' does not exist"),
    "a folder": (["explain", "{folder}"], "is no picture but a folder"),
    "method": (["explain", "{cat}", "--method", "gradcam"], "'grad_cam'"),
    "no method": (["explain", "{cat}", "--method", ","], "nothing to do"),
    "model": (["explain", "{cat}", "--model", "resnet5"], "'resnet50'"),
    "no weights": (["explain", "{cat}", "--model", "resnet18"], "needs --weights"),
    "weights of demo": (["explain", "{cat}", "--weights", "a.npz"], "weights of its own"),
    "weights gone": (
        ["explain", "{cat}", "--model", "resnet18", "--weights", "gone.npz"],
        "no weights 'gone.npz'",
    ),
    "other weights": (
        ["explain", "{cat}", "--model", "squeezenet1_1", "--weights", "{weights}"],
        "does not fit the model",
    ),
    "model option": (
        ["explain", "{cat}", "--model", "resnet18", "--weights", "a", "--model-option", "clases=2"],
        "no option 'clases'",
    ),
    "layer": (["explain", "{cat}", "--layer", "block"], "'block2'"),
    "no layer": (
        ["explain", "{cat}", "--method", "saliency", "--layer", "stem"],
        "saliency do not",
    ),
    "class": (["explain", "{cat}", "--target", "tabi"], "'tabby'"),
    "two classes": (["explain", "{cat}", "--target", "Espresso"], "classes [1, 3]"),
    "label": (["explain", "{cat}", "--target", "4"], "4 classes, 0 to 3"),
    "negative label": (["explain", "{cat}", "--target", "-1"], "4 classes, 0 to 3"),
    "top": (["explain", "{cat}", "--top-k", "5"], "--top-k is 1 to 4"),
    "both": (["explain", "{cat}", "--top-k", "2", "--target", "1"], "exclude each other"),
    "score": (["explain", "{cat}", "--score", "logits"], "'logit'"),
    "preprocess": (["explain", "{cat}", "--preprocess", "image"], "'imagenet'"),
    "size": (["explain", "{cat}", "--size", "0"], "192x256"),
    "option": (["explain", "{cat}", "--option", "rely=false"], "'relu'"),
    "option of": (["explain", "{cat}", "--option", "cam.relu=false"], "no chosen method 'cam'"),
    "no value": (["explain", "{cat}", "--option", "relu"], "expected name=value"),
    "kind": (["explain", "{cat}", "--option", "relu=7"], "relu of grad_cam can't be 7"),
    "count": (
        ["explain", "{cat}", "--method", "smooth_grad", "--option", "samples=0"],
        "at least 1",
    ),
    "word": (
        ["explain", "{cat}", "--method", "afmi", "--option", "multiplier=pth"],
        "'path'",
    ),
    "setting": (
        ["explain", "{cat}", "--method", "afmi", "--option", "multiplier=path(step=3)"],
        "path has no setting 'step'",
    ),
    "misfit": (
        ["explain", "{cat}", "--method", "afmi", "--option", "multiplier=shapley"],
        "afmi: the reduction 'signed' does not fit",
    ),
    "nonlinear": (["explain", "{cat}", "--method", "cam", "--layer", "stem"], "cam: CAM needs"),
    "classes": (["explain", "{cat}", "--classes", "{names}"], "names 2 classes, the model has 4"),
    "not empty": (["explain", "{cat}", "--out", "{folder}"], "--overwrite"),
    "out": (["explain", "{cat}", "--out", "{cat}"], "is a file"),
    "batch": (["explain", "{cat}", "--batch-size", "0"], "--batch-size"),
    "layers": (["layers", "--model", "resnet5"], "'resnet50'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_usage_is_one_line(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names, weights = tmp_path / "names.txt", tmp_path / "other.npz"
    names.write_text("cat\ndog\n")
    np.savez(weights, **{"conv.weight": np.zeros((1, 3, 3, 3), np.float32)})
    places = {
        "cat": str(picture(tmp_path / "folder" / "cat.png")),
        "folder": str(tmp_path / "folder"),
        "names": str(names),
        "weights": str(weights),
    }
    words, said = WRONG[case]
    before = sorted(tmp_path.rglob("*"))
    result = run(*(word.format(**places) for word in words))
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert said in result.stderr
    assert not result.stdout
    assert sorted(tmp_path.rglob("*")) == before


def test_same_names_from_different_folders(tmp_path):
    files = [picture(tmp_path / d / "cat.png") for d in "ab"]
    files += [picture(tmp_path / "a" / name) for name in ("cat.jpg", "CAT-2.png")]
    found = explain(tmp_path, *files, "--target", 1)
    stems = [e["files"]["map"].removesuffix(".1.grad_cam.npy") for e in found["entries"]]
    assert stems == ["cat", "cat-3", "cat-4", "CAT-2"]


def test_overwrite(tmp_path):
    cat = picture(tmp_path / "cat.png")
    explain(tmp_path, cat, "--target", 0)
    found = explain(tmp_path, cat, "--target", 1, "--overwrite")
    assert [e["target"]["index"] for e in found["entries"]] == [1]


def test_best_classes(tmp_path):
    files = [picture(tmp_path / f"{i}.png", (20 + i, 30)) for i in range(3)]
    found = explain(tmp_path, *files, "--top-k", 3, "--score", "log_odds", "--batch-size", 2)
    for i in range(3):
        mine = [e for e in found["entries"] if e["image"] == str(files[i])]
        chances = [e["probability"] for e in mine]
        assert chances == sorted(chances, reverse=True)
        assert len({e["target"]["index"] for e in mine}) == 3
        for entry, p in zip(mine, chances, strict=True):
            assert entry["score"]["value"] == pytest.approx(np.log(p / (1 - p)), abs=1e-4)


def test_several_layers_and_options(tmp_path):
    words = ["--method", "grad_cam,afmi", "--layer", "stem,auto", "--target", "TABBY"]
    words += ["--option", "afmi.multiplier=path(steps=2)", "--option", "size=none"]
    found = explain(tmp_path, picture(tmp_path / "cat.png"), *words)
    assert [e["layer"] for e in found["entries"]] == ["stem", "block2"] * 2
    for entry, name in zip(
        found["entries"],
        ("grad_cam.stem", "grad_cam.block2", "afmi.stem", "afmi.block2"),
        strict=True,
    ):
        assert entry["files"]["map"] == f"cat.0.{name}.npy"
        shape = (8, 12) if entry["layer"] == "stem" else (2, 3)
        assert np.load(tmp_path / "out" / entry["files"]["map"]).shape == shape
    assert found["entries"][2]["options"] == {
        "reference": "fill",
        "multiplier": "path(steps=2)",
        "reduce": "signed",
        "relevance": None,
        "size": None,
        "chunk": None,
        "allow_bypass": False,
    }


def test_noise_depends_on_the_seed_alone(tmp_path):
    files = [picture(tmp_path / f"{i}.png") for i in range(3)]
    words = ["--method", "smooth_grad", "--option", "samples=2", "--target", 0]
    found = {}
    for name, more in {"a": ["--batch-size", 2], "b": [], "c": ["--seed", 1]}.items():
        explain(tmp_path, *files, *words, *more, "--overwrite")
        found[name] = [np.load(tmp_path / "out" / f"{i}.0.smooth_grad.npy") for i in range(3)]
    np.testing.assert_allclose(found["a"], found["b"], atol=1e-6)
    assert np.abs(np.subtract(found["b"], found["c"])).max() > 1e-3
    assert np.abs(found["b"][0] - found["b"][2]).max() > 1e-4  # the same picture, other noise


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt, 130), (OSError("disk full"), 1)])
def test_what_was_computed_survives(tmp_path, monkeypatch, error, code):
    files = [picture(tmp_path / f"{i}.png") for i in range(4)]
    write = job._write

    def failing(out, name, *rest):
        if name.startswith("3"):
            raise error
        return write(out, name, *rest)

    monkeypatch.setattr(job, "_write", failing)
    found = explain(tmp_path, *files, "--batch-size", 2, code=code)
    assert [e["image"] for e in found["entries"]] == list(map(str, files[:3]))
    assert not found["complete"]
    assert not list((tmp_path / "out").glob(".*"))


def test_weights_from_a_file(tmp_path):
    from jaxfmi.models import cifar_resnet20, save

    save(cifar_resnet20(num_classes=3), tmp_path / "net.safetensors")
    names = tmp_path / "names.json"
    names.write_text('{"0": ["n1", "cat"], "1": ["n2", "dog"], "2": ["n3", "teapot"]}')
    cat = picture(tmp_path / "cat.png")
    words = ["--model", "cifar_resnet20", "--weights", tmp_path / "net.safetensors"]
    words += ["--model-option", "num_classes=3", "--classes", names, "--target", "dog"]
    found = explain(tmp_path, cat, *words, "--size", "24x32", "--preprocess", "tensorflow")
    assert found["entries"][0]["target"] == {"index": 1, "name": "dog"}
    assert found["model"]["options"] == {"num_classes": 3}
    assert found["model"]["input"]["size"] == [24, 32]
    assert found["model"]["input"]["scale"] == 127.5
    heatmap = np.load(tmp_path / "out" / found["entries"][0]["files"]["map"])
    assert heatmap.shape == (24, 32)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", '["cat", "dog"]'),
        ("b.json", '{"1": ["n2", "dog"], "0": ["n1", "cat"]}'),
        ("c.txt", "cat\n dog \n\n"),
    ],
)
def test_files_of_classes(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert networks.read_classes(tmp_path / name, 2) == ("cat", "dog")


def test_a_background_class_is_put_before_a_thousand_names(tmp_path):
    (tmp_path / "names.txt").write_text("\n".join(f"class {i}" for i in range(1000)))
    assert networks.read_classes(tmp_path / "names.txt", 1001)[:2] == ("background", "class 0")


@pytest.mark.parametrize("text", ["{", '{"1": "cat"}', "[1, 2]", "7"])
def test_files_that_name_no_classes(tmp_path, text):
    (tmp_path / "names.json").write_text(text)
    with pytest.raises(ValueError, match=r"names\.json"):
        networks.read_classes(tmp_path / "names.json", 2)


def test_methods_are_listed():
    result = run("methods")
    assert result.exit_code == 0
    for name, method in methods.METHODS.items():
        (line,) = [line for line in result.stdout.splitlines() if line.split()[:1] == [name]]
        assert method.paper in line
        assert (" yes " in line) == method.layered


def test_defaults_can_be_given_as_words():
    for name, method in methods.METHODS.items():
        found = methods.settings([name], [])[name]
        json.dumps(found)
        for option, default in method.options.items():
            named = method.words[option].named if option in method.words else {}
            expected = named.get(default, default) if isinstance(default, str) else default
            assert methods.read(name, option, found[option]) is expected


def test_models_are_listed():
    result = run("models")
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.stdout.splitlines()[1:]] == ["demo", *MODELS]
    assert "25,557,032" in result.stdout


@pytest.mark.parametrize("name", [n for n in MODELS if n.startswith(("vgg", "squeeze", "cifar_"))])
def test_parameters_are_counted_right(name):
    assert networks.count(networks.blank(name)[0]) == networks.PARAMETERS[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_parameters_of_all_are_counted_right(name):
    assert networks.count(networks.blank(name)[0]) == networks.PARAMETERS[name]


def test_layers_are_listed_and_auto_is_marked():
    lines = run("layers", "--model", "mobilenet_v1", "--size", "96x64").stdout.splitlines()
    assert lines[1].split() == ["conv0", "48x32x32"]
    assert lines[-1].split() == ["block13", "3x2x1024", "auto"]


def test_version_and_help():
    assert run("--version").stdout == f"jaxfmi {version('jaxfmi')}\n"
    assert "explain" in run().stdout
    assert "--top-k" in run("explain", "--help").stdout


def test_demo_without_scikit_image(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage.data", None)
    result = run("demo", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert 'pip install "jaxfmi[demo]"' in result.stderr


def test_compiler_options_of_the_demo_are_left_out_where_one_is_unknown():
    known = {"xla_backend_optimization_level": 1}
    assert cli._known(known) == known
    assert cli._known(known | {"no_such_option": 1}) == {}


def test_demo(tmp_path):
    pytest.importorskip("skimage", reason="needs the extra `demo`: scikit-image")
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    words = [sys.executable, "-m", "jaxfmi", "demo", "--out", "out"]
    result = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    chelsea, coffee, path = result.stdout.splitlines()
    assert chelsea.startswith("chelsea: ")
    assert coffee.startswith("coffee: espresso, probability 0.")
    with Image.open(tmp_path / path) as panel:
        shown = np.asarray(panel.convert("RGB"), np.float32) / 255
    tiles, columns = 1 + len(SHOWN), 7
    lines = -(-tiles // columns)
    height, width = shown.shape[0] // (2 * lines), shown.shape[1] // columns
    assert (height, width) > (150, 200)
    for i in range(2):
        for t in range(tiles):
            top, left = (i * lines + t // columns) * height, t % columns * width
            tile = shown[top : top + height, left : left + width]
            assert tile[height // 4 :].std() > 0.05, (i, t)
