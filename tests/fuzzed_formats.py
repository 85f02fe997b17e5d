"""Files that are read: how a good one of each is made, and what reads it."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel, get_peft_model
from PIL import Image
from safetensors.torch import load_file
from torch import nn

import hf_efficient
from hf_efficient import BiDSTConfig, SAMArguments, TokenPrunerConfig, convert_bitmask, load_sparse, save_sparse
from hf_efficient.optimization.training import memory_file
from hf_efficient.reading import naming, read_json
from hf_efficient.representation.evaluation.questions import load_evaluation_set
from hf_efficient.representation.generator import TokenGenerator
from hf_efficient.video import routing
from hf_efficient.video.encode.fit import fit_video
from hf_efficient.video.encode.overfit import Recipe, load_checkpoint, overfit
from hf_efficient.video.files.manifest import checked_files, sha256
from hf_efficient.video.networks.delta import Delta, pack_delta
from hf_efficient.video.networks.experts import save_delta
from hf_efficient.video.networks.general import general_network
from hf_efficient.video.networks.modeling_stdo import STDOModel
from hf_efficient.video.play.player import Player
from tests.sparsity.csr.test_compress import sparse_llama
from tests.sparsity.models import ConvNet, convnet_inputs, disturb
from tests.sparsity.storage.test_bitmask import checkpoint
from tests.video.bundles import QUICK, started
from tests.video.clips import make_clip, moving_frames


@dataclass
class Format:
    """A row.

    Args:
        make: writes a sample into a folder and returns what reads it and works with it.
        names: of the files that are mutated.
        sign: makes, of the folder, what puts checksums right.
        exact: whether the file proves what it holds, so that nothing but what was saved is loaded.
    """

    make: Callable[[Path], Callable[[], Any]]
    names: list[str]
    sign: Callable[[Path], Callable[[str], None]] | None = None
    exact: bool = False


def sparse_file(folder: Path) -> Callable[[], Any]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 16), nn.Linear(16, 4))
    first: Any = model[0]
    first.weight.data.mul_(torch.rand(16, 24) < 0.1)
    save_sparse(model, folder)
    return lambda: load_sparse(folder, nn.Sequential(nn.Linear(24, 16), nn.Linear(16, 4))).state_dict()


def sparse_folder(folder: Path) -> Callable[[], Any]:
    save_sparse(sparse_llama(), folder)
    return lambda: dict(load_sparse(folder).state_dict())


def bitmask(folder: Path) -> Callable[[], Any]:
    checkpoint(folder)

    def load() -> Any:
        with TemporaryDirectory() as output:
            return load_file(convert_bitmask(folder, Path(output, "plain")) / "model.safetensors")

    return load


def pruner(folder: Path) -> Callable[[], Any]:
    torch.manual_seed(0)
    generator = TokenGenerator(8, hidden=16, layers=1, heads=2)
    TokenPrunerConfig(method="itg", budget=4, generator=generator).save_pretrained(folder)
    x = torch.randn(1, 12, 8)

    def load() -> Any:
        config = TokenPrunerConfig.from_pretrained(folder)
        with naming(folder):  # what it lacks for this use
            kept: Any = hf_efficient.reduce_tokens(x, config, importance=torch.rand(1, 12))
        assert 1 <= kept.tokens.shape[1] <= 12
        return config.to_dict(), config.generator and config.generator.state_dict()

    return load


def adapter(folder: Path) -> Callable[[], Any]:
    settings: dict[str, Any] = {"target_modules": ["hidden", "conv2"], "modules_to_save": ["fc"], "train_others": False}
    model = get_peft_model(ConvNet(), BiDSTConfig(sparsity=0.8, **settings))
    disturb(model)
    model.save_pretrained(str(folder))

    def load() -> Any:
        config = BiDSTConfig.from_pretrained(str(folder))
        with naming(folder):  # PEFT's own errors name no file
            loaded = PeftModel.from_pretrained(ConvNet(), folder, config=config)
        with torch.no_grad():
            loaded.eval()(*convnet_inputs())
        return {name: tensor for name, tensor in loaded.state_dict().items() if ".default" in name}

    return load


def bundle(folder: Path) -> Callable[[], Any]:
    source = make_clip(folder.parent / "a.mkv", moving_frames(2, 24, 20))
    fit_video(source, folder, **{**QUICK, "num_features": 1, "steps": 2, "method": "stdo", "num_chunks": 2})

    def load() -> Any:
        player = Player(folder)
        frames = [torch.from_numpy(frame.rgb) for frame in player.frames()]
        assert all(f.shape == (player.bundle.source.height, player.bundle.source.width, 3) for f in frames)
        return frames, player.bundle.sizes()

    return load


def delta_bundle(folder: Path, networks: int = 1) -> Callable[[], Any]:
    source = make_clip(folder.parent / "a.mkv", moving_frames(2, 24, 20))
    fit_video(source, folder, **{**QUICK, "num_features": 8, "num_blocks": 2, "steps": 3, "method": "delta"})
    general, rng = general_network(2, 8), np.random.default_rng(0)
    sizes = [q.shape for q in Delta(general.load()).levels()]
    first = [rng.integers(-9, 10, size) for size in sizes]  # whatever was taken: a delta of all kinds of numbers
    others = [[q + (rng.random(q.shape) < 0.05) for q in first] for _ in range(1, networks)]
    labels = np.arange(2).reshape(2, 1, 1) % networks
    packed = routing.pack(labels, networks)
    config = {
        "backbone": "luma_wdsr", "num_features": 8, "weight_dtype": "delta", "patch_width": 24, "patch_height": 27,
        "num_experts": networks, "routing_bytes": len(packed), "general": general.digest,
    }  # fmt: skip
    delta = pack_delta([general.load()] * networks, [first, *others], 1)
    save_delta(folder / "model", config, delta, packed)
    record = json.loads((folder / "fit.json").read_text())
    record["experts"] *= networks
    record["candidates"]["scenes"] = [{"frame": n, "by": "own"} for n in range(networks)]
    (folder / "fit.json").write_text(json.dumps(record))
    for name in ("model/config.json", "model/delta.bin"):
        signed(folder)(name)

    def load() -> Any:
        player = Player(folder)
        return [torch.from_numpy(frame.rgb) for frame in player.frames()], dict(player.experts.state_dict())

    return load


def export(folder: Path) -> Callable[[], Any]:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    from hf_efficient.video.export.player import OnnxPlayer
    from tests.video.export.made import made_export

    made_export(folder, networks=2)

    def load() -> Any:
        player = OnnxPlayer(folder, threads=1)
        return [torch.from_numpy(frame.rgb) for frame in player.frames()]

    return load


def signed(folder: Path, manifest_name: str = "bundle.json") -> Callable[[str], None]:
    """Whoever forges a file forges its checksum too."""

    def sign(name: str) -> None:
        path = folder / manifest_name
        if name in (path.name, "fit.json"):
            return
        manifest = json.loads(path.read_text())
        manifest["files"][name] = {"bytes": (folder / name).stat().st_size, "sha256": sha256(folder / name)}
        path.write_text(json.dumps(manifest))

    return sign


def stdo_model(folder: Path) -> Callable[[], Any]:
    bundle(folder)
    return lambda: dict(STDOModel.from_pretrained(folder / "model").state_dict())


def pipeline(folder: Path) -> Callable[[], Any]:
    bundle(folder)
    return lambda: dict(hf_efficient.STDOPipeline.from_pretrained(folder).model.state_dict())


def work(folder: Path) -> Callable[[], Any]:
    fit = started(folder)
    fit.make_stores()
    net, store = fit.new_network(fit.plan.spec("expert-0"), 0), fit.store("expert-0")
    overfit(net, store, Recipe(steps=2, batch_size=2, checkpoint_every=2), fit.checkpoint("expert-0"))

    def load() -> Any:
        fit.prepare(overwrite=False)
        fresh = fit.new_network(fit.plan.spec("expert-0"), 0)
        optimizer = torch.optim.Adam(fresh.parameters())
        step = load_checkpoint(fit.checkpoint("expert-0"), fresh, optimizer)
        lr, hr = fit.store("expert-0").batch(Recipe(steps=9, batch_size=2).draw(step, len(fit.store("expert-0"))))
        return step, lr, hr, dict(fresh.state_dict()), optimizer.state_dict()["state"], fit.plan.labels()[0].tolist()

    return load


def evaluation_set(folder: Path) -> Callable[[], Any]:
    (folder / "images").mkdir(parents=True)
    lines = []
    for n in range(2):
        Image.new("RGB", (16, 12), (n, 50, 200)).save(folder / "images" / f"{n}.png")
        questions = [{"question": f"{n}?", "answer": str(n), "family": "number"}]
        lines.append(json.dumps({"file_name": f"images/{n}.png", "questions": questions}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return lambda: [(s.name, s.image.tobytes(), s.questions) for s in load_evaluation_set(folder)]


def sam_arguments(folder: Path) -> Callable[[], Any]:
    folder.mkdir()
    (folder / "sam.json").write_text(SAMArguments(method="zosam", num_queries=2, probe_fraction=0.5).to_json_string())

    def load() -> Any:
        with naming(folder / "sam.json"):
            return SAMArguments.from_dict(read_json(folder / "sam.json")).to_dict()

    return load


def sam_memory(folder: Path) -> Callable[[], Any]:
    torch.manual_seed(0)
    net, arguments = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 2)), SAMArguments(method="looksam")
    memory: Any = {"across": {p: torch.randn(p.shape) for p in net.parameters()}}
    folder.mkdir()
    memory_file.save(folder / "sam_memory.safetensors", net, memory, arguments)

    def load() -> Any:
        fresh: dict[str, dict[torch.Tensor, torch.Tensor]] = {"across": {}}
        warning = memory_file.load(folder / "sam_memory.safetensors", net, fresh, arguments)
        assert all(p.shape == d.shape for p, d in fresh["across"].items())
        return list(fresh["across"].values()), warning

    return load


STREAM = "low_resolution.mkv"
FORMATS: dict[str, Format] = {
    "sparse checkpoint": Format(sparse_file, ["model.sparse.safetensors"], exact=True),
    "sparse transformers model": Format(sparse_folder, ["config.json", "model.sparse.safetensors"]),
    "sparse-bitmask checkpoint": Format(bitmask, ["config.json", "model.safetensors"]),
    "token pruner": Format(pruner, ["token_pruner_config.json", "generator.safetensors"]),
    "adapter": Format(adapter, ["adapter_config.json", "adapter_model.safetensors"]),
    "bundle": Format(bundle, ["bundle.json", *checked_files(STREAM)], signed),
    "bundle with a delta": Format(
        delta_bundle, ["bundle.json", "fit.json", *checked_files(STREAM, "delta.bin")], signed
    ),
    "bundle with deltas by scene": Format(
        partial(delta_bundle, networks=2), ["bundle.json", "fit.json", *checked_files(STREAM, "delta.bin")], signed
    ),
    "exported bundle": Format(
        export, ["export.json", "routing.bin", "networks/0.onnx", "networks/1.onnx", "low_resolution.mp4"],
        partial(signed, manifest_name="export.json"),
    ),
    "STDO model": Format(stdo_model, ["model/config.json", "model/model.safetensors"], signed),
    "STDO pipeline": Format(pipeline, ["model_index.json"]),
    "work folder": Format(
        work,
        ["bundle.partial/" + name for name in (
            "settings.json", "errors.npy", "expert-0/lr.npy", "expert-0/hr.npy", "expert-0.safetensors")],
    ),
    "evaluation set": Format(evaluation_set, ["metadata.jsonl", "images/0.png"]),
    "SAM memory": Format(sam_memory, ["sam_memory.safetensors"]),
    "SAM arguments": Format(sam_arguments, ["sam.json"]),
}  # fmt: skip
