"""The model: encoder, factorization, decoder and both prototype heads. No losses, no randomness."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int, Shaped

from sparse_vis.models.decoder import Decoder
from sparse_vis.models.encoder import Encoder
from sparse_vis.models.factorize import Factorizer
from sparse_vis.models.heads import PrototypeHead
from sparse_vis.models.vqgan import VQGAN
from sparse_vis.ops.resize import resize_bicubic
from sparse_vis.types import Factors, Outputs, TargetSource, Tokens, Views


def fold(x: Shaped[Array, "B V *rest"]) -> Shaped[Array, "BV *rest"]:
    """Merge batch and view axes; the view index varies fastest."""
    return x.reshape(-1, *x.shape[2:])


class Stellar(nn.Module):
    """The STELLAR model, in three steps: `encode`, `factorize`, `decode`.

    Attributes:
        encoder, factorizer, decoder, sparse_head, cls_head: the parts.
        bottleneck: the decoder's input, "factors" for Z = L S, or "dense" for U.
        tokenizer: frozen tokenizer of the VQ target. `init_params` leaves its parameters out; `codes` and
            `decode_codes` need them in the tree as "tokenizer".
    """

    encoder: Encoder
    factorizer: Factorizer
    decoder: Decoder
    sparse_head: PrototypeHead
    cls_head: PrototypeHead
    bottleneck: str = "factors"
    tokenizer: VQGAN | None = None

    @property
    def patch(self) -> int:
        return self.encoder.patch

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches of an image of this size in pixels."""
        return height // self.patch, width // self.patch

    def encode(
        self,
        pixels: Float[Array, "B H W 3"],
        visible: Int[Array, "B keep"] | None = None,
        only: Literal["cls", "S"] | None = None,
    ) -> Tokens:
        """Tokens of images in [0, 1]; arguments as in Encoder."""
        return self.encoder(pixels, visible, only)

    def factorize(self, tokens: Tokens) -> Factors:
        """L and Z = L S of encoded images; with a "dense" bottleneck Z is U itself."""
        factors = self.factorizer(tokens.U, tokens.S)
        return factors.replace(Z=tokens.U) if self.bottleneck == "dense" else factors

    def decode(self, Z: Float[Array, "B n d"], grid: tuple[int, int]) -> Array:
        """Unclipped pixels (B, rows*p, columns*p, 3), or code logits (B, n, codes)."""
        return self.decoder(Z, grid)

    def inpaint(
        self, U: Float[Array, "B V keep d"], visible: Int[Array, "B V keep"], grid: tuple[int, int]
    ) -> Float[Array, "B V H W 3"]:
        """Decode whole views from their visible patches' features; hidden patches are zeros in the input."""
        rows = jnp.arange(U.shape[0] * U.shape[1])[:, None]
        whole = jnp.zeros((len(rows), grid[0] * grid[1], U.shape[-1]), U.dtype)
        decoded = self.decode(whole.at[rows, fold(visible)].set(fold(U)), grid)
        return decoded.reshape(*U.shape[:2], *decoded.shape[1:])

    def codes(self, pixels: Float[Array, "B H W 3"]) -> Int[Array, "B n"]:
        """VQ targets of images: one code per patch, (B, n) int32, row-major.

        If a code covers more or fewer pixels than a patch, images are first resized (bicubic, a = -0.75) so
        that codes and patches form the same grid: 224 -> 256 px at patch 14.
        """
        grid = self.grid(*pixels.shape[1:3])
        size = tuple(cells * self.tokenizer.stride for cells in grid)
        if pixels.shape[1:3] != size:
            covered = pixels[:, : grid[0] * self.patch, : grid[1] * self.patch]
            pixels = resize_bicubic(covered, size, align_corners=False)
        return self.tokenizer.codes(self.tokenizer.encode(pixels))

    def decode_codes(
        self, logits: Float[Array, "B n codes"], grid: tuple[int, int]
    ) -> Float[Array, "B h w 3"]:
        """Pixels in [0, 1] from code logits: the tokenizer decodes each patch's most likely code."""
        return self.tokenizer.decode(jnp.argmax(logits, axis=-1).reshape(-1, *grid))

    def target_source(self, pixels: Float[Array, "B H W 3"]) -> TargetSource:
        """Embeddings from which targets are made, computed by the encoder and the heads alone."""
        return self.as_source(self.encode(pixels, only="S"))

    def as_source(self, tokens: Tokens) -> TargetSource:
        return TargetSource(
            S=tokens.S, sparse=self.sparse_head(tokens.S), cls=self.cls_head(tokens.cls),
            sparse_prototypes=self.sparse_head.prototypes, cls_prototypes=self.cls_head.prototypes,
        )  # fmt: skip

    def __call__(self, views: Views, masked_U: bool = False) -> Outputs:
        """All that the objective needs; one encoder call per kind of view.

        Args:
            views: B images with Vg masked and Vl local views each.
            masked_U: whether to return patch features of the masked views.

        Returns:
            Outputs, with masked_U None unless requested and inpainted None.
        """
        batch, height, width, _ = views.image.shape
        tokens = self.encode(views.image)
        factors = self.factorize(tokens)
        masked = self.encode(fold(views.masked), fold(views.visible), None if masked_U else "S")
        masked_S = masked.S.reshape(batch, -1, *masked.S.shape[1:])
        if views.local.shape[1]:
            local_cls = self.cls_head(self.encode(fold(views.local), only="cls").cls)
            local_cls = local_cls.reshape(batch, -1, self.cls_head.dim)
        else:
            local_cls = jnp.zeros((batch, 0, self.cls_head.dim), jnp.float32)
        source = self.as_source(tokens)
        return Outputs(
            tokens=tokens,
            factors=factors,
            reconstruction=self.decode(factors.Z, self.grid(height, width)),
            masked_S=masked_S,
            masked_U=masked.U.reshape(batch, -1, *masked.U.shape[1:]) if masked_U else None,
            sparse=source.sparse,
            cls=source.cls,
            masked_sparse=self.sparse_head(masked_S),
            masked_cls=self.cls_head(masked.cls).reshape(batch, -1, self.cls_head.dim),
            local_cls=local_cls,
            sparse_prototypes=source.sparse_prototypes,
            cls_prototypes=source.cls_prototypes,
        )


def shape_views(model: Stellar) -> Views:
    """Zero views of one image, with which to initialise or trace the model."""
    size = model.encoder.image_size
    image = jnp.zeros((1, size, size, 3), jnp.float32)
    return Views(
        image=image, masked=image[:, None], visible=jnp.zeros((1, 1, 1), jnp.int32), local=image[:, None]
    )


def init_params(model: Stellar, key: Array) -> dict:
    """Random initial parameters: float32 tree, layers stacked (docs/method.md section 5)."""
    return jax.jit(model.init)(key, shape_views(model))["params"]


def teacher_params(params: dict) -> dict:
    """The part of the parameters that the EMA teacher copies (docs/method.md section 6)."""
    return {name: params[name] for name in ("encoder", "sparse_head", "cls_head")}
