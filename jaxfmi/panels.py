"""Pictures of similarities: what is compared, with the maps of both sides.

Maps in one row of a panel have one scale, so that a weak match looks weak: scaled one by one, the
worst match of a gallery would look as strong as the best.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from jaxfmi.heatmap import rgb
from jaxfmi.report import PERCENTILE, TILE, lay

Pictures = Sequence[np.ndarray]
RIGHT, WRONG = "#1a7f37", "#b42318"


def joint(heatmaps: Sequence[np.ndarray]) -> tuple[float, bool]:
    """The scale that maps share: the |value| of the full colour, and whether they are signed."""
    values = np.concatenate([np.ravel(m) for m in heatmaps])
    if not np.isfinite(values).all():
        raise ValueError("heatmaps of a panel have values that are NaN or infinite")
    full = np.percentile(np.abs(values), PERCENTILE) or np.abs(values).max() or 1.0
    return float(full), bool(values.min() < 0)


def overlays(pictures: Pictures, heatmaps: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Lay maps over pictures, all on one scale."""
    full, signed = joint(heatmaps)
    return [lay(p, m, signed, full) for p, m in zip(pictures, heatmaps, strict=True)]


def retrieval_panel(
    query: np.ndarray,
    found: Pictures,
    query_maps: Sequence[np.ndarray],
    found_maps: Sequence[np.ndarray],
    scores: Sequence[float],
    *,
    caption: str = "query",
    labels: Sequence[str] | None = None,
    correct: Sequence[bool] | None = None,
    path: str | Path | None = None,
    dpi: int = 110,
) -> Figure:
    """Show a query and its best partners, a column each, with the maps of both sides.

    Rows: the partners, their maps, and the query's map for each. Each row of maps has one scale.

    Args:
      query: anything that ``heatmap.rgb`` takes, [H, W, 3] or grey.
      found: the partners' pictures, best first; sizes may differ.
      query_maps: a map [h, w] of any size on the query for each partner.
      found_maps: a map on each partner.
      scores: similarities.
      caption: title of the query.
      labels: names of the partners.
      correct: whether each is what was looked for; colours its title.
      path: a file to write, such as a PNG; None writes none.
      dpi: of the file.

    Raises:
      ValueError: no partner, or other numbers of maps, scores or labels than of partners.
    """
    _same_length(found, maps=query_maps, partner_maps=found_maps, scores=scores)
    labels = _labels(labels, len(found), "")
    rows = [
        [rgb(p) for p in found],
        overlays(found, found_maps),
        overlays([query] * len(found), query_maps),
    ]
    lead = [rgb(query), None, None]
    figure, axes = _grid([[rgb(query), *rows[0]], *rows[1:]], 1 + len(found), dpi)
    for i, (first, row) in enumerate(zip(lead, rows, strict=True)):
        _fill(axes[i], [first, *row])
    axes[0][0].set_title(caption, fontsize=9)
    for i, score in enumerate(scores):
        colour = "black" if correct is None else RIGHT if correct[i] else WRONG
        title = f"{i + 1}. {labels[i]} {score:.3g}".replace("  ", " ")
        axes[0][1 + i].set_title(title, fontsize=9, color=colour)
    for row, text in zip(axes[1:], ("map on the partner", "map on the query"), strict=True):
        row[0].text(1, 0.5, text, ha="right", va="center", fontsize=9, wrap=True)
    return _finish(figure, path)


