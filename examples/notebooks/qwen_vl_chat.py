# %% [markdown]
# # Talk to a Qwen-VL that keeps a quarter of its visual tokens
#
# No training: tokens of the picture are chosen before the language model reads them.
#
# `pip install '.[vlm]'`
# %%
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from hf_efficient import TokenPrunerConfig, attach_token_pruner

MODEL = "Qwen/Qwen2.5-VL-3B-Instruct"
# %%
model = AutoModelForImageTextToText.from_pretrained(MODEL)
processor = AutoProcessor.from_pretrained(MODEL)
attach_token_pruner(model, processor, TokenPrunerConfig(method="id_pruner", budget=0.25))
# %% [markdown]
# A picture of yours, and a question.
# %%
picture = Image.new("RGB", (280, 280), "teal")
messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is in the picture?"}]}]
prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
inputs = processor(text=[prompt], images=[picture], return_tensors="pt")
# %% [markdown]
# The same calls as before; the prompt is as much shorter as there are fewer tokens.
# %%
answer = model.generate(**inputs, max_new_tokens=20, do_sample=False)
print(processor.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
print(f"{inputs['input_ids'].shape[1]} tokens in the prompt")
