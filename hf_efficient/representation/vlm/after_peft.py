"""Imported after PEFT, whenever that is: adapters on models with a pruner attached before then save its config, too."""

import sys


def register() -> None:
    """Let PEFT save pruners, if any can be attached; else attaching one will see PEFT."""
    if "hf_efficient.representation.vlm.pruned_model" in sys.modules:
        from hf_efficient.wrapped import follow_peft

        follow_peft()


def unregister() -> None:
    """Undo `register`."""
    if "hf_efficient.wrapped" in sys.modules:
        from hf_efficient.wrapped import unfollow_peft

        unfollow_peft()


register()
