"""What is drawn is read back from the figures' own objects and compared with the numbers."""

import io
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.image import imread
from report import examples

from hvpspec.errors import InputError
from hvpspec.plots.batches import batches_panels, bin_edges
from hvpspec.plots.bins import binned, binned_alike
from hvpspec.plots.blocks import densities_panel
from hvpspec.plots.comparison import plot_comparison
from hvpspec.plots.series import plot_series
from hvpspec.plots.spectrum import panels, plot
from hvpspec.plots.style import FAINT, INK, NEGATIVE, POSITIVE, RUN_COLOURS, inline_svgs, to_bytes
from hvpspec.results.density import Density
from hvpspec.results.estimate import Bracket
from hvpspec.results.parts import Block, Blocks
from hvpspec.results.record import Record
from hvpspec.results.runs.comparison import Run
from hvpspec.results.spectrum import Spectrum
from hvpspec.runs.compare import compared


def axes_of(figure, name):
    return figure.axes[["density", "scree", "blocks"].index(name)]


@pytest.fixture(scope="module")
def figure():
    return plot(examples.spectrum(blocks=examples.blocks()))


def error_bars(axes, colour):
    """{place: (low, high)} of the vertical error bars of one colour."""
    found = {}
    for container in axes.containers:
        if not hasattr(container, "has_yerr") or not container.has_yerr or container[2] == ():
            continue
        lines = container[2][0]
        if to_hex(lines.get_color()[0]).upper() == colour.upper():
            for (x, low), (_, high) in lines.get_segments():
                found[round(float(x))] = (float(low), float(high))
    return found


def test_eigenvalues_have_their_error_bars_signs_and_colours(figure):
    axes = axes_of(figure, "scree")
    assert axes.get_yscale() == "log"
    assert error_bars(axes, POSITIVE) == {1: (48, 52), 3: (4, 6)}
    assert error_bars(axes, NEGATIVE) == {2: (19.5, 20.5), 4: (0.5, 0.5)}  # the last is not known
    (unknown,) = (line for line in axes.lines if line.get_label() == "error unknown")
    assert unknown.get_xdata().tolist() == [4]


def test_data_errors_are_drawn_apart(figure):
    assert error_bars(axes_of(figure, "scree"), "#bbbbbb")[1] == (49.75, 50.25)


def test_the_density_is_on_a_log_axis_with_its_negative_part_in_its_own_colour(figure):
    axes = axes_of(figure, "density")
    assert axes.get_yscale() == "log"
    assert axes.get_xscale() == "asinh"
    counts = {POSITIVE: 0.0, NEGATIVE: 0.0}
    for bar in axes.patches:
        middle = bar.get_x() + bar.get_width() / 2
        colour = to_hex(bar.get_facecolor()).upper()
        assert colour == (POSITIVE if middle > 0 else NEGATIVE).upper()
        counts[colour] += bar.get_height()
    assert counts[POSITIVE] == pytest.approx(302, abs=1)
    assert counts[NEGATIVE] == pytest.approx(98, abs=1)


def test_outliers_are_marked_with_their_errors(figure):
    axes = axes_of(figure, "density")
    spans = sorted(
        (float(a), float(b))
        for container in axes.containers
        if getattr(container, "has_xerr", False)
        for (a, _), (b, _) in container[2][0].get_segments()
    )
    np.testing.assert_allclose(spans, [(-20.5, -19.5), (-0.5, -0.5), (4, 6), (48, 52)])


def test_blocks_have_bars_with_errors_and_negative_traces_their_colour(figure):
    axes = axes_of(figure, "blocks")
    assert [text.get_text() for text in axes.texts] == [r"head <b>\$x\$</b>", "features.weight"]
    widths = {round(bar.get_width(), 3): to_hex(bar.get_facecolor()).upper() for bar in axes.patches}
    assert widths[44.2] == POSITIVE.upper()
    assert widths[-8.0] == NEGATIVE.upper()
    assert {53.0, 12.0} <= widths.keys()
    spans = sorted(
        (float(a), float(b))
        for container in axes.containers
        if getattr(container, "errorbar", None) is not None
        for (a, _), (b, _) in container.errorbar[2][0].get_segments()
    )
    np.testing.assert_allclose(spans, [(-10, -6), (11.5, 12.5), (43.2, 45.2), (52.5, 53.5)])


