"""A spectrum that is interrupted, wherever that is, goes on to the same figures to the last bit."""

import dataclasses
import warnings

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import LinearOperator
from torch import nn

import hvpspec
from hvpspec.errors import InputError
from hvpspec.krylov import basis
from hvpspec.krylov.log import log_file
from hvpspec.krylov.log.journal import Journal

N = 60


class Killed(BaseException):
    pass


def matrix():
    generator = np.random.default_rng(0)
    Q = np.linalg.qr(generator.standard_normal((N, N)))[0]
    M = (Q * np.r_[np.linspace(5, 50, 6), generator.standard_normal(N - 6) * 0.1]) @ Q.T
    return (M + M.T) / 2


class Operator(LinearOperator):
    """Counts its products; fails at number `limit`."""

    def __init__(self, M, limit=10**9):
        super().__init__(np.float64, M.shape)
        self.M, self.made, self.limit = M, 0, limit

    def _matmat(self, X):
        self.made += X.shape[1]
        if self.made > self.limit:
            raise Killed
        return self.M @ X


def figures(found):
    """Everything but times, exactly."""

    def plain(value):
        if dataclasses.is_dataclass(value):
            fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
            return {name: plain(entry) for name, entry in fields.items() if name != "seconds"}
        if isinstance(value, (tuple, list)):
            return [plain(entry) for entry in value]
        if isinstance(value, dict):
            return {name: plain(entry) for name, entry in value.items()}
        return (value.shape, value.tobytes()) if isinstance(value, np.ndarray) else repr(value)

    return plain(found)


OPTIONS = [
    {"k": 4, "rtol": 0.05, "refine": True, "refine_hvps": 12, "blocks": {"a": slice(0, 20)}},
    {"k": 3, "which": "LA", "rtol": 0.3, "block_size": 2, "verify": True},
    {"k": 2, "only": "eigenvalues", "start": np.arange(1.0, N + 1)},
    {"k": 5, "rtol": 0.02, "max_hvps": 30},
]


def interrupted(operator, folder, **options):
    with pytest.raises(Killed):
        hvpspec.spectrum(operator, journal=folder, **options)


