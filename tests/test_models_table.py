"""Full-size models: names, shapes and counts by formula; our trees and docs/models.md agree with them."""

from __future__ import annotations

import math
from pathlib import Path

import jax
import pytest

from sparse_vis.interop import manifest
from sparse_vis.interop.load import abstract_params, released_shapes
from sparse_vis.models.vqgan import VQGAN

TABLE = Path(__file__).parent.parent / "docs" / "models.md"
# docs/method.md sections 1, 4, 5 and 9: width, layers, patch, tokens
SIZES = {
    "stellar-b16": (768, 12, 16, 16),
    "stellar-l16": (1024, 24, 16, 16),
    "stellar-h16": (1280, 32, 14, 16),
    "stellar-b8": (768, 12, 16, 8),
    "stellar-b24": (768, 12, 16, 24),
}
TARGETS = {"vq": 1024, "pixel": 0}
FOURIER = 2 * 256  # numbers of the decoder's position code, never trained
PARTS = {
    "encoder": ("encoder.", "sparse_tokens"),
    "factorizer": ("dense_proj.", "sparse_proj."),
    "decoder": ("decoder_proj.", "decoder.", "position_embedding.", "reconstruction_head."),
    "heads": ("clustering_head.", "cls_cluster_head."),
}


def linear(name, fan_in, fan_out):
    return {f"{name}.weight": (fan_out, fan_in), f"{name}.bias": (fan_out,)}


def norm(name, width):
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def trunk(name, width, hidden, layers):
    shapes = norm(f"{name}.layernorm", width)
    for layer in (f"{name}.encoder.layer.{i}" for i in range(layers)):
        for part in ("query", "key", "value"):
            shapes |= linear(f"{layer}.attention.attention.{part}", width, width)
        shapes |= linear(f"{layer}.attention.output.dense", width, width)
        shapes |= linear(f"{layer}.intermediate.dense", width, hidden)
        shapes |= linear(f"{layer}.output.dense", hidden, width)
        shapes |= norm(f"{layer}.layernorm_before", width) | norm(f"{layer}.layernorm_after", width)
    return shapes


def expected_shapes(width, layers, patch, tokens, codes):
    """Name and shape of every tensor that a released model reads."""
    patches = (224 // patch) ** 2
    shapes = {
        "sparse_tokens": (tokens, width),
        "encoder.embeddings.cls_token": (1, 1, width),
        "encoder.embeddings.position_embeddings": (1, 1 + patches, width),
        "encoder.embeddings.patch_embeddings.projection.weight": (width, 3, patch, patch),
        "encoder.embeddings.patch_embeddings.projection.bias": (width,),
        "position_embedding.positional_encoding_gaussian_matrix": (2, 256),
    }
    shapes |= trunk("encoder", width, 4 * width, layers) | trunk("decoder", 512, 2048, 6)
    shapes |= linear("dense_proj", width, width) | linear("sparse_proj", width, width)
    shapes |= linear("decoder_proj", width, 512)
    if codes:
        shapes |= linear("reconstruction_head", 512, codes)
    else:  # a transposed convolution: in x out x kh x kw, one bias per colour
        shapes |= {"reconstruction_head.weight": (512, 3, patch, patch), "reconstruction_head.bias": (3,)}
    for head in ("clustering_head", "cls_cluster_head"):
        shapes |= linear(f"{head}.predictor.layers.0", width, 2048)
        shapes |= linear(f"{head}.predictor.layers.2", 2048, 256)
        shapes[f"{head}.layer.weight"] = (16384, 256)
    return shapes


def counts(shapes):
    """Parameters of each part."""
    return {
        part: sum(math.prod(shape) for name, shape in shapes.items() if name.startswith(prefixes))
        for part, prefixes in PARTS.items()
    }


def rows():
    """(model, target) -> the numbers of its line in docs/models.md."""
    lines = (line for line in TABLE.read_text().splitlines() if line.startswith("| stellar-"))
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {(model, target): [int(x.replace(",", "")) for x in numbers] for model, target, *numbers in cells}


CASES = [(name, target) for name in SIZES for target in TARGETS]


def test_the_table_has_every_model():
    assert sorted(rows()) == sorted(CASES)


@pytest.mark.parametrize(("name", "target"), CASES)
def test_names_shapes_and_counts(name, target):
    config = manifest.to_config({"recon_type": target}, name)
    expected = expected_shapes(*SIZES[name], TARGETS[target])
    assert released_shapes(config) == expected
    parts = counts(expected)
    ours = abstract_params(config)
    groups = {"encoder": ["encoder"], "factorizer": ["factorizer"], "decoder": ["decoder"]}
    groups["heads"] = ["sparse_head", "cls_head"]
    assert {part: size(*(ours[name] for name in names)) for part, names in groups.items()} == parts
    width, layers, patch, tokens = SIZES[name]
    total = sum(parts.values())
    assert rows()[name, target] == [width, layers, patch, tokens, *parts.values(), total, total - FOURIER]


@pytest.mark.parametrize("name", ["stellar-l16", "stellar-h16"])
@pytest.mark.parametrize("tokens", [8, 24])
def test_other_numbers_of_tokens(name, tokens):
    width, layers, patch, _ = SIZES[name]
    config = manifest.to_config({"num_sparse_tokens": tokens}, name)
    assert released_shapes(config) == expected_shapes(width, layers, patch, tokens, 1024)


def size(*trees):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(trees))


def conv(fan_in, fan_out, side, bias):
    return fan_in * fan_out * side**2 + (fan_out if bias else 0)


def test_the_tokenizers_count():
    """128 x (1, 1, 2, 2, 4) channels, two blocks a level, codebook 1024 x 256 (docs/method.md section 4)."""

    def block(fan_in, fan_out):
        shortcut = conv(fan_out, fan_out, 1, False) if fan_in != fan_out else 0
        return (
            2 * (fan_in + fan_out)
            + conv(fan_in, fan_out, 3, False)
            + conv(fan_out, fan_out, 3, False)
            + shortcut
        )

    widths = [128 * m for m in (1, 1, 2, 2, 4)]
    encoder = conv(3, 128, 3, False) + 2 * 512 + conv(512, 256, 1, True)
    decoder = conv(256, 512, 3, True) + 2 * 128 + conv(128, 3, 3, True)
    for before, width in zip([128, *widths], widths, strict=False):
        encoder += block(before, width) + block(width, width)
    for before, width in zip([512, *widths[::-1]], widths[::-1], strict=False):
        decoder += block(before, width) + block(width, width)
    decoder += sum(conv(width, width, 3, True) for width in widths[1:])
    total = encoder + decoder + 4 * block(512, 512) + 1024 * 256
    vqgan = VQGAN(128, (1, 1, 2, 2, 4), 2, 256, 1024)
    tree = jax.eval_shape(vqgan.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 32, 32, 3), "float32"))
    assert size(tree["params"]) == total
    assert f"{total:,} parameters" in TABLE.read_text()
