"""The page of what came out, written from the results and from nothing else."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from similarities import cifar, omniglot, tiny
from similarities.maps import NAMES

TRAINED = (
    f"Networks are trained for {omniglot.EPISODES} (A) and {tiny.EPISODES} (B) episodes and "
    f"{cifar.EPOCHS} epochs (C), as long as an experiment may take 15 minutes on two cores."
)
TITLES = {
    "A": "A. ProtoNet on Omniglot, characters that were not trained on",
    "B": "B. ProtoNet on Tiny-ImageNet, classes that were not trained on",
    "C": "C. SimCLR on CIFAR-10",
    "D": "D. Retrieval with MobileNetV1 0.75",
}
SEVERAL = {  # tests with more than one object in the picture
    "A": ("two characters",),
    "B": ("two objects",),
    "C": ("mosaic, mirrored tile", "mosaic, nearest picture", "mosaic, class mean"),
    "D": ("mosaic",),
}
SINGLE = {"B": ("boxes", "maps"), "D": ("Tiny-ImageNet", "maps, query")}
FAM = ("complete", "contribution", "centred", "margin")
OMNIGLOT = """Published figures for the 20 official runs: people about .955, a convolutional Siamese
network about .92 (recalled; Lake et al., 2015; Koch et al., 2015). Those were trained on the full
background set of 964 characters, the network here on 136: not the same task."""


def write(results: Path, page: Path) -> None:
    """Write the page from what results there are."""
    found = {}
    for letter in TITLES:
        path = results / f"similarity_{letter}.json"
        if path.is_file():
            found[letter] = json.loads(path.read_text())
    if not found:
        return
    parts = [opening(found), verdict(found)]
    parts += [experiment(letter, content) for letter, content in found.items()]
    page.write_text("\n\n".join(parts) + "\n")
    print(f"written to benchmarks/{page.name}")


def opening(found: dict[str, Any]) -> str:
    """What is measured, where, and how to read the tables."""
    lines = [
        "# Which map explains a similarity?",
        "",
        "Written by `similarity.py` from the results.",
    ]
    for letter, content in found.items():
        where = content["environment"]
        device = ", ".join(sorted(set(where["devices"])))
        lines.append(f"{letter}: {content['seconds']:.0f} s on {device}, jax {where['jax']}.")
    lines.append(TRAINED)
    return (
        "\n".join(lines)
        + """

Figures are means with the bootstrap's 95 % interval over pictures, or over episodes where
these share pictures; `score` and `missing` are means alone. `peak`: the map's highest point is in
the region; `energy`: the share of its
positive part that is there; `heavier`: more than half of that is; `border`: the peak is on the
picture's border; `same other`, `same random`, `same same`: Spearman's correlation of the map with
the map of the same picture for a partner of another class, drawn at random, or of the same class:
1 where a map does not depend on its partner (the margin's two classes change places, which turns
the sign of its map: -1 says nothing there); partners are changed for about 100 pictures of a test,
evenly spaced. `score` and `missing`: the mean of what a map explains,
and of what its total is away from it. Deletion (low is good) and insertion (high is good)
are areas under the similarity, where 1 is that of the whole picture and 0 that of the blurred one
(in A: without ink). `recall@1` is of all pictures: of ImageNet's 400, only 139 have another of
their class among them. SBSM asks for a forward pass for every window, of which a square picture has
about 100 and one of two parts 200. It explains fewer pictures, evenly spaced (the column
`pictures`), the first 100 pairs of crops and, for D's recall, the first 30 pictures. The overall
activation map of Zhu et al., unclipped, is FAM's complete one here, where embeddings are
averages."""
    )


def verdict(found: dict[str, Any]) -> str:
    """What the figures say, in sentences made from them."""
    lines = ["## What came out", ""]
    for letter, tests in SEVERAL.items():
        for test in tests if letter in found else ():
            lines.append(f"* {letter}, {test}: {ordered(found[letter][test]['maps'], 'peak')}.")
    for letter, (test, maps) in SINGLE.items():
        if letter in found:
            lines.append(
                f"* {letter}, one object in a box: {ordered(found[letter][test][maps], 'peak')}."
            )
    lines += ["", *recommendations(found), *faithfulness(found)]
    return "\n".join(lines)


def ordered(maps: dict[str, Any], measure: str) -> str:
    """The methods by a measure, best first."""
    values = {name: maps[name][measure][0] for name in NAMES if maps.get(name, {}).get(measure)}
    names = sorted(values, key=lambda name: -(values[name] or 0))
    counts = {name: maps[name].get("pictures", 0) for name in names}
    few = {n: f" (of {count})" for n, count in counts.items() if count < max(counts.values()) / 2}
    return ", ".join(f"{name} {number(values[name])}{few.get(name, '')}" for name in names)


def recommendations(found: dict[str, Any]) -> list[str]:
    """Which form for what, by the means over the tests."""
    several = [found[k][t]["maps"] for k, tests in SEVERAL.items() if k in found for t in tests]
    single = [found[k][t][m] for k, (t, m) in SINGLE.items() if k in found]
    return [*(among_several(several) if several else ()), *(alone(single) if single else ())]


def among_several(tests: list[dict[str, Any]]) -> list[str]:
    """Which form finds the partner's part of a picture."""
    peak = {name: mean(tests, name, "peak") for name in NAMES}
    swap = {name: number(mean(tests, name, "same other")) for name in NAMES}
    best = max(FAM, key=lambda name: peak[name])
    without = ", or `centred` where there is no rival" if best == "margin" else ""
    return [
        "**Several things in the picture.** Which of them is the partner's? Over these tests the "
        f"peak of `{best}` is right in {number(peak[best])}, that of plain FAM (`complete`) in "
        f"{number(peak['complete'])}, of LaFAM, which knows no partner, in "
        f"{number(peak['lafam'])}, of Grad-CAM on the cosine in {number(peak['grad_cam'])}. When "
        "another of the things is the partner instead, the new map and the old one are correlated "
        f"by {swap['complete']} for `complete`, by {swap['contribution']} for `contribution`, by "
        f"{swap['centred']} for `centred` and by {swap['grad_cam']} for Grad-CAM. "
        f"Recommended: `{best}`{without}."
    ]


