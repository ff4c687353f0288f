"""centralized: one model on everybody's data."""

import torch
from toy import Rounds

from fedecider import training


def test_centralized_trains_one_model_on_everything(unlike, backbone, tmp_path, monkeypatch):
    with Rounds(unlike, tmp_path, backbone, "centralized", batch_tokens=10**6) as run:
        total = sum(len(client.data.training.examples) for client in run.clients)
        validation = [client.data.validation for client in run.clients]
        trained = []
        plain = training.token_losses

        def spy(adapter, states, examples, indices, loss):
            if all(examples is not part for part in validation):
                trained.extend(indices)
            return plain(adapter, states, examples, indices, loss)

        monkeypatch.setattr(training, "token_losses", spy)
        for _, _, _, after in run.play(1):
            assert sorted(trained) == list(range(total))
            first, *others = (model.factors for model in after.values())
            for name in run.adapter.names:
                assert first[name].B.any()
                assert all(torch.equal(first[name].B, other[name].B) for other in others)
