"""`python -m toolkit`, so that torchrun can start the command line."""

import sys

from toolkit.cli import main

if __name__ == "__main__":
    sys.exit(main())
