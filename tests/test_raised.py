"""The line of the user's own code where an exception arose, in scripts, notebooks, packages and other processes."""

import sys
import textwrap
from concurrent.futures import ProcessPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from hvpspec import raised


def caught(source, name, *, module="train", **names):
    """What the function `fail` of a file of that name raises."""
    space = {"__name__": module, **names}
    exec(compile(textwrap.dedent(source), name, "exec"), space)
    try:
        space["fail"]()
    except BaseException as error:
        return error.with_traceback(error.__traceback__.tb_next)  # without this file's own frame
    raise AssertionError("nothing was raised")


IN_A_FUNCTION = """
def fail():
    def inner(x): return x["age"]
    return inner({})
"""
PLACES = {
    "a function": (IN_A_FUNCTION, "inner"),
    "a lambda": ("fail = lambda: {}['age']", "a lambda"),
    "a method": ("class Net:\n    def go(self): return {}['age']\nfail = Net().go", "Net.go"),
    "a comprehension": ("def fail(): return sum({}['age'] for _ in range(2))", "fail"),
    "no function": ("fail = lambda: exec(compile(\"{}['age']\", '/home/me/other.py', 'exec'))", None),
}


@pytest.mark.parametrize("name", PLACES)
def test_functions_of_a_script(name, monkeypatch):
    source, function = PLACES[name]
    error = caught(source, "/home/me/train.py")
    if function is None:
        assert raised.raised(error) == "KeyError: 'age' (/home/me/other.py:1)"
        return
    line = next(n for n, text in enumerate(source.split("\n"), 1) if "age" in text)
    assert raised.raised(error) == f"KeyError: 'age' (/home/me/train.py:{line}, in {function})"
    monkeypatch.setattr("os.getcwd", lambda: "/home/me")
    assert raised.place(error) == f"train.py:{line}, in {function}"
    monkeypatch.setattr("os.getcwd", lambda: (_ for _ in ()).throw(FileNotFoundError()))
    assert raised.place(error).startswith("/home/me/train.py:")


def test_frames_of_libraries_are_passed_over():
    error = caught("def fail(): return linear(zeros(2, 2))", "train.py", linear=nn.Linear(3, 1), zeros=torch.zeros)
    assert raised.place(error) == "train.py:1, in fail"
    of_package = caught(IN_A_FUNCTION, "/env/lib/python3.12/site-packages/transformers/modeling.py")
    assert raised.place(of_package) == "/env/lib/python3.12/site-packages/transformers/modeling.py:3, in inner"
    source = "def fail(): return theirs()"
    theirs = SimpleNamespace()
    exec(compile("def fail(): return {}['age']", "/env/lib/site-packages/x.py", "exec"), theirs.__dict__)
    assert raised.place(caught(source, "train.py", theirs=theirs.fail)) == "train.py:1, in fail"
    for name in (raised.__file__, torch.__file__, "<frozen importlib>", "<eval_with_key>.1"):
        assert raised.raised(caught(IN_A_FUNCTION, name)) == "KeyError: 'age'"


def test_what_is_typed(monkeypatch):
    assert raised.place(caught(IN_A_FUNCTION, "<stdin>", module="__main__")) == "<stdin>:3, in inner"
    names = {"/tmp/ipykernel_7/123.py": ("Cell", "In[3]")}
    shell = SimpleNamespace(compile=SimpleNamespace(format_code_name=names.get))
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    assert raised.place(caught(IN_A_FUNCTION, *names, module="__main__")) == "Cell In[3], line 3, in inner"
    assert raised.place(caught(IN_A_FUNCTION, "train.py")) == "train.py:3, in inner"


def fails_elsewhere(_):
    return {}["age"]


@pytest.mark.parametrize("workers", [0, 1])
def test_workers_of_a_data_loader(workers):
    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return 2

        def __getitem__(self, index):
            return fails_elsewhere(index)

    with pytest.raises(KeyError) as error:
        list(torch.utils.data.DataLoader(Rows(), num_workers=workers))
    line = fails_elsewhere.__code__.co_firstlineno + 1
    assert raised.raised(error.value).endswith(f"test_raised.py:{line}, in fails_elsewhere)")
    assert raised.said(error.value) == "KeyError: 'age'"


def test_another_process():
    with ProcessPoolExecutor(1) as pool, pytest.raises(KeyError) as error:
        pool.submit(fails_elsewhere, 1).result()
    assert "in fails_elsewhere" in raised.place(error.value)


def test_texts():
    assert raised.said(AssertionError()) == "AssertionError"
    assert raised.said(ValueError("x " * 1000 + "end.")).endswith("end")
    assert len(raised.said(ValueError("x " * 1000))) < 450
    scripted = RuntimeError(
        "The following operation failed in the TorchScript interpreter.\nTraceback of TorchScript (most recent call "
        'last):\n  File "/home/me/net.py", line 5, in forward\n    return x @ y\n           ~~~ <--- HERE\n'
        "RuntimeError: mat1 and mat2 shapes cannot be multiplied"
    )
    assert raised.raised(scripted) == (
        "RuntimeError: mat1 and mat2 shapes cannot be multiplied (/home/me/net.py:5, in forward)"
    )
    compiled = RuntimeError(
        'Unsupported\n\nfrom user code:\n   File "/home/me/net.py", line 7, in forward\n  x\n\nSet …'
    )
    assert raised.raised(compiled) == "RuntimeError: Unsupported (/home/me/net.py:7, in forward)"
