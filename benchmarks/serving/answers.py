"""Answers of vLLM with the plug-in against those of transformers, by the same config: how many are equal.

Questions of the tiny VLM's evaluation set, one prompt each, greedy. transformers answers first, in an environment of
its own (`--reference-python`, with transformers >= 5.23), prompts of one length at a time; then vLLM, many at a time.
A config whose answers are there is not asked again. Where the two part, the lead is written down that transformers'
token has over its second best: next to nothing where rounding decides.
"""

import argparse
import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.harness.options import at_least_one, common_parser
from benchmarks.harness.results import Rows, read_json, record_run, write_json, write_table
from benchmarks.harness.tables import markdown
from benchmarks.serving.engines import close_engine, make_engine
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
    """By the name of the row; vLLM numbers the tokens of this model without gaps."""
    both = itertools.product(arguments.methods, arguments.budgets)
    return {f"{m} {k}": {"method": m, "budget": k, "positions": "compact"} for m, k in both}


def reference(arguments: argparse.Namespace, path: Path) -> None:
    """Write transformers' answers, as tokens, by config."""
    import torch

    from hf_efficient.representation.config import TokenPrunerConfig
    from hf_efficient.representation.evaluation.questions import encode_prompts, load_vlm
    from hf_efficient.representation.vlm.attach import token_pruner

    torch.set_num_threads(1)
    model, processor = load_vlm()
    known, rows = read_json(path, {}), asked(arguments.questions)
    alike = of_one_length(rows, processor.tokenizer)
    for name, values in configs(arguments).items():
        if len(known.get(name, [])) >= arguments.questions:
            continue
        found: dict[int, Any] = {}
        with token_pruner(model, processor, TokenPrunerConfig(**values)), torch.no_grad():
            for numbers in alike:
                inputs = encode_prompts(processor, [rows[i][0] for i in numbers], [rows[i][1] for i in numbers])
                out = model.generate(
                    **inputs, do_sample=False, max_new_tokens=LONGEST, output_logits=True, return_dict_in_generate=True
                )
                for row, i in enumerate(numbers):
                    tokens = bare(out.sequences[row, inputs["input_ids"].shape[1] :].tolist(), processor.tokenizer)
                    leads = [lead(step[row]) for step in out.logits[: len(tokens) + 1]]
                    found[i] = {"tokens": tokens, "leads": leads}
        known[name] = [found[i] for i in range(len(rows))]
        write_json(path, known)


def of_one_length(rows: list[tuple[Any, str, str]], tokenizer: Any) -> list[list[int]]:
    """Numbers of the questions, at most 32 of one length together: nothing is filled up."""
    lengths: dict[int, list[int]] = {}
    for i, (_, question, _) in enumerate(rows):
        lengths.setdefault(len(tokenizer(question)["input_ids"]), []).append(i)
    return [members[at : at + 32] for members in lengths.values() for at in range(0, len(members), 32)]


def lead(logits: Any) -> float:
    """By how much the best of logits (V,) is ahead of the second best."""
    first, second = logits.float().topk(2).values.tolist()
    return float(f"{first - second:.3g}")


def bare(tokens: list[int], tokenizer: Any) -> list[int]:
    """The tokens of an answer without its end and what fills a batch."""
    return [t for t in tokens if t not in (tokenizer.eos_token_id, tokenizer.pad_token_id)]


def ask(values: dict[str, Any], rows: list[tuple[Any, str, str]], batched: int) -> tuple[list[list[int]], list[str]]:
    """Tokens and words of vLLM's answers."""
    from vllm import SamplingParams

    llm = make_engine(TINY_VLM, values, max_model_len=512, max_num_seqs=32, max_num_batched_tokens=batched)
    requests = [{"prompt": f"<image> {q}", "multi_modal_data": {"image": image}} for image, q, _ in rows]
    outputs = llm.generate(requests, SamplingParams(temperature=0, max_tokens=LONGEST), use_tqdm=False)
    tokenizer = llm.get_tokenizer()
    close_engine(llm)
    tokens = [bare(list(one.outputs[0].token_ids), tokenizer) for one in outputs]
    return tokens, [" ".join(tokenizer.decode(t).split()) for t in tokens]


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
            parted = differences(tokens, expected[name][: len(tokens)])
            right = sum(a == answer for a, (_, _, answer) in zip(words, questions, strict=True))
            equal = len(tokens) - len(parted)
            rows.add(name, {**values, "equal": equal, "right": right, "of": len(tokens), "differences": parted})
            print(name, rows.rows[name], flush=True)
    write_table(arguments.output / "table.md", table(rows.rows))
    plot(rows.rows, arguments.output / "answers.png")


def differences(tokens: list[list[int]], expected: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The question's number and transformers' lead where answers part, of those that differ."""
    found = []
    for number, (got, known) in enumerate(zip(tokens, expected, strict=True)):
        if got != known["tokens"]:
            pairs = enumerate(itertools.zip_longest(got, known["tokens"]))
            parts = next(step for step, (one, other) in pairs if one != other)
            found.append({"question": number, "got": got, "expected": known["tokens"], "lead": known["leads"][parts]})
    return found


def table(rows: dict[str, dict[str, Any]]) -> str:
    """One line a method: answers equal of all, and right, at each budget."""
    budgets = sorted({row["budget"] for row in rows.values()}, reverse=True)
    methods = dict.fromkeys(row["method"] for row in rows.values())
    lines = []
    for method in methods:
        own = {row["budget"]: row for row in rows.values() if row["method"] == method}
        cells = [f"{own[k]['equal']} of {own[k]['of']}; {own[k]['right']}" if k in own else "–" for k in budgets]
        lines.append([method, *cells])
    return markdown(["answers equal; right", *(f"{k} tokens" for k in budgets)], lines)


def plot(rows: dict[str, dict[str, Any]], path: Path) -> None:
    """Right answers of vLLM by tokens kept, a line for each method."""
    from benchmarks.harness.plots import plt, save

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for number, method in enumerate(dict.fromkeys(row["method"] for row in rows.values())):
        own = sorted(
            (row["budget"], 100 * row["right"] / row["of"]) for row in rows.values() if row["method"] == method
        )
        style = {"linewidth": 2.5} if method in ("itg", "id_pruner") else {"linewidth": 1.0}
        axes.plot(*zip(*own, strict=True), marker="osv^"[number % 4], markersize=4, label=method, **style)
    axes.set(xlabel="visual tokens of 144", ylabel="right answers of vLLM, %", xscale="log")
    axes.legend(fontsize=7, ncols=2)
    save(figure, path)


if __name__ == "__main__":
    main()
