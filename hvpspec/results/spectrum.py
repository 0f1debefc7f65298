"""All quantities of one matrix, and what is known of them while they are being computed."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, overload

from hvpspec.entries import AtLeast, Count, Size
from hvpspec.options import MATRIX_NAMES, QUANTITIES, Matrix, Quantity, Which
from hvpspec.presentation import presented
from hvpspec.results.codec import LEFT_OUT, Flattened, Key, Stored
from hvpspec.results.condition import Condition
from hvpspec.results.density import Density
from hvpspec.results.diagonal import Diagonal
from hvpspec.results.eigenpairs import Eigenpairs, Lanczos
from hvpspec.results.estimate import Estimate, Rounding
from hvpspec.results.gradient import Gradient
from hvpspec.results.parts import Batches, Blocks
from hvpspec.wording import abridged, counted, listed

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SCHEMA = "hvpspec/spectrum/1"


@dataclass(frozen=True)
class Preconditioned:
    """That a matrix is preconditioned, and what is known of the optimizer that does it.

    Attributes
    ----------
    optimizer : str or None
        Such as "AdamW"; None for a scale that is not said to be an optimizer's.
    step : int or None
        How many steps it had made.
    lr : float or None
        Its learning rate, and `decay` its decoupled weight decay.
    threshold : float or None
        The edge of stability: the λ_max from which its steps diverge.
    decay : float
        0 without one.
    """

    optimizer: str | None = None
    step: Count | None = None
    lr: Size | None = None
    threshold: Size | None = None
    decay: Size = 0.0


@dataclass(frozen=True, eq=False, repr=False)
class Spectrum(Stored):
    """All quantities of one matrix, each with its error.

    A quantity that was not asked for, or not reached, is None.

    Attributes
    ----------
    parameters : int
        n: the matrix is n × n.
    eigenpairs : Eigenpairs or None
        Those that `which` names, in its order.
    trace, frobenius_norm : Estimate or None
        Of the whole matrix.
    hvps : int
        Matrix-vector products that all of it took.
    seconds : float
        Time that all of it took.
    complete : bool
        False in a callback and after an interruption or an error: the quantities are those known by then.
    density : Density or None
        The distribution of all eigenvalues.
    asked : tuple of str
        The quantities asked for, among "eigenvalues", "trace", "frobenius_norm" and "density".
    predicted : int or None
        Products that were expected before the first one; None where that is not known.
    condition : Condition or None
        What the same products tell of the conditioning.
    blocks : Blocks or None
        Quantities of each group of parameters, where they were asked for.
    per_batch : Batches or None
        λ_max of the matrix of each mini-batch, where that was asked for on the command line: see `hvpspec.per_batch`.
    diagonal : Diagonal or None
        The diagonal, where it was asked for.
    which : {"LM", "LA", "SA", "BE"}
        Which eigenpairs were asked for, see `hvpspec.spectrum`.
    rounding : Rounding or None
        The rounding error of float32 products, as measured; every error includes it. None where it is not measured.
    rounding_reason : str or None
        Why it is not known although the products are in float32, so that errors include an assumption in its place.
    stopped : str or None
        What ended a run of the command line before it was complete, such as "stopped by SIGTERM", or its error.
    out_of_time : bool
        Whether a time limit has ended the run, which is complete all the same: it is what was asked for.
    matrix : str or None
        Which matrix of a training loss it is, such as "ggn"; None for the Hessian and for other operators.
    semidefinite : bool or None
        True where it is known beforehand that no eigenvalue is negative, as of a Gauss-Newton matrix of a convex loss.
    preconditioned : Preconditioned or None
        The optimizer whose preconditioner D makes it D^(-1/2) H D^(-1/2); None for a matrix that is not preconditioned.
    lanczos : Lanczos or None
        The small matrices from which ``hvpspec verify`` computes the figures again; None for a run that was
        interrupted, and where they are too large.
    gradient : Gradient or None
        Where the gradient of the loss lies in this spectrum, where that was asked for.

    Examples
    --------
    >>> import hvpspec, numpy as np
    >>> found = hvpspec.spectrum(np.diag([5.0, 2.0, -1.0, 0.5]), k=2)
    >>> found.eigenpairs.values.round(9), round(found.trace.value, 9), found.converged
    (array([5., 2.]), 6.5, True)
    >>> "Frobenius norm" in found.summary()
    True
    """

    parameters: Annotated[int, AtLeast(1)]
    eigenpairs: Annotated[Eigenpairs | None, Flattened("eigenvalues")]
    trace: Estimate | None
    frobenius_norm: Estimate | None
    hvps: Count
    seconds: Size
    complete: bool
    density: Density | None = None
    asked: tuple[Quantity, ...] = QUANTITIES[:3]
    predicted: Annotated[Count | None, Key("predicted_hvps")] = None
    condition: Condition | None = None
    blocks: Blocks | None = None
    diagonal: Annotated[Diagonal | None, LEFT_OUT] = None
    which: Which = "LM"
    rounding: Annotated[Rounding | None, LEFT_OUT] = None
    rounding_reason: Annotated[str | None, LEFT_OUT] = None
    stopped: Annotated[str | None, LEFT_OUT] = None
    lanczos: Annotated[Lanczos | None, LEFT_OUT] = None
    out_of_time: bool = False
    matrix: Annotated[Matrix | None, LEFT_OUT] = None
    semidefinite: Annotated[bool | None, LEFT_OUT] = None
    preconditioned: Annotated[Preconditioned | None, LEFT_OUT] = None
    gradient: Annotated[Gradient | None, LEFT_OUT] = None
    per_batch: Annotated[Batches | None, LEFT_OUT] = None

    json_order: ClassVar = (
        "schema", "complete", "converged", "out_of_time", "parameters", "matrix", "semidefinite", "preconditioned",
        "asked", "which", "eigenpairs", "trace", "frobenius_norm", "density", "condition", "blocks", "gradient",
        "per_batch", "diagonal",
        "rounding", "rounding_reason", "lanczos", "hvps", "predicted", "seconds", "stopped",
    )  # fmt: skip

    def contradiction(self) -> tuple[str, str] | None:
        """See `hvpspec.results.codec`."""
        return ("asked", "expected each quantity once") if len(set(self.asked)) < len(self.asked) else None

    @property
    def matrix_name(self) -> str:
        """What the matrix is called in sentences, such as "preconditioned Hessian"."""
        return f"{'' if self.preconditioned is None else 'preconditioned '}{MATRIX_NAMES[self.matrix or 'hessian']}"

    @property
    def schema(self) -> str:
        """The name of the format that `to_dict` and spectrum.json have."""
        return SCHEMA

    @property
    def converged(self) -> bool:
        """Whether every quantity asked for is there and within its tolerance, and so is the refinement near zero.

        Blocks, batches and the diagonal do not count: each of their quantities has a flag of its own.
        """
        refined = self.condition is None or (
            "refined" not in self.condition.reasons
            and (self.condition.refined is None or self.condition.refined.converged)
        )
        found = self._asked_for().values()
        return self.complete and refined and all(quantity is not None and quantity.converged for quantity in found)

    def _asked_for(self) -> dict[str, Eigenpairs | Estimate | Density | None]:
        found = (self.eigenpairs, self.trace, self.frobenius_norm, self.density)
        return {name: quantity for name, quantity in zip(QUANTITIES, found, strict=True) if name in self.asked}

    def __repr__(self) -> str:
        state = "incomplete" if not self.complete else "converged" if self.converged else "not converged"
        cost = f"{counted(self.hvps, 'HVP')}, {self.seconds:.3g} s"
        of = "matrix" if self.matrix is None and self.preconditioned is None else self.matrix_name
        lines = [f"<Spectrum of a {self.parameters:,} × {self.parameters:,} {of}: {state}, {cost}"]
        for name, quantity in self._asked_for().items():
            lines += self._lines(name, quantity)
        if self.condition is not None:
            lines.append(f"  condition       kappa {self.condition.kappa}, {self.condition.definiteness}")
        if self.blocks is not None:
            lines.append(f"  blocks          {len(self.blocks)}: {listed(self.blocks, 3)}")
        if self.gradient is not None:
            lines.append(f"  gradient        length {self.gradient.norm}, curvature {self.gradient.curvature}")
        if self.per_batch is not None:
            lines.append(f"  batches         {len(self.per_batch.batches)} of {self.per_batch.of:,}")
        if self.diagonal is not None:
            lines.append(f"  diagonal        relative error {self.diagonal.error:.2g}")
        return "\n".join(lines) + ">"

    @staticmethod
    def _lines(name: str, quantity: Eigenpairs | Estimate | Density | None) -> list[str]:
        if isinstance(quantity, Eigenpairs):
            open_ = ", not converged" if not quantity.converged else ""
            open_ = open_ or ("" if quantity.all_copies else ", further copies not excluded")
            lines = [f"  eigenpairs      {len(quantity.values)}: {abridged(quantity.values.tolist())}{open_}"]
            for end in ("lambda_max", "lambda_min"):
                if (bracket := getattr(quantity, end)) is not None:
                    lines.append(f"    {end}    {bracket}")
            return lines
        state = "" if quantity is None or quantity.converged else ", not converged"
        if isinstance(quantity, Density):
            return [f"  density         {counted(quantity.weighted_nodes, 'node')}, error {quantity.error:.2g}{state}"]
        return [f"  {name:<15} {'not reached' if quantity is None else quantity}{state}"]

    def _repr_html_(self) -> str:
        html: str = presented("html", self)
        return html

    def summary(self, *, width: int | None = 80) -> str:
        """The tables and notes that the command line prints, as text.

        Parameters
        ----------
        width : int or None
            Columns to keep within. None: every row and every sentence is one line.

        Returns
        -------
        str
            Several lines, without a line break at the end.
        """
        text: str = presented("summary", self, width=width)
        return text

    @overload
    def plot(self, ax: None = None, *, columns: int = 1) -> Figure: ...
    @overload
    def plot(self, ax: Axes, *, columns: int = 1) -> Axes: ...
    def plot(self, ax: Axes | None = None, *, columns: int = 1) -> Axes | Figure:
        """Draws the spectrum; needs Matplotlib.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            Where to draw the density, or without one the eigenvalues by rank.
        columns : int
            How many pictures stand side by side in a new figure.

        Returns
        -------
        Axes or Figure
            `ax`, where it was given; otherwise a new figure of all pictures, for ``.savefig(path)``.

        Raises
        ------
        InputError
            Where there is nothing to draw: only trace and norm are known.
        ImportError
            Where Matplotlib is not installed.
        """
        drawn: Axes | Figure = presented("plot", self, ax, columns=columns)
        return drawn

    def save(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Writes the files that the command line writes.

        Parameters
        ----------
        folder : path
            Made where it does not exist. Files of the same name in it are replaced.

        Returns
        -------
        list of Path
            Of what was written: spectrum.json, which `hvpspec.load_spectrum` reads, then report.html and the pictures.
            These need Jinja and Matplotlib (the extra ``hvpspec[cli]``), and are left out without them.

        Raises
        ------
        InputError
            Where nothing can be written in that folder.
        OutputError
            An OSError, where some of the files could not be written, as on a full disk; it says which.

        Examples
        --------
        >>> import hvpspec, numpy as np, tempfile
        >>> found = hvpspec.spectrum(np.diag([3.0, 1.0]))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     paths = found.save(folder)
        ...     again = hvpspec.load_spectrum(folder)
        >>> paths[0].name, again.trace == found.trace
        ('spectrum.json', True)
        """
        paths: list[Path] = presented("save", self, folder)
        return paths

    def to_frame(self) -> pandas.DataFrame:
        """The quantities as a pandas DataFrame, a row each.

        Returns
        -------
        pandas.DataFrame
            With the columns

            - ``quantity``: "lambda_1", "lambda_2", …, "eigenvalues" (how many of them were found), "lambda_max",
              "trace", "density" (its Wasserstein distance as ``error``), "stable_rank" and so on;
            - ``block``: the name of a block or of a parameter (of "diagonal_mean"), missing for the whole matrix; only
              where there are any;
            - ``batch``: the number of a mini-batch, missing for all data; only where there are some;
            - ``value``;
            - ``error``: half-width of an interval around the value that holds at ``confidence``, infinite where it is
              not known;
            - ``confidence``: 1 where the error is a bound that is certain;
            - ``data_standard_error``: *one* standard error of the value as an estimate for the population that the data
              are a sample of; NaN where it is not known;
            - ``lower``, ``upper``: the interval, which may be lopsided;
            - ``converged``: whether the tolerance asked for was reached; missing where there was none. Of
              "eigenvalues", also that none is missing between those found, see `Eigenpairs.converged`;
            - ``note``: what is not certain, in the words of `summary`; empty where there is nothing to say.

        Raises
        ------
        ImportError
            Where pandas is not installed.

        Examples
        --------
        >>> import hvpspec, numpy as np
        >>> frame = hvpspec.spectrum(np.diag([3.0, 1.0]), k=1).to_frame().set_index("quantity")
        >>> frame.loc[["lambda_1", "trace"], "value"].round(9).to_dict()
        {'lambda_1': 3.0, 'trace': 4.0}
        """
        frame: pandas.DataFrame = presented("to_frame", self)
        return frame


@dataclass(frozen=True)
class Progress:
    """What a callback is given while `hvpspec.spectrum` works.

    Attributes
    ----------
    stage : str
        What is being done.
    hvps : int
        Products made so far.
    expected : int or None
        Products that the whole run is expected to take, as far as that can be estimated. The first Progress comes
        before any product.
    spectrum : Spectrum
        What is known so far.
    """

    stage: str
    hvps: int
    expected: int | None
    spectrum: Spectrum = field(repr=False)