@pytest.mark.parametrize("options", OPTIONS)
def test_interrupted_in_any_write_it_goes_on(tmp_path, monkeypatch, options):
    """Each process is killed in its fourth write (a record takes three or more), half of which still gets to disk."""
    M, whole = matrix(), log_file.write
    reference = hvpspec.spectrum(Operator(M), **options)
    assert figures(hvpspec.spectrum(Operator(M), journal=tmp_path / "never", **options)) == figures(reference)
    assert not (tmp_path / "never").exists()
    writes = 0

    def dying(file, buffer):
        nonlocal writes
        writes += 1
        if writes < 4:
            return whole(file, buffer)
        whole(file, bytes(buffer)[: len(buffer) // 2])
        monkeypatch.setattr(log_file.LogFile, "cut", lambda log: None)  # a killed process tidies nothing up
        raise Killed

    cut, runs, made = log_file.LogFile.cut, 0, 0
    monkeypatch.setattr(log_file, "write", dying)
    while True:
        runs, writes, operator = runs + 1, 0, Operator(M)
        try:
            found = hvpspec.spectrum(operator, journal=tmp_path / "run", **options)
            break
        except Killed:
            monkeypatch.setattr(log_file.LogFile, "cut", cut)
        made = max(made, operator.made)
    assert runs >= 6  # steps, probes and checks were interrupted
    assert made <= 8 * 2 + 3  # products that one process makes: what it had recorded, no other one made again
    assert figures(found) == figures(reference)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("after", [1, 5, 17, 27])
def test_products_are_not_made_again(tmp_path, after):
    M = matrix()
    reference, first, second = Operator(M), Operator(M, limit=after), Operator(M)
    expected = hvpspec.spectrum(reference, **OPTIONS[0])
    interrupted(first, tmp_path, **OPTIONS[0])
    assert figures(hvpspec.spectrum(second, journal=tmp_path, **OPTIONS[0])) == figures(expected)
    lost = 8  # at most so many are made together
    assert reference.made <= after + second.made - 1 <= reference.made + lost  # one is made to compare operators


def test_what_free_memory_decided_is_found_again(tmp_path, monkeypatch):
    """Room for 26 vectors, in which the basis is restarted; more is free when the run goes on."""
    M, options = matrix(), {"k": 3, "which": "SA", "tol": 1e-6, "only": "eigenvalues"}
    monkeypatch.setattr(basis, "free_memory", lambda device: 4 * 26 * N * 8)
    expected = figures(hvpspec.spectrum(Operator(M), **options))
    interrupted(Operator(M, limit=20), tmp_path, **options)
    monkeypatch.setattr(basis, "free_memory", lambda device: 1 << 40)
    assert figures(hvpspec.spectrum(Operator(M), **options)) != expected
    assert figures(hvpspec.spectrum(Operator(M), journal=tmp_path, **options)) == expected


def test_every_bit_flipped_is_noticed(tmp_path):
    M, folder = matrix(), tmp_path / "run"
    expected = figures(hvpspec.spectrum(Operator(M), **OPTIONS[3]))
    interrupted(Operator(M, limit=16), folder, **OPTIONS[3])
    content = (folder / "rank-0.log").read_bytes()
    generator = np.random.default_rng(1)
    for at in [3, 40, *generator.integers(100, len(content), 25)]:
        spoilt = bytearray(content)
        spoilt[at] ^= 1 << int(generator.integers(8))
        folder.mkdir(exist_ok=True)
        (folder / "rank-0.log").write_bytes(spoilt)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # what is damaged is said
            assert figures(hvpspec.spectrum(Operator(M), journal=folder, **OPTIONS[3])) == expected


def test_a_journal_of_other_inputs_is_refused_with_what_differs(tmp_path):
    M = matrix()
    interrupted(Operator(M, limit=10), tmp_path / "run", k=3, rtol=0.1)
    for options, said in (
        ({"k": 4, "rtol": 0.1}, r"\(k: 3 then, 4 now\)"),
        ({"k": 3}, r"\(rtol: 0.1 then, 0.01 now\)"),
        ({"k": 3, "rtol": 0.1, "seed": 1, "which": "SA"}, r"\(which: LM then, SA now, seed: 0 then, 1 now\)"),
        ({"k": 3, "rtol": 0.1, "start": np.ones(N)}, "start: none then, "),
        ({"k": 3, "rtol": 0.1, "blocks": {"a": [0, 1]}}, "blocks: none then, "),
    ):
        with pytest.raises(InputError, match=f"{said}.*delete that folder to start over"):
            hvpspec.spectrum(Operator(M), journal=tmp_path / "run", **options)
    with pytest.raises(InputError, match="another operator, as a product shows"):
        hvpspec.spectrum(Operator(M + 1e-6 * np.eye(N)), journal=tmp_path / "run", k=3, rtol=0.1)
    assert hvpspec.spectrum(Operator(M), journal=tmp_path / "run", k=3, rtol=0.1).complete


def test_products_of_other_vectors_are_never_used(tmp_path, monkeypatch):
    """As if the random numbers had changed: the run starts over where the vectors are others."""
    M = matrix()
    interrupted(Operator(M, limit=16), tmp_path, **OPTIONS[3])
    fill = hvpspec.kernels.random_vectors._fill_normal

    def fill_backwards(vector, *of):
        fill(vector, *of)
        vector.copy_(vector.flip(0))

    monkeypatch.setattr(hvpspec.kernels.random_vectors, "_fill_normal", fill_backwards)
    expected = figures(hvpspec.spectrum(Operator(M), **OPTIONS[3]))
    with pytest.warns(RuntimeWarning, match=r"\d+ products there do not fit this run, and are made again"):
        assert figures(hvpspec.spectrum(Operator(M), journal=tmp_path, **OPTIONS[3])) == expected


def test_a_full_disk_costs_the_journal_and_not_the_run(tmp_path, monkeypatch):
    M, whole, writes = matrix(), log_file.write, 0
    expected = figures(hvpspec.spectrum(Operator(M), **OPTIONS[0]))

    def full(file, buffer):
        nonlocal writes
        writes += 1
        if writes > 9:
            raise OSError(28, "No space left on device")
        whole(file, buffer)

    monkeypatch.setattr(log_file, "write", full)
    with pytest.warns(RuntimeWarning, match="no journal is kept .*cannot be written any more .No space left"):
        assert figures(hvpspec.spectrum(Operator(M), journal=tmp_path / "run", **OPTIONS[0])) == expected
    assert writes == 10
    assert not (tmp_path / "run").exists()
    usage = type("usage", (), {"free": 2**12})
    monkeypatch.setattr("hvpspec.krylov.log.journal.shutil.disk_usage", lambda folder: usage)
    monkeypatch.setattr(log_file, "write", whole)
    with pytest.warns(RuntimeWarning, match="it would take about .* more than half of what is free"):
        assert figures(hvpspec.spectrum(Operator(M), journal=tmp_path / "run", **OPTIONS[0])) == expected


def test_contradictory_products_are_not_kept_and_errors_are_not_recorded(tmp_path):
    M = matrix()

    class Faulty(Operator):
        def _matmat(self, X):
            self.made += 1
            return M @ X + 9.0 * (self.made > 6) * X[::-1].cumsum(0)

    with pytest.raises(InputError, match="not symmetric"):
        hvpspec.spectrum(Faulty(M), journal=tmp_path / "a", k=3)
    assert not (tmp_path / "a").exists()

    class Nan(Operator):
        def _matmat(self, X):
            return super()._matmat(X) * (np.nan if self.made > 7 else 1)

    with pytest.raises(InputError, match="NaN"):
        hvpspec.spectrum(Nan(M), journal=tmp_path / "b", k=3)
    again = Operator(M)
    assert figures(hvpspec.spectrum(again, journal=tmp_path / "b", k=3)) == figures(hvpspec.spectrum(Operator(M), k=3))
    assert again.made < hvpspec.spectrum(Operator(M), k=3).hvps


def test_two_runs_with_one_journal(tmp_path):
    first = Journal(tmp_path, {})
    with pytest.raises(InputError, match="another run is writing there"):
        hvpspec.spectrum(Operator(matrix()), journal=tmp_path)
    first.close()
    assert hvpspec.spectrum(Operator(matrix()), journal=tmp_path / "other", k=1).complete


# --- with a model -------------------------------------------------------------------------------------------------


class Stopping:
    """Batches that end the run at a number of passes."""

    def __init__(self, limit=10**9):
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(60, 5, generator=generator)
        self.batches = list(zip(x.split(10), x[:, :3].argmax(1).split(10), strict=True))
        self.passes, self.limit = 0, limit

    def __iter__(self):
        self.passes += 1
        if self.passes > self.limit:
            raise Killed
        return iter(self.batches)

    def __len__(self):
        return len(self.batches)


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))


