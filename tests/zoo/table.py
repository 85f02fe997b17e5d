"""Every image-text type of the installed transformers: pruned by a file, by what it proves, or refused and why.

`python -m tests.zoo.table > docs/model_types.md`, which `make pages` runs.
"""

import inspect
from collections import Counter
from typing import Any

import transformers as hf
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, MODEL_MAPPING_NAMES
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

from hf_efficient.methods import FAMILIES
from hf_efficient.representation.vlm.proof import RULES, Unproven, family_for
from tests.zoo import ZOO, stock

INTRODUCTION = """\
# Model types

All image-text types of transformers {version}, and whether `attach_token_pruner` prunes their pictures: {counts}; and \
their videos: {videos}.

- **file**: it has a family of its own, described in [families.md](families.md).
- **proven**: it has none, and a tiny random model with its real processor proved that it keeps the common rules. The \
pair you attach proves it again for its own class and config. Types marked "rows" have tokens of the text among those \
of an image, at the ends of its rows or between its cuts, which a pruned prompt leaves out.
- **refused**: it breaks a rule, which is named.
- **not tried**: by its signatures it keeps the rules, but the tests cannot build it, and why; attaching tries.
- **–**: it takes no videos.

Videos are proven apart from pictures: a pair whose videos break a rule prunes pictures all the same.

Importance is what `importance="auto"` stands for with methods that take attention: that of [CLS], that received, or \
`"distinct"` where neither can be had. Of videos of proven types it is `"distinct"`.

This page is written by `make pages`.

| type | pictures | videos | |
|---|---|---|---|
"""
STATES = ("file", "proven", "refused", "not tried")
#: what is said of classes that break a rule by their signatures
BROKEN = {
    "text": "a language model alone: it takes no pictures",
    "one": "head and base model are both in one",
    "base": "no base model under its head that takes pictures",
    "features": "the base model has no get_image_features",
    "pre-encoded": "the base model's forward takes no mm_encoder_outputs",
    "placeholders": "the processor writes no placeholders by replace_image_token",
    "pooler_output": "get_image_features leaves pooler_output empty",
}
#: what no signature says of types without a tiny model: why there is none, or the rule that they break
KNOWN = {
    "fuyu": ("refused", BROKEN["pooler_output"]),
    "gemma3n": ("not tried", "its encoder is one of timm's, which the tests do without"),
    "shieldgemma2": (
        "refused",
        "the processor writes prompts of its own, one for every policy, in place of those given",
    ),
}


def types() -> list[str]:
    """All image-text types, by name."""
    return sorted(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)


def row(name: str) -> tuple[str, str, str]:
    """What becomes of the pictures of a type and of its videos, and what more there is to say."""
    if name in FAMILIES.names:
        return "file", videos(name, "file"), FAMILIES.row(name).line
    if name in ZOO:
        try:
            family: Any = family_for(*stock(name))
        except Unproven as error:
            return "refused", videos(name, "refused"), f"{RULES[error.rule]}; but {error.found}"
        positions = "positions are kept" if family.mrope else "positions are compact or original"
        places = positions if family.one_run else "rows; positions are compact"
        breaks = ("line breaks",) if getattr(family.encoder, "breaks", False) else ()
        shown = videos(name, "proven" if "video" in family.modalities else "refused")
        whole = (f"videos: {family.whole}",) if shown == "refused" else ()
        apart = ("pictures and videos not in one prompt",) if shown == "proven" and family.apart else ()
        words = "; ".join((places, *breaks, f"importance: {importance(name, family)}", *apart, *whole))
        return "proven", shown, words
    if name in KNOWN:
        state, words = KNOWN[name]
        return state, videos(name, state), words
    broken = broken_rule(name)
    if broken is None:
        return "not tried", videos(name, "not tried"), "no tiny model of it is built in the tests"
    return "refused", videos(name, "refused"), BROKEN[broken]


def videos(name: str, state: str) -> str:
    """The state of a type's videos, if it takes any."""
    base = getattr(hf, str(MODEL_MAPPING_NAMES.get(name)), None)
    processor = getattr(hf, PROCESSOR_MAPPING_NAMES.get(name) or "", None)
    writes = hf.ProcessorMixin.replace_video_token
    takes = hasattr(base, "get_video_features") or getattr(processor, "replace_video_token", writes) is not writes
    return state if takes else "–"


def importance(name: str, family: Any) -> str:
    """What importance="auto" is of a proven type, with methods that take attention."""
    source = family.source(stock(name)[0].base_model, "image", "auto")
    return {"cls": "attention of [CLS]", "received": "attention received"}.get(source, "distinct")


def broken_rule(name: str) -> str | None:
    """The first rule that a type's classes break by their signatures alone."""
    head: Any = getattr(hf, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[name])
    if "image" not in head.input_modalities and head.__name__.endswith("ForCausalLM"):
        return "text"
    kind = name if name in MODEL_MAPPING_NAMES else head.config_class.model_type  # some use the model of another type
    base = getattr(hf, str(MODEL_MAPPING_NAMES.get(kind)), None)
    if base is head or not head.base_model_prefix:
        return "one"
    if base is None:
        return "base"
    if not hasattr(base, "get_image_features"):
        return "features"
    if "mm_encoder_outputs" not in inspect.signature(base.forward).parameters:
        return "pre-encoded"
    processor = getattr(hf, PROCESSOR_MAPPING_NAMES.get(name) or "", None)
    writes = hf.ProcessorMixin.replace_image_token
    if processor is not None and getattr(processor, "replace_image_token", writes) is writes:
        return "placeholders"
    return None


def line(name: str) -> str:
    """The row of a type, as Markdown."""
    return f"| `{name}` | {' | '.join(row(name))} |"


def page() -> str:
    """The whole page."""
    rows = {name: row(name) for name in types()}
    lines = [f"| `{name}` | {' | '.join(cells)} |" for name, cells in rows.items()]
    counts, shown = (counted([cells[i] for cells in rows.values()]) for i in (0, 1))
    return INTRODUCTION.format(version=hf.__version__, counts=counts, videos=shown) + "\n".join(lines) + "\n"


def counted(states: list[str]) -> str:
    """How many there are of every state."""
    found = Counter(states)
    return ", ".join(f"{found[state]} {state}" for state in STATES)


if __name__ == "__main__":
    print(page(), end="")
