"""Build the network that a run trains, by its name."""

import ast
from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp
from flax import nnx

from jaxfmi.models import MODELS
from jaxfmi.models.demo import DemoNet
from jaxfmi.taps import suggestion

__all__ = ["build"]

DEMO = "demo"


def build(
    name: str,
    classes: int,
    options: Iterable[str] = (),
    precision: str = "float32",
    seed: int = 0,
) -> nnx.Module:
    """A network with random weights.

    Args:
      name: demo, the backbone of the embedded network, or one of `MODELS`.
      classes: the number of logits.
      options: words key=value for the network's constructor.
      precision: what it computes in.
      seed: of the weights.

    Raises:
      ValueError: there is no such network, or it has no such option.
    """
    if name != DEMO and name not in MODELS:
        names = [DEMO, *MODELS]
        raise ValueError(f"no model {name!r}{suggestion(name, names)}; there are {names}")
    given: dict[str, Any] = dict(map(_assignment, options))
    if name == DEMO:
        make: Any = DemoNet
        given = {"classes": classes} | given
        if precision != "float32":
            raise ValueError(f"the network {DEMO} computes in float32 only, not in {precision}")
    else:
        dtype = None if precision == "float32" else jnp.dtype(precision)
        make = MODELS[name].build
        given = {"num_classes": classes, "dtype": dtype} | given
    try:  # compiled as a whole, which takes a third of the time of one initialiser after another
        return nnx.jit(lambda: make(**given, rngs=nnx.Rngs(seed)))()
    except (TypeError, KeyError) as error:
        raise ValueError(f"{name} can't be built with {given}: {error}") from error


def _assignment(word: str) -> tuple[str, Any]:
    name, equals, text = word.partition("=")
    if not equals or not name:
        raise ValueError(f"an option of the network is key=value, got {word!r}")
    try:
        return name, ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return name, text
