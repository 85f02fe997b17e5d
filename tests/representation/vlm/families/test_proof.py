"""Pairs that must be refused: each is made of one that is proven by one thing gone wrong."""

import pickle

import pytest
import torch
import transformers as hf

from hf_efficient import TokenPrunerConfig, attach_token_pruner, prune_inputs
from hf_efficient.representation.vlm import proof
from hf_efficient.representation.vlm.proof import Unproven, prove
from hf_efficient.representation.vlm.proof.samples import picture
from hf_efficient.representation.vlm.pruned_model import PrunedBase
from tests.tiny import stock as tiny_stock
from tests.zoo import stock
from tests.zoo.sabotage import sabotaged


def of_features(change):
    """A feature function whose features are changed."""

    def changed(self, cls, *args, **kwargs):
        output = cls.get_image_features(self, *args, **kwargs)
        output.pooler_output = change(output.pooler_output)
        return output

    return changed


def merged(change):
    """A forward that changes the features between the feature function and the placeholders."""

    def forward(self, cls, *args, **kwargs):
        given = kwargs.get("mm_encoder_outputs")
        if kwargs.get("pixel_values") is not None:
            given = {"image": self.get_image_features(kwargs.pop("pixel_values"), return_dict=True)}
        if given:
            one = type(given["image"])(**given["image"])
            one.pooler_output = change(one.pooler_output, one)
            kwargs["mm_encoder_outputs"] = {"image": one}
        return cls.forward(self, *args, **kwargs)

    return forward


def refused(pair):
    with pytest.raises(Unproven) as error:
        prove(*pair)
    return error.value.rule


def test_the_pair_is_proven_as_it_is():
    prove(*stock("deepseek_vl"))
    same = sabotaged("deepseek_vl", forward=merged(lambda x, _: x), get_image_features=of_features(lambda x: x))
    prove(*same)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (lambda x, _: x * 2, "order"),  # scaled
        (lambda x, _: x.flip(1), "order"),  # in another order than the placeholders
        (lambda x, _: x.roll(1, 1), "order"),
        (lambda x, _: x + x.mean(1, keepdim=True), "order"),  # each holds something of all
        (lambda x, _: x + 1, "order"),  # something is added that is not the placeholder's own
        (lambda x, one: x + one.last_hidden_state.square().mean(), "order"),  # a second way in, by the placeholders
    ],
)
def test_features_that_are_changed_on_their_way_are_refused(change, rule):
    assert refused(sabotaged("deepseek_vl", forward=merged(change))) == rule


def test_features_added_to_placeholders_in_another_order_are_refused():
    def forward(self, cls, *args, **kwargs):
        given = kwargs.get("mm_encoder_outputs")
        if kwargs.get("pixel_values") is not None:
            names = ("pixel_values", "image_token_pooling", "image_grids")
            given = {"image": self.get_image_features(*(kwargs.pop(name) for name in names))}
        if given:
            one = type(given["image"])(**given["image"])
            one.pooler_output = [piece.flip(0) for piece in one.pooler_output]
            kwargs["mm_encoder_outputs"] = {"image": one}
        return cls.forward(self, *args, **kwargs)

    prove(*stock("molmo2"))
    assert refused(sabotaged("molmo2", forward=forward)) == "order"


def test_pictures_in_another_order_than_in_the_prompt_are_refused():
    pair = sabotaged("deepseek_vl", get_image_features=of_features(lambda x: x.flip(0)))
    assert refused(pair) == "batch"


def test_pictures_that_change_each_others_features_are_refused():
    pair = sabotaged("deepseek_vl", get_image_features=of_features(lambda x: x - x.mean(0) * (len(x) > 1)))
    assert refused(pair) == "batch"


def test_fewer_features_than_placeholders_are_refused():
    pair = sabotaged("deepseek_vl", get_image_features=of_features(lambda x: x[:, 1:]))
    assert refused(pair) in ("runs", "counts")  # most stock models raise by themselves


