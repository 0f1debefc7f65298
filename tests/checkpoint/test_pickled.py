"""Training checkpoints hold more than tensors: what of it is read unasked, what when allowed, and what never."""

import argparse
import collections
import ctypes
import functools
import importlib
import logging
import multiprocessing
import operator
import os
import pathlib
import pickle
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import urllib.request
import warnings
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

import hvpspec
from hvpspec import cli
from hvpspec.checkpoint.formats import torch_pickle
from hvpspec.checkpoint.formats.pickles.allowing import may_be_advised, never_allowed
from hvpspec.checkpoint.read import read_checkpoint, read_step
from hvpspec.errors import CheckpointError, CheckpointWarning

SCRIPT = """
import sys
import torch
from torch import nn

class Config:
    def __init__(self):
        self.rate = 0.1

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x):
        return self.layer(x)

def batches():
    return [(torch.eye(3), torch.tensor([0, 1, 0]))]

if __name__ == "__main__":
    model = Net()
    torch.save({"state_dict": model.state_dict(), "config": Config()}, "with_config.pt")
    torch.save(model, "whole.pt")
"""


def net():
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def same(model, other):
    a, b = model.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def written(tmp_path, monkeypatch):
    """A folder in which `python train_main.py` left its checkpoints."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "train_main.py").write_text(SCRIPT)
    subprocess.run([sys.executable, "train_main.py"], check=True, cwd=tmp_path)
    yield tmp_path
    sys.modules.pop("_hvpspec_user_train_main", None)


RUN = ("--data", "train_main.py:batches", "--loss", "cross_entropy", "-k", "1", "--only", "eigenvalues", "--out", "out")
NN = [f"torch.nn.modules.{name}" for name in ("linear.Linear", "container.Sequential", "activation.Tanh")]


class TestMain:
    """Classes of the script that was run."""

    @pytest.mark.parametrize("options", [["--allow-class", "__main__.Config"], ["--trust-pickle"]])
    def test_beside_the_weights(self, written, capsys, options):
        run = ["spectrum", "with_config.pt", "--model", "train_main.py:Net", *RUN]
        assert cli.run(run) == 2
        assert "--allow-class __main__.Config;" in capsys.readouterr().err
        assert cli.run([*run, *options]) == 0, capsys.readouterr().err

    @pytest.mark.parametrize("options", [["--allow-class", "__main__.Net", "--allow-class", NN[0]], ["--trust-pickle"]])
    def test_the_model_itself(self, written, capsys, options):
        assert cli.run(["spectrum", "whole.pt", *RUN, *options]) == 0, capsys.readouterr().err

    def test_inert_where_no_module_of_the_users_has_it(self, written):
        wanted = torch.load("with_config.pt", weights_only=False, pickle_module=torch_pickle._Trusting(()))[
            "state_dict"
        ]
        found = read_checkpoint("with_config.pt", allow_classes=["__main__.Config"])
        assert found.keys() == wanted.keys()
        with pytest.warns(CheckpointWarning, match="any code in it was run"):
            found = read_checkpoint("with_config.pt", trust_pickle=True)
        assert torch.equal(found["layer.weight"], wanted["layer.weight"])


class Evil:
    def __reduce__(self):
        return os.mkdir, ("code was run",)


def test_plain_company_needs_no_leave(tmp_path):
    """NumPy's numbers, a generator's state and a defaultdict are read by hvpspec's own code."""
    model = net()
    content = {
        "model": model.state_dict(),
        "step": np.int64(70),
        "best": np.float64(0.5),
        "half": np.float16(0.5),
        "rng": np.random.RandomState(0).get_state(),
        "losses": np.arange(6.0).reshape(2, 3),
        "none": np.zeros((0, 3)),
        "names": np.array(["a", "b"]),
        "objects": np.array([{"a": 1}, None], dtype=object),
        "history": collections.defaultdict(list, loss=[1.0, 2.0]),
        "counts": collections.defaultdict(int, {"a": 1}),
        "last": collections.deque([1, 2], maxlen=3),
        "args": argparse.Namespace(rate=0.1, out=pathlib.Path("x")),
    }
    torch.save(content, tmp_path / "m.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(hvpspec.load_checkpoint(tmp_path / "m.pt", net()), model)
    assert read_step(tmp_path / "m.pt") == 70
    allowed = ["numpy._core.multiarray.scalar", "argparse.Namespace"]  # as torch would have it
    assert same(hvpspec.load_checkpoint(tmp_path / "m.pt", net(), allow_classes=allowed), model)


def test_objects_in_arrays_are_not_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": net().state_dict(), "a": np.array([Evil()], dtype=object)}, "m.pt")
    with pytest.raises(CheckpointError, match="mkdir"):
        hvpspec.load_checkpoint("m.pt", net())
    # An array of objects whose bytes are pointers: NumPy itself never sees them.
    forged = (
        b"\x80\x02}X\x01\x00\x00\x00acnumpy._core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85X\x01\x00\x00\x00btR("
        b"K\x01K\x01\x85cnumpy\ndtype\n(X\x02\x00\x00\x00O8K\x00K\x01tRK\x00c_codecs\nencode\n"
        b"(X\x08\x00\x00\x00AAAAAAAAX\x06\x00\x00\x00latin1tRtbs."
    )
    with zipfile.ZipFile("forged.pt", "w") as archive:
        archive.writestr("m/data.pkl", forged)
        archive.writestr("m/version", "3\n")
        archive.writestr("m/byteorder", "little")
    with pytest.raises(CheckpointError, match="no state dict found; it has the keys a"):
        hvpspec.load_checkpoint("forged.pt", net())
    assert not os.path.exists("code was run")


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", "<f2"])
def test_arrays_under_the_parameters_names(tmp_path, dtype):
    model = net().double()
    content = {name: np.asfortranarray(value.numpy().astype(dtype)) for name, value in model.state_dict().items()}
    torch.save(content, tmp_path / "m.pt")
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(content))
    expected = net().double()
    expected.load_state_dict({k: torch.from_numpy(v.astype("<f8")) for k, v in content.items()})
    assert same(hvpspec.load_checkpoint(tmp_path / "m.pt", net().double()), expected)
    with pytest.raises(CheckpointError, match=r"is a pickle, but not a checkpoint that torch\.save wrote.*--trust"):
        hvpspec.load_checkpoint(tmp_path / "plain.pkl", net())
    with pytest.warns(CheckpointWarning, match="without restriction"):
        assert same(hvpspec.load_checkpoint(tmp_path / "plain.pkl", net().double(), trust_pickle=True), expected)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_plain_pickle_of_tensors_where_it_is_trusted(tmp_path, protocol):
    model = net()
    (tmp_path / "m.pkl").write_bytes(pickle.dumps({"model": model.state_dict()}, protocol))
    with pytest.warns(CheckpointWarning, match="any code in it was run"):
        assert same(hvpspec.load_checkpoint(tmp_path / "m.pkl", net(), trust_pickle=True), model)
    (tmp_path / "m.pkl").write_bytes(pickle.dumps(model, protocol))
    with pytest.warns(CheckpointWarning):
        assert same(hvpspec.load_checkpoint(tmp_path / "m.pkl", trust_pickle=True), model)


