"""Families of backbones: tensor names in other projects' weight files, one file a family in families/."""

from __future__ import annotations

import re
from dataclasses import dataclass

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
_NAME_5 = re.compile(rf"((?:.*\.)?)layers\.(\d+)\.({'|'.join(map(re.escape, _LAYER_5))})\.(weight|bias)")


@dataclass(frozen=True)
class Family:
    """Tensor names of a family of backbones.

    Attributes:
        title: for messages. telltale: regular expression of names that only this family has.
        names: of the encoder's tensors, in the form of `released.NAMES`; without {part} in the name of qkv,
            queries, keys and values are one tensor.
        unused: regular expressions of the family's tensors that are not part of the encoder.
    """

    title: str
    telltale: str
    names: dict[str, str]
    unused: tuple[str, ...] = ()


def as_transformers_4(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`<prefix>layers.<i>.attention.q_proj` of transformers 5 -> `<prefix>encoder.layer.<i>.attention.…`.

    Names that are not of transformers 5 stay as they are.
    """

    def renamed(name: str) -> str:
        m = _NAME_5.fullmatch(name)
        return f"{m[1]}encoder.layer.{m[2]}.{_LAYER_5[m[3]]}.{m[4]}" if m else name

    return {renamed(name): array for name, array in found.items()}
