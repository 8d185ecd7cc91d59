"""How many heads a mixer has where nobody says."""


def heads_for(channels: int, size: int) -> int:
    """Return how many equal heads of at least `size` channels there can be; 1 if they are fewer."""
    most = min(channels // size, 4096)  # an absurd width is refused later, and soon
    return next((n for n in range(most, 1, -1) if channels % n == 0), 1)
