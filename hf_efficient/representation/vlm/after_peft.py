"""Imported after PEFT, whenever that is: pruners attached before then are told of by the folders that it saves."""

import sys

if (
    "hf_efficient.representation.vlm.pruned_model" in sys.modules
):  # else nothing is attached, and attaching will see PEFT
    from .wrapped import follow_peft

    follow_peft()
