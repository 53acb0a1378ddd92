"""The leaderboard's numbers against hand-computed ones, and what its files say."""

import csv
import importlib.util
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest
from scipy import stats

from jaxfmi.command import leaderboard, statistics
from jaxfmi.command.metrics import METRICS, metric_settings, suite
from jaxfmi.command.tables import Table

NAN = float("nan")
VALUES = {  # by method: energy_pointing (higher is better), drop (lower), tied (neither)
    "cam": ([0.9, 0.8, 0.7, NAN], [10, 20, 30, 40], [0, 0, 0, 0]),
    "saliency": ([0.5, 0.4, 0.3, 0.2], [12, 20, 28, 44], [1, 1, 1, 1]),
    "occlusion": ([NAN] * 4, [90, 90, 90, 90], [0.5] * 4),
    "random_map": ([0.1, 0.2, 0.1, 0.2], [50, 60, 70, 80], [0, 0, 0, 0]),
}
NAMES = ("energy_pointing", "drop", "tied")


def table(values=VALUES):
    rows = [
        (method, i, 3, 3 if i else 1, int(i > 0), *map(float, one))
        for method, columns in values.items()
        for i, one in enumerate(zip(*columns, strict=True))
    ]
    names = ["method", "index", "label", "predicted", "boxes", *NAMES]
    settings = {
        "network": {"name": "net", "options": {"padding": 1}, "weights": "abc"},
        "data": {"name": "set", "images": 5, "sha256": "def", "label_offset": 1},
        "score": "logit",
        "target": "label",
        "seed": 0,
        "costly_every": 2,
        "metrics": {"energy_pointing": {}, "drop": {"keep": None, "baseline": 0.0}, "tied": {}},
        "methods": {
            "cam": {"layer": "last", "relu": True, "size": "input"},
            "saliency": {"layer": None, "reduce": "absolute_maximum"},
            "occlusion": {"layer": None, "window": 9, "stride": 8, "fill": 0.0},
            "random_map": {"layer": None},
        },
    }
    fractions = [0.0, 0.25, 1.0]
    curves = {
        method: {"deletion": {"n": 2, "fractions": fractions, "scores": [0.8, 0.4, 0.1]}}
        for method in values
    }
    made = {"command": ["jaxfmi", "evaluate", "--data", "my set"], "versions": {"jax": "1.2"}}
    return Table(pl.DataFrame(rows, names, orient="row"), settings, {}, curves, made)


def test_means_leave_nan_out_and_count_it():
    found = statistics.summary(table().rows, NAMES)
    rows = {(r["method"], r["metric"]): r for r in found.iter_rows(named=True)}
    cam = rows["cam", "energy_pointing"]
    assert (cam["n"], cam["missing"], cam["mean"]) == (3, 1, pytest.approx(0.8))
    assert 0.699 < cam["low"] < 0.8 < cam["high"] < 0.901
    none = rows["occlusion", "energy_pointing"]
    assert (none["n"], none["missing"]) == (0, 4)
    assert np.isnan([none["mean"], none["low"], none["high"]]).all()
    constant = rows["occlusion", "drop"]
    assert (constant["mean"], constant["low"], constant["high"]) == (90, 90, 90)


def test_intervals_are_those_of_scipy():
    values = np.random.default_rng(1).gamma(2, size=200)
    ours = statistics.interval(values)
    assert ours == statistics.interval(values)
    theirs = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=9999, rng=0)
    np.testing.assert_allclose(ours, theirs.confidence_interval, atol=0.03)
    error = values.std() / np.sqrt(len(values))
    np.testing.assert_allclose(ours, values.mean() + np.array([-1.96, 1.96]) * error, atol=0.03)
    assert np.isnan(statistics.interval(values[:1])).all()


def test_holm():
    np.testing.assert_allclose(
        statistics.holm(np.array([0.01, 0.04, NAN, 0.03, 0.5])), [0.04, 0.09, NAN, 0.09, 0.5]
    )
    np.testing.assert_allclose(statistics.holm(np.array([0.9, 0.8])), [1, 1])
    assert statistics.holm(np.array([])).size == 0


