"""What finished runs tell beyond their metrics.

- `theory`: the paper's lemmas and propositions, checked numerically on a trained model.
- `membership_inference`: what an observer of the server learns about a client's users.
- `saved_run`: a finished run, as the two above read it.
- `domain_distance`: how far apart domains are, by items and by users.
"""
