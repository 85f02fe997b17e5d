"""`hf-efficient methods`: what there is to choose from. Imports no torch."""

import argparse

from hf_efficient.methods import KINDS
from hf_efficient.methods.pages import cards, facts, listing, paper_index

from .output import Content


def run(arguments: argparse.Namespace) -> Content:
    """Print the list of all methods, the card of one, or the paper index as Markdown.

    Raises:
        ValueError: there is no method of this name, or a name is given with `--paper-index`.
    """
    if arguments.paper_index and arguments.name:
        raise ValueError(f"paper_index=True prints all papers; leave {arguments.name!r} out.")
    if arguments.paper_index:
        print(paper_index(KINDS), end="")
    else:
        print(cards(KINDS, arguments.name) if arguments.name else listing(KINDS))
    chosen = [(kind, method) for kind in KINDS for method in kind.methods if arguments.name in (None, method.name)]
    return {
        "methods": [
            {"name": method.name, "budget": kind.budget, "line": method.line, **facts(kind, method)}
            for kind, method in chosen
        ]
    }
