"""Tables for the terminal and for Markdown."""
from collections.abc import Iterable, Sequence


def text_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table for the terminal: the first column to the left, the others to the right."""
    table = [list(header), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ['  '.join(cell.rjust(width) if i else cell.ljust(width)
                       for i, (cell, width) in enumerate(zip(row, widths, strict=True))) for row in table]
    return '\n'.join([lines[0], '─' * len(lines[0]), *lines[1:]])


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown: the first column to the left, the others to the right."""
    table = [[cell.replace('|', '\\|') for cell in row] for row in [header, *rows]]
    lines = [f'| {" | ".join(row)} |' for row in table]
    return '\n'.join([lines[0], '|:---|' + '---:|' * (len(header) - 1), *lines[1:]])
