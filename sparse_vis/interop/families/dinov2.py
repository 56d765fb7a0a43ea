"""DINOv2 and DINOv2 with registers of transformers; timm_vit.py reads those of timm and facebookresearch."""

from sparse_vis.interop.families.transformers_vit import VIT
from sparse_vis.interop.naming import Family

_WITHIN = {
    "norm_attention": "norm1",
    "norm_mlp": "norm2",
    "mlp_in": "mlp.fc1",
    "mlp_out": "mlp.fc2",
}

DINOV2 = Family(
    "DINOv2 of transformers, with or without registers (encoder.layer.0.layer_scale1.lambda1, …)",
    anchor="encoder.layer.0.layer_scale1.lambda1",
    names=VIT.names
    | {f"encoder/trunk/blocks/{ours}": f"encoder.layer.{{layer}}.{name}" for ours, name in _WITHIN.items()},
    unused=VIT.unused,
    scales=("encoder.layer.{layer}.layer_scale1.lambda1", "encoder.layer.{layer}.layer_scale2.lambda1"),
    registers=("embeddings.register_tokens",),
    refused={r"encoder\.layer\.\d+\.mlp\.weights_(in|out)\..*": "has SwiGLU MLPs (as DINOv2-giant)"},
    bias=VIT.bias,
    epsilon=1e-6,
)
