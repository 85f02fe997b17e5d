# %% [markdown]
# # A UNet of diffusers with LoRA, or with as many values that BiDST places
#
# Both are adapters of PEFT on the same UNet; the loop is the one of diffusers' training scripts, cut to its bones.
#
# `pip install '.[sparsity]' diffusers`
# %%
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from peft import LoraConfig, get_peft_model

from hf_efficient import BiDSTConfig, train_sparsely

MODEL, SUBFOLDER = "stable-diffusion-v1-5/stable-diffusion-v1-5", "unet"
LAYERS = ["to_q", "to_k", "to_v", "to_out.0"]
ADAPTERS = {
    "LoRA": LoraConfig(r=4, target_modules=LAYERS),
    "BiDST": BiDSTConfig(target="delta", sparsity=0.98, target_modules=LAYERS),
}
# %% [markdown]
# Latents and prompts of your pictures stand here; noise does for a look.
# %%
scheduler = DDPMScheduler(num_train_timesteps=1000)


def train(config, steps=5):
    """Losses of a few steps, and how many values were trained."""
    torch.manual_seed(0)
    unet = get_peft_model(UNet2DConditionModel.from_pretrained(MODEL, subfolder=SUBFOLDER), config)
    values = [p for p in unet.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(values, lr=1e-3)
    if isinstance(config, BiDSTConfig):
        train_sparsely(unet, optimizer, total_steps=steps)
    losses = []
    for _ in range(steps):
        latents = torch.randn(2, unet.config.in_channels, 16, 16)
        text = torch.randn(2, 8, unet.config.cross_attention_dim)
        noise, t = torch.randn_like(latents), torch.randint(0, 1000, (2,))
        loss = torch.nn.functional.mse_loss(unet(scheduler.add_noise(latents, noise, t), t, text).sample, noise)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, sum(p.numel() for p in values)


# %%
for name, config in ADAPTERS.items():
    losses, values = train(config)
    print(f"{name}: {values:,} values, loss {losses[0]:.3f} to {losses[-1]:.3f}")
