"""A frozen causal language model as fast code: packed sequences, stored states, no logits matrix.

It knows no configuration, no domain and no method, and imports nothing of the rest of the package.
Bottom up: `attention` (within the sequences of a packed row), `packing` (prompts and their
continuations as one row), `weights` and `backbone` (loading, the blocks of the model),
`cross_entropy` (losses and log-probabilities), `hidden_states` and `kv_cache` (what is the same in
every round, kept on disk), `memory`.
"""
