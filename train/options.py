"""A frozen dataclass as the options of a command: out of words and tables, and back into words.

Names, types and defaults are the fields', the help is in the docstring. Used by all training
scripts; `jaxfmi train` gives the same options to typer.
"""

import argparse
import inspect
import json
import re
import shlex
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import MISSING, asdict, fields
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin

from jaxfmi.taps import suggestion

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = ["check_same", "command", "explanations", "from_text", "make", "parse"]

Options = TypeVar("Options", bound="DataclassInstance")


def make(kind: type[Options], values: Mapping[str, Any]) -> Options:
    """Build a `kind` from values as JSON or TOML has them.

    Raises:
      ValueError: a name is no option, a value has another type, or one without a default is
        missing.
    """
    known = {field.name: field for field in fields(kind)}
    for name in values:
        if name not in known:
            raise ValueError(f"no option {name!r}{suggestion(name, known)}; there are {[*known]}")
    for name, field in known.items():
        if field.default is MISSING and not values.get(name):
            raise ValueError(f"{name} is missing: give --{_dashed(name)}")
    return kind(**{name: _fit(name, known[name].type, value) for name, value in values.items()})


def check_same(config: Any, there: Mapping[str, Any], free: Collection[str]) -> None:
    """Compare the options of a run that goes on with those it was begun with.

    Args:
      config: a dataclass with the field `out`.
      there: options as JSON has them.
      free: names of those that may change.

    Raises:
      ValueError: others did.
    """
    here = json.loads(json.dumps(asdict(config)))
    if other := [k for k in here if k not in free and here[k] != there.get(k, here[k])]:
        changes = ", ".join(f"{k} {there[k]!r}, not {here[k]!r}" for k in other)
        raise ValueError(f"the run in '{config.out}' has {changes}: give another --out, or these")


def parse(
    kind: type[Options],
    module: str,
    about: str | None = None,
    words: Sequence[str] | None = None,
    read: Callable[[str], Mapping[str, Any]] | None = None,
) -> Options:
    """Read a `kind` from the words of `python -m <module>`: one option for each field.

    Args:
      kind: the dataclass.
      module: for `--help`, as is `about`.
      about: what the script does.
      words: None for those of this process.
      read: gives the values in a file; then there is `--config FILE`, which words overrule.

    Raises:
      ValueError: as `make`, or a word is no number where one is needed.
    """
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(f"python -m {module}", description=about, formatter_class=raw)
    if read:
        parser.add_argument("--config", help="TOML or JSON file with options; words overrule it.")
    texts = explanations(kind)
    for field in fields(kind):
        option: dict[str, Any] = {"default": argparse.SUPPRESS}
        option["help"] = texts[field.name].replace("%", "%%")
        if field.type is bool:
            option["action"] = argparse.BooleanOptionalAction
        elif get_origin(field.type) is tuple:
            option["nargs"] = "*"
        parser.add_argument(f"--{_dashed(field.name)}", **option)
    given = vars(parser.parse_args(words))
    values = read(path) if read and (path := given.pop("config")) else {}
    return make(kind, {**values, **{k: from_text(kind, k, v) for k, v in given.items()}})


def command(config: Any, module: str) -> str:
    """The command line that asks for `config`: the options that differ from their defaults."""
    words = ["python", "-m", module]
    for field in fields(config):
        value, option = getattr(config, field.name), _dashed(field.name)
        if value == field.default:
            continue
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        else:
            values = value if isinstance(value, tuple) else [value]
            words += [f"--{option}", *map(str, values)]
    return shlex.join(words)


def from_text(kind: type, name: str, value: Any) -> Any:
    """What the words of a command mean for an option: lists have spaces or commas between.

    Raises:
      ValueError: a word is no number where one is needed.
    """
    wanted = next(field.type for field in fields(kind) if field.name == name)
    try:
        if get_origin(wanted) is not tuple:
            return value if wanted is bool else _number(wanted, value)
        item = get_args(wanted)[0]
        words = [value] if isinstance(value, str) else value
        if item is not str:
            words = [part for word in words for part in word.split(",") if part]
        return tuple(_number(item, word) for word in words)
    except ValueError as error:
        raise ValueError(f"{name} can't be {value!r}: {error}") from error


def explanations(kind: type) -> dict[str, str]:
    """What each field is, from the attributes in the docstring."""
    text = (inspect.getdoc(kind) or "").partition("Attributes:\n")[2]
    found = re.findall(r"^  (\w+): (.*?)(?=^  \w+: |\Z)", text, re.M | re.S)
    there = {name: " ".join(words.split()) for name, words in found}
    return {field.name: there.get(field.name, "") for field in fields(kind)}


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def _number(kind: Any, text: Any) -> Any:
    return text if isinstance(text, kind) else kind(text)


def _fit(name: str, kind: Any, value: Any) -> Any:
    """A value of the field's type: lists become tuples, whole numbers floats where need be."""
    if get_origin(kind) is tuple:
        if isinstance(value, Mapping):
            value = [f"{key}={item}" for key, item in value.items()]
        items = value if isinstance(value, list | tuple) else [value]
        return tuple(_fit(name, get_args(kind)[0], item) for item in items)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise ValueError(f"{name} is of type {kind.__name__}, got {value!r}")
    return value
