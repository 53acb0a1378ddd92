"""The methods by name: one table that the command line, the README and the benchmarks share.

The library has no registry; functions are imported. A command has only words, and this is where
words become functions, and options become what functions take. A new method is one row.
"""

import ast
import inspect
from collections.abc import Callable, Iterable, Mapping
from types import ModuleType, UnionType
from typing import Any, NamedTuple, Union, get_args, get_origin

from jaxfmi import (
    ablation_cam,
    afmi,
    cam,
    deconvnet,
    eigen_cam,
    eigen_grad_cam,
    full_grad,
    grad_cam,
    grad_cam_pp,
    guided_backprop,
    guided_grad_cam,
    hires_cam,
    input_x_gradient,
    integrated_gradients,
    layer_cam,
    multipliers,
    occlusion,
    reductions,
    references,
    saliency,
    smooth_grad,
    xgrad_cam,
)
from jaxfmi.explainer import Explainer, Score
from jaxfmi.gradient import absolute_maximum, channel_sum
from jaxfmi.taps import suggestion


class Words(NamedTuple):
    """The values of an option that have names, and the functions that make others of them."""

    named: Mapping[str, Any]
    makers: Mapping[str, Callable[..., Any]] = {}

    def read(self, text: str) -> Any:
        """The value that a name (``path``) or a call (``path(steps=64)``) stands for."""
        name, call, inside = text.partition("(")
        if not call:
            return self.named[pick("value", name, self.named)]
        maker = self.makers[pick("value with settings", name, self.makers)]
        known = inspect.signature(maker).parameters
        parts = inside.strip().removesuffix(")").split(",")
        given = dict(assignment(part) for part in parts if part.strip())
        return maker(**{pick("setting", k, known, name): v for k, v in given.items()})


class Method(NamedTuple):
    """A row: the function, its paper, what it costs, and which options have words for values."""

    make: Callable[..., Explainer]
    paper: str
    cost: str
    words: Mapping[str, Words] = {}
    signed: bool = False  #: whether negative values mean something

    @property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """Everything that the function takes beside the score."""
        return dict(list(inspect.signature(self.make).parameters.items())[1:])

    @property
    def layered(self) -> bool:
        """Whether it explains a layer."""
        return "layer" in self.parameters

    @property
    def options(self) -> dict[str, Any]:
        """Its options with their defaults."""
        return {k: p.default for k, p in self.parameters.items() if k != "layer"}


def smooth_saliency(
    score: Score, *, noise: float = 0.15, samples: int = 16, chunk: int | None = 4
) -> Explainer:
    """SmoothGrad around saliency, the pair that its paper shows."""
    return smooth_grad(saliency(score), noise=noise, samples=samples, chunk=chunk)


def _words(module: ModuleType) -> Words:
    """The names of a module of options; where one differs from the attribute, that makes it."""
    makers = {k: getattr(module, k) for k, v in module.NAMED.items() if getattr(module, k) is not v}
    return Words(module.NAMED, makers)


LAYER = {"size": Words({"input": "input"})}
AFMI = LAYER | {
    "reference": _words(references),
    "multiplier": _words(multipliers),
    "reduce": _words(reductions),
}
PIXEL = {"reduce": Words({f.__name__: f for f in (absolute_maximum, channel_sum)})}

METHODS: dict[str, Method] = {
    "cam": Method(cam, "Zhou et al. 2016", "1 gradient of the head", LAYER, signed=True),
    "grad_cam": Method(grad_cam, "Selvaraju et al. 2017", "1 gradient of the head", LAYER),
    "grad_cam_pp": Method(
        grad_cam_pp, "Chattopadhyay et al. 2018", "1 gradient of the head", LAYER
    ),
    "xgrad_cam": Method(xgrad_cam, "Fu et al. 2020", "1 gradient of the head", LAYER),
    "hires_cam": Method(hires_cam, "Draelos and Carin 2020", "1 gradient of the head", LAYER),
    "layer_cam": Method(layer_cam, "Jiang et al. 2021", "1 gradient of the head", LAYER),
    "eigen_cam": Method(
        eigen_cam, "Muhammad and Yeasin 2020", "1 forward pass, 1 eigenvector", LAYER
    ),
    "eigen_grad_cam": Method(
        eigen_grad_cam, "pytorch-grad-cam", "1 gradient of the head, 1 eigenvector", LAYER
    ),
    "ablation_cam": Method(
        ablation_cam, "Desai and Ramaswamy 2020", "the head once per channel", LAYER
    ),
    "afmi": Method(
        afmi, "Zhang et al. 2021, reconstructed", "32 gradients of the head", AFMI, signed=True
    ),
    "guided_grad_cam": Method(
        guided_grad_cam, "Selvaraju et al. 2017", "2 gradients", PIXEL, signed=True
    ),
    "saliency": Method(saliency, "Simonyan et al. 2013", "1 gradient", PIXEL),
    "input_x_gradient": Method(
        input_x_gradient, "Shrikumar et al. 2016", "1 gradient", PIXEL, signed=True
    ),
    "integrated_gradients": Method(
        integrated_gradients, "Sundararajan et al. 2017", "32 gradients (steps)", PIXEL, signed=True
    ),
    "smooth_grad": Method(smooth_saliency, "Smilkov et al. 2017", "16 gradients (samples)"),
    "guided_backprop": Method(
        guided_backprop, "Springenberg et al. 2014", "1 gradient", PIXEL, signed=True
    ),
    "deconvnet": Method(deconvnet, "Zeiler and Fergus 2013", "1 gradient", PIXEL, signed=True),
    "full_grad": Method(full_grad, "Srinivas and Fleuret 2019", "1 gradient", LAYER),
    "occlusion": Method(
        occlusion, "Zeiler and Fergus 2013", "1 forward pass per window", signed=True
    ),
}


