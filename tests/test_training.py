"""What is trained and validated on, and the steps of a round."""

from dataclasses import replace

import pytest
import torch
from toy import Rounds, config, write_domains

from fedecider import training
from fedecider.adapter import Adapter
from fedecider.domains import read_domain
from fedecider.engine.backbone import load
from fedecider.engine.packing import pack
from fedecider.losses import vocabulary
from fedecider.mixture import ClientModel
from fedecider.prompts import make_template
from fedecider.training import ClientData, PooledData, generator_of, token_losses, validation_loss


@pytest.fixture(scope="module")
def adapter():
    with Adapter(load("tiny", "cpu", "float64"), 2, 4, ["q_proj", "v_proj"], 1) as adapter:
        yield adapter


@pytest.fixture(scope="module")
def domain(tmp_path_factory):
    folder = write_domains(tmp_path_factory.mktemp("data"), ["books"])
    return read_domain(folder / "books")


def prepared(domain, adapter, folder, **settings):
    chosen = config(folder, folder, **settings)
    backbone = adapter.backbone
    template = make_template(chosen.data.prompt_template, backbone.tokenizer, backbone.start)
    return ClientData(domain, adapter, template, chosen)


# What is held out


@pytest.mark.parametrize("template", ["history", "instruction"])
def test_no_client_trains_on_what_is_held_out(template, adapter, domain, tmp_path):
    """Validation and test titles are neither targets nor inputs of their user's training."""
    settings = {"prompt_template": template, "history": 3}
    data = prepared(domain, adapter, tmp_path, **settings)
    tokens, end, examples = data.catalogue.tokens, data.template.end, []
    for user in domain.users["train"]:
        # One user at a time: what one user holds out, another may train on.
        alone = replace(domain, users={**domain.users, "train": [user]})
        own = prepared(alone, adapter, tmp_path, **settings).training.examples
        inside = {item for item in tokens if any(holds(e.ids, tokens[item] + [end]) for e in own)}
        assert inside == set(domain.train[user])
        assert not inside & {domain.valid[user], domain.test[user]}
        targets = [title for example in own for title in titles_of(example, end)]
        assert sorted(targets) == sorted(tokens[item] for item in domain.train[user][1:])
        examples += own
    assert data.training.examples == examples


@pytest.mark.parametrize("template", ["history", "instruction"])
def test_validation_targets_are_the_validation_items(template, adapter, domain, tmp_path):
    data = prepared(domain, adapter, tmp_path, prompt_template=template, history=3)
    tokens, end = data.catalogue.tokens, data.template.end
    assert data.valid_users == domain.users["valid"]
    for user, example in zip(data.valid_users, data.validation.examples, strict=True):
        assert titles_of(example, end) == [tokens[domain.valid[user]]]
        assert example.targets[-1] == len(example.ids) - 1
        prompt = example.ids[: example.targets[0]]
        inside = {item for item in tokens if holds(prompt, tokens[item] + [end])}
        assert inside == set(domain.train[user][-3:])


def holds(ids, part):
    return any(ids[at : at + len(part)] == part for at in range(len(ids)))


def titles_of(example, end):
    """The target tokens, split at the ends of titles."""
    titles = [[]]
    for target in example.targets:
        if example.ids[target] == end:
            titles.append([])
        else:
            titles[-1].append(example.ids[target])
    assert titles.pop() == []  # every target title has its end
    return titles


@pytest.mark.parametrize("template", ["history", "instruction"])
def test_windows_keep_the_latest_examples_of_every_user(template, adapter, domain, tmp_path):
    settings = {"prompt_template": template, "history": 2}
    whole = prepared(domain, adapter, tmp_path, **settings)
    last = prepared(domain, adapter, tmp_path, windows_per_user=1, **settings)
    users = domain.users["train"]
    assert len(last.training.examples) == len(users) < len(whole.training.examples)
    for user, example in zip(users, last.training.examples, strict=True):
        titles = titles_of(example, last.template.end)
        assert titles[-1] == last.catalogue.tokens[domain.train[user][-1]]


def test_a_domain_without_a_target_is_refused(adapter, domain, tmp_path):
    short = replace(domain, train={user: items[:1] for user, items in domain.train.items()})
    with pytest.raises(ValueError, match="domain books has no user with two training items"):
        prepared(short, adapter, tmp_path)


# A round


def test_the_order_of_the_data_is_the_clients_and_the_rounds_own(tmp_path):
    def draws(name, round, **settings):
        chosen = config(tmp_path, tmp_path, **settings)
        return torch.randint(10**9, (4,), generator=generator_of(chosen, name, round)).tolist()

    assert draws("books", 1) == draws("books", 1, lr=0.5)
    others = [draws("comics", 1), draws("books", 2), draws("books", 1, seed=1)]
    assert all(draws("books", 1) != other for other in others)


def seen_packs(monkeypatch):
    """Indices of the examples of every step, in order."""
    steps, plain = [], training.token_losses

    def spy(adapter, states, examples, indices, loss):
        steps.append(tuple(indices))
        return plain(adapter, states, examples, indices, loss)

    monkeypatch.setattr(training, "token_losses", spy)
    return steps