def test_a_whole_module_whose_classes_are_allowed_is_the_model(tmp_path):
    model = net()
    torch.save({"model": model}, tmp_path / "m.pt")
    assert same(hvpspec.load_checkpoint(tmp_path / "m.pt", allow_classes=NN), model)
    with pytest.raises(CheckpointError, match=r"it asks for torch\.nn\.modules\.linear\.Linear"):
        hvpspec.load_checkpoint(tmp_path / "m.pt", allow_classes=NN[1:])
    torch.save({"model": model}, tmp_path / "m.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"asks for Only persistent_load.*save only the tensors.*--trust-pickle"):
        hvpspec.load_checkpoint(tmp_path / "m.pt", allow_classes=NN)


class Table(dict):
    pass


def test_advice_is_what_works(tmp_path):
    """What is advised is accepted, once each; what no option can admit is said to be so."""
    path = tmp_path / "m.pt"
    torch.save({"model": net().state_dict(), "sizes": collections.ChainMap(), "model2": net()}, path)
    with pytest.raises(CheckpointError) as caught:
        hvpspec.load_checkpoint(path, net())
    advised = re.findall(r"--allow-class ([\w.]+)", str(caught.value))
    assert len(set(advised)) == len(advised) == 4
    hvpspec.load_checkpoint(path, net(), allow_classes=advised)
    torch.save({"model": net().state_dict(), "f": re.compile}, path)
    with pytest.raises(CheckpointError, match=r"re\.compile cannot be allowed with --allow-class; save only"):
        hvpspec.load_checkpoint(path, net())
    torch.save({"model": net().state_dict(), "table": Table(a=1)}, path)
    with pytest.raises(CheckpointError, match=r"it asks for Can only SETITEM.*--trust-pickle") as caught:
        hvpspec.load_checkpoint(path, net(), allow_classes=[f"{Table.__module__}.Table"])
    assert "documentation" not in str(caught.value)
    with pytest.warns(CheckpointWarning):
        hvpspec.load_checkpoint(path, net(), trust_pickle=True)


def test_what_is_not_installed_is_inert_where_the_file_is_trusted(tmp_path, monkeypatch):
    module = type(sys)("not_installed_here")
    module.Table = type("Table", (dict,), {"__module__": "not_installed_here"})
    monkeypatch.setitem(sys.modules, "not_installed_here", module)
    model = net()
    torch.save({"model": model.state_dict(), "table": module.Table(a=1)}, tmp_path / "m.pt")
    monkeypatch.delitem(sys.modules, "not_installed_here")
    with pytest.warns(CheckpointWarning):
        assert same(hvpspec.load_checkpoint(tmp_path / "m.pt", net(), trust_pickle=True), model)


class Calling:
    """A pickle of it calls something with arguments that the file chooses."""

    def __init__(self, function, *arguments):
        self.made = function, arguments

    def __reduce__(self):
        return self.made


DANGEROUS = [
    (subprocess.Popen, "mkdir 'code was run'"), (os.system, "mkdir 'code was run'"), (os.mkdir, "code was run"),
    (eval, "__import__('os').mkdir('code was run')"), (exec, "0"), (__import__, "os"), (open, "code was run", "w"),
    (importlib.import_module, "antigravity"), (getattr, "a", "upper"), (operator.attrgetter, "a"), (ctypes.CDLL, "x"),
    (type, "a", (), {}), (pathlib.Path.touch, pathlib.Path("code was run")), (range, 9),
    (socket.socket, 2), (threading.Thread, None, print), (zipfile.ZipFile, "code was run", "w"), (tempfile.mkdtemp,),
    (logging.FileHandler, "code was run"), (functools.partial, os.mkdir, "code was run"), (shutil.rmtree, "x"),
    (multiprocessing.Process,), (urllib.request.Request, "http://localhost"), (memoryview, b"x"), (bytes, 1 << 40),
]  # fmt: skip


@pytest.mark.parametrize("made", DANGEROUS, ids=lambda made: getattr(made[0], "__qualname__", str(made[0])))
def test_a_file_gets_no_advice_to_allow_what_could_run_code(tmp_path, monkeypatch, made):
    """Nor can it be allowed. `subprocess.Popen` is a class, and a file that asks for one says what is run."""
    monkeypatch.chdir(tmp_path)
    torch.save({"model": net().state_dict(), "x": Calling(*made)}, "m.pt")
    try:
        hvpspec.load_checkpoint("m.pt", net())
    except CheckpointError as refused:
        message = str(refused)
        assert "--allow-class " not in message.replace("cannot be allowed with --allow-class", "")
        assert "as a last resort, --trust-pickle" in message
        name = re.search(r"it asks for ([\w.]+)", message)[1]
        with pytest.raises(
            CheckpointError, match=rf"--allow-class {name}: (it is part of Python|expected the name of)"
        ):
            hvpspec.load_checkpoint("m.pt", net(), allow_classes=[name])
    assert not os.path.exists("code was run")


def test_the_same_under_another_name(tmp_path, monkeypatch):
    """In a module of the user's that imports it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "user_code_of_mine.py").write_text("from subprocess import Popen\n")
    torch.save({"model": net().state_dict()}, "m.pt")
    with pytest.raises(
        CheckpointError, match=r"user_code_of_mine\.Popen: it is subprocess\.Popen, and it is part of Pyt"
    ):
        hvpspec.load_checkpoint("m.pt", net(), allow_classes=["user_code_of_mine.Popen"])
    module = importlib.import_module("user_code_of_mine")
    torch.save({"model": net().state_dict(), "x": Calling(subprocess.Popen, "mkdir 'code was run'")}, "main.pt")
    with zipfile.ZipFile("main.pt") as old, zipfile.ZipFile("renamed.pt", "w") as new:
        for member in old.infolist():
            content = old.read(member).replace(b"csubprocess\nPopen", b"c__main__\nPopen")
            new.writestr(member.filename, content.replace(b"ccommands\nPopen", b"c__main__\nPopen"))
    hvpspec.load_checkpoint("renamed.pt", net(), allow_classes=["__main__.Popen"], main_modules=[module])  # inert
    assert not os.path.exists("code was run")
    for name in ("torch.FloatTensor", "torch.storage.UntypedStorage"):
        with pytest.raises(CheckpointError, match="memory of unknown content"):
            hvpspec.load_checkpoint("m.pt", net(), allow_classes=[name])


def test_a_module_of_the_users_may_have_the_name_of_one_of_pythons(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "antigravity.py").write_text("class Net:\n    pass\n")
    assert never_allowed("antigravity.Net") is None
    assert may_be_advised("antigravity.Net")
    assert never_allowed("this.Net")
    assert never_allowed("zipimport.zipimporter")  # frozen
    assert never_allowed("builtins.eval")
    assert never_allowed("_posixsubprocess.fork_exec")


def test_a_class_of_an_installed_package_is_warned_of(tmp_path):
    """It may be anything. What is the user's own, and what is known to be data, is not."""
    from packaging.version import Version

    torch.save({"model": net().state_dict(), "v": Version("1.0")}, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match=r"it asks for packaging\.version\.Version\); save only the tensors"):
        hvpspec.load_checkpoint(tmp_path / "m.pt", net())
    with pytest.warns(CheckpointWarning, match=r"lets the file make a packaging\.version\.Version.*allowed, as asked"):
        hvpspec.load_checkpoint(tmp_path / "m.pt", net(), allow_classes=["packaging.version.Version"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        own = [f"{Table.__module__}.Table", "collections.ChainMap", "datetime.timedelta", *NN]
        torch.save({"model": net().state_dict()}, tmp_path / "m.pt")
        hvpspec.load_checkpoint(tmp_path / "m.pt", net(), allow_classes=own)


def test_names_in_a_message_are_printable(tmp_path):
    name = b"c\x1b[2Jevil\nPop\x07en\n"
    with zipfile.ZipFile(tmp_path / "m.pt", "w") as archive:
        archive.writestr("m/data.pkl", b"\x80\x02" + name + b".")
        archive.writestr("m/version", "3\n")
    with pytest.raises(CheckpointError) as caught:
        hvpspec.load_checkpoint(tmp_path / "m.pt", net())
    assert str(caught.value).isprintable()
    assert "--allow-class" not in str(caught.value)
