"""A frozen causal language model and its tokenizer, from a hub id, a folder or a package.

Notable choices: the model's blocks run on packed rows, with an attention that asks the row's layout
who sees whom; bf16 is used where the processor multiplies it natively.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import try_to_load_from_cache
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.utils import logging as transformers_logging

from fedecider.engine.attention import Layout
from fedecider.engine.packing import PackedBatch, PromptTree
from fedecider.engine.weights import (
    PACKAGED,
    dense_copy,
    folder_digest,
    parameter_digest,
    split_depth,
    tiny,
)

_ATTENTION = "by_layout"


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    layout: Layout | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention of a packed row by its layout; plain SDPA where a caller gives none (generate)."""
    if layout is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    return layout.attend(q, k, v, kwargs["scaling"])[None], None


AttentionInterface.register(_ATTENTION, _attention)
AttentionMaskInterface.register(_ATTENTION, sdpa_mask)


@dataclass(frozen=True)
class Backbone:
    """A frozen decoder and its tokenizer; `identity` names weights and precision for caches.

    `weights` is a digest of the weights before precision and cut, or a hub model's commit: equal
    for equal models, wherever they lie; "" where the commit cannot be told.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    name: str
    device: torch.device
    dtype: torch.dtype
    identity: str
    weights: str = ""

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
    def head(self) -> Tensor:
        """Weight of the output layer, (vocabulary, width), frozen."""
        return self.model.get_output_embeddings().weight

    @property
    def start(self) -> int:
        """Token that opens every prompt; alone it is the empty prompt.

        Raises ValueError if the tokenizer has neither a bos nor an eos token.
        """
        tokenizer = self.tokenizer
        for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
            if token is not None:
                return token
        raise ValueError(f"the tokenizer of {self.name} has neither a bos nor an eos token")

    def embed(self, ids: Tensor) -> Tensor:
        """Token embeddings (1, T, width) of ids (T,)."""
        return self.model.get_input_embeddings()(ids.to(self.device))[None]

    def blocks(
        self,
        hidden: Tensor,
        positions: Tensor,
        layout: Layout,
        first: int = 0,
        last: int | None = None,
    ) -> Tensor:
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

    def normed(self, hidden: Tensor) -> Tensor:
        """The final norm, ready for the output layer."""
        return self.model.model.norm(hidden)


def pick_device(device: str = "auto") -> torch.device:
    """ "auto" takes a CUDA device if there is one."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device)


def pick_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """ "auto" takes bf16 where the processor multiplies it natively, else float32.

    Raises ValueError for a name other than auto, float32, bfloat16 and float64.
    """
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


def make_deterministic(device: torch.device) -> None:
    """Make a GPU's results reproducible; a CPU's are. Call it before `load`.

    cuBLAS reads its variable once, before its first product, and loading a model makes one.
    """
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)


def load(name: str, device: str = "auto", dtype: str = "auto") -> Backbone:
    """Load a frozen causal LM: `smollm2-135m`, `tiny`, a local folder or a hub id.

    `<name>@<n>` cuts it to its first n blocks, the final norm and the output layer behind them.
    Raises FileNotFoundError with one line on what to install or pass if there is no such model, and
    ValueError if the model has fewer than n blocks or is not of the Llama family's layout (blocks
    `model.layers`, rotary positions), which the packed forward relies on and which is checked on a
    probe.
    """
    target = pick_device(device)
    precision = pick_dtype(dtype, target)
    transformers_logging.disable_progress_bar()
    base, depth = split_depth(name)
    model, tokenizer, revision, weights = _read(base, precision)
    if depth is not None:
        if not hasattr(model, "model") or not 1 <= depth <= model.config.num_hidden_layers:
            raise ValueError(
                f"{base} has {model.config.num_hidden_layers} blocks and cannot be cut to {depth}"
            )
        model.model.layers = model.model.layers[:depth]
        model.config.num_hidden_layers = depth
    # Parameters alone: the buffers hold the rotary frequencies, which bf16 would falsify.
    for parameter in model.parameters():
        parameter.data = parameter.data.to(precision)
    model.to(target)  # type: ignore[arg-type]  # transformers' decorator hides the signature
    model.eval().requires_grad_(False)
    model.config.use_cache = False
    # What a hub model ships for chatting (a repetition penalty, say) has no place in ranking.
    model.generation_config = GenerationConfig()
    # A strided row (the last position of a padded batch) would make matmul copy the output layer
    # once per row.
    model.get_output_embeddings().register_forward_pre_hook(lambda _, args: (args[0].contiguous(),))
    # States computed by other versions of what multiplies may differ in the last digit.
    software = f"torch {torch.__version__} transformers {transformers.__version__}"
    label = f"@{depth}" if base not in PACKAGED and Path(base).is_dir() else name
    mark = f"{label} {revision} {precision} {target.type} {software}"
    identity = hashlib.sha256(mark.encode()).hexdigest()
    backbone = Backbone(model, tokenizer, name, target, precision, identity[:16], weights)
    _check_layout(backbone)
    return backbone


