"""Answers of vLLM with the plug-in against those of transformers, by the same config: how many are equal.

Questions of the tiny VLM's evaluation set, one prompt each, greedy. transformers answers first, in an environment of
its own (`--reference-python`, with transformers >= 5.23), one prompt at a time; then vLLM, many at a time. A config
whose answers are there is not asked again.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.harness.options import at_least_one, common_parser
from benchmarks.harness.results import Rows, read_json, record_run, write_json, write_table
from benchmarks.harness.tables import markdown
from benchmarks.serving.engines import make_engine
from hf_efficient.representation.evaluation.questions import TINY_VLM, load_evaluation_set

METHODS = (
    "id_pruner", "itg", "random", "uniform", "top_importance", "divprune", "cen_prune", "cdpruner", "idpruner_mmr",
    "id_selection", "vispruner", "holov", "scope", "dart", "spare", "v_cast", "feature_pooling", "visionzip",
    "prumerge", "tome", "restore",
)  # fmt: skip
LONGEST = 8


def parser() -> argparse.ArgumentParser:
    made = common_parser(__doc__, "serving/answers")
    made.add_argument("--questions", type=at_least_one, default=500, help="questions asked")
    made.add_argument("--methods", nargs="+", default=list(METHODS))
    made.add_argument("--budgets", nargs="+", type=int, default=[36, 9, 4], help="visual tokens of 144")
    made.add_argument("--batched-tokens", type=at_least_one, default=2048, help="of a step of vLLM; 16 cuts pictures")
    made.add_argument("--reference-python", default=sys.executable, help="interpreter with transformers >= 5.23")
    made.add_argument("--only-reference", type=Path, help=argparse.SUPPRESS)
    return made


def asked(count: int) -> list[tuple[Any, str, str]]:
    """Picture, question and right answer of the first so many questions."""
    rows = [(scene.image, q.question, q.answer) for scene in load_evaluation_set() for q in scene.questions]
    return rows[:count]


def configs(arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """By the name of the row."""
    return {f"{m} {k}": {"method": m, "budget": k} for m in arguments.methods for k in arguments.budgets}


def reference(arguments: argparse.Namespace, path: Path) -> None:
    """Write transformers' answers, as tokens, by config."""
    import torch

    from hf_efficient.representation.config import TokenPrunerConfig
    from hf_efficient.representation.evaluation.questions import encode_prompts, load_vlm
    from hf_efficient.representation.vlm.attach import token_pruner

    torch.set_num_threads(1)
    model, processor = load_vlm()
    known = read_json(path, {})
    for name, values in configs(arguments).items():
        if len(known.get(name, [])) >= arguments.questions:
            continue
        config, found = TokenPrunerConfig(**values, proportional_attention=False), []
        with token_pruner(model, processor, config), torch.no_grad():
            for image, question, _ in asked(arguments.questions):
                inputs = encode_prompts(processor, [image], [question])
                out = model.generate(**inputs, do_sample=False, max_new_tokens=LONGEST)
                found.append(bare(out[0, inputs["input_ids"].shape[1] :].tolist(), processor.tokenizer))
        known[name] = found
        write_json(path, known)


def bare(tokens: list[int], tokenizer: Any) -> list[int]:
    """The tokens of an answer without its end and what fills a batch."""
    return [t for t in tokens if t not in (tokenizer.eos_token_id, tokenizer.pad_token_id)]


def ask(values: dict[str, Any], rows: list[tuple[Any, str, str]], batched: int) -> tuple[list[list[int]], list[str]]:
    """Tokens and words of vLLM's answers."""
    from vllm import SamplingParams

    llm = make_engine(TINY_VLM, values, max_model_len=512, max_num_seqs=32, max_num_batched_tokens=batched)
    requests = [{"prompt": f"<image> {q}", "multi_modal_data": {"image": image}} for image, q, _ in rows]
    outputs = llm.generate(requests, SamplingParams(temperature=0, max_tokens=LONGEST), use_tqdm=False)
    tokens = [bare(list(one.outputs[0].token_ids), llm.get_tokenizer()) for one in outputs]
    return tokens, [" ".join(llm.get_tokenizer().decode(t).split()) for t in tokens]


def main() -> None:
    arguments = parser().parse_args()
    if arguments.only_reference is not None:
        reference(arguments, arguments.only_reference)
        return
    made = arguments.output / "transformers.json"
    made.parent.mkdir(parents=True, exist_ok=True)
    again = [w for w in sys.argv[1:] if not w.startswith("--only-reference")]
    command = [arguments.reference_python, "-m", "benchmarks.serving.answers", *again, "--only-reference", str(made)]
    subprocess.run(command, check=True)
    record_run(arguments.output)
    expected = json.loads(made.read_text())
    rows = Rows(arguments.output / "answers.json", arguments, ("questions", "batched_tokens"))
    questions = asked(arguments.questions)
    for name, values in configs(arguments).items():
        if name not in rows.rows:
            tokens, words = ask(values, questions, arguments.batched_tokens)
            equal = sum(a == b for a, b in zip(tokens, expected[name][: len(tokens)], strict=True))
            right = sum(a == answer for a, (_, _, answer) in zip(words, questions, strict=True))
            rows.add(name, {**values, "equal": equal, "right": right, "of": len(tokens)})
            print(name, rows.rows[name], flush=True)
    lines = [[r["method"], r["budget"], f"{r['equal']} of {r['of']}", r["right"]] for r in rows.rows.values()]
    write_table(arguments.output / "table.md", markdown(["method", "tokens", "answers equal", "right"], lines))


if __name__ == "__main__":
    main()
