"""What a user's data raise, as an error that says in which batch, where in the code, and what to do."""

from __future__ import annotations

import re

from hvpspec.errors import InputError
from hvpspec.raised import raised, text_of

LATER_PASS = "data gave no batches on a later pass; it must be re-iterable, such as a list or a DataLoader."

# What torch's and Python's words mean most often, and what is to be done about it. The first that fits is said.
_REMEDIES = (
    (
        r"worker \(pid.*exited",
        "a worker of the DataLoader has died, perhaps for lack of memory: num_workers=0 shows why",
    ),
    (
        r"bootstrapping phase|freeze_support",
        'spawned workers import the file: put what it runs under if __name__ == "__main__":, or give num_workers=0',
    ),
    (
        r"[Pp]ickle|Can't get attribute",
        "spawned workers import what they get: define it at the top of a file, or give num_workers=0",
    ),
    (
        r"equal size|resize storage",
        "samples of one batch differ in shape: give the DataLoader a collate_fn that pads them",
    ),
    (r"default_collate", "give the DataLoader a collate_fn that makes tensors of them"),
)


def of_data(index: int, error: BaseException, *, later: bool) -> InputError:
    """What the data raised, as an error that names the batch. later: whether they were read to their end before."""
    text = text_of(error)
    remedies = [remedy for words, remedy in _REMEDIES if re.search(words, text)]
    if later or isinstance(error, OSError):
        remedies.append("every product reads the batches again: look at the data set, or read it once (--freeze-data)")
    remedies.append("correct the data set, or leave that batch out")
    return InputError(f"batch {index}: the data raised {raised(error)}; {remedies[0]}.")
