"""`transformers serve`'s own server code, with models that come with their token pruner."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from hf_efficient.compat.transformers_serving import check_installed
from hf_efficient.representation.config import CONFIG_NAME, TokenPrunerConfig
from hf_efficient.representation.vlm.loading import load_token_pruned

check_installed()

from openai.types import CompletionUsage  # noqa: E402
from transformers import StoppingCriteriaList  # noqa: E402
from transformers.cli.serving.chat_completion import ChatCompletionHandler  # noqa: E402
from transformers.cli.serving.model_manager import ModelManager  # noqa: E402
from transformers.cli.serving.utils import GenerateManager, GenerationState  # noqa: E402

from .choice import is_there, no_pruner  # noqa: E402
from .meter import JOB, Meter  # noqa: E402
from .metrics import Metrics  # noqa: E402
from .prompts import Prompt  # noqa: E402
from .stopping import StopAt, cut  # noqa: E402


@dataclass(frozen=True)
class Source:
    """What is served.

    Args:
        model: folder or Hub id.
        config: of the pruner; None: the one saved beside the weights.
        name: by which clients ask for it.
        revision: of the Hub.
        device: "auto" or one of torch's names.
        dtype: of the weights, "auto" as they were saved.
        attention: implementation of transformers; None leaves it to the model.
    """

    model: str
    config: TokenPrunerConfig | None
    name: str
    revision: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    attention: str | None = None


class PrunedModels(ModelManager):
    """The model manager of `transformers serve` for one model, which comes with its token pruner and stays loaded.

    Args:
        source: what to load.

    Raises:
        ValueError, OSError: as `load_token_pruned`.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self.pair: tuple[Any, Any] | None = None
        super().__init__(
            device=source.device, dtype=source.dtype, attn_implementation=source.attention, force_model=source.model
        )

    def load_model_and_processor(
        self, model_id_and_revision: str, progress_callback: Any = None, tqdm_class: Any = None, gguf_file: Any = None
    ) -> tuple[Any, Any]:
        """The one pair, whatever is asked for; loaded when the manager is made."""
        if self.pair is None:
            kwargs = {"dtype": self.dtype, "device_map": self.device, "attn_implementation": self.attn_implementation}
            if self.source.revision is not None:
                kwargs["revision"] = self.source.revision
            try:
                model, processor = load_token_pruned(self.source.model, self.source.config, **kwargs)
            except OSError as error:
                missing = self.source.config is None and CONFIG_NAME in str(error)
                if missing and is_there(self.source.model, error, self.source.revision):
                    raise no_pruner(self.source.model) from error
                raise
            self.pair = model.eval(), processor
        return self.pair


class MeteredGeneration(GenerateManager):
    """The thread that generates, with a meter around what it does; the job is that of the calling task."""

    def __init__(self, meter: Meter) -> None:
        super().__init__()
        self.meter = meter

    def submit(self, fn: Any, *args: Any, **kwargs: Any) -> Any:
        """As of the stock class."""
        return super().submit(self.meter.run, JOB.get(), fn, *args, **kwargs)

    def async_submit(self, fn: Any, *args: Any, **kwargs: Any) -> Any:
        """As of the stock class."""
        return super().async_submit(self.meter.run, JOB.get(), fn, *args, **kwargs)


class PrunedChat(ChatCompletionHandler):
    """Answers prompts as `transformers serve` does: its generation, its responses, its stream.

    Args:
        models: the one that is loaded.
        metrics: that are counted up.
    """

    def __init__(self, models: PrunedModels, metrics: Metrics) -> None:
        super().__init__(models, GenerationState())
        assert models.pair is not None
        self.name = models.source.name
        self.model, self.processor = models.pair
        self.generation = MeteredGeneration(Meter(self.model, metrics))

    async def answer(self, prompt: Prompt, request_id: str) -> dict[str, Any]:
        """The whole completion, for the job of the context."""
        stops = prompt.settings.get("stop", ())
        response = await self._non_streaming(*self._call(prompt, request_id), gen_manager=self.generation)
        completion: dict[str, Any] = json.loads(response.body)
        choice = completion["choices"][0]
        choice["message"]["content"], stopped = cut(choice["message"]["content"], stops)
        if stopped:
            choice["finish_reason"] = "stop"
        return completion

    async def stream(self, prompt: Prompt, request_id: str) -> AsyncIterator[str]:
        """The events of a completion as it is made; with texts to stop at, which may come in pieces, in one event."""
        if "stop" not in prompt.settings:
            response = self._streaming(*self._call(prompt, request_id), gen_manager=self.generation)
            async for event in response.body_iterator:
                yield event
            return
        completion = await self.answer(prompt, request_id)
        choice = completion["choices"][0]
        usage = CompletionUsage(**completion["usage"])
        yield self._build_chunk_sse(request_id, role="assistant", model=self.name)
        yield self._build_chunk_sse(request_id, content=choice["message"]["content"], model=self.name)
        yield self._build_chunk_sse(request_id, finish_reason=choice["finish_reason"], model=self.name, usage=usage)

    def _call(self, prompt: Prompt, request_id: str) -> tuple[Any, ...]:
        """What both of transformers' methods take."""
        settings = {name: value for name, value in prompt.settings.items() if name != "stop"}
        config = self._build_generation_config(settings, self.model.generation_config)
        tokenizer, inputs = self.processor.tokenizer, prompt.inputs
        if "stop" in prompt.settings:
            criterion = StopAt(tokenizer, prompt.settings["stop"], prompt.tokens)
            inputs = {**inputs, "stopping_criteria": StoppingCriteriaList([criterion])}
        return request_id, self.model, tokenizer, self.name, inputs, config

    def _build_generation_config(self, body: dict[str, Any], model_generation_config: Any, use_cb: bool = False) -> Any:
        """As of the stock class; a temperature above 0 means that tokens are drawn, as clients expect."""
        config = super()._build_generation_config(body, model_generation_config, use_cb=use_cb)
        if body.get("temperature"):
            config.do_sample = True
        if not config.do_sample:  # what draws would only be warned of
            config.temperature = config.top_p = config.top_k = None
        return config
