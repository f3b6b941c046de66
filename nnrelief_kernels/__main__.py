"""python -m nnrelief_kernels is the nnrelief command."""

import sys

from .cli import main

sys.exit(main())
