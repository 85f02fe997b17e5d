"""`python -m tests.serving.vllm.mend_torchvision`: lets torchvision load beside a torch it was not built for.

pip takes torchvision's build for CUDA where an index has no other, and beside torch's build for CPUs its operators are
not there: importing it fails at "operator torchvision::nms does not exist". Image processors use none of them. Where
that happens, and only there, the one module that asks for them is left out in this environment.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

LINE = (
    'import sys, types; sys.modules.setdefault("torchvision._meta_registrations", '
    'types.ModuleType("torchvision._meta_registrations"))\n'
)


def loads() -> bool:
    return subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True).returncode == 0


if __name__ == "__main__":
    if not loads():
        Path(sysconfig.get_path("purelib"), "torchvision_without_operators.pth").write_text(LINE)
        # sound is not served, and these two, too, were built for another torch
        subprocess.run([sys.executable, "-m", "pip", "uninstall", "--quiet", "--yes", "torchaudio", "torchcodec"])
        if not loads():
            sys.exit("torchvision cannot be imported in this environment")
