"""Calls from several threads on one attached model and processor: bit for bit what single calls give.

The stock model runs through the same harness: what it cannot do, nobody can ask of a pruned one.
"""

import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from transformers import TextIteratorStreamer

from hf_efficient import TokenPrunerConfig, remember_images
from hf_efficient.compat.transformers import cache_name, cache_of
from hf_efficient.representation.vlm.families import watch
from hf_efficient.representation.vlm.inputs import prune_inputs
from tests.tiny import FAMILIES, budget, generate, prompts, pruned, stock, video_prompts

Job = Callable[[], Any]
SHOWN = ([[0]], [[1]], [[2]], [[0], [1, 2]])  # images of different size, numbers of them, and batches


def same(found: Any, expected: Any) -> bool:
    """Whether two results are equal bit for bit: tensors, strings, numbers, and lists of them."""
    if isinstance(expected, torch.Tensor):
        return isinstance(found, torch.Tensor) and torch.equal(found, expected)
    if isinstance(expected, (list, tuple)):
        return len(found) == len(expected) and all(same(a, b) for a, b in zip(found, expected, strict=True))
    return bool(found == expected)


def faults(jobs: Sequence[Job], calls: int, threads: int = 4) -> tuple[int, int]:
    """Calls that raised, and that answered otherwise than alone, of `calls` in `threads` threads at once."""
    expected = [job() for job in jobs]
    raised, wrong = [], []
    gate = threading.Barrier(threads)

    def work(thread: int) -> None:
        gate.wait()
        for i in range(thread, calls, threads):
            which = (i * 7 + thread) % len(jobs)
            try:
                found = jobs[which]()
            except Exception as error:  # what the threads of a server would see
                raised.append(error)
                continue
            if not same(found, expected[which]):
                wrong.append(which)

    workers = [threading.Thread(target=work, args=(t,)) for t in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return len(raised), len(wrong)


def forward(model: Any, processor: Any, arguments: dict[str, Any]) -> Any:
    with torch.no_grad():
        return model(**processor(**arguments)).logits


def kept(model: Any) -> list[Any]:
    """What this thread's latest call kept; nothing of a stock model."""
    pruner = getattr(model.base_model, "token_pruner", None)
    return [] if pruner is None else [unit.indices for unit in pruner.last]


def told(model: Any, processor: Any, arguments: dict[str, Any]) -> Any:
    return forward(model, processor, arguments), kept(model)


def greedy(model: Any, processor: Any, arguments: dict[str, Any]) -> Any:
    return generate(model, processor(**arguments)), kept(model)


def beams(model: Any, processor: Any, arguments: dict[str, Any]) -> Any:
    return generate(model, processor(**arguments), num_beams=3, num_return_sequences=2, max_new_tokens=5)


def streamed(model: Any, processor: Any, arguments: dict[str, Any]) -> str:
    """The words as a server sends them, from a thread of its own."""
    inputs = processor(**arguments)
    if len(inputs["input_ids"]) > 1:
        return ""
    streamer = TextIteratorStreamer(processor.tokenizer, skip_prompt=True, timeout=5)
    thread = threading.Thread(target=generate, args=(model, inputs), kwargs={"streamer": streamer})
    thread.start()
    words = "".join(streamer)
    thread.join()
    return words


def without_cache(model: Any, processor: Any, arguments: dict[str, Any]) -> Any:
    return generate(model, processor(**arguments), use_cache=False)


def by_hand(model: Any, processor: Any, arguments: dict[str, Any]) -> Any:
    """A loop over forward with a cache; positions are the model's business."""
    inputs = processor(**arguments)
    found = []
    with torch.no_grad():
        output = model(**inputs, use_cache=True)
        for _ in range(3):
            token = output.logits[:, -1:].argmax(-1)
            found.append(output.logits[:, -1])
            output = model(input_ids=token, **{cache_name(): cache_of(output)}, use_cache=True)
    return found


def two_turns(model: Any, processor: Any, arguments: dict[str, Any]) -> Any:
    """A second question about the image in the cache."""
    inputs = processor(**arguments)
    settings = {"max_new_tokens": 3, "do_sample": False, "return_dict_in_generate": True}
    first = model.generate(**inputs, **settings)
    asked = torch.full((len(first.sequences), 3), 7)
    ids = torch.cat([first.sequences, asked], dim=1)
    mask = torch.cat([inputs["attention_mask"], torch.ones(len(ids), 6, dtype=torch.long)], dim=1)
    more = model.generate(input_ids=ids, attention_mask=mask, **{cache_name(): cache_of(first)}, **settings)
    return more.sequences


def sampled(model: Any, processor: Any, arguments: dict[str, Any]) -> Any:
    """Sampling draws from torch's one generator: which tokens is chance among threads, what they follow is not."""
    inputs = processor(**arguments)
    settings = {"do_sample": True, "max_new_tokens": 2, "output_logits": True, "return_dict_in_generate": True}
    return model.generate(**inputs, **settings).logits[0]


def assisted(model: Any, processor: Any, arguments: dict[str, Any]) -> Any:
    inputs = processor(**arguments)
    return inputs["input_ids"] if len(inputs["input_ids"]) > 1 else generate(model, inputs, prompt_lookup_num_tokens=2)


WAYS = (told, greedy, beams, streamed, without_cache, by_hand, two_turns, sampled, assisted)
UNSAFE_IN_STOCK = {  # rope_deltas of the Qwen families live on the stock module
    "qwen2_vl": (by_hand, two_turns),
    "qwen2_5_vl": (by_hand, two_turns),
    "qwen3_vl": (by_hand, two_turns),
}


def jobs_of(model: Any, processor: Any, name: str, ways: Any, shown: Any = SHOWN, videos: bool = True) -> list[Job]:
    """One job for every way and every prompt."""
    asked = [prompts(name, rows) for rows in shown]
    if FAMILIES[name].video and videos:
        asked.append(video_prompts(name, rows=1 if len(shown) < 3 else 2))
    return [functools.partial(way, model, processor, arguments) for way in ways for arguments in asked]


QUICK = [
    ("llava", {"method": "itg"}),
    ("qwen2_5_vl", {"question_weight": 0.5}),
    ("qwen3_vl", {"method": "itg"}),
    ("llava_onevision", {"positions": "original"}),
    ("qwen2_vl", {"budget": 1.0, "llm_layers": [1], "llm_budget": 5}),
]
SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"method": "itg"},
    {"question_weight": 0.5},
    {"positions": "original"},
    {"proportional_attention": True},
    {"method": "itg", "llm_layers": [1], "llm_budget": 0.5},
)


