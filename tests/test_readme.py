"""The README says what is: its table of methods, the names it uses, its two commands."""

import re
import tomllib
from pathlib import Path

import jaxfmi
from jaxfmi import models
from jaxfmi.command.methods import METHODS

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- methods: begin -->", "<!-- methods: end -->"
README = (ROOT / "README.md").read_text(encoding="utf-8")


def methods_table() -> str:
    rows = ["| function | paper | needs a layer | cost per map |", "|---|---|---|---|"]
    for name, method in METHODS.items():
        layer = "yes" if method.layered else "several" if method.fused else ""
        rows.append(f"| `{name}` | {method.paper} | {layer} | {method.cost} |")
    return "\n".join(rows)


def test_the_table_of_methods_is_that_of_the_command_line():
    between = README.split(BEGIN)[1].split(END)[0]
    assert between.strip() == methods_table()


def test_names_exist():
    for module, name in set(re.findall(r"\b(jaxfmi|models)\.([a-z_0-9]+)\(", README)):
        assert callable(getattr({"jaxfmi": jaxfmi, "models": models}[module], name))


def test_extras_exist():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    named = set(re.findall(r'\.\[(\w+)\]"', README))
    assert named == {"demo", "test"}
    assert named <= extras.keys()


def test_every_method_is_exported():
    assert set(METHODS) <= set(jaxfmi.__all__)


if __name__ == "__main__":  # renews the table
    before, rest = README.split(BEGIN)
    table = f"{BEGIN}\n{methods_table()}\n{END}"
    (ROOT / "README.md").write_text(before + table + rest.split(END)[1], encoding="utf-8")
