"""Convert between STELLAR's released weights and our parameter tree (docs/method.md section 9).

Torch stores linear weights as out x in, convolutions as out x in x kh x kw, separate queries, keys and
values, and layers under numbered names. Our kernels are in x out, QKV is fused, and layers are stacked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

Tensors = dict[str, np.ndarray]

# Tensors that the published code saves but never uses: poolers, and the decoder's own patch embedding.
UNUSED = (r".*pooler\.dense\.(weight|bias)", r"decoder\.embeddings\..*")
# Our arrays -> tensors.
_ARRAYS = {
    "encoder/queries": "sparse_tokens",
    "encoder/cls_token": "encoder.embeddings.cls_token",
    "encoder/positions": "encoder.embeddings.position_embeddings",  # cls_position above position_table
    "decoder/fourier": "position_embedding.positional_encoding_gaussian_matrix",
    "decoder/pixel_kernel": "reconstruction_head.weight",
    "decoder/pixel_bias": "reconstruction_head.bias",
    "sparse_head/prototypes": "clustering_head.layer.weight",
    "cls_head/prototypes": "cls_cluster_head.layer.weight",
}
# Our modules, of a kernel or scale and a bias -> modules of a weight and a bias.
_MODULES = {
    "encoder/patch_embedding": "encoder.embeddings.patch_embeddings.projection",
    "encoder/trunk/norm": "encoder.layernorm",
    "factorizer/dense_proj": "dense_proj",
    "factorizer/sparse_proj": "sparse_proj",
    "decoder/proj": "decoder_proj",
    "decoder/trunk/norm": "decoder.layernorm",
    "decoder/head": "reconstruction_head",
    "sparse_head/predictor_in": "clustering_head.predictor.layers.0",
    "sparse_head/predictor_out": "clustering_head.predictor.layers.2",
    "cls_head/predictor_in": "cls_cluster_head.predictor.layers.0",
    "cls_head/predictor_out": "cls_cluster_head.predictor.layers.2",
}
_BLOCKS = {
    "norm_attention": "layernorm_before",
    "qkv": "attention.attention.{part}",
    "attention_out": "attention.output.dense",
    "norm_mlp": "layernorm_after",
    "mlp_in": "intermediate.dense",
    "mlp_out": "output.dense",
}
_MODULES |= {
    f"{trunk}/trunk/blocks/{ours}": f"{trunk}.encoder.layer.{{layer}}.{theirs}"
    for trunk, (ours, theirs) in product(("encoder", "decoder"), _BLOCKS.items())
}
# Our array -> shape before the transposition, for a patch side, if it is another; axes in torch's order. All
# other arrays are transposed.
_TURNED = {
    "encoder/queries": (None, (0, 1)),
    "encoder/cls_token": (lambda p: (1, 1, -1), (0, 1, 2)),
    "encoder/positions": (None, (0, 1, 2)),
    "encoder/patch_embedding/kernel": (lambda p: (p, p, 3, -1), (3, 2, 0, 1)),
    "decoder/fourier": (None, (0, 1)),
    "decoder/pixel_kernel": (lambda p: (-1, p, p, 3), (0, 3, 1, 2)),
}
# Other first parts of names: in the EMA teacher, which has the encoder and both heads.
TEACHER = {
    "sparse_tokens": "teacher_sparse_tokens", "encoder": "teacher_encoder",
    "clustering_head": "teacher_head", "cls_cluster_head": "teacher_cls_head",
}  # fmt: skip


def params_to_tensors(
    params: dict, patch: int, *, copy: bool = True, first: Mapping[str, str] | None = None
) -> Tensors:
    """Our parameter tree, or parts of it -> released names and torch layouts, without the unused tensors.

    Args:
        params: tree as from `init_params`; gradients of the same structure work too.
        patch: patch side in pixels.
        copy: make every array contiguous; False leaves views, which suffice to read shapes.
        first: first parts of names -> others in their place.
    """
    flat = {path: np.asarray(array) for path, array in flatten_dict(params, sep="/").items()}
    if "encoder/position_table" in flat:
        rows = flat.pop("encoder/cls_position")[None], flat.pop("encoder/position_table")
        flat["encoder/positions"] = np.concatenate(rows)[None]
    tensors = {}
    for path, array in flat.items():
        split, axes = _TURNED.get(path, (None, None))
        for name, index in _names(path, array.shape, first):
            part = array[index]
            tensors[name] = (part.reshape(split(patch)) if split else part).transpose(axes)
    return {name: np.ascontiguousarray(value) for name, value in tensors.items()} if copy else tensors


def teacher_to_tensors(teacher: dict, patch: int) -> Tensors:
    """Our EMA teacher (encoder with queries, both heads) -> tensors with the released teacher names."""
    return params_to_tensors(teacher, patch, first=TEACHER)


def tensors_to_params(tensors: Tensors, abstract: dict, first: Mapping[str, str] | None = None) -> dict:
    """Inverse of `params_to_tensors`: a tree of float32 arrays; shapes are checked by the caller.

    Args:
        abstract: shapes of the tree; the tensors' position table may have another length.
        first: as in `params_to_tensors`.
    """
    flat = {}
    for path, leaf in flatten_dict(abstract, sep="/").items():
        if path in ("encoder/cls_position", "encoder/position_table"):
            ((name, _),) = _names("encoder/positions", (), first)
            flat[path] = tensors[name][0, 0] if path == "encoder/cls_position" else tensors[name][0, 1:]
            continue
        _, axes = _TURNED.get(path, (None, None))
        flat[path] = np.empty(leaf.shape, np.float32)
        for name, index in _names(path, leaf.shape, first):
            theirs = tensors[name].transpose(None if axes is None else np.argsort(axes))
            flat[path][index] = theirs.reshape(flat[path][index].shape)
    return unflatten_dict(flat, sep="/")


def _names(path: str, shape: tuple[int, ...], first: Mapping[str, str] | None) -> Iterator[tuple[str, tuple]]:
    """The tensors that an array of ours consists of: their names, and their places in it."""
    module, _, leaf = path.rpartition("/")
    name = _ARRAYS.get(path) or f"{_MODULES[module]}.{'bias' if leaf == 'bias' else 'weight'}"
    top, dot, rest = name.partition(".")
    name = (first or {}).get(top, top) + dot + rest
    if "{layer}" not in name:
        yield name, ()
        return
    parts = ("query", "key", "value") if "{part}" in name else ("",)
    width = shape[-1] // len(parts)
    for layer, (i, part) in product(range(shape[0]), enumerate(parts)):
        yield name.format(layer=layer, part=part), (layer, ..., slice(i * width, (i + 1) * width))


def unused_tensors(params: dict, *, teacher: bool) -> Tensors:
    """Zeros for tensors that the published module declares but never uses, so that strict loading works.

    The unused patch embedding of the decoder is always that of a ViT for 224 px and patch 16.

    Args:
        params: our parameter tree. teacher: whether the EMA teacher is exported too.
    """
    width = params["encoder"]["cls_token"].shape[-1]
    decoder = params["decoder"]["proj"]["bias"].shape[-1]
    pooled = {"encoder": width, "decoder": decoder} | ({"teacher_encoder": width} if teacher else {})
    shapes = {f"{module}.pooler.dense.weight": (size, size) for module, size in pooled.items()}
    shapes |= {f"{module}.pooler.dense.bias": (size,) for module, size in pooled.items()}
    shapes |= {
        "decoder.embeddings.cls_token": (1, 1, decoder),
        "decoder.embeddings.position_embeddings": (1, 197, decoder),
        "decoder.embeddings.patch_embeddings.projection.weight": (decoder, 3, 16, 16),
        "decoder.embeddings.patch_embeddings.projection.bias": (decoder,),
    }
    return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
