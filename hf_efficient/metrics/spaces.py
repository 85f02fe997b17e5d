"""Each metric as a Space of `evaluate`'s kind: all of its files come from the templates here."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hf_efficient import __version__, metrics
from hf_efficient.files import write_text

APP = '''"""The metric {name}, to try out."""

from hf_efficient.metrics.page import LAUNCH_OPTIONS, page
from hf_efficient.space import LONGEST_QUEUE

demo = page("{name}")

if __name__ == "__main__":
    demo.queue(max_size=LONGEST_QUEUE).launch(**LAUNCH_OPTIONS)
'''
CARD = """---
title: {title}
emoji: 📏
colorFrom: blue
colorTo: gray
sdk: gradio
sdk_version: {gradio}
python_version: "3.11"
app_file: app.py
pinned: false
license: apache-2.0
short_description: A metric of hf_efficient, as a module of evaluate
suggested_hardware: cpu-basic
tags:
  - evaluate
  - metric
---

# {title}

```python
import evaluate  # pip install evaluate hf-efficient{extras}

metric = evaluate.load("{repo_id}", module_type="metric")
```

{told}
"""
EXTRAS = {"video_quality": ["video"]}  # metric -> extras of the package that it needs besides that of Spaces


def files_of(name: str, repo_id: str) -> dict[str, str]:
    """The files of a metric's Space: name -> text.

    Args:
        name: of `hf_efficient.metrics.NAMES`.
        repo_id: of the Space. Its name is that of the module: `evaluate` looks for NAME.py in it.

    Raises:
        ValueError: there is no such metric, or the Space has another name.
    """
    folder = Path(metrics.path(name))
    if repo_id.rpartition("/")[2] != name:
        raise ValueError(f"repo_id={repo_id!r}: evaluate looks for a module of the Space's name; expected .../{name}.")
    extras = EXTRAS.get(name, [])
    title = name.replace("_", " ").capitalize()
    told = metrics.Plain(name).description
    bound = f">={__version__}"
    return {
        f"{name}.py": (folder / f"{name}.py").read_text(encoding="utf-8"),
        "app.py": APP.format(name=name),
        "requirements.txt": f"hf-efficient[{','.join(['spaces', *extras])}]{bound}\nevaluate>=0.4.6\n",
        "README.md": CARD.format(
            title=title, gradio=version("gradio"), repo_id=repo_id, told=f"```\n{told}\n```",
            extras=f"[{','.join(extras)}]" if extras else "",
        ),
    }  # fmt: skip


def push_to_hub(name: str, repo_id: str, *, private: bool | None = None, token: bool | str | None = None) -> str:
    """Upload a metric as a Space, made if absent, in one commit.

    Args:
        name: as of `files_of`; so is the next.
        repo_id: see there.
        private: whether a Space that is made is private.
        token: of the Hub; None: that of `hf auth login`.

    Returns:
        The URL of the commit.

    Raises:
        ValueError: as `files_of`.
    """
    from huggingface_hub import HfApi

    files, api = files_of(name, repo_id), HfApi(token=token)
    api.create_repo(repo_id, repo_type="space", space_sdk="gradio", private=private, exist_ok=True)
    with TemporaryDirectory() as folder:
        for file, text in files.items():
            write_text(Path(folder, file), text)
        done: Any = api.upload_folder(
            repo_id=repo_id, repo_type="space", folder_path=folder, commit_message=f"The metric {name}"
        )
    return str(done.commit_url)
