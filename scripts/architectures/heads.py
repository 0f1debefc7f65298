"""Task heads of Hugging Face models: which class, and a batch with which its own loss can be computed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers.models.auto import modeling_auto

from architectures.instance import classes, normal, seeded
from architectures.shrink import FIRST_TOKEN, IMAGE, VOCABULARY

TOKENS = 7
SAMPLES = 400  # of a sound


@dataclass(frozen=True)
class Head:
    """`mapping`: the auto mapping from model type to class, or that itself. `batch(config)`: two labelled samples."""

    mapping: str | dict[str, str]
    batch: Callable[[Any], dict[str, Any]]
    loss: Any = "model"
    labels: int = 3


def model_class(head: Head, model_type: str) -> type:
    """The class of a model type with this head."""
    mapping = head.mapping
    if isinstance(mapping, str):
        mapping = getattr(modeling_auto, f"MODEL_FOR_{mapping}_MAPPING_NAMES")
    name = mapping[model_type]
    found: type = getattr(transformers, name if isinstance(name, str) else name[0])
    return found


# --- batches ----------------------------------------------------------------------------------------------------------


def ids(*shape: int, seed: int = 1) -> Tensor:
    """Tokens that are none of the special ones."""
    return torch.randint(FIRST_TOKEN, VOCABULARY, shape or (2, TOKENS), generator=seeded(seed))


def images(config: Any, samples: int = 2) -> Tensor:
    """As many channels and pixels as a config asks for."""
    config = getattr(config, "vision_config", None) or config
    size = getattr(config, "image_size", None) or IMAGE
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return normal(samples, getattr(config, "num_channels", 3) or 3, height, width)


def causal(config: Any) -> dict[str, Any]:
    x = ids()
    y = x.clone()
    y[0, :3] = -100
    return {"input_ids": x, "labels": y}


def masked(config: Any) -> dict[str, Any]:
    y = ids(seed=9)
    y[0, 1] = y[1, 3] = y[1, 4] = -100
    return {"input_ids": ids(), "labels": y}


def seq2seq(config: Any) -> dict[str, Any]:
    y = ids(2, 5, seed=9)
    y[1, 3:] = -100
    return {"input_ids": ids(), "labels": y}


def sequence(config: Any) -> dict[str, Any]:
    return {"input_ids": ids(), "labels": torch.tensor([0, 2])}


def token(config: Any) -> dict[str, Any]:
    y = classes(2, TOKENS)
    y[0, 0] = -100
    return {"input_ids": ids(), "labels": y}


def answer(config: Any) -> dict[str, Any]:
    return {"input_ids": ids(), "start_positions": torch.tensor([1, 2]), "end_positions": torch.tensor([3, 2])}


def choice(config: Any) -> dict[str, Any]:
    return {"input_ids": ids(2, 3, TOKENS), "labels": torch.tensor([2, 0])}


def image(config: Any) -> dict[str, Any]:
    return {"pixel_values": images(config), "labels": torch.tensor([0, 2])}


def masked_image(config: Any) -> dict[str, Any]:
    x = images(config)
    patches = (x.shape[-1] // config.patch_size) ** 2
    return {"pixel_values": x, "bool_masked_pos": torch.rand(2, patches, generator=seeded(3)) < 0.5}


def video(config: Any) -> dict[str, Any]:
    x = normal(2, getattr(config, "num_frames", None) or 2, 3, config.image_size, config.image_size)
    return {"pixel_values": x, "labels": torch.tensor([0, 2])}


def segmentation(config: Any) -> dict[str, Any]:
    x = images(config)
    y = classes(2, *x.shape[-2:])
    y[torch.rand(y.shape, generator=seeded(3)) < 0.2] = 255
    return {"pixel_values": x, "labels": y}


def detection(config: Any) -> dict[str, Any]:
    boxes = torch.tensor([[0.5, 0.5, 0.3, 0.2], [0.3, 0.6, 0.2, 0.4]])
    labels = [
        {"class_labels": torch.tensor([0, 1]), "boxes": boxes},
        {"class_labels": torch.tensor([2]), "boxes": boxes[:1] + 0.05},
    ]
    return {"pixel_values": normal(2, 3, 2 * IMAGE, 2 * IMAGE), "labels": labels}


def masks(config: Any) -> dict[str, Any]:
    x = images(config)
    found = [(normal(k, *x.shape[-2:], seed=k) > 0).float() for k in (2, 1)]
    return {"pixel_values": x, "mask_labels": found, "class_labels": [torch.tensor([0, 1]), torch.tensor([2])]}


def depth(config: Any) -> dict[str, Any]:
    return {"pixel_values": images(config)}


def depth_loss(model: Any, batch: dict[str, Any]) -> Tensor:
    return (model(**batch).predicted_depth - 1).square().mean()


def _sound(config: Any) -> dict[str, Any]:
    """A wave, or a spectrogram where the model takes that."""
    if config.model_type == "audio-spectrogram-transformer":
        return {"input_values": normal(2, config.max_length, config.num_mel_bins)}
    for name in ("num_mel_bins", "input_feat_per_channel", "feature_projection_input_dim"):
        if bins := getattr(config, name, None):
            return {"input_features": normal(2, 32, bins)}
    return {"input_values": normal(2, SAMPLES)}


def ctc(config: Any) -> dict[str, Any]:
    return {**_sound(config), "labels": torch.tensor([[3, 4, 5], [6, 7, -100]])}


def sound(config: Any) -> dict[str, Any]:
    return {**_sound(config), "labels": torch.tensor([0, 2])}


def speech(config: Any) -> dict[str, Any]:
    """A spectrogram with the time last, as Whisper takes it."""
    frames = 2 * getattr(config, "max_source_positions", 16)
    return {"input_features": normal(2, config.num_mel_bins, frames), "labels": ids(2, 4, seed=9)}


def clip(config: Any) -> dict[str, Any]:
    return {"input_ids": ids(), "pixel_values": images(config), "return_loss": True}


def series(config: Any) -> dict[str, Any]:
    """The past that the lags reach, and the future, each with one feature of its time."""
    past, future = config.context_length + max(config.lags_sequence), config.prediction_length
    return {
        "past_values": normal(2, past), "past_time_features": normal(2, past, 1, seed=6),
        "past_observed_mask": torch.ones(2, past), "future_values": normal(2, future, seed=8),
        "future_time_features": normal(2, future, 1, seed=9),
    }  # fmt: skip


def channels(config: Any) -> dict[str, Any]:
    past = normal(2, config.context_length, config.num_input_channels)
    return {
        "past_values": past,
        "future_values": normal(2, config.prediction_length, config.num_input_channels, seed=8),
    }


def autoencoder(config: Any) -> dict[str, Any]:
    """With the noise that says which patches are masked, which the model draws otherwise."""
    x = images(config)
    patches = (x.shape[-1] // config.patch_size) ** 2
    return {"pixel_values": x, "noise": torch.rand(2, patches, generator=seeded(3))}


def trajectory(config: Any) -> dict[str, Any]:
    steps = torch.arange(4).expand(2, 4)
    return {
        "states": normal(2, 4, config.state_dim), "actions": normal(2, 4, config.act_dim, seed=6),
        "returns_to_go": normal(2, 4, 1, seed=8), "rewards": normal(2, 4, 1, seed=9), "timesteps": steps,
        "attention_mask": torch.ones(2, 4), "return_dict": True,
    }  # fmt: skip


def action_loss(model: Any, batch: dict[str, Any]) -> Tensor:
    return (model(**batch).action_preds - batch["actions"]).square().mean()


def spectrogram(config: Any) -> dict[str, Any]:
    return {"input_features": normal(2, 32, config.input_feat_per_channel), "labels": ids(2, 4, seed=9)}


def wave(config: Any) -> dict[str, Any]:
    return {"input_values": normal(2, 1000), "labels": ids(2, 4, seed=9)}


def clap(config: Any) -> dict[str, Any]:
    audio = config.audio_config
    return {"input_ids": ids(), "input_features": normal(2, 1, 32, audio.num_mel_bins), "return_loss": True}


def patches(config: Any) -> dict[str, Any]:
    vision = config.vision_config
    return {
        "input_ids": ids(), "pixel_values": normal(2, 16, 3 * vision.patch_size**2), "return_loss": True,
        "pixel_attention_mask": torch.ones(2, 16, dtype=torch.long), "spatial_shapes": torch.tensor([[4, 4], [2, 8]]),
    }  # fmt: skip


def same_length(config: Any) -> dict[str, Any]:
    return {"input_ids": ids(), "labels": ids(seed=9), "decoder_input_ids": ids(seed=10)}


def captioned(config: Any) -> dict[str, Any]:
    return {**causal(config), "pixel_values": images(config)}


_SERIES = {
    "time_series_transformer": "TimeSeriesTransformerForPrediction",
    "autoformer": "AutoformerForPrediction",
}
_CHANNELS = {"patchtst": "PatchTSTForPrediction", "patchtsmixer": "PatchTSMixerForPrediction"}


def seeded_loss(model: Any, batch: dict[str, Any]) -> Tensor:
    """The loss of a model that draws the points at which it compares masks, or keys to attend to."""
    torch.manual_seed(3)
    loss: Tensor = model(**batch).loss
    return loss


HEADS: dict[str, Head] = {
    "causal language model": Head("CAUSAL_LM", causal),
    "masked language model": Head("MASKED_LM", masked),
    "sequence to sequence": Head("SEQ_TO_SEQ_CAUSAL_LM", seq2seq),
    "sequence classification": Head("SEQUENCE_CLASSIFICATION", sequence),
    "token classification": Head("TOKEN_CLASSIFICATION", token),
    "question answering": Head("QUESTION_ANSWERING", answer, labels=2),
    "multiple choice": Head("MULTIPLE_CHOICE", choice),
    "image classification": Head("IMAGE_CLASSIFICATION", image),
    "masked image": Head("MASKED_IMAGE_MODELING", masked_image),
    "video classification": Head("VIDEO_CLASSIFICATION", video),
    "segmentation": Head("SEMANTIC_SEGMENTATION", segmentation),
    "detection": Head("OBJECT_DETECTION", detection),
    "universal segmentation": Head("UNIVERSAL_SEGMENTATION", masks, seeded_loss),
    "depth": Head("DEPTH_ESTIMATION", depth, depth_loss),
    "CTC": Head("CTC", ctc),
    "audio classification": Head("AUDIO_CLASSIFICATION", sound),
    "speech recognition": Head("SPEECH_SEQ_2_SEQ", speech),
    "contrastive": Head("ZERO_SHOT_IMAGE_CLASSIFICATION", clip),
    "time series": Head(_SERIES, series),
    "time series, drawn keys": Head({"informer": "InformerForPrediction"}, series, seeded_loss),
    "time series by channels": Head(_CHANNELS, channels),
    "masked autoencoder": Head({"vit_mae": "ViTMAEForPreTraining"}, autoencoder),
    "decisions": Head({"decision_transformer": "DecisionTransformerModel"}, trajectory, action_loss),
    "speech to text": Head("SPEECH_SEQ_2_SEQ", spectrogram),
    "speech from the wave": Head("SPEECH_SEQ_2_SEQ", wave),
    "contrastive audio": Head({"clap": "ClapModel"}, clap),
    "contrastive patches": Head("ZERO_SHOT_IMAGE_CLASSIFICATION", patches),
    "translation": Head("SEQ_TO_SEQ_CAUSAL_LM", same_length),
    "captioning": Head({"git": "GitForCausalLM"}, captioned),
}
