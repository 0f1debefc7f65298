"""A small file cannot ask for much memory or time."""

import io
import json
import pickle
import re
import resource
import struct
import time
import zipfile

import pytest
import safetensors.torch
import torch
from checkpoint.bert_for_tests import bert
from checkpoint.networks import net

import hvpspec
from hvpspec.checkpoint.formats import limits
from hvpspec.checkpoint.formats.limits import Budget, allowance
from hvpspec.checkpoint.formats.pickles.rebuilding import Rebuilding
from hvpspec.checkpoint.formats.pickles.safe_pickle import SafeUnpickler
from hvpspec.checkpoint.formats.torch_pickle import read_torch
from hvpspec.checkpoint.read import read_checkpoint
from hvpspec.errors import CheckpointError


def saved(pickled, path, **members):
    """A file of torch.save with this pickle, whose opcodes are written here by hand."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/data.pkl", b"\x80\x02" + pickled + b".")
        archive.writestr("m/byteorder", "little")
        archive.writestr("m/version", "3\n")
        for key, content in members.items():
            archive.writestr(f"m/data/{key.removeprefix('s')}", content)
    return path


def text(letters):
    return b"X" + struct.pack("<I", len(letters)) + letters.encode()


def number(value):
    return b"\x8a\x08" + struct.pack("<q", value)


def tuple_of(*parts):
    return b"(" + b"".join(parts) + b"t"


def call(name, *arguments):
    module, _, attribute = name.rpartition(".")
    return f"c{module}\n{attribute}\n".encode() + tuple_of(*arguments) + b"R"


def storage(count, key="0", kind="Float"):
    return tuple_of(text("storage"), f"ctorch\n{kind}Storage\n".encode(), text(key), text("cpu"), number(count)) + b"Q"


def tensor(count, size, stride, offset=0, kind="Float"):
    shapes = (tuple_of(*map(number, lengths)) for lengths in (size, stride))
    return call(
        "torch._utils._rebuild_tensor_v2", storage(count, kind=kind), number(offset), *shapes, b"\x89",
        call("collections.OrderedDict"),
    )  # fmt: skip


def entry(value):
    return b"}" + text("a") + value + b"s"


def nested(levels):
    """A tuple that holds another one twice, and that one another: 2 ** levels parts, which take 8 bytes a level."""
    return b")q\x000" + b"h\x00h\x00\x86q\x000" * levels + b"h\x00"


FOUR = bytes(16)

ASKING_FOR_MUCH = {
    "bytearray": entry(call("builtins.bytearray", number(4 << 30))),
    "hex": entry(call("_codecs.encode", call("_codecs.encode", text("a" * 999), text("latin1")), text("hex"))),
    "utf-32": entry(call("_codecs.encode", text("a" * 999), text("utf-32"))),
    "encoded a million times": b"]" + text("a" * 10**5) + b"q\x01X\x06\x00\x00\x00latin1q\x02"
    + b"c_codecs\nencode\nh\x01h\x02\x86R" * 20_000,
    "tensor": entry(call("torch.FloatTensor", number(4), number(3))),
    "tensor class": entry(call("torch.Tensor", number(4), number(3))),
    "huge tensor": entry(call("torch.FloatTensor", number(1 << 33))),
    "storage": entry(call("torch.FloatStorage", number(1 << 33))),
    "new storage": entry(b"ctorch\nFloatStorage\n(" + number(1 << 33) + b"t\x81"),
    "untyped storage": entry(call("torch.storage.UntypedStorage", number(1 << 33))),
    "repeated": entry(tensor(4, (10**9, 4), (0, 1))),
    "repeated once": entry(tensor(4, (1 << 40,), (0,))),
    "larger than its memory": entry(tensor(4, (5,), (1,))),
    "behind its memory": entry(tensor(4, (2,), (1,), offset=3)),
    "before its memory": entry(tensor(4, (2,), (1,), offset=-1)),
    "backwards": entry(tensor(4, (2,), (-1,), offset=3)),
    "negative": entry(tensor(4, (-2, -2), (1, 1))),
    "more than declared": entry(tensor(3, (3,), (1,))),
    "of another type": entry(tensor(4, (4,), (1,), kind="Double")),
    "a number of a billion digits": entry(b"\x8b" + struct.pack("<I", 1 << 31)),
    "keys": b"}" + nested(60) + b"Ns",
    "set": entry(call("builtins.set", b"(" + nested(60) + b"l")),
    "ordered": entry(call("collections.OrderedDict", b"(" + tuple_of(nested(60), b"N") + b"l")),
    "tensors by the million": b"]q\x01" + tensor(4, (4,), (1,))[:-1] + b"0" + b"c__builtin__\nset\n)Ra" * 400_000,
    "memo": entry(b"Nr\xff\xff\xff\xff"),
    "no end": b"(" * 10**5,
}  # fmt: skip


MESSAGES = {
    "bytearray": "a int is in the place of something else", "hex": "in the encoding 'hex'",
    "encoded a million times": "unpacks to far more than its size", "tensor": r"it asks for torch\.FloatTensor",
    "tensor class": "Trying to call reduce", "repeated": "unpacks to far more", "keys": "a tuple of too many parts",
    "set": "a tuple of too many parts", "ordered": "a tuple of too many parts", "negative": "no valid shape",
    "larger than its memory": "reaches outside its memory", "behind its memory": "reaches outside its memory",
    "more than declared": "less data than declared, or more", "of another type": "less data than declared, or more",
}  # fmt: skip


@pytest.mark.parametrize("name", ASKING_FOR_MUCH)
def test_pickles_that_ask_for_much(tmp_path, name):
    path = saved(ASKING_FOR_MUCH[name], tmp_path / "m.pt", s0=FOUR)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    assert re.search(MESSAGES.get(name, ""), str(caught.value)), str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 << 10  # KiB
    assert time.perf_counter() - start < 20


def test_the_pickles_of_this_test_are_read_where_they_are_harmless(tmp_path):
    path = saved(entry(tensor(4, (2, 3), (1, 1))), tmp_path / "m.pt", s0=struct.pack("<4f", 1, 2, 3, 4))
    assert torch.equal(read_checkpoint(path)["a"], torch.tensor([[1.0, 2, 3], [2, 3, 4]]))
    path = saved(entry(tensor(4, (1000, 4), (0, 1))), tmp_path / "m.pt", s0=struct.pack("<4f", 1, 2, 3, 4))
    assert torch.equal(read_checkpoint(path)["a"], torch.arange(1.0, 5).expand(1000, 4))


def test_what_torch_saves_besides_plain_tensors(tmp_path):
    """Compared with torch's own reading, in both formats."""
    tagged = torch.arange(3.0)
    tagged.note = "mine"
    base = torch.arange(12.0)
    content = {
        "parameter": torch.nn.Parameter(torch.ones(2)), "views": [base[2:7], base.view(3, 4).t(), base[:0]],
        "repeated": torch.ones(1).expand(50), "tagged": tagged, "conjugate": torch.tensor([1 + 2j]).conj(),
        "sparse": torch.eye(3).to_sparse(), "csr": torch.eye(3).to_sparse_csr(), "half": torch.ones(2).bfloat16(),
        "eight": torch.ones(2).to(torch.float8_e4m3fn), "unsigned": torch.ones(2).to(torch.uint16),
        "quantised": torch.quantize_per_tensor(torch.ones(3), 0.1, 2, torch.qint8),
        "meta": torch.ones(2, device="meta"),
        "channels": torch.quantize_per_channel(torch.ones(2, 3), torch.ones(2), torch.zeros(2), 0, torch.qint8),
        "plain": (1, 2**70, -0.5, 1j, None, True, b"\x00\xff", bytearray(b"x"), {1, 2}, "é", torch.Size([2])),
        "dtype": torch.int8,
        "empty": torch.zeros(0, 3), "scalar": torch.tensor(2), "device": torch.device("cpu"),
    }  # fmt: skip
    for zipped in (True, False):
        if not zipped:  # which torch itself does not read again
            content = {name: value for name, value in content.items() if name not in ("eight", "unsigned")}
        torch.save(content, tmp_path / "m.pt", _use_new_zipfile_serialization=zipped)
        found, wanted = read_torch(tmp_path / "m.pt"), torch.load(tmp_path / "m.pt")
        assert found["tagged"].note == "mine"
        assert isinstance(found["parameter"], torch.nn.Parameter)
        views = [view.untyped_storage().data_ptr() for view in found["views"][:2]]
        assert views[0] == views[1]
        for name, value in wanted.items():
            assert type(found[name]) is type(value), name
            if name == "plain":
                assert found[name] == value
            elif isinstance(value, torch.Tensor) and not value.is_meta:
                assert found[name].dtype == value.dtype
                assert found[name].layout == value.layout
                assert found[name].is_conj() == value.is_conj()
                a, b = (t.dequantize() if t.is_quantized else t.to_dense() for t in (found[name], value))
                assert torch.equal(a.to(torch.complex64), b.to(torch.complex64)), name
    with zipfile.ZipFile(tmp_path / "big.pt", "w") as archive:  # as a machine of the other byte order writes it
        archive.writestr("m/data.pkl", b"\x80\x02" + entry(tensor(2, (2,), (1,))) + b".")
        archive.writestr("m/byteorder", "big")
        archive.writestr("m/data/0", struct.pack(">2f", 1, 2))
    assert torch.equal(read_checkpoint(tmp_path / "big.pt")["a"], torch.tensor([1.0, 2]))


