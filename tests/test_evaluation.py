"""Evaluations: what their tables hold, what stops them, and that they go on where they were."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest
from flax import nnx
from PIL import Image
from typer.testing import CliRunner

from jaxfmi import class_score, grad_cam, metrics, probability
from jaxfmi.cli import app
from jaxfmi.command import (
    datasets,
    evaluate,
    evaluation,
    execute,
    job,
    methods,
    networks,
    tables,
)
from jaxfmi.command.evaluation import plan_evaluation
from jaxfmi.command.execute import resume, run
from jaxfmi.heatmap import unit
from jaxfmi.models import Preprocess
from jaxfmi.models.demo import DemoNet, Pretrained

CLASSES = ("tabby", "espresso", "koala", "lion")
OPTIONS = ("deletion.steps=3", "insertion.steps=3")
COLUMNS = "method index image label predicted target probability boxes".split()
QUICK = ["energy_pointing", "drop", "deletion", "tied"]


@pytest.fixture(autouse=True, scope="module")
def network():
    """A tiny network in the place of the embedded one."""
    model = nnx.jit(lambda: DemoNet(len(CLASSES), (4, 6), (2, 2), 4, rngs=nnx.Rngs(0)))()
    model.eval()
    small = Pretrained(model, CLASSES, Preprocess((16, 24), (0.5,) * 3, (0.5,) * 3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(networks, "demo_model", lambda: small)
        yield networks.open_network()


@pytest.fixture(autouse=True, scope="module")
def programs():
    """Compile each program once: that takes most of a run's time."""
    kept: dict[tuple, object] = {}

    def once(make, key):
        def cached(*args):
            if (name := (make.__name__, key(*args))) not in kept:
                kept[name] = make(*args)
            return kept[name]

        return cached

    def of_step(job, step, size):
        return size, job.seed, job.score, step.method, step.layer, str(step.options)

    def of_suite(evaluation, chosen, size):
        return size, evaluation.job.seed, str(chosen)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "explainer", once(job.explainer, of_step))
        patch.setattr(job, "logits", once(job.logits, lambda job, size: size))
        patch.setattr(execute, "_suite", once(execute._suite, of_suite))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Six pictures: the fourth can't be read, the fifth has no box."""
    folder = tmp_path_factory.mktemp("set")
    rng, lines = np.random.default_rng(0), ["file,class_index,boxes"]
    for i in range(6):
        pixels = rng.integers(0, 256, (20, 30, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        lines.append(f"{i}.png,{i % 4}," + ("" if i == 4 else "0.1:0.2:0.5:0.6"))
    (folder / "3.png").write_bytes(b"no picture")
    (folder / "index.csv").write_text("\n".join(lines) + "\n")
    return folder


def plan(network, folder, methods=("grad_cam", "random_map"), chosen=QUICK, **options):
    data = datasets.open_data(folder)
    words = [text for text in OPTIONS if text.partition(".")[0] in chosen]
    given = {"metrics": chosen, "options": words, "batch_size": 4} | options
    return plan_evaluation(network, data, methods, **given)


@pytest.fixture(scope="module")
def whole(network, folder, tmp_path_factory):
    """An evaluation that nothing stopped."""
    out = tmp_path_factory.mktemp("whole")
    warnings = []
    table, failures = run(plan(network, folder), out, curves=True, warn=warnings.append)
    assert failures == ["3.png"]
    assert len(warnings) == 1
    assert "cannot read" in warnings[0]
    return table


def cell(table, method, index, name):
    return table.rows.filter(pl.col("method") == method, pl.col("index") == index)[name][0]


def equal(one, two):
    assert one.curves == two.curves
    assert one.rows.equals(two.rows.select(one.rows.columns))


def test_a_row_has_what_the_library_gives(whole, network, folder):
    assert whole.rows.columns[: len(COLUMNS)] == COLUMNS
    assert len(whole.rows) == 2 * 5
    with Image.open(folder / "1.png") as image:
        x = jnp.asarray(network.preprocess(image))
    heatmap = jax.jit(grad_cam(class_score(network.model)))(x, 1)
    chance = class_score(network.model, probability)
    region = jnp.asarray(datasets.to_region([(0.1, 0.2, 0.5, 0.6)], (16, 24)))
    expected = {
        "image": "1.png",
        "label": 1,
        "target": 1,
        "boxes": 1,
        "predicted": int(network.model(x[None]).argmax()),
        "probability": pytest.approx(float(chance(x, 1)), rel=1e-4),
        "energy_pointing": pytest.approx(float(metrics.energy_pointing(heatmap, region)), rel=1e-3),
        "drop": pytest.approx(float(jax.jit(metrics.drop(chance))(x, unit(heatmap), 1)), abs=1e-2),
        "tied": pytest.approx(float(metrics.tied_share(heatmap)), abs=1e-2),
    }
    curve = jax.jit(metrics.deletion_curve(chance, steps=3))(x, heatmap, 1)
    expected["deletion"] = pytest.approx(float(curve.auc), abs=1e-3)
    assert {name: cell(whole, "grad_cam", 1, name) for name in expected} == expected
    np.testing.assert_allclose(
        cell(whole, "grad_cam", 1, "deletion_curve"), curve.scores, atol=2e-3
    )
    np.testing.assert_allclose(whole.fractions["deletion"], curve.fractions, rtol=1e-6)


def test_no_box_is_no_value_of_localisation(whole):
    rows = whole.rows.filter(pl.col("boxes") == 0)
    assert rows["image"].unique().to_list() == ["4.png"]
    assert rows["energy_pointing"].is_nan().all()
    assert rows["deletion"].is_finite().all()


def test_mean_curves_are_those_of_the_images(whole):
    curves = whole.rows.filter(pl.col("method") == "random_map")["deletion_curve"].to_list()
    mean = whole.curves["random_map"]["deletion"]
    assert mean["n"] == 5
    np.testing.assert_allclose(mean["scores"], np.mean(curves, 0), rtol=1e-5)
    area = np.trapezoid(mean["scores"], mean["fractions"])
    rows = whole.rows.filter(pl.col("method") == "random_map")
    assert area == pytest.approx(rows["deletion"].mean(), rel=1e-5)


def test_later_rows_do_not_replace_the_mean_of_lost_curves(whole, tmp_path):
    def part(indices):
        rows = whole.rows.filter(pl.col("index").is_in(indices))
        return tables.Table(rows, whole.settings, whole.fractions)

    for indices in ([0, 1], [4], [4, 5], [2]):
        tables.add(tmp_path, part(indices))
        table = tables.finish(tmp_path, tables.load(tmp_path), curves=indices == [4])
    for method in whole.curves:
        mean, expected = (t.curves[method]["deletion"] for t in (table, whole))
        assert mean["n"] == expected["n"] == 5
        np.testing.assert_allclose(mean["scores"], expected["scores"], rtol=1e-12)


def test_rows_of_other_folders_are_taken_over_once(whole, tmp_path):
    """Also where the folders have one name, and some rows are in both."""
    for place, indices in (("a", [0, 1, 2]), ("b", [2, 3, 4, 5])):
        rows = whole.rows.filter(pl.col("index").is_in(indices))
        tables.add(tmp_path / place / "out", tables.Table(rows, whole.settings, whole.fractions))
    for place in ("a", "b", "b"):
        tables.bring(tmp_path / "all", tmp_path / place / "out")
    table = tables.load(tmp_path / "all")
    assert table.rows.select(tables.KEY).equals(whole.rows.select(tables.KEY))
    assert table.curves["random_map"]["deletion"]["n"] == 5
    other = whole.settings | {"seed": 7}
    tables.add(tmp_path / "c", tables.Table(whole.rows, other, whole.fractions))
    with pytest.raises(ValueError, match="was made with seed=7 and not 0"):
        tables.bring(tmp_path / "all", tmp_path / "c")


@pytest.mark.parametrize("stop", [1, 3, 6, 9])
def test_a_killed_run_goes_on(whole, network, folder, tmp_path, stop):
    maps = 0

    def power_cut(n):
        nonlocal maps
        maps += n
        if maps >= stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(plan(network, folder), tmp_path, curves=True, done=power_cut)
    (tmp_path / "parts" / ".0000009.x.parquet.partial").write_bytes(b"half")
    before = set((tmp_path / "parts").glob("*.parquet"))
    counted = []
    table, _ = run(plan(network, folder), tmp_path, curves=True, done=counted.append)
    assert before
    assert sum(counted) == 2 * 6
    equal(table, whole)
    equal(tables.load(tmp_path), whole)
    assert [p.name for p in tmp_path.iterdir()] == ["table.parquet"]


def test_methods_are_added_to_a_finished_table(whole, network, folder, tmp_path):
    run(plan(network, folder, ["random_map"]), tmp_path)
    there = tables.load(tmp_path)
    assert "deletion_curve" not in there.rows.columns
    table, _ = run(plan(network, folder, ["grad_cam"]), tmp_path)
    assert table.curves == whole.curves
    assert table.rows.equals(whole.rows.drop("deletion_curve"))
    assert set(table.settings["methods"]) == {"grad_cam", "random_map"}


def test_methods_are_computed_again(whole, network, folder, tmp_path):
    again = plan(network, folder)
    run(again, tmp_path)
    spoilt = tables.load(tmp_path)
    spoilt.rows = spoilt.rows.with_columns(tied=pl.lit(7, pl.Float32))
    tables.finish(tmp_path, spoilt)
    resume(again, tmp_path, ["grad_cam"])
    table, _ = run(again, tmp_path)
    assert table.curves == whole.curves
    assert cell(table, "random_map", 0, "tied") == 7
    assert cell(table, "grad_cam", 0, "tied") == cell(whole, "grad_cam", 0, "tied")
    with pytest.raises(ValueError, match="--again cam: --method has to name it"):
        resume(again, tmp_path, ["cam"])
    more = plan(network, folder, ["grad_cam", "cam"])
    assert len(resume(more, tmp_path, ["cam"]).rows) == len(whole.rows)


def test_numbers_do_not_depend_on_the_batch(whole, network, folder, tmp_path):
    table, _ = run(plan(network, folder, batch_size=5), tmp_path, curves=True)
    for name in [*QUICK, "probability"]:
        np.testing.assert_allclose(table.rows[name], whole.rows[name], atol=1e-4)
    random = [
        t.rows.filter(pl.col("method") == "random_map")["energy_pointing"] for t in (table, whole)
    ]
    np.testing.assert_allclose(*random, rtol=1e-6)


def test_costly_metrics_of_some_images(whole, network, folder, tmp_path):
    table, _ = run(plan(network, folder, costly_every=2), tmp_path)
    odd = table.rows.filter(pl.col("index") % 2 == 1)
    assert odd["deletion"].is_nan().all()
    assert odd["drop"].is_finite().all()
    assert table.curves["grad_cam"]["deletion"]["n"] == 3
    assert cell(table, "grad_cam", 2, "deletion") == pytest.approx(
        cell(whole, "grad_cam", 2, "deletion"), abs=1e-5
    )


def test_costly_methods_explain_some_images(whole, network, folder, tmp_path):
    other = plan(network, folder, ("grad_cam", "cam"), method_every=["cam=2"])
    table, _ = run(other, tmp_path)
    found = dict(table.rows.group_by("method").agg(pl.col("index").sort()).iter_rows())
    assert found == {"cam": [0, 2, 4], "grad_cam": [0, 1, 2, 4, 5]}
    again, _ = run(other, tmp_path)
    equal(again, table)
    more, _ = run(plan(network, folder, ("cam",)), tmp_path)  # those that are missing are added
    assert more.rows.filter(pl.col("method") == "cam")["index"].to_list() == [0, 1, 2, 4, 5]
    kept, _ = run(other, tmp_path)
    equal(kept, more)
    with pytest.raises(ValueError, match="no chosen method 'sise'"):
        plan(network, folder, ("cam",), method_every=["sise=2"])
    for wrong in ("cam=0", "cam=x", "cam"):
        with pytest.raises(ValueError, match="expected"):
            plan(network, folder, ("cam",), method_every=[wrong])


def test_all_but_some(network, folder):
    chosen = {s.method for s in plan(network, folder, ("all",), without=["rise", "sise"]).job.steps}
    assert {"grad_cam", "ada_sise", "score_cam"} <= chosen
    assert not {"rise", "sise"} & chosen
    with pytest.raises(ValueError, match="did you mean 'rise'"):
        plan(network, folder, ("all",), without=["rice"])


def test_the_predicted_class(network, folder, tmp_path):
    table, _ = run(plan(network, folder, chosen=["tied"], target="predicted"), tmp_path)
    assert (table.rows["target"] == table.rows["predicted"]).all()
    assert (table.rows["label"] != table.rows["predicted"]).any()


def test_maps_that_are_not_finite_have_no_values(network, folder, tmp_path, monkeypatch):
    def broken(explain):
        def explain_all(x, labels, places):
            maps = explain(x, labels, places)
            maps[places == 1, 3, 4] = np.nan
            return maps

        return explain_all

    made = job.explainer
    monkeypatch.setattr(job, "explainer", lambda *args: broken(made(*args)))
    method = plan(network, folder, ["random_map"])
    table, _ = run(method, tmp_path)
    for name in QUICK:
        nan = table.rows.filter(pl.col(name).is_nan())["index"].to_list()
        assert nan == ([1, 4] if name == "energy_pointing" else [1])
    assert table.curves["random_map"]["deletion"]["n"] == 4


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"seed": 1}, "seed=0 and not 1"),
        ({"target": "predicted"}, "target=label and not predicted"),
        ({"score": "probability"}, "score=auto and not probability"),
        ({"costly_every": 2}, "costly_every=1 and not 2"),
        ({"chosen": ["tied"]}, r"made with metrics\.energy_pointing\S* with .* and \d+ more"),
        ({"chosen": [*QUICK, "relevance_mass"]}, r"made without metrics\.relevance_mass; choose"),
        ({"options": ["deletion.steps=4"]}, "metrics.deletion.steps=3 and not 4"),
        ({"options": [*OPTIONS[:1], "relu=false"]}, "methods.grad_cam.relu=True and not False"),
        ({"layer": "block1"}, "methods.grad_cam.layer=block2 and not block1"),
    ],
)
def test_other_settings_do_not_mix(network, folder, tmp_path, change, why):
    tables.add(tmp_path, _stub(plan(network, folder)))
    with pytest.raises(ValueError, match=why):
        run(plan(network, folder, **change), tmp_path)
    run_again = plan(network, folder, batch_size=2, options=[*OPTIONS[:1], "deletion.chunk=2"])
    assert resume(run_again, tmp_path).done() == {("grad_cam", 0)}


