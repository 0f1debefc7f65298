"""The public names, and what results do for people: they show, draw, save and tabulate themselves."""

import ast
import builtins
import importlib
import json
import math
import subprocess
import sys
from pathlib import Path

import html5lib
import jsonschema
import numpy as np
import pytest
from matplotlib.figure import Figure

import hvpspec
from hvpspec import presentation
from hvpspec.errors import InputError
from hvpspec.report.documents import schema
from hvpspec.report.terminal import report_sections
from hvpspec.results.density import Density
from hvpspec.results.estimate import Bracket, Estimate
from hvpspec.results.parts import Block, Blocks
from hvpspec.runs.compare import compared, read_runs

MATRIX = np.diag(np.concatenate([[50.0, -20.0], np.linspace(-1, 1, 198)]))
FILES = ["spectrum.json", "report.html", "spectrum.svg", "spectrum.png"]


@pytest.fixture(scope="module")
def found():
    blocks = {"top": slice(0, 2), "rest <b>": slice(2, 200)}
    return hvpspec.spectrum(MATRIX, k=3, blocks=blocks, damping=0.5)


# --- names ----------------------------------------------------------------------------------------------------------


def test_every_exported_name_can_be_imported():
    for name in hvpspec.__all__:
        assert getattr(hvpspec, name) is not None
    assert dir(hvpspec) == sorted(hvpspec.__all__) == hvpspec.__all__