def test_bins_hold_every_eigenvalue_on_its_side_of_zero():
    rng = np.random.default_rng(0)
    for _ in range(20):
        m = int(rng.integers(1, 30))
        nodes = np.sort(rng.standard_normal(m) * 10.0 ** rng.integers(-5, 3, m))
        weights = rng.dirichlet(np.ones(m))
        exact = rng.random(m) < 0.3
        found = Density(nodes, weights, exact, weights, weights, (nodes[0], nodes[-1]), 1000, 1, 0.95, 5)
        bins = binned(found)
        assert bins.counts.sum() == pytest.approx(1000)
        assert np.isclose(bins.edges, 0, atol=1e-15).any()
        below = bins.counts[bins.edges[1:] <= 1e-12].sum()
        assert below == pytest.approx(1000 * weights[nodes < 0].sum(), abs=1e-6)
        for node, weight in zip(nodes[exact], weights[exact], strict=True):
            i = np.searchsorted(bins.edges, node, side="right") - 1
            assert bins.counts[min(i, len(bins.counts) - 1)] >= 1000 * weight - 1e-9


def test_bins_spread_a_node_half_way_to_its_neighbours():
    nodes = np.arange(1.0, 11.0)
    weights = np.full(10, 0.1)
    found = Density(nodes, weights, np.zeros(10, bool), weights, weights, (1.0, 10.0), 1000, 1, 0.95, 5)
    bins = binned(found)
    u = np.arcsinh(nodes / bins.scale)
    below = np.interp((u[1:] + u[:-1]) / 2, np.arcsinh(bins.edges / bins.scale), np.append(0, np.cumsum(bins.counts)))
    np.testing.assert_allclose(below, 100 * np.arange(1, 10), atol=8)


def test_files_are_what_they_say_and_the_same_each_time(figure):
    png = to_bytes(figure, "png")
    assert imread(io.BytesIO(png)).shape[1] == 768
    svg, again = (to_bytes(plot(examples.spectrum(blocks=examples.blocks())), "svg") for _ in range(2))
    assert b"<svg" in svg
    assert svg == again


def test_inline_pictures_do_not_share_ids():
    shown = panels(examples.spectrum(blocks=examples.blocks()))
    assert [panel.name for panel in shown] == ["density", "scree", "blocks"]
    for panel in shown:
        pieces = inline_svgs(panel)
        assert len(pieces) == (2 if panel.name == "blocks" else 1)
        for i, svg in enumerate(pieces):
            assert svg.startswith("<svg viewBox=")
            assert f'id="{panel.name}{i or ""}-' in svg
            assert "<style" not in svg
            rest = svg.replace("http://www.w3.org/1999/xlink", "").replace("http://www.w3.org/2000/svg", "")
            assert "http" not in rest


@pytest.mark.parametrize("columns", [1, 2])
def test_titles_and_names_lie_within_the_figure_whatever_the_groups_are_called(columns):
    """28 groups, with names of 22 letters and of 70."""
    names = [f"layers.{i}.attention.weight" for i in range(14)]
    names += [f"model.encoder.layers.{i}.self_attention.query_key_value.parametrizations.weight" for i in range(14)]
    kinds = {"trace": examples.estimate(44.2, 1.0), "frobenius_norm": examples.estimate(53.0, 0.5), "largest": None}
    entries = [{"name": name, "parameters": 9, **kinds} for name in names]
    figure = plot(examples.spectrum(blocks=examples.blocks(entries)), columns=columns)
    figure.canvas.draw()
    whole = figure.bbox
    for axes in figure.axes:
        (title,) = (
            text for text in axes.get_children() if getattr(text, "get_text", str)() == axes.get_title(loc="left")
        )
        for text in (title, *axes.texts):
            box = text.get_window_extent()
            assert whole.x0 <= box.x0 < box.x1 <= whole.x1, text.get_text()
            assert whole.y0 <= box.y0 < box.y1 <= whole.y1, text.get_text()
    density = figure.axes[0].get_window_extent()
    assert density.width > 0.75 * whole.width / columns  # names take no room from the other pictures
    assert len(figure.axes[-1].texts) == 24
    assert "(the 24 largest; 4 more)" in " ".join(figure.axes[-1].get_title(loc="left").split())


def test_nothing_to_show_and_odd_spectra():
    empty = examples.spectrum(eigenpairs=None, density=None)
    assert panels(empty) == []
    with pytest.raises(ValueError, match="nothing to plot"):
        plot(empty)
    zero = Density(*(np.array([x]) for x in (0.0, 1.0, True, 1.0, 1.0)), (0.0, 0.0), 5, 1, 0.95, 1)
    to_bytes(plot(Spectrum(5, None, None, None, 1, 0.1, True, density=zero)), "png")


