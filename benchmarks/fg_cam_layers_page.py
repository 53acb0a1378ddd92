"""The page of ``fg_cam_layers.py``: tables, tests, a figure, and what they say."""

import json
from pathlib import Path

import numpy as np
import polars as pl
from matplotlib.figure import Figure

from jaxfmi.command import tables
from jaxfmi.command.statistics import paired, summary

PIXELS = "input"
ALPHA = 0.05
BETTER = {
    "deletion": "lower",
    "insertion": "higher",
    "energy_pointing": "higher",
    "pointing": "higher",
    "box_hit": "higher",
}
FAITHFUL = ("deletion", "insertion")
KINDS = {"fg_cam": "FG-CAM", "fg_cam denoised": "FG-CAM, denoised"}
HEAD = """# FG-CAM, layer by layer

FG-CAM hands the components of a CAM at the last layer down to finer ones. Its authors say that it
is as faithful at any resolution, and at the pixels more faithful than layer-wise relevance
propagation. Here are its maps at the last layer of each resolution and at the pixels, with and
without denoising, beside LRP's composites, all resized to the input, on the pictures of
`../shared/data/imagenet_val` that have boxes. Explained is the logit of the annotated class;
deletion and insertion see its probability. ↑ higher is better, ↓ lower; in brackets 95 % bootstrap
intervals of the mean. A difference counts where Wilcoxon's signed-rank test on the same pictures,
Holm-corrected, has p < 0.05. The paper's own figures were not available to us. Everything is made
with

    python benchmarks/fg_cam_layers.py

At the pixels FG-CAM is itself layer-wise relevance propagation, by the rules of deep_taylor (z+,
and z^B for the first layer) from another start, the components of a CAM in the place of a logit;
with SqueezeNet, whose logits are averages of its last maps, the two are one map. So it cannot be
far from them, and what it wins over the composites it wins over other rules: clearly over
alpha2-beta1, whose negative relevance costs it insertion. At a coarse layer a pixel is deleted with
all its neighbours.
"""


def write_page(out: Path) -> None:
    """Write README.md and figures of the tables in ``out/<network>``, and all tests."""
    chapters = [HEAD]
    for folder in sorted(path for path in out.iterdir() if path.is_dir()):
        table = tables.load(folder)
        means, tests = summary(table.rows, BETTER), compared(table.rows, table.settings)
        means.write_csv(folder / "summary.csv")
        tests.write_csv(folder / "tests.csv")
        figure(means, table.settings).savefig(folder / "layers.png", dpi=110)
        count = table.rows["index"].n_unique()
        text = chapter(means, tests, table.settings, count)
        chapters.append(text + arrived(folder / "kept.json"))
    (out / "README.md").write_text("\n".join(chapters), encoding="utf-8")
    print(f"written to {out / 'README.md'}")


def arrived(file: Path) -> str:
    """How much of the CAM's total is in the maps of each place, where that was measured."""
    if not file.is_file():
        return ""
    found = json.loads(file.read_text())
    shares = ", ".join(f"{place} {share:.2g}" for place, share in found["shares"].items())
    return (
        "\nRelevance is lost where a unit has no positive contribution, alive by its bias alone. "
        f"Of the CAM's total there is (median of {found['pictures']} pictures): {shares}. Where "
        "little is left, the map tells of the paths that are, and of no others.\n"
    )


def compared(rows: pl.DataFrame, known: dict) -> pl.DataFrame:
    """Paired tests: FG-CAM at the pixels against composites, layers, and without denoising."""
    tables = []
    for metric in BETTER:
        for kind in KINDS:
            pixels = f"{kind} {PIXELS}"
            layers = [f"{kind} {place}" for place in known["places"][:-1]]
            tables.append(paired(rows, metric, pixels, composites(known)))
            tables.append(paired(rows, metric, pixels, layers))
        for place in known["places"]:
            tables.append(paired(rows, metric, f"fg_cam {place}", [f"fg_cam denoised {place}"]))
    return pl.concat(tables)


def composites(known: dict) -> list[str]:
    """The rows of LRP."""
    return [name for name in known["methods"] if name.startswith("lrp ")]


def chapter(means: pl.DataFrame, tests: pl.DataFrame, known: dict, count: int) -> str:
    """What there is to say about one network, from as many pictures."""
    rest = "" if count == known["pictures"] else f" of {known['pictures']}"
    intro = (
        f"{count}{rest} pictures; curves of {known['steps']} steps; denoising keeps "
        f"{known['denoise']:g} of the rank; matrix precision {known['precision']}."
    )
    said = [*against_composites(means, tests, known), *over_layers(means, tests, known)]
    name = known["network"]
    figure = f"![Deletion and insertion by layer]({name}/layers.png)"
    points = "\n".join(f"* {sentence}" for sentence in said)
    return "\n".join([f"## {name}\n", intro, "", points, "", figure, "", table(means, known), ""])


