"""Tiny models of ten task heads as save_pretrained writes them: a directory and a data function are all that is given.

λ_max is compared with SciPy's, of products by double backward through the model's own loss.
"""

import json

import pytest
import torch
from cli_files import call
from scipy.sparse.linalg import LinearOperator, eigsh

pytest.importorskip("transformers")

from architectures.hugging_face import build
from architectures.judge import _cast, _Gradient

HEADS = {
    "masked": ("bert", "masked language model"),
    "image": ("vit", "image classification"),
    "series": ("patchtst", "time series by channels"),
    "causal": ("llama", "causal language model"),
}
SLOW_HEADS = {
    "sequence to sequence": ("t5", "sequence to sequence"),
    "experts": ("mixtral", "causal language model"),
    "mamba": ("mamba", "causal language model"),
    "segmentation": ("segformer", "segmentation"),
    "detection": ("yolos", "detection"),
    "CTC": ("wav2vec2", "CTC"),
    "question answering": ("albert", "question answering"),
    "contrastive": ("clip", "contrastive"),
    "masked autoencoder": ("vit_mae", "masked autoencoder"),
    "series with lags": ("time_series_transformer", "time series"),
}
DATA = "import torch\ndef batches(): return torch.load('batches.pt', weights_only=False)\n"
FLOAT32_INSIDE = 1e-3  # relative: the model, or its loss, rounds to float32


@pytest.mark.parametrize(
    ("model_type", "task"),
    [
        *(pytest.param(*head, id=name) for name, head in HEADS.items()),
        *(pytest.param(*head, id=name, marks=pytest.mark.slow) for name, head in SLOW_HEADS.items()),
    ],
)
def test_a_directory_and_a_data_function_are_enough(tmp_path, model_type, task):
    case = build(model_type, task)
    case.model.save_pretrained(tmp_path / "run")
    torch.save(case.batches, tmp_path / "batches.pt")
    (tmp_path / "data.py").write_text(DATA)
    usual = ("run", "--data", "data.py:batches", "--dtype", "float64", "--out", ".")
    done = call(tmp_path, "check", *usual)
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert not any(finding["severity"] == "refused" for finding in read(tmp_path, "check")["findings"])
    done = call(tmp_path, "spectrum", *usual, "--only", "eigenvalues", "-k", "1", "--tol", "1e-4", "--no-preflight")
    assert done.returncode == 0, done.stderr
    found = read(tmp_path, "spectrum")
    assert found["provenance"]["loss"] == "model"
    assert found["eigenvalues"][0]["value"] == pytest.approx(largest(tmp_path / "run", case), rel=FLOAT32_INSIDE)


def read(folder, name):
    return json.loads((folder / f"{name}.json").read_text())


def largest(folder, case):
    """The eigenvalue of largest magnitude of the model that transformers loads, by its own loss."""
    model = type(case.model).from_pretrained(folder, attn_implementation="eager").double().eval()
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")
    batch = _cast(case.batches[0], torch.float64)
    gradient = _Gradient(model, lambda model: model(**batch).loss)

    def multiply(v):
        v = torch.from_numpy(v.ravel())
        try:
            return gradient.product(v).numpy()
        except RuntimeError:  # CTC, which torch differentiates once
            return gradient.richardson(v / v.norm())[0].numpy() * float(v.norm())

    products = LinearOperator((gradient.n, gradient.n), dtype="float64", matvec=multiply)
    before = torch.get_default_dtype()
    # YOLOS makes class weights of its own, which have to be in the model's dtype; others would have other constants.
    torch.set_default_dtype(torch.float64 if model.config.model_type == "yolos" else torch.float32)
    try:
        return float(eigsh(products, k=1, tol=1e-5, return_eigenvectors=False)[0])
    finally:
        torch.set_default_dtype(before)


def test_without_a_loss_anything_else_is_told_to_name_one(tmp_path):
    (tmp_path / "model.pt").write_bytes(b"")
    done = call(tmp_path, "spectrum", "model.pt", "--data", "data.py:batches")
    assert done.returncode == 2
    assert "Missing option '--loss', which only the directory of a Hugging Face model" in done.stderr
