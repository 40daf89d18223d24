"""Matplotlib, for all that draws figures."""

from typing import Any


def pyplot() -> Any:
    """Return matplotlib's pyplot, which draws into files alone; it is imported only where something is drawn."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
