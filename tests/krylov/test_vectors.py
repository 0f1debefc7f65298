import numpy as np
import pytest
import torch

from hvpspec.kernels import random_vectors
from hvpspec.kernels.random_vectors import CHUNK, directions, gaussian, probes, rademacher
from hvpspec.krylov import vectors
from hvpspec.krylov.vectors import column_inner, inner

OPTIONS = {"dtype": torch.float64, "device": torch.device("cpu")}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inner_products_accumulate_in_float64(monkeypatch, dtype):
    """Whole numbers: sums over a piece are exact in float32, and so is the total, though one term is far larger."""
    monkeypatch.setattr(vectors, "_FLOAT32_SUM", 7)  # several pieces, the last ragged
    A, B = torch.randint(-9, 9, (40, 3)).to(dtype), torch.randint(-9, 9, (40, 2)).to(dtype)
    A[:7], B[:7] = 0, 0
    A[0], B[0] = 1e8, 1
    expected = A.double().T @ B.double()
    assert inner(A, B).dtype == column_inner(A[:, :2], B).dtype == torch.float64
    assert torch.equal(inner(A, B), expected)
    assert torch.equal(column_inner(A[:, :2], B), expected[:2].diagonal())


@pytest.mark.parametrize(("mean", "roundoffs"), [(0.0, 0.25), (1.0, 3.0)], ids=["terms cancel", "terms add up"])
def test_inner_products_in_float32_are_off_by_roundoffs(mean, roundoffs):
    generator = torch.Generator().manual_seed(0)
    n = 60 * vectors._FLOAT32_SUM + 77
    A, B = (torch.randn(n, 5, generator=generator) + mean for _ in range(2))
    expected = A.double().T @ B.double()
    allowed = roundoffs * torch.finfo(torch.float32).eps / 2 * A.norm(dim=0)[:, None] * B.norm(dim=0)
    for X, Y in ((A, B), (A.T.contiguous().T, B.T.contiguous().T)):
        assert bool(((inner(X, Y) - expected).abs() < allowed).all())
        assert bool(((column_inner(X, Y) - expected.diagonal()).abs() < allowed.diagonal()).all())


def test_probes_are_signs_and_depend_on_seed_and_number_only():
    n = 2 * CHUNK + 77
    W = rademacher(n, [0, 1, 5], seed=3, **OPTIONS)
    assert W.shape == (n, 3)
    assert set(W.unique().tolist()) == {-1.0, 1.0}
    assert torch.equal(rademacher(n, [5], seed=3, **OPTIONS)[:, 0], W[:, 2])
    assert torch.equal(
        rademacher(n, [5], seed=3, dtype=torch.float32, device=OPTIONS["device"])[:, 0].double(), W[:, 2]
    )
    # a shorter vector is the beginning of a longer one: entries are keyed by position
    assert torch.equal(rademacher(100, [1], seed=3, **OPTIONS)[:, 0], W[:100, 1])
    assert not torch.equal(rademacher(n, [0], seed=4, **OPTIONS)[:, 0], W[:, 0])


def test_probes_are_uncorrelated_and_unbiased():
    n, m = 20_000, 64
    W = rademacher(n, range(m), seed=0, **OPTIONS).numpy()
    gram = W.T @ W / np.sqrt(n)
    off = gram[~np.eye(m, dtype=bool)]
    assert abs(off.std() - 1) < 0.05
    assert np.abs(W.sum(0)).max() / np.sqrt(n) < 4.5
    assert np.abs(W.sum(1)).max() / np.sqrt(m) < 5.5


def test_normal_probes_are_keyed_by_seed_number_and_position():
    n = CHUNK + 100
    W = probes(n, [0, 1, 5], seed=3, **OPTIONS)
    assert torch.equal(probes(n, [5], seed=3, **OPTIONS)[:, 0], W[:, 2])
    assert torch.equal(probes(100, [1], seed=3, **OPTIONS)[:, 0], W[:100, 1])
    assert probes(n, [], seed=3, **OPTIONS).shape == (n, 0)
    others = torch.cat([gaussian(n, 1, seed=3, **OPTIONS), probes(n, [1], seed=4, **OPTIONS), W[:, :1]], 1)
    assert float((others.T @ W[:, 1]).abs().max()) < 5 * np.sqrt(n)  # none of them is the same vector
    assert float((W.T @ W / n - torch.eye(3)).abs().max()) < 5 * np.sqrt(2 / n)


def test_gaussians():
    n = CHUNK + 1000
    g = gaussian(n, 0, seed=1, **OPTIONS)[:, 0].numpy()
    assert abs(g.mean()) < 4 / np.sqrt(n)
    assert abs((g**2).mean() - 1) < 4 * np.sqrt(2 / n)
    assert abs((g**4).mean() - 3) < 4 * np.sqrt(96 / n)
    other = gaussian(n, 1, seed=1, **OPTIONS)[:, 0].numpy()
    assert abs(g @ other) / np.sqrt(n) < 4
    assert np.abs(np.corrcoef(g[:1000], g[-1000:])[0, 1]) < 0.15  # chunks do not repeat


@pytest.mark.parametrize("seed", [0, 2**63 - 1, 2**63, 2**64 - 2])
def test_neighbouring_seeds_differ(seed):
    """The largest ones too, which float64 cannot tell apart."""
    cpu = torch.device("cpu")
    one, other = (rademacher(256, [0], seed=s, dtype=torch.float64, device=cpu) for s in (seed, seed + 1))
    assert abs(float((one * other).mean())) < 0.4
    one, other = (gaussian(256, 0, seed=s, dtype=torch.float64, device=cpu) for s in (seed, seed + 1))
    assert abs(float((one * other).mean())) < 0.4


