"""Floating-point operations, by formula from a model's sizes, and by counting in a traced program."""

import math

from ml_collections import ConfigDict

from benchmarks.speed.synthetic import BLOCKS, CHANNELS, LATENT, MULTIPLIERS
from sparse_vis.views.masking import visible_count


def kernels(tokens: int, width: int, mlp_dim: int) -> float:
    """Products of one transformer block with its kernels, four d x d maps and the MLP."""
    return 2 * tokens * width * (4 * width + 2 * mlp_dim)


def block(tokens: int, width: int, mlp_dim: int) -> float:
    """Forward pass of one transformer block over one sequence: its kernels and the attention."""
    return kernels(tokens, width, mlp_dim) + 4 * tokens**2 * width


def embedding(m: ConfigDict, patches: int) -> float:
    """Forward pass of the patch embedding."""
    return 2 * patches * 3 * m.patch**2 * m.width


def sequence(m: ConfigDict, patches: int) -> int:
    """Length of the encoder's sequence: CLS, patches and tokens."""
    return 1 + patches + m.tokens


def encoder(m: ConfigDict, patches: int, used: int | None = None) -> float:
    """Forward pass over one view with this number of patches; `m` is config.model.

    The last layer computes `used` tokens, and of the others only keys and values. None: it computes all.
    """
    length = sequence(m, patches)
    others = 0 if used is None else length - used
    saved = 2 * others * m.width * (2 * m.width + 2 * m.mlp_dim) + 4 * others * length * m.width
    return embedding(m, patches) + m.layers * block(length, m.width, m.mlp_dim) - saved


def factorizer(m: ConfigDict, patches: int) -> float:
    """Forward pass of two projections, the cosines and Z = L S."""
    return 2 * (patches + m.tokens) * m.width**2 + 4 * patches * m.tokens * m.width


def decoder(m: ConfigDict, patches: int) -> float:
    """Forward pass over one image."""
    d, out = m.decoder, m.tokenizer.codes if m.target == "vq" else 3 * m.patch**2
    return 2 * patches * d.width * (m.width + out) + d.layers * block(patches, d.width, d.mlp_dim)


def tokenizer(side: int, codes: int) -> float:
    """VQ encoder of the released size over an image of side x side pixels, and search of the codes."""
    total, channels = 2 * side**2 * 9 * 3 * CHANNELS, CHANNELS
    for level, multiplier in enumerate(MULTIPLIERS):
        out = CHANNELS * multiplier
        for _ in range(BLOCKS):
            shortcut = out if channels != out else 0
            total += 2 * side**2 * (9 * channels + 9 * out + shortcut) * out
            channels = out
        side //= 2 if level < len(MULTIPLIERS) - 1 else 1
    return total + 2 * side**2 * (BLOCKS * 18 * channels**2 + LATENT * (channels + codes))


def encode_flops(config: ConfigDict) -> float:
    """Encoder and factorization of one image."""
    m = config.model
    patches = (m.image_size // m.patch) ** 2
    return encoder(m, patches) + factorizer(m, patches)


def step_flops(config: ConfigDict) -> dict[str, float]:
    """Work of one training step per image, by part, for the main recipe with all published terms.

    The backward pass counts as two forward passes. Recomputation, views, Sinkhorn and matching do not count;
    the last three have few products. The targets count with prototype scores and expected prototypes.
    """
    m, v = config.model, config.views
    patches, p = (m.image_size // m.patch) ** 2, m.prototypes
    views = v.global_count

    # Only then the last layer has a program of its own, which computes only the tokens that are used.
    unrolled = config.efficiency.unroll >= m.layers > 1

    def trained(patches: int, used: int | None = None) -> float:  # pixels get no gradient
        return 3 * encoder(m, patches, used if unrolled else None) - embedding(m, patches)

    rows = (1 + views) * (m.tokens + 1) + v.local_count
    head = 2 * p.hidden * (m.width + p.dim)
    scores = 2 * p.dim * p.count
    return {
        "encoder, image": trained(patches),
        "encoder, masked": views * trained(visible_count(patches, v.masking_ratio), 1 + m.tokens),
        "encoder, local": v.local_count * trained((v.local_size // m.patch) ** 2, 1),
        "decoder": 3 * (factorizer(m, patches) + decoder(m, patches)),
        "heads and losses": 3 * rows * (head + scores) + 3 * (m.tokens + 1) * scores,
        "tokenizer": tokenizer(16 * m.image_size // m.patch, m.tokenizer.codes) if m.target == "vq" else 0.0,
    }


def products(jaxpr, loops: bool = True) -> float:
    """FLOPs of all matrix products and convolutions, two per multiply-add, on any device.

    With loops=False, the body of every scan counts once. Raises ValueError for a product in a while loop, as
    the program does not tell how often it runs.
    """
    total = 0.0
    for equation in jaxpr.eqns:
        name, shapes = equation.primitive.name, [getattr(v.aval, "shape", ()) for v in equation.invars]
        size = sum(v.aval.size for v in equation.outvars if hasattr(v.aval, "size"))
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            total += 2 * size * math.prod(shapes[0][axis] for axis in contracted)
        elif name == "conv_general_dilated":
            kernel = equation.params["dimension_numbers"].rhs_spec  # out, in, then the window
            total += 2 * size * math.prod(shapes[1][axis] for axis in kernel[1:])
        parts = [products(inner, loops) for inner in _inner(equation.params)]
        if name == "while" and any(parts) and loops:
            raise ValueError("a matrix product is in a while loop, whose number of iterations is not known")
        times = equation.params["length"] if name == "scan" and loops else 1
        total += times * (max(parts, default=0.0) if name == "cond" else sum(parts))
    return total


def _inner(params: dict):
    """The programs in an equation's parameters."""
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            item = getattr(item, "jaxpr", item)
            if hasattr(item, "eqns"):
                yield item
