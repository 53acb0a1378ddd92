"""Pictures of heatmaps: one on its picture, and many of them side by side."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from jaxfmi.heatmap import overlay, rgb

PERCENTILE = 99.0  #: of |map|, shown in the full colour; a few pixels would else hide the others
LUMA = np.array([0.299, 0.587, 0.114], np.float32)
TILE = 2.1  # inches


def lay(
    picture: np.ndarray, heatmap: np.ndarray, signed: bool = False, full: float | None = None
) -> np.ndarray:
    """Lay a map over a picture so that any method's shows: ``heatmap.overlay``, clipped.

    Maps of gradients have a few values far above all others, which would leave the rest without
    colour. What exceeds the 99th percentile of |map| is therefore shown as if it did not; CAM's
    smooth maps hardly change. Signed maps, red and blue, lie on the picture in pale grey: on its
    own colours they would be lost.

    Args:
      picture: anything that ``heatmap.rgb`` takes, [H, W, 3] or grey.
      heatmap: [h, w] of any size.
      signed: show the map as signed even if none of its values is negative.
      full: the |value| of the full colour, in the place of the percentile.
    """
    if not (signed or np.min(heatmap) < 0):
        return overlay(picture, heatmap, percentile=PERCENTILE, full=full)
    pale = 0.3 + 0.7 * rgb(picture) @ LUMA
    return overlay(pale, heatmap, percentile=PERCENTILE, signed=True, strength=0.9, full=full)


def panel(
    pictures: Sequence[np.ndarray],
    heatmaps: Mapping[str, Sequence[np.ndarray]],
    *,
    captions: Sequence[str] | None = None,
    columns: int = 7,
    path: str | Path | None = None,
    dpi: int = 110,
) -> Figure:
    """Show pictures beside their heatmaps: a row per picture, a column per method, with titles.

    Where there are more than ``columns`` tiles for a picture, its row goes on below.

    Args:
      pictures: anything that ``heatmap.rgb`` takes, [H, W, 3] or grey; sizes may differ.
      heatmaps: for each title, a map [h, w] of any size for every picture.
      captions: titles of the pictures themselves.
      columns: tiles side by side, at most.
      path: a file to write, such as a PNG; None writes none.
      dpi: of the file.

    Raises:
      ValueError: no picture, or a title with another number of maps.
    """
    if not len(pictures):
        raise ValueError("a panel needs at least one picture")
    for title, maps in heatmaps.items():
        if len(maps) != len(pictures):
            raise ValueError(f"{len(maps)} maps of {title!r} for {len(pictures)} pictures")
    signed = {title: any(np.min(m) < 0 for m in maps) for title, maps in heatmaps.items()}
    columns = min(columns, 1 + len(heatmaps))
    lines = -(-(1 + len(heatmaps)) // columns)
    pictures = [rgb(picture) for picture in pictures]
    tallest = max(p.shape[0] / p.shape[1] for p in pictures)
    height = len(pictures) * lines * (TILE * tallest + 0.3)
    figure = Figure(figsize=(TILE * columns, height), layout="constrained", dpi=dpi)
    axes = figure.subplots(len(pictures) * lines, columns, squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    captions = captions or [""] * len(pictures)
    for i, picture in enumerate(pictures):
        tiles = [(captions[i], picture)]
        tiles += [(t, lay(picture, maps[i], signed[t])) for t, maps in heatmaps.items()]
        for ax, (title, tile) in zip(axes[i * lines : (i + 1) * lines].flat, tiles, strict=False):
            ax.imshow(tile)
            ax.set_title(title, fontsize=9)
    if path is not None:
        figure.savefig(path)
    return figure
