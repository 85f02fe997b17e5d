"""The player in one file: the modules that it needs, as a zip archive that Python runs."""

from __future__ import annotations

import zipfile
from pathlib import Path

import hf_efficient
from hf_efficient.files import written_whole

# What the player imports, below the package; none of it imports torch. "*" is all modules of a folder.
PARTS = (
    "__init__", "checks", "extras", "reading", "compat/__init__", "compat/registration", "files/*", "methods/*",
    "video/__init__", "video/codecs", "video/geometry", "video/routing", "video/tiles", "video/networks/__init__",
    "video/networks/spec", "video/files/__init__", "video/files/color", "video/files/containers",
    "video/files/headers", "video/files/manifest", "video/files/outputs", "video/files/played", "video/files/reader",
    "video/files/remuxing", "video/files/side_data", "video/files/threads", "video/files/writer",
    "video/export/__init__", "video/export/folder", "video/export/player",
)  # fmt: skip
START = "from hf_efficient.video.export.player import main\n\nraise SystemExit(main())\n"
LONG_AGO = (1980, 1, 1, 0, 0, 0)  # the same modules make the same file


def write_archive(path: Path) -> None:
    """Write the player, `python player.pyz FOLDER out.mp4`, for onnxruntime, PyAV and numpy.

    Args:
        path: the new file; it is the same for every bundle.
    """
    package = Path(hf_efficient.__file__).parent
    sources = sorted(source for part in PARTS for source in package.glob(f"{part}.py"))
    with written_whole(path) as draft, zipfile.ZipFile(draft, "w", zipfile.ZIP_DEFLATED) as archive:
        for source in sources:
            name = source.relative_to(package.parent).as_posix()
            archive.writestr(zipfile.ZipInfo(name, LONG_AGO), source.read_bytes(), zipfile.ZIP_DEFLATED)
        archive.writestr(zipfile.ZipInfo("__main__.py", LONG_AGO), START)
