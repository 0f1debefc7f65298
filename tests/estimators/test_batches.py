"""λ_max of every mini-batch, compared with the eigenvalues of each batch's explicit matrix."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from estimators.spectra import matrix
from operators.test_batches import OPERATORS, alone, explicit
from torch import nn
from zoo import CASES

import hvpspec
from hvpspec.errors import InputError
from hvpspec.krylov.log.journal import Journal
from hvpspec.options import BatchOptions
from hvpspec.results.parts import Batches


def problem(batches=6, size=8, seed=0):
    """A classifier with ragged batches, in float64."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    sizes = [size + number % 3 for number in range(batches)]
    data = [(torch.randn(n, 5).double(), torch.randint(0, 3, (n,))) for n in sizes]
    return model, data


def ends(model, x, y):
    """λ_min and λ_max of the explicit Hessian of one batch, by double autograd."""
    parameters = list(model.parameters())
    gradient = torch.autograd.grad(F.cross_entropy(model(x), y), parameters, create_graph=True)
    flat = torch.cat([g.reshape(-1) for g in gradient])
    rows = [torch.cat([r.reshape(-1) for r in torch.autograd.grad(g, parameters, retain_graph=True)]) for g in flat]
    values = torch.linalg.eigvalsh(torch.stack(rows))
    return float(values[0]), float(values[-1])


def whole(data):
    return torch.cat([x for x, _ in data]), torch.cat([y for _, y in data])


@pytest.mark.parametrize("matrix", OPERATORS)
def test_both_ends_of_every_batch_and_of_all_data(matrix):
    torch.manual_seed(0)
    case = CASES["mlp"]()
    H = OPERATORS[matrix](case.model, case.loss, case.data)
    found = hvpspec.per_batch(H, which="BE", rtol=1e-3, max_hvps=3000)
    assert [batch.number for batch in found.batches] == [0, 1, 2]
    assert [batch.weight for batch in found.batches] == [len(x) for x, _ in case.data]
    for batch in found.batches:
        values = torch.linalg.eigvalsh(explicit(matrix, alone(case, batch.number))).numpy()
        assert_holds(batch, values[0], values[-1], 1e-3)
    values = torch.linalg.eigvalsh(explicit(matrix, case)).numpy()
    assert_holds(found.whole, values[0], values[-1], 1e-3)
    assert found.mean() >= found.whole.largest.value - 1e-9  # λ_max is convex
    assert found.mean("smallest") <= found.whole.smallest.value + 1e-9


def assert_holds(batch, low, high, rtol):
    norm = max(abs(low), abs(high))
    for estimate, true, side in ((batch.largest, high, 1), (batch.smallest, low, -1)):
        assert estimate.converged
        assert estimate.interval[0] - 1e-9 * norm <= true <= estimate.interval[1] + 1e-9 * norm
        assert side * (estimate.value - true) <= 1e-9 * norm  # a Ritz value is not beyond it
        assert estimate.interval[1] - estimate.interval[0] <= 1.01 * rtol * norm