def test_a_way_around_the_language_model_is_refused():
    def forward(self, cls, *args, **kwargs):
        given = kwargs.get("mm_encoder_outputs")
        if kwargs.get("pixel_values") is not None:
            given = {"image": self.get_image_features(kwargs.pop("pixel_values"), return_dict=True)}
            kwargs["mm_encoder_outputs"] = given
        output = cls.forward(self, *args, **kwargs)
        if given:
            output["last_hidden_state"] = output["last_hidden_state"] + given["image"].last_hidden_state.mean()
        return output

    assert refused(sabotaged("deepseek_vl", forward=forward)) == "one way"


def test_features_that_differ_when_encoded_before_are_refused():
    def forward(self, cls, *args, **kwargs):
        if kwargs.get("mm_encoder_outputs"):
            one = kwargs["mm_encoder_outputs"]["image"]
            kwargs["mm_encoder_outputs"] = {"image": type(one)(**{**one, "pooler_output": one.pooler_output + 1})}
        return cls.forward(self, *args, **kwargs)

    assert refused(sabotaged("deepseek_vl", forward=forward)) == "same bits"


def test_a_level_in_another_order_is_refused():
    def features(self, cls, *args, **kwargs):
        output = cls.get_image_features(self, *args, **kwargs)
        output.deepstack_features = [level[1:] for level in output.deepstack_features]
        return output

    assert refused(sabotaged("qwen3_vl_moe", get_image_features=features)) in ("runs", "one way")


def test_positions_with_gaps_are_refused():
    def forward(self, cls, *args, **kwargs):
        kwargs["position_ids"] = 2 * torch.arange(kwargs["input_ids"].shape[1])[None]
        return cls.forward(self, *args, **kwargs)

    assert refused(sabotaged("deepseek_vl", forward=forward)) == "positions"


def test_a_processor_that_counts_otherwise_is_refused():
    model, processor = stock("deepseek_vl")
    processor.num_image_tokens = 15
    assert refused((model, processor)) in ("runs", "counts")


def test_a_processor_that_merges_otherwise_is_refused():
    model, processor = stock("mistral3")
    processor.spatial_merge_size = 1
    assert refused((model, processor)) in ("runs", "counts")


def test_a_processor_with_tiles_of_another_size_is_refused():
    model, processor = stock("aya_vision")
    processor.image_processor.size = {"height": 28, "width": 28}
    assert refused((model, processor)) in ("runs", "counts", "layout")


def test_a_processor_of_another_make_is_refused():
    model, _ = stock("vipllava")
    _, processor = stock("video_llama_3")
    assert refused((model, processor)) in ("pixels", "runs", "processor")


def test_a_processor_without_placeholders_is_refused():
    model, processor = stock("deepseek_vl")
    processor.__class__ = type(
        "Bare", (type(processor),), {"replace_image_token": hf.ProcessorMixin.replace_image_token}
    )
    assert refused((model, processor)) == "placeholders"


def test_the_refusal_names_the_pair_and_the_one_rule():
    attach_token_pruner(*stock("deepseek_vl"), TokenPrunerConfig())  # proves nothing of another class of base model
    model, processor = sabotaged("deepseek_vl", forward=merged(lambda x, _: x * 2))
    with pytest.raises(
        ValueError, match=r"^DeepseekVLForCond.*deepseek_vl.*DeepseekVLProcessor.*in their order; but .* 2 .*llava_next"
    ) as error:
        attach_token_pruner(model, processor, TokenPrunerConfig())
    assert not hasattr(model.base_model, "token_pruner")
    again = pickle.loads(pickle.dumps(error.value))
    assert (str(again), vars(again)) == (str(error.value), vars(error.value))


@pytest.mark.parametrize("deltas", [None, torch.ones(1, 1)])
def test_a_proof_leaves_the_model_as_it_was(deltas):
    model, processor = stock("glm4v")
    model.train()
    model.base_model.visual.eval()  # as people do who train the language model alone
    kept = model.base_model.rope_deltas = deltas
    prove(model, processor)
    assert model.training
    assert not model.base_model.visual.training
    assert model.base_model.rope_deltas is kept
    assert "forward" not in vars(model.base_model.language_model)


