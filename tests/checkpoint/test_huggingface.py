"""Hugging Face directories: the model that config.json describes, filled with the weights, offline."""

import hashlib
import json
import os
import warnings

import pytest
import safetensors.torch
import torch
import transformers
from checkpoint.bert_for_tests import IDS, MASK, SENTENCES, bert, bert_again, sentences
from checkpoint.files_for_tests import agrees

import hvpspec
from hvpspec import cli
from hvpspec.errors import CheckpointError, CheckpointWarning


@pytest.mark.parametrize("size", ["1GB", "2KB"])
def test_hugging_face(tmp_path, offline, size):
    """With the model's own loss, in eager attention for the reference and in the one that is chosen."""
    model = bert()
    model.save_pretrained(tmp_path, max_shard_size=size)
    assert (tmp_path / "model.safetensors.index.json").exists() == (size == "2KB")
    loaded = hvpspec.load_checkpoint(tmp_path)
    assert type(loaded) is transformers.BertForSequenceClassification
    agrees(loaded, model, "model", SENTENCES, sentences)
    agrees(hvpspec.load_checkpoint(tmp_path, bert()), bert_again(tmp_path), "model", SENTENCES, sentences)


@pytest.mark.parametrize("attention", ["evil-user/evil-kernel", "flash_attention_2"])
@pytest.mark.parametrize("nested", [False, True])
def test_the_attention_that_config_json_names_is_not_fetched(tmp_path, offline, monkeypatch, attention, nested):
    """A kernel of the hub is code. The model runs on torch's own attention, as if nothing had been named."""
    kernels = transformers.integrations.hub_kernels
    fetched = []
    monkeypatch.setattr(kernels, "is_kernels_available", lambda: True)
    monkeypatch.setattr(kernels, "get_kernel", lambda name, *_, **__: fetched.append(name))
    monkeypatch.setattr(kernels, "load_and_register_attn_kernel", lambda name, *_, **__: fetched.append(name))
    monkeypatch.setattr(
        transformers.modeling_utils, "lazy_import_flash_attention", lambda name, *_, **__: fetched.append(name)
    )
    if nested:
        text = transformers.CLIPTextConfig(
            vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
        )
        vision = transformers.CLIPVisionConfig(
            hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=8, patch_size=4
        )
        config = transformers.CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=4)
        transformers.CLIPModel(config).save_pretrained(tmp_path)
    else:
        bert().save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    (content["text_config"] if nested else content)["attn_implementation"] = attention
    (tmp_path / "config.json").write_text(json.dumps(content))
    loaded = hvpspec.load_checkpoint(tmp_path)
    assert not fetched
    assert {m.config._attn_implementation for m in loaded.modules() if hasattr(m, "config")} <= {"sdpa", "eager"}
    if not nested:
        agrees(loaded, bert_again(tmp_path), "model", SENTENCES, sentences)


def test_hugging_face_weights_keep_their_precision(tmp_path):
    """Whatever dtype config.json names; float16 would round these."""
    model = bert()
    model.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**content, "dtype": "float16"}))
    loaded = hvpspec.load_checkpoint(tmp_path)
    assert torch.equal(loaded.classifier.weight, model.classifier.weight)
    model.half().save_pretrained(tmp_path)
    assert hvpspec.load_checkpoint(tmp_path).dtype == torch.float16  # hvpspec says so before it computes in float32


def test_hugging_face_language_model_weighs_its_tokens(tmp_path, offline):
    """A next-token model's batches weigh the labels it is scored on: one fewer than there are in each sequence."""
    config = transformers.GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=2, n_positions=10, bos_token_id=0)
    config.eos_token_id = 0
    model = transformers.GPT2LMHeadModel(config).eval()
    model.save_pretrained(tmp_path)
    labels = IDS.masked_fill(MASK == 0, -100)
    batches = [{"input_ids": i, "labels": y} for i, y in zip(IDS.split(4), labels.split(4), strict=True)]

    def whole(model, parameters):
        return torch.func.functional_call(model, parameters, (), {"input_ids": IDS, "labels": labels}).loss

    agrees(hvpspec.load_checkpoint(tmp_path), model, "model", batches, whole, atol=1e-5)  # its loss casts to float32


def test_hugging_face_weights_that_do_not_fill_the_model(tmp_path):
    model = bert()
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    whole = safetensors.torch.load_file(file)

    def write(content):
        safetensors.torch.save_file(content, file, metadata={"format": "pt"})

    write({k: v for k, v in whole.items() if k != "bert.encoder.layer.0.output.dense.bias"})
    with pytest.raises(CheckpointError, match=r"missing: bert\.encoder\.layer\.0\.output\.dense\.bias.*be random"):
        hvpspec.load_checkpoint(tmp_path)
    write({**whole, "classifier.bias": torch.zeros(5)})
    with pytest.raises(CheckpointError, match=r"different shape: classifier\.bias \(file \(5,\), model \(2,\)\)"):
        hvpspec.load_checkpoint(tmp_path)
    write({**whole, "classifier.weight": (whole["classifier.weight"] * 100).to(torch.int8)})
    with pytest.raises(CheckpointError, match=r"parameters are stored as integers \(classifier\.weight \(int8\)\)"):
        hvpspec.load_checkpoint(tmp_path)
    write({**whole, "bert.embeddings.position_ids": torch.arange(10)[None]})
    with warnings.catch_warnings():
        warnings.simplefilter("error", CheckpointWarning)
        hvpspec.load_checkpoint(tmp_path)  # the model makes that one itself
        hvpspec.load_checkpoint(tmp_path, bert())
    write({**whole, "head.weight": torch.zeros(5)})
    with pytest.warns(CheckpointWarning, match=r"has no parameter for head\.weight"):
        hvpspec.load_checkpoint(tmp_path)


