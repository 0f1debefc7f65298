import sys

import pytest
from torch import nn

from hvpspec.cli.user_code import load_data, load_loss, load_model, load_object
from hvpspec.errors import InputError

SOURCE = """
from torch import nn
import helper_beside_it

runs = []

class Net(nn.Linear):
    def __init__(self):
        super().__init__(helper_beside_it.WIDTH, 1)

def build(): return Net()
def needs(x): return Net()
def fails(): raise RuntimeError("out of luck")
def number(): return 3
def once(): yield 1
ready = Net()
batches = [1, 2]
criterion = nn.MSELoss()
class Space:
    build = Net
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "train.py").write_text(SOURCE)
    (tmp_path / "helper_beside_it.py").write_text("WIDTH = 5")
    yield tmp_path / "train.py"
    for name in ("_hvpspec_user_train", "helper_beside_it", "train"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", ["build", "Net", "ready", "Space.build"])
def test_models(file, name):
    model = load_model(f"{file}:{name}")
    assert isinstance(model, nn.Linear)
    assert model.in_features == 5


def test_a_file_runs_once(file):
    assert load_object(f"{file}:runs", "--data") is load_object(f"{file}:runs", "--model")


def test_modules_by_name(file, monkeypatch):
    monkeypatch.chdir(file.parent)
    assert isinstance(load_model("train:build"), nn.Linear)
    assert load_data("train:batches") == [1, 2]


def test_data_and_losses(file):
    assert load_data(f"{file}:batches") == [1, 2]
    assert load_loss("mse") == "mse"
    assert isinstance(load_loss(f"{file}:criterion"), nn.MSELoss)
    assert callable(load_loss(f"{file}:build"))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("{file}", "write it as file.py:function"),
        ("{file}:", "write it as file.py:function"),
        ("{file}:biuld", r"has no 'biuld'; did you mean build\?"),
        ("{file}:zzzzzz", r"has no 'zzzzzz'\."),
        ("{file}:needs", "must be callable without arguments"),
        ("{file}:fails", "it raised RuntimeError: out of luck"),
        ("{file}:number", "expected a torch.nn.Module, got int"),
        ("nowhere.py:f", "no such file"),
        ("nowhere.at.all:f", "no module named 'nowhere.at.all'"),
    ],
)
def test_bad_specs(file, spec, message):
    with pytest.raises(InputError, match=message) as caught:
        load_model(spec.format(file=file))
    assert str(caught.value).startswith("--model")


def test_files_that_do_not_run(tmp_path):
    (tmp_path / "broken.py").write_text("def f(:\n")
    with pytest.raises(InputError, match=r"importing .* raised SyntaxError"):
        load_model(f"{tmp_path / 'broken.py'}:f")
    (tmp_path / "lacking.py").write_text("import not_installed_anywhere")
    with pytest.raises(InputError, match=r"No module named 'not_installed_anywhere'"):
        load_model(f"{tmp_path / 'lacking.py'}:f")


def test_generators_and_unknown_losses(file):
    with pytest.raises(InputError, match="a generator can be read only once"):
        load_data(f"{file}:once")
    with pytest.raises(InputError, match=r"--loss mean_squares: no loss has that name; choose one of cross_entropy"):
        load_loss("mean_squares")
