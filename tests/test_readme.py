"""The README says what is: its table of methods, the names it uses, its two commands."""

import re
import tomllib
from pathlib import Path

import jaxfmi
import jaxfmi.models
from jaxfmi.methods import METHODS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def methods_table() -> str:
    rows = ["| function | paper | needs a layer | cost per map |", "|---|---|---|---|"]
    for name, method in METHODS.items():
        layer = "yes" if method.layered else ""
        rows.append(f"| `{name}` | {method.paper} | {layer} | {method.cost} |")
    return "\n".join(rows)


def test_the_table_of_methods_is_that_of_the_command_line():
    between = README.split("<!-- methods: begin -->")[1].split("<!-- methods: end -->")[0]
    assert between.strip() == methods_table()


def test_names_exist():
    for name in set(re.findall(r"jaxfmi\.([a-z_]+(?:\.[a-z_]+)*)\(", README)):
        value = jaxfmi
        for part in name.split("."):
            value = getattr(value, part)
        assert callable(value)


def test_extras_exist():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = set(re.findall(r'\.\[(\w+)\]"', README))
    assert named == {"demo", "test"}
    assert named <= extras.keys()


def test_every_method_is_exported():
    assert set(METHODS) <= set(jaxfmi.__all__)