class Once(torch.autograd.Function):
    """tanh, which can be differentiated only once."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x.tanh())
        return x.tanh()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return g * (1 - ctx.saved_tensors[0] ** 2)


def rough(model, batch):
    return nn.functional.cross_entropy(Once.apply(model(batch[0])), batch[1])


@pytest.mark.parametrize(
    ("engine", "loss", "dtype"),
    [
        ("autograd", "cross_entropy", "float64"), ("autograd", "cross_entropy", "float32"),
        ("finite-difference", rough, "float64"),
    ],
)  # fmt: skip
def test_a_model(tmp_path, engine, loss, dtype):
    """Folds, rounding in float32 and the noise of finite differences are found again."""

    def operator(data):
        return hvpspec.HessianOperator(network(), loss, data, engine=engine, dtype=dtype)

    options = {"k": 2, "rtol": 0.2, "blocks": "*"} if loss != rough else {"k": 2, "rtol": 0.2}
    whole = Stopping()
    expected = figures(hvpspec.spectrum(operator(whole), **options))
    limit = int(0.7 * whole.passes)
    interrupted(operator(Stopping(limit)), tmp_path, **options)
    rest = Stopping()
    assert figures(hvpspec.spectrum(operator(rest), journal=tmp_path, **options)) == expected
    assert rest.passes < 0.6 * whole.passes


def test_the_engine_that_was_chosen_by_time_is_used_again(tmp_path, monkeypatch):
    from hvpspec.oracle import choose
    from hvpspec.oracle.choice import changes, prices
    from hvpspec.oracle.recorded import linearized

    def operator(data):
        return hvpspec.HessianOperator(network(), "cross_entropy", data, dtype="float32")

    options = {"k": 2, "rtol": 0.1, "only": ["eigenvalues", "trace"]}
    plain = hvpspec.spectrum(operator(Stopping()), **options)

    def together(engine, columns):
        engine.together = 3
        return 3

    with monkeypatch.context() as slow:  # products that take so long that recording them is worth it
        slow.setattr(prices.Prices, "records", lambda known, products: True)
        slow.setattr(prices.Prices, "time_to_try", lambda known, products, spent: 1e9)
        slow.setattr(changes, "_MAX_COST_RATIO", 1e9)
        slow.setitem(prices.COSTS, "cpu", dataclasses.replace(prices.COSTS["cpu"], seconds_to_compile=1e9))
        slow.setattr(linearized.Linearized, "vectorise", together)
        whole = operator(Stopping())
        expected = hvpspec.spectrum(whole, **options)
        assert whole.engine == "linearized"
        multiply, made = choose.Chooser.__call__, 0

        def dying(chooser, columns, on_batch=None):
            nonlocal made
            made += columns.shape[1]
            if made > 0.8 * expected.hvps:
                raise Killed
            return multiply(chooser, columns, on_batch)

        slow.setattr(choose.Chooser, "__call__", dying)
        interrupted(operator(Stopping()), tmp_path, **options)
    again = operator(Stopping())
    assert figures(hvpspec.spectrum(again, journal=tmp_path, **options)) == figures(expected)
    assert again.engine == "linearized"
    assert "3 vectors together" in again.plan
    assert figures(expected) != figures(plain)  # the engines round otherwise


def test_another_model_other_data_and_other_weights_are_refused(tmp_path, monkeypatch):
    from hvpspec.oracle.choice import prices

    monkeypatch.setattr(prices.Prices, "records", lambda *_: False)  # on a busy machine it might be worth it

    def run(model, data, **options):
        H = hvpspec.HessianOperator(model, "cross_entropy", data, dtype="float64", **options)
        return hvpspec.spectrum(H, journal=tmp_path, k=2, rtol=0.2)

    with pytest.raises(Killed):
        run(network(), Stopping(15))
    changed = network()
    with torch.no_grad():
        changed[0].weight[0, 0] = torch.nextafter(changed[0].weight[0, 0], torch.tensor(9.0))
    with pytest.raises(InputError, match=r"other inputs \(values of the model"):
        run(changed, Stopping())
    other = Stopping()
    other.batches[2][0][0, 0] += 1e-6
    with pytest.raises(InputError, match=r"other inputs \(batches"):
        run(network(), other)
    with pytest.raises(InputError, match="engine: auto then, autograd now"):
        run(network(), Stopping(), engine="autograd")
    with pytest.raises(InputError, match="parameters chosen"):
        run(network(), Stopping(), parameters="0")
    assert run(network(), Stopping()).complete
