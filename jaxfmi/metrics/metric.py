"""What metrics share: their shape, and the checks of what they are given.

A metric of faithfulness is a function transform, shaped like an explainer:
``metric(score, **options)(x, heatmap, *args[, key]) -> value``, for one image. The batch is
``jax.vmap`` or ``jaxfmi.batched``. A metric that asks no model is a plain function of the heatmap.
"""

import functools
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec

import jax
import jax.numpy as jnp

from jaxfmi.explainer import CHECK, Score, accept, check_finite, check_image, scalar, wide

Metric = Callable[..., Any]
"""``(x [H, W, C], heatmap [H, W], *args[, key]) -> value``, or a tuple of values."""

P = ParamSpec("P")


def metric(
    method: Callable[Concatenate[Score, P], Metric],
) -> Callable[Concatenate[Score, P], Metric]:
    """Decorate a metric so that bad input is an error that says what is wrong with it."""

    @functools.wraps(method)
    def checked_method(score: Score, *args: P.args, **options: P.kwargs) -> Metric:
        measure = method(scalar(score), *args, **options)
        in_pixels = options.get("layer") is None  # else the map has the layer's size
        return with_checks(measure, method.__name__, score, in_pixels)

    return checked_method


def part(whole: Callable[P, Metric], field: str, name: str) -> Callable[P, Metric]:
    """Make the metric ``name`` that gives one field of another, and has that one's signature."""

    @functools.wraps(whole)
    def method(*args: P.args, **options: P.kwargs) -> Metric:
        measure = whole(*args, **options)
        return functools.wraps(measure)(lambda *a, **key: getattr(measure(*a, **key), field))

    method.__name__ = method.__qualname__ = name
    method.__doc__ = f"""The ``{field}`` of ``{whole.__name__}``, with its options and arguments."""
    return method


def with_checks(
    measure: Metric, name: str, asked: Callable[..., Any], in_pixels: bool = True
) -> Metric:
    """Give a metric its name and the checks of its input; ``asked`` is its score or explainer.

    They also see a whole batch before it is compiled: the map may be a stack there. A metric with a
    check of its own carries it as the attribute ``CHECK``.
    """
    check_arguments, check_own = getattr(asked, CHECK, accept), getattr(measure, CHECK, accept)

    def check(x, heatmap, *args):
        first = heatmap[0] if jnp.ndim(heatmap) == 3 else heatmap  # of a batch
        check_heatmap(first, x.shape[:2] if in_pixels else None)
        check_finite(heatmap, "the heatmap")
        check_own(x, heatmap, *args)
        check_arguments(x, *args)

    @functools.wraps(measure)
    def checked(x, heatmap, *args, **kwargs):
        x = check_image(x)
        check(x, heatmap, *args)
        return measure(x, check_heatmap(heatmap), *args, **kwargs)

    checked.__name__ = checked.__qualname__ = name
    setattr(checked, CHECK, check)
    return checked


def check_heatmap(heatmap, size: tuple[int, ...] | None = None) -> jax.Array:
    """One heatmap [H, W] of finite numbers, in float32 or wider, or an error.

    Raises:
      ValueError: another rank, another size than (H, W) if one is given, or (outside ``jit``)
        values that are NaN or infinite.
    """
    heatmap = jnp.asarray(heatmap)
    if heatmap.ndim != 2:
        raise ValueError(
            f"expected one heatmap [H, W], got an array of shape {heatmap.shape}"
            + ("; use jaxfmi.batched or jax.vmap for a batch" if heatmap.ndim == 3 else "")
        )
    if size is not None and heatmap.shape != tuple(size):
        raise ValueError(
            f"expected a heatmap of the size {tuple(size)}, got {heatmap.shape}; "
            "jaxfmi.heatmap.resize brings it there"
        )
    check_finite(heatmap, "the heatmap")
    return wide(heatmap)
