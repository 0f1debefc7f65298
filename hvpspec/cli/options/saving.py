"""Vectors of a result that are written to files. No torch: --help needs none."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

from hvpspec.atomic_files import prepare_folder
from hvpspec.cli.options.flags import OUTPUT, option
from hvpspec.cli.options.run import Options
from hvpspec.errors import InputError
from hvpspec.options import VECTORS_SUFFIX


@dataclasses.dataclass(frozen=True, kw_only=True)
class Saving:
    """The files that the vectors go to."""

    save_diagonal: Annotated[
        Path | None,
        option(
            OUTPUT,
            "Write the diagonal to this file (implies --diagonal), such as diagonal.safetensors: a tensor for each "
            "parameter, with its name and shape.",
            "--save-diagonal",
            metavar="FILE",
        ),
    ] = None
    save_eigenvectors: Annotated[
        Path | None,
        option(
            OUTPUT,
            "Write the eigenvectors to this file, such as vectors.safetensors: a tensor for each parameter, with its "
            "name, and with the eigenvectors along the first axis. A name without an ending is a folder of "
            "torch.distributed.checkpoint, to which each rank writes its own part.",
            "--save-eigenvectors",
            metavar="FILE",
        ),
    ] = None

    def paths(self) -> dict[str, Path]:
        """Those that were given, by option."""
        given = {"--save-diagonal": self.save_diagonal, "--save-eigenvectors": self.save_eigenvectors}
        return {name: path for name, path in given.items() if path is not None}

    def of(self, options: Options) -> Options:
        """The options, with what is to be saved. Raises InputError for what cannot be."""
        if self.save_eigenvectors is not None and not options.spectrum().pairs:
            raise InputError("--save-eigenvectors needs the eigenvalues: add --only eigenvalues.")
        if len({path.absolute() for path in self.paths().values()}) < len(self.paths()):
            raise InputError("--save-diagonal and --save-eigenvectors name the same file; give each its own.")
        for name, path in self.paths().items():
            is_folder = path == self.save_eigenvectors and not path.suffix
            if path.suffix != VECTORS_SUFFIX and not is_folder:
                raise InputError(f"{name} {path}: the name of the file must end in {VECTORS_SUFFIX}.")
            prepare_folder(path.parent, name, files=[] if is_folder else [path.name])
        return options if self.save_diagonal is None else dataclasses.replace(options, diagonal=True)

    def for_matrix(self, options: Options, *, several: bool) -> Saving:
        """The files of one matrix: with its name in theirs, where there are several."""
        if not several:
            return self
        named = {
            f"save_{name}": path.with_stem(f"{path.stem}-{options.matrix}")
            for name, path in (("diagonal", self.save_diagonal), ("eigenvectors", self.save_eigenvectors))
            if path is not None
        }
        return Saving(**named)
