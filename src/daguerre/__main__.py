"""`python -m daguerre` runs the command `daguerre`."""

import sys

from daguerre.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
