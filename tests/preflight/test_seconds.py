"""What the preflight expects a run to take in seconds, beyond its products."""

import time
from dataclasses import replace

import pytest
import torch.nn.functional as F
from preflight.problems import network

import hvpspec
from hvpspec.options import SpectrumOptions
from hvpspec.oracle.finite_difference import Comparison
from hvpspec.preflight import Preflight, differences, inspect_operator
from hvpspec.preflight import forecast as forecasts
from hvpspec.preflight.forecast import with_forecast
from hvpspec.report.terminal import measured_lines


@pytest.mark.parametrize("memory_limit", [1, None], ids=["none kept", "graphs kept"])
def test_seconds_of_slow_products(memory_limit):
    """The loss sleeps in each product, or where its graph is kept, in the first ones alone."""

    def slow(model, batch):
        time.sleep(0.01)
        return F.cross_entropy(model(batch[0]), batch[1])

    H = network("trained").objective
    H = hvpspec.HessianOperator(H.model, slow, H.data, engine="autograd", memory_limit=memory_limit)
    options = {"k": 5, "rtol": 0.05, "max_hvps": 40}
    found = inspect_operator(H, options=SpectrumOptions(**options))
    made = hvpspec.spectrum(H, **options)
    pace = found.expected_seconds / found.expected_hvps
    assert pace / 3 <= made.seconds / made.hvps <= 3 * pace
    assert found.most_seconds >= found.expected_seconds


@pytest.mark.parametrize(("loss", "weighing"), [("cross_entropy", 0), (lambda o, y: F.cross_entropy(o, y), 0.5)])
def test_seconds_include_what_is_done_once(monkeypatch, loss, weighing):
    """As much as two products of the first batch, and half a one of all data where the loss is a user's own."""
    H = hvpspec.HessianOperator(network("trained").objective.model, loss, network("trained").objective.data)
    known = replace(inspect_operator(H), seconds=7.0)
    monkeypatch.setattr(forecasts, "_seconds_of_an_inner_product", lambda H: 0.0)
    found = with_forecast(H, known, None, None, SpectrumOptions())
    monkeypatch.setattr(forecasts, "VERIFICATION_PRODUCTS", 0)
    monkeypatch.setattr(forecasts, "WEIGHING_PRODUCTS", 0)
    without = with_forecast(H, known, None, None, SpectrumOptions())
    once = 7.0 * (2 / H.batch_count() + weighing)
    assert found.expected_seconds - without.expected_seconds == pytest.approx(once)
    assert found.most_seconds - without.most_seconds == pytest.approx(once)
    assert found.expected_hvps == without.expected_hvps


@pytest.mark.parametrize(
    ("options", "columns"), [({}, 1.6), ({"only": "eigenvalues"}, 1.0), ({"only": "trace"}, 1.0)], ids=str
)
def test_seconds_include_the_products_in_float64_that_measure_rounding(options, columns):
    """As long as one of the first batch has taken, for all batches; one more vector costs less than the first."""
    H = network("trained")
    known, chosen = inspect_operator(H), SpectrumOptions(**options)
    with_it, without = (with_forecast(H, known, None, None, chosen, seconds) for seconds in (1000.0, 0.0))
    assert with_it.expected_seconds - without.expected_seconds == pytest.approx(
        1000 * columns * H.batch_count(), rel=0.02
    )
    double = network("trained", dtype="float64")
    known = inspect_operator(double)
    with_it, without = (with_forecast(double, known, None, None, chosen, seconds) for seconds in (1000.0, 0.0))
    assert abs(with_it.expected_seconds - without.expected_seconds) < 10


def test_seconds_in_float64_are_measured(monkeypatch):
    usual = inspect_operator(network("trained")).expected_seconds
    monkeypatch.setattr(differences, "compared", lambda objective: Comparison(0.0, 1e-9, 1000.0))
    assert inspect_operator(network("trained")).expected_seconds > usual + 1000


def test_seconds_printed_for_each_product_and_for_all_agree():
    """Where the run's products will be faster than the one that was measured, both are said."""
    preflight = Preflight(seconds=5.8, hvps=5, expected_hvps=66, expected_seconds=180.0, most_hvps=66)
    one, whole = measured_lines(preflight)[-2:]
    assert one == "one product: 5.8 s"
    assert whole == "the whole run: about 66 HVPs, about 3 min (2.7 s each)"
    assert abs(66 * 2.7 - 180) <= 0.05 * 180


def test_seconds_on_a_machine_that_others_use(monkeypatch):
    """What products have taken on average counts, and not the fastest."""
    H = network("trained")
    known = inspect_operator(H)
    monkeypatch.setattr(forecasts, "_seconds_of_an_inner_product", lambda H: 0.0)
    fastest = H.expected_seconds(1)
    usual = with_forecast(H, replace(known, seconds=fastest), None, None, SpectrumOptions()).expected_seconds
    shared = with_forecast(H, replace(known, seconds=3 * fastest), None, None, SpectrumOptions()).expected_seconds
    assert shared == pytest.approx(3 * usual, rel=1e-6)
