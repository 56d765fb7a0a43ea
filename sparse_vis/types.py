"""The arrays passed between the parts of the package, in the order of computation.

B is the batch, r the number of sparse tokens, n the number of patches, d the encoder's width and
K the number of prototypes (docs/method.md section 1).
"""

from __future__ import annotations

import jax
from flax import struct


@struct.dataclass
class Batch:
    """Images as they leave the data pipeline: uint8 canvases, each filled from its top left corner.

    Attributes:
        image: (B, Hc, Wc, 3) uint8; pixels outside height x width are zero and never read.
        height: (B,) int32, rows of the canvas that hold the image.
        width: (B,) int32, columns of the canvas that hold the image.
        index: (B,) uint32, position of the image in the endless global stream. It seeds all randomness of
            the image, so that no draw depends on how the batch is split.
    """

    image: jax.Array
    height: jax.Array
    width: jax.Array
    index: jax.Array


@struct.dataclass
class Views:
    """All views of a batch of images, float32 RGB in [0, 1].

    Attributes:
        image: (B, H, W, 3), the first global crop without colour change ("the image itself").
        masked: (B, Vg, H, W, 3), the global crops with colour change; masked[:, 0] is `image`'s crop.
        visible: (B, Vg, keep) int32, the patches of each masked view that the encoder sees.
        local: (B, Vl, h, w, 3), the local crops with colour change.
    """

    image: jax.Array
    masked: jax.Array
    visible: jax.Array
    local: jax.Array


@struct.dataclass
class Tokens:
    """What the encoder returns.

    Attributes:
        cls: (B, 1, d) class token.
        S: (B, r, d) semantic tokens: *what*; None if the encoder was called with only="cls".
        U: (B, n, d) dense patch features, for a masked view of its visible patches alone; None if the
            encoder was called with only="cls" or only="S".
    """

    cls: jax.Array
    S: jax.Array | None
    U: jax.Array | None


@struct.dataclass
class Factors:
    """The factorization of the dense features, Z = L S.

    Attributes:
        L: (B, n, r) localization matrix: *where*; every row sums to one.
        Z: (B, n, d) low-rank patch features.
    """

    L: jax.Array
    Z: jax.Array


@struct.dataclass
class Features:
    """What `sparse_vis.encode` returns; shapes as in Tokens and Factors.

    Attributes:
        cls: (B, 1, d).
        sparse: (B, r, d), S.
        dense: (B, n, d), U.
        spatial: (B, n, r), L.
        lowrank: (B, n, d), Z = L S.
        size: (height, width) of the images in pixels, static.
    """

    cls: jax.Array
    sparse: jax.Array
    dense: jax.Array
    spatial: jax.Array
    lowrank: jax.Array
    size: tuple[int, int] = struct.field(pytree_node=False)


@struct.dataclass
class Embeddings:
    """What the two prototype heads make of images; logits are embeddings @ prototypes. D is their dimension.

    Attributes:
        S: (B, r, D) of the semantic tokens. cls: (B, 1, D) of the class token.
        S_prototypes, cls_prototypes: (D, K).
    """

    S: jax.Array
    cls: jax.Array
    S_prototypes: jax.Array
    cls_prototypes: jax.Array


@struct.dataclass
class Outputs:
    """What the student computes from the views of one batch.

    Attributes:
        tokens, factors, embeddings: of the image.
        reconstruction: (B, H, W, 3) unclipped pixels, or (B, n, codes) logits.
        masked_S: (B, Vg, r, d) semantic tokens of the masked views.
        masked_S_embedding: (B, Vg, r, D). masked_cls_embedding: (B, Vg, D). local_cls_embedding: (B, Vl, D).
    """

    tokens: Tokens
    factors: Factors
    embeddings: Embeddings
    reconstruction: jax.Array
    masked_S: jax.Array
    masked_S_embedding: jax.Array
    masked_cls_embedding: jax.Array
    local_cls_embedding: jax.Array


@struct.dataclass
class Potentials:
    """Sinkhorn's column potentials over the global batch, for each head.

    Attributes:
        S, cls: (rounds, K) float32; the last row gives the targets. With the published epsilon there is
            one row per Sinkhorn round, needed for the row sums of the targets; else only the last.
    """

    S: jax.Array
    cls: jax.Array


@struct.dataclass
class Targets:
    """Everything the student is compared with; nothing in here carries a gradient.

    Attributes:
        embeddings: the student's of the image, or the teacher's of its view. With
        potentials: they are the targets softmax(embeddings @ prototypes / temperature + potentials[-1]).
        image_match: (B, r) int32, index of the target token matched to each token of the image.
        masked_match: (B, Vg, r) int32, the same for each token of each masked view.
        reconstruction: (B, H, W, 3) pixels, or (B, n) int32 codes.
    """

    embeddings: Embeddings
    potentials: Potentials
    image_match: jax.Array
    masked_match: jax.Array
    reconstruction: jax.Array
