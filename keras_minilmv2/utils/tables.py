"""Numbers and tables as people read them."""


def count(number):
    """A number with three figures and K, M or G; below 1,000 as it is."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("K", 1e3)):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return str(number)


def megabytes(size):
    """Bytes in units of 10^6."""
    return f"{size / 1e6:.1f} MB"


def markdown_table(header, rows):
    """A Markdown table whose columns line up; numbers stand to the right.

    Args:
        header: list of str.
        rows: list of lists of str, as long as the header.
    """
    cells = [[str(cell) for cell in row] for row in [header, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    numeric = [
        bool(rows) and all(_is_number(row[i]) for row in cells[1:])
        for i in range(len(header))
    ]

    def line(row):
        padded = (
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(row, widths, numeric, strict=True)
        )
        return "| " + " | ".join(padded) + " |"

    rule = (
        "-" * (width - 1) + ":" if number else "-" * width
        for width, number in zip(widths, numeric, strict=True)
    )
    return "\n".join(
        [line(cells[0]), "| " + " | ".join(rule) + " |", *map(line, cells[1:])]
    )


def _is_number(cell):
    return cell[:1].isdigit() or cell[:1] == "-" or cell in ("", "not measured")
