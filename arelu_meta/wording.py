"""Numbers in sentences."""


def counted(number: int, noun: str) -> str:
    """Say how many there are: `1 epoch`, `1,000 epochs`.

    Args:
        number: of them.
        noun: in the singular; its plural ends in s.
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
