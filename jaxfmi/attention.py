"""The map that a network makes for itself, and uses, as LFI-CAM and ABN do.

Nothing is explained after the fact: the map is a value in the forward pass, tagged "attention" in
the networks of ``jaxfmi.models``. It knows no class: it is the same for every label.
"""

from jaxfmi import taps
from jaxfmi.bilinear import resize
from jaxfmi.explainer import Explainer, Score, Size, explainer, resolve_size, spatial


@explainer
def attention(score: Score, layer: str = "attention", *, size: Size = "input") -> Explainer:
    """Read the map that a network computes itself: its own values, only resized.

    From one forward pass. Resized bilinearly with half-pixel centres, which in general lowers the
    maximum; nothing else is done to it. LFI-CAM's map has minimum 0 and maximum 1, ABN's is a
    sigmoid. ABN's can be inverted, low on what counts.

    Args:
      score: ``(x [H, W, C], *args) -> scalar``; a class among ``args`` changes nothing.
      layer: tag of the map, [h, w], [h, w, 1] or [1, h, w, 1].
      size: of the heatmap; None for the map's own.

    Raises:
      ValueError: the network has no such tag, or its value is no single map.
    """

    def explain(x, *args):
        if layer not in (there := taps.tags(score, x, *args)):
            raise ValueError(
                f"no tag {layer!r}{taps.suggestion(layer, there)}: this network makes no map of "
                "its own by that name, as those of LFI-CAM and ABN do; "
                + taps.inventory(score, x, *args)
            )
        a = taps.capture(score, layer)(x, *args)[1][layer]
        a = spatial(layer, a[..., None] if a.ndim == 2 else a)
        if a.shape[-1] != 1:
            raise ValueError(f"layer {layer!r} has shape {a.shape}; expected one map [h, w, 1]")
        return resize(a[..., 0], resolve_size(size, x))

    return explain


@explainer
def lfi_cam(score: Score, *, size: Size = "input") -> Explainer:
    """LFI-CAM (Lee, Park, Oh and Kwak, 2021): the map that such a network attends by.

    ``attention`` at the tag "attention", which is ABN's (Fukui et al., 2019) too. The network is
    what makes the method: ``jaxfmi.models.lfi_cam`` says how.

    Raises:
      ValueError: the network has no tag "attention".
    """
    return attention(score, size=size)
