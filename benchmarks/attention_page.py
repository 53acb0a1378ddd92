"""The page that ``lfi_cam.py`` writes of its results: tables, and the pass lines with what came."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from attention_measures import DIFFER
from measure import RESULTS
from scipy import stats

PAGE = RESULTS.parent / "lfi_cam.md"
MEASURES = ("AUC", "energy", "area IoU", "pointing", "IoU")
BOXES = ("box at 0.2", "box at 0.3", "box at 0.5")
MAIN = ("AUC", "energy", "area IoU")
ARMS = ("baseline", "deep", "uniform", "lfi", "abn")
SETTINGS = ("a", "b", "c")
KEPT = {
    "deletion": "low is good",
    "insertion": "high is good",
    "drop": "%, low is good",
    "increase": "%, high is good",
}
OWN = {"baseline": "CAM", "deep": "CAM", "uniform": "A", "lfi": "A", "abn": "A"}
HEAD = """# LFI-CAM, ABN and their controls

Written by `python benchmarks/lfi_cam.py --page` from `results/lfi_cam_*.json`. The arms:
`baseline`, the backbone alone; `deep`, which has LFI-CAM's parameters in series and no attention;
`uniform`, LFI-CAM with all weights 1/C; `lfi`, LFI-CAM; `abn`, with its official two-term loss.
Stems and recipes are the same in all. Weights are those of the last epoch; nothing was selected, on
no split. `untrained` is a network at its start with statistics of twenty batches, `raw` without.

Figures are mean [range] over seeds, and ± half of the 95 % interval (Student's t over seeds, which
with three seeds is wide). `A` is the map a network makes itself, `CAM` that of the class it
predicts; `w = 1/C` and `A = 0` ask the trained LFI-CAM with its weights or its map replaced. All
maps are resized to the picture and scaled to [0, 1] first. `AUC` is that of pixels with average
ranks, `area IoU` that of as many pixels as the object has, `IoU` that above 100/256, `box at t` how
often the box around the largest part of the map above t has an IoU of .5 or more with the object's.
`chance` is a uniform map. None of this tells what the paper's numbers are: its tables were not
available to us.
"""
TITLES = {
    "C1-10": "Digits on textures, ten classes, 24×24, ResNet-8 of width 8",
    "C1-2": "Digits on textures, 5 or more against below, 24×24, ResNet-8 of width 8",
    "C2": "Tiny-ImageNet-20 at 32×32, ResNet-8 of width 8, maps scored at 64×64",
    "C3": "CIFAR-10 (lossy JPEG), 1000 pictures per class, ResNet-8 of width 8",
    "G1": "Tiny-ImageNet-20 at 64×64, ResNet-20",
    "G2": "CIFAR-10 (lossy JPEG), ResNet-20",
    "G3-10": "Digits on textures, ten classes, 32×32, ResNet-8, 20 000 pictures",
    "G3-2": "Digits on textures, 5 or more against below, 32×32, ResNet-8, 20 000 pictures",
}


def write_page() -> None:
    """Write ``lfi_cam.md`` of all results that there are."""
    found = {name: RESULTS / f"lfi_cam_{name}.json" for name in TITLES}
    parts = [section(n, json.loads(p.read_text())) for n, p in found.items() if p.is_file()]
    PAGE.write_text("\n".join([HEAD, *parts]))
    print(f"written to benchmarks/{PAGE.name}: {len(parts)} experiments")


def section(name: str, result: Mapping[str, Any]) -> str:
    """What one experiment came to."""
    lines = [f"## {name}: {TITLES[name]}", ""]
    trained = [run for run in result["runs"] if "environment" in run]
    made = {(r["environment"]["devices"][0], r["environment"]["jax"]) for r in trained}
    where = ", ".join(f"{device}, jax {jax}" for device, jax in sorted(made))
    minutes = sum(r["seconds"] for r in trained) / 60
    lines += [
        f"`python benchmarks/lfi_cam.py {name}`: {len(trained)} runs, {minutes:.0f} min; {where}."
    ]
    if result["left"]:
        lines += ["", f"**Not finished**: {len(result['left'])} runs are left."]
    lines += ["", *accuracies(result)]
    for region in _regions(result):
        lines += ["", f"### On the {region}", "", *places(result, region)]
    lines += ["", "### Deletion and insertion, average drop and increase", "", *areas(result)]
    lines += ["", "### How steady the maps are", "", *steady(result)]
    lines += ["", "### What was asked beforehand", "", *pass_lines(result), ""]
    if result.get("figure"):
        lines += [f"![maps](results/{result['figure']})", ""]
    return "\n".join(lines)


def pick(result: Mapping[str, Any], arm: str, setting: str) -> list[dict[str, Any]]:
    """The runs of an arm at a setting, by seed."""
    runs = [r for r in result["runs"] if (r["arm"], r["setting"]) == (arm, setting)]
    return sorted(runs, key=lambda r: r["seed"])


def told(values: Sequence[float]) -> str:
    """Mean [range] ± half of the interval."""
    values = [v for v in values if np.isfinite(v)]
    if not values:
        return "–"
    if len(values) == 1:
        return f"{values[0]:.3f}"
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
    return f"{np.mean(values):.3f} [{min(values):.3f}–{max(values):.3f}] ±{half:.3f}"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """A table in Markdown."""
    head = list(head)
    return [f"| {' | '.join(r)} |" for r in (head, ["---"] * len(head), *map(list, rows))]


def accuracies(result) -> list[str]:
    """Accuracy of every arm at every setting, and of LFI-CAM with parts replaced."""
    rows = []
    for setting in (*SETTINGS, "untrained"):
        for arm in ARMS:
            runs = pick(result, arm, setting)
            for said in runs[0]["accuracy"] if runs else ():
                values = [r["accuracy"][said] for r in runs]
                even = [r.get("effective channels", np.nan) for r in runs]
                shown = told(even) if said == "own" else ""
                name = arm if said == "own" else f"{arm}, {said}"
                count = f"{runs[0]['parameters']:,}"
                rows.append([setting, name, count, str(len(runs)), told(values), shown])
    rows.append(["chance", "", "", "", f"{1 / result['classes']:.3f}", ""])
    head = ("setting", "arm", "parameters", "seeds", "accuracy", "exp(entropy(w)) / C")
    return table(head, rows)


def gap(result, setting: str, other: str, of: str = "accuracy", region=None) -> np.ndarray:
    """LFI-CAM's figure less that of another arm, seed by seed of those that both have."""
    mine, theirs = ({r["seed"]: r for r in pick(result, arm, setting)} for arm in ("lfi", other))
    seeds = sorted(mine.keys() & theirs.keys())
    one, two = (
        values(result | {"runs": [runs[s] for s in seeds]}, arm, setting, of, region=region)
        for arm, runs in (("lfi", mine), (other, theirs))
    )
    return one - two


