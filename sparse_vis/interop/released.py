"""Convert between STELLAR's released weights and our parameter tree (docs/method.md section 9)."""

from __future__ import annotations

import numpy as np

from sparse_vis.interop.layout import (
    Tensors,
    encoder_in,
    encoder_out,
    linear_in,
    linear_out,
    trunk_in,
    trunk_out,
)

# Tensors that the published code saves but never uses: poolers, and the decoder's own patch embedding.
UNUSED = (r".*pooler\.dense\.(weight|bias)", r"decoder\.embeddings\..*")
_HEADS = {"sparse_head": "clustering_head", "cls_head": "cls_cluster_head"}
_TEACHER_HEADS = {"sparse_head": "teacher_head", "cls_head": "teacher_cls_head"}


def head_out(tree: dict, prefix: str) -> Tensors:
    """Our prototype head -> the tensors of one torch head."""
    return {
        f"{prefix}.layer.weight": np.asarray(tree["prototypes"]).T,
        **linear_out(tree["predictor_in"], f"{prefix}.predictor.layers.0"),
        **linear_out(tree["predictor_out"], f"{prefix}.predictor.layers.2"),
    }


def head_in(tensors: Tensors, prefix: str) -> dict:
    return {
        "prototypes": tensors[f"{prefix}.layer.weight"].T,
        "predictor_in": linear_in(tensors, f"{prefix}.predictor.layers.0"),
        "predictor_out": linear_in(tensors, f"{prefix}.predictor.layers.2"),
    }


def _pixel_head_out(tree: dict, patch: int) -> Tensors:
    kernel = np.asarray(tree["pixel_kernel"]).reshape(-1, patch, patch, 3)
    return {
        "reconstruction_head.weight": kernel.transpose(0, 3, 1, 2),
        "reconstruction_head.bias": np.asarray(tree["pixel_bias"]),
    }


def _pixel_head_in(tensors: Tensors) -> dict:
    weight = tensors["reconstruction_head.weight"]
    kernel = weight.transpose(0, 2, 3, 1).reshape(weight.shape[0], -1, 3)
    return {"pixel_kernel": kernel, "pixel_bias": tensors["reconstruction_head.bias"]}


def params_to_tensors(params: dict, patch: int, *, copy: bool = True) -> Tensors:
    """Our parameter tree -> released names and torch layouts, without the unused tensors.

    Args:
        params: tree as from `init_params`; gradients of the same structure work too.
        patch: patch side in pixels.
        copy: make every array contiguous; False leaves views, which suffice to read shapes.

    Returns:
        dict of float32 arrays.
    """
    decoder = params["decoder"]
    head = (
        linear_out(decoder["head"], "reconstruction_head")
        if "head" in decoder
        else _pixel_head_out(decoder, patch)
    )
    tensors = {
        "sparse_tokens": np.asarray(params["encoder"]["queries"]),
        "position_embedding.positional_encoding_gaussian_matrix": np.asarray(decoder["fourier"]),
        **encoder_out(params["encoder"], "encoder", patch),
        **linear_out(params["factorizer"]["dense_proj"], "dense_proj"),
        **linear_out(params["factorizer"]["sparse_proj"], "sparse_proj"),
        **linear_out(decoder["proj"], "decoder_proj"),
        **trunk_out(decoder["trunk"], "decoder"),
        **head,
    }
    for ours, theirs in _HEADS.items():
        tensors |= head_out(params[ours], theirs)
    return {name: np.ascontiguousarray(value) for name, value in tensors.items()} if copy else tensors


def teacher_to_tensors(teacher: dict, patch: int) -> Tensors:
    """Our EMA teacher (encoder with queries, both heads) -> tensors with the released teacher names."""
    tensors = {
        "teacher_sparse_tokens": np.asarray(teacher["encoder"]["queries"]),
        **encoder_out(teacher["encoder"], "teacher_encoder", patch),
    }
    for ours, theirs in _TEACHER_HEADS.items():
        tensors |= head_out(teacher[ours], theirs)
    return {name: np.ascontiguousarray(value) for name, value in tensors.items()}


def tensors_to_params(tensors: Tensors, layers: int, decoder_layers: int) -> dict:
    """Released tensors -> our parameter tree; shapes are checked by the caller.

    Args:
        tensors: released names -> arrays. layers: of the encoder. decoder_layers: of the decoder.

    Returns:
        Parameter tree of numpy arrays.
    """
    pixel = tensors["reconstruction_head.weight"].ndim == 4
    head = _pixel_head_in(tensors) if pixel else {"head": linear_in(tensors, "reconstruction_head")}
    return {
        "encoder": {**encoder_in(tensors, "encoder", layers), "queries": tensors["sparse_tokens"]},
        "factorizer": {
            "dense_proj": linear_in(tensors, "dense_proj"),
            "sparse_proj": linear_in(tensors, "sparse_proj"),
        },
        "decoder": {
            "proj": linear_in(tensors, "decoder_proj"),
            "fourier": tensors["position_embedding.positional_encoding_gaussian_matrix"],
            "trunk": trunk_in(tensors, "decoder", decoder_layers),
            **head,
        },
        **{ours: head_in(tensors, theirs) for ours, theirs in _HEADS.items()},
    }


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
