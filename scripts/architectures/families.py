"""Hugging Face model types by task head, and what their tiny configurations need beyond the rules of `shrink.py`."""

from __future__ import annotations

from typing import Any

FAMILIES: dict[str, str] = {
    "causal language model": """
        afmoe apertus aria_text bailing_hybrid bamba bert-generation biogpt bitnet bloom blt codegen cohere
        cohere2 cohere2_moe cpmant ctrl deepseek_v2 deepseek_v3 deepseek_v32 deepseek_v4 diffllama doge
        ernie4_5_moe exaone4 exaone_moe falcon falcon_h1 falcon_mamba flex_olmo flint gemma gemma2 gemma3_text
        gemma4_text glm glm4 glm4_moe glm4_moe_lite glm_moe_dsa gpt2 gpt_bigcode gpt_neo gpt_neox
        gpt_neox_japanese gpt_oss gptj granite granite_swa granitemoe granitemoe_swa granitemoehybrid
        granitemoeshared helium hunyuan_v1_dense hunyuan_v1_moe hy_v3 inkling_text jamba jetmoe kimi_linear
        laguna lfm2 llama llama4_text mamba mamba2 mimo_v2_flash minicpm3 minimax minimax_m2
        minimax_m3_vl_text ministral ministral3 mistral mixtral modernbert-decoder moshi mpt nanochat nemotron
        nemotron_h olmo olmo2 olmo3 olmo_hybrid olmoe openai-gpt opt persimmon phi phi3 phimoe qwen2 qwen2_moe
        qwen3 qwen3_5_moe_text qwen3_5_text qwen3_moe qwen3_next recurrent_gemma rwkv smollm3 solar_open
        stablelm starcoder2 trocr vaultgemma xglm xlstm youtu zamba2 zaya
    """,
    "masked language model": """
        bert convbert esm esmc eurobert flaubert fnet funnel gte ibert jina_embeddings_v3 layoutlm luke
        mobilebert modernbert mra nomic_bert nystromformer rembert roberta roberta-prelayernorm roc_bert
        roformer tapas ultrabert xlm xlm-roberta xmod yoso
    """,
    "sequence to sequence": """
        bart bigbird_pegasus blenderbot blenderbot-small encoder-decoder led longt5 m2m_100 marian mbart mt5
        mvp nllb-moe pegasus pegasus_x plbart prophetnet switch_transformers t5 t5gemma umt5
    """,
    "image classification": """
        bit convnext convnextv2 deit dinov2 dinov2_with_registers donut-swin efficientnet focalnet hiera
        ijepa levit mobilenet_v1 mobilevitv2 poolformer pvt pvt_v2 regnet resnet swiftformer swin swinv2 vit
        vit_msn
    """,
    "contrastive": """
        blip clip clipseg siglip tipsv2
    """,
    "universal segmentation": """
        eomt eomt_dinov3 mask2former maskformer
    """,
    "token classification": """
        bert canine distilbert electra longformer mistral4 openai_privacy_filter roberta
    """,
    "question answering": """
        albert big_bird mpnet splinter
    """,
    "video classification": """
        timesformer videomae vivit
    """,
    "speech recognition": """
        whisper
    """,
    "detection": """
        conditional_detr dab-detr deformable_detr detr rt_detr table-transformer yolos
    """,
    "sequence classification": """
        deberta deberta-v2 gpt2 llama mistral xlnet
    """,
    "multiple choice": """
        ernie megatron-bert squeezebert
    """,
    "CTC": """
        data2vec-audio hubert wav2vec2 wav2vec2-bert wav2vec2-conformer
    """,
    "audio classification": """
        audio-spectrogram-transformer sew sew-d unispeech unispeech-sat wavlm
    """,
    "translation": """
        fsmt
    """,
    "masked image": """
        deit vit
    """,
    "segmentation": """
        beit data2vec-vision dpt mobilevit segformer upernet
    """,
    "depth": """
        depth_anything glpn
    """,
    "time series": """
        autoformer time_series_transformer
    """,
    "time series, drawn keys": """
        informer
    """,
    "time series by channels": """
        patchtsmixer patchtst
    """,
    "decisions": """
        decision_transformer
    """,
    "masked autoencoder": """
        vit_mae
    """,
    "speech to text": """
        speech_to_text
    """,
    "speech from the wave": """
        moonshine
    """,
    "contrastive audio": """
        clap
    """,
    "contrastive patches": """
        siglip2
    """,
    "captioning": """
        git
    """,
}

