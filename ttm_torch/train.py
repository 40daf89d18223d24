"""Training in PyTorch, with the loop, the data and the run folder of `ttm_jax.train`.

python -m ttm_torch.train                                      # the default config
python -m ttm_torch.train --config multiplication              # the checklist's sizes
python -m ttm_torch.train --workdir runs/default-torch --resume  # go on
"""

import sys

from ttm_jax.cli import door

main = door("ttm_torch.training.command")

if __name__ == "__main__":
    sys.exit(main())
