"""What commands write besides their tables."""

import json
import sys
from pathlib import Path
from typing import Any

from hf_efficient.files import write_text


def write_json(path: Path, content: Any) -> None:
    """To a file, or to standard output where it is called "-"."""
    text = json.dumps(content, indent=1) + "\n"
    if str(path) == "-":
        sys.stdout.write(text)
    else:
        write_text(path, text)
