"""``python -m weft``: the same as the ``weft`` command."""

import sys

from weft.runtime.cli import main

sys.exit(main())
