"""The page that shows a trace: one HTML file that loads nothing."""

import json
from importlib.resources import files
from typing import Any

from ttm_jax.multiplication.demo.problem import EXAMPLE


def page_html(memory_size: int, trace: dict[str, Any] | None = None) -> str:
    """Make the page with a trace (as `Trace.to_dict` gives it) in it; without one, it asks the server."""
    data = json.dumps({"memory_size": memory_size, "example": EXAMPLE, "trace": trace}, ensure_ascii=False)
    template = files("ttm_jax.multiplication.demo").joinpath("page.html").read_text(encoding="utf-8")
    return template.replace("__DATA__", data, 1)