def _stub(evaluation):
    rows = pl.DataFrame({"method": ["grad_cam"], "index": [0]})
    return tables.Table(rows, evaluation.settings)


def test_other_data_does_not_mix(network, folder, tmp_path):
    tables.add(tmp_path, _stub(plan(network, folder)))
    data = datasets.open_data(folder, limit=2)
    other = plan_evaluation(network, data, ["grad_cam"], metrics=QUICK, options=OPTIONS[:1])
    with pytest.raises(ValueError, match=r"data\.images=6 and not 2"):
        resume(other, tmp_path)


@pytest.mark.parametrize("content", [b"", b"no table", None])
def test_a_file_that_is_no_table(network, folder, tmp_path, content):
    if content is None:
        pl.DataFrame({"a": [1]}).write_parquet(tmp_path / "table.parquet")
    else:
        (tmp_path / "table.parquet").write_bytes(content)
    with pytest.raises(ValueError, match="is no table of an evaluation"):
        resume(plan(network, folder), tmp_path)


def test_all_are_those_that_can_explain_the_network(network, folder, monkeypatch):
    def impossible(score, layer="auto", a: int = 2):
        raise ValueError("not today")

    row = methods.METHODS["grad_cam"]._replace(make=impossible)
    few = {"grad_cam": row, "cam": methods.METHODS["cam"]} | methods.CONTROLS
    monkeypatch.setattr(evaluation, "EXPLAINERS", few)
    found = plan(network, folder, ["all"], chosen=["tied"])
    assert [s.method for s in found.job.steps] == ["cam", *methods.CONTROLS]
    assert found.left_out == {"grad_cam": "not today"}
    for named in ({"methods": ["grad_cam"]}, {"methods": ["all"], "options": ["grad_cam.a=1"]}):
        with pytest.raises(ValueError, match="grad_cam: not today"):
            plan(network, folder, chosen=["tied"], **named)
    with pytest.raises(ValueError, match="no method 'grad_cma'"):
        plan(network, folder, ["all", "grad_cma"], chosen=["tied"])