def attached(name: str, settings: dict[str, Any]) -> tuple[Any, Any]:
    return pruned(name, **{"budget": budget(name), **settings})


@pytest.mark.parametrize(("name", "settings"), QUICK)
def test_threads_get_what_single_calls_get(name, settings):
    model, processor = attached(name, settings)
    jobs = jobs_of(model, processor, name, WAYS, shown=([[0]], [[0], [1, 2]]), videos="qwen" in name)
    assert faults(jobs, calls=len(jobs)) == (0, 0)


@pytest.mark.slow
@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(map(str, s.values())) or "id_pruner")
@pytest.mark.parametrize("name", FAMILIES)
def test_threads_get_what_single_calls_get_in_every_family(name, settings):
    if settings.get("llm_layers") and name in ("gemma3", "qwen3_vl"):
        pytest.skip("layers of windows, or features between layers, which llm_layers refuses")
    plain, plain_processor = stock(name)
    ways = [way for way in WAYS if name != "paligemma" or way not in (by_hand, two_turns)]
    safe = [way for way in ways if way not in UNSAFE_IN_STOCK.get(name, ())]
    assert faults(jobs_of(plain, plain_processor, name, safe), calls=100) == (0, 0)
    model, processor = attached(name, settings)
    assert faults(jobs_of(model, processor, name, ways), calls=400) == (0, 0)


def adaptively(model: Any, processor: Any, arguments: dict[str, Any]) -> Any:
    """A stock model, and its inputs pruned by the function that keeps nothing on it."""
    config = TokenPrunerConfig(budget=4, adaptive=True)
    with torch.no_grad():
        inputs = prune_inputs(model, processor(**arguments), config)
        encoded = inputs["mm_encoder_outputs"]["image"].pooler_output
        return [encoded if isinstance(encoded, torch.Tensor) else torch.cat(list(encoded)), generate(model, inputs)]


@pytest.mark.parametrize(
    "name", [n if n == "qwen2_5_vl" else pytest.param(n, marks=pytest.mark.slow) for n in FAMILIES]
)
def test_inputs_are_pruned_by_several_threads_at_once(name):
    model, processor = stock(name)
    assert faults(jobs_of(model, processor, name, [adaptively], videos=False), calls=24) == (0, 0)
    assert not watch._WATCHED
    named = {str(m.config._attn_implementation) for m in model.modules() if hasattr(m, "config")}
    assert not any(name.startswith(watch.PREFIX) for name in named)


def test_threads_share_what_is_remembered_of_images():
    model, processor = attached("llava", {"method": "itg"})
    jobs = jobs_of(model, processor, "llava", [told, greedy])
    looks = []
    model.base_model.vision_tower.register_forward_hook(lambda *_: looks.append(1))
    with remember_images(model):
        assert faults(jobs, calls=48) == (0, 0)
    assert len(looks) == len(SHOWN)  # however many threads asked at once
    with remember_images(model, size=1):  # forgotten as fast as it is seen
        assert faults(jobs, calls=48) == (0, 0)


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize("method", ["id_pruner", "itg"])
def test_two_conversations_may_take_turns_in_one_thread(name, method):
    """Step by step, as a server that batches nothing: what is known of a prompt is found on its cache."""
    model, processor = attached(name, {"method": method, "positions": "original"})
    alone = [by_hand(model, processor, prompts(name, rows)) for rows in ([[0]], [[1, 2]])]
    with torch.no_grad():
        talks = [model(**processor(**prompts(name, rows)), use_cache=True) for rows in ([[0]], [[1, 2]])]
        for step in range(3):
            for i, talk in enumerate(talks):
                assert torch.equal(talk.logits[:, -1], alone[i][step])
                token = talk.logits[:, -1:].argmax(-1)
                talks[i] = model(input_ids=token, **{cache_name(): cache_of(talk)}, use_cache=True)


def test_what_was_kept_is_told_to_each_thread_of_its_own_calls():
    model, processor = attached("llava", {})
    pruner = model.base_model.token_pruner
    generate(model, processor(**prompts("llava", [[0]])))
    mine = pruner.last
    assert len(mine) == 1
    told = []

    def elsewhere() -> None:
        told.append(pruner.last)  # a thread that has called nothing is told of the latest call
        generate(model, processor(**prompts("llava", [[1, 2]])))
        told.append(pruner.last)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert told[0] is mine
    assert len(told[1]) == 2
    assert pruner.last is mine