def test_weights_that_a_class_can_do_without(tmp_path, monkeypatch):
    """transformers does not report them as missing; the model has random values there."""
    model = bert()
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    whole = safetensors.torch.load_file(file)
    monkeypatch.setattr(type(model), "_keys_to_ignore_on_load_missing", [r"classifier\."], raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error", CheckpointWarning)
        hvpspec.load_checkpoint(tmp_path)
    content = {name: value.clone() for name, value in whole.items() if name != "classifier.bias"}
    safetensors.torch.save_file(content, file, metadata={"format": "pt"})
    with pytest.warns(CheckpointWarning, match=r"does not hold classifier\.bias, .*that it was built with"):
        hvpspec.load_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match=r"missing: classifier\.bias"):
        hvpspec.load_checkpoint(tmp_path, bert())


def test_names_that_transformers_changes_in_files(tmp_path):
    """Mixtral's experts are one tensor in the model, and one each in files."""
    config = transformers.MixtralConfig(
        vocab_size=20, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=3,
    )  # fmt: skip
    saved, model = transformers.MixtralForCausalLM(config), transformers.MixtralForCausalLM(config)
    saved.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    content = safetensors.torch.load_file(file)
    assert len(content) > len(saved.state_dict())
    hvpspec.load_checkpoint(tmp_path, model)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), saved.parameters(), strict=True))
    content = {name: value.clone() for name, value in content.items() if ".experts.1.w1." not in name}
    safetensors.torch.save_file(content, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"missing: .*experts"):
        hvpspec.load_checkpoint(tmp_path, model)


def test_the_weights_of_a_directory_alone_point_to_it(tmp_path):
    bert().save_pretrained(tmp_path / "tiny", max_shard_size="2KB")
    bert().save_pretrained(tmp_path / "whole")
    for name in ("tiny/model.safetensors.index.json", "whole/model.safetensors"):
        path = tmp_path / name
        with pytest.raises(
            CheckpointError, match=rf"or give the directory, {path.parent}, whose config.json describes it"
        ):
            hvpspec.load_checkpoint(path)


def test_an_encoder_saved_without_its_pooler(tmp_path):
    model = bert(transformers.BertModel, add_pooling_layer=False)
    model.save_pretrained(tmp_path)
    loaded = hvpspec.load_checkpoint(tmp_path)
    assert loaded.pooler is None
    targets = torch.linspace(-1, 1, 3)
    pairs = [
        ({"input_ids": IDS[a], "attention_mask": MASK[a]}, {"input_ids": IDS[b], "attention_mask": MASK[b]}, t)
        for a, b, t in (([0, 1], [3, 4], targets[:2]), ([2], [5], targets[2:]))
    ]

    def whole(model, parameters):
        hidden = torch.func.functional_call(model, parameters, (IDS, MASK)).last_hidden_state
        means = torch.stack([h[: m.sum()].mean(0) for h, m in zip(hidden, MASK, strict=True)])
        unit = means / means.norm(dim=1, keepdim=True)
        return ((unit[:3] * unit[3:]).sum(1) - targets.double()).square().mean()

    agrees(loaded, model, "cosine_similarity", pairs, whole)


def test_hugging_face_directories_that_cannot_be_used(tmp_path):
    bert().save_pretrained(tmp_path)
    config = (tmp_path / "config.json").read_text()
    for old, new, message in (
        ('"BertForSequenceClassification"', '"MyOwnNetwork"', "is not part of transformers"),
        ('"BertForSequenceClassification"', '"AutoModel"', "is not part of transformers"),
        ('"num_hidden_layers": 2', '"num_hidden_layers": 200000', "a model of 200,000 layers, but there are"),
        ('"vocab_size": 20', '"vocab_size": 2000000000', "the two do not belong together"),
        ('"hidden_size": 8', '"hidden_size": 7', "cannot be built from its config.json"),
        ('"bert"', '"my-own"', "transformers cannot use its config.json"),
        ("{", '{"quantization_config": {"quant_method": "fp8"}, ', r"its weights are quantised \(fp8\)"),
        ("{", "[", "is not a JSON file"),
    ):
        assert old in config
        (tmp_path / "config.json").write_text(config.replace(old, new))
        with pytest.raises(CheckpointError, match=message) as caught:
            hvpspec.load_checkpoint(tmp_path)
        assert "\n" not in str(caught.value)
    (tmp_path / "config.json").write_text(config)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="a directory without a known weights file"):
        hvpspec.load_checkpoint(tmp_path)


def test_the_command_line_takes_a_directory_and_its_model(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    bert().save_pretrained("tiny")
    (tmp_path / "data_of_mine.py").write_text(
        "import torch\n"
        "def batches():\n"
        "    ids = torch.arange(24).view(4, 6) % 20\n"
        "    return [{'input_ids': ids, 'labels': torch.tensor([0, 1, 0, 1])}]\n"
    )
    arguments = ["spectrum", "tiny", "--data", "data_of_mine.py:batches", "--loss", "model", "-k", "1"]
    assert cli.run([*arguments, "--max-hvps", "8", "--only", "eigenvalues", "--out", "out"]) == 0, capsys.readouterr()
    provenance = json.loads((tmp_path / "out/spectrum.json").read_text())["provenance"]
    assert provenance["model"] == "the checkpoint's own"
    lines = "".join(
        f"{hashlib.sha256((tmp_path / 'tiny' / name).read_bytes()).hexdigest()}  {name}\n"
        for name in sorted(os.listdir("tiny"))
    )
    assert provenance["checkpoint"]["sha256"] == hashlib.sha256(lines.encode()).hexdigest()
    assert provenance["checkpoint"]["bytes"] == sum(f.stat().st_size for f in (tmp_path / "tiny").iterdir())