def test_curves_come_with_the_share_of_ties(network, folder):
    assert list(plan(network, folder, chosen=["deletion"]).metrics) == ["deletion", "tied"]
    assert list(plan(network, folder, chosen=["drop"]).metrics) == ["drop"]


def command(folder, out, *words):
    if "--method" not in words:
        words = ("--method", "edge_map", *words)
    return CliRunner().invoke(
        app,
        ["evaluate", "--data", str(folder), "--out", str(out), "--metric", "tied,drop", *words],
    )


def test_the_command_writes_everything(folder, tmp_path):
    words = ("--method", "edge_map,centre_gaussian", "--format", "csv", "--batch-size", "4")
    result = command(folder, tmp_path / "out", *words)
    assert result.exit_code == 1, result.output
    assert result.stderr.splitlines() == [
        f"error: cannot read '{folder / '3.png'}': cannot identify image file '{folder / '3.png'}'"
    ]
    assert result.stdout.startswith(f"10 rows in {tmp_path / 'out' / 'table.parquet'}")
    found = {p.name for p in (tmp_path / "out").iterdir()}
    assert found == {
        "leaderboard.html",
        "leaderboard.md",
        "summary.csv",
        "table.csv",
        "table.parquet",
        "tests.csv",
    }
    made = json.loads(pl.read_parquet_metadata(tmp_path / "out" / "table.parquet")["made"])
    assert made["command"][:2] == ["jaxfmi", "evaluate"]
    assert pl.read_csv(tmp_path / "out" / "table.csv").height == 10
    again = command(folder, tmp_path / "out", *words, "--seed", "1")
    assert again.exit_code == 2
    assert "seed=0 and not 1" in again.stderr
    anew = command(folder, tmp_path / "out", *words, "--seed", "1", "--overwrite")
    assert anew.exit_code == 1


