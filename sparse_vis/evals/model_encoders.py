"""Models as encoders of the evaluation contract: STELLAR, and a plain ViT."""

from __future__ import annotations

import math
import zlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from sparse_vis import api
from sparse_vis.evals.features import Encoder
from sparse_vis.models.block import Compute, Sizes
from sparse_vis.models.encoder import Encoder as Vit
from sparse_vis.models.stellar import Stellar
from sparse_vis.types import Features


def checksums(model: nn.Module, params: dict) -> dict[str, int]:
    """CRC-32 of all parameters, and of the module's fields, such as its temperature."""
    crc = 0
    for leaf in jax.tree.leaves(params):
        crc = zlib.crc32(np.ascontiguousarray(leaf), crc)
    return {"crc32": crc, "model_crc32": zlib.crc32(repr(model).encode())}


def stellar_encoder(name: str, model: Stellar, params: dict, about: dict) -> Encoder:
    """A STELLAR model as an Encoder of the evaluation contract.

    Args:
        name: row of the tables. model, params: from `sparse_vis.load`. about: origin of the weights.
    """
    absent = {}
    if model.decoder.codes and model.tokenizer is None:
        absent["reconstruction"] = "its VQ tokenizer is not at hand; give --config.model.tokenizer.path=FILE"
    prototypes = params["sparse_head"]["prototypes"]

    @jax.jit
    def nearest(params, tokens):
        source = model.apply({"params": params}, tokens, method=lambda m, x: m.sparse_head(x))
        return jnp.argmax(source @ params["sparse_head"]["prototypes"], axis=-1)

    def features(images, wanted):
        out = api.encode(model, params, images)
        found = {"cls": out.cls, "sparse": out.sparse, "dense": out.dense, "spatial": out.spatial}
        if "prototype" in wanted:
            found["prototype"] = nearest(params, out.sparse)
        if "reconstruction" in wanted:
            found["reconstruction"] = api.reconstruct(model, params, out)
        return {key: found[key] for key in wanted}

    def decode(S, L):
        side = math.isqrt(L.shape[1]) * model.patch
        out = Features(cls=None, sparse=S, dense=None, spatial=L, lowrank=L @ S, size=(side, side))
        return api.reconstruct(model, params, out)

    gives = ("cls", "sparse", "dense", "spatial", "prototype", "reconstruction")
    return Encoder(
        name,
        tuple(key for key in gives if key not in absent),
        features,
        None if absent else decode,
        prototypes=prototypes.shape[1],
        about={**about, **checksums(model, params), "patch": model.patch, "tokens": model.encoder.queries},
        absent=absent,
    )


def backbone_encoder(name: str, config: ConfigDict, backbone: dict, about: dict) -> Encoder:
    """A plain ViT without queries, such as an MAE backbone, as an Encoder: CLS and U.

    Args:
        name: row of the tables. config: with the backbone's sizes in config.model. backbone: parameters from
            `read_backbone`. about: origin of the weights.
    """
    m = config.model
    sizes, compute = Sizes(m.width, m.layers, m.heads, m.mlp_dim), Compute(config.eval.dtype)
    vit = Vit(m.image_size, m.patch, sizes, queries=0, compute=compute)
    params = jax.device_put({**backbone, "queries": np.zeros((0, m.width), np.float32)})

    @jax.jit
    def tokens(params, images):
        out = vit.apply({"params": params}, api.as_pixels(images, m.patch))
        return {"cls": out.cls, "dense": out.U}

    def features(images, wanted):
        out = tokens(params, images)
        return {key: out[key] for key in wanted}

    return Encoder(name, ("cls", "dense"), features, about={**about, **checksums(vit, backbone)})
