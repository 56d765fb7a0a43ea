"""Encoder (with a classifier) and decoder as ONNX graphs, built operator by operator from the parameters.

No converter works: releases of jax2onnx that can be imported with jax 0.10 require an orbax-checkpoint older
than ours, and fail on `nn.scan` with an unknown batch size. A test compares the graphs with
`sparse_vis.encode`, `reconstruct` and `classify`.
"""

import json

import jax
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from sparse_vis.models.block import Sizes
from sparse_vis.models.classifier import LEAST, LinearClassifier, NearestClassifier
from sparse_vis.models.decoder import fourier_positions
from sparse_vis.models.encoder import IMAGENET_MEAN, IMAGENET_STD
from sparse_vis.models.factorize import NORMALIZE_EPSILON
from sparse_vis.models.stellar import Stellar

OPSET, IR_VERSION = 17, 8  # the first with LayerNormalization; readable by onnxruntime since 1.12
BATCH = "batch"


class Graph:
    """Nodes and constants of a graph, in the order in which they are added; values are names."""

    def __init__(self, epsilon: float):
        self.epsilon = epsilon  # of LayerNorm
        self.nodes, self.constants = [], []

    def add(self, operator: str, *inputs: str | np.ndarray, names: tuple[str, ...] = (), **attributes):
        """Append a node; returns the name of its first output.

        Arrays among `inputs` become constants. `names`: of the outputs; if empty, a new name for one output.
        """
        names = names or (f"v{len(self.nodes)}",)
        inputs = [x if isinstance(x, str) else self._constant(x) for x in inputs]
        self.nodes.append(helper.make_node(operator, inputs, names, **attributes))
        return names[0]

    def _constant(self, array: np.ndarray) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(array, order="C"), name))
        return name

    def dense(self, x: str, layer: dict, **names) -> str:
        """x W + b."""
        return self.add("Add", self.add("MatMul", x, layer["kernel"]), layer["bias"], **names)

    def norm(self, x: str, layer: dict) -> str:
        """LayerNorm over the last axis."""
        scale, bias = layer["scale"], layer["bias"]
        return self.add("LayerNormalization", x, scale, bias, axis=-1, epsilon=self.epsilon)


def _tokens(graph: Graph, images: str, params: dict, patch: int) -> str:
    """[CLS, patches, queries] of uint8 images, with positions (docs/method.md section 2)."""
    pixels = graph.add("Div", graph.add("Cast", images, to=TensorProto.FLOAT), np.float32(255))
    pixels = graph.add("Sub", pixels, np.array(IMAGENET_MEAN, np.float32))
    pixels = graph.add("Div", pixels, np.array(IMAGENET_STD, np.float32))
    pixels = graph.add("Transpose", pixels, perm=[0, 3, 1, 2])
    kernel, table = params["patch_embedding"]["kernel"], params["position_table"]
    width = table.shape[1]
    kernel = kernel.reshape(patch, patch, 3, width).transpose(3, 2, 0, 1)
    # Without padding, pixels at the bottom and right that fill no patch are dropped.
    patches = graph.add("Conv", pixels, kernel, params["patch_embedding"]["bias"], strides=[patch, patch])
    patches = graph.add("Reshape", patches, np.array([0, width, len(table)]))
    patches = graph.add("Add", graph.add("Transpose", patches, perm=[0, 2, 1]), table)
    count = graph.add("Shape", images, end=1)

    def spread(rows: np.ndarray) -> str:
        return graph.add("Expand", rows, graph.add("Concat", count, np.array(rows.shape), axis=0))

    cls = spread((params["cls_token"] + params["cls_position"])[None])
    return graph.add("Concat", cls, patches, spread(params["queries"]), axis=1)