def digest_of(name: str) -> str:
    """The `weights` of a model in a folder, without loading it; "" for every other."""
    base = split_depth(name)[0]
    return folder_digest(Path(base)) if base not in PACKAGED and Path(base).is_dir() else ""


def _read(
    name: str, precision: torch.dtype
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast, str, str]:
    """Model, tokenizer, a text that names the revision for caches, and `Backbone.weights`."""
    if name == "tiny":
        made, tokens = tiny()
        return made, tokens, "seed 0", parameter_digest(made)
    source = str(dense_copy(name)) if name in PACKAGED else name
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(source)
        model: Any = AutoModelForCausalLM.from_pretrained(source, dtype=precision)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"no causal language model under {name!r}: pass {', '.join(PACKAGED)}, a folder "
            f"with config.json, weights and tokenizer, or a hub id that can be reached "
            f"({str(error).splitlines()[0]})"
        ) from error
    if name in PACKAGED:
        folder = Path(source)
        sizes = sorted((part.name, part.stat().st_size) for part in folder.iterdir())
        revision = f"{folder.name} None" + " ".join(f"{part} {size}" for part, size in sizes)
        return model, tokenizer, revision, folder_digest(folder, "*.safetensors")
    weights = digest_of(name)
    if weights:  # not its place: the same model may lie in another folder
        return model, tokenizer, weights, weights
    commit = _commit_of(name)
    return model, tokenizer, f"{Path(source).name} {commit}", f"commit {commit}" if commit else ""


def _commit_of(name: str) -> str | None:
    """The commit of a hub model that was just loaded: its folder in the hub's cache."""
    path = try_to_load_from_cache(name, "config.json")
    return Path(path).parent.name if isinstance(path, str) else None


@torch.no_grad()
def _check_layout(backbone: Backbone) -> None:
    """The packed forward must agree with the model's own; a probe of eight tokens tells."""
    ids = torch.arange(8) % backbone.model.config.vocab_size
    complaint = (
        f"{backbone.name} ({type(backbone.model).__name__}) is not laid out like the Llama family "
        "(Llama, SmolLM, Mistral, Qwen2, Qwen3): its blocks cannot be run on packed sequences"
    )
    try:
        plain = backbone.model(ids[None].to(backbone.device)).logits[0].float()
        backbone.model.set_attn_implementation(_ATTENTION)
        batch = PackedBatch([PromptTree(ids.tolist())])
        hidden = backbone.blocks(backbone.embed(batch.ids), batch.positions, batch)
        packed = (backbone.normed(hidden)[0] @ backbone.head.T).float()
    except (AttributeError, TypeError) as error:
        raise ValueError(complaint) from error
    tolerance = {torch.bfloat16: 0.15}.get(backbone.dtype, 1e-2) * plain.abs().max()
    if not (plain - packed).abs().max() <= tolerance:
        raise ValueError(complaint)