def test_pairs_are_of_the_same_images():
    rng = np.random.default_rng(0)
    a, b = rng.random(30), rng.random(30)
    a[3], b[5] = NAN, NAN
    values = {"cam": (a, a, a), "saliency": (b, b, b), "occlusion": (b, a, a)}
    rows = table(values).rows.sample(fraction=1, shuffle=True, seed=1)
    found = statistics.paired(rows, "energy_pointing", "cam", ["cam", "saliency", "absent"])
    (row,) = found.iter_rows(named=True)
    known = np.isfinite(a - b)
    _, p = stats.wilcoxon(b[known] - a[known])
    assert (row["method"], row["n"], row["p"]) == ("saliency", 28, pytest.approx(p))
    assert row["difference"] == pytest.approx((b - a)[known].mean())
    assert row["p_holm"] == row["p"]
    same = statistics.paired(rows, "drop", "cam", ["occlusion"]).row(0, named=True)
    assert (same["difference"], same["p"]) == (0, 1)


def test_places_and_bests():
    found = leaderboard.standing(table())
    assert found.best == {"energy_pointing": "cam", "drop": "cam"}
    assert found.places == {"cam": 1, "saliency": 2, "occlusion": 3}
    assert found.methods == ["cam", "saliency", "occlusion"]
    assert found.controls == ["random_map"]
    pairs = {(m, a) for m, a in found.tests.select("metric", "against").iter_rows()}
    assert pairs == {(m, a) for m in found.best for a in ("cam", "random_map")}


