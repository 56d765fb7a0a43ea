"""Families of backbones: tensor names in other projects' weight files.

A family (one file in families/) maps the names of transformers 4, `vit.*`, to its own. If several names map
to one, that tensor is their concatenation along the first axis (fused queries, keys and values).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
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
        rename: name in transformers 4 (`vit.*`) -> name in the family.
        unused: regular expressions of the family's tensors that are not part of the encoder.
    """

    title: str
    telltale: str
    rename: Callable[[str], str]
    unused: tuple[str, ...] = ()

    def expected(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """Shapes of the family's tensors, from shapes by transformers 4 name."""
        found: dict[str, tuple[int, ...]] = {}
        for name, shape in shapes.items():
            theirs = self.rename(name)
            found[theirs] = (found[theirs][0] + shape[0], *shape[1:]) if theirs in found else shape
        return found

    def to_vit(
        self, tensors: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]
    ) -> dict[str, np.ndarray]:
        """The family's tensors under their transformers 4 names; fused ones are split as `shapes` says."""
        start, found = dict.fromkeys(tensors, 0), {}
        for name, shape in shapes.items():
            theirs = self.rename(name)
            found[name] = tensors[theirs][start[theirs] : start[theirs] + shape[0]]
            start[theirs] += shape[0]
        return found


def as_transformers_4(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`<prefix>layers.<i>.attention.q_proj` of transformers 5 -> `<prefix>encoder.layer.<i>.attention.…`.

    Names that are not of transformers 5 stay as they are.
    """

    def renamed(name: str) -> str:
        m = _NAME_5.fullmatch(name)
        return f"{m[1]}encoder.layer.{m[2]}.{_LAYER_5[m[3]]}.{m[4]}" if m else name

    return {renamed(name): array for name, array in found.items()}
