"""local: every client alone."""

from fedecider.methods.base import Method


class Local(Method):
    """Sends and receives nothing (method, section 5)."""

    name, label, family = "local", "Local", "reference"
    color, order = "#009E73", 20
