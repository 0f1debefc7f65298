"""What a run is expected to take, compared with what it does take: products, seconds, memory."""

import json
import subprocess
import sys
import textwrap
from dataclasses import replace

import numpy as np
import pytest
import torch
from estimators.spectra import NAMES, matrix
from preflight.problems import network
from unrendered import unrendered

import hvpspec
from hvpspec import cli, demo
from hvpspec.cli import console
from hvpspec.errors import InputError
from hvpspec.krylov.operator_view import Symmetric
from hvpspec.options import SpectrumOptions
from hvpspec.preflight import Preflight, inspect_operator
from hvpspec.preflight import forecast as forecasts
from hvpspec.preflight.forecast import Moments, forecast, norm_rank, read_moments, with_forecast
from hvpspec.preflight.of_ranks import on_ranks
from hvpspec.report.terminal import measured_lines

CROWDED = ("flat", "step")  # whose eigenvalues coincide or lie close: only the range is right
LOW_RANK = ("rank one",)  # the run ends as soon as nothing is left, which a few random vectors do not show
N = 800
ROWS = np.arange(1.0, N + 1)


def moments(multiply, n, seed=7, count=3):
    X = torch.randn(n, count, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    HX = multiply(X)
    Hx = HX[:, int((HX**2).sum(0).argmax()), None]
    return read_moments(X, HX, norm_rank(HX, multiply(Hx / Hx.norm())))


def of_matrix(A, seed=7, count=3):
    return moments(lambda X: torch.from_numpy(A) @ X, len(A), seed, count)


@pytest.mark.parametrize(("k", "rtol"), [(10, 0.01), (5, 0.05), (1, 0.05)])
@pytest.mark.parametrize("name", NAMES)
def test_products_come_within_the_range_and_near_what_is_likely(name, k, rtol):
    A = matrix(name)
    plan = forecast(len(A), SpectrumOptions(k=k, rtol=rtol, max_hvps=1000), of_matrix(A))
    made = hvpspec.spectrum(A, k, rtol=rtol, max_hvps=1000).hvps
    assert made <= plan.most_hvps <= 1000
    if name not in CROWDED:
        assert made <= 3 * plan.hvps
        assert made >= plan.hvps / 4 or name in LOW_RANK


def test_products_tell_of_outliers_that_were_not_asked_for():
    """The plan, without products, is too small by a factor of 2.4 here; from three random vectors it is about right."""
    A = matrix("indefinite with outliers")
    settings = SpectrumOptions(k=10, rtol=0.01)
    made = hvpspec.spectrum(A, 10, rtol=0.01).hvps
    expected = np.median([forecast(len(A), settings, of_matrix(A, seed)).hvps for seed in range(10)])
    assert made / 2 <= expected <= 2 * made
    assert forecast(len(A), settings).hvps < made / 2


def outliers(count, ratio, tail, power):
    """Eigenvalues as of a trained network: some that decrease to a tail."""
    return np.concatenate([10 * ratio ** np.arange(count), tail * ROWS[: N - count] ** -power])


SPECTRA = {
    "ten outliers, steep tail": outliers(10, 0.75, 1.0, 1.0),
    "ten outliers, long tail": outliers(10, 0.8, 0.8, 0.7),
    "three outliers": outliers(3, 0.7, 1.5, 0.9),
    "one outlier": outliers(1, 0.7, 2.0, 1.0),
    "thirty outliers": outliers(30, 0.9, 0.5, 0.8),
    "some negative": np.concatenate([outliers(10, 0.75, 0.5, 0.8)[: N - 200], -0.3 * ROWS[:200] ** -0.7]),
    "power law": ROWS**-1.1,
    "slow power law": ROWS**-0.7,
    "normal": np.random.default_rng(1).standard_normal(N),
    "log-normal": np.exp(2 * np.random.default_rng(1).standard_normal(N)),
    "exponential": np.random.default_rng(1).exponential(1, N) ** 2,
    "flat": np.linspace(1, 3, N),
}


@pytest.mark.parametrize("options", [{"k": 10, "rtol": 0.05}, {"k": 5, "only": "eigenvalues"}, {"k": 3, "rtol": 0.05}])
@pytest.mark.parametrize("name", SPECTRA)
def test_products_within_a_factor_of_two(name, options):
    """What is expected from three random vectors, in the median over ten such, compared with what the run makes."""
    values = torch.from_numpy(np.resize(SPECTRA[name], N) * (np.arange(N) < len(SPECTRA[name])))[:, None]
    operator = Symmetric(N, torch.float64, torch.device("cpu"), lambda X: values * X)
    settings = SpectrumOptions(**options, max_hvps=N)
    expected = [forecast(N, settings, moments(lambda X: values * X, N, seed)).hvps for seed in range(10)]
    made = hvpspec.spectrum(operator, **options, max_hvps=N).hvps
    assert made / 2 <= np.median(expected) <= 2 * made


@pytest.mark.parametrize("kind", ["trained", "untrained"])
def test_products_of_networks(kind):
    """Without training, positive and negative eigenvalues cancel in the trace, and many probes are needed."""
    H = network(kind)
    options = {"k": 10, "rtol": 0.05, "max_hvps": 1000}
    found = inspect_operator(H, options=SpectrumOptions(**options))
    steps = []
    made = hvpspec.spectrum(H, **options, seed=1, callback=steps.append).hvps
    assert (made > 200) == (kind == "untrained")
    assert found.expected_hvps / 3 <= made <= 3 * found.expected_hvps
    assert made <= found.most_hvps <= 1000
    pilots = next(step for step in steps if step.stage == "trace and norm")
    assert made / 1.7 <= pilots.expected <= 1.7 * made  # once there are probes, it follows from them


def test_moments_are_those_of_the_spectrum():
    values = np.concatenate([[30.0, -20.0], np.linspace(-1, 1, 300), np.ones(300), np.zeros(98)])
    A = np.diag(values)
    found = [of_matrix(A, seed) for seed in range(200)]
    norm = np.linalg.norm(values)
    assert np.median([m.ratio for m in found]) == pytest.approx(values.sum() / norm, rel=0.2)
    assert np.median([m.rank for m in found]) < 5  # two that make up nearly all
    assert {m.rows for m in found} == {602}
    spread = np.std([m.ratio for m in found])
    assert 0.3 * found[0].error <= spread <= 3 * found[0].error
    bulk = np.diag(np.linspace(-1, 1, 400))
    rank = (np.diag(bulk) ** 2).sum() ** 2 / (np.diag(bulk) ** 4).sum()
    assert np.median([of_matrix(bulk, seed).rank for seed in range(40)]) == pytest.approx(rank, rel=0.1)
    assert read_moments(torch.ones(3, 2), torch.zeros(3, 2), 1.0) is None


def test_more_vectors_tell_the_trace_more_accurately():
    """A preflight makes more products where the run will take hundreds, and no more than are worth it."""
    few, more = inspect_operator(network("trained")), inspect_operator(network("untrained"))
    assert few.hvps <= 5 + few.expected_hvps // 20
    assert 5 < more.hvps <= 13


def test_without_moments_the_worst_is_the_budget_and_nothing_is_beyond_it():
    options = SpectrumOptions(k=10, rtol=0.05, max_hvps=300)
    assert forecast(1000, options).most_hvps == 300
    assert forecast(1000, SpectrumOptions(k=10, rtol=0.05)).most_hvps == 1017  # n, the most probes, and a check
    cancelling = Moments(0.1, 0.8, 350, 1000)
    assert forecast(1000, options, cancelling).hvps == 300
    only = forecast(1000, SpectrumOptions(k=3, only=["eigenvalues"], max_hvps=1000), Moments(0.1, 0.8, 5.0, 1000))
    assert (only.hvps, only.probes) == (12, 0)
    assert forecast(1000, SpectrumOptions(), Moments(0.1, 0.8, 5.0, 20)).most_hvps == 37  # rows that are not zero


def test_the_forecast_includes_a_refinement():
    plain = forecast(200, SpectrumOptions()).hvps
    assert forecast(200, SpectrumOptions(refine=True, refine_hvps=300)).hvps == plain + 300
    assert forecast(200, SpectrumOptions(refine=True, refine_hvps=300, damping=0.1)).hvps == plain + 150


def test_a_forecast_is_never_negative():
    """Where the budget is smaller than the probes that are usual."""
    options = SpectrumOptions(only=("frobenius_norm",), rtol=1e-3, max_hvps=300)
    found = forecast(1000, options, Moments(3.0, 0.8, 400.0, 1000))
    assert 0 < found.probes <= found.hvps <= found.most_hvps <= 300


@pytest.mark.parametrize("outliers", [[50.0], [50.0, 40.0, -30.0], []], ids=["one", "three", "none"])
def test_the_number_of_eigenvalues_that_make_up_the_norm_is_right_on_average(outliers):
    """The longest of three products alone would show it twice as large where one eigenvalue dominates."""
    values = torch.from_numpy(np.r_[outliers, np.linspace(-1, 1, N - len(outliers))])[:, None]
    exact = float((values**2).sum() ** 2 / (values**4).sum())
    found = [moments(lambda X: values * X, N, seed).rank for seed in range(60)]
    assert np.mean(found) == pytest.approx(exact, rel=0.3)


@pytest.mark.parametrize("options", [{"k": 10}, {"k": 2, "block_size": 3}, {"only": "eigenvalues"}, {"only": "trace"}])
def test_too_little_room_is_said_before_any_product_and_is_what_the_run_refuses(options):
    H = network("trained")
    n = H.shape[0]

    def refused(call, vectors):
        settings = {**options, "basis_memory": vectors * n * 4}
        try:
            call(settings)
        except InputError as error:
            return str(error)
        return None

    def run(settings):
        def stop(step):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            hvpspec.spectrum(H, **settings, callback=stop)

    for vectors in range(1, 40):
        before = H.hvps
        said = refused(
            lambda settings: inspect_operator(H, options=SpectrumOptions(**settings), measure=False), vectors
        )
        assert H.hvps == before
        assert said == refused(run, vectors)
    assert said is None


def test_check_says_that_a_basis_has_too_little_room(tmp_path, monkeypatch, capsys):
    """Refused where no run is possible; a note where it will be restarted again and again."""
    monkeypatch.chdir(tmp_path)
    source = ["--model", "hvpspec.demo:build", "--data", "hvpspec.demo:batches", "--loss", "cross_entropy"]
    check = ["check", str(demo.CHECKPOINT), *source]
    assert cli.run([*check, "--basis-memory", "100kB"]) == 2
    assert "there is room for 7 vectors of 3,466 numbers, and at least 29 (393 KiB)" in capsys.readouterr().err
    assert cli.run([*check, "--basis-memory", "450kB"]) == 0
    assert "memory holds a basis of 16 vectors, and about " in capsys.readouterr().out
    assert cli.run(check) == 0
    assert "memory holds" not in capsys.readouterr().out


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
@pytest.mark.parametrize("budget", [60, pytest.param(250, marks=pytest.mark.slow)])
def test_peak_memory(budget):
    """In a process of its own, with 60 or 250 long vectors of 0.8 MB."""
    code = f"""
        import json, torch, hvpspec
        from pathlib import Path
        from torch import nn
        from hvpspec.options import SpectrumOptions
        from hvpspec.preflight import inspect_operator
        torch.manual_seed(0)
        torch.set_num_threads(1)
        model = nn.Sequential(nn.Linear(64, 2700), nn.Tanh(), nn.Linear(2700, 10))
        data = [(torch.randn(256, 64), torch.randint(0, 10, (256,)))]
        H = hvpspec.HessianOperator(model, "cross_entropy", data)
        options = dict(k={budget // 10}, rtol=1e-4, tol=1e-9, max_hvps={budget})
        found = inspect_operator(H, options=SpectrumOptions(**options))
        made = hvpspec.spectrum(H, **options)
        # Not getrusage's, which starts with that of the process that started this one.
        (line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM:"))
        peak = 1024 * int(line.split()[1])
        print(json.dumps([found.to_dict(), made.hvps, peak]))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True, timeout=300
    )
    figures, made, peak = json.loads(done.stdout)
    found = Preflight.from_dict(figures)
    assert made == budget == found.most_hvps
    assert found.expected_memory / 1.4 <= peak <= 1.25 * found.most_memory


@unrendered()
def test_what_is_printed_has_both_and_is_updated_by_the_probes(tmp_path, monkeypatch, capsys):
    H = network("untrained")
    found = inspect_operator(H, options=SpectrumOptions(k=10, rtol=0.05, max_hvps=1000))
    likely, worst = measured_lines(found)[-2:]
    assert likely.startswith(f"the whole run: about {found.expected_hvps:,} HVPs, about ")
    assert worst.startswith(f"up to {found.most_hvps:,} HVPs, ")

    monkeypatch.chdir(tmp_path)
    torch.save(H.objective.model.state_dict(), "model.pt")
    (tmp_path / "train.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def build():\n"
        "    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))\n"
        "def batches():\n"
        "    return [(torch.randn(512, 64, generator=torch.Generator().manual_seed(0)), torch.arange(512) % 10)]\n"
    )
    source = ["model.pt", "--model", "train.py:build", "--data", "train.py:batches", "--loss", "cross_entropy"]
    monkeypatch.setattr(console.Screen, "shows_progress", True)  # as on a terminal
    assert cli.run(["spectrum", *source, "--rtol", "0.05", "--no-preflight"]) == 0
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    printed = capsys.readouterr()
    assert "expected: about 35 HVPs (--max-hvps 1,000)\n" in printed.out
    assert "now expected: about " in printed.err
    assert cli.run(["spectrum", *source, "--rtol", "0.05", "--no-preflight"]) == 0
    assert capsys.readouterr().err == ""
    assert cli.run(["spectrum", *source, "--rtol", "0.05"]) == 0
    printed = capsys.readouterr()
    measured = json.loads((tmp_path / "spectrum.json").read_text())["preflight"]["measured"]
    assert f"expected: about {measured['expected_hvps']:,} HVPs (--max-hvps 1,000), about" in printed.out
    assert f"up to {measured['most_hvps']:,} HVPs, " in printed.out


def test_memory_of_a_rank():
    """Its rows of the vectors, and the whole ones of a product; room for a basis is that for its rows."""
    H, held = network("trained"), 1 << 40  # more than this process ever took
    n = H.shape[0]
    known, taken = replace(inspect_operator(H), memory=1 << 20), {}
    options = SpectrumOptions(k=10, max_hvps=80, rtol=1e-6)
    for ranks in (1, 2, 4):
        H.sharing = ranks
        taken[ranks] = with_forecast(H, known, None, held, options).most_memory - held
    whole = 3 * n * 4
    halved, quartered = (taken[1] + whole - taken[ranks] for ranks in (2, 4))
    assert quartered == pytest.approx(1.5 * halved, rel=1e-3)
    assert 0.75 * 80 * n * 4 < quartered < 0.75 * 200 * n * 4
    with_gradient = with_forecast(H, known, None, held, replace(options, gradient=True)).most_memory - held
    assert with_gradient - taken[4] == pytest.approx((3 * 8 + 4) * n - whole, rel=0.1)
    tight = replace(options, basis_memory=20 * n * 4)
    assert forecasts.check_room(H, tight)[0] == 20 * n // -(-n // 4)
    H.sharing = 1
    with pytest.raises(InputError, match="there is room for 20 vectors"):
        forecasts.check_room(H, tight)


def test_what_ranks_send_takes_time():
    known = Preflight(
        seconds=2.0, hvps=5, expected_hvps=60, expected_seconds=120.0, most_hvps=600, expected_memory=1 << 30
    )
    found = on_ranks(known, 4, exchange=0.5)
    assert (found.ranks, found.seconds, found.expected_seconds, found.most_seconds) == (4, 2.5, 150.0, None)
    assert measured_lines(found)[-2].endswith("about 60 HVPs, about 2 min (2.5 s each), 1 GiB per rank")
    assert Preflight.from_dict(found.to_dict()) == found
    assert "ranks" not in known.to_dict()["measured"]
