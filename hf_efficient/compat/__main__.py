"""`python -m hf_efficient.compat`: whether the installed libraries have the names that this package needs of them."""

import sys

from .names import report

text, all_found = report()
print(text)
sys.exit(not all_found)
