"""One file a format, written by the real library. What counts is the Hessian-vector product of what was loaded, beside
one made on the model that was saved, by forward over reverse on all the data at once, which hvpspec does not use."""

import collections
import hashlib
import json
import os
import socket
import subprocess
import sys
import warnings

import lightning_fabric  # noqa: F401  (before torch.distributed.checkpoint warns)
import pytest
import pytorch_lightning
import safetensors.torch
import torch
import torch.distributed.checkpoint as dcp
import torch.nn.functional as F
import transformers
from torch import nn

import hvpspec
from hvpspec import cli
from hvpspec.checkpoint.formats.files import sha256
from hvpspec.errors import CheckpointError, CheckpointWarning

X = torch.randn(12, 3, generator=torch.Generator().manual_seed(1))
Y = torch.arange(12) % 2
DATA = list(zip(X.split(5), Y.split(5), strict=True))


def net():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Dropout(0.3), nn.Linear(4, 2))


@pytest.fixture
def saved():
    model = net()
    model(X)  # running statistics that are not the initial ones
    return model.eval()


def reference(model, loss, count=3):
    """`count` products of the Hessian of loss(model) with random vectors, in float64, in the order of the names."""
    model = model.eval().double()
    names = [name for name, _ in model.named_parameters()]
    sizes = [p.numel() for p in model.parameters()]
    start = torch.cat([p.detach().reshape(-1) for p in model.parameters()])

    def value(vector):
        pieces = zip(names, vector.split(sizes), model.parameters(), strict=True)
        return loss(model, {name: piece.view(p.shape) for name, piece, p in pieces})

    V = torch.randn(len(start), count, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        HV = [torch.func.jvp(torch.func.grad(value), (start,), (v,))[1] for v in V.T]
    return V, torch.stack(HV, 1)


def classify(model, parameters):
    return F.cross_entropy(torch.func.functional_call(model, parameters, (X.double(),)), Y)


def agrees(loaded, saved, loss="cross_entropy", data=DATA, whole=classify, atol=1e-9):
    """Whether products of the loaded model are those of the saved one, in whatever order each keeps its parameters."""
    names = [name for name, _ in saved.named_parameters()]
    V, HV = reference(saved, whole)
    assert HV.norm() > 1e-3
    H = hvpspec.HessianOperator(loaded, loss, data, dtype="float64")
    shapes = dict(zip(H.parameters.names, H.parameters.shapes, strict=True))
    assert sorted(shapes) == sorted(names)
    for v, expected in zip(V.T, HV.T, strict=True):
        pieces = dict(zip(names, v.split([shapes[name].numel() for name in names]), strict=True))
        product = H.parameters.unflatten(H @ H.parameters.flatten({n: p.view(shapes[n]) for n, p in pieces.items()}))
        torch.testing.assert_close(
            torch.cat([product[name].reshape(-1) for name in names]), expected, rtol=atol, atol=atol
        )


# --- state dicts, and what surrounds them -----------------------------------------------------------------------


@pytest.mark.parametrize("zipped", [True, False])
def test_torch_save(saved, tmp_path, zipped):
    torch.save(saved.state_dict(), tmp_path / "m.pt", _use_new_zipfile_serialization=zipped)
    agrees(hvpspec.load_checkpoint(tmp_path / "m.pt", net()), saved)


def test_a_training_checkpoint_and_its_ema(saved, tmp_path):
    averaged = torch.optim.swa_utils.AveragedModel(saved, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    averaged.update_parameters(saved)
    with torch.no_grad():
        saved[0].weight.add_(1)
    averaged.update_parameters(saved)
    content = {"epoch": 2, "model": saved.state_dict(), "ema": averaged.state_dict()}
    torch.save(content, tmp_path / "m.pt")
    agrees(hvpspec.load_checkpoint(tmp_path / "m.pt", net()), saved)
    agrees(hvpspec.load_checkpoint(tmp_path / "m.pt", net(), key="ema"), averaged.module)
    agrees(hvpspec.load_checkpoint(tmp_path / "m.pt", net(), key="ema.module"), averaged.module)


@pytest.mark.parametrize("sharded", [False, True])
def test_safetensors(saved, tmp_path, sharded):
    if not sharded:
        safetensors.torch.save_file(saved.state_dict(), tmp_path / "m.safetensors")
        return agrees(hvpspec.load_checkpoint(tmp_path / "m.safetensors", net()), saved)
    import huggingface_hub

    (tmp_path / "d").mkdir()
    huggingface_hub.save_torch_state_dict(saved.state_dict(), tmp_path / "d", max_shard_size=70)
    index = tmp_path / "d/model.safetensors.index.json"
    assert len(list((tmp_path / "d").glob("*.safetensors"))) > 1
    for path in (index, tmp_path / "d"):
        agrees(hvpspec.load_checkpoint(path, net()), saved)
    (tmp_path / "d/model-00001-of-00003.safetensors").unlink(missing_ok=True)
    with pytest.raises(CheckpointError, match="which is not there; the checkpoint is not complete"):
        hvpspec.load_checkpoint(index, net())
    index.write_text('{"weight_map": {"0.weight": "../secret.safetensors"}}')
    with pytest.raises(CheckpointError, match="no file in its own folder"):
        hvpspec.load_checkpoint(index, net())


# --- Lightning ----------------------------------------------------------------------------------------------------


class Schedule:  # what people keep in hyper-parameters
    def __init__(self, rate):
        self.rate = rate


class Lit(pytorch_lightning.LightningModule):
    def __init__(self, schedule, width=4):
        super().__init__()
        self.save_hyperparameters()
        self.model = net()

    def training_step(self, batch, _):
        return F.cross_entropy(self.model(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.fixture(scope="module")
def lightning(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lightning")
    lit = Lit(Schedule(0.1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = pytorch_lightning.Trainer(
            max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
            enable_checkpointing=False,
        )  # fmt: skip
        trainer.fit(lit, torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), 6))
        trainer.save_checkpoint(folder / "m.ckpt")
    return folder / "m.ckpt", lit.model


def test_lightning(lightning):
    path, trained = lightning
    name = f"{Schedule.__module__}.Schedule"
    with pytest.raises(CheckpointError, match=rf"it asks for .*{name}.*--allow-class {name}"):
        hvpspec.load_checkpoint(path, net())
    agrees(hvpspec.load_checkpoint(path, net(), allow_classes=[name]), trained)  # `model.` is taken off
    agrees(hvpspec.load_checkpoint(path, Lit(None), allow_classes=[name]).model, trained)
    agrees(hvpspec.load_checkpoint(path, net(), key="state_dict.model", allow_classes=[name]), trained)


def test_allowed_classes_must_be_classes(lightning):
    for name in ("os.system", "nowhere.Class", "Schedule"):
        with pytest.raises(CheckpointError, match=rf"--allow-class {name}: "):
            hvpspec.load_checkpoint(lightning[0], net(), allow_classes=[name])


def test_trust_is_the_last_resort_and_is_said(lightning, saved, tmp_path):
    path, trained = lightning
    with pytest.warns(CheckpointWarning, match="whatever code it holds was run"):
        agrees(hvpspec.load_checkpoint(path, net(), trust_pickle=True), trained)
    torch.save(saved.state_dict(), tmp_path / "plain.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hvpspec.load_checkpoint(tmp_path / "plain.pt", net(), trust_pickle=True)  # nothing to warn of
    torch.save({"model": saved}, tmp_path / "whole.pt")  # a pickled module brings the model
    with pytest.raises(CheckpointError, match="it asks for "):
        hvpspec.load_checkpoint(tmp_path / "whole.pt", net())
    with pytest.warns(CheckpointWarning):
        agrees(hvpspec.load_checkpoint(tmp_path / "whole.pt", trust_pickle=True), saved)


# --- torch.distributed.checkpoint ---------------------------------------------------------------------------------


def test_distributed(saved, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        content = {"model": saved.state_dict(), "epoch": 3, "order": collections.deque([1])}
        dcp.save(content, checkpoint_id=tmp_path / "dcp")
        dcp.save(saved.state_dict(), checkpoint_id=tmp_path / "flat")
        dcp.save({"app": content}, checkpoint_id=tmp_path / "wrapped")
    agrees(hvpspec.load_checkpoint(tmp_path / "dcp", net()), saved)
    agrees(hvpspec.load_checkpoint(tmp_path / "dcp", net(), key="model"), saved)
    agrees(hvpspec.load_checkpoint(tmp_path / "flat", net()), saved)
    agrees(hvpspec.load_checkpoint(tmp_path / "wrapped", net()), saved)


RANKS = """
import os, sys, torch, torch.distributed as dist, torch.distributed.checkpoint as dcp
from torch.distributed.tensor import distribute_tensor, Shard, init_device_mesh
rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
state = torch.load(f"{folder}/m.pt")
mesh = init_device_mesh("cpu", (2,))
sharded = {k: distribute_tensor(v, mesh, [Shard(v.ndim - 1)]) if v.ndim else v for k, v in state.items()}
dcp.save({"model": sharded}, checkpoint_id=f"{folder}/dcp")
dist.barrier()
os._exit(0)  # gloo's threads sometimes abort an orderly end
"""


def test_distributed_over_two_ranks(saved, tmp_path):
    """Every tensor cut in two along its last dimension, which need not divide evenly, and put together again."""
    torch.save(saved.state_dict(), tmp_path / "m.pt")
    ranks = [
        subprocess.Popen([sys.executable, "-c", RANKS, str(rank), str(tmp_path)], stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    for rank in ranks:
        _, stderr = rank.communicate(timeout=120)
        assert rank.returncode == 0, stderr
    assert len(list((tmp_path / "dcp").glob("*.distcp"))) == 2
    agrees(hvpspec.load_checkpoint(tmp_path / "dcp", net()), saved)
    next((tmp_path / "dcp").glob("*.distcp")).unlink()
    with pytest.raises(CheckpointError, match=r"not complete|its files hold"):
        hvpspec.load_checkpoint(tmp_path / "dcp", net())


# --- programs -----------------------------------------------------------------------------------------------------


@pytest.fixture
def exported(saved, tmp_path):
    program = torch.export.export(saved, (X,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, tmp_path / "m.pt2")
    return tmp_path / "m.pt2"


def test_torch_export(saved, exported):
    with pytest.raises(
        CheckpointError, match=r"evaluates text from the file as Python.*--trust-pickle, or give --model"
    ):
        hvpspec.load_checkpoint(exported)
    with pytest.warns(CheckpointWarning, match="runs whatever code"):
        agrees(hvpspec.load_checkpoint(exported, trust_pickle=True), saved)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        agrees(hvpspec.load_checkpoint(exported, net()), saved)  # its tensors alone run nothing


def test_torch_export_in_training_mode_is_refused(saved, tmp_path):
    torch.export.save(torch.export.export(saved.train(), (X,)), tmp_path / "m.pt2")
    with pytest.raises(CheckpointError, match="exported in training mode"), pytest.warns(CheckpointWarning):
        hvpspec.load_checkpoint(tmp_path / "m.pt2", trust_pickle=True)


@pytest.mark.parametrize("make", [torch.jit.script, lambda model: torch.jit.trace(model, X)], ids=["script", "trace"])
def test_torchscript(saved, tmp_path, make):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        make(saved).save(str(tmp_path / "m.pt"))
    agrees(hvpspec.load_checkpoint(tmp_path / "m.pt"), saved)
    agrees(hvpspec.load_checkpoint(tmp_path / "m.pt", net()), saved)


class Reaching(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))

    @torch.jit.export
    def __getstate__(self):
        return self.weight, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, bool]):
        self.weight = state[0]
        self.training = state[1]
        torch.save(self.weight, "code was run")

    def forward(self, x):
        return x * self.weight


def test_a_torchscript_program_that_reaches_files_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(Reaching()).save("m.pt")
    with pytest.raises(CheckpointError, match="uses 'save', which can reach files"):
        hvpspec.load_checkpoint("m.pt")
    assert not os.path.exists("code was run")
    with pytest.warns(CheckpointWarning, match="it is run, as asked"):
        hvpspec.load_checkpoint("m.pt", trust_pickle=True)
    assert os.path.exists("code was run")  # it would have


# --- Hugging Face ---------------------------------------------------------------------------------------------------

TINY = {
    "vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8,
    "max_position_embeddings": 10,
}  # fmt: skip
IDS = torch.randint(1, 20, (6, 7), generator=torch.Generator().manual_seed(3))
MASK = (torch.arange(7) < torch.tensor([[7], [5], [7], [3], [6], [7]])).long()
LABELS = torch.arange(6) % 2


@pytest.fixture
def offline(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("no connection may be tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def bert(kind=transformers.BertForSequenceClassification, **options):
    return kind(transformers.BertConfig(**TINY, attn_implementation="eager"), **options).eval()


def sentences(model, parameters):
    inputs = {"input_ids": IDS, "attention_mask": MASK, "labels": LABELS}
    return torch.func.functional_call(model, parameters, (), inputs).loss


SENTENCES = [
    {"input_ids": i, "attention_mask": m, "labels": y}
    for i, m, y in zip(IDS.split(4), MASK.split(4), LABELS.split(4), strict=True)
]


@pytest.mark.parametrize("size", ["1GB", "2KB"])
def test_hugging_face(tmp_path, offline, size):
    """With the model's own loss, in eager attention as the reference and in the one that is chosen."""
    model = bert()
    model.save_pretrained(tmp_path, max_shard_size=size)
    assert (tmp_path / "model.safetensors.index.json").exists() == (size == "2KB")
    loaded = hvpspec.load_checkpoint(tmp_path)
    assert type(loaded) is transformers.BertForSequenceClassification
    agrees(loaded, model, "model", SENTENCES, sentences)
    agrees(hvpspec.load_checkpoint(tmp_path, bert()), bert_again(tmp_path), "model", SENTENCES, sentences)


def bert_again(folder):
    return transformers.BertForSequenceClassification.from_pretrained(folder, attn_implementation="eager")


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
    with pytest.raises(CheckpointError, match=r"whole numbers stand for parameters \(classifier\.weight \(int8\)\)"):
        hvpspec.load_checkpoint(tmp_path)
    write({**whole, "bert.embeddings.position_ids": torch.arange(10)[None]})
    with warnings.catch_warnings():
        warnings.simplefilter("error", CheckpointWarning)
        hvpspec.load_checkpoint(tmp_path)  # the model makes that one itself
        hvpspec.load_checkpoint(tmp_path, bert())
    write({**whole, "head.weight": torch.zeros(5)})
    with pytest.warns(CheckpointWarning, match=r"has no place for head\.weight"):
        hvpspec.load_checkpoint(tmp_path)


def test_the_weights_of_a_directory_alone_point_to_it(tmp_path):
    bert().save_pretrained(tmp_path / "tiny", max_shard_size="2KB")
    bert().save_pretrained(tmp_path / "whole")
    for name in ("tiny/model.safetensors.index.json", "whole/model.safetensors"):
        path = tmp_path / name
        with pytest.raises(CheckpointError, match=rf"or give the directory, {path.parent}, whose config.json names it"):
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
        ('"BertForSequenceClassification"', '"MyOwnNetwork"', "none of transformers' own"),
        ('"BertForSequenceClassification"', '"AutoModel"', "none of transformers' own"),
        ('"num_hidden_layers": 2', '"num_hidden_layers": 200000', "a model of 200,000 layers, but the weights"),
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
    with pytest.raises(CheckpointError, match="a directory without weights that are known"):
        hvpspec.load_checkpoint(tmp_path)


# --- the command line -------------------------------------------------------------------------------------------------


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


def test_the_digest_of_an_index_covers_its_shards(saved, tmp_path):
    import huggingface_hub

    huggingface_hub.save_torch_state_dict(saved.state_dict(), tmp_path, max_shard_size=70)
    index = tmp_path / "model.safetensors.index.json"
    before = sha256(index)
    assert before == sha256(tmp_path)
    shard = next(tmp_path.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x55")
    assert sha256(index) != before


def test_the_command_line_warns_on_stderr(saved, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.save(saved, "whole.pt")
    (tmp_path / "own_data.py").write_text("import torch\ndata = [(torch.eye(3), torch.tensor([0, 1, 0]))]\n")
    arguments = ["spectrum", "whole.pt", "--data", "own_data.py:data", "--loss", "cross_entropy", "--out", "out"]
    assert cli.run([*arguments, "-k", "1"]) == 2
    assert "name a function that builds it with --model FILE:FUNCTION" in capsys.readouterr().err
    assert cli.run([*arguments, "-k", "1", "--only", "eigenvalues", "--trust-pickle"]) == 0
    stderr = capsys.readouterr().err
    assert stderr.startswith("hvpspec: warning: whole.pt holds more than tensors")
    assert stderr.count("\n") == 1