# Whose layers differ from one to the next, or are shared.
_TWO = {"num_hidden_layers": 2}
_TWO_LAYERS = """
    afmoe albert bailing_hybrid bamba cohere2 deepseek_v3 gemma2 gemma3_text gemma4_text gpt_oss granitemoehybrid jamba
    kimi_linear lfm2 llama4_text minimax nemotron_h olmo3 olmo_hybrid olmoe qwen3_5_text qwen3_next recurrent_gemma
    rwkv xlstm zamba zamba2
"""

_BACKBONE = {"config": "ResNetConfig", "embedding_size": 8, "layer_type": "basic", "out_features": ["stage4"]}
_FOUR_STAGES = _BACKBONE | {"out_features": ["stage1", "stage2", "stage3", "stage4"]}
_DETR = {"backbone_config": _BACKBONE}
_WAVE = {
    "conv_dim": (8, 8), "conv_stride": (5, 4), "conv_kernel": (10, 8), "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "apply_spec_augment": False,
    "mask_time_prob": 0.0, "classifier_proj_size": 8,
}  # fmt: skip
_WAVE_MODELS = "wav2vec2 hubert unispeech unispeech-sat wavlm sew sew-d data2vec-audio wav2vec2-conformer"
_T5 = {"decoder_start_token_id": 0, "d_kv": 8}
_SWIN = {"embed_dim": 8, "depths": (1, 1), "num_heads": (1, 2), "window_size": 2, "patch_size": 4, "encoder_stride": 8}
_VIT = {"encoder_stride": 8}
_TIME = {"prediction_length": 3, "context_length": 6, "lags_sequence": [1, 2], "num_time_features": 1}
_DPT = {
    "num_hidden_layers": 4, "backbone_out_indices": (0, 1, 2, 3), "neck_hidden_sizes": (8, 8, 8, 8),
    "fusion_hidden_size": 8, "auxiliary_channels": 8,
}  # fmt: skip
_DINO = {"config": "Dinov2Config", "num_hidden_layers": 4, "out_indices": [1, 2, 3, 4], "reshape_hidden_states": False}
_ANYTHING = {
    "backbone_config": _DINO, "neck_hidden_sizes": (8, 8, 8, 8), "fusion_hidden_size": 8, "reassemble_hidden_size": 16,
    "head_hidden_size": 8, "patch_size": 8,
}  # fmt: skip

