"""``python -m jaxfmi`` is the command ``jaxfmi``."""

from jaxfmi.cli import app

app()
