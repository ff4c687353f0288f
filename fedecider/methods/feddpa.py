"""feddpa (Yang et al., arXiv 2403.19211): a global and a local LoRA, mixed by instance.

Up and down: A, B of the global LoRA (fedavg); the local LoRA stays at home. A user is served with

    y = W0 x + (1 - l) dW_global x + l dW_local x,   l = c * mean_s cos(h, h_s),

h the last state of the user's prompt under the local LoRA and h_s those of some training histories
of the client; c is the largest weight. Source: the paper and its authors' code. Ours: the first
half of a round's steps trains the local LoRA alone, the second half the global one, so that the
number of steps is that of the other methods (the authors give both all steps, and train the local
one beside the frozen global one); l is rounded to steps of 0.05, at most c, so that users of one
weight are ranked together; instances are whole training rows.
"""

from collections import defaultdict

import torch
from torch.nn.functional import normalize

from fedecider.client import ClientModel, seeded
from fedecider.methods.fedavg import FedAvg
from fedecider.mixture import initial_alpha
from fedecider.sequences import Tree, pack
from fedecider.trunk import Trunk

_STEP = 0.05
_BUDGET = 4096  # tokens a forward


class FedDPA(FedAvg):
    """`model.factors` is the global LoRA, `model.personal` the local one."""

    name = "feddpa"

    def __init__(self, config):
        super().__init__(config)
        self._of, self._mixed = None, {}

    def begin(self, client, number):
        """The local LoRA is trained first; both start from the same point."""
        model = client.model
        if model.personal is None:
            model.personal = dict(model.factors)
        self.switch(client)

    def stages(self, client):
        """Half of the steps each."""
        return [(0.0, 0.5), (0.5, 1.0)]

    def switch(self, client):
        """The other LoRA takes the place of the one that is trained."""
        model = client.model
        model.factors, model.personal = model.personal, model.factors

    def served(self, data, model, adapter, split):
        """Users by their weight of the local LoRA, each group with its mixture."""
        users = getattr(data, f"{split}_users")
        groups = defaultdict(list)
        for user, weight in zip(users, self.weights_of(data, model, adapter, split), strict=True):
            near = min(round(weight / _STEP) * _STEP, self.config.dpa_weight)
            groups[round(near, 6)].append(user)
        if self._of is not model:
            self._of, self._mixed = model, {}
        return [(some, self._at(model, adapter, weight)) for weight, some in sorted(groups.items())]

    def _at(self, model, adapter, weight: float) -> ClientModel:
        """The mixture with that weight; the same object whenever asked again for this model."""
        if weight not in self._mixed:
            scaled = {name: pair.scaled(1 - weight) for name, pair in model.factors.items()}
            alpha = initial_alpha(adapter, ["local"], self.config.alpha_scope) + weight
            local = adapter.updates(model.personal)
            self._mixed[weight] = ClientModel(scaled, {"local": local}, alpha)
        return self._mixed[weight]

    @torch.no_grad()
    def weights_of(self, data, model, adapter, split) -> list[float]:
        """l of each user of the split, in [0, c]."""
        config, catalogue = self.config, data.catalogue
        adapter.load(model.personal)
        users = getattr(data, f"{split}_users")
        prompts = [Tree(catalogue.prompt(user, split, config.history)) for user in users]
        examples = data.training.examples
        drawn = torch.randperm(len(examples), generator=seeded(config, f"{data.name} dpa", 0))
        some = [Tree(examples[index].ids) for index in sorted(drawn[: config.dpa_samples].tolist())]
        asked, known = (
            _last_states(adapter, trees, f"{data.name} {label}")
            for trees, label in ((prompts, f"{split} prompts"), (some, "instances"))
        )
        similar = (asked @ known.T).mean(1).clamp(0, 1)
        return (config.dpa_weight * similar).tolist()


def _last_states(adapter, trees: list[Tree], label: str) -> torch.Tensor:
    """Unit-length normed state of each tree's last token, (trees, width) float64."""
    trunk = Trunk(adapter.backbone, trees, adapter.first, label)
    parts = []
    for indices in pack([tree.size for tree in trees], _BUDGET):
        forest = trunk.forest(indices)
        hidden = adapter.hidden(trunk.cat(indices, forest), forest)
        last = torch.tensor([trees[index].size for index in indices]).cumsum(0) - 1
        parts.append(hidden[last.to(hidden.device)].double().cpu())
    return normalize(torch.cat(parts), dim=-1)
