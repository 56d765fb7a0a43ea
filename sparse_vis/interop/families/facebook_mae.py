"""The original MAE of facebookresearch/mae: timm's names, with queries, keys and values in one tensor."""

from __future__ import annotations

from sparse_vis.interop.naming import Family

ORIGINAL_MAE = Family(
    "facebookresearch's MAE (patch_embed.proj.weight, blocks.0.attn.qkv.weight, …)",
    r"patch_embed\..*|blocks\.\d+\..*",
    names={
        "encoder/cls_token": "cls_token",
        "encoder/positions": "pos_embed",
        "encoder/patch_embedding": "patch_embed.proj",
        "encoder/trunk/norm": "norm",
        "encoder/trunk/blocks/norm_attention": "blocks.{layer}.norm1",
        "encoder/trunk/blocks/qkv": "blocks.{layer}.attn.qkv",
        "encoder/trunk/blocks/attention_out": "blocks.{layer}.attn.proj",
        "encoder/trunk/blocks/norm_mlp": "blocks.{layer}.norm2",
        "encoder/trunk/blocks/mlp_in": "blocks.{layer}.mlp.fc1",
        "encoder/trunk/blocks/mlp_out": "blocks.{layer}.mlp.fc2",
    },
    unused=(r"mask_token", r"decoder_(embed|blocks|norm|pred)\..*", r"decoder_pos_embed"),
)
