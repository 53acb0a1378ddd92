"""The leaderboard of an evaluation: its table as means, tests, curves, Markdown and HTML."""

import base64
import html
import io
import json
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from markdown_it import MarkdownIt
from matplotlib.figure import Figure
from PIL import Image

from jaxfmi.command.curves import plot
from jaxfmi.command.job import AUTO
from jaxfmi.command.methods import CONTROLS, METHODS, build, form, settings
from jaxfmi.command.metrics import ARROWS, METRICS
from jaxfmi.command.statistics import best, enough, paired, summary
from jaxfmi.command.tables import Table

ALPHA = 0.05
RANDOM = "random_map"
CURVES = "curves.png"
NAMES = ("method", "metric", "mean", "n")
SIGN = {"higher": -1, "lower": 1, None: 0}  # of a value whose smallest is the best
LEGEND = (
    "↑ higher is better, ↓ lower. **Best** in bold; ≈ not significantly worse than the best "
    f"(Wilcoxon's signed-rank test on the same images, Holm-corrected, p ≥ {ALPHA}). Place: mean "
    "of a method's places in all metrics with an arrow, which orders the table. Controls, in "
    "italics, compete for nothing, nor does a method with less than a tenth of the images. "
    "n: images in which any method has a value. Means are over each method's own images; where "
    "these are fewer, their number is in brackets. `summary.csv` has 95 % bootstrap intervals, "
    "`tests.csv` all p-values."
)
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 80rem; margin: 2rem auto;
  padding: 0 1rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; display: block;
  overflow-x: auto }