def _block(graph: Graph, x: str, layer: dict, length: int, heads: int) -> str:
    """A pre-LN block: x + attention(norm(x)), then x + mlp(norm(x))."""
    width = len(layer["norm_mlp"]["scale"])
    qkv = graph.dense(graph.norm(x, layer["norm_attention"]), layer["qkv"])
    qkv = graph.add("Reshape", qkv, np.array([0, length, 3, heads, width // heads]))
    qkv = graph.add("Transpose", qkv, perm=[2, 0, 3, 1, 4])
    q, k, v = (graph.add("Gather", qkv, np.array(part), axis=0) for part in range(3))
    scores = graph.add("MatMul", q, graph.add("Transpose", k, perm=[0, 1, 3, 2]))
    scores = graph.add("Mul", scores, np.float32((width // heads) ** -0.5))
    mixed = graph.add("MatMul", graph.add("Softmax", scores, axis=-1), v)
    mixed = graph.add("Transpose", mixed, perm=[0, 2, 1, 3])
    mixed = graph.add("Reshape", mixed, np.array([0, length, width]))
    x = graph.add("Add", x, graph.dense(mixed, layer["attention_out"]))
    hidden = graph.dense(graph.norm(x, layer["norm_mlp"]), layer["mlp_in"])
    cdf = graph.add("Erf", graph.add("Mul", hidden, np.float32(0.5**0.5)))
    cdf = graph.add("Mul", graph.add("Add", cdf, np.float32(1)), np.float32(0.5))
    return graph.add("Add", x, graph.dense(graph.add("Mul", hidden, cdf), layer["mlp_out"]))


def _factors(graph: Graph, params: dict, temperature: float) -> None:
    """L = softmax(cos(U, S) / tau) and Z = L S (docs/method.md section 3), from "dense" and "sparse"."""

    def unit(x: str) -> str:
        length = graph.add("ReduceL2", x, axes=[-1], keepdims=1)
        return graph.add("Div", x, graph.add("Max", length, np.float32(NORMALIZE_EPSILON)))

    rows, columns = (unit(graph.dense(x, params[f"{x}_proj"])) for x in ("dense", "sparse"))
    cosine = graph.add("MatMul", rows, graph.add("Transpose", columns, perm=[0, 2, 1]))
    graph.add("Softmax", graph.add("Div", cosine, np.float32(temperature)), names=("spatial",), axis=-1)


def _trunk(graph: Graph, x: str, params: dict, length: int, sizes: Sizes) -> str:
    """All blocks and the last LayerNorm."""
    for number in range(sizes.layers):
        layer = jax.tree.map(lambda stacked, number=number: stacked[number], params["blocks"])
        x = _block(graph, x, layer, length, sizes.heads)
    return graph.norm(x, params["norm"])


def _classifier(graph: Graph, classifier: LinearClassifier | NearestClassifier, params: dict) -> None:
    """Class probabilities from "cls" or "sparse", as in models/classifier.py."""
    if classifier.feature == "mean_S":
        x = graph.add("ReduceMean", "sparse", axes=[1], keepdims=0)
    else:
        tokens = "cls" if classifier.feature == "cls" else "sparse"
        x = graph.add("Reshape", tokens, np.array([0, classifier.width]))
    if isinstance(classifier, LinearClassifier):
        graph.add("Softmax", graph.dense(x, params), names=("probability",), axis=-1)
        return
    length = graph.add("Max", graph.add("ReduceL2", x, axes=[1], keepdims=1), np.float32(LEAST))
    cosine = graph.add("MatMul", graph.add("Div", x, length), params["gallery"].T)
    best, nearest = names = ("cosines", "nearest")
    graph.add("TopK", cosine, np.array([classifier.k]), names=names, axis=1)
    share = graph.add("Softmax", graph.add("Div", best, np.float32(classifier.temperature)), axis=1)
    label = graph.add("Gather", params["label"].astype(np.int64), nearest, axis=0)
    one = graph.add("OneHot", label, np.array(len(classifier.classes)), np.array([0, 1], np.float32))
    votes = graph.add("MatMul", graph.add("Unsqueeze", share, np.array([1])), one)
    graph.add("Squeeze", votes, np.array([1]), names=("probability",))


def build_decoder(model: Stellar, params: dict, shapes: dict[str, list[int]]) -> onnx.ModelProto:
    """Graph from "sparse" and "spatial" to "pixels" or "logits"; `shapes`: of these, without the batch."""
    decoder, size = model.decoder, model.encoder.image_size
    (rows, columns), p = model.grid(size, size), decoder.patch
    graph = Graph(decoder.sizes.epsilon)
    x = graph.dense(graph.add("MatMul", "spatial", "sparse"), params["proj"])
    code = fourier_positions(jax.device_put(params["fourier"]), (rows, columns))
    x = graph.add("Add", x, np.asarray(code))
    x = _trunk(graph, x, params["trunk"], rows * columns, decoder.sizes)
    if decoder.codes:
        graph.dense(x, params["head"], names=("logits",))
    else:
        kernel = params["pixel_kernel"].reshape(decoder.sizes.width, -1)
        x = graph.add("Add", graph.add("MatMul", x, kernel), np.tile(params["pixel_bias"], p * p))
        x = graph.add("Reshape", x, np.array([0, rows, columns, p, p, 3]))
        x = graph.add("Transpose", x, perm=[0, 1, 3, 2, 4, 5])
        x = graph.add("Reshape", x, np.array([0, rows * p, columns * p, 3]))
        graph.add("Clip", x, np.float32(0), np.float32(1), names=("pixels",))
    values = [_value(name, shape) for name, shape in shapes.items()]
    return _model(graph, "decoder", values[:2], values[2:])


def _value(name: str, shape: list[int], kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, [BATCH, *shape])


def _model(graph: Graph, name: str, inputs: list, outputs: list, **about: str) -> onnx.ModelProto:
    whole = helper.make_graph(graph.nodes, name, inputs, outputs, graph.constants)
    opsets = [helper.make_opsetid("", OPSET)]
    found = helper.make_model(whole, opset_imports=opsets, ir_version=IR_VERSION)
    helper.set_model_props(found, about)
    onnx.checker.check_model(found)
    return found


def build(model: Stellar, params: dict, outputs: dict[str, list[int]]) -> onnx.ModelProto:
    """Graph from uint8 images (batch, H, W, 3) of the model's own size to the outputs of `sparse_vis.encode`.

    With a classifier, "probability" is another output, and `classes` in the metadata is a JSON list of names.
    `params`: NumPy arrays. `outputs`: name -> shape without the batch.
    """
    encoder = model.encoder
    graph = Graph(encoder.sizes.epsilon)
    side, patches, r = encoder.image_size, len(params["encoder"]["position_table"]), encoder.queries
    x = _tokens(graph, "images", params["encoder"], encoder.patch)
    x = _trunk(graph, x, params["encoder"]["trunk"], 1 + patches + r, encoder.sizes)
    graph.add("Split", x, np.array([1, patches, r]), names=("cls", "dense", "sparse"), axis=1)
    _factors(graph, params["factorizer"], model.factorizer.temperature)
    graph.add("MatMul", "spatial", "sparse", names=("lowrank",))
    about = {}
    if model.classifier is not None:
        _classifier(graph, model.classifier, params["classifier"])
        about = {"classes": json.dumps(model.classifier.classes)}
    images = _value("images", [side, side, 3], TensorProto.UINT8)
    return _model(graph, "encoder", [images], [_value(*pair) for pair in outputs.items()], **about)
