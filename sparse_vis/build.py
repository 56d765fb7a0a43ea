"""Build model, loss, views and data source from the configuration; what is built never sees a ConfigDict."""

import functools
from typing import TYPE_CHECKING

import jax
from ml_collections import ConfigDict

from sparse_vis.losses.spec import LossSpec
from sparse_vis.models.block import Compute, Sizes
from sparse_vis.models.classifier import LinearClassifier
from sparse_vis.models.decoder import Decoder
from sparse_vis.models.encoder import VisionTransformer
from sparse_vis.models.factorize import Factorizer
from sparse_vis.models.stellar import PrototypeHead, Stellar
from sparse_vis.models.vqgan import VQGAN
from sparse_vis.views.make import ViewSpec

if TYPE_CHECKING:
    from sparse_vis.data.sources import Source


def build_model(config: ConfigDict, tokenizer: VQGAN | None = None) -> Stellar:
    """The model of config.model, which computes as config.efficiency says; `tokenizer` is for target "vq"."""
    m, e, p = config.model, config.efficiency, config.model.prototypes
    compute = Compute(e.dtype, e.attention, e.remat, e.unroll)

    def sizes(of: ConfigDict, **rest) -> Sizes:
        return Sizes(of.width, of.layers, of.heads, of.mlp_dim, m.init_std, **rest)

    head = functools.partial(PrototypeHead, m.width, p.hidden, p.dim, p.count)
    codes = m.tokenizer.codes if m.target == "vq" else 0
    return Stellar(
        encoder=VisionTransformer(m.image_size, m.patch, sizes(m, epsilon=m.norm_epsilon), m.tokens, compute),
        factorizer=Factorizer(m.width, m.spatial_temperature, e.dtype),
        decoder=Decoder(m.width, sizes(m.decoder), m.patch, codes, compute),
        sparse_head=head(),
        cls_head=head(),
        tokenizer=tokenizer,
    )


def build_classifier(config: ConfigDict) -> LinearClassifier | None:
    """The classifier of a fine-tuned model; None without config.finetune.classes."""
    m, f = config.model, config.finetune
    width = m.width * (m.tokens if f.pool == "concat_S" else 1)
    return LinearClassifier(tuple(f.classes), f.pool, width) if f.classes else None


def build_loss(config: ConfigDict) -> LossSpec:
    """Weights and temperatures of config.loss."""
    return LossSpec(**config.loss, prototype_chunk=config.efficiency.prototype_chunk)


def build_views(config: ConfigDict) -> ViewSpec:
    """How views are drawn: config.views at the model's image and patch size."""
    return ViewSpec(size=config.model.image_size, patch_size=config.model.patch, **config.views)


def build_source(config: ConfigDict, split: str) -> "Source":
    """The data source of config.data; process 0 prints what it holds."""
    # Here, because `sparse_vis.load` needs none of it.
    from sparse_vis.data.pictures import PictureSpec
    from sparse_vis.data.scenes import SceneSpec
    from sparse_vis.data.sources import announce, make_source

    d = config.data
    source = make_source(
        d.source, split=split, path=d.path, seed=d.seed, scenes=SceneSpec(**d.scenes),
        pictures=PictureSpec(**d.pictures), max_pixels=d.max_pixels,
    )  # fmt: skip
    if jax.process_index() == 0:
        announce(source)
    return source
