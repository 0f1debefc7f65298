import itertools
import re
import shlex
from pathlib import Path

import html5lib
import numpy as np
import pytest
from report import examples

from hvpspec.report.documents import read_record
from hvpspec.report.explanations import EXPLANATIONS
from hvpspec.report.html import notebook_html, report_html
from hvpspec.report.sentences import sentences
from hvpspec.results.eigenpairs import Eigenpairs
from hvpspec.results.estimate import Bracket
from hvpspec.results.record import Record
from hvpspec.results.spectrum import Spectrum


@pytest.fixture(scope="module")
def page():
    return report_html(examples.record())


def tree_of(page):
    """The document; raises at whatever the HTML standard calls a parse error."""
    return html5lib.HTMLParser(strict=True, namespaceHTMLElements=False).parse(page)


def words(element):
    return " ".join(" ".join(element.itertext()).split())


def rows(tree, caption):
    """{first cell: the other cells} of the table in the section of that id."""
    (section,) = (s for s in tree.iter("section") if s.get("aria-labelledby") == caption)
    return {
        "".join(row[0].itertext()).strip(): [words(cell) for cell in row[1:]] for row in section.findall(".//tbody/tr")
    }


def test_it_is_valid_and_accessible_in_structure(page):
    tree = tree_of(page)
    assert tree.get("lang") == "en"
    assert len(list(tree.iter("main"))) == len(list(tree.iter("h1"))) == 1
    ids = [element.get("id") for element in tree.iter() if element.get("id")]
    assert len(ids) == len(set(ids))
    for element in tree.iter("section"):
        assert element.get("aria-label") or element.get("aria-labelledby") in ids
    for element in tree.iter("figure"):
        assert any(len(child.get("aria-label", "")) > 30 for child in element.iter() if child.get("role") == "img")
    levels = [int(element.tag[1]) for element in tree.iter() if re.fullmatch(r"h\d", str(element.tag))]
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', page))
    assert used
    assert used <= set(ids)


def test_it_needs_nothing_from_elsewhere(page):
    tree = tree_of(page)
    for element in tree.iter():
        assert element.tag not in ("script", "link", "iframe", "img", "object", "embed", "base")
        for name, value in element.items():
            assert not re.match(r"(https?:|//)", value) or str(name).startswith("xmlns"), (element.tag, name, value)
    assert "@import" not in page
    assert "url(http" not in page


def test_whatever_is_quoted_is_escaped(page):
    assert examples.HOSTILE not in page
    assert "&lt;img src=x onerror=alert(1)&gt;.pt" in page
    assert "<i>" not in page
    assert "<b>" not in page
    assert "dropout &amp; friends" in page


def test_the_command_can_be_pasted(page):
    tree = tree_of(page)
    (command,) = ("".join(element.itertext()) for element in tree.iter("code"))
    assert shlex.split(command) == examples.document()["provenance"]["command"]


def test_figures_and_their_errors(page):
    found = rows(tree_of(page), "figures")
    assert found["λ1"] == ["50.0", "2", "0.25", ""]
    assert found["λ2"] == ["−20.00", "0.5", "0.25", "negative"]
    assert found["λ4"] == ["−0.5", "unknown", "0.25", "negative"]
    assert found["trace"] == ["36.2", "1.5", "4", ""]
    assert found["Frobenius norm"] == ["54.10", "0.7", "", ""]
    (section,) = (s for s in tree_of(page).iter("section") if s.get("aria-labelledby") == "figures")
    headings = [words(cell) for cell in section.findall(".//thead/tr/th")]
    assert headings == ["figure", "value", "± error (95 %)", "± data (1 s.e.)", "note"]


def test_each_confidence_is_shown_where_they_differ():
    norm = {**examples.estimate(54.1, 0.7), "confidence": 0.9}
    page = report_html(examples.record(frobenius_norm=norm))
    found = rows(tree_of(page), "figures")
    assert (found["trace"][-1], found["Frobenius norm"][-1]) == ("95 %", "90 %")
    assert "± error (" not in page