def places(result, region: str) -> list[str]:
    """How maps lie on a region."""
    rows, measures = [], (*MEASURES, *(BOXES if region.endswith("box") else ()))
    for setting in (*SETTINGS, "untrained", "raw"):
        for arm in ARMS:
            runs = pick(result, arm, setting)
            for name in runs[0]["maps"] if runs else ():
                values = [[r["maps"][name][region][m] for r in runs] for m in measures]
                rows.append([setting, f"{arm} {name}", *map(told, values)])
    for name, found in result["no net"].items():
        rows.append(["no net", name, *(f"{found[region][m]:.3f}" for m in measures)])
    if region in result["chance"]:
        p = result["chance"][region]
        shares = [f"{v:.3f}" for v in (p, p / (2 - p), p, p)]
        rows.append(["chance", "", "0.500", *shares, *[""] * (len(measures) - len(MEASURES))])
    return table(("setting", "map", *measures), rows)


def areas(result) -> list[str]:
    """Areas under the curves, as shares of the picture's probability, and what the map keeps."""
    rows = []
    for arm in ARMS:
        runs = [r for r in pick(result, arm, SETTINGS[0]) if "curves" in r]
        for name in runs[0]["curves"] if runs else ():
            values = [[r["curves"][name][c] for r in runs] for c in KEPT]
            rows.append([f"{arm} {name}", *map(told, values)])
    return table(("map", *(f"{measure} ({good})" for measure, good in KEPT.items())), rows)


def steady(result) -> list[str]:
    """Likeness of maps of models that differ in seed, setting or both."""
    kinds = ("IoU", "chance", "IoU, both right", "matched", "pearson", "spearman", "row IoU")
    kinds += ("row chance",)
    rows = [[n, *(f"{f[k]:.3f}" for k in kinds)] for n, f in result["steadiness"].items()]
    lines = table(("map, pairs of models", *kinds), rows)
    checks = [(r["seed"], r["sanity"]) for r in result["runs"] if "sanity" in r]
    if checks:
        means = {k: np.mean([s[k] for _, s in checks]) for k in checks[0][1]}
        told_ = "; ".join(f"{k}: {v:.3f}" for k, v in means.items())
        lines += [
            "",
            "Pearson's correlation of LFI-CAM's map A, and of its weights w, with what they are "
            f"when a part has random weights, or when all weights are equal: {told_}.",
        ]
    return [
        *lines,
        "",
        "`row IoU` is the measure of the published figures: disjoint maps reach .19 to .59 by it.",
    ]


def _regions(result) -> list[str]:
    runs = [r for r in result["runs"] if r["maps"]]
    return list(next(iter(runs[0]["maps"].values()))) if runs else []


# The pass lines, fixed before the runs


def pass_lines(result) -> list[str]:
    """Each line and whether it is met, for the first region; strictly of means, with the seeds."""
    region = next(iter(_regions(result)), None)
    lines = [*_accuracy_line(result), *(_place_lines(result, region) if region else ())]
    return [*lines, *_steady_lines(result), *_size_lines(result, region)]


def _said(number: str, text: str, met: bool, why: str) -> str:
    return f"* ({number}) {text}: **{'met' if met else 'not met'}**. {why}"


