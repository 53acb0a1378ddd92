"""What options of methods can be, where it is more than a number: words and what they stand for."""

from types import ModuleType

import jax

from jaxfmi import multipliers, reductions, references, rules
from jaxfmi.cam import WEIGHTS
from jaxfmi.command.words import Words
from jaxfmi.fusion import GATES
from jaxfmi.gradient import absolute_maximum, channel_sum
from jaxfmi.group_cam import BLUR
from jaxfmi.pending import NORMS, SPLITS
from jaxfmi.score_cam import NAMED as CONVENTIONS


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

NONE = {"select": Words({"none": None})}
SHOWN = {"baseline": Words({"blur": references.blur()})}
SISE = {
    **(NONE | SHOWN),
    "fusion": Words({name: name for name in GATES}),
    "link": Words({"auto": "auto", "sigmoid": jax.nn.sigmoid, "none": None}),
}

# Those with settings of their own; epsilon and z_plus are names of rules there.
COMPOSITES = {k: getattr(rules, k) for k in rules.NAMED if k not in ("epsilon", "z_plus")}
LRP = (
    PIXEL
    | LAYER
    | {
        "composite": Words({name: name for name in rules.NAMED}, COMPOSITES),
        "norm": Words({name: name for name in NORMS}),
        "split": Words({name: name for name in SPLITS}),
    }
)
FG_CAM = LRP | {"base": Words({name: name for name in (*WEIGHTS, "score_cam")})}

GROUPS = NONE | {"baseline": Words({"blur": BLUR})}
SCORED = LAYER | SHOWN | {"convention": Words({name: name for name in CONVENTIONS})}
RISE = SHOWN | {"normalise": Words({n: n for n in ("expectation", "pixel")})}
EXTREMAL = {"variant": Words({n: n for n in ("preserve", "delete", "dual")})}