OVERRIDES: dict[str, dict[str, Any]] = {
    **{name: _TWO for name in _TWO_LAYERS.split()},
    **{name: _WAVE for name in _WAVE_MODELS.split()},
    "unispeech-sat": _WAVE | {"num_clusters": 8},
    "wavlm": _WAVE | {"num_buckets": 8, "max_bucket_distance": 16},
    "sew": _WAVE | {"squeeze_factor": 2},
    "sew-d": _WAVE | {"squeeze_factor": 2, "max_position_embeddings": 64, "position_buckets": 8},
    "data2vec-audio": _WAVE | {"conv_pos_kernel_size": 3},
    "wav2vec2-bert": {"feature_projection_input_dim": 16},
    "wav2vec2-conformer": _WAVE | {"vocab_size": 32, "conv_depthwise_kernel_size": 3},
    "audio-spectrogram-transformer": {"max_length": 32, "frequency_stride": 8, "time_stride": 8, "patch_size": 8},
    "speech_to_text": {
        "conv_channels": 8,
        "input_feat_per_channel": 16,
        "num_conv_layers": 2,
        "max_source_positions": 64,
    },
    "t5": _T5,
    "longt5": _T5 | {"local_radius": 3},
    "switch_transformers": _T5,
    "fsmt": {"langs": ["en", "de"]},
    "detr": _DETR,
    "conditional_detr": _DETR,
    "table-transformer": _DETR,
    "dab-detr": _DETR,
    "deformable_detr": {"backbone_config": _FOUR_STAGES, "num_feature_levels": 4, "d_model": 32, "decoder_layers": 2},
    "rt_detr": {
        "backbone_config": {
            "config": "RTDetrResNetConfig",
            "embedding_size": 8,
            "hidden_sizes": [8, 8, 16, 16],
            "depths": [1, 1, 1, 1],
            "layer_type": "basic",
            "out_features": ["stage2", "stage3", "stage4"],
        },
        "encoder_in_channels": [8, 16, 16],
        "encoder_hidden_dim": 16,
        "decoder_in_channels": [16, 16, 16],
        "feat_strides": [8, 16, 32],
        "encode_proj_layers": [2],
        "num_feature_levels": 3,
        "num_denoising": 0,
        "anchor_image_size": None,
    },
    "mask2former": {
        "backbone_config": _SWIN
        | {
            "config": "SwinConfig",
            "depths": (1, 1, 1, 1),
            "num_heads": (1, 1, 2, 2),
            "out_features": ["stage1", "stage2", "stage3", "stage4"],
        },
        "feature_size": 32,
        "mask_feature_size": 32,
        "hidden_dim": 32,
        "train_num_points": 50,
    },
    "maskformer": {
        "backbone_config": _SWIN
        | {
            "config": "SwinConfig",
            "depths": (1, 1, 1, 1),
            "num_heads": (1, 1, 2, 2),
            "out_features": ["stage1", "stage2", "stage3", "stage4"],
        },
        "decoder_config": {"config": "DetrConfig"} | _DETR,
        "fpn_feature_size": 32,
        "mask_feature_size": 16,
    },
    "vit": _VIT,
    "deit": _VIT,
    "swin": _SWIN,
    "swinv2": _SWIN,
    "donut-swin": _SWIN,
    "focalnet": {
        "embed_dim": 8,
        "hidden_sizes": [8, 16],
        "depths": [1, 1],
        "focal_levels": [1, 1],
        "focal_windows": [3, 3],
        "patch_size": 4,
        "encoder_stride": 8,
    },
    "mobilenet_v1": {"depth_multiplier": 0.05, "min_depth": 4},
    "mobilenet_v2": {"depth_multiplier": 0.05, "min_depth": 4, "depth_divisible_by": 4, "expand_ratio": 2.0},
    "mobilevit": {
        "hidden_sizes": [8, 8, 8],
        "neck_hidden_sizes": [4, 4, 4, 8, 8, 8, 8],
        "patch_size": 2,
        "aspp_out_channels": 8,
        "expand_ratio": 1.0,
        "num_attention_heads": 2,
    },
    "mobilevitv2": {
        "width_multiplier": 0.0625,
        "aspp_out_channels": 8,
        "patch_size": 2,
        "expand_ratio": 1.0,
        "image_size": 64,
    },
    "efficientnet": {
        "width_coefficient": 0.1,
        "depth_coefficient": 0.1,
        "depth_divisor": 4,
        "hidden_dim": 128,
        "kernel_sizes": [3, 5],
        "in_channels": [16, 16],
        "out_channels": [16, 24],
        "strides": [1, 2],
        "num_block_repeats": [1, 1],
        "expand_ratios": [1, 2],
    },
    "dpt": _DPT,
    "depth_anything": _ANYTHING,
    "glpn": {"patch_sizes": [3, 3, 3, 3], "strides": [4, 2, 2, 2], "sr_ratios": [2, 1, 1, 1], "decoder_hidden_size": 8},
    "beit": {"num_hidden_layers": 4, "out_indices": [0, 1, 2, 3], "auxiliary_channels": 8},
    "data2vec-vision": {"num_hidden_layers": 4, "out_indices": (0, 1, 2, 3), "auxiliary_channels": 8},
    "segformer": {
        "hidden_sizes": [8, 8, 8, 8],
        "num_attention_heads": [1, 1, 2, 2],
        "decoder_hidden_size": 8,
        "mlp_ratios": [2, 2, 2, 2],
        "sr_ratios": [2, 1, 1, 1],
    },
    "pvt": {
        "strides": [4, 2, 2, 1],
        "patch_sizes": [4, 2, 2, 1],
        "sequence_reduction_ratios": [2, 1, 1, 1],
        "mlp_ratios": [2, 2, 2, 2],
    },
    "pvt_v2": {
        "sr_ratios": [2, 1, 1, 1],
        "patch_sizes": [3, 3, 3, 3],
        "mlp_ratios": [2, 2, 2, 2],
        "hidden_sizes": [8, 8, 8, 8],
    },
    "poolformer": {
        "patch_sizes": [3, 3, 3, 3],
        "strides": [4, 2, 2, 2],
        "mlp_ratio": 2.0,
        "hidden_sizes": [8, 8, 8, 8],
    },
    "levit": {
        "image_size": 64,
        "patch_size": 16,
        "hidden_sizes": [16, 16, 16],
        "num_attention_heads": [2, 2, 2],
        "depths": [1, 1, 1],
        "key_dim": [4, 4, 4],
    },
    "hiera": {
        "embed_dim": 4,
        "depths": [1, 1, 1, 1],
        "image_size": [32, 32],
        "patch_size": [7, 7],
        "masked_unit_size": [8, 8],
        "num_heads": [1, 1, 1, 2],
    },
    "upernet": {
        "backbone_config": _FOUR_STAGES,
        "hidden_size": 8,
        "auxiliary_channels": 8,
        "auxiliary_in_channels": 16,
    },
    "bamba": _TWO | {"attn_layer_indices": [1]},
    "jamba": _TWO | {"attn_layer_period": 2, "attn_layer_offset": 1},
    "bailing_hybrid": _TWO | {"layer_group_size": 2},
    "recurrent_gemma": _TWO | {"block_types": ("recurrent", "attention")},
    "lfm2": _TWO | {"layer_types": ["conv", "full_attention"]},
    **{
        name: _TWO | {"layer_types": ["linear_attention", "full_attention"]}
        for name in ("kimi_linear", "qwen3_next", "qwen3_5_text", "qwen3_5_moe_text", "granitemoehybrid")
    },
    "mamba2": {"num_heads": 4, "head_dim": 8, "n_groups": 1},
    "zamba2": {
        "num_hidden_layers": 2,
        "layers_block_type": ["mamba", "hybrid"],
        "n_mamba_heads": 4,
        "mamba_headdim": 8,
        "mamba_ngroups": 1,
        "hybrid_layer_ids": [1],
    },
    "gpt_neo": {"num_layers": 2, "attention_types": [[["global", "local"], 1]], "num_heads": 2},
    "codegen": {"n_head": 4, "n_embd": 32, "rotary_dim": 4},
    "convbert": {"num_attention_heads": 4, "conv_kernel_size": 3},
    "nystromformer": {"segment_means_seq_len": 7, "num_landmarks": 7, "conv_kernel_size": 3},
    "xmod": {"default_language": "en_XX"},
    "funnel": {"block_sizes": [1, 1], "d_model": 16, "d_inner": 24, "num_decoder_layers": 1},
    "reformer": {
        "attn_layers": ["local", "local"],
        "axial_pos_embds": False,
        "hidden_dropout_prob": 0.0,
        "local_attention_probs_dropout_prob": 0.0,
        "lsh_attention_probs_dropout_prob": 0.0,
        "chunk_size_lm_head": 0,
        "local_attn_chunk_length": 4,
        "local_num_chunks_before": 1,
        "num_hashes": 1,
        "is_decoder": False,
    },
    "time_series_transformer": _TIME,
    "informer": _TIME | {"scaling": "mean", "sampling_factor": 2},
    "autoformer": _TIME | {"label_length": 2, "moving_average": 3},
    "patchtst": {
        "patch_length": 4,
        "patch_stride": 4,
        "context_length": 16,
        "prediction_length": 3,
        "ffn_dim": 16,
        "num_input_channels": 2,
    },
    "patchtsmixer": {
        "patch_length": 4,
        "patch_stride": 4,
        "context_length": 16,
        "prediction_length": 3,
        "num_input_channels": 2,
    },
    "decision_transformer": {"state_dim": 4, "act_dim": 2, "max_ep_len": 32, "n_inner": 24},
    "vit_mae": {"decoder_hidden_size": 16, "decoder_intermediate_size": 24, "decoder_num_hidden_layers": 1},
    "clap": {
        "audio_config": {
            "spec_size": 32,
            "num_mel_bins": 16,
            "depths": (1, 1),
            "num_attention_heads": (1, 2),
            "patch_embeds_hidden_size": 8,
            "hidden_size": 16,
            "window_size": 4,
        }
    },
    "siglip2": {"vision_config": {"num_patches": 16, "hidden_size": 16}},
    "git": {"vision_config": {"image_size": 16, "patch_size": 8}},
}
