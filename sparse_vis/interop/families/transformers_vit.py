"""The plain ViTs of transformers, alone or within another model: ViT, ViTMAE, ViTMSN, DINO."""

from sparse_vis.interop.naming import Family
from sparse_vis.interop.released import renamed

VIT = Family(
    "ViT, ViTMAE, ViTMSN or DINO of transformers (vit.embeddings.cls_token or embeddings.cls_token, …)",
    anchor="encoder.layer.0.layernorm_before.weight",
    names=renamed({"encoder.": ""}),
    unused=(r"embeddings\.mask_token", r"pooler\..*"),
    refused={r"embeddings\.distillation_token": "has a distillation token"},
    bias="encoder.layer.0.attention.attention.query.bias",
)