def test_conditioning_blocks_preflight_and_provenance(page):
    tree = tree_of(page)
    condition = rows(tree, "conditioning")
    assert condition["condition number κ"] == ["≥ 12500", "certain; H + 0.1 I is indefinite"]
    assert condition["λ_min"] == ["−21 … −20", ""]
    assert condition["smallest |λ + δ|"] == ["≤ 0.004", "certain, up to rounding"]
    assert condition["stable rank"][0] == "1.170 ± 0.03"
    assert condition["negative eigenvalues"] == ["90 … 106", "95 % range; certainly 2 or more"]
    assert condition["numerical rank"][0] == "400"
    assert "log-determinant" not in condition
    assert "not available: log-determinant (H + δI is not positive definite.)" in words(tree)
    blocks = rows(tree, "blocks")
    assert blocks["features.weight"] == ["300", "−8.0 ± 2", "12.00 ± 0.5", "3.50 ± 0.5†"]
    assert blocks["head <b>$x$</b>"][-1] == "–"
    assert "† less precise than aimed at: --rtol for trace and norm, 1% for λ_max" in words(tree)
    text = words(tree)
    assert "fixed: dropout & friends → run in eval mode" in text
    assert "symmetry: off by 1e-07" in text
    assert "the whole run: about 40 HVPs" in text
    assert "checkpoint, sha256 " + "0" * 64 in text


def test_findings_come_first_and_say_what_holds(page):
    text = words(tree_of(page))
    assert text.index("Findings") < text.index("Figures, with their errors") < text.index("Pictures")
    said = sentences(examples.record(blocks=None))
    assert said[0] == (
        "The sharpest direction of the loss has curvature 50.0 ± 2: gradient descent is stable up to a learning rate "
        "of 0.0384 (2/λ_max, 95 %)."
    )  # 2/52 = 0.03846…, rounded down
    assert "not at a minimum" in said[1]
    assert "at least 2 eigenvalues are negative" in said[1]
    assert "36.2 ± 1.5 (95 %): a mean curvature of 0.0905 over 400 parameters" in said[2]
    assert "The 4 eigenvalues of largest magnitude make up about 99.9%" in said[3]
    assert said[4].startswith("The condition number of H + 0.1 I is at least 12500, so that a solve loses 4.1 or more")
    assert "1 problem was fixed, exactly, 1 finding is worth knowing" in said[5]
    assert said[-1] == "Every figure asked for is within its tolerance, after 42 Hessian-vector products."


def refined(converged):
    pairs = Eigenpairs(np.array([-0.09]), None, np.array([0.02]), np.array([0.03]), converged, 30)
    return pairs.to_dict()


def test_each_matrix_has_a_table_of_its_own():
    step = examples.bracket(0.0383, 0.0399)
    page = report_html(examples.record(condition={**examples.CONDITION, "step": step}))
    (section,) = (s for s in tree_of(page).iter("section") if s.get("aria-labelledby") == "conditioning")
    titles = [words(title) for title in section.iter("h3")]
    of_h, shifted = ([words(row[0]) for row in table.findall("tbody/tr")] for table in section.iter("table"))
    assert titles == ["Of H", "Of H + 0.1 I"]
    assert {"λ_max", "negative eigenvalues", "numerical rank", "stable rank"} <= {*of_h}
    assert shifted[0] == "condition number κ"
    assert rows(tree_of(page), "conditioning")["largest stable step"] == ["0.0383", "learning rate: 2/(λ_max + δ)"]
    assert rows(tree_of(page), "stability")["largest stable step"] == ["0.03846", "learning rate: 2/λ_max (95 %)"]
    damped = sentences(examples.record(condition={**examples.CONDITION, "step": step}))[0]
    assert damped.endswith("up to a learning rate of 0.0384 (2/λ_max, 95 %); on H + 0.1 I, up to 0.0383.")
    plain = report_html(examples.record(condition={**examples.CONDITION, "damping": 0.0, "step": step}))
    assert rows(tree_of(plain), "stability")["largest stable step"] == ["0.03846", "learning rate: 2/λ_max (95 %)"]
    assert "largest stable step" not in rows(tree_of(plain), "conditioning")  # said once
    assert "Of H" not in words(tree_of(plain))