def values(result, arm, setting, of="accuracy", name=None, region=None) -> np.ndarray:
    """One figure of all seeds of an arm: its accuracy, or a measure of a map."""
    runs = pick(result, arm, setting)
    if of == "accuracy":
        return np.array([r["accuracy"]["own"] for r in runs])
    return np.array([r["maps"][name or OWN[arm]][region][of] for r in runs])


def _there(result, *arms) -> list[str]:
    return [s for s in SETTINGS if all(pick(result, arm, s) for arm in arms)]


def _accuracy_line(result) -> list[str]:
    gaps = {s: gap(result, s, "baseline") for s in _there(result, "lfi", "baseline")}
    if not gaps:
        return []
    why = "; ".join(f"{s}: {told(g)}" for s, g in gaps.items())
    met = all(g.mean() >= -0.01 for g in gaps.values())
    text = "accuracy at least the baseline's less one point"
    return [_said("i", text, met, f"Differences seed by seed, {why}.")]


def _place_lines(result, region: str) -> list[str]:
    why, plain, corrected = [], True, True
    for s in _there(result, "lfi", "abn"):
        for m in MAIN:
            mine = values(result, "lfi", s, m, region=region).mean()
            theirs = values(result, "abn", s, m, region=region).mean()
            turned = values(result, "abn", s, m, "A inverted", region).mean()
            plain, corrected = plain and mine > theirs, corrected and mine > max(theirs, turned)
            apart = told(gap(result, s, "abn", m, region))
            why.append(
                f"{s} {m} {mine:.3f} to {theirs:.3f} (inverted {turned:.3f}), by seed {apart}"
            )
    text = f"map better on the {region} than ABN's, and than ABN's turned the better way"
    lines = [_said("ii", text, plain and corrected, "; ".join(why) + ".")] if why else []
    first = next(iter(_there(result, "lfi", "baseline", "deep")), None)
    if first:
        means = {
            m: {
                a: values(result, a, first, m, region=region).mean()
                for a in ("lfi", "baseline", "deep")
            }
            for m in MEASURES
        }
        won = "; ".join(f"{m}: {max(v, key=v.get)}" for m, v in means.items())
        lines.append(f"* (vi) LFI-CAM's A against the CAM of baseline and deep: {won}.")
    trained = {m: values(result, "lfi", SETTINGS[0], m, region=region) for m in MAIN}
    blank = {m: values(result, "lfi", "untrained", m, region=region) for m in MAIN}
    if all(map(len, blank.values())):
        met = all(trained[m].mean() > blank[m].mean() for m in MAIN)
        why = "; ".join(f"{m} {trained[m].mean():.3f} to {blank[m].mean():.3f}" for m in MAIN)
        text = "trained map above untrained"
        if f"small {region}" in _regions(result):
            centre = result["no net"]["centre"][f"small {region}"]
            own = {
                m: values(result, "lfi", SETTINGS[0], m, region=f"small {region}").mean()
                for m in MAIN
            }
            met, text = (
                met and all(own[m] > centre[m] for m in MAIN),
                f"{text}, and on small boxes above the centre",
            )
            why += "; small boxes: " + "; ".join(
                f"{m} {own[m]:.3f} to {centre[m]:.3f}" for m in MAIN
            )
        lines.append(_said("vii", text, met, f"{why}."))
    return lines


def _steady_lines(result) -> list[str]:
    lines = []
    for kind in DIFFER:
        names = [f"{arm} A, {kind}" for arm in ("lfi", "abn")]
        if not all(n in result["steadiness"] for n in names):
            continue
        lfi, abn = (result["steadiness"][n] for n in names)
        met = lfi["IoU"] > abn["IoU"] and all(f["IoU"] > f["chance"] for f in (lfi, abn))
        why = f"{lfi['IoU']:.3f} to {abn['IoU']:.3f}; less chance "
        why += f"{lfi['IoU'] - lfi['chance']:.3f} to {abn['IoU'] - abn['chance']:.3f}."
        text = f"IoU of models whose {kind} above ABN's, and both above chance"
        lines.append(_said("iii", text, met, why))
    return lines


def _size_lines(result, region: str | None) -> list[str]:
    lines, first = [], SETTINGS[0]
    if pick(result, "lfi", first) and pick(result, "deep", first):
        mine, deep = values(result, "lfi", first), values(result, "deep", first)
        why = f"{told(mine.tolist())} to {told(deep.tolist())}."
        lines.append(
            _said("iv", "accuracy above deep's beyond the seeds", mine.min() > deep.max(), why)
        )
    if pick(result, "lfi", first) and pick(result, "uniform", first):
        figures = ("accuracy", *(MEASURES if region else ()))
        better = [
            f
            for f in figures
            if values(result, "lfi", first, f, region=region).min()
            > values(result, "uniform", first, f, region=region).max()
        ]
        why = (
            f"So in {', '.join(better)}."
            if better
            else "The learned importance is not shown to matter."
        )
        text = "accuracy or place above uniform's beyond the seeds"
        lines.append(_said("v", text, bool(better), why))
    return lines
