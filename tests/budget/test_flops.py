"""Operations agree with counts by hand, and with what is published."""

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from hf_efficient import compress
from hf_efficient.budget.flops import count_flops, product_flops
from tests import tiny


def counted(model: nn.Module, *args: torch.Tensor, **kwargs: torch.Tensor) -> int:
    """Of a forward."""
    with torch.no_grad():
        return count_flops(lambda: model(*args, **kwargs), model).total


def block(n: int, d: int, inner: int, keys: int | None = None) -> int:
    """Two operations for each multiplication: queries, keys, values, output; scores and mixture; two layers inside."""
    keys = d if keys is None else keys
    return 2 * n * (2 * d * d + 2 * d * keys) + 2 * 2 * n * n * d + 2 * 2 * n * d * inner


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_vit_b_16(attention: str) -> None:
    with torch.device("meta"):
        model = ViTForImageClassification(ViTConfig(num_labels=1000, attn_implementation=attention)).eval()
        found = counted(model, torch.empty(1, 3, 224, 224))
    assert found == 2 * 196 * 768 * 3 * 16 * 16 + 12 * block(197, 768, 3072) + 2 * 768 * 1000
    assert found / 2 == pytest.approx(17.58e9, rel=0.01)  # multiplications, as published (Dosovitskiy et al., timm)


def test_resnet_50() -> None:
    with torch.device("meta"):
        found = counted(ResNetForImageClassification(ResNetConfig(num_labels=1000)).eval(), torch.empty(1, 3, 224, 224))
    assert found / 2 == pytest.approx(4.089e9, rel=0.01)  # torchvision's table of weights


def test_bert_base() -> None:
    with torch.device("meta"):
        model = BertModel(BertConfig()).eval()
        found = counted(model, torch.zeros(2, 128, dtype=torch.long))
    assert found == 2 * (12 * block(128, 768, 3072) + 2 * 768 * 768)  # two rows, and the pooler


def test_a_llama_with_fewer_heads_for_keys() -> None:
    config = LlamaConfig(hidden_size=256, intermediate_size=512, num_hidden_layers=3, num_attention_heads=8,
                         num_key_value_heads=2, vocab_size=1000)  # fmt: skip
    found = counted(LlamaForCausalLM(config).eval(), torch.zeros(1, 50, dtype=torch.long))
    gate = 2 * 50 * 256 * 512
    assert found == pytest.approx(3 * (block(50, 256, 512, keys=64) + gate) + 2 * 50 * 256 * 1000, rel=0.01)


def test_a_llava_with_fewer_tokens() -> None:
    """The decoder's share falls with its prompt; the encoder's stays."""
    model, processor = tiny.stock("llava")
    inputs = processor(**tiny.prompts("llava", [[0]]))
    with torch.no_grad():
        flops = count_flops(lambda: model(**inputs), model)
    text, vision = model.config.text_config, model.config.vision_config
    n, size = inputs["input_ids"].shape[1], (vision.image_size // vision.patch_size) ** 2 + 1
    d, inner = text.hidden_size, text.intermediate_size
    keys = text.num_key_value_heads * d // text.num_attention_heads
    decoder = text.num_hidden_layers * (block(n, d, inner, keys) + 2 * n * d * inner) + 2 * n * d * text.vocab_size
    here = sum(c for name, c in flops.own.items() if "language_model" in name or name == "lm_head")
    assert here == pytest.approx(decoder, rel=0.01)
    tower = sum(c for name, c in flops.own.items() if "vision_tower" in name)
    layers = vision.num_hidden_layers * block(size, vision.hidden_size, vision.intermediate_size)
    conv = 2 * (size - 1) * vision.hidden_size * 3 * vision.patch_size**2
    assert tower == pytest.approx(layers + conv, rel=0.01)
    assert flops.total == sum(flops.own.values())


def test_backward_is_twice_forward_but_for_the_first_input() -> None:
    model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 5))
    x = torch.randn(7, 20)
    flops = count_flops(lambda: model(x).sum().backward(), model)
    assert flops.own["0"] == 2 * (2 * 7 * 20 * 30)  # forward, and the weight's gradient
    assert flops.own["2"] == 3 * (2 * 7 * 30 * 5)
    assert flops.total == flops.own["0"] + flops.own["2"]


def test_backward_through_the_cpus_attention() -> None:
    q = torch.randn(1, 2, 9, 16, requires_grad=True)
    model = nn.Identity()
    attend = lambda: nn.functional.scaled_dot_product_attention(model(q), q, q)
    forward = count_flops(attend, model).total
    assert forward == 2 * (2 * 2 * 9 * 9 * 16)
    assert count_flops(lambda: attend().sum().backward(), model).total == pytest.approx(
        3.5 * forward
    )  # 5 products, not 2


def test_sparse_products_count_what_they_store() -> None:
    torch.manual_seed(0)
    weight = torch.randn(64, 48) * (torch.rand(64, 48) < 0.1)
    count = int(weight.count_nonzero())
    for matrix in (weight.to_sparse_csr(), weight.to_sparse_coo()):
        assert product_flops(matrix, torch.empty(48, 5)) == 2 * count * 5
        assert product_flops(torch.empty(5, 64), matrix) == 2 * count * 5
    layer = nn.Linear(48, 64)
    layer.weight.data.copy_(weight)
    model = compress(nn.Sequential(layer), backend="csr")
    assert counted(model, torch.randn(11, 48)) == 2 * count * 11


def test_grouped_products_count_each_token_once() -> None:
    ends = torch.tensor([3, 8], dtype=torch.int32)
    x, w = torch.randn(8, 16, dtype=torch.bfloat16), torch.randn(2, 16, 24, dtype=torch.bfloat16)
    model = nn.Identity()
    grouped = count_flops(lambda: nn.functional.grouped_mm(model(x), w, offs=ends), model).total
    assert grouped == 2 * 8 * 16 * 24


class Shared(nn.Module):
    """Calls a layer of a module inside by itself too."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(8, 8, bias=False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.inner(x) + self.inner[0](x)
        return out


def test_a_layer_that_others_call_than_the_module_that_holds_it() -> None:
    model = Shared()
    flops = count_flops(lambda: model(torch.ones(3, 8)), model)
    assert flops.own == {"inner.0": 2 * (2 * 3 * 8 * 8)}
    assert flops.total == 2 * (2 * 3 * 8 * 8)