def against_composites(means: pl.DataFrame, tests: pl.DataFrame, known: dict) -> list[str]:
    """Whether FG-CAM at the pixels is better than each composite."""
    said = []
    for kind, title in KINDS.items():
        pixels = f"{kind} {PIXELS}"
        for metric in FAITHFUL:
            verdicts = {"better": [], "worse": [], "not different": []}
            for composite in composites(known):
                row = tests.filter(metric=metric, against=pixels, method=composite).row(
                    0, named=True
                )
                verdicts[verdict(row, metric)].append(composite.removeprefix("lrp "))
            parts = [f"{v} than {', '.join(m)}" for v, m in verdicts.items() if m]
            text = "; ".join(parts).replace("not different than", "not different from")
            value = mean(means, pixels, metric)["mean"]
            said.append(f"{title} at the pixels, {metric} {value:.3f}: {text}.")
    return said


def verdict(row: dict, metric: str) -> str:
    """What a test says of the one that others are compared with."""
    if not row["p_holm"] < ALPHA:
        return "not different"
    return "better" if (row["difference"] > 0) == (BETTER[metric] == "lower") else "worse"


def over_layers(means: pl.DataFrame, tests: pl.DataFrame, known: dict) -> list[str]:
    """How far FG-CAM's means are apart over layers."""
    said = []
    for kind, title in KINDS.items():
        names = [f"{kind} {place}" for place in known["places"]]
        for metric in FAITHFUL:
            values = [mean(means, name, metric)["mean"] for name in names]
            low, high = (known["places"][i] for i in (np.argmin(values), np.argmax(values)))
            other = tests.filter(metric=metric, against=names[-1]).filter(
                pl.col("method").is_in(names[:-1]), pl.col("p_holm") < ALPHA
            )
            said.append(
                f"{title} over layers, {metric}: from {min(values):.3f} ({low}) to "
                f"{max(values):.3f} ({high}); {len(other)} of {len(names) - 1} layers differ "
                "from the pixels."
            )
    return said


def mean(means: pl.DataFrame, method: str, metric: str) -> dict:
    """One row of the summary."""
    return means.filter(method=method, metric=metric).row(0, named=True)


def table(means: pl.DataFrame, known: dict) -> str:
    """All means in Markdown, in the order of depth."""
    names = [f"{kind} {place}" for kind in KINDS for place in known["places"]]
    arrows = {"lower": "↓", "higher": "↑"}
    lines = [" | ".join(["map", *(f"{m} {arrows[b]}" for m, b in BETTER.items())])]
    lines.append(" | ".join(["---", *["--:"] * len(BETTER)]))
    for name in [*names, *composites(known)]:
        cells = [name]
        for metric in BETTER:
            row = mean(means, name, metric)
            cells.append(f"{row['mean']:.3f} ({row['low']:.3f}–{row['high']:.3f})")
        lines.append(" | ".join(cells))
    return "\n".join(f"| {line} |" for line in lines)


def figure(means: pl.DataFrame, known: dict) -> Figure:
    """Deletion and insertion from the last layer to the pixels, with LRP's composites."""
    drawn = Figure(figsize=(11, 4.4), layout="constrained")
    axes, x = drawn.subplots(1, 2), np.arange(len(known["places"]))
    for ax, metric in zip(axes, FAITHFUL, strict=True):
        for colour, (kind, title) in zip(("C0", "C1"), KINDS.items(), strict=True):
            rows = [mean(means, f"{kind} {place}", metric) for place in known["places"]]
            low, middle, high = ([row[key] for row in rows] for key in ("low", "mean", "high"))
            ax.plot(x, middle, "o-", color=colour, ms=4, label=title)
            ax.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)
        for i, name in enumerate(composites(known)):
            value = mean(means, name, metric)["mean"]
            ax.axhline(value, color=f"C{i + 2}", ls=("--", ":", "-.")[i % 3], lw=1.4, label=name)
        ax.set_xticks(x, known["places"], rotation=60, ha="right", fontsize=8)
        ax.set_title(f"{metric} ({BETTER[metric]} is better)")
        ax.grid(alpha=0.25)
    handles = axes[0].get_legend_handles_labels()
    drawn.legend(*handles, loc="outside right center", fontsize=8, frameon=False)
    return drawn
