"""als: matrix factorisation of each domain's interactions. No language model, no federation.

A line to compare with, from the library implicit (alternating least squares for implicit feedback,
Hu, Koren and Volinsky, 2008); see `fedecider.collaborative`.
"""

from fedecider.methods.local import Local


class Als(Local):
    """Fitted once a domain, without rounds."""

    name = "als"
    rounds_needed = False
    language_model = False
