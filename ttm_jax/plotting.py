"""Where figures come from."""

from typing import Any


def pyplot() -> Any:
    """Gives matplotlib's pyplot, which draws into files alone; imported only where something is drawn."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
