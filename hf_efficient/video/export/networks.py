"""Networks as ONNX: weights as small as in the bundle, frames of any size."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hf_efficient.extras import extra
from hf_efficient.quiet import errors_alone
from hf_efficient.video.networks.backbones.backbone import Conv
from hf_efficient.video.networks.inference import enlarge_inner
from hf_efficient.video.networks.spec import NetworkSpec
from hf_efficient.video.networks.weights import Int8Conv2d

OPSET = 20


class Inner(nn.Module):
    """What lies at least a receptive radius r inside a frame: (1, 3, H + 2r, W + 2r) to (1, 3, sH, sW)."""

    def __init__(self, net: nn.Module, spec: NetworkSpec) -> None:
        super().__init__()
        self.net, self.spec = net, spec

    def forward(self, frame: Tensor) -> Tensor:
        return enlarge_inner(self.net, self.spec, frame)


def to_onnx(net: nn.Module, spec: NetworkSpec) -> bytes:
    """A network as an ONNX file of opset 20.

    Its input "frame" is (1, 3, height, width) float32 in [0, 1], the border included that the receptive radius needs;
    its output "enlarged" is (1, 3, s(height - 2r), s(width - 2r)), not clamped.

    Args:
        net: as loaded from a bundle.
        spec: what built it.

    Raises:
        ImportError: onnx or onnxscript is not installed.
    """
    with extra("onnx"):
        import onnx
        import onnxscript  # noqa: F401  torch's exporter needs it
    plain = as_convolutions(copy.deepcopy(net)).float().eval()
    side = 2 * spec.receptive_radius + 8
    frame = torch.rand(1, 3, side, side + 4)
    height, width = (torch.export.Dim(name, min=2 * spec.receptive_radius + 2) for name in ("height", "width"))
    with errors_alone("torch.onnx", "onnxscript"), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of libraries about themselves
        plain(frame, trim=True)  # so that nothing is cached for the first time while torch exports, without values
        program = torch.onnx.export(
            Inner(plain, spec), (frame,), dynamo=True, opset_version=OPSET, dynamic_shapes=({2: height, 3: width},),
            input_names=["frame"], output_names=["enlarged"], external_data=False, verbose=False,
        )  # fmt: skip
    assert program is not None
    model = strip(program.model_proto)
    store_weights(model, net)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def as_convolutions(net: nn.Module) -> nn.Module:
    """Int8 layers become convolutions with the same weights in float32. In place."""
    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Int8Conv2d):
                outputs, inputs, size, _ = child.weight.shape
                layer = Conv(inputs, outputs, size)
                layer.weight.data = child.weight.float() * child.weight_scale.float()[:, None, None, None]
                layer.bias = nn.Parameter(child.bias.float())
                setattr(parent, name, layer)
    return net


def strip(model: Any) -> Any:
    """Leave out what describes the export, which is larger than a small network. In place."""
    for value in (*model.graph.node, *model.graph.input, *model.graph.output, *model.graph.value_info, model.graph):
        del value.metadata_props[:]
        value.doc_string = ""
    del model.graph.value_info[:]
    del model.metadata_props[:]
    return model


def store_weights(model: Any, net: nn.Module) -> None:
    """Store weights of int8 and those that float16 holds exactly as such; nodes make float32 of them. In place.

    A runtime computes these nodes once, when it loads the file.

    Args:
        model: ONNX; its initializers have the names of the network's weights behind "net.".
        net: the network as loaded from a bundle.
    """
    from onnx import TensorProto, helper, numpy_helper

    state, made = net.state_dict(), []
    for tensor in list(model.graph.initializer):
        name, values = tensor.name.removeprefix("net."), numpy_helper.to_array(tensor)
        scale = state.get(f"{name}_scale")
        if tensor.data_type != TensorProto.FLOAT or name not in state:
            continue
        with np.errstate(over="ignore"):
            small = values.astype(np.float16) if scale is None else state[name].cpu().numpy()
        if scale is None and not np.array_equal(small, values):
            continue
        cast = tensor.name if scale is None else f"{tensor.name}.cast"
        made.append(helper.make_node("Cast", [f"{tensor.name}.stored"], [cast], to=TensorProto.FLOAT))
        model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(small), f"{tensor.name}.stored"))
        if scale is not None:
            factors = scale.float().cpu().numpy()[:, None, None, None]
            model.graph.initializer.append(numpy_helper.from_array(factors, f"{tensor.name}.scale"))
            made.append(helper.make_node("Mul", [cast, f"{tensor.name}.scale"], [tensor.name]))
        model.graph.initializer.remove(tensor)
    for node in reversed(made):
        model.graph.node.insert(0, node)
