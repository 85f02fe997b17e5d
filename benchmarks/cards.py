"""Cards of the methods, and results in the cards of shipped models: `make numbers` writes them, `--check` compares.

A method's card is made of `benchmarks/card_texts.py` and of result files: its metadata hold `EvalResult`s, its table
the same figures with the place each comes from (`benchmarks/numbers.py`).
"""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from benchmarks.card_texts import CARDS, DATA, FOLDER, MODELS, SHIPPED, Result
from benchmarks.numbers import ROOT
from hf_efficient.files import write_text

#: Where the figures of a table come from, which says nothing where results are not shipped.
PLACES = re.compile(r"^<!-- numbers: .*?-->\n", re.MULTILINE | re.DOTALL)
TEXT = """{text}

![What it does, in a picture](../docs/pictures/{name}.png)

{caption}.

```python
{load}
```

## Measured

One row is one configuration; {terms}. By `{command}`:

| | |
|---|---|
{rows}

## Limits

{limits}

## More

[How it works, settings, all figures, citation](../docs/{page}) · installation: `pip install hf_efficient`, from its \
repository until it is on an index.
"""


def caption(name: str, page: str) -> str:
    """What a method's picture shows, as its page says it."""
    (found,) = re.findall(
        rf"^!\[(.*)\]\(pictures/{name}\.png\)$", (ROOT / "docs" / page).read_text("utf-8"), re.MULTILINE
    )
    return str(found)


def method_card(name: str) -> str:
    """The card of a method."""
    card = CARDS[name]
    data = ModelCardData(
        library_name="hf_efficient", license="apache-2.0", tags=["hf_efficient", name.replace("_", "-"), *card.tags],
        model_name=card.title.partition(":")[0], eval_results=[result.evaluation for result in card.results],
    )  # fmt: skip
    rows = "\n".join(f"| {DATA[r.data][1]}: {r.what} | {r.link} |" for r in card.results)
    text = TEXT.format(
        text=card.text,
        name=name,
        caption=caption(name, card.page),
        load=card.load,
        terms=card.terms,
        command=card.command,
        rows=rows,
        limits=card.limits,
        page=card.page,
    )
    return f"---\n{data.to_yaml().strip()}\n---\n\n# {card.title}\n\n{text}"


def with_results(path: Path, name: str, results: Sequence[Result]) -> str:
    """The card of a shipped model with its results in the metadata; the rest as it is."""
    text = path.read_text(encoding="utf-8")
    card: Any = ModelCard(text, ignore_metadata_errors=False)
    card.data.model_name, card.data.eval_results = name, [result.evaluation for result in results]
    return f"---\n{card.data.to_yaml().strip()}\n---\n{text.split('---', 2)[2].removeprefix(chr(10))}"


def cards() -> dict[Path, str]:
    """Path -> text of all cards that are written here."""
    found = {FOLDER / f"{name}.md": method_card(name) for name in CARDS}
    found |= {ROOT / path: with_results(ROOT / path, *about) for path, about in MODELS.items()}
    return found | {ROOT / path: PLACES.sub("", found[ROOT / card]) for path, card in SHIPPED.items()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cards", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; fail where a card differs")
    check = parser.parse_args().check
    differ = {p: text for p, text in cards().items() if not p.exists() or p.read_text("utf-8") != text}
    for path, text in differ.items():
        print(path.relative_to(ROOT))
        if not check:
            write_text(path, text)
    if check and differ:
        raise SystemExit("These cards differ from what they are made of: run `make numbers`.")


if __name__ == "__main__":
    main()
