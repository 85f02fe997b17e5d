"""Every relative link of every Markdown page leads to a file (and to a heading, where it names one)."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import hf_efficient

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, in GitHub's spelling."""
    headings = re.findall(r"^#+ +(.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path) -> list[str]:
    """Relative links of a page that lead nowhere."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    broken = []
    for link in LINK.findall(text):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page if not path else page.parent / path
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            broken.append(link)
    return broken


def test_links_lead_somewhere(repository: Path) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=repository,
        capture_output=True,
        text=True,
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    pages = [repository / name for name in listed.stdout.splitlines()]
    broken = {str(page.relative_to(repository)): links for page in pages if (links := broken_links(page))}
    assert pages
    assert not broken


def test_the_check_finds_a_broken_link(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A b!\n[ok](page.md#a-b) [ok](https://example.org/x) [bad](gone.md) [bad](#nowhere)\n")
    assert broken_links(page) == ["gone.md", "#nowhere"]


@pytest.mark.parametrize("page", ["id_pruner", "itg", "s2_sam", "zo_sam", "sam", "bidst", "stdo"])
def test_pages_lead_to_the_function_with_the_equation(page: str, repository: Path) -> None:
    (line,) = [t for t in (repository / f"docs/{page}.md").read_text().splitlines() if t.startswith("Equation in code")]
    named = re.findall(r"\(\.\./([\w/.]+)\), `(\w+)`", line)
    assert named
    for path, name in named:
        tree = ast.parse((repository / path).read_text())
        (function,) = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == name]
        body = [n for n in function.body if not (isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant))]
        assert (body[-1].end_lineno or 0) - body[0].lineno < 40
        assert ast.get_docstring(function)


@pytest.mark.parametrize("page", ["id_pruner", "itg", "bidst", "s2_sam", "zo_sam", "stdo"])
def test_a_method_has_a_picture_and_says_how_to_cite_it(page: str, repository: Path) -> None:
    text = (repository / f"docs/{page}.md").read_text(encoding="utf-8")
    (alt,) = re.findall(rf"!\[([^\]]+)\]\(pictures/{page}\.png\)", text.partition("Equation in code")[0])
    assert len(alt) > 40
    cited = text.partition("## Citation")[2]
    assert "```bibtex" in cited or "CITATION.cff" in cited


def test_pictures_are_drawn(repository: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "docs.draw", "s2_sam", "zo_sam", "--output", str(tmp_path)]
    subprocess.run(command, cwd=repository, check=True, capture_output=True)
    assert {path.name for path in tmp_path.iterdir()} == {"s2_sam.png", "zo_sam.png"}


def test_every_page_is_in_the_navigation_once(repository: Path) -> None:
    nav = (repository / "docs/mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    listed = re.findall(r": ([\w/.-]+\.md)$", nav, re.MULTILINE)
    pages = [str(p.relative_to(repository)) for f in ("docs/**/*.md", "model_cards/*.md") for p in repository.glob(f)]
    made = {f"docs/api/{room}.md" for room in ("representation", "optimization", "sparsity", "video", "budget")}
    assert len(listed) == len(set(listed))
    assert set(pages) | made <= set(listed)
    assert all((repository / page).is_file() for page in set(listed) - made)
    assert {module.split(".")[1] for module in hf_efficient._MODULE_OF.values()} == {Path(p).stem for p in made}


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(repository: Path) -> None:
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    done = subprocess.run([sys.executable, "-m", "docs.make_site"], cwd=repository, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    html = repository / "build/site/html"
    assert 'id="hf_efficient.optimization.arguments.SAMArguments"' in (html / "docs/api/optimization.html").read_text()
    assert (html / "docs/bidst.html").is_file()