@pytest.mark.parametrize("n", [1, 7, 64, 65, CHUNK - 1, CHUNK, 2 * CHUNK + 77])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int8])
def test_random_signs_are_the_bits_of_each_chunk_in_order(n, dtype):
    """The meaning of a seed: bit by bit, from one generator for each chunk."""
    for seed, number in ((3, 0), (2**63, 1 << 40)):
        signs = []
        for chunk in range(-(-n // CHUNK)):
            key = np.array([seed, number], dtype=np.uint64)
            words = np.random.Philox(key=key, counter=[0, 0, chunk, 0]).random_raw(CHUNK // 64)
            signs += [1 if byte >> (7 - bit) & 1 else -1 for byte in words.tobytes() for bit in range(8)]
        found = rademacher(n, [number, number], seed=seed, dtype=dtype, device=OPTIONS["device"])
        assert found.dtype == dtype
        assert found.shape == (n, 2)
        assert found[:, 0].tolist() == found[:, 1].tolist() == signs[:n]


@pytest.mark.parametrize(("threads", "chunks_of_a_task"), [(1, 4), (3, 4), (2, 2)])
@pytest.mark.parametrize(("draw", "kind"), [(probes, 2), (gaussian, 1)])
def test_normal_numbers_are_those_of_each_chunk_in_order(monkeypatch, draw, kind, threads, chunks_of_a_task):
    """However many threads fill however many chunks at once."""
    monkeypatch.setattr(random_vectors, "_CHUNKS_OF_A_TASK", chunks_of_a_task)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    n = 5 * CHUNK + 100
    key = np.array([9, 4], dtype=np.uint64)
    chunks = [
        np.random.Generator(np.random.Philox(key=key, counter=[0, 0, chunk, kind])).standard_normal(CHUNK)
        for chunk in range(6)
    ]
    expected = np.concatenate(chunks)[:n]
    for dtype in (torch.float64, torch.float32):
        found = draw(n, 4 if draw is gaussian else [4], seed=9, dtype=dtype, device=OPTIONS["device"])
        assert torch.equal(found[:, 0], torch.from_numpy(expected).to(dtype))


@pytest.mark.parametrize("rows", [range(7, 5 * CHUNK + 100), range(CHUNK - 1, CHUNK + 1), range(9, 9)])
def test_a_vector_on_another_device_is_copied_part_by_part(monkeypatch, rows):
    """As to a GPU, but to this one: the parts are those of the chunks, not of the vector."""
    monkeypatch.setattr(random_vectors, "_COPIED_TOGETHER", 2 * CHUNK)
    found, sizes = torch.empty(len(rows)), []

    def write(part, positions):
        sizes.append(len(part))
        part.copy_(probes(positions, [4], seed=9, dtype=part.dtype, device=part.device)[:, 0])

    random_vectors._fill_by_copies(found, rows, write, pinned=False)
    assert torch.equal(found, probes(rows, [4], seed=9, dtype=found.dtype, device=found.device)[:, 0])
    assert max(sizes, default=0) <= 2 * CHUNK


def test_directions_are_always_the_same_and_no_probes():
    options = {"dtype": torch.float64, "device": OPTIONS["device"]}
    one, both = directions(1000, 1, **options), directions(1000, 2, **options)
    assert torch.equal(one, both[:1])
    assert abs(float(both.std()) - 1) < 0.1
    for other in (both[1], probes(1000, [0], seed=0, **options)[:, 0], gaussian(1000, 0, seed=0, **options)[:, 0]):
        assert abs(float(one[0] @ other)) < 200  # of 1,000 if they were the same


@pytest.mark.gpu
def test_random_vectors_are_the_same_on_a_gpu():
    n, cuda = 5_000_003, torch.device("cuda")
    for draw, numbers in ((rademacher, [0, 7]), (probes, [0, 7]), (gaussian, 7)):
        for dtype in (torch.float32, torch.float64):
            found = draw(n, numbers, seed=5, dtype=dtype, device=cuda)
            assert found.device.type == "cuda"
            assert torch.equal(found.cpu(), draw(n, numbers, seed=5, dtype=dtype, device=torch.device("cpu")))


@pytest.mark.parametrize("place", ["rows", "columns"])
def test_combinations(place):
    """Whatever the layout, and for small matrices as NumPy has them: in any order, in float64."""
    V, W = torch.randn(50, 4), torch.randn(50, 3)
    if place == "columns":
        V, W = V.T.contiguous().T, W.T.contiguous().T
    S = np.arange(12.0).reshape(3, 4).T[::-1]
    expected = V.double() @ torch.from_numpy(S.copy())
    torch.testing.assert_close(vectors.times(V, S).double(), expected, rtol=1e-5, atol=1e-4)
    before = W.double()
    vectors.subtract_times(W, V, S)
    torch.testing.assert_close(W.double(), before - expected, rtol=1e-5, atol=1e-4)
    assert vectors.inner(V[:, :0], W).shape == (0, 3)
    torch.testing.assert_close(vectors.inner(V, W.double()), V.double().T @ W.double())


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inner_products_on_a_gpu(dtype):
    n = 300 * vectors._FLOAT32_SUM + 77
    A, B = (torch.randn(n, k, dtype=dtype, device="cuda") for k in (20, 3))
    for X, Y in ((A, B), (A.cpu(), B), (A, B.cpu())):
        found = vectors.inner(X, Y)
        assert found.device == Y.device
        allowed = 1e-7 if dtype == torch.float32 else 1e-14
        expected = A.double().T @ B.double()
        assert float((found.to("cuda") - expected).abs().max()) < allowed * n
    torch.testing.assert_close(vectors.column_inner(B, B), (B.double() ** 2).sum(0), rtol=1e-6, atol=0)
