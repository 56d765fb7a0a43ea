"""ViTMAEForPreTraining of transformers (names `vit.*`); ViTModel or ViTMAEModel alone (without `vit.`)."""

from __future__ import annotations

from sparse_vis.interop.naming import Family
from sparse_vis.interop.released import renamed

MAE = Family(
    "ViTMAEForPreTraining of transformers (vit.embeddings.cls_token, …)",
    r"vit\..*",
    names=renamed({"encoder.": "vit."}),
    unused=(r"decoder\..*", r"vit\.pooler\..*"),
)
ALONE = Family(
    "ViTModel or ViTMAEModel (embeddings.cls_token, …)",
    r"embeddings\..*|encoder\.layer\.\d+\..*",
    names=renamed({"encoder.": ""}),
    unused=(r"pooler\..*",),
)