th, td { padding: .2rem .6rem; border-bottom: 1px solid #ddd; white-space: nowrap }
th { border-bottom: 2px solid #888 }
th:first-child { text-align: left }
tr:hover td { background: #f3f6fa }
pre { background: #f5f5f5; padding: .7rem; white-space: pre-wrap }
img { max-width: 100% }
"""


class Standing(NamedTuple):
    """A table, and what follows from it."""

    table: Table
    metrics: list[str]
    methods: list[str]  #: by mean place
    controls: list[str]
    means: pl.DataFrame
    tests: pl.DataFrame
    best: dict[str, str]  #: the best method by metric
    places: dict[str, float]  #: mean place by method


def write(
    out: Path, table: Table, left_out: Mapping[str, str] | None = None, as_html: bool = True
) -> Standing:
    """Write ``summary.csv``, ``tests.csv``, ``leaderboard.md``, ``.html`` and ``curves.png``.

    Args:
      out: an existing folder.
      table: the whole evaluation.
      left_out: methods that can't explain the network, and why.
      as_html: write the HTML too.
    """
    found = standing(table)
    for name, frame in (("summary", found.means), ("tests", found.tests)):
        frame.with_columns(pl.selectors.float().round_sig_figs(5)).write_csv(out / f"{name}.csv")
    if table.curves:
        _save(plot(table.curves), out / CURVES)
    text = markdown(found, left_out or {})
    (out / "leaderboard.md").write_text(text, encoding="utf-8")
    if as_html:
        (out / "leaderboard.html").write_text(page(text, out), encoding="utf-8")
    return found


def standing(table: Table) -> Standing:
    """Who is where: means, the best by metric, mean places, and tests against best and random."""
    there = table.rows["method"].unique().sort().to_list()
    methods = [m for m in there if m not in CONTROLS]
    metrics = [name for name in METRICS if name in table.settings["metrics"]]
    means = summary(table.rows, metrics)
    decided = {n: better for n in metrics if (better := METRICS[n].better)}
    firsts = {n: best(means, n, better, methods) for n, better in decided.items()}
    firsts = {n: first for n, first in firsts.items() if first}
    pairs = [(n, against) for n, first in firsts.items() for against in (first, RANDOM)]
    tests = [paired(table.rows, n, m, methods) for n, m in pairs if m in there]
    places = _places(means, methods, list(firsts))
    return Standing(
        table,
        metrics,
        sorted(methods, key=lambda m: places[m]),
        [m for m in there if m in CONTROLS],
        means,
        pl.concat(tests) if tests else pl.DataFrame(),
        firsts,
        places,
    )


def markdown(found: Standing, left_out: Mapping[str, str]) -> str:
    """The leaderboard: head, methods and controls, what noise can do too, and how it was made."""
    settings = found.table.settings
    network = settings["network"]
    options = "".join(f", {k}={v}" for k, v in network["options"].items())
    parts = [
        f"# {network['name']} on {settings['data']['name']}",
        _head(found.table, options),
        _grid(found),
        LEGEND,
        _no_better_than_random(found),
        "\n".join(f"* Left out: `{name}`: {why}" for name, why in left_out.items()),
        f"![Mean curves]({CURVES})" if found.table.curves else "",
        "## How it was made",
        _made(found),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def page(text: str, out: Path) -> str:
    """The Markdown as one HTML file, with the picture of the curves in it."""
    body = MarkdownIt("commonmark").enable("table").render(text)
    if (out / CURVES).is_file():
        data = base64.b64encode((out / CURVES).read_bytes()).decode()
        body = body.replace(f'src="{CURVES}"', f'src="data:image/png;base64,{data}"')
    title = html.escape(text.partition("\n")[0].removeprefix("# "))
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{title}</title>'
        f"<style>{STYLE}</style>\n{body}</html>\n"
    )


def _save(figure: Figure, path: Path) -> None:
    """Write a PNG with a palette: a fifth of the size, for a file that is committed."""
    stream = io.BytesIO()
    figure.savefig(stream)
    Image.open(stream).convert("RGB").quantize(96).save(path, optimize=True)


def _places(means: pl.DataFrame, methods: list[str], metrics: list[str]) -> dict[str, float]:
    """A method's mean place; equal means share one, and one without a mean has the last.

    Methods with few images have none: their means are of other images.
    """
    ranked = enough(means).filter(pl.col("method").is_in(methods), pl.col("metric").is_in(metrics))
    sign = pl.col("metric").replace_strict({n: SIGN[METRICS[n].better] for n in metrics})
    value = (pl.col("mean") * sign).fill_nan(float("inf"))
    place = ranked.with_columns(place=value.rank("average").over("metric"))
    by_method = place.group_by("method").agg(pl.col("place").mean())
    return dict.fromkeys(methods, np.inf if metrics else 1.0) | dict(by_method.iter_rows())


def _head(table: Table, options: str) -> str:
    settings, images = table.settings, table.rows.unique("index")
    boxed = int((images["boxes"] > 0).sum())
    right = (images["label"] == images["predicted"]).mean()
    every = settings["costly_every"]
    costly = [name for name in settings["metrics"] if METRICS[name].costly]
    return (
        f"{len(images)} of {settings['data']['images']} images could be read, {boxed} have boxes; "
        f"{right:.1%} are classified as labelled. Explained is the {_scores(table)} of the "
        f"{'annotated' if settings['target'] == 'label' else 'predicted'} class; metrics see its "
        "probability."
        + (f" {', '.join(costly)}: one image in {every}." if costly and every > 1 else "")
        + (f" Network{options}." if options else "")
    )


def _scores(table: Table) -> str:
    """What methods explain: one form for all, or that which each asks for."""
    if (score := table.settings["score"]) != AUTO:
        return score
    asked: dict[str, list[str]] = {}
    for name, given in sorted(table.settings["methods"].items()):
        if name not in METHODS:
            continue
        chosen = {k: v for k, v in given.items() if k in METHODS[name].options}
        options = {k: tuple(v) if isinstance(v, list) else v for k, v in chosen.items()}
        if (found := form(build(name, options, None))) != "logit":
            asked.setdefault(found.replace("_", "-"), []).append(name)
    return "logit" + "".join(f" ({form} for {', '.join(n)})" for form, n in asked.items())


def _grid(found: Standing) -> str:
    counts = {n: _defined(found.table, n) for n in found.metrics}
    cells = _cells(found, counts)
    title = [f"{n}{ARROWS[METRICS[n].better]}" for n in found.metrics]
    lines = [["method", "place", *title], ["---", *["--:"] * (1 + len(title))]]
    for m in found.methods:
        place = found.places[m]
        shown = f"{place:.1f}" if np.isfinite(place) else "–"
        lines.append([m, shown, *(cells[m, n] for n in found.metrics)])
    for m in found.controls:
        lines.append([f"*{m}*", "", *(f"*{cells[m, n]}*" for n in found.metrics)])
    lines.append(["n", "", *(str(counts[n]) for n in found.metrics)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _defined(table: Table, metric: str) -> int:
    """In how many images any method has a value."""
    return table.rows.filter(pl.col(metric).is_not_nan())["index"].n_unique()


def _cells(found: Standing, counts: Mapping[str, int]) -> dict[tuple[str, str], str]:
    """The mean by method and metric, as text: what reads as the best in bold, its equals marked."""
    equal = {
        (method, metric)
        for metric, against, method, p in _tests(found).iter_rows()
        if against == found.best[metric] and p >= ALPHA
    }
    means = list(found.means.select(NAMES).iter_rows())
    texts = {(method, metric): _text(metric, mean) for method, metric, mean, _ in means}
    cells = {}
    for method, metric, _, n in means:
        text, own = texts[method, metric], f" ({n})" if 0 < n < counts[metric] else ""
        if method in found.methods and text == texts.get((found.best.get(metric), metric)):
            cells[method, metric] = f"**{text}**{own}"
        else:
            cells[method, metric] = text + own + " ≈" * ((method, metric) in equal)
    return cells


def _text(metric: str, mean: float) -> str:
    return "–" if np.isnan(mean) else f"{mean:.{1 if '%' in METRICS[metric].range else 3}f}"


def _no_better_than_random(found: Standing) -> str:
    lines = []
    for metric in found.best if RANDOM in found.controls else ():
        sign = SIGN[METRICS[metric].better]
        rows = found.tests.filter(pl.col("metric") == metric, pl.col("against") == RANDOM)
        better = (pl.col("p_holm") < ALPHA) & (pl.col("difference") * sign < 0)
        if names := rows.filter(~better)["method"].to_list():
            lines.append(f"* {metric}: {', '.join(names)}")
    if not lines:
        return ""
    return "\n".join([f"Not significantly better than `{RANDOM}`:\n", *lines])


def _tests(found: Standing) -> pl.DataFrame:
    if found.tests.is_empty():
        return found.tests
    return found.tests.select("metric", "against", "method", "p_holm")


def _made(found: Standing) -> str:
    made, chosen = found.table.made, found.table.settings
    metrics = {n: o for n, o in chosen["metrics"].items() if o}
    lines = [f"```\n{shlex.join(made['command'])}\n```\n"] if made.get("command") else []
    lines += [f"* versions: {_listed(made.get('versions', {}))}"]
    lines += [f"* seed: {chosen['seed']}; offset of labels: {chosen['data']['label_offset']}"]
    lines += [f"* data: sha256 {chosen['data']['sha256']}"]
    lines += [f"* weights: sha256 {chosen['network']['weights']}"]
    lines += [f"* {name}: {_listed(options)}" for name, options in metrics.items()]
    scaled = [name for name in found.metrics if METRICS[name].unit]
    lines += [f"* scaled by minimum and maximum for {', '.join(scaled)}"] * bool(scaled)
    layers: dict[str, list[str]] = {}
    for name, options in sorted(chosen["methods"].items()):
        if place := options["layer"]:
            place = f"layer {place}" if isinstance(place, str) else f"layers {', '.join(place)}"
            layers.setdefault(place, []).append(name)
        if other := _unusual(name, options):
            lines.append(f"* {name}: {_listed(other)}")
    lines += [f"* {place}: {', '.join(names)}" for place, names in layers.items()]
    return "\n".join(lines)


def _unusual(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a method that are not its defaults."""
    table = METHODS | CONTROLS
    usual = settings([name], [], table)[name] if name in table else {}
    usual = json.loads(json.dumps(usual, default=str))  # as the table has them
    return {k: v for k, v in options.items() if k != "layer" and usual.get(k) != v}


def _listed(pairs: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> str:
    return ", ".join(f"{k} {v}" for k, v in dict(pairs).items())
