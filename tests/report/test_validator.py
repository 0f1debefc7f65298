"""The page before html-validate: beyond what a parser stumbles at, contents that the HTML standard does not allow."""

import json
import subprocess
from pathlib import Path

import pytest
from conftest import lacking
from report import examples

from hvpspec.report.documents import read_record
from hvpspec.report.html import report_html

pytestmark = pytest.mark.browser
ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / ".cache/html-validate/node_modules/.bin/html-validate"
BARE = {"condition": None, "blocks": None, "density": None, "preflight": None, "complete": False}
PAGES = {
    "all": examples.record,
    "undamped": lambda: examples.record(condition={**examples.CONDITION, "damping": 0.0}),
    "bare": lambda: examples.record(**BARE),
    "older": lambda: read_record(Path(__file__).parent / "older/first.json"),
}


def errors(path):
    if not PROGRAM.exists():
        lacking("there is no html-validate: ./scripts/html-validate fetches it where it can")
    told = path.with_suffix(".json")  # its output ends early in a pipe
    arguments = ["--formatter", f"json={told}", "--preset", "recommended", path]
    done = subprocess.run([PROGRAM, *arguments], capture_output=True, text=True, cwd=path.parent, check=False)
    assert told.exists(), done.stderr
    found = json.loads(told.read_text())
    return [f"{message['line']}: {message['ruleId']}: {message['message']}" for f in found for message in f["messages"]]


@pytest.mark.parametrize("name", PAGES)
def test_the_page_is_valid(tmp_path, name):
    path = tmp_path / "report.html"
    path.write_text(report_html(PAGES[name]()), encoding="utf-8")
    assert errors(path) == []


def test_what_is_not_valid_is_seen(tmp_path):
    path = tmp_path / "report.html"
    page = report_html(examples.record())
    path.write_text(page.replace("<main>", "<main><p><div id='findings'></div></p>", 1), encoding="utf-8")
    assert any("element-permitted" in error or "no-dup-id" in error for error in errors(path))
