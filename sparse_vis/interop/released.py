"""Convert between STELLAR's released weights and our parameter tree (docs/method.md section 9).

Torch stores linear weights as out x in and convolutions as out x in x kh x kw; queries, keys and values, and
all layers, are separate tensors. Our kernels are in x out, QKV is one kernel, and layers are stacked.
"""

from collections.abc import Iterator
from itertools import product

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

Tensors = dict[str, np.ndarray]

# Tensors that the published code saves but never uses: poolers, and the decoder's own patch embedding.
UNUSED = (r".*pooler\.dense\.(weight|bias)", r"decoder\.embeddings\..*")
# Our arrays -> tensors; our modules (a kernel or scale, and a bias) -> modules (a weight and a bias).
NAMES = {
    "encoder/queries": "sparse_tokens",
    "encoder/cls_token": "encoder.embeddings.cls_token",
    "encoder/positions": "encoder.embeddings.position_embeddings",  # cls_position above position_table
    "encoder/patch_embedding": "encoder.embeddings.patch_embeddings.projection",
    "encoder/trunk/norm": "encoder.layernorm",
    "factorizer/dense_proj": "dense_proj",
    "factorizer/sparse_proj": "sparse_proj",
    "decoder/proj": "decoder_proj",
    "decoder/fourier": "position_embedding.positional_encoding_gaussian_matrix",
    "decoder/trunk/norm": "decoder.layernorm",
    "decoder/head": "reconstruction_head",
    "decoder/pixel_kernel": "reconstruction_head.weight",
    "decoder/pixel_bias": "reconstruction_head.bias",
}
for _ours, _theirs in (("sparse_head", "clustering_head"), ("cls_head", "cls_cluster_head")):
    NAMES |= {
        f"{_ours}/prototypes": f"{_theirs}.layer.weight",
        f"{_ours}/predictor_in": f"{_theirs}.predictor.layers.0",
        f"{_ours}/predictor_out": f"{_theirs}.predictor.layers.2",
    }
for _trunk in ("encoder", "decoder"):
    NAMES |= {
        f"{_trunk}/trunk/blocks/{ours}": f"{_trunk}.encoder.layer.{{layer}}.{theirs}"
        for ours, theirs in {
            "norm_attention": "layernorm_before",
            "qkv": "attention.attention.{part}",
            "attention_out": "attention.output.dense",
            "norm_mlp": "layernorm_after",
            "mlp_in": "intermediate.dense",
            "mlp_out": "output.dense",
        }.items()
    }


def renamed(first: dict[str, str]) -> dict[str, str]:
    """NAMES, with the beginnings of the tensors' names replaced: old -> new."""
    return {
        path: next((new + name.removeprefix(old) for old, new in first.items() if name.startswith(old)), name)
        for path, name in NAMES.items()
    }


# Names of the EMA teacher, which has the encoder and both heads.
TEACHER = renamed(
    {
        "sparse_tokens": "teacher_sparse_tokens", "encoder.": "teacher_encoder.",
        "clustering_head.": "teacher_head.", "cls_cluster_head.": "teacher_cls_head.",
    }
)  # fmt: skip
# Our array -> (patch side -> shape before the transposition, if it differs; axes in torch's order). The axes
# of all other arrays are reversed.
_TURNED = {
    "encoder/queries": (None, (0, 1)),
    "encoder/cls_token": (lambda p: (1, 1, -1), (0, 1, 2)),
    "encoder/positions": (None, (0, 1, 2)),
    "encoder/patch_embedding/kernel": (lambda p: (p, p, 3, -1), (3, 2, 0, 1)),
    "decoder/fourier": (None, (0, 1)),
    "decoder/pixel_kernel": (lambda p: (-1, p, p, 3), (0, 3, 1, 2)),
}


def params_to_tensors(params: dict, patch: int, *, copy: bool = True, names: dict = NAMES) -> Tensors:
    """Our parameter tree, or parts of it, in released names and torch layouts, without the unused tensors.

    Args:
        params: tree as from `init_params`; gradients of the same structure work too.
        patch: patch side in pixels. names: of the tensors, in the form of NAMES.
        copy: whether to make every array contiguous; views suffice to read shapes.
    """
    flat = {path: np.asarray(array) for path, array in flatten_dict(params, sep="/").items()}
    if "encoder/position_table" in flat:
        rows = flat.pop("encoder/cls_position")[None], flat.pop("encoder/position_table")
        flat["encoder/positions"] = np.concatenate(rows)[None]
    tensors = {}
    for path, array in flat.items():
        split, axes = _TURNED.get(path, (None, None))
        for name, index in _tensors_of(path, array.shape, names):
            part = array[index]
            tensors[name] = (part.reshape(split(patch)) if split else part).transpose(axes)
    return {name: np.ascontiguousarray(value) for name, value in tensors.items()} if copy else tensors


def shapes_of(abstract: dict, patch: int, names: dict = NAMES) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the tensors of a tree of shapes, or of parts of it."""
    # Views of a single element, so that full-size models take no memory.
    tree = jax.tree.map(lambda x: np.broadcast_to(np.float32(0), x.shape), abstract)
    return {name: x.shape for name, x in params_to_tensors(tree, patch, copy=False, names=names).items()}


def teacher_to_tensors(teacher: dict, patch: int) -> Tensors:
    """Our EMA teacher (encoder with queries, both heads) in the released names of a teacher."""
    return params_to_tensors(teacher, patch, names=TEACHER)


def tensors_to_params(tensors: Tensors, abstract: dict, names: dict = NAMES) -> dict:
    """Inverse of `params_to_tensors`: a tree of float32 arrays; shapes are checked by the caller.

    `abstract` is a tree of shapes; the tensors' position table may have another length.
    """
    flat = {}
    for path, leaf in flatten_dict(abstract, sep="/").items():
        if path in ("encoder/cls_position", "encoder/position_table"):
            table = tensors[names["encoder/positions"]][0]
            flat[path] = table[0] if path == "encoder/cls_position" else table[1:]
            continue
        _, axes = _TURNED.get(path, (None, None))
        flat[path] = np.empty(leaf.shape, np.float32)
        for name, index in _tensors_of(path, leaf.shape, names):
            theirs = tensors[name].transpose(None if axes is None else np.argsort(axes))
            flat[path][index] = theirs.reshape(flat[path][index].shape)
    return unflatten_dict(flat, sep="/")


def _tensors_of(path: str, shape: tuple[int, ...], names: dict) -> Iterator[tuple[str, tuple]]:
    """Name and place (an index into our array) of each tensor that one of our arrays consists of."""
    module, _, leaf = path.rpartition("/")
    name = names.get(path) or f"{names[module]}.{'bias' if leaf == 'bias' else 'weight'}"
    if "{layer}" not in name:
        yield name, ()
        return
    parts = ("query", "key", "value") if "{part}" in name else ("",)
    width = shape[-1] // len(parts)
    for layer, (i, part) in product(range(shape[0]), enumerate(parts)):
        yield name.format(layer=layer, part=part), (layer, ..., slice(i * width, (i + 1) * width))


def unused_tensors(params: dict, *, teacher: bool) -> Tensors:
    """Zeros for tensors that the published module declares but never uses, so that strict loading works.

    These are poolers (with `teacher`, the EMA teacher's too) and the decoder's embeddings, which are always
    those of a ViT for 224 px and patch 16.
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
