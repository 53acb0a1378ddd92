"""The methods by name: one table that the command line, the README and the benchmarks share.

The library has no registry; functions are imported. A command has only words, and this is where
words become functions, and options become what functions take (`words.py` reads single ones). A
new method is one row.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from jaxfmi import (
    ablation_cam,
    ada_sise,
    afmi,
    cam,
    clrp,
    controls,
    deconvnet,
    eigen_cam,
    eigen_grad_cam,
    excitation_backprop,
    extremal_perturbation,
    fd_cam,
    fg_cam,
    full_grad,
    grad_cam,
    grad_cam_pp,
    group_cam,
    guided_backprop,
    guided_grad_cam,
    hires_cam,
    input_x_gradient,
    integrated_gradients,
    is_cam,
    layer_cam,
    lfi_cam,
    lrp,
    occlusion,
    recipro_cam,
    relevance_cam,
    rise,
    saliency,
    score_cam,
    sglrp,
    sise,
    smooth_grad,
    ss_cam,
    xgrad_cam,
)
from jaxfmi.command.choices import (
    AFMI,
    EXTREMAL,
    FG_CAM,
    GROUPS,
    LAYER,
    LRP,
    PIXEL,
    RISE,
    SCORED,
    SISE,
)
from jaxfmi.command.words import Row, Words, assignment, defaults, pick
from jaxfmi.command.words import kinds as kinds_of
from jaxfmi.explainer import FORM, Explainer, Score


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
    def fused(self) -> bool:
        """Whether it makes one map of several layers."""
        return "layers" in self.parameters

    @property
    def options(self) -> dict[str, Any]:
        """Its options with their defaults."""
        return defaults(self.parameters)


def smooth_saliency(
    score: Score, *, noise: float = 0.15, samples: int = 16, chunk: int | None = 4
) -> Explainer:
    """SmoothGrad around saliency, the pair that its paper shows."""
    return smooth_grad(saliency(score), noise=noise, samples=samples, chunk=chunk)


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
    "recipro_cam": Method(
        recipro_cam, "Byun and Lee 2022", "the head once per position", LAYER, signed=True
    ),
    "fd_cam": Method(
        fd_cam, "Li et al. 2022", "the head twice per channel, 1 gradient of it", LAYER
    ),
    "score_cam": Method(
        score_cam,
        "Wang et al. 2020",
        "1 forward pass per channel",
        SCORED,
    ),
    "ss_cam": Method(ss_cam, "Wang et al. 2020", "35 forward passes (samples) per channel", LAYER),
    "is_cam": Method(is_cam, "Naidu et al. 2020", "10 forward passes (steps) per channel", LAYER),
    "group_cam": Method(
        group_cam,
        "Zhang et al. 2021",
        "1 gradient, 32 forward passes (groups)",
        GROUPS,
    ),
    "afmi": Method(
        afmi, "Zhang et al. 2021, reconstructed", "32 gradients of the head", AFMI, signed=True
    ),
    "lfi_cam": Method(
        lfi_cam,
        "Lee et al. 2021; ABN: Fukui et al. 2019",
        "1 forward pass of such a network",
        LAYER,
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
    "lrp": Method(lrp, "Bach et al. 2015", "1 forward, 1 backward pass of rules", LRP, signed=True),
    "clrp": Method(clrp, "Gu et al. 2018", "as lrp, 2 backward passes", LRP, signed=True),
    "sglrp": Method(sglrp, "Iwana et al. 2019", "as lrp, 2 backward passes", LRP, signed=True),
    "excitation_backprop": Method(
        excitation_backprop, "Zhang et al. 2016", "as lrp", LRP, signed=True
    ),
    "relevance_cam": Method(relevance_cam, "Lee et al. 2021", "as lrp", LRP, signed=True),
    "fg_cam": Method(
        fg_cam, "Qiu et al. 2023", "1 gradient of the head, as lrp", FG_CAM, signed=True
    ),
    "occlusion": Method(
        occlusion, "Zeiler and Fergus 2013", "1 forward pass per window", signed=True
    ),
    "rise": Method(
        rise,
        "Petsiuk et al. 2018",
        "4000 forward passes (samples)",
        RISE,
    ),
    "extremal_perturbation": Method(
        extremal_perturbation,
        "Fong et al. 2019",
        "800 gradients (iterations) per area",
        EXTREMAL,
    ),
    "sise": Method(
        sise,
        "Sattarzadeh et al. 2021",
        "1 gradient, 1 forward pass per map selected",
        SISE,
    ),
    "ada_sise": Method(
        ada_sise,
        "Sudhakar et al. 2021, reconstructed",
        "1 gradient, 1 forward pass per map selected",
        SISE,
    ),
}

#: No methods: maps that ignore the network, for ``jaxfmi evaluate`` to compare with.
CONTROLS: dict[str, Method] = {
    "random_map": Method(controls.random_map, "control", "nothing"),
    "centre_gaussian": Method(controls.centre_gaussian, "control", "nothing"),
    "edge_map": Method(controls.edge_map, "control", "nothing"),
}


def settings(
    chosen: Iterable[str],
    options: Iterable[str],
    table: Mapping[str, Row] = METHODS,
    kind: str = "method",
) -> dict[str, dict[str, Any]]:
    """Distribute words ``[METHOD.]name=value`` to the chosen methods: all options by method.

    Defaults are included. Values are numbers and the like, or names, as JSON has them; ``build``
    turns names into functions. Without METHOD an option goes to every chosen method that has it.

    Args:
      chosen: names of rows.
      options: the words.
      table: the rows by name.
      kind: what a row is, for errors.

    Raises:
      ValueError: a method that was not chosen, an option that none of those meant has, or a value
        that the option can't have.
    """
    found = {n: {k: _name(table[n], k) for k in table[n].options} for n in chosen}
    for text in options:
        key, given = assignment(text)
        method, dot, option = key.rpartition(".")
        meant = [pick(f"chosen {kind}", method, found)] if dot else list(found)
        there = dict.fromkeys(k for name in meant for k in found[name])
        pick("option", option, there, ", ".join(meant))
        for name in meant:
            if option in found[name]:
                found[name][option] = given
                read(name, option, given, table)
    return found


def build(
    name: str,
    options: Mapping[str, Any],
    layer: str | tuple[str, ...] | None,
    table: Mapping[str, Method] = METHODS,
) -> Callable[[Score], Explainer]:
    """Make ``score -> explainer`` from a method's name, its options, and its layers if it has."""
    values = {k: read(name, k, v, table) for k, v in options.items()}
    place = {} if layer is None else {"layers" if table[name].fused else "layer": layer}
    return lambda score: table[name].make(score, **place, **values)


