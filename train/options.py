"""A frozen dataclass as the options of a command line, and back."""

import argparse
import shlex
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = ["command", "parse"]

Config = TypeVar("Config", bound="DataclassInstance")


def parse(
    kind: type[Config], module: str, about: str, arguments: list[str] | None = None
) -> Config:
    """Read a `kind` from the command line of `python -m <module>`: one option for each field.

    Fields without a default are required. A field's type is its default's; that of an empty tuple
    is of integers.
    """
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(f"python -m {module}", description=about, formatter_class=raw)
    for field in fields(kind):
        option, default = f"--{field.name.replace('_', '-')}", field.default
        if default is MISSING:
            parser.add_argument(option, required=True)
        elif isinstance(default, bool):
            parser.add_argument(option, action=argparse.BooleanOptionalAction, default=default)
        elif isinstance(default, tuple):
            each = type(default[0]) if default else int
            parser.add_argument(option, nargs="+", type=each, default=default)
        else:
            parser.add_argument(option, type=type(default), default=default)
    values: dict[str, Any] = vars(parser.parse_args(arguments))
    lists = {name: tuple(v) for name, v in values.items() if isinstance(v, list)}
    return kind(**values | lists)


def command(config: Any, module: str) -> str:
    """The command line that asks for `config`: the options that differ from their defaults."""
    words = ["python", "-m", module]
    for field in fields(config):
        value, option = getattr(config, field.name), f"--{field.name.replace('_', '-')}"
        if value == field.default:
            continue
        if isinstance(value, bool):
            words.append(option if value else f"--no-{option[2:]}")
        else:
            values = value if isinstance(value, tuple) else [value]
            words += [option, *map(str, values)]
    return shlex.join(words)
