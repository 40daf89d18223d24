"""Token Turing Machines (arXiv 2211.09119) in JAX/Flax, trained on multiplication.

A name is imported when it is first asked for, from the module that `__init__.pyi` says: `import ttm_jax` costs nothing,
and what both twins use can be imported without JAX.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
