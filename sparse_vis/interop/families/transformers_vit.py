"""ViTMAEForPreTraining of transformers (names `vit.*`); ViTModel or ViTMAEModel alone (without `vit.`)."""

from __future__ import annotations

from sparse_vis.interop.naming import Family

MAE = Family(
    "ViTMAEForPreTraining of transformers (vit.embeddings.cls_token, …)",
    r"vit\..*",
    rename=lambda name: name,
    unused=(r"decoder\..*", r"vit\.pooler\..*"),
)
ALONE = Family(
    "ViTModel or ViTMAEModel (embeddings.cls_token, …)",
    r"embeddings\..*|encoder\.layer\.\d+\..*",
    rename=lambda name: name.removeprefix("vit."),
    unused=(r"pooler\..*",),
)
