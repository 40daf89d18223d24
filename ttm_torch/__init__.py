"""Token Turing Machines (arXiv 2211.09119) in PyTorch: the readable twin of `ttm_jax`.

The public names are those of `ttm_torch.names`, which is imported when the first of them is asked for: its commands
begin before PyTorch is imported.
"""

import importlib.util
from importlib import import_module
from typing import TYPE_CHECKING

from ttm_jax import __version__ as __version__

if importlib.util.find_spec("torch") is None:
    raise ModuleNotFoundError(  # by this name `python -m ttm_torch.train` says so in one line
        "PyTorch is not installed; pip install 'token-turing-machine[torch]' installs it", name=__name__
    )

if TYPE_CHECKING:
    from ttm_torch.names import *
else:

    def __getattr__(name):
        public = {key: value for key, value in vars(import_module("ttm_torch.names")).items() if key[0] != "_"}
        if name == "__all__":
            return sorted(public)
        if name not in public:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name)
        return globals().setdefault(name, public[name])

    def __dir__():
        return sorted({*globals(), *__getattr__("__all__")})