class Mean:
    """A mean of explicit matrices as the estimators see an operator over batches."""

    noise, device = 0.0, torch.device("cpu")

    def __init__(self, matrices):
        self.matrices, self.torch_dtype = matrices, matrices[0].dtype
        self.shape = matrices[0].shape

    def matmat(self, X):
        return sum(A @ X for A in self.matrices) / len(self.matrices)

    def batch_count(self):
        return len(self.matrices)

    def multiply_by_folds(self, block, folds, receive):
        count = len(self.matrices)
        for fold in range(folds):
            mine = [A for number, A in enumerate(self.matrices) if number * folds // count == fold]
            receive(fold, float(len(mine)), sum(A @ block for A in mine) / len(mine))
        return self.matmat(block)

    def expect(self, products):
        pass

    def batch_operators(self, numbers):
        for number in sorted(numbers):
            yield number, lambda number=number: (1.0, self.matrices[number])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_intervals_hold_as_often_as_they_promise(dtype):
    """Both ends of 10 batches over 6 seeds: of 120 at 95 %, 114 are expected, and 107 are three deviations fewer."""
    kinds = ("polynomial", "indefinite with outliers")
    dense = [matrix(kind, 60) * (1 + seed) for kind in kinds for seed in range(5)]
    true = np.array([np.linalg.eigvalsh(A)[[0, -1]] for A in dense])
    A = Mean([torch.from_numpy(A).to(dtype) for A in dense])
    held = 0
    for seed in range(6):
        found = hvpspec.per_batch(A, which="BE", rtol=0.3, seed=seed)
        for end, of, side in (("largest", true[:, 1], 1), ("smallest", true[:, 0], -1)):
            inner, outer = np.array([estimate.interval[::side] for estimate in found.estimates(end)]).T
            slack = 1e-5 * np.abs(true).max(1)
            assert (side * (of - inner) >= -slack).all()  # for certain
            held += int((side * (outer - of) >= -slack).sum())
    assert held >= 107


def test_products_are_counted_and_are_within_the_budget():
    model, data = problem()
    H = hvpspec.HessianOperator(model, "cross_entropy", data)
    counts = []
    pairs = hvpspec.eigsh(H, 2, "LA")
    before = H.hvps
    found = hvpspec.per_batch(H, pairs=pairs, callback=lambda known: counts.append(known.hvps))
    assert H.hvps == before  # none with all data, whose eigenvalue is known
    assert (found.whole_hvps, found.whole.largest.value) == (0, pytest.approx(pairs.values[0]))
    assert found.hvps == sum(batch.largest.hvps for batch in found.batches) <= 20 * len(data)
    assert sorted(set(counts)) == list(range(found.hvps + 1))  # it was told of each
    alone = hvpspec.per_batch(H)
    assert H.hvps - before == alone.whole_hvps > 3
    assert alone.whole.largest.value == pytest.approx(pairs.values[0], rel=1e-3)


@pytest.mark.parametrize("budget", [1, 8, 20, 50])
def test_a_small_budget_is_kept_and_what_is_not_known_is_flagged(budget):
    model, data = problem()
    H = hvpspec.HessianOperator(model, "cross_entropy", data)
    found = hvpspec.per_batch(H, rtol=1e-6, max_hvps=budget, pairs=hvpspec.eigsh(H, 1, "LA"))
    assert found.hvps <= budget
    assert found.batches
    for batch in found.batches:
        low, high = batch.largest.interval
        top = ends(model, *data[batch.number])[1]
        assert low - 1e-9 <= top <= high
        assert batch.largest.converged == (high - low <= 1e-6 * top * 1.01)
    assert not all(batch.largest.converged for batch in found.batches)


def test_one_batch_is_the_whole_matrix():
    model, data = problem(batches=1)
    found = hvpspec.per_batch(hvpspec.HessianOperator(model, "cross_entropy", data))
    assert found.of == len(found.batches) == 1
    assert found.batches[0].largest.value == pytest.approx(found.whole.largest.value, rel=1e-3)
    assert found.deviation() == 0


def test_of_many_batches_some_are_drawn():
    model, data = problem(batches=12)
    H = hvpspec.HessianOperator(model, "cross_entropy", data)
    every = hvpspec.per_batch(H)
    some = hvpspec.per_batch(H, max_batches=5, seed=3)
    assert (some.of, some.asked, len(some.batches)) == (12, 5, 5)
    drawn = [batch.number for batch in some.batches]
    assert drawn == sorted(set(drawn))
    assert drawn != list(range(5))
    np.testing.assert_allclose(some.values(), every.values()[drawn], rtol=0.01)
    assert BatchOptions().max_batches == 1000


def test_batches_without_weight_are_left_out():
    torch.manual_seed(0)
    x, y = torch.randn(8, 3), torch.tensor([0, 1, -100, -100, 1, 0, 1, 1])
    data = list(zip(x.split(2), y.split(2), strict=True))
    found = hvpspec.per_batch(hvpspec.HessianOperator(nn.Linear(3, 2), "cross_entropy", data))
    assert [batch.number for batch in found.batches] == [0, 2, 3]
    assert (found.of, found.asked) == (4, 4)


def test_each_batch_has_a_start_of_its_own():
    """So that intervals do not all fail together."""
    A = torch.from_numpy(matrix("polynomial", 60))
    found = hvpspec.per_batch(Mean([A, A, A]), rtol=0.3)
    assert len({batch.largest.interval for batch in found.batches}) == 3


def test_a_batch_whose_matrix_is_zero():
    """No warning, which is for a loss that does not depend on the parameters at all."""

    def loss(model, batch):
        x, y = batch
        return (F.mse_loss(model(x), y) if len(x) > 2 else y.mean()), len(x)

    torch.manual_seed(0)
    data = [(torch.randn(n, 3), torch.randn(n, 1)) for n in (3, 2, 4)]
    H = hvpspec.HessianOperator(nn.Linear(3, 1), loss, data, verify=False, engine="autograd")
    found = hvpspec.per_batch(H, which="BE")
    assert (found.batches[1].largest.value, found.batches[1].smallest.value) == (0, 0)
    assert found.batches[1].largest.converged
    assert found.batches[0].largest.value > 0.1


class Stop(Exception):
    pass


@pytest.mark.parametrize("at", [1, 5, 23])
@pytest.mark.parametrize("error", [KeyboardInterrupt, Stop])
def test_what_is_known_is_kept_by_whoever_follows(at, error):
    model, data = problem()
    H = hvpspec.HessianOperator(model, "cross_entropy", data)
    pairs, steps = hvpspec.eigsh(H, 1, "LA"), []
    complete = hvpspec.per_batch(H, pairs=pairs)

    def stop(known):
        steps.append(known)
        if known.hvps >= at:
            raise error

    with pytest.raises(error):
        hvpspec.per_batch(H, pairs=pairs, callback=stop)
    known = steps[-1]
    done = int((np.cumsum([batch.largest.hvps for batch in complete.batches]) < at).sum())
    assert known.batches[:done] == complete.batches[:done]
    assert known.whole == complete.whole


def test_the_time_is_up(monkeypatch):
    model, data = problem()
    H = hvpspec.HessianOperator(model, "cross_entropy", data)
    pairs, now, steps = hvpspec.eigsh(H, 1, "LA"), [0.0], []
    monkeypatch.setattr("hvpspec.system.time_limit.clock", lambda: now[0])

    def tick(known):
        steps.append(known)
        now[0] += 1.0

    found = hvpspec.per_batch(H, pairs=pairs, time_limit=20, callback=tick)
    assert found.out_of_time
    assert 0 < len(found.batches) < len(data)
    assert found.batches == hvpspec.per_batch(H, pairs=pairs).batches[: len(found.batches)]


@pytest.mark.parametrize("at", [3, 17, 30])
def test_a_journal_goes_on_where_a_run_was_interrupted(tmp_path, at):
    """To the last bit, and without the batches that were done."""
    model, data = problem()

    def operator():
        return hvpspec.HessianOperator(model, "cross_entropy", data)

    expected = hvpspec.per_batch(operator(), which="BE")

    def stop(known):
        if known.hvps >= at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hvpspec.per_batch(operator(), which="BE", journal=tmp_path / "journal", callback=stop)
    again, told = operator(), []
    found = hvpspec.per_batch(again, which="BE", journal=tmp_path / "journal", callback=told.append)
    assert found == expected
    assert again.hvps == 0  # the products with all data are in the journal
    sums = np.cumsum([batch.largest.hvps for batch in found.batches])
    products = len(told) - 1 - len(found.batches)  # it is told of each, of each batch, and of the whole matrix
    assert products == found.hvps - max(sums[sums < at], default=0)
    assert not (tmp_path / "journal").exists()


def test_a_recorded_engine_is_resumed_too(tmp_path):
    model, data = problem()
    expected = hvpspec.per_batch(hvpspec.HessianOperator(model, "cross_entropy", data, engine="linearized"))
    H = hvpspec.HessianOperator(model, "cross_entropy", data, engine="linearized")
    with pytest.raises(Stop), Journal(tmp_path / "journal", {}) as journal:
        hvpspec.per_batch(H, journal=journal, callback=raising_at(10))
    H = hvpspec.HessianOperator(model, "cross_entropy", data, engine="linearized")
    with Journal(tmp_path / "journal", {}) as journal:
        assert journal.replaying
        assert hvpspec.per_batch(H, journal=journal) == expected
    assert H.engine == "linearized"


def raising_at(count):
    def stop(known):
        if known.hvps >= count:
            raise Stop

    return stop


def test_other_options_do_not_take_what_is_in_the_journal(tmp_path):
    model, data = problem()
    H = hvpspec.HessianOperator(model, "cross_entropy", data)
    pairs = hvpspec.eigsh(H, 1, "LA")
    with pytest.raises(Stop), Journal(tmp_path / "journal", {}) as journal:
        hvpspec.per_batch(H, pairs=pairs, journal=journal, callback=raising_at(30))
    with Journal(tmp_path / "journal", {}, note=lambda text: None) as journal:
        found = hvpspec.per_batch(H, pairs=pairs, rtol=1e-4, journal=journal)
    assert found == hvpspec.per_batch(H, pairs=pairs, rtol=1e-4)


def test_pairs_of_the_smallest_eigenvalues_say_what_their_brackets_do():
    model, data = problem()
    H = hvpspec.HessianOperator(model, "cross_entropy", data)
    pairs = hvpspec.eigsh(H, 2, "SA")
    low, high = ends(model, *whole(data))
    found = hvpspec.per_batch(H, which="BE", pairs=pairs)
    assert found.whole.smallest.value == pytest.approx(low)
    assert found.whole.largest.interval[0] - 1e-9 <= high <= found.whole.largest.interval[1]
    assert found.whole_hvps == 0


def test_an_operator_without_batches_is_refused():
    for A in (matrix("polynomial", 50), torch.eye(3)):
        with pytest.raises(InputError, match="has no batches of data; give a HessianOperator"):
            hvpspec.per_batch(A)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"which": "LM"}, "which must be"),
        ({"rtol": 0}, "rtol must be > 0"),
        ({"confidence": 1.0}, "confidence must lie between 0 and 1"),
        ({"max_hvps": 0}, "max_hvps must be a whole number ≥ 1"),
        ({"max_batches": 0}, "max_batches must be a whole number ≥ 1"),
    ],
)
def test_options_out_of_range(options, message):
    model, data = problem(batches=1)
    H = hvpspec.HessianOperator(model, "cross_entropy", data)
    with pytest.raises(InputError, match=message):
        hvpspec.per_batch(H, **options)
    assert H.hvps == 0


def test_a_file_gives_the_same_record():
    model, data = problem()
    found = hvpspec.per_batch(hvpspec.HessianOperator(model, "cross_entropy", data), max_hvps=9)
    assert Batches.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    with pytest.raises(InputError, match="batches: expected rising numbers below 6"):
        Batches.from_dict({**found.to_dict(), "batches": [{**found.batches[0].to_dict(), "number": 6}]})
    assert "of 6" in repr(found)
