"""Training in JAX.

python -m ttm_jax.train                                  # two CPU cores, a few minutes
python -m ttm_jax.train --config multiplication          # the checklist's sizes
python -m ttm_jax.train --workdir runs/default --resume  # go on
python -m ttm_jax.train --init runs/default --workdir runs/more  # a new run from the parameters of another
python -m ttm_jax.train --devices 1                      # not divided between the cores, or GPUs
"""

import sys

from ttm_jax.cli import door

main = door("ttm_jax.training.jax_command")

if __name__ == "__main__":
    sys.exit(main())
