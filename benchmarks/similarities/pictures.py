"""A picture of examples: a row for each, with all maps laid over it."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from similarities.maps import NAMES

LEFT_OUT = ("centre", "random")


def write(path: Path, images: np.ndarray, maps: dict[str, np.ndarray], titles: list[str]) -> None:
    """Draw pictures uint8 [n, H, W, C] and maps [n, h, w], each map scaled by its max |value|."""
    names = [name for name in NAMES if name in maps and name not in LEFT_OUT]
    height, width = images.shape[1:3]
    shape = (1.5 * (len(names) + 1) * max(width / height, 0.8), 1.7 * len(images))
    figure, axes = plt.subplots(len(images), len(names) + 1, figsize=shape, squeeze=False)
    for row, image, title, i in zip(axes, images, titles, range(len(images)), strict=True):
        grey = image.mean(-1)
        row[0].imshow(image if image.shape[-1] == 3 else grey, cmap="gray_r")
        row[0].set_ylabel(title, fontsize=7)
        for axis, name in zip(row[1:], names, strict=True):
            heatmap = maps[name][i]
            limit = np.abs(heatmap).max() or 1
            box = {"extent": (0, width, height, 0)}
            axis.imshow(grey, cmap="gray" if image.shape[-1] == 3 else "gray_r", **box)
            axis.imshow(heatmap, cmap="RdBu_r", vmin=-limit, vmax=limit, alpha=0.6, **box)
    for axis, name in zip(axes[0], ["picture", *names], strict=True):
        axis.set_title(name, fontsize=8)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    figure.tight_layout(pad=0.3)
    figure.savefig(path, dpi=80, pil_kwargs={"quality": 80})
    plt.close(figure)
