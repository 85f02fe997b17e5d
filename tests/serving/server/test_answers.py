"""What is served is what `attach_token_pruner` and `generate` give."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from hf_efficient import TokenPrunerConfig, attach_token_pruner, load_token_pruned
from hf_efficient.representation.evaluation.questions import Scene, load_evaluation_set, load_vlm
from hf_efficient.serving.app import Service
from hf_efficient.serving.engine import PrunedModels, Source
from hf_efficient.serving.limits import Limits
from tests.serving.server.conftest import BUDGET, tiny
from tests.serving.server.running import Client, answer, picture, running, words

SCENES = load_evaluation_set(limit=6)


class Reference:
    """The shipped model with a pruner, asked one prompt at a time."""

    def __init__(self, config: TokenPrunerConfig) -> None:
        self.model, self.processor = attach_token_pruner(*load_vlm(), config)

    def ask(self, scenes: list[Scene], question: str) -> tuple[str, int]:
        """The greedy answer, and the tokens of the prompt."""
        text = "<image> " * len(scenes) + question
        inputs = self.processor(images=[s.image for s in scenes], text=text, return_tensors="pt")
        length = inputs["input_ids"].shape[1]
        with torch.no_grad():
            ids = self.model.generate(**inputs, do_sample=False, max_new_tokens=8)
        return self.processor.decode(ids[0, length:], skip_special_tokens=True), length


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference(TokenPrunerConfig(budget=BUDGET))


def content(scenes: list[Scene], question: str) -> list[dict[str, Any]]:
    return [*(picture(scene.image) for scene in scenes), words(question)]


PROMPTS = [([scene], q.question) for scene in SCENES for q in scene.questions[:2]]
SEVERAL = [(SCENES[:2], "list all ."), (SCENES[2:5], SCENES[3].questions[0].question)]


@pytest.mark.parametrize("number", range(len(PROMPTS + SEVERAL)))
def test_answers_and_lengths_are_those_of_generate(client: Client, reference: Reference, number: int) -> None:
    scenes, question = (PROMPTS + SEVERAL)[number]
    reply = client.ask(content(scenes, question))
    assert (answer(reply), reply[1]["usage"]["prompt_tokens"]) == reference.ask(scenes, question)


def test_a_prompt_counts_kept_tokens(client: Client) -> None:
    """18 a picture and 4 of text ("list all . <sep>"), where the stock model has 144 a picture."""
    usage = client.ask(content(SCENES[:1], "list all ."))[1]["usage"]
    assert usage["prompt_tokens"] == BUDGET + 4
    assert client.ask("list all .")[1]["usage"]["prompt_tokens"] == 4


def test_a_stream_says_the_same(client: Client) -> None:
    for scenes, question in PROMPTS[:4] + SEVERAL:
        whole = client.ask(content(scenes, question))
        events = client.stream(content(scenes, question))
        text = "".join(event["choices"][0]["delta"].get("content", "") for event in events)
        assert text == answer(whole)
        assert events[0]["choices"][0]["delta"]["role"] == "assistant"
        assert events[-1]["choices"][0]["finish_reason"] == whole[1]["choices"][0]["finish_reason"]
        assert events[-1]["usage"] == whole[1]["usage"]


def test_clients_at_the_same_time_get_their_own_answers(client: Client, reference: Reference) -> None:
    prompts = (PROMPTS + SEVERAL) * 2
    with ThreadPoolExecutor(8) as pool:
        given = list(pool.map(lambda p: answer(client.ask(content(*p))), prompts))
    assert given == [reference.ask(*prompt)[0] for prompt in prompts]


def test_generated_tokens_are_served_too() -> None:
    config = TokenPrunerConfig("itg", budget=4)
    reference = Reference(config)
    with running(tiny(config)) as client:
        for prompt in PROMPTS[:4]:
            assert answer(client.ask(content(*prompt))) == reference.ask(*prompt)[0]


def test_an_adapter_is_served_with_its_base(tmp_path: Path) -> None:
    """LoRA over every attention of a pruned model, saved as PEFT saves it."""
    base = tmp_path / "base"
    model, processor = load_vlm()
    for part in attach_token_pruner(model, processor, TokenPrunerConfig(budget=BUDGET)):
        part.save_pretrained(base)
    model, processor = load_token_pruned(base)
    torch.manual_seed(0)
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    adapted.save_pretrained(str(tmp_path / "adapter"))
    inputs = processor(images=SCENES[0].image, text="<image> list all .", return_tensors="pt")
    ids = adapted.eval().generate(**inputs, do_sample=False, max_new_tokens=8)
    right = processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    source = Source(str(tmp_path / "adapter"), None, "tiny", device="cpu")
    with running(Service(PrunedModels(source), Limits())) as client:
        reply = client.ask(content(SCENES[:1], "list all ."))
        assert answer(reply) == right
        assert reply[1]["usage"]["prompt_tokens"] == BUDGET + 4
        assert client.metric("visual_tokens_kept_total") == BUDGET


def test_an_answer_ends_before_a_text_it_is_to_stop_at(client: Client) -> None:
    whole = answer(client.ask(content(SCENES[:1], "list all .")))
    first, second = whole.split()[:2]
    for stop in (second, [second, "never"], f" {second}"):
        reply = client.ask(content(SCENES[:1], "list all ."), stop=stop)
        assert answer(reply).strip() == first
        assert reply[1]["choices"][0]["finish_reason"] == "stop"
        events = client.stream(content(SCENES[:1], "list all ."), stop=stop)
        assert "".join(e["choices"][0]["delta"].get("content", "") for e in events) == answer(reply)


def test_an_answer_that_is_cut_says_so(client: Client) -> None:
    reply = client.ask(content(SCENES[:1], "list all ."), max_tokens=1)
    assert reply[1]["choices"][0]["finish_reason"] == "length"
    assert reply[1]["usage"]["completion_tokens"] == 1


def test_a_seed_draws_the_same_again(client: Client) -> None:
    def drawn(seed: int) -> str:
        return answer(client.ask(content(SCENES[:1], "list all ."), temperature=2.0, seed=seed))

    by_seed = [drawn(seed) for seed in range(6)]
    assert by_seed == [drawn(seed) for seed in range(6)]
    assert len(set(by_seed)) > 1


def test_what_is_counted(client: Client) -> None:
    names = ("visual_tokens_in_total", "visual_tokens_kept_total", "prefill_seconds_count", "kv_bytes_saved_total")
    before = [client.metric(name) for name in names]
    client.ask(content(SCENES[:2], "list all ."))
    client.ask("list all .")
    tokens, kept, prompts, saved = (client.metric(name) - b for name, b in zip(names, before))
    assert (tokens, kept, prompts) == (2 * 144, 2 * BUDGET, 2)
    model, _ = load_vlm()
    text = model.config.get_text_config()
    of_token = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * 4
    assert saved == 2 * (144 - BUDGET) * of_token
    assert client.metric("failures_total") == 0


def test_models_are_listed_with_their_pruner(client: Client) -> None:
    import json

    (model,) = json.loads(client.send("/v1/models")[1])["data"]
    assert model["id"] == "tiny"
    assert model["token_pruner"]["budget"] == BUDGET
    assert json.loads(client.send("/health")[1]) == {"status": "ok"}
