"""What stands below the options in the help of each command."""

import argparse
from collections.abc import Iterator

EXAMPLES = {
    "demo": (
        "hf-efficient demo",
        "hf-efficient demo --all",
        "hf-efficient demo --method divprune --budgets 64 32 0.1",
    ),
    "prune": ("hf-efficient prune llava-hf/llava-1.5-7b-hf pruned --budget 64 --method itg",),
    "serve": ("hf-efficient serve pruned", "hf-efficient serve llava-hf/llava-1.5-7b-hf --budget 64 --engine vllm"),
    "eval": ("hf-efficient eval llava-hf/llava-1.5-7b-hf --budget 64 --tasks pope,mme --output results/",),
    "report": ("hf-efficient report", "hf-efficient report llava-hf/llava-1.5-7b-hf --budget 64 --json numbers.json"),
    "plan": (
        "hf-efficient plan MODEL plan --limit prefill_flops=60% file_bytes=40MB --data validation/",
        "hf-efficient plan MODEL plan --limit file_bytes=30% --data lines.txt --json -",
        "hf-efficient plan MODEL plan --limit training_bytes=16GB step_seconds=2s --batch-size 4 --data train/",
    ),
    "apply": ("hf-efficient apply MODEL plan planned --data validation/",),
    "train": ("hf-efficient train MODEL plan trained --data train/ --steps 500 --learning-rate 1e-3",),
    "doctor": ("hf-efficient doctor", "hf-efficient doctor --json -"),
    "completion": ('eval "$(hf-efficient completion bash)"',),
    "stdo": ("hf-efficient stdo encode in.mp4 bundle/ --scale 2", "hf-efficient stdo decode bundle/ out.mp4"),
    "stdo encode": (
        "hf-efficient stdo encode in.mp4 bundle/ --scale 2",
        "hf-efficient stdo encode in.mp4 bundle/ --budget 1.5Mbps",
    ),
    "stdo decode": (
        "hf-efficient stdo decode bundle/ out.mp4",
        "hf-efficient stdo decode bundle/ out.mp4 --codec libx265 --quality 20",
    ),
    "stdo export": ("hf-efficient stdo export bundle/ site/ --format web",),
    "stdo info": ("hf-efficient stdo info bundle/", "hf-efficient stdo info bundle/ --json -"),
    "stdo evaluate": ("hf-efficient stdo evaluate bundle/ in.mp4 --output report/ --vmaf",),
    "stdo compare": ("hf-efficient stdo compare bundle/ in.mp4 --codecs libx265",),
    "methods": ("hf-efficient methods", "hf-efficient methods itg"),
    "env": ("hf-efficient env",),
}


def commands_of(parser: argparse.ArgumentParser, above: str = "") -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Every command below a parser with its own parser, and their actions: "stdo", "stdo encode"."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, below in action.choices.items():
                yield f"{above}{name}", below
                yield from commands_of(below, f"{above}{name} ")


def add_examples(parser: argparse.ArgumentParser) -> None:
    """Below the options of each command of a parser."""
    for name, command in commands_of(parser):
        command.formatter_class = argparse.RawDescriptionHelpFormatter
        command.epilog = "examples:\n" + "\n".join(f"  {line}" for line in EXAMPLES[name])