def pick(kind: str, name: str, there: Iterable[str], of: str = "") -> str:
    """Give back ``name`` if it is there, a ``kind`` of something.

    Raises:
      ValueError: it is not; says which name comes close and which there are.
    """
    names = list(there)
    if name in names:
        return name
    what = f"there are {', '.join(names)}" if names else "there is none"
    start = f"{of} has no" if of else "no"
    raise ValueError(f"{start} {kind} {name!r}{suggestion(name, names)}; {what}")


def value(text: str) -> Any:
    """Read a word of the command line: a number, true, false, none, ``7,7``; or else a string."""
    constants = {"true": True, "false": False, "none": None, "null": None}
    if text.strip().lower() in constants:
        return constants[text.strip().lower()]
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError):
        return text.strip()


def assignment(text: str) -> tuple[str, Any]:
    """Split ``name=value`` and read the value.

    Raises:
      ValueError: there is no ``=``, or nothing before it.
    """
    name, equals, word = text.partition("=")
    if not equals or not name.strip():
        raise ValueError(f"expected name=value, got {text!r}")
    return name.strip(), value(word)


def settings(chosen: Iterable[str], options: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Distribute words ``[METHOD.]name=value`` to the chosen methods: all options by method.

    Defaults are included. Values are numbers and the like, or names, as JSON has them; ``build``
    turns names into functions. Without METHOD an option goes to every chosen method that has it.

    Raises:
      ValueError: a method that was not chosen, an option that none of those meant has, or a value
        that the option can't have.
    """
    found = {name: {k: _name(name, k) for k in METHODS[name].options} for name in chosen}
    for text in options:
        key, given = assignment(text)
        method, dot, option = key.rpartition(".")
        meant = [pick("chosen method", method, found)] if dot else list(found)
        there = dict.fromkeys(k for name in meant for k in found[name])
        pick("option", option, there, ", ".join(meant))
        for name in meant:
            if option in found[name]:
                found[name][option] = given
                read(name, option, given)
    return found


def build(name: str, options: Mapping[str, Any], layer: str | None) -> Callable[[Score], Explainer]:
    """Make ``score -> explainer`` from a method's name, its options, and a layer if it has one."""
    values = {k: read(name, k, v) for k, v in options.items()}
    place = {} if layer is None else {"layer": layer}
    return lambda score: METHODS[name].make(score, **place, **values)


def read(name: str, option: str, given: Any) -> Any:
    """The value of a method's option, where ``given`` may be the name of one.

    Raises:
      ValueError: it has no such value, or is a count below 1.
    """
    words = METHODS[name].words.get(option, Words({}))
    if isinstance(given, str) and words.named:
        try:
            return words.read(given)
        except ValueError as error:
            raise ValueError(f"{option} of {name}: {error}") from error
    kinds = _kinds(METHODS[name].parameters[option].annotation)
    if type(given) not in kinds and not (type(given) is int and float in kinds):
        there = [*words.named, *("none" if k is type(None) else k.__name__ for k in kinds)]
        raise ValueError(f"{option} of {name} can't be {given!r}; it is {' or '.join(there)}")
    counts = given if isinstance(given, tuple) else (given,)
    if int in kinds and not all(n is None or (type(n) is int and n > 0) for n in counts):
        raise ValueError(f"{option} of {name} is a count, at least 1; got {given!r}")
    return given


def _name(name: str, option: str) -> Any:
    """An option's default; its name, where it has one."""
    default = METHODS[name].options[option]
    words = METHODS[name].words.get(option, Words({}))
    return next((text for text, v in words.named.items() if v is default), default)


def _kinds(annotation: Any) -> list[type]:
    """The plain types that an annotation allows: ``int | None`` is int and NoneType."""
    union = get_origin(annotation) in (UnionType, Union)
    kinds = [get_origin(a) or a for a in (get_args(annotation) if union else (annotation,))]
    return [k for k in kinds if k in (bool, int, float, tuple, type(None))]
