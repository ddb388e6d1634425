"""Numbers as sentences have them."""


def counted(number: int, thing: str) -> str:
    """`1 product`, `2,000 products`."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"
