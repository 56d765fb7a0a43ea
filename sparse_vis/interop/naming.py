"""Families of backbones: tensor names in other projects' weight files, one file a family in families/."""

import re
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from itertools import product

import numpy as np

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
        names: of the encoder's tensors, in the form of `released.NAMES`; without {part} in the name of qkv,
            queries, keys and values are one tensor.
        unused: regular expressions of the family's tensors that are not part of the encoder.
        scales: LayerScale's factors behind attention and behind the MLP, which a file may lack.
        patches_alone: the position table may lack the row of the class token.
        registers: alternative names of register tokens.
        refused: regular expressions of tensors of models that our encoder cannot represent -> what such a
            model has.
        bias: a tensor that only models whose queries, keys and values have biases have.
        epsilon: of LayerNorm, where no config.json says it; None: not known.
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
        """The same names with a prefix of words and dots."""
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
        """What a backbone of these tensors has that our encoder cannot represent, in words; "" if nothing."""
        for (pattern, what), name in product(self.refused.items(), found):
            if re.fullmatch(pattern, name):
                return f"{what} ({name})"
        if self.bias not in found:
            return f"has queries, keys and values without bias (no {self.bias})"
        cls = self.names["encoder/cls_token"]
        return "" if cls in found else f"has no class token ({cls})"


def as_transformers_4(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`<prefix>layers.<i>.attention.q_proj` of transformers 5 -> `<prefix>encoder.layer.<i>.attention.…`.

    Names that are not of transformers 5 stay as they are.
    """

    def renamed(name: str) -> str:
        m = None if _DINOV2.fullmatch(name) else _NAME_5.fullmatch(name)
        return f"{m[1]}encoder.layer.{m[2]}.{_LAYER_5[m[3]]}.{m[4]}" if m else name

    return {renamed(name): array for name, array in found.items()}
