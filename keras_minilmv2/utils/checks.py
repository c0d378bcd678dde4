"""Checks of arguments, each with one error sentence."""

import math


def check_int(least=1, below=None, **values):
    """Raises unless each value is an int in a range.

    Args:
        least: int. The lowest value that is accepted.
        below: int or None. Values must be below it.
        **values: int by name of the argument. bool is refused.

    Raises:
        TypeError: if a value is no int.
        ValueError: if it is out of the range.
    """
    limit = "" if below is None else f" and below {below:,}"
    rule = f"an int of at least {least:,}{limit}"
    for name, value in values.items():
        # NumPy's integers index as Python's do.
        if isinstance(value, bool) or not hasattr(value, "__index__"):
            raise TypeError(f"`{name}` must be {rule}. Received: {name}={value!r}.")
        if value < least or (below is not None and value >= below):
            raise ValueError(f"`{name}` must be {rule}. Received: {name}={value}.")


def check_number(least=-math.inf, most=math.inf, above=None, below=None, **values):
    """Raises unless each value is a finite number in a range.

    Args:
        least: float. The lowest value that is accepted.
        most: float. The highest value that is accepted.
        above: float or None. Values must be above it.
        below: float or None. Values must be below it.
        **values: float by name of the argument.

    Raises:
        TypeError: if a value is no number.
        ValueError: if it is not finite or out of the range.
    """
    limits = [
        f"{words} {limit:g}"
        for words, limit in (
            ("at least", least),
            ("above", above),
            ("at most", most),
            ("below", below),
        )
        if limit is not None and math.isfinite(limit)
    ]
    rule = " and ".join(["a finite number", *limits]).replace("number and", "number")
    for name, value in values.items():
        if isinstance(value, bool) or not hasattr(value, "__float__"):
            raise TypeError(f"`{name}` must be {rule}. Received: {name}={value!r}.")
        if (
            not math.isfinite(value)
            or not least <= value <= most
            or (above is not None and value <= above)
            or (below is not None and value >= below)
        ):
            raise ValueError(f"`{name}` must be {rule}. Received: {name}={value}.")


def check_choice(known, **values):
    """Raises unless each value is one of the known ones.

    Args:
        known: iterable of str.
        **values: str by name of the argument.

    Raises:
        ValueError: if one is not.
    """
    known = list(known)
    for name, value in values.items():
        if value not in known:
            raise ValueError(
                f"`{name}` must be one of {', '.join(known)}. "
                f"Received: {name}={value!r}."
            )
