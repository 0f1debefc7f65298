"""Vectors as safetensors files, read back with the library of that format."""

import json
import math

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

import hvpspec
from hvpspec import HessianOperator, InputError
from hvpspec.checkpoint.formats.safetensors_files import ToWrite, read_metadata, write_safetensors
from hvpspec.errors import CheckpointError, OutputError


class Complex(nn.Module):
    """A real parameter, a complex one, a scalar, and one with a second name."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 3))
        self.filter = nn.Parameter(torch.randn(3, dtype=torch.complex64))
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.tied = self.weight

    def forward(self, x):
        return ((x @ self.weight.T @ self.tied) * self.filter).abs() * self.scale


@pytest.fixture(scope="module")
def of_network():
    torch.manual_seed(0)
    x, y = torch.randn(20, 3), torch.randn(20, 3)
    H = HessianOperator(Complex(), "mse", [(x, y)], dtype="float64")
    return H, (H @ torch.eye(H.shape[0], dtype=torch.float64)).numpy()


def metadata(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


def test_a_diagonal_has_the_names_and_shapes_of_the_parameters(of_network, tmp_path):
    H, dense = of_network
    found = hvpspec.diagonal(H, rtol=1e-8)
    path = found.save(tmp_path / "new" / "diagonal.safetensors", H.parameters, metadata={"run": "é 1"})
    tensors = load_file(path)
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
        "weight": (2, 3), "filter": (3, 2), "scale": (),
    }  # fmt: skip
    together = torch.cat([tensors[name].reshape(-1) for name in H.parameters.names])
    assert torch.allclose(together, torch.from_numpy(np.diag(dense).copy()), rtol=1e-8, atol=1e-12)
    about = metadata(path)
    assert about["run"] == "é 1"
    assert float(about["error"]) == found.error
    assert about["hvpspec"] == hvpspec.__version__
    assert about == read_metadata(path)


def test_eigenvectors_are_along_the_first_axis(of_network, tmp_path):
    H, dense = of_network
    found = hvpspec.eigsh(H, k=3, tol=1e-8)
    path = found.save(tmp_path / "vectors.safetensors", H.parameters)
    tensors, about = load_file(path), metadata(path)
    assert tensors["weight"].shape == (3, 2, 3)
    assert tensors["filter"].shape == (3, 3, 2)
    assert tensors["scale"].shape == (3,)
    for i, value in enumerate(json.loads(about["eigenvalues"])):
        v = torch.cat([tensors[name][i].reshape(-1) for name in H.parameters.names]).numpy()
        assert math.isclose(np.linalg.norm(v), 1, rel_tol=1e-12)
        assert np.linalg.norm(dense @ v - value * v) <= 2 * json.loads(about["residuals"])[i] + 1e-9
    value = {name: tensor[0] for name, tensor in tensors.items()}
    flat = H.parameters.flatten({**value, "filter": torch.view_as_complex(value["filter"])})
    assert torch.equal(flat, torch.from_numpy(found.vectors[:, 0]))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_without_names_there_is_one_tensor(tmp_path, dtype):
    A = np.diag(np.arange(1.0, 6.0)).astype(dtype)
    diagonal = load_file(hvpspec.diagonal(A).save(tmp_path / "a.safetensors"))
    assert np.allclose(diagonal["diagonal"], np.arange(1, 6))
    vectors = load_file(hvpspec.eigsh(A, k=2).save(tmp_path / "b.safetensors"))["eigenvectors"]
    assert vectors.shape == (2, 5)
    assert vectors.dtype == diagonal["diagonal"].dtype == torch.from_numpy(A).dtype
    assert abs(vectors[0, 4]) == pytest.approx(1)


def test_what_cannot_be_saved_is_said(of_network, tmp_path):
    H, _ = of_network
    found = hvpspec.spectrum(np.eye(3), k=1, diagonal=True)
    with pytest.raises(InputError, match=r"the name of the file must end in \.safetensors"):
        found.diagonal.save(tmp_path / "diagonal.pt")
    with pytest.raises(InputError, match="the parameters have 13 entries, and the vectors 3"):
        found.diagonal.save(tmp_path / "diagonal.safetensors", H.parameters)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write there"):
        found.eigenpairs.save(tmp_path / "file" / "vectors.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(InputError, match="is a folder there"):
        found.diagonal.save(tmp_path / "folder.safetensors")
    again = hvpspec.load_spectrum(found.save(tmp_path)[0])
    with pytest.raises(InputError, match=r"a spectrum\.json has its means only"):
        again.diagonal.save(tmp_path / "diagonal.safetensors")
    with pytest.raises(InputError, match="the eigenvectors are not known"):
        again.eigenpairs.save(tmp_path / "vectors.safetensors")
    with pytest.raises(InputError, match=r"a spectrum\.json has its means only"):
        again.diagonal.mean()
    assert not list(tmp_path.glob("*.safetensors/*")) + list(tmp_path.glob("vectors*"))


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    found, path = hvpspec.diagonal(np.eye(4)), tmp_path / "diagonal.safetensors"
    found.save(path)
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OutputError, match=r"diagonal\.safetensors: not written \(No space left on device\)"):
        found.save(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_the_header_is_read_with_care(tmp_path):
    path = tmp_path / "some.safetensors"
    write_safetensors(path, {"a": ToWrite(np.dtype(np.float32), (0, 2), [])}, {"x": "y"})
    assert load_file(path)["a"].shape == (0, 2)
    for damaged in (b"", b"\xff" * 20, (8).to_bytes(8, "little") + b"[1, 2, 3", (2).to_bytes(8, "little") + b"{}"):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="no metadata can be read there"):
            read_metadata(path)
    with pytest.raises(CheckpointError, match="no metadata"):
        read_metadata(tmp_path)