@pytest.mark.parametrize("converged", [True, False])
def test_a_refinement_is_shown_and_its_failure_said(converged):
    found = {**examples.CONDITION, "refined": refined(converged)}
    page = report_html(examples.record(condition=found, blocks=None))
    shown = rows(tree_of(page), "conditioning")["λ + δ nearest to 0"]
    assert shown == ["0.01 ± 0.03", "" if converged else "not converged"]
    said = words(tree_of(page))
    assert ("Every figure asked for is within its tolerance" in said) == converged
    assert ("The eigenvalue nearest to zero did not converge" in said) != converged
    assert ("--refine-hvps" in said) != converged


def test_a_refinement_that_found_nothing_is_said():
    reasons = {"refined": "3 products did not finish a round; give more"}
    said = words(tree_of(report_html(examples.record(condition={**examples.CONDITION, "reasons": reasons}))))
    assert "The eigenvalue nearest to zero was not reached." in said
    assert "not available: λ nearest to 0 (3 products did not finish a round" in said
    assert "Every figure asked for" not in said


def test_blocks_short_of_their_tolerance_are_said():
    def page_of(**changes):
        blocks = [{**block, "largest": examples.bracket(3.0, 3.01), **changes} for block in examples.BLOCKS["blocks"]]
        return words(tree_of(report_html(examples.record(blocks={**examples.BLOCKS, "blocks": blocks}))))

    assert "Every figure asked for is within its tolerance" in page_of()
    missing = page_of(largest=None)
    assert "λ_max of the blocks was not reached. More products (--max-hvps)" in missing
    assert "Every figure asked for" not in missing
    assert "λ_max of 2 of 2 blocks is not known to 1%" in page_of(largest=examples.bracket(3.0, None))
    wide = page_of(trace={**examples.estimate(5.0, 1.0), "converged": False})
    assert "Trace or norm of 2 of 2 blocks is not known to ±1.00%. A smaller --rtol" in wide
    assert "5.0 ± 1†" in wide


def test_lines_break_after_dots_and_underscores_and_never_before_an_error():
    name = "layers.0.layer_norm.weight"
    blocks = [{**examples.BLOCKS["blocks"][0], "name": name, "largest": None}]
    page = report_html(examples.record(blocks={**examples.BLOCKS, "blocks": blocks}))
    assert "layers.<wbr>0.<wbr>layer_<wbr>norm.<wbr>weight" in page
    assert "−8.0 ±\N{NO-BREAK SPACE}2" in page
    assert "1.170\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}0.03" in page
    (section,) = (s for s in tree_of(page).iter("section") if s.get("aria-labelledby") == "blocks")
    assert [words(cell) for cell in section.findall(".//thead/tr/th")] == ["group", "size", "trace", "norm"]


def test_upper_ends_and_counts_that_are_certain_are_shown_where_there_are_any():
    found = {**examples.CONDITION, "digits_lost": examples.bracket(4.1, 4.3), "kappa": examples.bracket(100.0, 200.0)}
    found |= {"definite": "positive", "negative": examples.estimate(2.0, 50.0)}
    shown = rows(tree_of(report_html(examples.record(condition=found))), "conditioning")
    assert shown["digits lost in a solve"] == ["4.1 … 4.3", "of 7.2"]
    assert shown["condition number κ"] == ["100 … 200", "positive definite; upper end at 95 %"]
    assert shown["negative eigenvalues"][0] == "2 … 52"  # two for certain, whatever the estimate leaves open