def test_the_files(tmp_path):
    leaderboard.write(tmp_path, table(), {"afmi": "not today"})
    text = (tmp_path / "leaderboard.md").read_text()
    assert "# net on set\n" in text
    assert "4 of 5 images could be read, 3 have boxes; 75.0% are classified as labelled" in text
    assert "| method | place | energy_pointing ↑ | drop ↓ | tied |\n" in text
    assert "| cam | 1.0 | **0.800** (3) | **25.0** | 0.000 |\n" in text
    assert "| saliency | 2.0 | 0.350 ≈ | 26.0 ≈ | 1.000 |\n" in text
    assert "| occlusion | 3.0 | – | 90.0 ≈ | 0.500 |\n| *random_map* |  | *0.150* |" in text
    assert "| n |  | 4 | 4 | 4 |" in text
    assert "jaxfmi evaluate --data 'my set'\n" in text
    for line in ("Left out: `afmi`: not today", "occlusion: window 9\n", "layer last: cam"):
        assert line in text
    page = (tmp_path / "leaderboard.html").read_text()
    assert "<td>cam</td>" in page
    assert "data:image/png;base64," in page
    assert 'src="curves.png"' not in page
    with (tmp_path / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(VALUES) * len(NAMES)
    assert rows[0]["metric"] == "energy_pointing"
    with (tmp_path / "tests.csv").open() as file:
        assert {r["against"] for r in csv.DictReader(file)} == {"cam", "random_map"}
    assert (tmp_path / "curves.png").stat().st_size > 10_000


def test_curves_of_controls_only_are_drawn(tmp_path):
    leaderboard.write(tmp_path, table({"random_map": VALUES["random_map"]}))
    assert (tmp_path / "curves.png").stat().st_size > 5_000


def test_what_is_no_better_than_random_is_named():
    rng = np.random.default_rng(0)
    noise = rng.random((2, 40))
    good = (noise[0] + 1, noise[0], noise[0])
    values = {"cam": good, "saliency": (noise[0], noise[0], noise[0])}
    values["random_map"] = (noise[1], noise[0] + 5, noise[0])
    text = leaderboard.markdown(leaderboard.standing(table(values)), {})
    assert "better than `random_map`:\n\n* energy_pointing: saliency\n\n" in text


def test_a_table_without_directions_or_methods():
    plain = table({"random_map": VALUES["random_map"]})
    found = leaderboard.standing(plain)
    assert (found.best, found.places, len(found.tests)) == ({}, {}, 0)
    assert "*random_map*" in leaderboard.markdown(found, {})


def test_all_that_read_as_the_best_are_bold():
    values = VALUES | {"saliency": VALUES["cam"]}
    text = leaderboard.markdown(leaderboard.standing(table(values)), {})
    for method in ("cam", "saliency"):
        assert f"| {method} | 1.5 | **0.800** (3) | **25.0** |" in text


def test_a_mean_of_fewer_images_says_so():
    values = {"cam": ([NAN, 0.5], [1, 2], [0, 0]), "saliency": ([0.5, NAN], [1, NAN], [NAN, NAN])}
    text = leaderboard.markdown(leaderboard.standing(table(values)), {})
    assert "| cam | 1.8 | **0.500** (1) | 1.5 ≈ | 0.000 |\n" in text
    assert "| saliency | 1.2 | **0.500** (1) | **1.0** (1) | – |\n" in text
    assert "| n |  | 2 | 2 | 2 |\n" in text


def test_a_single_method_has_no_rival():
    found = leaderboard.standing(table({"cam": VALUES["cam"]}))
    assert found.best["drop"] == "cam"
    assert found.tests.is_empty()
    assert "**25.0**" in leaderboard.markdown(found, {})


@pytest.fixture
def board(monkeypatch):
    """The program of the benchmark, which computes nothing; it fails for one network."""
    path = Path(__file__).parents[1] / "benchmarks" / "leaderboard.py"
    spec = importlib.util.spec_from_file_location("board", path)
    board = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(board)

    def run(plan, *args, **options):
        return table(), ["a.png"] * (plan.network == "mobilenet_v2")

    def plan(network, *args, **options):
        steps = [SimpleNamespace(method="cam")]
        data, job = SimpleNamespace(samples=[]), SimpleNamespace(steps=steps)
        return SimpleNamespace(network=network, data=data, job=job, left_out={"afmi": "not today"})

    monkeypatch.setattr(board.networks, "open_network", lambda name, *args: name)
    monkeypatch.setattr(board, "samples", lambda case, limit: None)
    monkeypatch.setattr(board, "plan_evaluation", plan)
    monkeypatch.setattr(board, "run", run)
    return board


@pytest.mark.parametrize(("network", "code"), [("cifar_resnet56", 0), ("mobilenet_v2", 1)])
def test_the_benchmark(board, monkeypatch, tmp_path, capsys, network, code):
    again = []
    monkeypatch.setattr(board, "resume", lambda plan, out, methods: again.extend(methods))
    (tmp_path / network).mkdir()
    (tmp_path / network / "table.parquet").touch()
    words = ["--networks", network, "--again", "cam", "afmi", "--overwrite"]
    monkeypatch.setattr("sys.argv", ["leaderboard.py", *words, "--out", str(tmp_path)])
    assert board.main() == code
    assert again == ["cam"]
    assert f"{network}: left out: afmi: not today\n" in capsys.readouterr().out
    assert not (tmp_path / network / "table.parquet").exists()
    assert "have 8 steps, and are for one picture in 8" in (tmp_path / "README.md").read_text()


def test_the_benchmark_knows_its_methods(board, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["leaderboard.py", "--again", "grad_cma"])
    with pytest.raises(SystemExit, match="2"):
        board.main()
    assert "invalid choice: 'grad_cma'" in capsys.readouterr().err


def test_every_metric_says_how_it_reads():
    for row in METRICS.values():
        assert row.takes in ("map", "region", "score")
        assert (row.better is None) == (row.takes == "map")
        assert not row.costly or row.takes == "score"


def test_units_do_not_decide_on_infidelity():
    options = metric_settings(["infidelity"], [])
    assert options["infidelity"]["normalize"] is True
    ask = suite(options)(lambda x, label: (x**2).sum() + label)
    x = jnp.linspace(0, 1, 48).reshape(4, 4, 3)
    heatmap = x.sum(-1)
    found = [ask(x, 0, scale * heatmap, heatmap > 1, 0)["infidelity"] for scale in (1, 100)]
    np.testing.assert_allclose(*found, rtol=1e-4)
