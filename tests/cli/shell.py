"""What a command that fails tells the shell."""

import pytest

from hf_efficient.cli import main


def error_of(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line on stderr of a command that fails with exit code 2."""
    capsys.readouterr()
    try:
        code: object = main([str(a) for a in arguments])
    except SystemExit as exit:  # argparse
        code = exit.code
    assert code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(lines) == 1
    return lines[0]
