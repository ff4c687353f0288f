"""feddpa: a global and a local LoRA, mixed by instance."""

import copy

import numpy as np
import pytest
import torch
from toy import Rounds, dense

from fedecider.losses import vocabulary
from fedecider.training import token_losses


def test_feddpa_averages_the_global_lora_and_keeps_the_local_one(unlike, backbone, tmp_path):
    with Rounds(unlike, tmp_path, backbone, "feddpa", max_weight=0.8) as run:
        share = run.shares
        for number, before, trained, after in run.play(2):
            for name in run.adapter.names:
                for client in share:
                    for part in ("A", "B"):
                        mean = sum(
                            share[c] * getattr(trained[c].factors[name], part) for c in share
                        )
                        got = getattr(after[client].factors[name], part)
                        assert torch.allclose(got, mean, atol=1e-7)
                        kept = getattr(trained[client].local_lora[name], part)
                        assert torch.equal(getattr(after[client].local_lora[name], part), kept)
                    if number > 1:
                        was = before[client].local_lora[name].B
                        assert not torch.allclose(was, after[client].local_lora[name].B)
            first = run.adapter.names[0]
            local = [after[c].local_lora[first].B for c in share]
            assert not torch.allclose(local[0], local[1])
        client = run.clients[0]
        groups = run.method.models_for(client.data, client.model, run.adapter, "test")
        assert sorted(u for users, _ in groups for u in users) == client.data.test_users
        for _, served in groups:
            weight = served.alpha.unique().item()
            assert 0 <= weight <= 0.8 + 1e-6 and weight * 20 == pytest.approx(round(weight * 20))
            for name in run.adapter.names:
                pair = served.factors[name]
                assert torch.allclose(pair.B, client.model.factors[name].B * (1 - weight))
                local = served.peer_directions["local"][name]
                expected = run.adapter.gamma * dense(client.model.local_lora[name])
                assert torch.allclose(dense(local), expected, atol=1e-6)


def test_feddpa_weights_are_the_mean_cosine_to_training_histories(
    unlike, backbone, tmp_path, monkeypatch
):
    with Rounds(unlike, tmp_path, backbone, "feddpa", max_weight=1.0, instances=10**6) as run:
        run.round(1)
        client = run.clients[0]
        got = run.method.local_weights(client.data, client.model, run.adapter, "test")
        run.adapter.load(client.model.local_lora)
        model = run.adapter.peft

        def last(ids):
            hidden = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1]
            return hidden[0, -1].double()

        before = model.config._attn_implementation
        monkeypatch.setattr(model.config, "_attn_implementation", "eager")
        with torch.no_grad():
            known = [last(example.ids) for example in client.data.training.examples]
            for user, weight in zip(client.data.test_users, got, strict=True):
                asked = last(client.data.catalogue.prompt(user, "test", run.config.data.history))
                similar = [torch.cosine_similarity(asked, other, dim=0).item() for other in known]
                assert weight == pytest.approx(np.mean(similar), abs=1e-4)
        monkeypatch.undo()
        assert model.config._attn_implementation == before  # the backbone is shared by all tests


def test_feddpa_trains_its_local_lora_also_in_a_round_of_one_step(data, backbone, tmp_path):
    with Rounds(data, tmp_path, backbone, "feddpa", batch_tokens=10**6) as run:
        run.round(1)
        client = run.clients[0]
        assert any(pair.B.any() for pair in client.model.local_lora.values())


def test_feddpa_serves_the_same_mixture_again_and_keeps_one_cache_for_all_groups(
    data, backbone, tmp_path
):
    with Rounds(data, tmp_path, backbone, "feddpa") as run:
        run.round(1)
        client = run.clients[0]
        served = {}
        for split in ("valid", "test", "test"):
            groups = client.method.models_for(client.data, client.model, run.adapter, split)
            for _, model in groups:
                weight = model.alpha.unique().item()
                assert served.setdefault(weight, model) is model


def test_mixtures_are_those_of_the_round(data, backbone, tmp_path):
    """A client's method keeps its mixtures within a round; none of an earlier one is served."""
    with Rounds(data, tmp_path, backbone, "feddpa", max_weight=0.0) as run:  # one weight for all
        client, served = run.clients[0], []
        for number in (1, 2):
            run.round(number)
            ((_, model),) = client.method.models_for(
                client.data, client.model, run.adapter, "valid"
            )
            served.append(copy.copy(model))
            for name in run.adapter.names:
                assert torch.equal(model.factors[name].B, client.model.factors[name].B)
                local = run.adapter.updates(client.model.local_lora)[name]
                assert torch.equal(model.peer_directions["local"][name].B, local.B)
        for name in run.adapter.names:
            assert not torch.equal(served[0].factors[name].B, served[1].factors[name].B)


def test_models_are_served_outside_their_training_mixture(unlike, backbone, tmp_path):
    """feddpa's validation loss is that of the served mixture, not of the global LoRA."""
    with Rounds(unlike, tmp_path, backbone, "feddpa") as run:
        run.round(1)
        data, model = run.clients[0].data, run.clients[0].model
        total = count = 0.0
        index = {user: place for place, user in enumerate(data.valid_users)}
        for users, served in run.method.models_for(data, model, run.adapter, "valid"):
            with served.mixture(run.adapter, run.config.direction), torch.no_grad():
                for user in users:
                    rows = [index[user]]
                    losses = token_losses(
                        run.adapter, data.valid_states, data.validation, rows, vocabulary
                    )
                    total, count = total + losses.sum().item(), count + len(losses)
        assert run.rows[0]["valid_loss"] == pytest.approx(total / count, rel=1e-5)
