"""TorchScript programs whose operators end the process: the first run is made in another one."""

import warnings

import pytest
import torch
from torch import Tensor, nn

import hvpspec
from hvpspec.checkpoint.formats.torchscript import first_run
from hvpspec.errors import CheckpointError

warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*torch.jit")


class Program(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(6, 4, 3))


class Remainder(Program):
    """An integer % 0 is a signal of the processor's."""

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (7 % (x.dim() - 3))


class Pool(Program):
    def forward(self, x: Tensor) -> Tensor:
        return torch.max_pool1d(x, [1 << 62], [(1 << 63) - 1], [0], [1], False) * self.weight.sum()


class Repeats(Program):
    """Their sum is beyond 2⁶³."""

    def forward(self, x: Tensor) -> Tensor:
        counts = torch.tensor([1 << 62, 1 << 62, (1 << 63) - 2, 7])
        return torch.repeat_interleave(self.weight[0], counts, 0)


class Stride(Program):
    """The backward pass of oneDNN does not expect it."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.conv1d(x, self.weight, None, [65536], [1], [1], 1)


class State(Program):
    """The state of an LSTM is that of fewer samples: it is read, and memory is written, out of bounds."""

    def forward(self, x: Tensor) -> Tensor:
        w, u, b = torch.ones(400, 8), torch.ones(400, 100), torch.ones(400)
        h = torch.zeros(2, 1, 100)
        more = [w, u, b, b]
        return (
            torch.lstm(x.repeat(1, 40, 1), [h, h], more + more, True, 1, 0.0, True, True, False)[0]
            * self.weight[0, 0, 0]
        )


class Endless(Program):
    def forward(self, x: Tensor) -> Tensor:
        while x.dim() == 3:
            x = x + self.weight.sum()
        return x


@pytest.fixture
def loaded(tmp_path):
    def load(kind, **options):
        torch.jit.script(kind()).save(tmp_path / "model.pt")
        return hvpspec.load_checkpoint(tmp_path / "model.pt", **options)

    return load


X = torch.ones(2, 4, 8)


@pytest.mark.parametrize("kind", [Remainder, Pool, Repeats, Stride, State])
def test_a_program_that_ends_the_process_ends_another_one(loaded, kind):
    model = loaded(kind)
    with pytest.raises(CheckpointError, match=r"model\.pt holds a program that ended a process of its own by SIG"):
        model(X)


class Plain(Program):
    def forward(self, x: Tensor, scale: float = 1.0) -> dict[str, Tensor]:
        return {"y": torch.conv1d(x, self.weight) * scale}


def test_a_program_is_tried_once_and_then_run(loaded, monkeypatch):
    tried = []

    def counted(given):
        tried.append(given)
        return run(given)

    run = first_run._fails
    monkeypatch.setattr(first_run, "_fails", counted)
    model = loaded(Plain)
    expected = torch.conv1d(X, torch.ones(6, 4, 3))
    for _ in range(2):
        torch.testing.assert_close(model(X, scale=2.0)["y"], 2 * expected)
    assert len(tried) == 1
    assert not any(path.exists() for path in tried[0])  # nothing is left in the folder for temporary files


def test_a_program_that_does_not_end_is_not_waited_for(loaded, monkeypatch):
    monkeypatch.setattr(first_run, "_MAX_SECONDS", 0.5)
    with pytest.raises(CheckpointError, match=r"did not end within .*, so it was not run here; .* --trust-pickle"):
        loaded(Endless)(X)


def test_a_refused_program_stays_refused_and_a_trusted_one_is_not_tried(loaded, monkeypatch):
    monkeypatch.setattr(first_run, "_fails", lambda given: "ended badly")
    model = loaded(Plain)
    for _ in range(2):
        with pytest.raises(CheckpointError, match="ended badly, so it was not run here"):
            model(X)
    assert loaded(Plain, trust_pickle=True)(X)["y"].shape == (2, 6, 6)