def form(make: Callable[[Score], Explainer]) -> str:
    """The form of the score that a method asks for, once it has its options."""
    forms = ["logit"]

    def probe(*args):
        raise NotImplementedError

    setattr(probe, FORM, lambda of: forms.append(of.__name__) or probe)
    make(probe)
    return forms[-1]


def read(name: str, option: str, given: Any, table: Mapping[str, Row] = METHODS) -> Any:
    """The value of a method's option, where ``given`` may be the name of one.

    Raises:
      ValueError: it has no such value, or is a count below 1.
    """
    words = table[name].words.get(option, Words({}))
    if isinstance(given, str) and words.named:
        try:
            return words.read(given)
        except ValueError as error:
            raise ValueError(f"{option} of {name}: {error}") from error
    kinds = kinds_of(table[name].parameters[option].annotation)
    if type(given) not in kinds and not (type(given) is int and float in kinds):
        there = [*words.named, *("none" if k is type(None) else k.__name__ for k in kinds)]
        raise ValueError(f"{option} of {name} can't be {given!r}; it is {' or '.join(there)}")
    counts = given if isinstance(given, tuple) else (given,)
    if int in kinds and not all(n is None or (type(n) is int and n > 0) for n in counts):
        raise ValueError(f"{option} of {name} is a count, at least 1; got {given!r}")
    return given


def _name(row: Row, option: str) -> Any:
    """An option's default; its name, where it has one."""
    default = row.options[option]
    words = row.words.get(option, Words({}))
    return next((text for text, v in words.named.items() if v is default), default)
