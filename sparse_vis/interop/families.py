"""Families of backbones: tensor names in other projects' weight files."""

import re
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from itertools import product

import numpy as np

from sparse_vis.interop.released import renamed

# Names within a layer: transformers 5 -> transformers 4.
_LAYER_5 = {
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense",
    "layernorm_before": "layernorm_before",
    "layernorm_after": "layernorm_after",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
_NAME_5 = re.compile(
    rf"((?:.*\.)?)(?:encoder\.layer|layers)\.(\d+)\.({'|'.join(map(re.escape, _LAYER_5))})\.(weight|bias)"
)
_DINOV2 = re.compile(r".*\.layer\.\d+\.mlp\.fc[12]\.\w+")  # DINOv2 has these names in both versions


@dataclass(frozen=True)
class Family:
    """Tensor names of a family of backbones, all without the prefix that they may have in a file.

    Attributes:
        title: for messages. anchor: a tensor that all files of this family have, and no others.
        names: of the encoder's tensors, in the form of `released.NAMES`; if the name of qkv lacks {part},
            queries, keys and values are one tensor.
        unused: regular expressions of the family's tensors that are not part of the encoder.
        scales: LayerScale's factors after attention and after the MLP, which a file may lack.
        patches_alone: whether the position table may lack the row of the class token.
        registers: alternative names of register tokens.
        refused: regular expression of a tensor that our encoder cannot represent -> what models with it have.
        bias: a tensor that a model has only if its queries, keys and values have biases.
        epsilon: of LayerNorm, if no config.json states it; None: not known.
    """

    title: str
    anchor: str
    names: dict[str, str]
    unused: tuple[str, ...] = ()
    scales: tuple[str, ...] = ()
    registers: tuple[str, ...] = ()
    refused: dict[str, str] = field(default_factory=dict)
    bias: str = ""
    epsilon: float | None = None
    patches_alone: bool = False

    def under(self, prefix: str) -> "Family":
        """The same family with a prefix before all names."""
        pattern = re.escape(prefix)
        return replace(
            self,
            names={ours: prefix + name for ours, name in self.names.items()},
            unused=tuple(pattern + name for name in self.unused),
            scales=tuple(prefix + name for name in self.scales),
            registers=tuple(prefix + name for name in self.registers),
            refused={pattern + name: what for name, what in self.refused.items()},
            bias=prefix + self.bias,
        )

    def unlike(self, found: Collection[str]) -> str:
        """In words, what a backbone with these tensors has that our encoder cannot represent, or ""."""
        for (pattern, what), name in product(self.refused.items(), found):
            if re.fullmatch(pattern, name):
                return f"{what} ({name})"
        if self.bias not in found:
            return f"has queries, keys and values without bias (no {self.bias})"
        cls = self.names["encoder/cls_token"]
        return "" if cls in found else f"has no class token ({cls})"


# The plain ViTs of transformers, alone or within another model.
VIT = Family(
    "ViT, ViTMAE, ViTMSN or DINO of transformers (vit.embeddings.cls_token or embeddings.cls_token, …)",
    anchor="encoder.layer.0.layernorm_before.weight",
    names=renamed({"encoder.": ""}),
    unused=(r"embeddings\.mask_token", r"pooler\..*"),
    refused={r"embeddings\.distillation_token": "has a distillation token"},
    bias="encoder.layer.0.attention.attention.query.bias",
)
# DINOv2 of transformers; TIMM reads those of timm and facebookresearch.
_WITHIN = {"norm_attention": "norm1", "norm_mlp": "norm2", "mlp_in": "mlp.fc1", "mlp_out": "mlp.fc2"}

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
# timm's plain ViT and all that use its names.
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
        r"fc_norm\..*": "has its last LayerNorm after the pooling, so none on its tokens",
        r"dist_token": "has a distillation token",
    },
    bias="blocks.0.attn.qkv.bias",
    epsilon=1e-6,
    patches_alone=True,
)
FAMILIES = (VIT, DINOV2, TIMM)


def as_transformers_4(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`<prefix>layers.<i>.attention.q_proj` of transformers 5 -> `<prefix>encoder.layer.<i>.attention.…`.

    Names that are not of transformers 5 stay as they are.
    """

    def old(name: str) -> str:
        m = None if _DINOV2.fullmatch(name) else _NAME_5.fullmatch(name)
        return f"{m[1]}encoder.layer.{m[2]}.{_LAYER_5[m[3]]}.{m[4]}" if m else name

    return {old(name): array for name, array in found.items()}
