"""Tiny configurations of Hugging Face models, made from the signature of their config class alone."""

from __future__ import annotations

import inspect
import re
from typing import Any

VOCABULARY = 32
FIRST_TOKEN = 16  # the ids below are for special tokens
IMAGE, PATCH = 32, 8

# The first pattern that matches a parameter's name gives its value, where the default is a number (or None for those
# that are marked): a list or tuple takes its members in turn.
_NUMBERS: tuple[tuple[str, Any], ...] = (
    (r"type_vocab_size|num_types", 2),
    (r"(pad|padding)_token_id|pad_idx", 0),
    (r"bos_token_id", 1),
    (r"eos_token_id|sep_token_id", 2),
    (r"decoder_start_token_id", 1),
    (r".*vocab_size.*|vocab_dim|n_words|audio_vocab", VOCABULARY),
    (r"image_size|img_size|input_size|crop_size", IMAGE),
    (r"patch_size|patch_sizes|tubelet_size|spatial_patch_size", PATCH),
    (r"temporal_patch_size|spatial_merge_size|num_frames|frames", 2),
    (r"max_(source|target)?_?position.*|n_positions|n_ctx|max_sequence_length|max_seq_len\w*|seq_length", 64),
    (r"(num_|n_)?(local_|routed_)?experts|num_local_experts|n_routed_experts|moe_num_experts", 4),
    (r"n(um)?_shared_experts|moe_num_shared_experts", 1),
    (r".*experts_per_tok(en)?|moe_topk|moe_k|top_?k_experts|num_selected_experts|moe_router_topk", 2),
    (r"n_group|topk_group|n_groups|mamba_n_groups|num_groups", 1),
    (r"first_k_dense_replace|moe_layer_start_index", 0),
    (r".*(intermediate|ffn|inner|feed_?forward|mlp|ff)_?(hidden_)?(dim|size)|d_ff|d_inner|n_inner|\w+_ffn_dim", 24),
    (r"qk_rope_head_dim|rotary_dim|rope_dim", 4),
    (r"(qk_nope_|v_|attention_)?head_dim|d_kv|head_size|.*_head_dim|.*_head_size|kv_channels", 8),
    (r"(q|kv)_lora_rank|.*lora_rank|.*low_rank_dim|.*_rank", 4),
    (r".*(num_|n_)?(key_value|kv)_heads|num_query_groups|num_attention_groups", 2),
    (r".*(num_|n_)heads?|n_head|.*attention_heads|num_.*heads", 2),
    (r"(num_|n_).*layers?|\w*_layers|depth|n_layer|.*num_(hidden_)?layers|.*_depth|num_blocks", 1),
    (r"(mamba_)?d_state|state_size|ssm_state_size|mamba_state_dim", 4),
    (r"(mamba_)?(d_conv|conv_kernel|conv_kernel_size)|conv_width|conv_L_cache", 4),
    (r"(mamba_)?chunk_size|.*chunk_length", 4),
    (r".*(hidden|embed|embedding|model|projection|feature|feat|channel)s?_?(dim|size|channels)|d_model|n_embd|dim|"
     r"width|lru_width|.*_dim|.*hidden_size|.*channels_", 16),
    (r"num_mel_bins|num_mels|feature_size", 16),
    (r"num_queries|num_query_tokens|.*query_tokens|num_latents|num_denoising", 5),
    (r"sliding_window|attention_window|local_attention.*|.*window_size|block_size", 4),
    (r"(initializer_range|init_std|init_xavier_std|initializer_std)", 0.3),
    (r"num_labels", 3),
)  # fmt: skip
_LISTS: tuple[tuple[str, tuple[Any, ...]], ...] = (
    (r".*depths?|num_layers|layers|.*layers|num_blocks|n_layers", (1, 1, 1, 1, 1, 1)),
    (r".*heads.*", (1, 1, 2, 2, 2, 2)),
    (r".*(hidden_sizes|dims?|channels|sizes|widths?)", (8, 8, 16, 16, 16, 16)),
)
_ALSO_FOR_NONE = re.compile(
    r"(pad|bos|eos|sep|decoder_start)_token_id|head_dim|.*key_value_heads|num_kv_heads|n_inner|\w*ffn_dim|"
    r"moe_intermediate_size|embedding_size|vocab_size|num_experts_per_tok|n_routed_experts"
)
_MOST_NUMBER = 64  # an integer above, whose name says nothing, is made 16


def signature(config: type) -> dict[str, Any]:
    """The defaults of a config class's own parameters."""
    parameters = inspect.signature(config.__init__).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY or p.name in ("is_encoder_decoder",)}


def tiny(config: type, overrides: dict[str, Any] | None = None) -> dict[str, Any]:
    """The arguments of a config class that make its model small; `overrides` has the last word, in sub-configs too."""
    overrides = dict(overrides or {})
    arguments: dict[str, Any] = {}
    for name, default in signature(config).items():
        value = _small(name, default)
        if value is not None and value != default:
            arguments[name] = value
    for name, kind in _parts(config, overrides).items():
        given = dict(overrides.pop(name, {}))
        given.pop("config", None)
        arguments[name] = kind(**tiny(kind, given))
    return arguments | overrides


def _parts(config: type, overrides: dict[str, Any]) -> dict[str, type]:
    """The classes of the sub-configs that a config has by default, or that the overrides name."""
    names = getattr(config, "sub_configs", {})
    if not names:
        return {}
    import transformers

    named = {name: getattr(transformers, o["config"]) for name in names if "config" in (o := overrides.get(name, {}))}
    if len(named) == len(names):
        return named
    default = config()
    parts = {name: type(part) for name in names if (part := getattr(default, name, None)) is not None}
    return parts | named


def _small(name: str, default: Any) -> Any:
    """The value of a parameter in a tiny model; None to leave it."""
    if isinstance(default, bool):
        return None
    if isinstance(default, list | tuple) and default and all(type(x) is int for x in default):
        if re.fullmatch(r"image_size|patch_size|img_size", name):
            return type(default)([_number(name, x) for x in default])
        for pattern, values in _LISTS:
            if re.fullmatch(pattern, name) and len(default) <= len(values):
                return type(default)(values[: len(default)])
        return None
    if isinstance(default, int | float) or (default is None and _ALSO_FOR_NONE.fullmatch(name)):
        return _number(name, default)
    return None


def _number(name: str, default: Any) -> Any:
    for pattern, value in _NUMBERS:
        if re.fullmatch(pattern, name):
            if isinstance(default, int) and 0 <= default < value and not name.endswith("_id"):
                return default  # small already
            return value
    if "ignore" in name:
        return None
    if re.fullmatch(r".*token_(id|index|idx)|.*_token", name) and isinstance(default, int) and default >= FIRST_TOKEN:
        return 3 + sum(map(ord, name)) % (FIRST_TOKEN - 3)
    return 16 if type(default) is int and default > _MOST_NUMBER else None
