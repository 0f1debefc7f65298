"""Pictures that are drawn and not rendered: to render them takes Matplotlib longer than a small run takes in all.

python unrendered.py spectrum ...        the command line with such pictures
"""

from unittest import mock


def outline(figure, stream, *, format, **_):
    """In place of Figure.savefig: an empty picture of its size."""
    width, height = 72 * figure.get_size_inches()
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}"><g id="figure_1"></g></svg>'
    stream.write(svg.encode() if format == "svg" else b"\x89PNG")


def unrendered():
    """While it lasts, pictures are empty files."""
    return mock.patch("matplotlib.figure.Figure.savefig", outline)


if __name__ == "__main__":
    from hvpspec.__main__ import main

    with unrendered():
        main()
