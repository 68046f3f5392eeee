"""`python -m daguerre` is the command `daguerre`."""

import sys

from daguerre.cli.main import main

sys.exit(main())
