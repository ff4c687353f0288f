"""The own LoRA: its start, what it takes in, what it writes, and the model without it."""

import pytest
import torch
from peft import PeftModel

from fedecider.adapter import Adapter
from fedecider.direction import LowRank
from fedecider.engine.backbone import load
from fedecider.engine.hidden_states import compute_states
from fedecider.engine.packing import PackedBatch, PromptTree

IDS = [0, *range(20, 60)]


@pytest.fixture(scope="module")
def backbone():
    return load("tiny", "cpu", "float64")


@pytest.fixture
def adapter(backbone):
    with Adapter(backbone, 2, 4, ["q_proj", "v_proj", "down_proj"], seed=1) as adapter:
        yield adapter


def some_factors(adapter, seed, rank=2, scale=0.1, only=None):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: LowRank(
            torch.randn(pair.B.shape[0], rank, generator=generator, dtype=torch.float64) * scale,
            torch.randn(rank, pair.A.shape[1], generator=generator, dtype=torch.float64) * scale,
        )
        for name, pair in adapter.initial.items()
        if only is None or only in name
    }


def test_adapter_start_depends_on_the_seed_alone(backbone):
    def start(seed):
        torch.manual_seed(torch.randint(1000, ()).item())  # whatever was drawn before
        with Adapter(backbone, 2, 4, ["q_proj"], seed=seed) as adapter:
            return adapter.initial

    first, again, other = start(5), start(5), start(6)
    for name in first:
        assert torch.equal(first[name].A, again[name].A)
        assert not torch.equal(first[name].A, other[name].A)
        assert (first[name].B == 0).all()


def test_loading_refuses_missing_keys_and_wrong_shapes(adapter):
    partial = dict(adapter.initial)
    name, pair = partial.popitem()
    with pytest.raises(KeyError, match=name.replace(".", r"\.")):
        adapter.load(partial)
    with pytest.raises(ValueError, match="shape"):
        adapter.load({**partial, name: LowRank(pair.B[:, :1], pair.A[:1])})


def test_own_lora_is_a_plain_peft_adapter(tmp_path):
    """Saved by save_pretrained, loaded by a user who knows PEFT alone."""
    ids = torch.tensor([IDS])
    backbone = load("tiny", "cpu", "float32")
    with Adapter(backbone, 2, 4, ["q_proj", "v_proj"], top_layers=1) as adapter:
        adapter.load({n: p.to(torch.float32) for n, p in some_factors(adapter, 13).items()})
        adapter.save(tmp_path)
        with torch.no_grad():
            ours = adapter.peft(ids).logits
    with torch.no_grad():
        plain = backbone.model(ids).logits
        theirs = PeftModel.from_pretrained(load("tiny", "cpu", "float32").model, tmp_path)
        assert torch.equal(theirs(ids).logits, ours)
    assert not torch.equal(plain, ours)


def test_closing_gives_the_backbone_back(backbone):
    names = [name for name, _ in backbone.model.named_parameters()]
    with Adapter(backbone, 2, 4, ["q_proj"]):
        assert any("lora" in name for name, _ in backbone.model.named_parameters())
    assert [name for name, _ in backbone.model.named_parameters()] == names


def test_stored_states_and_upper_blocks_make_the_whole_model(backbone):
    trees = [PromptTree(IDS), PromptTree(IDS[:7])]
    with Adapter(backbone, 2, 4, ["q_proj"], top_layers=1) as adapter, torch.no_grad():
        batch = PackedBatch(trees, compute_states(backbone, trees, adapter.first))
        above = adapter.hidden(batch)
        whole = backbone.blocks(backbone.embed(batch.ids), batch.positions, batch)
        assert (above - backbone.normed(whole)[0]).abs().max() < 1e-12


def test_bad_settings_are_named(backbone):
    with pytest.raises(ValueError, match="top_layers must be 1 to 2"):
        Adapter(backbone, 2, 4, ["q_proj"], top_layers=3)
    with pytest.raises(ValueError, match="lm_tail"):
        Adapter(backbone, 2, 4, ["lm_tail"])
    names = [name for name, _ in backbone.model.named_parameters()]
    assert not any("lora" in name for name in names)  # a refused adapter leaves nothing behind
