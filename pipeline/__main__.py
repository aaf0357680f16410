"""`python -m pipeline`: the same as `graftrt`."""

import sys

from pipeline.cli import main

sys.exit(main())