def test_pyplot_is_left_alone():
    code = "import sys, hvpspec.plots.spectrum; assert 'matplotlib' not in sys.modules"
    code += "; from report import examples; hvpspec.plots.spectrum.plot(examples.spectrum())"
    code += "; assert 'matplotlib.pyplot' not in sys.modules"
    tests = str(__import__("pathlib").Path(__file__).parent.parent)
    subprocess.run([sys.executable, "-c", f"import sys; sys.path.insert(0, {tests!r}); {code}"], check=True)


def test_it_draws_on_axes_that_are_given():
    axes = Figure().add_subplot()
    assert plot(examples.spectrum(), axes) is axes
    assert axes.get_title() == "All eigenvalues"
    assert plot(examples.spectrum(density=None), Figure().add_subplot()).get_title().startswith("Eigenvalues")
    with pytest.raises(InputError, match="nothing to plot"):
        plot(examples.spectrum(eigenpairs=None, density=None), axes)


def slq(nodes, weights=None, n=1000):
    nodes = np.asarray(nodes, float)
    weights = np.full(len(nodes), 1 / len(nodes)) if weights is None else np.asarray(weights)
    return Density(nodes, weights, np.zeros(len(nodes), bool), weights, weights, (nodes[0], nodes[-1]), n, 1, 0.95, 5)


def test_densities_that_are_compared_have_the_same_bins_and_smoothing():
    """One distribution, by 12 nodes and by 120: laid over each other, they look alike."""
    coarse, fine = (slq(np.linspace(1, 10, count)) for count in (12, 120))
    first, second = binned_alike([coarse, fine])
    np.testing.assert_array_equal(first.edges, second.edges)
    assert first.scale == second.scale
    for bins in (first, second):
        assert bins.counts.sum() == pytest.approx(1000)
    inside = (first.edges[:-1] > 2) & (first.edges[1:] < 9)
    assert inside.sum() >= 3
    np.testing.assert_allclose(first.counts[inside], second.counts[inside], rtol=0.35)
    other = binned_alike([fine, slq(np.linspace(-4, 20, 30))])[0]
    assert other.edges[0] < -4 / 1.5
    assert other.edges[-1] >= 20


def test_a_known_eigenvalue_looks_like_a_node_of_the_same_weight():
    """Whichever eigenvalues a run has computed one by one, its density is drawn alike."""
    nodes, weights = [0.01, 0.02, 0.03, 5.0], [0.3, 0.4, 0.299, 0.001]
    unknown, known = slq(nodes, weights), slq(nodes, weights)
    known.exact[-1] = True
    first, second = binned_alike([unknown, known])
    np.testing.assert_allclose(first.counts, second.counts)


def comparison(count=2, **changes):
    return compared([Run(f"run{i}", f"{i}", Record(examples.spectrum(**changes))) for i in range(count)])


def test_the_densities_of_compared_runs_are_drawn_over_each_other():
    axes = plot_comparison(comparison(3)).axes[0]
    drawn = axes.patches
    assert [to_hex(patch.get_edgecolor()) for patch in drawn] == [colour.lower() for colour in RUN_COLOURS[:3]]
    assert len({patch.get_linestyle() for patch in drawn}) == 3
    for patch in drawn[1:]:
        np.testing.assert_array_equal(patch.get_data().edges, drawn[0].get_data().edges)
        np.testing.assert_array_equal(patch.get_data().values, drawn[0].get_data().values)
    assert axes.get_yscale() == "log"
    assert len(plot_comparison(comparison(density=None)).axes) == 3


def markers(axes):
    """{marker: the signs of the values that it stands at}."""
    found = {}
    for container in axes.containers:
        if (line := getattr(container, "lines", (None,))[0]) is not None:
            found.setdefault(line.get_marker(), set()).update(np.sign(line.get_ydata()))
    return found


def test_in_every_picture_the_shape_of_a_marker_is_the_sign_and_no_run_has_a_signs_colour(figure):
    by_colour = {
        to_hex(container[0].get_color()).upper(): container[0].get_marker()
        for container in axes_of(figure, "scree").containers
        if container[0] is not None
    }
    assert by_colour == {POSITIVE: "o", NEGATIVE: "v"}
    _, scree, trace, _ = plot_comparison(comparison(9)).axes
    assert markers(scree) == {"o": {1}, "v": {-1}}
    assert markers(trace) == {"o": {1}}
    names = ("lambda_max", "lambda_min", "trace", "frobenius_norm")
    rows = [
        {"step": i, "edge": 3.0, "overlap": 0.5, **{name: i - 1.5 for name in names}}
        | {f"{name}_error": 0.1 for name in names}
        for i in range(4)
    ]
    for axes in plot_series(rows).axes[:2]:
        assert markers(axes) == {"o": {1}, "v": {-1}}
    assert not {POSITIVE, NEGATIVE, INK, FAINT} & {*RUN_COLOURS}
    assert len({*RUN_COLOURS}) == len(RUN_COLOURS)


