"""The torch optimizers in loops that scripts have: diffusers' LoRA with accelerate, timm's with scaler and average."""

import copy
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from peft import LoraConfig
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from hf_efficient import S2SAM, SAM
from tests.optimization.loop.loops import loss_of, network, same, values


def unet() -> Any:
    """A tiny UNet with LoRA on its attention, as diffusers' scripts add it."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    net = diffusers.UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=8, attention_head_dim=4, norm_num_groups=4,
    )  # fmt: skip
    net.requires_grad_(False)
    net.add_adapter(LoraConfig(r=2, lora_alpha=4, target_modules=["to_k", "to_q", "to_v", "to_out.0", "conv_in"]))
    return net


def denoising(net: Any, step: int) -> Tensor:
    """The loss of diffusers' scripts: noise as the network finds it, and as it was."""
    generator = torch.Generator().manual_seed(step)
    latents, noise = (torch.randn(2, 4, 8, 8, generator=generator) for _ in range(2))
    times, text = torch.randint(0, 1000, (2,), generator=generator), torch.randn(2, 5, 8, generator=generator)
    return mse_loss(net(latents + noise, times, text).sample, noise)


def lora(net: Any) -> list[Any]:
    return [p for p in net.parameters() if p.requires_grad]


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("cls", [SAM, S2SAM])
def test_diffusers_lora_with_accelerate(cls: Any, merged: bool) -> None:
    """The script's loop, prepared by accelerate, against a plain one; between steps no hook is left on the model."""
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=1)
    net, twin = unet(), unet()
    make = lambda of: cls(lora(of), torch.optim.AdamW, rho=0.5, lr=1e-2, merged=of if merged else None)
    prepared, opt = accelerator.prepare(net, make(net))
    plain = make(twin)
    for step in range(4):
        if cls is SAM:
            opt.optimizer.perturb(lambda step=step: denoising(prepared, step))
        else:
            opt.train()
        with accelerator.accumulate(prepared):
            accelerator.backward(denoising(prepared, step))
            accelerator.clip_grad_norm_(lora(prepared), 1.0)
            opt.step()
            opt.zero_grad()
        plain.perturb(lambda step=step: denoising(twin, step))
        denoising(twin, step).backward()
        nn.utils.clip_grad_norm_(lora(twin), 1.0)
        plain.step()
        plain.zero_grad()
        assert not any(module._forward_hooks for module in net.modules())
    assert same(values(net), values(twin))
    still = S2SAM(lora(fresh := unet()), torch.optim.AdamW, rho=0.0, lr=1e-2)
    for step in range(4):
        still.perturb()
        denoising(fresh, step).backward()
        still.step()
        still.zero_grad()
    assert not same(values(net), values(fresh))


def test_a_loop_with_scaler_clipping_and_an_average_of_the_weights() -> None:
    """As timm's: the gradient is unscaled and clipped before the step, and the average is taken after it."""
    net = network(batch_norm=True)
    twin = copy.deepcopy(net)
    average = torch.optim.swa_utils.AveragedModel(net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5))
    wanted = torch.optim.swa_utils.AveragedModel(twin, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5))
    opt, scaler = S2SAM(net.parameters(), torch.optim.SGD, rho=0.3, lr=0.1), torch.amp.GradScaler("cpu", 256.0)
    other = S2SAM(twin.parameters(), torch.optim.SGD, rho=0.3, lr=0.1)
    for number in range(0, 8, 2):
        opt.perturb()
        for part in (number, number + 1):
            scaler.scale(loss_of(net, part) / 2).backward()
        scaler.unscale_(opt)
        nn.utils.clip_grad_norm_(net.parameters(), 0.1)
        scaler.step(opt)
        scaler.update()
        opt.zero_grad()
        average.update_parameters(net)
        with other.perturb():
            for part in (number, number + 1):
                (loss_of(twin, part) / 2).backward()
        nn.utils.clip_grad_norm_(twin.parameters(), 0.1)
        other.step()
        other.zero_grad()
        wanted.update_parameters(twin)
    for a, b in zip(values(average), values(wanted)):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


def test_timms_own_optimizer_and_scheduler() -> None:
    """A base optimizer of timm's, and a scheduler of its that sets rates in our groups."""
    pytest.importorskip("timm")
    from timm.optim import Lamb
    from timm.scheduler import CosineLRScheduler

    net = network(batch_norm=True)
    opt = S2SAM(net.parameters(), Lamb, rho=0.3, lr=0.1)
    scheduler = CosineLRScheduler(opt, t_initial=4, warmup_t=1, warmup_lr_init=0.01, t_in_epochs=False)
    rates = []
    for number in range(4):
        with opt.perturb():
            loss_of(net, number).backward()
        opt.step()
        opt.zero_grad()
        scheduler.step_update(number + 1)
        rates.append(opt.base.param_groups[0]["lr"])
    assert len(set(rates)) == 4
    assert all(v.isfinite().all() for v in values(net))


def test_timms_scaler_steps_where_perturb_was_called_and_is_refused_where_not() -> None:
    """As timm's train.py: the scaler runs backward, unscales, clips and steps; it calls no `perturb`."""
    scaler = pytest.importorskip("timm.utils").NativeScaler(device="cpu")
    net, twin = network(), network()
    opt = S2SAM(net.parameters(), torch.optim.SGD, rho=0.3, lr=0.1)
    other = S2SAM(twin.parameters(), torch.optim.SGD, rho=0.3, lr=0.1)
    before = values(net)
    with pytest.raises(ValueError, match=r"S2SAM: perturb\(\) was not called since the last step"):
        scaler(loss_of(net, 0), opt, clip_grad=0.1, parameters=net.parameters())
    assert same(values(net), before)
    opt.zero_grad()
    scaler = pytest.importorskip("timm.utils").NativeScaler(device="cpu")
    for number in range(4):
        state = torch.get_rng_state()
        opt.perturb()
        scaler(loss_of(net, number), opt, clip_grad=0.1, parameters=net.parameters())
        opt.zero_grad()
        torch.set_rng_state(state)  # the same dropout
        other.perturb()
        loss_of(twin, number).backward()
        nn.utils.clip_grad_norm_(twin.parameters(), 0.1)
        other.step()
        other.zero_grad()
    for a, b in zip(values(net), values(twin)):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)
