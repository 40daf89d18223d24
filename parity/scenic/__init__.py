"""Checks of this library against the original implementation, case by case: outputs and gradients.

A case is an `.npz` file computed with the unmodified Scenic modules (`projects/token_turing`):
`meta` (JSON: the original class and its constructor arguments), `params/...` and `grads/...` under the
original's parameter names, `in/...` and `out/...`. The gradients are those of sum(out * cot), where `in/cot_...`
has the cotangents.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
