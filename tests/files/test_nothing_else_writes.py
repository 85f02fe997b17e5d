"""Every writer of the package and of the Spaces goes through `hf_efficient.files`."""

import ast
from pathlib import Path

import pytest

# Calls that write, rename or delete, by the name of the method or function.
CHANGES = {
    "write_text", "write_bytes", "unlink", "remove", "rename", "renames", "rmdir", "rmtree", "touch", "symlink_to",
    "hardlink_to", "link", "symlink", "truncate", "savefig", "save_file", "serialize_file", "open_memmap", "memmap",
    "savez", "savez_compressed", "savetxt", "tofile", "copy2", "copyfile", "copytree", "move", "make_archive",
    "save_pretrained", "to_json_file", "mkstemp", "mkdtemp", "NamedTemporaryFile", "chmod",
}  # fmt: skip
OF = {
    ("os", "replace"),
    ("os", "open"),
    ("np", "save"),
    ("torch", "save"),
    ("shutil", "copy"),
    ("shutil", "copyfileobj"),
}
OURS = {"write_text", "write_bytes", "rename"}  # as functions, they are those of `hf_efficient.files`
# In the block of one of these, a library is handed a draft.
DRAFTS = {"written_whole", "folder_written_whole", "folder_updated", "scratch_folder"}
# What only looks like it, with the reason.
ALLOWED = {
    ("hf_efficient/video/encode/overfit.py", "torch.save"),  # into memory
    ("hf_efficient/video/files/writer.py", "av.open"),  # the draft of a written_whole that lives as long as the writer
    ("hf_efficient/video/files/headers.py", "av.open"),  # into memory
    ("hf_efficient/cli/__init__.py", "os.open"),  # /dev/null
    ("hf_efficient/representation/vlm/attached.py", "save_pretrained"),  # the stock method, and the config beside it
    ("hf_efficient/representation/vlm/attached.py", "stock.save_pretrained"),
    ("hf_efficient/sparsity/tuner/config.py", "save_pretrained"),  # the stock method, and a section of the card
    ("hf_efficient/wrapped.py", "save_pretrained"),  # of a pruner's config, which is ours
    ("hf_efficient/sparsity/storage/checkpoint.py", "save_pretrained"),  # the same
    ("hf_efficient/budget/plan/folder.py", "save_pretrained"),  # the same
    ("hf_efficient/budget/training.py", "chosen.save_pretrained"),  # of a plan, which is ours
    ("hf_efficient/cli/plan.py", "save_pretrained"),  # the same
    ("spaces/planner/app.py", "save_pretrained"),  # the same
    ("hf_efficient/cli/apply.py", "plan.save_pretrained"),  # the same
    ("hf_efficient/reading.py", "open_memmap"),  # to read
}


def name_of(call: ast.Call) -> tuple[str, str]:
    """("np", "save") of `np.save(...)`, ("", "open") of `open(...)`."""
    function = call.func
    if isinstance(function, ast.Attribute):
        return (function.value.id if isinstance(function.value, ast.Name) else "", function.attr)
    return ("", function.id if isinstance(function, ast.Name) else "")


def writes(call: ast.Call) -> bool:
    owner, name = name_of(call)
    if name in ("open", "fdopen") and (owner, name) != ("os", "open"):
        strings = [a.value for a in (*call.args, *(k.value for k in call.keywords)) if isinstance(a, ast.Constant)]
        return any(isinstance(s, str) and len(s) <= 3 and set(s) & set("wax+") for s in strings)
    if name == "remove" and owner != "os":
        return False  # of a list
    if isinstance(call.func, ast.Name) and name in OURS:
        return False
    return (owner, name) in OF or name in CHANGES


def found(path: Path, root: Path) -> list[str]:
    """What a file does by itself."""
    relative, said = path.relative_to(root).as_posix(), []

    def visit(node: ast.AST, drafted: bool) -> None:
        if isinstance(node, ast.With):
            drafted |= any(
                isinstance(call, ast.Call) and name_of(call)[1] in DRAFTS
                for item in node.items
                for call in ast.walk(item.context_expr)
            )
        if isinstance(node, ast.Call) and not drafted and writes(node):
            name = ".".join(filter(None, name_of(node)))
            if (relative, name) not in ALLOWED:
                said.append(f"{relative}:{node.lineno}: {name}")
        for child in ast.iter_child_nodes(node):
            visit(child, drafted)

    visit(ast.parse(path.read_text(encoding="utf-8")), False)
    return said


def test_nothing_else_writes(repository: Path) -> None:
    paths = [*(repository / "hf_efficient").rglob("*.py"), *(repository / "spaces").rglob("*.py")]
    ours = [p for p in paths if "build" not in p.parts and (repository / "hf_efficient" / "files") not in p.parents]
    assert len(ours) > 100
    assert [line for path in ours for line in found(path, repository)] == []


@pytest.mark.parametrize(
    "text",
    ["open(p, 'w')", "path.open('ab')", "os.replace(a, b)", "p.write_text('')", "p.unlink()", "np.save(p, a)",
     "shutil.rmtree(p)", "model.save_pretrained(p)", "av.open(p, mode='w')", "os.remove(p)", "figure.savefig(p)"],
)  # fmt: skip
def test_the_test_sees_what_writes(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.py").write_text(text)
    assert len(found(tmp_path / "a.py", tmp_path)) == 1
    (tmp_path / "a.py").write_text(f"with written_whole(p) as draft:\n    {text}")
    assert not found(tmp_path / "a.py", tmp_path)
    (tmp_path / "a.py").write_text("with open(p) as f, path.open() as g, open(p, 'rb') as h: names.remove(1)")
    assert not found(tmp_path / "a.py", tmp_path)