@pytest.mark.parametrize("indices", [[[0, 9]], [[0, -1]]])
def test_indices_of_sparse_tensors_are_checked(tmp_path, indices):
    """torch does not look at them, and writes outside of the dense tensor's memory."""
    tensor = torch.sparse_coo_tensor(torch.tensor(indices), torch.ones(2), (3,), check_invariants=False)
    torch.save({"a": tensor}, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match="it is damaged"):
        read_checkpoint(tmp_path / "m.pt")


def test_a_list_inside_itself_and_others(tmp_path):
    for content in (
        b"]q\x01h\x01a",
        b"]" * 50_000 + b"a" * 49_999,
        b"]q\x000" + b"]h\x00ah\x00aq\x000" * 60 + b"h\x00",
    ):
        whole = b"}(" + text("deep") + content + text("a") + tensor(4, (4,), (1,)) + b"u"
        path = saved(whole, tmp_path / "m.pt", s0=FOUR)
        start = time.perf_counter()
        assert list(read_checkpoint(path)) == ["a"]
        assert time.perf_counter() - start < 10


def test_tens_of_thousands_of_entries(tmp_path):
    """In a time in proportion, whether they are tensors, members of an archive, or names in an index."""
    many = {f"layer.{i}.weight": torch.full((1,), float(i)) for i in range(5_000)}
    torch.save(many, tmp_path / "m.pt")
    start = time.perf_counter()
    assert len(read_checkpoint(tmp_path / "m.pt")) == 5_000
    folder = tmp_path / "shards"
    folder.mkdir()
    places = {}
    for shard in range(100):
        part = {name: many[name] for name in list(many)[shard * 50 : shard * 50 + 50]}
        safetensors.torch.save_file(part, folder / f"{shard}.safetensors")
        places |= dict.fromkeys(part, f"{shard}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    assert read_checkpoint(folder)["layer.77.weight"] == 77
    assert time.perf_counter() - start < 60
    with zipfile.ZipFile(tmp_path / "m.zip", "w") as archive:
        for i in range(30_000):
            archive.writestr(f"m/{i}", b"")
    with pytest.raises(CheckpointError, match="not a checkpoint that torch wrote"):
        read_checkpoint(tmp_path / "m.zip")


def test_a_budget():
    budget = Budget("m.pt", 1000)
    budget.take(allowance(1000))
    with pytest.raises(CheckpointError, match=r"m\.pt was not read: it unpacks to far more than its size"):
        budget.take(1)


def test_time_is_limited(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "_MIN_SECONDS", -1.0)
    torch.save(net().state_dict(), tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match="far longer than a checkpoint of its size needs"):
        read_checkpoint(tmp_path / "m.pt")


# --- what config.json asks for ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_labels": 10**9}, r"says num_labels = 1,000,000,000"),
        ({"vocab_size": 2 * 10**9}, "says vocab_size"),
        ({"type_vocab_size": 10**12}, "says type_vocab_size"),
        ({"num_hidden_layers": 10**8}, "says num_hidden_layers"),
        ({"max_position_embeddings": 10**12}, "says max_position_embeddings"),
        ({"text_config": {"depths": [2, 10**10]}}, "says depths"),
        ({"hidden_size": 8000, "num_attention_heads": 2}, "a model of"),
        ({"num_labels": 50_000}, "a model of"),
    ],
)
def test_numbers_in_a_configuration(tmp_path, change, message):
    bert().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    with pytest.raises(CheckpointError, match=rf"{message}.*do not belong together"):
        hvpspec.load_checkpoint(tmp_path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 600 << 10
    assert time.perf_counter() - start < 20


def test_models_of_more_modules_than_weights_can_fill(tmp_path, monkeypatch):
    monkeypatch.setattr("hvpspec.checkpoint.formats.config_sizes._MIN_MODULES", 10)
    monkeypatch.setattr("hvpspec.checkpoint.formats.config_sizes._MODULES_PER_WEIGHT", 0)
    bert().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="more than 10 modules, but"):
        hvpspec.load_checkpoint(tmp_path)