def ends(low, high, values, **changes):
    values = np.array(values)
    pairs = Eigenpairs(
        values, None, np.zeros(len(values)), np.full(len(values), 0.1), True, 9,
        largest=Bracket(*high, 0.95), smallest=Bracket(*low, 0.95),
    )  # fmt: skip
    return sentences(Record(Spectrum(9, pairs, None, None, 9, 1.0, True, asked=("eigenvalues",), **changes)))


def test_definiteness_is_said_only_where_it_is_known():
    assert "Every eigenvalue is positive (95 %)" in ends((0.5, 0.9), (3.0, 3.1), [3.0])[1]
    assert "whether any is negative is not known" in ends((-0.5, 0.9), (3.0, 3.1), [3.0])[1]
    assert "(λ ≤ −0.2)" in ends((-0.5, -0.2), (3.0, 3.1), [3.0])[1]
    assert "(λ ≤ −0.9)" in ends((-1.5, 0.2), (3.0, 3.1), [3.0, -1.0])[1]  # −1 ± 0.1
    assert "(λ ≤ −0.199)" in ends((-0.5, -0.1999), (3.0, 3.1), [3.0])[1]  # rounded towards what is certain
    assert "is not known" in ends((-1.5, 0.2), (3.0, 3.1), [3.0, -0.05])[1]  # −0.05 ± 0.1
    assert "gradient descent" not in " ".join(ends((-3.0, -2.0), (-1.0, -0.5), [-2.5]))


def test_interruptions_and_missing_figures_are_said():
    part = examples.spectrum(complete=False, trace=None, density=None)
    page = report_html(examples.record(complete=False, trace=None, density=None, condition=None, blocks=None))
    tree_of(page)
    assert "This run was interrupted" in page
    assert "Conditioning" not in page
    assert "interrupted" in sentences(Record(part))[-1]
    bare = Spectrum(5, None, None, None, 0, 0.0, False)
    assert "interrupted" in sentences(Record(bare))[-1]


@pytest.mark.parametrize("name", ["first", "before_conditioning"])
def test_older_files_make_a_page(name):
    tree_of(report_html(read_record(Path(__file__).parent / "older" / f"{name}.json")))


def test_every_name_has_its_explanation_as_a_hover_and_as_text(page):
    tree = tree_of(page)
    hovers = {element.get("title") for element in tree.iter("span") if element.get("class") == "term"}
    texts = {words(element) for details in tree.iter("details") for element in details.iter("dd")}
    assert hovers <= texts  # not everybody can hover
    assert {EXPLANATIONS[name] for name in ("eigenvalues", "trace", "step", "kappa", "rank")} <= hovers
    for section in ("figures", "stability", "conditioning"):
        (found,) = (s for s in tree.iter("section") if s.get("aria-labelledby") == section)
        assert all(row.find(".//span[@title]") is not None for row in found.findall(".//tbody/tr"))
    assert words(next(tree.iter("summary"))) == "What these figures mean"


def test_a_learning_rate_in_the_options_is_judged():
    document = examples.document()
    options = {**document["provenance"]["options"], "lr": 0.1, "momentum": 0.9}
    record = examples.record(provenance={**document["provenance"], "options": options})
    page = report_html(record)
    shown = rows(tree_of(page), "stability")
    assert shown["largest stable step"][0] == "0.07307"  # 3.8/52 = 0.073077, rounded down
    assert shown["edge of stability"] == ["38", "(2 + 2β)/lr at lr = 0.1, β = 0.9"]
    assert shown["λ_max / edge"] == ["1.316 … 1.368", "not stable: above 1"]
    said = (
        "The learning rate 0.1 with momentum 0.9 is not stable: λ_max is 1.32 … 1.37 times the edge of stability, 38."
    )
    assert said in words(tree_of(page))


def test_a_spectrum_alone_makes_a_page_and_a_notebook_cell():
    page = report_html(Record(examples.spectrum()))
    assert words(next(tree_of(page).iter("h1"))) == "Hessian spectrum"
    assert "Where the figures come from" not in page
    cell = notebook_html(examples.spectrum())
    assert "<img" in cell
    assert "Frobenius norm" in cell
