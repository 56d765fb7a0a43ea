"""The original MAE of facebookresearch/mae: timm's names, with queries, keys and values fused."""

from __future__ import annotations

import re

from sparse_vis.interop.naming import Family

_NAMES = {
    "vit.embeddings.cls_token": "cls_token",
    "vit.embeddings.position_embeddings": "pos_embed",
    "vit.embeddings.patch_embeddings.projection": "patch_embed.proj",
    "vit.layernorm": "norm",
    "layernorm_before": "norm1",
    "attention.attention.query": "attn.qkv",
    "attention.attention.key": "attn.qkv",
    "attention.attention.value": "attn.qkv",
    "attention.output.dense": "attn.proj",
    "layernorm_after": "norm2",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}


def _rename(name: str) -> str:
    layer, module, leaf = re.fullmatch(r"(vit\.encoder\.layer\.\d+\.)?(.+?)(\.weight|\.bias)?", name).groups()
    block = f"blocks.{layer.split('.')[3]}." if layer else ""
    return f"{block}{_NAMES[module]}{leaf or ''}"


ORIGINAL_MAE = Family(
    "facebookresearch's MAE (patch_embed.proj.weight, blocks.0.attn.qkv.weight, …)",
    r"patch_embed\..*|blocks\.\d+\..*",
    rename=_rename,
    unused=(r"mask_token", r"decoder_(embed|blocks|norm|pred)\..*", r"decoder_pos_embed"),
)
