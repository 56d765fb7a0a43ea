"""The model: encoder, factorization, decoder and both prototype heads. No losses, no randomness."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int, Shaped

from sparse_vis.models.classifier import LinearClassifier, NearestClassifier, Segmenter
from sparse_vis.models.decoder import Decoder
from sparse_vis.models.encoder import Only, Pixels, Visible, VisionTransformer
from sparse_vis.models.factorize import Factorizer, l2_normalize
from sparse_vis.models.layers import gelu, uniform_linear
from sparse_vis.models.vqgan import VQGAN
from sparse_vis.types import Embeddings, Factors, Outputs, Tokens, Views


def fold(x: Shaped[Array, "B V *rest"]) -> Shaped[Array, "BV *rest"]:
    """Join batch and view axes; the view index varies fastest."""
    return x.reshape(-1, *x.shape[2:])


class PrototypeHead(nn.Module):
    """MLP d -> hidden -> D, L2-normalised, and a matrix of K prototypes; always float32."""

    input_width: int  # d
    hidden: int
    dim: int  # D
    count: int  # K

    def setup(self):
        self.predictor_in = uniform_linear(self.hidden, self.input_width)
        self.predictor_out = uniform_linear(self.dim, self.hidden)
        drawn = nn.initializers.normal(1.0, jnp.float32)
        self.prototypes = self.param("prototypes", drawn, (self.dim, self.count))

    def __call__(self, x: Float[Array, "*rows d"]) -> Float[Array, "*rows D"]:
        """Embeddings on the unit sphere; logits are embeddings @ prototypes."""
        hidden = gelu(self.predictor_in(x.astype(jnp.float32)))
        return l2_normalize(self.predictor_out(hidden))


class Stellar(nn.Module):
    """The STELLAR model, in three steps: `encode`, `factorize`, `decode`.

    The tokenizer of the VQ target is frozen: the trained parameters do not include it, but `codes` and
    `decode_codes` need its parameters under "tokenizer". `classify` needs those of "classifier".
    """

    encoder: VisionTransformer
    factorizer: Factorizer
    decoder: Decoder
    sparse_head: PrototypeHead
    cls_head: PrototypeHead
    tokenizer: VQGAN | None = None
    classifier: LinearClassifier | NearestClassifier | None = None
    segmenter: Segmenter | None = None

    @property
    def patch(self) -> int:
        return self.encoder.patch

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches of an image of this size in pixels."""
        return height // self.patch, width // self.patch

    def encode(self, pixels: Pixels, visible: Visible | None = None, only: Only | None = None) -> Tokens:
        """Tokens of images in [0, 1]; arguments as in VisionTransformer."""
        return self.encoder(pixels, visible, only)

    def factorize(self, tokens: Tokens) -> Factors:
        """L and Z = L S of encoded images."""
        return self.factorizer(tokens.U, tokens.S)

    def decode(self, Z: Float[Array, "B n d"], grid: tuple[int, int]) -> Array:
        """Unclipped pixels or code logits, as in Decoder."""
        return self.decoder(Z, grid)

    def codes(self, pixels: Pixels) -> Int[Array, "B n"]:
        """VQ targets of images: one code per patch, row-major.

        Where a code is larger or smaller than a patch, images are first resized: 224 -> 256 px at patch 14.
        """
        rows, columns = grid = self.grid(*pixels.shape[1:3])
        return self.tokenizer.codes_on(pixels[:, : rows * self.patch, : columns * self.patch], grid)

    def decode_codes(
        self, logits: Float[Array, "B n codes"], grid: tuple[int, int]
    ) -> Float[Array, "B h w 3"]:
        """Pixels in [0, 1] from code logits: the tokenizer decodes each patch's most likely code."""
        return self.tokenizer.decode(jnp.argmax(logits, axis=-1).reshape(-1, *grid))

    def classify(self, pixels: Pixels) -> Float[Array, "B classes"]:
        """The classifier's logits of images in [0, 1]."""
        return self.classifier(self.encode(pixels, only="S"))

    def heads(self, tokens: Tokens) -> Embeddings:
        """Embeddings of S and CLS, and the prototypes."""
        return Embeddings(
            S=self.sparse_head(tokens.S), cls=self.cls_head(tokens.cls),
            S_prototypes=self.sparse_head.prototypes, cls_prototypes=self.cls_head.prototypes,
        )  # fmt: skip

    def embed(self, pixels: Pixels) -> tuple[Tokens, Embeddings]:
        """Tokens without U, and embeddings: all that targets are made from."""
        tokens = self.encode(pixels, only="S")
        return tokens, self.heads(tokens)

    def every_part(self, pixels: Pixels) -> tuple:
        """Applies each part once to create its parameters; `__call__` would trace the encoder three times."""
        tokens = self.encode(pixels)
        decoded = self.decode(self.factorize(tokens).Z, self.grid(*pixels.shape[1:3]))
        return self.heads(tokens), decoded, self.classifier and self.classifier(tokens)

    def __call__(self, views: Views) -> Outputs:
        """All that the objective needs; one encoder call per kind of view."""
        batch, height, width, _ = views.image.shape
        tokens = self.encode(views.image)
        factors = self.factorize(tokens)
        masked = self.encode(fold(views.masked), fold(views.visible), only="S")
        masked_S = masked.S.reshape(batch, -1, *masked.S.shape[1:])
        local_cls = jnp.zeros((batch, 0, self.cls_head.dim), jnp.float32)
        if views.local.shape[1]:
            local_cls = self.cls_head(self.encode(fold(views.local), only="cls").cls)
        embeddings = self.heads(tokens)
        return Outputs(
            tokens=tokens,
            factors=factors,
            embeddings=embeddings,
            reconstruction=self.decode(factors.Z, self.grid(height, width)),
            masked_S=masked_S,
            masked_S_embedding=self.sparse_head(masked_S),
            masked_cls_embedding=self.cls_head(masked.cls).reshape(batch, -1, self.cls_head.dim),
            local_cls_embedding=local_cls.reshape(batch, -1, self.cls_head.dim),
        )


class FineTuned(Stellar):
    """A Stellar with a classifier, which maps views to the classifier's logits of `views.image`."""

    def __call__(self, views: Views) -> Float[Array, "B classes"]:
        return self.classify(views.image)


def init_params(model: Stellar, key: Array) -> dict:
    """Random initial parameters: float32 tree, layers stacked (docs/method.md section 5)."""
    size = model.encoder.image_size
    init = functools.partial(model.init, method="every_part")
    return jax.jit(init)(key, jnp.zeros((1, size, size, 3), jnp.float32))["params"]


def teacher_params(params: dict) -> dict:
    """The part of the parameters that the EMA teacher copies (docs/method.md section 6)."""
    return {name: params[name] for name in ("encoder", "sparse_head", "cls_head")}