@pytest.mark.parametrize("count", [2, 9])
def test_the_legend_of_a_comparison_lies_within_the_figure(count):
    runs = [Run(f"experiments/with/long/names/run-{i}", f"{i}", Record(examples.spectrum())) for i in range(count)]
    figure = plot_comparison(compared(runs))
    figure.canvas.draw()
    box = figure.legends[0].get_window_extent()
    assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1
    assert figure.bbox.y0 <= box.y0
    assert [text.get_text().split(":")[0] for text in figure.legends[0].get_texts()] == [
        f"{i}" for i in range(1, count + 1)
    ]


def test_a_series_shows_the_edge_and_what_is_known():
    names = ("lambda_max", "lambda_min", "trace", "frobenius_norm", "overlap")
    row = {"step": None, "edge": 20.0, **dict.fromkeys(names), "lambda_max": 5.0, "lambda_max_error": None}
    (axes, *_) = plot_series([row, row]).axes
    edge = next(line for line in axes.lines if line.get_label() == "edge of stability")
    assert set(edge.get_ydata()) == {20.0}
    assert plot_series([row, row]).axes[-1].get_xlabel() == "checkpoint"
    assert len(plot_series([row]).axes) == 2


def test_the_batches_are_a_histogram_with_all_data_and_the_mean_marked():
    found = examples.batches()
    (panel,) = [panel for panel in panels(examples.spectrum(per_batch=found)) if panel.name == "batches-largest"]
    axes = plotted(panel)
    assert sum(bar.get_height() for bar in axes.patches if bar.get_height() > 0) >= 3
    counts = [bar.get_height() for bar in axes.patches if hasattr(bar, "get_width") and bar.get_facecolor()[3] > 0.5]
    assert sum(counts) == 3
    marked = {line.get_label(): line.get_xdata()[0] for line in axes.lines}
    assert marked == {"all data": 50.0, "mean of the batches": pytest.approx((61.0 + 48.5 + 70.0) / 3)}
    low, high = axes.get_xlim()
    assert low < 48.5
    assert high > 70


@pytest.mark.parametrize(
    ("values", "scale"), [([1.0, 2.0, 40.0], "log"), ([-1.0, 2.0, 40.0], "linear"), ([3.0, 3.0, 3.0], "linear")]
)
def test_every_batch_is_in_a_bin(values, scale):
    made = [{"number": i, "weight": 1.0, "largest": examples.estimate(v, 0.1)} for i, v in enumerate(values)]
    found = examples.batches(batches=[{**batch, "smallest": None} for batch in made], whole=None)
    edges = bin_edges(found.values())
    assert np.histogram(values, edges)[0].sum() == 3
    assert (np.diff(edges) > 0).all()
    assert plotted(batches_panels(found)[0]).get_xscale() == scale


def test_one_batch_has_no_histogram():
    one = examples.batches(batches=[examples.PER_BATCH["batches"][0]])
    assert batches_panels(one) == []
    assert batches_panels(examples.batches(batches=[])) == []


def test_densities_of_blocks_are_small_multiples_on_the_same_axes():
    entries = [
        Block(f"layer{i}", 400, None, None, Bracket(50.0, 52.0, 0.95), Bracket(-21.0, -20.0, 0.95), examples.density())
        for i in range(14)
    ]
    panel = densities_panel(Blocks(tuple(entries), 0, 0))
    assert panel.title == "Eigenvalues of groups of parameters (the 12 largest; 2 more)"
    small = plotted(panel).child_axes
    assert [axes.get_title() for axes in small] == [f"layer{i} (400)" for i in range(12)]
    assert len({(*axes.get_xlim(), *axes.get_ylim()) for axes in small}) == 1
    for axes in small:
        assert sum(bar.get_height() for bar in axes.patches) == pytest.approx(400, abs=2)
    assert sum(len(plotted(half).child_axes) for half in panel.halves) == 12
    one = densities_panel(Blocks(tuple(entries[:1]), 0, 0))
    assert len(plotted(one).child_axes) == 1
    assert one.halves == ()


def plotted(panel):
    axes = Figure().add_subplot()
    panel.draw(axes)
    return axes
