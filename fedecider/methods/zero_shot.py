"""zero-shot: the backbone as it is, ranked with the same prompts (method, section 5)."""

from fedecider.methods.base import Method


class ZeroShot(Method):
    """No training, no communication."""

    name, label, family = "zero-shot", "Zero-shot", "reference"
    color, order = "#999999", 10
    trains = False
    grid = []
