"""The documentation as a site: `python -m docs.make_site` builds it, strictly, into build/site/html.

Pages link to tables, plots and modules of the whole repository, as GitHub shows them. So the pages and what they link
to are copied, where they stand, into build/site/pages; pages of the API are made of the table of public names; then
mkdocs builds from there and fails at any warning: a link that leads nowhere, or a heading that is gone.
"""

import re
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import hf_efficient

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "build/site/pages"
LINK = re.compile(r"\]\(([^)\s#]+)")


def linked(page: Path) -> set[Path]:
    """Files of the repository that a page links to."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    found = {(page.parent / link).resolve() for link in LINK.findall(text) if not re.match(r"[a-z]+:", link)}
    return {path for path in found if path.is_relative_to(ROOT)}


def wanted() -> set[Path]:
    """All pages, and what they link to, directly or through another page."""
    found: set[Path] = set()
    left = [ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("model_cards/*.md")]
    while left:
        path = left.pop()
        if path in found or not path.exists():
            continue
        found.add(path)
        if path.is_file() and path.suffix == ".md":
            left += linked(path)
    return found


def stage() -> None:
    """Copy the pages; a folder that is linked to gets a page with its files."""
    shutil.rmtree(PAGES, ignore_errors=True)
    for path in wanted():
        target = PAGES / path.relative_to(ROOT)
        if path.is_dir():
            if not (path / "README.md").exists():
                target.mkdir(parents=True, exist_ok=True)
                names = sorted(p.name for p in path.iterdir() if p.is_file())
                listed = "\n".join(f"- `{name}`" for name in names)
                (target / "index.md").write_text(f"# {path.relative_to(ROOT)}\n\n{listed}\n")
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".md":
            target.write_text(to_folders(path, path.read_text(encoding="utf-8")), encoding="utf-8")
        else:
            shutil.copyfile(path, target)
    api()


def to_folders(page: Path, text: str) -> str:
    """The text with links to folders leading to their pages, and those to files without a suffix as they are."""

    def index(found: re.Match[str]) -> str:
        path = (page.parent / found[1]).resolve()
        if re.match(r"[a-z]+:", found[1]) or not path.is_dir():
            return found[0]
        name = "README.md" if (path / "README.md").exists() else "index.md"
        return f"]({found[1].rstrip('/')}/{name}"

    return LINK.sub(index, text)


def api() -> None:
    """One page a budget, of the public names."""
    rooms: dict[str, list[str]] = defaultdict(list)
    for name, module in hf_efficient._MODULE_OF.items():
        rooms[module.split(".")[1]].append(f"{module}.{name}")
    (PAGES / "docs/api").mkdir(parents=True, exist_ok=True)
    for room, names in rooms.items():
        blocks = "\n\n".join(f"::: {name}" for name in names)
        (PAGES / f"docs/api/{room}.md").write_text(f"# `hf_efficient`: {room}\n\n{blocks}\n")


if __name__ == "__main__":
    stage()
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--config-file", "docs/mkdocs.yml"]
    sys.exit(subprocess.run(command, cwd=ROOT).returncode)