@pytest.mark.parametrize("cut", [0.0, 0.3, 0.5, 1.0])
def test_shares_of_a_round_are_the_round(cut, data, backbone, tmp_path, monkeypatch):
    """No step twice, none left out."""
    with Rounds(data, tmp_path, backbone, "local", batch_tokens=100, local_epochs=2) as run:
        whole, parts = run.clients[0], run.clients[0].data.training.examples
        steps = seen_packs(monkeypatch)
        report = whole.fit(1)
        once = list(steps)
        steps.clear()
        first = whole.fit(1, share=(0.0, cut))
        both = first.then(whole.fit(1, share=(cut, 1.0)))
        assert steps == once and both.steps == report.steps == len(once)
        assert len(both.losses) == len(report.losses)
        trained = sorted(index for step in once for index in step)
        assert trained == sorted(list(range(len(parts))) * 2)  # two passes over the data
        sizes = [len(example.ids) - 1 for example in parts]
        assert all(sum(sizes[i] for i in step) <= 100 or len(step) == 1 for step in once)


def test_learning_rates_fall_linearly_over_all_rounds(data, backbone, tmp_path, monkeypatch):
    rates, plain = [], torch.optim.AdamW.step

    def spy(optimizer, *args, **kwargs):
        rates.append([group["lr"] for group in optimizer.param_groups])
        return plain(optimizer, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    settings = {"lr": 0.01, "alpha_lr": 0.1, "lr_end": 0.25, "rounds": 2, "batch_tokens": 64}
    with Rounds(data, tmp_path, backbone, "fedecider", **settings) as run:
        run.round(1)
        rates.clear()
        run.round(2)
    steps = len(rates) // 3
    assert steps > 2
    for step in range(steps):
        left = 1 - (0.5 + step / steps / 2) * (1 - 0.25)
        assert rates[step] == pytest.approx([0.01 * left, 0.1 * left])


def test_a_penalty_is_added_to_what_is_lowered_and_not_to_what_is_told(data, backbone, tmp_path):
    with Rounds(data, tmp_path, backbone, "local", batch_tokens=10**6, lr=0.1) as run:
        client, adapter = run.clients[0], run.adapter
        start = client.model.factors
        plain = client.fit(1)
        moved = client.model.factors
        client.model.factors = start
        held = client.fit(
            1, penalty=lambda: 1e6 * sum(B.square().sum() for B in adapter.parameters("B"))
        )
        assert torch.equal(held.losses, plain.losses)  # one step: told before it is made
        for name in adapter.names:  # at B = 0 the penalty has no gradient
            assert torch.equal(client.model.factors[name].B, moved[name].B)
        client.model.factors = moved
        client.fit(1, penalty=lambda: 1e6 * sum(B.square().sum() for B in adapter.parameters("B")))
        assert all(
            client.model.factors[name].B.norm() < moved[name].B.norm() for name in adapter.names
        )


def test_factors_that_are_not_trained_stay(data, backbone, tmp_path):
    with Rounds(data, tmp_path, backbone, "local") as run:
        client = run.clients[0]
        client.fit(1)
        for factors, still in (("A", "B"), ("B", "A")):
            before = client.model.factors
            client.fit(2, factors=factors)
            for name, pair in client.model.factors.items():
                assert torch.equal(getattr(pair, still), getattr(before[name], still))
                assert not torch.equal(getattr(pair, factors), getattr(before[name], factors))


# Validation


def test_validation_is_the_mean_over_tokens_under_the_model_of_each_user(adapter, domain, tmp_path):
    data = prepared(domain, adapter, tmp_path)
    generator = torch.Generator().manual_seed(3)
    start = ClientModel(dict(adapter.initial))
    other = ClientModel(
        {
            name: pair._replace(B=torch.randn(pair.B.shape, generator=generator).double())
            for name, pair in adapter.initial.items()
        }
    )
    users = data.valid_users
    groups = [(users[1::2], start), (users[::2], other)]
    total = count = 0.0
    for group, model in groups:
        for user in group:
            with torch.no_grad(), model.mixture(adapter, data.config.direction):
                rows = [users.index(user)]
                losses = token_losses(adapter, data.valid_states, data.validation, rows, vocabulary)
            total, count = total + losses.sum().item(), count + len(losses)
    assert validation_loss(data, groups, adapter) == pytest.approx(total / count, rel=1e-9)
    assert validation_loss(data, [(users, start)], adapter) != pytest.approx(total / count)


def test_pooled_states_are_those_of_the_parts(unlike, backbone, tmp_path):
    with Rounds(unlike, tmp_path, backbone, "centralized") as run:
        parts = [client.data for client in run.clients]
        pooled, losses = PooledData(parts), []
        for part in parts:
            for index in range(len(part.training.examples)):
                losses.append(
                    token_losses(run.adapter, part.train_states, part.training, [index], vocabulary)
                )
        everything = list(range(len(pooled.training.examples)))
        got = token_losses(
            run.adapter, pooled.train_states, pooled.training, everything, vocabulary
        )
        assert torch.allclose(got, torch.cat(losses), atol=1e-5)
        assert pooled.training.num_targets == sum(part.training.num_targets for part in parts)
        assert (
            sorted(i for step in pack(pooled.train_states.sizes, 100) for i in step) == everything
        )
