"""lmms-eval's model `hf_efficient`: any supported vision-language model with its token pruner.

lmms-eval --model hf_efficient --model_args pretrained=llava-hf/llava-1.5-7b-hf,method=itg,budget=64 --tasks pope
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm
from transformers import StoppingCriteriaList

from hf_efficient.compat.lmms_eval import chat_of, logged, model_base, result_of
from hf_efficient.representation.evaluation.questions import on_device
from hf_efficient.representation.vlm.loading import load_token_pruned
from hf_efficient.wrapped import pruner_below, unwrapped

from .choice import chosen_config
from .stopping import StopAt, cut

if TYPE_CHECKING:
    Base = Any
else:
    Base = model_base()

NEW_TOKENS = 1024


class HfEfficient(Base):
    """A model of lmms-eval that answers chats with pictures and videos.

    Args:
        pretrained: folder or Hub id.
        batch_size: prompts that go through the model together.
        device: such as "cuda:0"; None: an accelerator if there is one. With several processes each has its own.
        dtype: of the weights, "auto" as they were saved.
        attn_implementation: of transformers; None leaves it to the model.
        revision: of the Hub.
        max_num_frames: frames that a processor takes of a video.
        system_prompt: put before every chat, or a file that holds it.
        max_batch_size: not read; lmms-eval names it to all models.
        pruner: settings of `TokenPrunerConfig` (`method`, `budget`, ...). They take the place of those saved with the
            model; `budget=1.0` keeps all tokens.

    Raises:
        ValueError: a setting is invalid, or does not suit the model.
        FileNotFoundError: no pruner is saved with the model, and none is given.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str,
        batch_size: int | str = 1,
        device: str | None = None,
        dtype: str = "auto",
        attn_implementation: str | None = None,
        revision: str | None = None,
        max_num_frames: int = 32,
        system_prompt: str | None = None,
        max_batch_size: int | None = None,
        **pruner: Any,
    ) -> None:
        super().__init__()
        from accelerate import Accelerator

        self.accelerator = Accelerator()
        if self.accelerator.num_processes > 1:
            self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
            device = str(self.accelerator.device)
        config = chosen_config(pretrained, {name: plain(value) for name, value in pruner.items()}, revision)
        kwargs = {"dtype": dtype, "attn_implementation": attn_implementation, "revision": revision}
        given = {name: value for name, value in kwargs.items() if value is not None}
        model, self.processor = load_token_pruned(pretrained, config, **given)
        self.model = model.eval().to(device or self.accelerator.device)
        self.batch_size, self.max_num_frames = int(batch_size), max_num_frames
        self.system_prompt = None if system_prompt is None else self._resolve_system_prompt(system_prompt)

    @property
    def device(self) -> Any:
        """Where the model is."""
        return unwrapped(self.model).device

    def loglikelihood(self, requests: Any) -> Any:
        """Not offered: tasks that need it are scored by likelihoods, not by answers."""
        raise NotImplementedError("hf_efficient answers tasks of type generate_until; this one needs likelihoods.")

    def generate_until_multi_round(self, requests: Any) -> Any:
        """Not offered."""
        raise NotImplementedError("hf_efficient answers tasks of type generate_until; this one has several rounds.")

    def generate_until(self, requests: Sequence[Any]) -> list[Any]:
        """An answer to each request, in their order."""
        answers: list[Any] = []
        count, tokens, kept, before, start = 0, 0, 0, 0, time.perf_counter()
        bar = tqdm(total=len(requests), disable=self.rank != 0, desc="hf_efficient")
        for batch in batches([request.args for request in requests], self.batch_size):
            chats = [self._messages(one) for one in batch]
            texts, lengths = self._answer(chats, batch[0][2])
            units = pruner_below(self.model).last if shows(chats) else []
            kept, before = kept + sum(len(u.indices) for u in units), before + sum(u.num_tokens for u in units)
            for one, text, length in zip(batch, texts, lengths, strict=True):
                answers.append(result_of(text, length))
                self.cache_hook.add_partial("generate_until", (one[0], one[2]), text)
            count, tokens = count + len(batch), tokens + sum(lengths)
            bar.update(len(batch))
        bar.close()
        logged(count, tokens, time.perf_counter() - start, visual_tokens_in=before, visual_tokens_kept=kept)
        return answers

    def _messages(self, request: Any) -> list[dict[str, Any]]:
        """The chat of a request, as chat templates take it, its pictures in RGB."""
        _, to_messages, _, number, task, split = request
        messages = to_messages(self.task_dict[task][split][number])
        if self.system_prompt is not None:
            messages = self._apply_system_prompt(messages, self.system_prompt)
        chat = chat_of(messages)
        for part in (part for message in chat for part in message["content"]):
            if part["type"] == "image" and hasattr(part["image"], "convert"):
                part["image"] = part["image"].convert("RGB")
        return chat

    def _answer(self, chats: list[list[dict[str, Any]]], settings: dict[str, Any]) -> tuple[list[str], list[int]]:
        """Texts, and tokens of each."""
        given: dict[str, Any] = {"padding": True, "padding_side": "left"}
        if shows(chats, ("video",)):
            given["num_frames"] = self.max_num_frames
        inputs = self.processor.apply_chat_template(
            chats,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs=given,
        )
        inputs, tokenizer = on_device(unwrapped(self.model), dict(inputs)), self.processor.tokenizer
        length, stops = inputs["input_ids"].shape[1], stops_of(settings)
        criteria = StoppingCriteriaList([StopAt(tokenizer, stops, length)] if stops else [])
        with torch.inference_mode():
            ids = self.model.generate(**inputs, **generation_settings(settings), stopping_criteria=criteria)
        made = ids[:, length:]
        texts = [cut(text, stops)[0] for text in tokenizer.batch_decode(made, skip_special_tokens=True)]
        return texts, (made != tokenizer.pad_token_id).sum(1).tolist()


def shows(chats: Sequence[Any], kinds: Sequence[str] = ("image", "video")) -> bool:
    """Whether a chat has a part of one of these kinds."""
    return any(part["type"] in kinds for chat in chats for message in chat for part in message["content"])


def batches(requests: Sequence[Any], size: int) -> Iterator[list[Any]]:
    """Requests in their order, at most so many together, of equal settings."""
    for _, alike in groupby(requests, key=lambda request: request[2]):
        several = list(alike)
        yield from (several[first : first + size] for first in range(0, len(several), size))


def stops_of(settings: dict[str, Any]) -> list[str]:
    """The texts that end an answer, of a task's `until`."""
    until = settings.get("until") or []
    return [text for text in ([until] if isinstance(until, str) else until) if text]


def generation_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """What `generate` takes of a task's settings: greedy unless a temperature is given."""
    made = {"max_new_tokens": settings.get("max_new_tokens") or NEW_TOKENS, "num_beams": settings.get("num_beams") or 1}
    if not settings.get("temperature"):
        return {**made, "do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    drawn = {name: settings[name] for name in ("temperature", "top_p", "top_k") if settings.get(name) is not None}
    return {**made, "do_sample": True, **drawn}


def plain(value: Any) -> Any:
    """A setting of `--model_args`, where a list is written as JSON, [2,9], and None as none."""
    if isinstance(value, str) and value.startswith("["):
        return json.loads(value)
    return None if value == "none" else value
