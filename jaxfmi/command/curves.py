"""The picture of mean curves: deletion and insertion of many methods, each of them legible."""

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxfmi.command.methods import CONTROLS, METHODS
from jaxfmi.command.metrics import ARROWS, METRICS

COLOURS = [f"C{i}" for i in range(10) if i != 7]  # the controls are grey
DASHES = ("-", (0, (4, 1.5)), (0, (1, 1)))


def plot(curves: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Mean curves: a row per metric, methods of a layer and others side by side, controls in grey.

    The legends give the area under the mean curve, which is the mean of the areas; the best first.
    """
    metrics = [n for n in METRICS if any(n in found for found in curves.values())]
    layered = {m for m in curves if m in METHODS and (METHODS[m].layered or METHODS[m].fused)}
    others = set(curves) - layered - set(CONTROLS)
    groups = {"methods of a layer": layered, "methods of pixels": others}
    groups = {title: found for title, found in groups.items() if found} or {"controls": set()}
    figure = Figure(figsize=(7.2 * len(groups), 4.6 * len(metrics)), layout="constrained", dpi=110)
    axes = figure.subplots(len(metrics), len(groups), squeeze=False, sharey="row")
    for metric, line in zip(metrics, axes, strict=True):
        for (title, members), ax in zip(groups.items(), line, strict=True):
            _draw(ax, metric, {m: c[metric] for m, c in curves.items() if metric in c}, members)
            ax.set_title(f"{metric}{ARROWS[METRICS[metric].better]}, {title}")
    return figure


def _draw(
    ax: Axes, metric: str, curves: Mapping[str, Mapping[str, Any]], members: Iterable[str]
) -> None:
    def area(name):
        return np.trapezoid(curves[name]["scores"], curves[name]["fractions"])

    best_first = sorted(set(members) & set(curves), key=area)
    if METRICS[metric].better == "higher":
        best_first.reverse()
    styles = [{"ls": dash, "color": colour} for dash in DASHES for colour in COLOURS]
    look = dict(zip(sorted(members), itertools.cycle(styles), strict=False))
    for name in best_first:
        _line(ax, curves[name], f"{area(name):.3f} {name}", lw=1.6, **look[name])
    for i, name in enumerate(n for n in CONTROLS if n in curves):
        style = {"color": "0.6", "lw": 2.2, "ls": DASHES[i % len(DASHES)]}
        _line(ax, curves[name], f"{area(name):.3f} {name}", **style)
    ax.set(xlabel=f"share of pixels, {metric}", ylabel="mean probability", xlim=(0, 1))
    ax.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    ax.grid(alpha=0.25)


def _line(ax: Axes, curve: Mapping[str, Any], label: str, **style) -> None:
    ax.plot(curve["fractions"], curve["scores"], label=label, **style)
