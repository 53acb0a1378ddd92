"""Single words of a command: names and what they stand for, values, assignments."""

import ast
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import UnionType
from typing import Any, NamedTuple, Protocol, Union, get_args, get_origin

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


class Row(Protocol):
    """What words need to know of a row of a table."""

    @property
    def words(self) -> Mapping[str, Words]:
        """Which options have words for values."""
        ...

    @property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """Everything that the function takes beside its input."""
        ...

    @property
    def options(self) -> dict[str, Any]:
        """Its options with their defaults."""
        ...


def defaults(parameters: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
    """The options among parameters, with their defaults; a layer is given apart."""
    return {name: p.default for name, p in parameters.items() if name not in ("layer", "layers")}


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


def kinds(annotation: Any) -> list[type]:
    """The plain types that an annotation allows: ``int | None`` is int and NoneType."""
    union = get_origin(annotation) in (UnionType, Union)
    found = [get_origin(a) or a for a in (get_args(annotation) if union else (annotation,))]
    found = [tuple if k is Sequence else k for k in found]
    return [k for k in found if k in (bool, int, float, str, tuple, type(None))]
