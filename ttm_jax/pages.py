"""The figures of README.md, docs/ and results/*.md, written from the files in results/ between the marks of each block.

python -m ttm_jax.pages           # in a checkout: writes them
python -m ttm_jax.pages --check   # exits 1 where one is not what results/ say
"""

import sys

from ttm_jax.cli import door

main = door("ttm_jax.measure.pages")

if __name__ == "__main__":
    sys.exit(main())
