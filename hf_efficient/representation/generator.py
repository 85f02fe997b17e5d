"""Trained refinement of ITG: a small cross-attention module that says what its K tokens should rather be."""

from __future__ import annotations

import copy
import os
import re
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from hf_efficient.compat.torch import change_count
from hf_efficient.reading import AGAIN, Fields, open_tensors, read_tensors, shown, stored_in


class TokenGenerator(nn.Module):
    """z <- z + U · decoder(V z, V x): the closed-form tokens z ask all tokens x of their unit.

    V makes `hidden` numbers of normalized tokens; the decoder is the transformer's (the K tokens attend to each other,
    then to all N); U starts at zero, so that an untrained generator returns the closed-form tokens bit for bit. One
    generator serves every K. Trained by `examples/train_itg.py`; part of a `TokenPrunerConfig`.

    Args:
        width: D of the tokens.
        hidden: width of the decoder, a multiple of `heads`.
        layers: layers of the decoder.
        heads: attention heads.
    """

    def __init__(self, width: int, hidden: int = 96, layers: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.twins: dict[torch.device, tuple[Any, TokenGenerator]] = {}  # copies on other devices
        self.settings = {"width": width, "hidden": hidden, "layers": layers, "heads": heads}
        self.down = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden))
        layer = nn.TransformerDecoderLayer(hidden, heads, hidden, 0.0, "gelu", batch_first=True, norm_first=True)
        self.decoder = nn.TransformerDecoder(layer, layers, nn.LayerNorm(hidden))
        self.up = nn.Linear(hidden, width)
        for parameter in self.up.parameters():
            nn.init.zeros_(parameter)

    @property
    def width(self) -> int:
        """D of the tokens it refines."""
        return self.settings["width"]

    def forward(self, tokens: Tensor, features: Tensor, valid: Tensor | None = None) -> Tensor:
        """Better tokens for a batch of units.

        Args:
            tokens: (B, K, D), any float dtype: the closed-form tokens.
            features: (B, N, D): all tokens.
            valid: (B, N) bool or None; tokens marked False are not attended to.

        Returns:
            (B, K, D) in the dtype of `tokens`; computed in float32. O((N + D)·K·hidden + N·D·hidden) time.

        Raises:
            ValueError: D is not the generator's width.
        """
        if tokens.shape[-1] != self.width:
            raise ValueError(
                f"The generator was made for tokens {self.width} wide, these are {tokens.shape[-1]} wide. Use it with "
                "the model it was trained for, or set generator=None."
            )
        there = self.on(features.device)
        with torch.autocast(features.device.type, enabled=False):
            ignored = None if valid is None else ~valid
            asked, seen = there.down(tokens.float()), there.down(features.float())
            change: Tensor = there.up(there.decoder(asked, seen, memory_key_padding_mask=ignored))
            return (tokens.float() + change).to(tokens.dtype)

    def on(self, device: torch.device) -> TokenGenerator:
        """The generator where the features are: itself, or a copy, so that calls on several devices share one config.

        It is no part of the model, so that nothing else moves it along. One that is being trained moves itself.
        """
        if self.up.weight.device == device:
            return self
        if any(parameter.requires_grad for parameter in self.parameters()):
            return self.to(device)
        version = [(value.data_ptr(), change_count(value)) for value in self.state_dict(keep_vars=True).values()]
        known, twin = self.twins.get(device, (None, self))
        if known != version:
            twin = copy.deepcopy(self).to(device)
            self.twins[device] = version, twin
        return twin

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "twins": {}}

    def to_bytes(self) -> bytes:
        """The weights as a safetensors file."""
        return save({name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()})

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], settings: dict[str, int]) -> TokenGenerator:
        """A frozen generator of these settings, with the weights of a safetensors file.

        The settings are compared with the file's header before a module is built of them.

        Raises:
            ValueError: the settings are not a generator's, the file is no safetensors file, or its tensors are not
                those of such a generator.
            OSError: the file cannot be read.
        """
        settings = check_settings(settings)
        with open_tensors(path) as file:
            found = {name: part.shape for name, part in stored_in(file).items()}
        layers = len({name.split(".")[2] for name in found if re.match(r"decoder\.layers\.\d+\.", name)})
        down = found.get("down.1.weight", ())
        if layers != settings["layers"] or down != (settings["hidden"], settings["width"]):
            raise ValueError(
                f"{path} does not hold the generator that the config describes ({shown(settings)}): it has {layers} "
                f"layers, and down.1.weight is {shown(down)}. Both come from one save_pretrained."
            )
        with torch.device("meta"):
            expected = {name: tuple(value.shape) for name, value in cls(**settings).state_dict().items()}
        weights = read_tensors(path, expected)
        generator = cls(**settings)
        generator.load_state_dict(weights)
        return generator.requires_grad_(False)


def check_settings(settings: object) -> dict[str, int]:
    """A generator's settings, as JSON has them.

    Raises:
        ValueError: they are others, out of range, or do not go together.
    """
    where = f"generator={shown(settings)} are no settings of a generator"
    fields = Fields(settings, where)
    values = {name: fields.whole(name, 1) for name in ("width", "hidden", "layers", "heads")}
    if fields.values.keys() != values.keys() or values["hidden"] % values["heads"]:
        raise ValueError(f"{where}; expected {', '.join(values)}, and hidden a multiple of heads. {AGAIN}")
    return values