def test_the_lists_of_names_agree():
    """What is imported for type checkers is what is imported when used, and all of it is exported."""
    tree = ast.parse(Path(hvpspec.__file__).read_text())
    (checked,) = (node for node in tree.body if isinstance(node, ast.If))
    typed = {
        alias.name: node.module for node in checked.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert typed == {name: f"hvpspec.{place}" for name, place in hvpspec._PLACES.items()}
    assert {*typed, "__version__"} == set(hvpspec.__all__)


def test_every_method_is_bound_to_a_function():
    for place in presentation._places.values():
        module, _, name = place.partition(":")
        assert callable(getattr(importlib.import_module(module), name))


def test_the_package_imports_little():
    code = (
        "import sys, hvpspec; dir(hvpspec); hvpspec.InputError;"
        "print([m for m in ('torch', 'numpy', 'scipy', 'matplotlib', 'pandas') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'spectra'"):
        _ = hvpspec.spectra


# --- reprs ----------------------------------------------------------------------------------------------------------


def test_reprs_are_short(found):
    for result in (found, found.eigenpairs, found.density, found.condition, found.blocks):
        text = repr(result)
        assert len(text.splitlines()) <= 15
        assert max(map(len, text.splitlines())) <= 100
        assert "array" not in text
    assert "3: [50, -20, " in repr(found)  # then 1 or −1, of the same magnitude
    assert "trace" in repr(found)
    assert "blocks          2: top, rest <b>" in repr(found)
    solved = hvpspec.solve(np.eye(300), np.ones(300))
    assert len(repr(solved)) < 300


def test_reprs_do_not_grow_with_the_matrix():
    rng = np.random.default_rng(0)
    square = rng.standard_normal((60, 60))
    big = hvpspec.spectrum(square + square.T, k=30, blocks={f"block{i}": [i] for i in range(60)}, max_hvps=80)
    for result in (big, big.eigenpairs, big.blocks):
        assert len(repr(result)) < 1500
    assert "… 26 more" in repr(big)
    assert "block2 and 57 more" in repr(big)


def test_reprs_say_what_is_not_there():
    few = hvpspec.spectrum(MATRIX, max_hvps=1)
    assert "not converged" in repr(few)
    assert "trace           not reached" in repr(few)
    nothing = hvpspec.Spectrum(7, None, None, None, 0, 0.0, False, asked=("eigenvalues", "trace"))
    assert repr(nothing).splitlines() == [
        "<Spectrum of a 7 × 7 matrix: incomplete, 0 HVPs, 0 s",
        "  eigenvalues     not reached",
        "  trace           not reached>",
    ]


# --- names and numbers of brackets ------------------------------------------------------------------------------------


def test_brackets_have_a_value_and_an_error(found):
    assert (Bracket(1.0, 2.0, 0.9).value, Bracket(1.0, 2.0, 0.9).error) == (1.5, 0.5)
    assert (Bracket(1.0, math.inf, 0.9).value, Bracket(1.0, math.inf, 0.9).error) == (1.0, math.inf)
    assert (Bracket(-math.inf, 2.0, 0.9).value, Bracket(-math.inf, 2.0, 0.9).error) == (2.0, math.inf)
    assert math.isnan(Bracket(-math.inf, math.inf, 0.9).value)
    assert found.eigenpairs.lambda_max is found.eigenpairs.largest
    assert found.eigenpairs.lambda_min is found.eigenpairs.smallest
    assert found.condition.lambda_max is found.condition.largest
    assert found.condition.lambda_min is found.condition.smallest
    assert found.eigenpairs.lambda_max.value == pytest.approx(50)
    assert found.blocks["top"].lambda_max is found.blocks["top"].largest


def test_blocks_are_a_mapping(found):
    assert list(found.blocks) == ["top", "rest <b>"]
    assert found.blocks["top"] is found.blocks.blocks[0]
    assert dict(found.blocks).keys() == found.blocks.keys()
    assert [block.name for block in found.blocks.values()] == list(found.blocks)
    assert len(found.blocks) == 2
    assert "top" in found.blocks
    assert "other" not in found.blocks
    with pytest.raises(KeyError, match="other"):
        found.blocks["other"]
    one = Block("a", 3, None, None)
    assert Blocks((one,), 1, 2) == Blocks((one,), 1, 2) != Blocks((one,), 1, 3)
    assert hash(Blocks((one,), 1, 2)) == hash(Blocks((one,), 1, 2))


# --- summary, notebook, plot ------------------------------------------------------------------------------------------


def test_the_summary_has_all_tables(found):
    text = found.summary()
    for words in ("λ1", "trace", "Frobenius norm", "conditioning of H + 0.5 I", "rest <b>", f"{found.hvps} HVPs in"):
        assert words in text
    assert not text.endswith("\n")
    assert max(map(len, text.splitlines())) <= 80
    assert len(found.summary(width=None).splitlines()) < len(text.splitlines())
    few = hvpspec.spectrum(MATRIX, only="trace", max_hvps=20)
    assert "conditioning" not in few.summary()


def test_a_notebook_shows_tables_and_a_picture(found):
    text = found._repr_html_()
    html5lib.HTMLParser(strict=True).parseFragment(text)
    assert text.count("<table>") == sum(section.table is not None for section in report_sections(found)) > 3
    assert "rest &lt;b&gt;" in text
    assert 'src="data:image/png;base64,' in text


def test_plot(found):
    assert isinstance(found.plot(), Figure)
    assert len(found.plot().axes) == 3
    ax = Figure().subplots()
    assert found.plot(ax) is ax
    assert ax.get_xlabel() == "eigenvalue"
    assert ax.patches
    without = hvpspec.spectrum(MATRIX, only="eigenvalues", k=2).plot(ax=Figure().subplots())
    assert without.get_xlabel().startswith("rank")
    with pytest.raises(InputError, match="nothing to plot"):
        hvpspec.spectrum(MATRIX, only="trace", max_hvps=20).plot()


# --- files ----------------------------------------------------------------------------------------------------------


def test_save_and_load(found, tmp_path):
    paths = found.save(tmp_path / "runs" / "one")
    assert [path.name for path in paths] == FILES
    assert all(path.stat().st_size for path in paths)
    jsonschema.Draft202012Validator(schema()).validate(json.loads(paths[0].read_text()))
    for place in (tmp_path / "runs" / "one", str(paths[0])):
        again = hvpspec.load_spectrum(place)
        assert json.dumps(again.to_dict()) == json.dumps(found.to_dict())
    assert again.eigenpairs.vectors is None
    assert found.eigenpairs.vectors is not None
    with pytest.raises(InputError, match="cannot be read"):
        hvpspec.load_spectrum(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"cannot be read .*spectrum\.json|spectrum\.json: cannot be read"):
        hvpspec.load_spectrum(tmp_path)
    with pytest.raises(InputError, match="cannot write there"):
        found.save(paths[0])


def test_what_is_dumped_or_saved_can_be_compared(found, tmp_path):
    (tmp_path / "dumped.json").write_text(json.dumps(found.to_dict()))
    found.save(tmp_path / "saved")
    runs = read_runs([tmp_path / "dumped.json", tmp_path / "saved"])
    differences = compared(runs).differences
    assert "trace" in {row.quantity for row in differences}
    assert not any(row.significant for row in differences)


def without(monkeypatch, *packages):
    """As where these packages are not installed."""
    real = builtins.__import__

    def importing(name, *args, **kwargs):
        if name.partition(".")[0] in packages:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", importing)


def test_without_the_extras(found, tmp_path, monkeypatch):
    found.save(tmp_path)
    without(monkeypatch, "matplotlib", "jinja2", "rich", "pandas", "markupsafe", "typer")
    assert "trace" in found.summary()
    assert "<table>" in found._repr_html_()
    assert "<img" not in found._repr_html_()
    assert [path.name for path in found.save(tmp_path)] == ["spectrum.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["spectrum.json"]
    with pytest.raises(ImportError, match=r'plot\(\) needs matplotlib.*pip install "hvpspec\[cli\]"'):
        found.plot()
    with pytest.raises(ImportError, match=r'to_frame\(\) needs pandas.*pip install "hvpspec\[pandas\]"'):
        found.to_frame()


def test_another_missing_module_is_not_explained_away(monkeypatch, found):
    monkeypatch.setitem(presentation._places, "summary", "hvpspec.no_such_module:summary")
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        found.summary()


# --- tables ---------------------------------------------------------------------------------------------------------


def test_the_frame_has_what_the_results_have(found):
    frame = found.to_frame()
    assert list(frame.columns) == [
        "quantity", "block", "value", "error", "confidence", "data_standard_error", "lower", "upper", "converged",
        "note",
    ]  # fmt: skip
    whole = frame[frame["block"].isna()].set_index("quantity")
    np.testing.assert_allclose(whole["value"][["lambda_1", "lambda_2", "lambda_3"]], found.eigenpairs.values)
    for name in ("trace", "frobenius_norm"):
        row, estimate = whole.loc[name], getattr(found, name)
        assert (row["value"], row["error"], row["confidence"]) == (estimate.value, estimate.error, 0.95)
        assert (row["lower"], row["upper"]) == estimate.interval
        assert row["converged"] == estimate.converged
    kappa = found.condition.kappa
    assert tuple(whole.loc["kappa", ["value", "lower", "upper"]]) == (kappa.value, kappa.lower, kappa.upper)
    nearest = whole.loc["nearest_zero"]
    assert (nearest["error"], nearest["upper"]) == (math.inf, found.condition.nearest_zero.value)
    mine = frame[frame["block"] == "top"].set_index("quantity")
    assert mine.loc["trace", "value"] == found.blocks["top"].trace.value
    assert "block" not in hvpspec.spectrum(MATRIX, only="trace", max_hvps=20).to_frame()


def test_the_frame_says_of_each_quantity_whether_it_is_within_its_tolerance():
    """Each eigenvalue had what is true of all; the density had no row; what has no tolerance was "converged"."""
    found = hvpspec.spectrum(
        np.diag([30.0, *np.linspace(-1, 3, 299)]), 3, max_hvps=30, rtol=0.003, refine=True, refine_hvps=4
    )
    frame = found.to_frame().set_index("quantity")
    document = found.to_dict()
    assert not found.converged
    for number, entry in enumerate(document["eigenvalues"], start=1):
        assert frame.loc[f"lambda_{number}", "converged"] == entry["converged"]
    assert frame.loc[["lambda_1", "lambda_3"], "converged"].tolist() == [True, False]
    assert frame.loc["eigenvalues", "converged"] == document["eigenvalues_converged"]
    for name in ("trace", "frobenius_norm", "density"):
        assert frame.loc[name, "converged"] == document[name]["converged"]
    assert frame.loc["density", "error"] == found.density.error
    assert frame.loc["refined_1", "converged"] == document["condition"]["refined"]["converged"]
    assert frame.loc[["kappa", "rank", "stable_rank", "negative"], "converged"].isna().all()
    assert frame["note"].notna().all()
    open_ = frame["converged"].eq(False).fillna(False)
    assert (frame.loc[open_, "note"] != "").all()
    assert frame.loc["lambda_1", "note"] == "others may be missing"
    shown = repr(found)
    assert all(f"  {name}" in shown for name in ("eigenpairs", "trace", "density"))
    assert shown.count(", not converged") == sum(
        not part.converged for part in (found.eigenpairs, found.trace, found.frobenius_norm, found.density)
    )


def test_the_frame_says_that_copies_are_not_excluded():
    found = hvpspec.spectrum(np.diag([5.0, *np.linspace(-1, 1, 99)]), 1, only="eigenvalues")
    assert found.to_frame().set_index("quantity").loc["eigenvalues", "note"] == "further copies not excluded"


def test_the_frame_tells_data_errors_apart():
    trace = Estimate(5.0, 0.5, 0.9, True, 3, data_error=2.0)
    row = hvpspec.Spectrum(7, None, trace, None, 3, 0.1, True, asked=("trace",)).to_frame().iloc[0]
    assert (row["error"], row["confidence"], row["data_standard_error"]) == (0.5, 0.9, 2.0)


# --- the density on a grid --------------------------------------------------------------------------------------------


def density(nodes):
    nodes = np.array(nodes)
    share = np.full(len(nodes), 1 / len(nodes))
    total = np.cumsum(share)
    return Density(nodes, share, share > 0, total, total, (nodes[0], nodes[-1]), len(nodes), 1, 0.95, 1)


def test_two_densities_share_a_grid():
    wide, narrow = density([0.0, 5.0, 10.0]), density([4.0, 5.0, 6.0])
    x, curve = wide.grid(limits=(-1.0, 11.0), points=4001)
    other_x, other = narrow.grid(limits=(-1.0, 11.0), points=4001)
    np.testing.assert_array_equal(x, other_x)
    assert (x[0], x[-1]) == (-1.0, 11.0)
    step = x[1] - x[0]
    assert curve.sum() * step == pytest.approx(1, abs=1e-6)
    assert other.sum() * step == pytest.approx(1, abs=1e-6)
    # One smoothing for both: an eigenvalue of the same share makes the same peak in either curve.
    assert curve.max() == pytest.approx(other.max(), rel=1e-6)
    assert curve.max() == pytest.approx(1 / 3 / (0.12 * math.sqrt(2 * math.pi)), rel=1e-4)


def test_the_grid_of_one_density_is_as_before():
    found = density([0.0, 5.0, 10.0])
    x, curve = found.grid()
    assert (len(x), x[0], x[-1]) == (1000, -0.4, 10.4)
    assert curve.sum() * (x[1] - x[0]) == pytest.approx(1, abs=1e-3)
    assert found.grid(smoothing=0.5)[0][0] == -2.0


@pytest.mark.parametrize("options", [{"limits": (2.0, 1.0)}, {"limits": (0.0, math.inf)}, {"smoothing": 0.0}])
def test_a_grid_that_makes_no_sense(options):
    with pytest.raises(InputError, match=r"limits must be|smoothing must be"):
        density([0.0, 1.0]).grid(**options)
