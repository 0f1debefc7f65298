"""The releases that ./scripts/setup installs are pinned with hashes, all of them, and are those of constraints.txt."""

import re
from importlib import metadata
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
WITHOUT_HASHES = ("torch", "triton")  # and nvidia-…, cuda-…: taken by version, see scripts/lock


def locked(name):
    """{package: its versions}, after every line was seen to be a release or a hash."""
    found = {}
    text = (SCRIPTS / f"locked/{name}.txt").read_text()
    for release in re.split(r"\n(?=\w)", text.strip()):
        first, *hashes = release.split(" \\\n")
        match = re.fullmatch(r"([\w.-]+)==([\w.]+)( ; .*)?", first)
        assert match, first
        assert hashes, first
        assert all(re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}", each) for each in hashes), first
        found.setdefault(match[1], set()).add(match[2])
    return found


@pytest.mark.parametrize("name", ["cli", "test"])
def test_the_versions_are_those_of_the_constraints(name):
    found = locked(name)
    lines = (SCRIPTS / "constraints.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    for package, versions in found.items():
        assert package not in pinned or versions == {pinned[package]}, package
    assert not any(re.match(r"torch$|triton|nvidia|cuda", package) for package in found)


@pytest.mark.parametrize(("name", "extras"), [("cli", {"cli"}), ("test", {"cli", "test"})])
def test_nothing_that_is_needed_is_missing(name, extras):
    """By what the packages that are installed here say that they need."""
    requirements = pytest.importorskip("packaging.requirements")
    found, wanted, seen = locked(name), [("hvpspec", frozenset(extras)), ("hatchling", frozenset())], set()
    while wanted:
        package, asked = wanted.pop()
        if (package, asked) in seen:
            continue
        seen.add((package, asked))
        try:
            needs = metadata.requires(package) or []
        except metadata.PackageNotFoundError:
            continue  # not in this environment
        for line in needs:
            need = requirements.Requirement(line)
            if need.marker and not any(need.marker.evaluate({"extra": extra}) for extra in (asked or {""})):
                continue
            known = re.sub(r"[-_.]+", "-", need.name).lower()
            if known in WITHOUT_HASHES or known.startswith(("nvidia", "cuda")):
                continue
            assert known in found, f"{package} needs {known}"
            wanted.append((known, frozenset(need.extras)))
    assert len(seen) > 15
