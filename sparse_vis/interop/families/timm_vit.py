"""timm's plain ViT and all that use its names: facebookresearch's MAE, DINO and DINOv2, MoCo v3."""

from sparse_vis.interop.naming import Family

TIMM = Family(
    "timm's ViT, facebookresearch's MAE, DINO, DINOv2 or MoCo v3 (blocks.0.attn.qkv.weight, …)",
    anchor="blocks.0.norm1.weight",
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
    # The head is a classifier, or the projection of DINO and MoCo v3.
    unused=(r"mask_token", r"decoder_(embed|blocks|norm|pred)\..*", r"decoder_pos_embed", r"head\..*"),
    scales=("blocks.{layer}.ls1.gamma", "blocks.{layer}.ls2.gamma"),
    registers=("reg_token", "register_tokens"),
    refused={
        r"blocks\.\d+\.mlp\.(w12|w3|fc1_g|fc1_x)\..*": "has SwiGLU MLPs (as DINOv2-giant)",
        r"blocks\.\d+\.attn\.[qk]_norm\..*": "normalises queries and keys",
        r"norm_pre\..*": "has a LayerNorm before its first block",
        r"fc_norm\..*": "has its last LayerNorm behind the pooling, so none on its tokens",
        r"dist_token": "has a distillation token",
    },
    bias="blocks.0.attn.qkv.bias",
    epsilon=1e-6,
    patches_alone=True,
)
