"""Slow, plain twins of the metrics that hold sums of the map against changes of the score.

Numpy and loops in float64, apart from the library. What the library draws at random is an argument:
subsets [S,H,W] bool, True where a pixel goes to the baseline, or perturbations [S,H,W,C].
"""

import numpy as np
from reference_metrics import Baseline, replace
from reference_similarity import pearson, spearman


def sums_and_drops(f, x, heatmap, subsets, baseline: Baseline) -> tuple[list, list]:
    sums = [heatmap[subset].sum() for subset in subsets]
    drops = [f(x) - f(replace(x, subset, baseline)) for subset in subsets]
    return sums, drops


def sensitivity_n(f, x, heatmap, subsets, baseline: Baseline = 0.0) -> float:
    """Pearson correlation of the map's sum over a subset and the drop. Ancona et al. 2018."""
    return pearson(*sums_and_drops(f, x, heatmap, subsets, baseline))


def cells(subsets, size: tuple[int, int]) -> np.ndarray:
    """Subsets of grid cells [S,g,g] as pixels [S,H,W]: the cell in which a pixel's centre lies."""
    g = subsets.shape[1]
    rows, columns = (((np.arange(n) + 0.5) * g / n).astype(int) for n in size)
    return subsets[:, rows][:, :, columns]


def mu_fidelity(f, x, heatmap, subsets, baseline: Baseline = 0.0) -> float:
    """Spearman correlation over subsets of grid cells [S,g,g]; 0 where it is not defined.

    Bhatt et al. 2020, with Xplique's conventions.
    """
    pixels = cells(subsets, heatmap.shape)
    return spearman(*sums_and_drops(f, x, heatmap, pixels, baseline))


def infidelity(f, x, heatmap, perturbations, normalize: bool = False) -> float:
    """mean (I . phi - (f(x) - f(x - I)))^2, phi the map, the same in every channel.

    Yeh et al. 2019; `normalize` scales phi by the least-squares factor, as Captum does.
    """
    dots = np.array([(i * heatmap[:, :, None]).sum() for i in perturbations])
    drops = np.array([f(x) - f(x - i) for i in perturbations])
    if normalize and (dots**2).sum() > 0:
        dots = dots * (dots * drops).sum() / (dots**2).sum()
    return float(((dots - drops) ** 2).mean())