def episode_panel(
    supports: Sequence[Pictures],
    query: np.ndarray,
    query_maps: Sequence[np.ndarray],
    scores: Sequence[float],
    *,
    support_maps: Sequence[Sequence[np.ndarray]] | None = None,
    shares: Sequence[Sequence[float]] | None = None,
    labels: Sequence[str] | None = None,
    truth: int | None = None,
    path: str | Path | None = None,
    dpi: int = 110,
) -> Figure:
    """Show an N-way K-shot episode: a row per class, its supports, and the query's map for it.

    The query's maps share one scale, and so do the supports' maps.

    Args:
      supports: for each of N classes its K pictures; K may differ.
      query: the query's picture.
      query_maps: a map [h, w] of any size on the query for each class.
      scores: of the query for each class; the best is the prediction.
      support_maps: maps on the supports, such as those of ``support_shares``.
      shares: each support's share of its class's score.
      labels: names of the classes.
      truth: the query's class; colours the prediction.
      path: a file to write, such as a PNG; None writes none.
      dpi: of the file.

    Raises:
      ValueError: no class, a class without support, or numbers that do not fit together.
    """
    _same_length(supports, maps=query_maps, scores=scores)
    if empty := [i for i, each in enumerate(supports) if not len(each)]:
        raise ValueError(f"the support set of class {empty[0]} is empty")
    labels = _labels(labels, len(supports), "class ")
    shown = [[rgb(p) for p in each] for each in supports]
    for what, parts in (("support maps", support_maps), ("shares", shares)):
        if parts is not None and [*map(len, parts)] != [*map(len, supports)]:
            there = f"{[*map(len, supports)]} supports"
            raise ValueError(f"{[*map(len, parts)]} {what} for classes of {there}")
    if support_maps is not None:
        flat = overlays([p for s in supports for p in s], [m for s in support_maps for m in s])
        shown = [[flat.pop(0) for _ in each] for each in supports]
    shots, best = max(map(len, shown)), int(np.argmax(scores))
    maps = overlays([query] * len(supports), query_maps)
    figure, axes = _grid([[*s, rgb(query)] for s in shown], shots + 2, dpi)
    for i, row in enumerate(axes):
        _fill(row, [*shown[i], *[None] * (shots - len(shown[i])), maps[i], None])
        row[0].set_title(labels[i], fontsize=9)
        for ax, part in zip(row, shares[i] if shares is not None else (), strict=False):
            ax.text(0.5, -0.02, f"{part:.2f}", transform=ax.transAxes, ha="center", va="top")
        colour = "black" if i != best or truth is None else RIGHT if truth == best else WRONG
        bold = "bold" if i == best else "normal"
        row[shots].set_title(f"score {scores[i]:.3g}", fontsize=9, color=colour, weight=bold)
    axes[0][-1].imshow(rgb(query))
    axes[0][-1].set_title("query" if truth is None else f"query: {labels[truth]}", fontsize=9)
    return _finish(figure, path)


def _same_length(found: Sequence, **others: Sequence) -> None:
    if not len(found):
        raise ValueError("a panel needs at least one partner or class")
    for what, values in others.items():
        if len(values) != len(found):
            raise ValueError(f"{len(values)} {what.replace('_', ' ')} for {len(found)} pictures")


def _labels(labels: Sequence[str] | None, count: int, name: str) -> Sequence[str]:
    if labels is None:
        return [f"{name}{i + 1}" if name else "" for i in range(count)]
    if len(labels) != count:
        raise ValueError(f"{len(labels)} labels for {count} pictures")
    return labels


def _grid(rows: Sequence[Sequence[np.ndarray]], columns: int, dpi: int):
    """A figure with an axis for every tile, each row as high as its tallest tile."""
    heights = [max(t.shape[0] / t.shape[1] for t in row) for row in rows]
    size = (TILE * columns, TILE * sum(heights) + 0.3 * len(rows))
    figure = Figure(figsize=size, layout="constrained", dpi=dpi)
    axes = figure.subplots(len(rows), columns, squeeze=False, height_ratios=heights)
    for ax in axes.flat:
        ax.set_axis_off()
    return figure, axes


def _fill(axes, tiles: Sequence[np.ndarray | None]) -> None:
    for ax, tile in zip(axes, tiles, strict=True):
        if tile is not None:
            ax.imshow(tile)


def _finish(figure: Figure, path: str | Path | None) -> Figure:
    if path is not None:
        figure.savefig(path)
    return figure