def alone(tests: list[dict[str, Any]]) -> list[str]:
    """Which form finds the one object of a picture."""
    peak = {name: mean(tests, name, "peak") for name in NAMES}
    best = max(FAM, key=lambda name: peak[name])
    as_good = [n for n in ("lafam", "centre", "self") if peak[n] >= peak[best]]
    named = ", ".join(f"`{name}` ({number(peak[name])})" for name in as_good)
    rest = (
        f"no worse without a partner: {named}. The box of a single object does not tell whether "
        "a similarity is explained"
        if as_good
        else "every map without a partner is worse"
    )
    return [
        "",
        f"**One thing in the picture.** The best form of FAM is `{best}` ({number(peak[best])}; "
        f"random {number(peak['random'])}); {rest}. Recommended where the total has to be the "
        "similarity itself: `complete`.",
    ]


def faithfulness(found: dict[str, Any]) -> list[str]:
    """What deletion and insertion say, over all experiments and sides."""
    tests = {letter: curves(content) for letter, content in found.items()}
    every = [test for some in tests.values() for test in some]
    if not every:
        return []
    low, high = (
        {name: mean(every, name, measure) for name in NAMES if mean(every, name, measure)}
        for measure in ("deletion", "insertion")
    )
    better = [
        f"{'better' if sign * (values['centred'] - values['complete']) > 0 else 'no better'} by "
        f"{what} ({number(values['centred'])} to {number(values['complete'])})"
        for what, values, sign in (("deletion", low, -1), ("insertion", high, 1))
    ]
    odd = [
        letter
        for letter, some in tests.items()
        if some and all(t["random"]["deletion"][0] <= t["complete"]["deletion"][0] for t in some)
    ]
    grain = (
        f" In {' and '.join(odd)} the random map, which is of single pixels, deletes better than "
        "any: what is taken away in specks leaves nothing that the network knows. Only maps of one "
        "grain can be compared by these areas."
        if odd
        else ""
    )
    return [
        "",
        f"**Deletion and insertion.** Means over {len(every)} tests: deletion (low is good) "
        f"{listed(low)}; insertion (high is good) {listed(high, -1)}. The contrast of `centred` is "
        f"{' and '.join(better)} than plain FAM.{grain}",
    ]


def curves(content: dict[str, Any]) -> list[dict[str, Any]]:
    """All tables of deletion and insertion in what an experiment found."""
    if not isinstance(content, dict):
        return []
    if "deletion" in content.get("complete", ()):
        return [content]
    return [table for inner in content.values() for table in curves(inner)]


def listed(values: dict[str, float], sign: int = 1) -> str:
    """Names with their values, least first; with ``sign`` -1 greatest first."""
    names = sorted(values, key=lambda name: sign * values[name])
    return ", ".join(f"{name} {number(values[name])}" for name in names)


def mean(tests: list[dict[str, Any]], name: str, measure: str) -> float:
    """The mean of a method's means over tests."""
    values = [maps[name][measure][0] for maps in tests if maps.get(name, {}).get(measure)]
    return float(np.mean([v for v in values if v is not None] or [np.nan]))


def experiment(letter: str, content: dict[str, Any]) -> str:
    """All tables of one experiment."""
    parts = [f"## {TITLES[letter]}"]
    for name, test in content.items():
        if name not in ("environment", "seconds"):
            parts.append(f"### {name.capitalize()}" if name[0].islower() else f"### {name}")
            parts += sections(test)
            if letter == "A" and name == "network":
                parts.append(OMNIGLOT)
    folder = Path(__file__).parents[1] / "figures"
    pictures = sorted(p.name for p in folder.glob(f"similarity_{letter}_*.jpg"))
    return "\n\n".join(parts + [f"![examples](figures/{name})" for name in pictures])


def sections(test: dict[str, Any], title: str = "") -> list[str]:
    """Tables for what is nested, lines for what is a number."""
    plain = {k: v for k, v in test.items() if not isinstance(v, dict)}
    nested = {k: v for k, v in test.items() if isinstance(v, dict)}
    parts = [f"{title}:"] if title else []
    if plain:
        parts.append("\n".join(f"* {k}: {value(v)}" for k, v in plain.items()))
    if nested and set(nested) <= set(NAMES):
        return [*parts[:1], table(nested)] if title else [table(nested)]
    for name, inner in nested.items():
        parts += sections(inner, name)
    return parts


def table(rows: dict[str, dict[str, Any]]) -> str:
    """One row for each map."""
    columns = list(dict.fromkeys(c for row in rows.values() for c in row))
    if "peak" in columns:  # completeness has a table of its own
        columns = [c for c in columns if c not in ("score", "missing")]
    lines = ["| map | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, row in rows.items():
        cells = [value(row[c]) if c in row else "" for c in columns]
        lines.append(f"| {NAMES[name]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def value(v: Any) -> str:
    """A mean with its interval, or a number."""
    if isinstance(v, list):
        return "" if v[0] is None else f"{number(v[0])} ({number(v[1])} to {number(v[2])})"
    return number(v)


def number(v: Any) -> str:
    """Three digits at the most."""
    if v is None or isinstance(v, int | str):
        return "" if v is None else str(v)
    text = f"{v:.2f}" if abs(v) >= 0.01 or v == 0 else f"{v:.1g}"
    return text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text
