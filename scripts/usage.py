"""--help for scripts that take no options."""

from __future__ import annotations

import argparse


def only_help(doc: str | None) -> None:
    """Prints a script's docstring and exits where --help is given; any other argument is an error."""
    argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
