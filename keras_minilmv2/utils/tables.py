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


def percent(share):
    """A share, times 100, with two decimals."""
    return f"{100 * share:.2f}"


def clock(seconds):
    """Seconds as `m:ss` or `h:mm:ss`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02}:{seconds:02}"
    return f"{minutes}:{seconds:02}"


def markdown_table(header, rows):
    """A Markdown table whose columns line up; numbers stand to the right.

    Args:
        header: list of str.
        rows: list of lists of str, as long as the header.
    """
    # A bar would end the cell.
    cells = [[str(cell).replace("|", "\\|") for cell in row] for row in [header, *rows]]
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