def test_what_was_proven_with_one_processor_is_not_believed_of_another():
    model, processor = attach_token_pruner(*stock("aya_vision"), TokenPrunerConfig(importance="distinct"))
    _, other = stock("aya_vision")
    other.image_processor.size = {"height": 28, "width": 28}
    with pytest.raises(Unproven):
        attach_token_pruner(model, other, TokenPrunerConfig(importance="distinct"))
    assert type(model.base_model).mixin is PrunedBase  # with the pruner it had
    processor(text=processor.image_token, images=picture(0, 56, 56), return_tensors="pt")


def test_an_attached_processor_is_tried_as_it_is_without_a_pruner():
    config = TokenPrunerConfig(budget=3, importance="distinct")
    _, processor = attach_token_pruner(*stock("aya_vision"), config)
    model, _ = stock("aya_vision")
    model.config.text_config.attention_dropout = 0.25  # another config, of which nothing is known
    attach_token_pruner(model, processor, config)
    inputs = processor(text=processor.image_token, images=picture(0, 56, 56), return_tensors="pt")
    assert model(**inputs).logits.isfinite().all()


def test_inputs_are_pruned_without_an_attach_before_if_the_processor_is_given(monkeypatch):
    monkeypatch.setattr(proof, "_PROVEN", {})
    model, processor = stock("aya_vision")
    config = TokenPrunerConfig(budget=3, importance="distinct")
    inputs = processor(text=processor.image_token, images=picture(0, 56, 56), return_tensors="pt")
    with pytest.raises(ValueError, match=r"prune_inputs\(model, inputs, config, processor\)"):
        prune_inputs(model, inputs, config)
    made = prune_inputs(model, inputs, config, processor)
    assert int((made["input_ids"] == model.config.image_token_id).sum()) == 3


@pytest.mark.parametrize("part", ["tokenizer", "image_processor"])
@pytest.mark.parametrize("make", [lambda: stock("deepseek_vl"), lambda: tiny_stock("llava")])
def test_a_part_of_a_processor_is_refused(make, part):
    model, processor = make()
    with pytest.raises(ValueError, match="expected a processor that holds a tokenizer and an image processor"):
        attach_token_pruner(model, getattr(processor, part), TokenPrunerConfig())


def test_a_model_without_weights_is_refused_with_what_to_do(monkeypatch):
    monkeypatch.setattr(proof, "_PROVEN", {})
    model, processor = stock("qwen3_5")
    with pytest.raises(Unproven, match="attach once they are loaded"):
        attach_token_pruner(model.to("meta"), processor, TokenPrunerConfig())


def test_a_model_with_a_file_is_not_said_to_have_none():
    model, _ = tiny_stock("llava")
    with pytest.raises(Unproven, match=r"is not the processor of LlavaForCond.*; expected LlavaProcessor, or"):
        attach_token_pruner(model, stock("aya_vision")[1], TokenPrunerConfig())


def test_an_interrupted_proof_leaves_the_pair_as_it_was(monkeypatch):
    monkeypatch.setattr(proof, "_PROVEN", {})
    model, processor = stock("aya_vision")
    model.train()
    calls = iter(range(9))

    def interrupt(*_):
        if next(calls) == 2:
            raise KeyboardInterrupt

    hook = model.base_model.vision_tower.register_forward_hook(interrupt)
    classes, state = [type(x) for x in (model, model.base_model, processor)], torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt):
        attach_token_pruner(model, processor, TokenPrunerConfig(importance="distinct"))
    hook.remove()
    assert [type(x) for x in (model, model.base_model, processor)] == classes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.modules())
    assert "forward" not in vars(model.base_model.language_model)
    attach_token_pruner(model, processor, TokenPrunerConfig(importance="distinct"))
