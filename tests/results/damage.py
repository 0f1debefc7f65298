"""Damage to documents, the same for a seed each time: another value, a missing key, a list that is too long."""

import copy
import random

# Of every kind of JSON, of every size, and of texts that are no harmless ones.
VALUES = (
    None, True, False, -1, 0, 1, -1e-300, 1e308, -1e308, 1e-320, 2**63, 2**64, 10**400, 95, 2.5, "", "x", "1.5", [], {},
    [1], {"a": 1}, [[[]]], "\ud800", "\x1b[2J", "nan", "9" * 5000,
)  # fmt: skip


def places(entry, path=()):
    """The path of every entry."""
    if path:
        yield path
    for key, part in entry.items() if isinstance(entry, dict) else enumerate(entry) if isinstance(entry, list) else ():
        yield from places(part, (*path, key))


def put(document, path, value):
    """The document with another value there."""
    changed = copy.deepcopy(document)
    at = changed
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return changed


def damaged(document, seed):
    """One to four changes; those of large parts are as likely as those of single numbers."""
    rng = random.Random(seed)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        by_depth = {}
        for path in places(document):
            by_depth.setdefault(len(path), []).append(path)
        path = rng.choice(by_depth[rng.choice(sorted(by_depth))])
        document = copy.deepcopy(document)
        at = document
        for key in path[:-1]:
            at = at[key]
        old, kind = at[path[-1]], rng.choice(["value", "value", "value", "gone", "scaled", "twice"])
        if kind == "gone":
            del at[path[-1]]
        elif kind == "scaled" and isinstance(old, int | float) and not isinstance(old, bool):
            at[path[-1]] = old * rng.choice([1e-300, 1e10, 1e300, -1, 0.5])
        elif kind == "twice" and isinstance(old, list):
            at[path[-1]] = old + old
        else:
            at[path[-1]] = rng.choice(VALUES)
        if not document:
            break
    return document
