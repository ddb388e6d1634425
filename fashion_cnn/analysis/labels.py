"""Names in figures."""


def as_label(name: str) -> str:
    """A class's or a file's name, so that Matplotlib draws it as it is: in two `$` it would see mathematics."""
    # A name that is no UTF-8 has bytes in it that are no letters.
    return name.encode(errors="backslashreplace").decode().replace("$", r"\$")