# --- what a pickle may do ---------------------------------------------------------------------------------------------


def test_a_pickle_cannot_change_what_its_classes_are(tmp_path):
    """The state of a class, of a function or of a module is never set, whatever a pickle asks for."""
    for name in ("torch.Size", "collections.OrderedDict", "argparse.Namespace", "numpy.dtype", "torch.FloatStorage"):
        module, _, attribute = name.rpartition(".")
        whole = f"c{module}\n{attribute}\n".encode() + b"}" + text("__setstate__") + b"Nsb"
        with pytest.raises(CheckpointError, match="Can only build"):
            read_checkpoint(saved(whole, tmp_path / "m.pt"))


def test_opcodes_that_import_or_call_by_themselves(tmp_path):
    for whole in (b"(S'x'\nios\nsystem\n", b"(cos\nsystem\nS'x'\no", b"\x82\x01", b"Px\n", b"\x96" + bytes(8), b"\x97"):
        with pytest.raises(CheckpointError):
            read_checkpoint(saved(whole, tmp_path / "m.pt"))


def test_a_pickle_is_compared_with_pythons_own_reading(tmp_path):
    """Of plain values, in every protocol."""
    value = {"a": [1, -5, 2**40, 2**100, 0.25, None, True, "x", "é" * 300, b"\x00" * 300, (), (1,), (1, 2, 3, 4)],
             "b": {1: {2: {3}}}, "c": [[]] * 3, "d": frozenset({1}), (1, "k"): 1 + 2j,
             "e": bytearray(b"12")}  # fmt: skip
    for protocol in range(2, 5):
        budget = Budget("m", 10**6)
        content = io.BytesIO(pickle.dumps(value, protocol))
        found = SafeUnpickler(content, None, Rebuilding(budget).functions, budget).load()
        assert found == value
        assert found["c"][0] is found["c"][2]
