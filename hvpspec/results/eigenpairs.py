"""Eigenpairs with their residuals, errors and brackets; and the small matrices from which they and others follow."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from hvpspec.entries import AtLeast, Count, NonFinite, Size
from hvpspec.presentation import presented
from hvpspec.results.codec import LEFT_OUT, Column, Stored
from hvpspec.results.estimate import Bracket, Rounding
from hvpspec.wording import abridged, counted


@dataclass(frozen=True, eq=False, repr=False)
class Eigenpairs(Stored):
    """Approximate eigenpairs (θ, v) of a symmetric matrix A.

    Attributes
    ----------
    values : ndarray of float64, shape (k,)
        The eigenvalues θ.
    vectors : ndarray, shape (n, k), or None
        Unit columns, in the operator's dtype; None in a callback and when read from a file.
    residuals : ndarray of float64, shape (k,)
        ‖A v − θ v‖₂.
    error : ndarray of float64, shape (k,)
        An eigenvalue lies within `error` of each value: ‖r‖²/gap where the value is shown to be isolated and single,
        the residual ‖r‖ elsewhere, and in both cases what rounding in the products adds.
    converged : bool
        Whether every residual is within the tolerance asked for, and no eigenvalue is missing in the gaps between those
        found (at 99 %). From `spectrum`, where it makes probes, also that no copy is missing: see `all_copies`.
    hvps : int
        Matrix-vector products that they cost.
    verified : bool
        Whether the residuals were measured with products of their own.
    largest, smallest : Bracket or None
        Of λ_max and λ_min over the whole spectrum, whichever eigenvalues were asked for.
    data_error : ndarray of float64, shape (k,), or None
        One standard error of each value as an estimate for the population that the data are a sample of; None where
        there are too few batches. `error` does not include it, nor does it include that a sample's λ_max is larger than
        the population's on average; `population` does.
    all_copies : bool
        Whether it is shown (at 99 %) that no copy of a multiple eigenvalue is missing among the values, nor one that
        is too close to be resolved: counted with multiplicity, these are the k asked for. The last of them may have
        further copies that k leaves out. One start vector alone cannot show that.
    rounding : Rounding or None
        The rounding error of float32 products, as measured; `error` includes it. None where it is not measured.
    reached : ndarray of bool, shape (k,), or None
        Whether the residual of each pair is within the tolerance asked for. Whether others are missing between those
        that are says `converged`.
    population : Bracket or None
        Of λ_max of the population that the data are a sample of, if the batches are a random sample of it.
    population_reason : str or None
        Why there is no such interval; None where there is one, and for an operator without data.
    shard : Shard or None
        Where ranks share the work: which rows of the `vectors` this one has; see `gather`.
    gaps : ndarray of float64, shape (k, 2), or None
        How far below and above each value it is shown that there is no eigenvalue but those at the value itself; 0
        where an eigenvalue may be next to it. None in a callback and when read from a file.
    at_rounding : ndarray of bool, shape (k,), or None
        Of the eigenvalues nearest to a point: whether rounding in the products is as large as the distance from it, so
        that nothing is known of its sign, nor of the order of such values. None for those at the ends.

    Examples
    --------
    >>> import hvpspec, numpy as np
    >>> found = hvpspec.eigsh(np.diag([5.0, 2.0, -1.0, 0.5]), k=2)
    >>> found.values.round(9), found.vectors.shape
    (array([5., 2.]), (4, 2))
    >>> round(found.lambda_min.value, 9)
    -1.0
    """

    values: Annotated[NDArray[np.float64], Column("eigenvalues", "value")]
    vectors: NDArray[np.floating[Any]] | None
    residuals: Annotated[NDArray[np.float64], Column("eigenvalues", "residual"), NonFinite(math.inf), AtLeast(0)]
    error: Annotated[NDArray[np.float64], Column("eigenvalues", "error"), NonFinite(math.inf), AtLeast(0)]
    converged: bool
    hvps: Count
    verified: bool = False
    largest: Bracket | None = None
    smallest: Bracket | None = None
    data_error: Annotated[
        NDArray[np.float64] | None, Column("eigenvalues", "data_error"), NonFinite(math.nan), AtLeast(0), LEFT_OUT
    ] = None
    all_copies: bool = False
    rounding: Rounding | None = None
    reached: Annotated[NDArray[np.bool_] | None, Column("eigenvalues", "converged"), LEFT_OUT] = None
    population: Annotated[Bracket | None, LEFT_OUT] = None
    population_reason: Annotated[str | None, LEFT_OUT] = None
    shard: Any = None
    gaps: NDArray[np.float64] | None = None
    at_rounding: NDArray[np.bool_] | None = None

    json_order: ClassVar = (
        "values", "error", "residuals", "data_error", "reached", "converged", "all_copies", "hvps", "verified",
        "largest", "smallest", "population", "population_reason",
    )  # fmt: skip

    def gather(self) -> Eigenpairs:
        """The same with whole vectors on every rank: to be called on all that share the work.

        Returns
        -------
        Eigenpairs
            With ``vectors`` of shape (n, k); the same ones where they are whole already. Receives n k numbers.
        """
        if self.shard is None or self.vectors is None:
            return self
        return replace(self, vectors=self.shard.whole_array(self.vectors), shard=None)

    @property
    def lambda_max(self) -> Bracket | None:
        """λ_max of the whole spectrum: another name of `largest`."""
        return self.largest

    @property
    def lambda_min(self) -> Bracket | None:
        """λ_min of the whole spectrum: another name of `smallest`."""
        return self.smallest

    def save(
        self, path: str | os.PathLike[str], parameters: Any = None, *, metadata: Mapping[str, str] | None = None
    ) -> Path:
        """Writes the eigenvectors to a safetensors file, or to a folder of torch.distributed.checkpoint.

        `hvpspec.load_eigenvectors` reads both. Where ranks share the work, it is to be called on all of them.

        Parameters
        ----------
        path : path
            A file, see `Diagonal.save`, for which the first rank needs whole vectors. Or a name without an ending, for
            a folder: each rank writes its own rows, and any number of them may read it. A folder there is replaced if
            this method has written it.
        parameters : ParameterSpace, optional
            See `Diagonal.save`; tensors have the shape (k, …), so that ``{name: tensor[i] for name, tensor in
            file.items()}`` is eigenvector i in the shape of the model's state dict. Without it, there is one tensor,
            "eigenvectors", of shape (k, n). A folder has the same tensors, which ``torch.distributed.checkpoint.load``
            reads as well.
        metadata : mapping of str to str, optional
            See `Diagonal.save`; eigenvalues, residuals and errors are there in any case, as lists in JSON. In a folder,
            the file hvpspec.json says this.

        Returns
        -------
        Path
            Of the file or the folder.

        Raises
        ------
        InputError
            As for `Diagonal.save`; and for a folder that is there and was not written by hvpspec.

        Examples
        --------
        >>> import hvpspec, numpy as np, tempfile
        >>> from pathlib import Path
        >>> from safetensors.numpy import load_file
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = hvpspec.eigsh(np.diag([2.0, 3.0, 1.0]), k=2).save(Path(folder) / "vectors.safetensors")
        ...     saved = load_file(path)
        >>> np.abs(saved["eigenvectors"]).round(9)
        array([[0., 1., 0.],
               [1., 0., 0.]])
        """
        written: Path = presented("save_eigenvectors", self, path, parameters, metadata=metadata)
        return written

    def __repr__(self) -> str:
        state = "converged" if self.converged else "not converged"
        if self.converged and not self.all_copies:
            state += ", further copies not excluded"
        if self.at_rounding is not None and self.at_rounding.any():
            state += f", {int(self.at_rounding.sum())} of them at the rounding of the products"
        lines = [f"<Eigenpairs: {counted(len(self.values), 'value')}, {state}, {counted(self.hvps, 'HVP')}"]
        for name in ("values", "error", "residuals", "data_error"):
            if (column := getattr(self, name)) is not None:
                lines.append(f"  {name:<11} {abridged(column.tolist())}")
        for name in ("lambda_max", "lambda_min"):
            if (bracket := getattr(self, name)) is not None:
                lines.append(f"  {name:<11} {bracket}")
        if self.population is not None:
            lines.append(f"  {'population':<11} λ_max {self.population}")
        if self.vectors is not None:
            lines.append(f"  {'vectors':<11} {self.vectors.dtype}, shape {self.vectors.shape}")
        return "\n".join(lines) + ">"


@dataclass(frozen=True, eq=False, repr=False)
class SmallMatrix(Stored):
    """The entries of a matrix that are not zero: `values[i]` is in row `rows[i]` and column `columns[i]`."""

    shape: tuple[Count, Count]
    rows: Annotated[NDArray[np.int64], AtLeast(0)]
    columns: Annotated[NDArray[np.int64], AtLeast(0)]
    values: NDArray[np.float64]

    @classmethod
    def of(cls, dense: NDArray[np.float64]) -> SmallMatrix:
        """From all entries."""
        rows, columns = np.nonzero(dense)
        return cls((dense.shape[0], dense.shape[1]), rows, columns, dense[rows, columns])

    def dense(self) -> NDArray[np.float64]:
        """All entries."""
        dense = np.zeros(self.shape)
        dense[self.rows, self.columns] = self.values
        return dense

    def contradiction(self) -> tuple[str, str] | None:
        """See `hvpspec.results.codec`."""
        if max(self.shape) > MOST_ROWS:
            return "shape", f"expected at most {MOST_ROWS:,} rows and columns"
        for name, index, size in (("rows", self.rows, self.shape[0]), ("columns", self.columns, self.shape[1])):
            if len(index) != len(self.values):
                return name, f"expected {len(self.values):,} entries, as many as there are values; got {len(index):,}"
            if (index >= size).any():
                return name, f"expected numbers below {size:,}"
        return None


@dataclass(frozen=True, eq=False, repr=False)
class Relation(Stored):
    """H Q = Q T + F Cᵀ, with a basis Q and further orthonormal vectors F: the small matrices.

    defects: lengths of the columns by which products have missed that. segments: where the basis was started from new
    random vectors, and from how many.
    """

    T: SmallMatrix
    C: SmallMatrix
    defects: Annotated[NDArray[np.float64], AtLeast(0)]
    segments: tuple[tuple[Count, Count], ...]

    def contradiction(self) -> tuple[str, str] | None:
        """See `hvpspec.results.codec`."""
        m = len(self.defects)
        if self.T.shape != (m, m) or self.C.shape[0] != m:
            return "T", f"expected matrices of {m:,} rows, as many as there are defects"
        starts = [first for first, _ in self.segments]
        if starts != sorted(starts) or starts[:1] != [0] or starts[-1] > m:
            return "segments", f"expected rising starts from 0 to {m:,}"
        return None


@dataclass(frozen=True, eq=False, repr=False)
class ProbeProducts(Stored):
    """Inner products of `count` probes w and their images y = H w, row by row: wᵀw, wᵀy and yᵀy.

    Both are orthogonal to the basis.
    """

    count: Count
    ww: NDArray[np.float64]
    wy: NDArray[np.float64]
    yy: NDArray[np.float64]

    def contradiction(self) -> tuple[str, str] | None:
        """See `hvpspec.results.codec`."""
        wrong = [name for name in ("ww", "wy", "yy") if len(getattr(self, name)) != self.count**2]
        return (wrong[0], f"expected {self.count**2:,} entries, the square of the count") if wrong else None


@dataclass(frozen=True, eq=False, repr=False)
class Lanczos(Stored):
    """The small matrices of a run, from which `hvpspec verify` computes its figures again.

    Attributes
    ----------
    relation : Relation
        That of the whole basis.
    of_start : Relation or None
        That before the first restart or added vector; None where there was none.
    probes : tuple of ProbeProducts, or None
        Those of the random probes; None where they are too many to keep.
    roundoff, last_roundoff : float
        The unit roundoff of the products, or what stands for it where they are less accurate: of those of the basis,
        and of all.
    share : float
        The random part of the start.
    zero_rows : int
        Rows of H that are exactly zero; basis and probes are zero there.
    rest : tuple of float
        Bounds on the eigenvalues that the basis does not contain.
    sampled_rounding : tuple of float
        What rounding adds to the sampled parts of trace and norm.
    start_growth : float or None
        By how much the start has grown when it was confined to the rows that were not zero in the first product. Some
        of these may have been zero by rounding alone, and do not count among `zero_rows`. None in files of older
        versions.
    """

    relation: Relation
    of_start: Relation | None
    probes: tuple[ProbeProducts, ...] | None
    roundoff: Size
    last_roundoff: Size
    share: Size
    zero_rows: Count
    rest: tuple[Annotated[float, NonFinite(-math.inf)], Annotated[float, NonFinite(math.inf)]]
    sampled_rounding: tuple[Size, Size] = (0.0, 0.0)
    start_growth: Annotated[Size | None, LEFT_OUT] = None


MOST_ROWS = 4_000  # of T in a file: to decompose a larger one takes minutes, and gigabytes
