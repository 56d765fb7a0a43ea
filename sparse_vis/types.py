"""The arrays passed between the parts of the package, in the order of computation.

B is the batch, r the number of sparse tokens, n the number of patches, d the encoder's width, K the number of
prototypes and D their dimension; Vg global views of H x W pixels, Vl local ones of h x w (docs/method.md
section 1). Floats are float32.
"""

import jax
from flax import struct


@struct.dataclass
class Batch:
    """Images as they leave the data pipeline: uint8 canvases, each filled from its top left corner."""

    image: jax.Array  # (B, Hc, Wc, 3) uint8; pixels outside height x width are zero and never read
    height: jax.Array  # (B,) int32, rows of the canvas that hold the image
    width: jax.Array  # (B,) int32, columns of the canvas that hold the image
    # (B,) uint32, position of the image in the endless global stream. All random draws for the image depend
    # on it, so that none depends on how the batch is split.
    index: jax.Array
    label: jax.Array | None = None  # (B,) int32, class, -1 for none; only in fine-tuning


@struct.dataclass
class Views:
    """All views of a batch of images, RGB in [0, 1]."""

    image: jax.Array  # (B, H, W, 3), the first global crop without colour change ("the image itself")
    masked: jax.Array  # (B, Vg, H, W, 3), global crops with colour change; masked[:, 0] is `image`'s crop
    visible: jax.Array  # (B, Vg, keep) int32, the patches of each masked view that the encoder sees
    local: jax.Array  # (B, Vl, h, w, 3), the local crops with colour change
    label: jax.Array | None = None  # that of the batch
    # With mixup, of the image that is blended into `image`: its class, and 1 - share is its weight.
    other: jax.Array | None = None  # (B,) int32
    share: jax.Array | None = None  # (B,) in [0, 1]


@struct.dataclass
class Tokens:
    """What the encoder returns."""

    cls: jax.Array  # (B, 1, d) class token
    S: jax.Array | None  # (B, r, d) semantic tokens: *what*; None if it was called with only="cls"
    # (B, n, d) dense patch features, for a masked view of its visible patches alone; None if the encoder was
    # called with only="cls" or only="S".
    U: jax.Array | None


@struct.dataclass
class Factors:
    """The factorization of the dense features, Z = L S."""

    L: jax.Array  # (B, n, r) localization matrix: *where*; every row sums to one
    Z: jax.Array  # (B, n, d) low-rank patch features


@struct.dataclass
class Features:
    """What `sparse_vis.encode` returns."""

    cls: jax.Array  # (B, 1, d)
    sparse: jax.Array  # (B, r, d), S
    dense: jax.Array  # (B, n, d), U
    spatial: jax.Array  # (B, n, r), L
    lowrank: jax.Array  # (B, n, d), Z = L S
    size: tuple[int, int] = struct.field(pytree_node=False)  # (height, width) of the images in pixels


@struct.dataclass
class Embeddings:
    """What the two prototype heads make of images; logits are embeddings @ prototypes."""

    S: jax.Array  # (B, r, D) of the semantic tokens
    cls: jax.Array  # (B, 1, D) of the class token
    S_prototypes: jax.Array  # (D, K)
    cls_prototypes: jax.Array  # (D, K)


@struct.dataclass
class Outputs:
    """What the student computes from the views of one batch."""

    tokens: Tokens  # this and the next two are of the image
    factors: Factors
    embeddings: Embeddings
    reconstruction: jax.Array  # (B, H, W, 3) unclipped pixels, or (B, n, codes) logits
    masked_S: jax.Array  # (B, Vg, r, d) semantic tokens of the masked views
    masked_S_embedding: jax.Array  # (B, Vg, r, D)
    masked_cls_embedding: jax.Array  # (B, Vg, D)
    local_cls_embedding: jax.Array  # (B, Vl, D)


@struct.dataclass
class Potentials:
    """Sinkhorn's column potentials over the global batch, for each head: (rounds, K).

    The last row gives the targets. With the published epsilon there is one row per Sinkhorn round, needed for
    the row sums of the targets; else only the last.
    """

    S: jax.Array
    cls: jax.Array


@struct.dataclass
class Targets:
    """Everything the student is compared with; nothing in here carries a gradient."""

    embeddings: Embeddings  # the student's of the image, or the teacher's of its view
    potentials: Potentials  # targets: softmax(embeddings @ prototypes / temperature + potentials[-1])
    image_match: jax.Array  # (B, r) int32, index of the target token matched to each token of the image
    masked_match: jax.Array  # (B, Vg, r) int32, the same for each token of each masked view
    reconstruction: jax.Array  # (B, H, W, 3) pixels, or (B, n) int32 codes
