"""Programs as people write them: models, losses and data, each with the function that it stands for.

`PROGRAMS` has them all, by field; see `program.py` for what one consists of.
"""

from programs import batches, coupled, functions, inner, layers, losses, noise, reached, shared
from programs.program import Program

PROGRAMS: tuple[Program, ...] = tuple(
    program
    for module in (shared, reached, functions, losses, batches, coupled, noise, inner, layers)
    for program in module.PROGRAMS
)
