"""An exported folder made by hand: networks that repeat pixels, so that what must be played is known without any."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from hf_efficient.video import routing
from hf_efficient.video.export.folder import ROUTING, Network, write_record
from hf_efficient.video.files.manifest import source_to_json
from hf_efficient.video.files.reader import probe
from hf_efficient.video.geometry import Geometry
from tests.video.clips import make_clip, moving_frames

COUNT, WIDTH, HEIGHT = 5, 95, 62  # not even: the last column of the enlarged stream is cut off


def repeating(path: Path, inverted: bool, radius: int) -> None:
    """Write a network that trims `radius` pixels, repeats each pixel twice, and inverts the levels if asked."""
    ends = [radius, radius, -radius or 2**31, -radius or 2**31]
    constants = {"starts": ends[:2], "ends": ends[2:], "axes": [2, 3]}
    initializers = [helper.make_tensor(n, TensorProto.INT64, [2], v) for n, v in constants.items()]
    initializers += [
        helper.make_tensor("scales", TensorProto.FLOAT, [4], [1, 1, 2, 2]),
        helper.make_tensor("factor", TensorProto.FLOAT, [], [-1.0 if inverted else 1.0]),
        helper.make_tensor("offset", TensorProto.FLOAT, [], [1.0 if inverted else 0.0]),
    ]
    nodes = [
        helper.make_node("Slice", ["frame", "starts", "ends", "axes"], ["inner"]),
        helper.make_node(
            "Resize", ["inner", "", "scales"], ["large"], mode="nearest", nearest_mode="floor",
            coordinate_transformation_mode="asymmetric",
        ),
        helper.make_node("Mul", ["large", "factor"], ["scaled"]),
        helper.make_node("Add", ["scaled", "offset"], ["enlarged"]),
    ]  # fmt: skip
    shapes: dict[str, list[Any]] = {"frame": [1, 3, "height", "width"], "enlarged": [1, 3, "tall", "wide"]}
    frame, enlarged = (helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items())
    graph = helper.make_graph(nodes, "repeating", [frame], [enlarged], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, str(path))


def made_export(folder: Path, networks: int = 1) -> tuple[Path, np.ndarray]:
    """The folder, and (T, I, J) the map of its frames."""
    folder.mkdir(parents=True)
    source = make_clip(folder.parent / "source.mp4", moving_frames(COUNT, 96, 62), audio="aac")
    info = probe(source)
    described = {**source_to_json(info, source, COUNT), "width": WIDTH, "height": HEIGHT}
    geometry = Geometry(WIDTH, HEIGHT, 2, 12, 13)
    make_clip(folder / "low_resolution.mp4", moving_frames(COUNT, geometry.lr_width, geometry.lr_height), audio="aac")
    (folder / "networks").mkdir()
    listed = []
    for m in range(networks):
        listed.append(Network(f"networks/{m}.onnx", 2 * m, 700))  # several tiles
        repeating(folder / listed[m].file, inverted=m == 1, radius=2 * m)
    labels = np.random.default_rng(0).integers(0, networks, (COUNT, geometry.rows, geometry.columns))
    if networks > 1:
        (folder / ROUTING).write_bytes(routing.pack(labels, networks))
    write_record(folder, described, "low_resolution.mp4", geometry, listed, {})
    return folder, labels
