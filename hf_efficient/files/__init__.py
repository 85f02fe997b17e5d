"""Files: found in a folder or on the Hub; written whole or not at all, together where they belong together.

Every writer of the package writes through here: nothing else opens a file for writing, renames or deletes. What the
writers get: a file or a folder appears whole or not at all, with the mode that the umask gives; a full disk is one
clear OSError; what a killed process left is removed by the next; one process at a time writes an output; nothing is
deleted or replaced that is not known to be ours. Importing it costs nothing.
"""

from .beside import folder_updated
from .contents import Contents, foreign
from .finding import find, is_local, repository
from .folders import (
    check_ours,
    delete_folder,
    folder_written_whole,
    is_vacant,
    recover,
    remove_drafts,
    replace_folder,
    scratch_folder,
    set_modes_and_sync,
)
from .locks import locked
from .names import is_draft
from .outputs import check_output, check_report, ffmpeg_url, require_space
from .whole import (
    NpyWriter,
    clear_errors,
    copy_file,
    full_disk,
    make_folder,
    remove_file,
    remove_leftovers,
    rename,
    write_bytes,
    write_text,
    written_whole,
)

__all__ = [
    "Contents",
    "NpyWriter",
    "check_ours",
    "check_output",
    "check_report",
    "clear_errors",
    "copy_file",
    "delete_folder",
    "ffmpeg_url",
    "find",
    "folder_updated",
    "folder_written_whole",
    "foreign",
    "full_disk",
    "is_draft",
    "is_local",
    "is_vacant",
    "locked",
    "make_folder",
    "recover",
    "remove_drafts",
    "remove_file",
    "remove_leftovers",
    "rename",
    "replace_folder",
    "repository",
    "require_space",
    "scratch_folder",
    "set_modes_and_sync",
    "write_bytes",
    "write_text",
    "written_whole",
]
