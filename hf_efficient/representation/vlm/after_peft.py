"""Imported after PEFT, whenever that is: pruners attached before then are told of by the folders that it saves."""

import sys


def register() -> None:
    """Let PEFT save pruners, if any can be attached; else attaching one will see PEFT."""
    if "hf_efficient.representation.vlm.pruned_model" in sys.modules:
        from .wrapped import follow_peft

        follow_peft()


def unregister() -> None:
    """Undo `register`."""
    if "hf_efficient.representation.vlm.wrapped" in sys.modules:
        from .wrapped import unfollow_peft

        unfollow_peft()


register()
