"""zero-shot: the backbone as it is, ranked with the same prompts (method, section 5)."""

from fedecider.methods.local import Local


class ZeroShot(Local):
    """No training, no communication."""

    name = "zero-shot"
    rounds_needed = False
