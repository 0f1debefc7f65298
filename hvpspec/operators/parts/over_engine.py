"""What an operator says of the engine that computes its products, and is told for it."""

from __future__ import annotations

from typing import Any

from hvpspec.operators.first_order import FirstOrder
from hvpspec.oracle import Chooser


class OverEngine(FirstOrder):
    """An operator whose products a `Chooser` computes."""

    _product: Chooser

    def state(self) -> dict[str, Any]:
        """How the next product would be computed, as far as measurements have decided that; JSON-ready."""
        return self._product.state()

    def resume(self, state: dict[str, Any]) -> None:
        """Goes on computing as an operator in another process would have, whose `state()` this is."""
        self._product.resume(state)

    def follow(self, known: list[dict[str, Any]] | None) -> None:
        """Begins a run whose products are computed in the forms that those of an earlier run had.

        Parameters
        ----------
        known : list of dict or None
            What `chosen` was at the end of that run; None to choose by measured times.
        """
        self._product.follow(known)

    @property
    def chosen(self) -> list[dict[str, Any]]:
        """The forms in which products were computed since `follow`, and from which on; JSON-ready."""
        return self._product.chosen

    def verified(self) -> None:
        """Says that products need not be verified before the first one: a preflight does that more thoroughly."""
        self._product.verified()

    def expect(self, products: int) -> None:
        """Announces how many products are about to be asked for, by which "auto" judges whether to change the engine.

        Parameters
        ----------
        products : int
            Number of HVPs to come.
        """
        self._product.expect(products)

    def expected_seconds(self, products: int) -> float:
        """The time that products are expected to take, judging by those already made.

        Parameters
        ----------
        products : int
            Number of HVPs.

        Returns
        -------
        float
            Seconds; NaN before the first product.
        """
        return self._product.expected_seconds(products)

    def expected_saved_bytes(self, products: int, taken: int) -> int:
        """The memory that activations still to be saved are expected to take.

        Parameters
        ----------
        products : int
            Number of HVPs to come.
        taken : int
            Bytes that one product takes now.

        Returns
        -------
        int
            Bytes beyond what is held now.
        """
        return self._product.expected_saved_bytes(products, taken)
