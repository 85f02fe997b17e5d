"""The tiny VLM: stock `LlavaForConditionalGeneration` and `LlavaProcessor`, made from scratch."""

from collections.abc import Sequence

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from transformers import (
    BaseImageProcessor,
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
)

from .questions import vocabulary
from .scenes import GARMENTS, GRID, IMAGE_SIDE, PATCH_SIDE, PLACES

IMAGE = "<image>"
#: Pixels are mapped from [0, 255] to [-1, 1].
PIXEL_MEAN = PIXEL_STD = 0.5
MAX_ITEMS = 7
CHAT_TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% elif part['type'] == 'text' %}{{ part['text'] }} {% endif %}"
    "{% endfor %}{% endfor %}"
)


def make_tokenizer(vocabulary: Sequence[str] = tuple(vocabulary())) -> PreTrainedTokenizerFast:
    """One token per word; a sequence starts with <s> and pads on the left, as generation needs."""
    words = ["<pad>", "<unk>", "<s>", "</s>", IMAGE, *vocabulary]
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", words.index("<s>"))])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>",
        additional_special_tokens=[IMAGE], padding_side="left", model_max_length=512,
    )  # fmt: skip


def make_processor(
    patch_side: int = PATCH_SIDE, mean: Sequence[float] = [PIXEL_MEAN] * 3, std: Sequence[float] = [PIXEL_STD] * 3
) -> LlavaProcessor:
    """Images to 12 x 12 patches of `patch_side`, questions to tokens, 144 placeholders for the visual tokens."""
    image = {"height": GRID * patch_side, "width": GRID * patch_side}
    image_processor = CLIPImageProcessor(
        size=image, do_center_crop=False, crop_size=image, image_mean=mean, image_std=std
    )
    return llava_processor(image_processor, make_tokenizer(), patch_side)


def llava_processor(
    image_processor: BaseImageProcessor, tokenizer: PreTrainedTokenizerFast, patch_side: int
) -> LlavaProcessor:
    """A processor for towers with a [CLS] token, which is not shown to the language model."""
    return LlavaProcessor(
        image_processor=image_processor, tokenizer=tokenizer, patch_size=patch_side,
        vision_feature_select_strategy="default", num_additional_image_tokens=1, chat_template=CHAT_TEMPLATE,
    )  # fmt: skip


def make_vision_config() -> CLIPVisionConfig:
    """A CLIP vision tower of 5 layers, 128 wide, with a [CLS] token."""
    return CLIPVisionConfig(
        hidden_size=128, intermediate_size=512, num_hidden_layers=5, num_attention_heads=4, projection_dim=128,
        image_size=IMAGE_SIDE, patch_size=PATCH_SIDE, hidden_act="gelu",
    )  # fmt: skip


def make_vlm(
    tokenizer: PreTrainedTokenizerFast, vision: PreTrainedConfig | None = None, layer: int = -1
) -> LlavaForConditionalGeneration:
    """The untrained VLM: tower, two-layer projector, and a Llama of 4 layers, 192 wide.

    Its tower is the tiny CLIP, or that of the config `vision`; its hidden states `layer` are what is projected.
    """
    sizes = {"hidden_size": 192, "intermediate_size": 512, "num_attention_heads": 6, "max_position_embeddings": 512}
    return llava(tokenizer, vision or make_vision_config(), layer, GRID * GRID, sizes)


def llava(
    tokenizer: PreTrainedTokenizerFast, vision: PreTrainedConfig, layer: int, tokens: int, sizes: dict[str, int]
) -> LlavaForConditionalGeneration:
    """An untrained LLaVA whose Llama has 4 layers.

    Args:
        tokenizer: of `make_tokenizer`.
        vision: config of the tower.
        layer: its hidden states that are projected.
        tokens: visual tokens of an image.
        sizes: of the Llama: `hidden_size`, `intermediate_size`, `num_attention_heads`, `max_position_embeddings`.
    """
    text = LlamaConfig(
        vocab_size=len(tokenizer), num_hidden_layers=4, num_key_value_heads=sizes["num_attention_heads"],
        tie_word_embeddings=False, pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, **sizes,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=tokens, vision_feature_layer=layer, vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )  # fmt: skip
    model = LlavaForConditionalGeneration(config)
    model.generation_config.max_new_tokens = 8
    return model


class PatchReader(nn.Module):
    """A vision tower that learns to say what each patch shows, and by its [CLS] token what the image holds.

    The heads are thrown away after pretraining. What they ask for is what the language model will look for: the
    kind of garment, its place, its size, and whether the patch is the middle of it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.tower = CLIPVisionModel(make_vision_config())
        width = self.tower.config.hidden_size
        self.kind = nn.Linear(width, len(GARMENTS) + 1)
        self.place = nn.Linear(width, len(PLACES))
        self.size_and_middle = nn.Linear(width, 2)
        self.numbers = nn.Linear(width, (len(GARMENTS) + 1) * (MAX_ITEMS + 1))

    def forward(
        self, pixel_values: Tensor, kind: Tensor, place: Tensor, size: Tensor, middle: Tensor, numbers: Tensor
    ) -> dict[str, Tensor]:
        """Cross-entropies of all heads.

        Args:
            pixel_values: (B, 3, 96, 96) float.
            kind: (B, 144) long, 0 for background, 1 to 6 for a garment.
            place: (B, 144) long, place of the garment shown, -100 for background.
            size: (B, 144) float, side of the garment shown over 32; 0 for background.
            middle: (B, 144) float, 1 where the patch is the middle of a garment.
            numbers: (B, 7) long, how many in all, then of each kind, at most `MAX_ITEMS`.

        Returns:
            `loss`, and `logits`: the kind of each patch, (B, 144, 7).
        """
        hidden = self.tower(pixel_values).last_hidden_state
        summary, patches = hidden[:, 0], hidden[:, 1:]
        kind_logits = self.kind(patches).float()
        size_logit, middle_logit = self.size_and_middle(patches).float().unbind(-1)
        garment = (kind > 0).float()
        losses = (
            nn.functional.cross_entropy(kind_logits.flatten(0, 1), kind.flatten()),
            nn.functional.cross_entropy(self.place(patches).float().flatten(0, 1), place.flatten(), ignore_index=-100),
            10 * ((size_logit - size) ** 2 * garment).sum() / garment.sum(),
            nn.functional.binary_cross_entropy_with_logits(middle_logit, middle),
            nn.functional.cross_entropy(self.numbers(summary).float().view(-1, MAX_ITEMS + 1), numbers.flatten()),
        )
        return {"loss": torch.stack(losses).sum(), "logits": kind_logits}
