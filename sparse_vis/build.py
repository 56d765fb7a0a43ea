"""Build model, loss, views and data source from the configuration; none of these sees a ConfigDict."""

from __future__ import annotations

import functools

import jax
from ml_collections import ConfigDict

from sparse_vis.data.scenes import SceneSpec
from sparse_vis.data.sources import Source, announce, make_source
from sparse_vis.losses.spec import LossSpec
from sparse_vis.models.decoder import Decoder
from sparse_vis.models.encoder import Encoder
from sparse_vis.models.factorize import Factorizer
from sparse_vis.models.heads import PrototypeHead
from sparse_vis.models.stellar import Stellar
from sparse_vis.views.make import ViewSpec


def build_model(config: ConfigDict) -> Stellar:
    """The model of config.model, with dtype, attention, remat and unroll of config.efficiency."""
    m, e = config.model, config.efficiency
    how = dict(dtype=e.dtype, attention=e.attention, remat=e.remat, unroll=e.unroll, init_std=m.init_std)

    head = functools.partial(
        PrototypeHead, m.width, m.prototypes.hidden, m.prototypes.dim, m.prototypes.count
    )
    return Stellar(
        encoder=Encoder(
            m.image_size, m.patch, m.width, m.layers, m.heads, m.mlp_dim, queries=m.tokens, **how
        ),
        factorizer=Factorizer(m.width, m.spatial_temperature, e.dtype),
        decoder=Decoder(
            m.width, m.decoder.width, m.decoder.layers, m.decoder.heads, m.decoder.mlp_dim, m.patch,
            codes=m.tokenizer.codes if m.target == "vq" else 0, **how,
        ),
        sparse_head=head(), cls_head=head(), bottleneck=m.bottleneck,
    )  # fmt: skip


def build_loss(config: ConfigDict) -> LossSpec:
    """Weights and temperatures of config.loss."""
    return LossSpec(**config.loss, prototype_chunk=config.efficiency.prototype_chunk)


def build_views(config: ConfigDict) -> ViewSpec:
    """How views are drawn: config.views at the model's image and patch size."""
    return ViewSpec(size=config.model.image_size, patch_size=config.model.patch, **config.views)


def build_source(config: ConfigDict, split: str, **scenes) -> Source:
    """The data source of config.data; process 0 prints what it holds.

    Args:
        scenes: fields of SceneSpec that differ from config.data.scenes.
    """
    d, spec = config.data, SceneSpec(**{**config.data.scenes, **scenes})
    source = make_source(
        d.source, split=split, path=d.path, seed=d.seed, scenes=spec, max_pixels=d.max_pixels
    )
    if jax.process_index() == 0:
        announce(source)
    return source
