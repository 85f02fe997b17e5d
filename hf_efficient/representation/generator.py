"""Trained refinement of ITG: a small cross-attention module that says what its K tokens should rather be."""

from __future__ import annotations

import os

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

GENERATOR_NAME = "generator.safetensors"


class TokenGenerator(nn.Module):
    """z <- z + U · decoder(V z, V x): the closed-form tokens z ask all tokens x of their unit.

    V makes `hidden` numbers of normalised tokens; the decoder is the transformer's (the K tokens attend to each other,
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
        if self.up.weight.device != features.device:
            self.to(features.device)  # no part of the model, so that nothing else moves it along
        with torch.autocast(features.device.type, enabled=False):
            ignored = None if valid is None else ~valid
            asked, seen = self.down(tokens.float()), self.down(features.float())
            change: Tensor = self.up(self.decoder(asked, seen, memory_key_padding_mask=ignored))
            return (tokens.float() + change).to(tokens.dtype)

    def to_bytes(self) -> bytes:
        """The weights as a safetensors file."""
        return save({name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()})

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], settings: dict[str, int]) -> TokenGenerator:
        """A frozen generator of these settings, with the weights of a safetensors file.

        Raises:
            ValueError: the settings are not a generator's, the file is no safetensors file, or its tensors are not
                those of such a generator.
        """
        try:
            generator = cls(**settings)
        except (TypeError, ValueError, AssertionError, RuntimeError) as error:
            raise ValueError(f"generator={settings!r} are no settings of a generator: {error}.") from error
        try:
            weights = load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is not a safetensors file ({error}); save the config again.") from error
        expected = {name: tuple(value.shape) for name, value in generator.state_dict().items()}
        found = {name: tuple(value.shape) for name, value in weights.items()}
        if found != expected:
            wrong = sorted(name for name in {**found, **expected} if found.get(name) != expected.get(name))
            raise ValueError(
                f"{path} does not hold the generator that the config describes ({settings}): {len(wrong)} tensors "
                f"differ, as {wrong[0]}, {found.get(wrong[0])} in the file and {expected.get(wrong[0])} by the config. "
                "Both come from one save_pretrained."
            )
        generator.load_state_dict(weights)
        return generator.requires_grad_(False)