def test_both_spellings_of_methods_and_metrics(folder, tmp_path):
    words = ("--methods", "edge_map", "--metrics", "tied", "--limit", "1")
    result = CliRunner().invoke(
        app, ["evaluate", "--data", str(folder), "--out", str(tmp_path), *words]
    )
    assert result.exit_code == 0, result.output
    assert tables.load(tmp_path).rows.columns[len(COLUMNS) :] == ["tied"]


def test_no_picture_can_be_read(folder, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "index.csv").write_text("file,class_index\n0.png,1\n")
    result = command(broken, tmp_path / "out")
    assert result.exit_code == 1
    assert "error: no picture of broken could be read; " in result.stderr.splitlines()[-1]
    Image.new("RGB", (9, 9)).save(broken / "0.png")
    assert command(broken, tmp_path / "out").exit_code == 0
    (broken / "0.png").unlink()
    before = tables.load(tmp_path / "out").rows
    words = ("--method", "edge_map,centre_gaussian")
    assert command(broken, tmp_path / "out", *words).exit_code == 1
    assert tables.load(tmp_path / "out").rows.equals(before)


def test_an_interruption_says_how_to_go_on(folder, tmp_path, monkeypatch):
    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(execute, "run", interrupted)
    result = command(folder, tmp_path)
    assert result.exit_code == 130
    assert "the same command without --overwrite and --again goes on" in result.stderr


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--method", "grad_cm"), "no method 'grad_cm' (did you mean 'grad_cam'?); there are"),
        (("--metric", "drops"), "no metric 'drops'"),
        (("--option", "deletion.steps=3"), "no chosen metric 'deletion'"),
        (("--option", "drop.keep=a"), "keep of drop can't be 'a'"),
        (("--option", "drop.keep=2.0"), "drop: keep is a share"),
        (("--option", "sigma=-1.0", "--method", "centre_gaussian"), "above 0"),
        (("--target", "best"), "no target 'best'"),
        (("--format", "xls"), "no format 'xls'"),
        (("--label-offset", "1"), "has class 4 (with the offset 1); the network has 0 to 3"),
        (("--layer", "block9", "--method", "grad_cam"), "no layer 'block9'"),
        (("--limit", "0"), "Invalid value"),
        (("--again", "cam"), "--again cam: --method has to name it"),
    ],
)
def test_wrong_usage_is_one_line(folder, tmp_path, words, why):
    result = command(folder, tmp_path, *words)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert why in line


def test_metrics_of_regions_need_boxes(network, folder, tmp_path):
    data = datasets.open_data(folder)
    bare = data._replace(samples=[s._replace(boxes=()) for s in data.samples])
    with pytest.raises(ValueError, match=r"energy_pointing need boxes; no picture of set"):
        plan_evaluation(network, bare, ["cam"], metrics=["drop", "energy_pointing"])
    assert "iou" not in plan_evaluation(network, bare, ["cam"]).metrics
    assert "iou" in plan_evaluation(network, data, ["cam"]).metrics


def test_the_extra_is_named(folder, tmp_path, monkeypatch):
    def missing(name):
        raise ModuleNotFoundError("No module named 'polars'", name="polars")

    monkeypatch.setattr(evaluate, "import_module", missing)
    result = command(folder, tmp_path)
    assert result.exit_code == 2
    assert result.stderr == 'error: evaluation needs polars: pip install "jaxfmi[evaluate]"\n'
