"""`python -m hf_efficient.cli`, for a machine where the script is not on the path."""

import sys

from . import main

if __name__ == "__main__":
    sys.exit(main())
