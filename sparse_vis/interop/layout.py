"""Convert between our parameter tree of a ViT and the torch layout.

Torch stores linear weights as out x in, convolutions as out x in x kh x kw, separate queries, keys and
values, and layers under numbered names. Our kernels are in x out, QKV is fused, and layers are stacked.
"""

from __future__ import annotations

import numpy as np

Tensors = dict[str, np.ndarray]

_BLOCK = {
    "norm_attention": "layernorm_before",
    "attention_out": "attention.output.dense",
    "norm_mlp": "layernorm_after",
    "mlp_in": "intermediate.dense",
    "mlp_out": "output.dense",
}
_QKV = ("query", "key", "value")


def linear_out(tree: dict, name: str) -> Tensors:
    """Our {kernel, bias} -> torch linear tensors."""
    return {f"{name}.weight": np.asarray(tree["kernel"]).T, f"{name}.bias": np.asarray(tree["bias"])}


def linear_in(tensors: Tensors, name: str) -> dict:
    """Torch linear tensors -> our {kernel, bias}."""
    return {"kernel": tensors[f"{name}.weight"].T, "bias": tensors[f"{name}.bias"]}


def norm_out(tree: dict, name: str) -> Tensors:
    return {f"{name}.weight": np.asarray(tree["scale"]), f"{name}.bias": np.asarray(tree["bias"])}


def norm_in(tensors: Tensors, name: str) -> dict:
    return {"scale": tensors[f"{name}.weight"], "bias": tensors[f"{name}.bias"]}


def _block_out(tree: dict, prefix: str) -> Tensors:
    tensors: Tensors = {}
    kernels = np.split(np.asarray(tree["qkv"]["kernel"]), 3, axis=1)
    biases = np.split(np.asarray(tree["qkv"]["bias"]), 3)
    for part, kernel, bias in zip(_QKV, kernels, biases, strict=True):
        tensors |= linear_out({"kernel": kernel, "bias": bias}, f"{prefix}.attention.attention.{part}")
    for ours, theirs in _BLOCK.items():
        convert = norm_out if "scale" in tree[ours] else linear_out
        tensors |= convert(tree[ours], f"{prefix}.{theirs}")
    return tensors


def _block_in(tensors: Tensors, prefix: str) -> dict:
    parts = [linear_in(tensors, f"{prefix}.attention.attention.{part}") for part in _QKV]
    tree = {
        "qkv": {
            "kernel": np.concatenate([p["kernel"] for p in parts], axis=1),
            "bias": np.concatenate([p["bias"] for p in parts]),
        }
    }
    for ours, theirs in _BLOCK.items():
        convert = norm_in if ours.startswith("norm") else linear_in
        tree[ours] = convert(tensors, f"{prefix}.{theirs}")
    return tree


def _layers(tree: dict) -> int:
    return tree["blocks"]["qkv"]["bias"].shape[0]


def _map(function, tree):
    return {k: _map(function, v) if isinstance(v, dict) else function(v) for k, v in tree.items()}


def _stack(trees: list[dict]) -> dict:
    first = trees[0]
    return {
        k: _stack([t[k] for t in trees]) if isinstance(v, dict) else np.stack([t[k] for t in trees])
        for k, v in first.items()
    }


def trunk_out(tree: dict, prefix: str) -> Tensors:
    """Our trunk -> `<prefix>.encoder.layer.<i>.*` and `<prefix>.layernorm.*`."""
    tensors = norm_out(tree["norm"], f"{prefix}.layernorm")
    for i in range(_layers(tree)):
        layer = _map(lambda x, i=i: np.asarray(x)[i], tree["blocks"])
        tensors |= _block_out(layer, f"{prefix}.encoder.layer.{i}")
    return tensors


def trunk_in(tensors: Tensors, prefix: str, layers: int) -> dict:
    """`<prefix>.encoder.layer.<i>.*` and `<prefix>.layernorm.*` -> our trunk with `layers` layers."""
    blocks = [_block_in(tensors, f"{prefix}.encoder.layer.{i}") for i in range(layers)]
    return {"blocks": _stack(blocks), "norm": norm_in(tensors, f"{prefix}.layernorm")}


def encoder_out(tree: dict, prefix: str, patch: int) -> Tensors:
    """Our encoder without its queries -> the tensors of one torch ViT."""
    kernel = np.asarray(tree["patch_embedding"]["kernel"])
    weight = kernel.reshape(patch, patch, 3, -1).transpose(3, 2, 0, 1)
    table = np.concatenate([np.asarray(tree["cls_position"])[None], np.asarray(tree["position_table"])])
    return {
        f"{prefix}.embeddings.cls_token": np.asarray(tree["cls_token"])[None, None],
        f"{prefix}.embeddings.position_embeddings": table[None],
        f"{prefix}.embeddings.patch_embeddings.projection.weight": weight,
        f"{prefix}.embeddings.patch_embeddings.projection.bias": np.asarray(tree["patch_embedding"]["bias"]),
    } | trunk_out(tree["trunk"], prefix)


def encoder_in(tensors: Tensors, prefix: str, layers: int) -> dict:
    """The tensors of one torch ViT -> our encoder without its queries."""
    weight = tensors[f"{prefix}.embeddings.patch_embeddings.projection.weight"]
    table = tensors[f"{prefix}.embeddings.position_embeddings"][0]
    return {
        "patch_embedding": {
            "kernel": weight.transpose(2, 3, 1, 0).reshape(-1, weight.shape[0]),
            "bias": tensors[f"{prefix}.embeddings.patch_embeddings.projection.bias"],
        },
        "cls_token": tensors[f"{prefix}.embeddings.cls_token"][0, 0],
        "cls_position": table[0],
        "position_table": table[1:],
        "trunk": trunk_in(tensors, prefix, layers),
    }
