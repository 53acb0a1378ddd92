"""What explainers share: their shape, the checks of their input, and the way to a layer.

An explainer is a function transform, shaped like ``jax.grad``:
``method(score, layer, **options)(x, *args) -> heatmap``, one image at a time. The batch is
``jax.vmap`` and the compilation is ``jax.jit``.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Concatenate, Literal, ParamSpec

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxfmi import taps

Score = Callable[..., jax.Array]
"""``(x [H, W, C], *args) -> scalar``: all that an explainer knows about a model."""

Explainer = Callable[..., Any]
"""``(x [H, W, C], *args) -> heatmap [H, W]``, or a list of heatmaps for a list of layers."""

Layers = str | Sequence[str]
"""A tag, several tags, or ``"auto"``: the last spatial activation."""

Size = Literal["input"] | tuple[int, ...] | None
"""Size of the heatmap: that of the input, a given one, or None for that of the layer."""

P = ParamSpec("P")
CHECK = "_jaxfmi_check"  # attribute of a function: called with its arguments, it raises on bad ones
LOGITS = "_jaxfmi_logits"  # attribute of a class score: x [H, W, C] -> logits
FORM = "_jaxfmi_form"  # attribute of a score whose form was left open: form -> score
HW = (-3, -2)  # the spatial axes of an activation [h, w, K]


def explainer(
    method: Callable[Concatenate[Score, P], Explainer],
) -> Callable[Concatenate[Score, P], Explainer]:
    """Decorate a method so that bad input is an error that says what is wrong with it."""

    @functools.wraps(method)
    def checked_method(score: Score, *args: P.args, **options: P.kwargs) -> Explainer:
        explain, check = method(scalar(score), *args, **options), getattr(score, CHECK, accept)

        @functools.wraps(explain)
        def checked(x, *args, **kwargs):
            x = check_image(x)
            check(x, *args)
            return explain(x, *args, **kwargs)

        checked.__name__ = checked.__qualname__ = method.__name__
        setattr(checked, CHECK, check)
        return checked

    return checked_method


def check_image(x) -> jax.Array:
    """One image [H, W, C] of finite floats, or an error.

    Raises:
      ValueError: another rank, not floating point, or (outside ``jit``) NaN or infinite values.
    """
    x = jnp.asarray(x)
    if x.ndim != 3:
        raise ValueError(
            f"expected one image [H, W, C], got an array of shape {x.shape}"
            + ("; use jaxfmi.batched or jax.vmap for a batch" if x.ndim == 4 else "")
        )
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"expected a float image, got {x.dtype}; preprocess it for the model")
    check_finite(x, "the image")
    return x


def check_finite(x, what: str) -> None:
    """Raise a ValueError if an array whose values are known holds NaN or infinity."""
    if not isinstance(x, Tracer) and not (finite := np.isfinite(x)).all():
        raise ValueError(f"{what} has {np.size(x) - finite.sum()} values that are NaN or infinite")


def accept(*args) -> None:
    """Accept any arguments: the check of a function that brings none."""


def asked(score: Score, of: Callable[..., jax.Array]) -> Score:
    """The score in the form that a method asks for, such as ``probability``.

    Only where the user left the form open (``batched`` and the command line do, unless told which);
    another score is what it is.
    """
    return scalar(getattr(score, FORM)(of)) if hasattr(score, FORM) else score


def scalar(score: Score) -> Score:
    """Wrap a score so that it raises a ValueError where it gives no single number."""

    @functools.wraps(score)
    def checked(*args):
        try:
            y = score(*args)
        except Exception as error:
            if not type(error).__module__.startswith("flax."):
                raise
            raise ValueError(
                f"the model cannot be explained as it is: {str(error).split(' (http')[0]}; call "
                "model.eval() first, and make its score with jaxfmi.class_score(model)"
            ) from error
        if shape := jnp.shape(y):
            raise ValueError(
                f"a score is one number per image, this one has shape {shape}; pick a class, "
                "e.g. with jaxfmi.class_score(model)"
            )
        return y

    return checked


def layer_names(score: Score, layer: Layers, x, *args) -> list[str]:
    """Resolve ``"auto"`` to the last spatial activation, and one name to a list of one.

    Raises:
      ValueError: no layer is asked for; or ``"auto"``, and no tagged value [h, w, K] has both h
        and w above 1.
    """
    names = [layer] if isinstance(layer, str) else list(layer or ())
    if not names:
        raise ValueError(f"expected a layer's name, several, or 'auto'; got {layer!r}")
    if "auto" not in names:
        return names
    found = taps.tags(score, x, *args)
    spatial = [n for n, s in found.items() if len(_hwk(s)) == 3 and min(_hwk(s)[:2]) > 1]
    if not spatial:
        there = taps.inventory(score, x, *args)
        raise ValueError(f"layer='auto' needs a tagged activation [h, w, K]; {there}")
    return [spatial[-1] if name == "auto" else name for name in names]


def one_layer(score: Score, layer: str, x, *args) -> str:
    """Resolve the layer of a method that explains one at a time."""
    if not isinstance(layer, str):
        raise ValueError(f"this method explains one layer, given by its name; got {layer!r}")
    return layer_names(score, layer, x, *args)[0]


def resolve_size(size: Size, x: jax.Array) -> tuple[int, ...] | None:
    """Give the heatmap's (H, W), or None for the layer's own.

    Raises:
      ValueError: not ``"input"``, None or two numbers of at least 1.
    """
    if size == "input":
        return x.shape[:2]
    if size is None or (isinstance(size, tuple) and len(size) == 2 and min(size) > 0):
        return size
    raise ValueError(f"the size of a heatmap is 'input', (H, W), or None; got {size!r}")


def per_layer(explain_layers: Callable[..., list], layer: Layers) -> Explainer:
    """Turn ``explain_layers(x, *args) -> list`` into an explainer: one map for one layer."""

    def explain(x, *args, **kwargs):
        maps = explain_layers(x, *args, **kwargs)
        return maps[0] if isinstance(layer, str) else maps

    return explain


def activation(score: Score, name: str, x, *args) -> jax.Array:
    """Give the activation [h, w, K] at a tag, in float32 or wider."""
    return spatial(name, taps.capture(score, name)(x, *args)[1][name])


def head(score: Score, name: str, x, *args) -> Callable[[jax.Array], jax.Array]:
    """Give the score as a function of the activation [h, w, K] at a tag.

    Skips around the layer are kept; under ``jit`` what only led to the layer is not computed.
    """
    return lambda a: taps.edit(score, {name: lambda old: a.reshape(old.shape)})(x, *args)


def activations_and_gradients(
    score: Score, names: Sequence[str], x, *args
) -> tuple[list[jax.Array], list[jax.Array]]:
    """Give the activations [h, w, K] at tags and the score's gradients there.

    One forward and one backward pass for all layers: the gradients are those with respect to
    zeros added at every tag, and the backward pass ends at the shallowest of them.
    """

    def shifted(deltas):
        edits = {name: functools.partial(jnp.add, delta) for name, delta in deltas.items()}
        return taps.capture(taps.edit(score, edits), *names)(x, *args)

    shapes = jax.eval_shape(taps.capture(score, *names), x, *args)[1]
    zeros = {name: wide(jnp.zeros(s.shape, s.dtype)) for name, s in shapes.items()}
    grads, found = jax.grad(shifted, has_aux=True)(zeros)
    return [spatial(n, found[n]) for n in names], [spatial(n, grads[n]) for n in names]


def spatial(name: str, a: jax.Array) -> jax.Array:
    """Give a tagged value as [h, w, K], in float32 or wider, or raise a ValueError."""
    if len(shape := _hwk(a.shape)) != 3 or (a.ndim == 3 and a.shape[0] == 1):
        raise ValueError(
            f"layer {name!r} has shape {a.shape}; expected an activation [h, w, K], with a leading "
            "batch axis of 1 or none; tokens [1, h w, K] have to be reshaped before they are tagged"
        )
    return wide(a.reshape(shape))


def _hwk(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Drop a leading batch axis of 1."""
    return shape[1:] if len(shape) == 4 and shape[0] == 1 else shape


def wide(a: jax.Array) -> jax.Array:
    """Give an array in float32 or wider, whatever the model computes in."""
    return a.astype(jnp.promote_types(a.dtype, jnp.float32))


def check_key(key: jax.Array | None, name: str) -> jax.Array:
    """Give the key of something random back, or raise a ValueError if there is none."""
    if key is None:
        raise ValueError(f"{name} is random: call it with key=jax.random.key(seed)")
    return key
