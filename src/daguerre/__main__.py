"""`python -m daguerre` is the command `daguerre`."""

import sys

from daguerre.apps.cli import main

sys.exit(main())
