"""Every attention that this backend can run, against the closed form in float64 and on hard inputs."""

from __future__ import annotations

import functools
import inspect
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from sparse_vis.models import block as block_module
from sparse_vis.models.attention import LONGEST, RESULT, fused_attention, plain_attention, short_attention
from sparse_vis.models.block import PRODUCT, Block, Compute, Sizes, Trunk, kept_by_products, transform
from sparse_vis.models.layers import MOMENT


def fused(q, k, v, implementation):
    """`fused_attention` as a trunk calls it: with one token more where their number is odd."""
    length = q.shape[1]
    q, k, v = (jnp.pad(x, ((0, 0), (0, length % 2), (0, 0), (0, 0)), constant_values=9) for x in (q, k, v))
    return fused_attention(q, k, v, length, implementation)[:, :length]


def short(q, k, v):
    """`short_attention` of parts, on this backend's own way."""
    return short_attention(jnp.stack([q, k, v], axis=2), interpret=jax.default_backend() != "gpu")


# What `Block.attention` may name here; "jax" is XLA's own form of jax.nn, in the place of cuDNN's kernel.
CUDNN = ("cudnn",) if jax.default_backend() == "gpu" else ()
IMPLEMENTATIONS = {
    "xla": plain_attention,
    "jax": functools.partial(fused, implementation="xla"),
    "pallas": short,
    **{name: functools.partial(fused, implementation=name) for name in CUDNN},
}
DTYPES = [(name, dtype) for name in IMPLEMENTATIONS for dtype in ("float32", "bfloat16")]
CASES = [case for case in DTYPES if case not in {(name, "float32") for name in ("cudnn", "pallas")}]
# Of the recipes: image, masked and local views of B/16, image and masked of H/14; and our kernel's longest.
LENGTHS = (213, 56, 53, 273, 68, LONGEST)
SIZES = Sizes(width=32, layers=1, heads=2, mlp_dim=64)
EACH_LENGTH = [(*case, n) for case in CASES for n in LENGTHS if case[0] != "pallas" or n <= LONGEST]


def closed_form(q, k, v, change):
    """Attention and its gradients by q, k and v for the cotangent `change`, (B, T, h, c) in float64."""
    q, k, v, change = (np.asarray(x, np.float64) for x in (q, k, v, change))
    scale = q.shape[-1] ** -0.5
    scores = np.einsum("bthc,bshc->bhts", q, k) * scale
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    pull = np.einsum("bthc,bshc->bhts", change, v)
    pull = weights * (pull - (pull * weights).sum(-1, keepdims=True)) * scale
    return (
        np.einsum("bhts,bshc->bthc", weights, v),
        np.einsum("bhts,bshc->bthc", pull, k),
        np.einsum("bhts,bthc->bshc", pull, q),
        np.einsum("bhts,bthc->bshc", weights, change),
    )


def value_and_gradients(name, q, k, v, change):
    return program(name)(q, k, v, change)


@functools.cache
def program(name):
    """Value and gradients in one program, compiled once for each shape and dtype."""

    def run(q, k, v, change):
        value, pull = jax.vjp(IMPLEMENTATIONS[name], q, k, v)
        return value, *pull(change)

    return jax.jit(run)


@pytest.mark.parametrize(("name", "dtype", "length"), EACH_LENGTH)
def test_values_and_gradients_are_the_closed_form(name, dtype, length):
    arrays = jax.random.normal(jax.random.key(length), (4, 1, length, 2, 64), dtype)
    tolerance = 1e-5 if dtype == "float32" else 2e-2
    for ours, exact in zip(value_and_gradients(name, *arrays), closed_form(*arrays), strict=True):
        assert ours.dtype == dtype
        assert np.linalg.norm(np.float64(ours) - exact) <= tolerance * np.linalg.norm(exact)


@pytest.mark.fast
@pytest.mark.parametrize(("name", "dtype"), CASES)
@pytest.mark.parametrize("size", [1e-30, 300.0])
def test_no_nan_where_scores_vanish_or_exceed_what_exp_can_hold(name, dtype, size):
    """At 300 scores are near 1e5: one weight is 1, the others underflow."""
    q, k, v, change = jax.random.normal(jax.random.key(0), (4, 1, 53, 2, 16), dtype)
    found = value_and_gradients(name, size * q, size * k, v, change)
    assert all(bool(jnp.isfinite(x).all()) for x in found)
    exact = closed_form(size * q, size * k, v, change)[0]
    np.testing.assert_allclose(np.float64(found[0]), exact, atol=1e-5 if dtype == "float32" else 5e-2)


@pytest.mark.parametrize(
    ("name", "length", "kernel"),
    [("cudnn", 52, "cudnn"), ("cudnn", 53, "cudnn"), ("pallas", 53, "pallas"), ("pallas", 131, "cudnn")],
)
@pytest.mark.parametrize("only", [None, lambda x: x[:, ::7]])
def test_a_trunk_computes_with_what_it_names(name, length, kernel, only, monkeypatch):
    """The default's output and gradients, of some tokens too, for which the last layer has plain attention.

    Without a GPU jax.nn's own form stands in for cuDNN's kernel.
    """
    asked, attention = [], jax.nn.dot_product_attention

    def recorded(*arguments, implementation, **lengths):
        asked.append(implementation)
        return attention(*arguments, **lengths, implementation=implementation if CUDNN else "xla")

    def recorded_short(qkv):
        asked.append("pallas")
        return short_attention(qkv, interpret=not CUDNN)

    monkeypatch.setattr(jax.nn, "dot_product_attention", recorded)
    monkeypatch.setattr(block_module, "short_attention", recorded_short)
    x, change = jax.random.normal(jax.random.key(0), (2, 2, length, 32), "bfloat16")
    change = only(change) if only else change
    reference = Trunk(Sizes(32, 2, 2, 64, init_std=0.2), Compute("bfloat16"))
    params = jax.jit(reference.init)(jax.random.key(1), x)

    def run(trunk):
        @jax.jit  # op by op, each would be compiled by itself
        def both(params, x):
            value, pull = jax.vjp(lambda params, x: trunk.apply(params, x, only), params, x)
            return value, pull(change)

        return jax.tree.leaves(both(params, x))

    expected = run(reference)
    assert asked == []
    ours = run(reference.clone(compute=Compute("bfloat16", name, unroll=2)))
    assert set(asked) == {kernel}
    for a, b in zip(ours, expected, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        error = np.linalg.norm(np.float64(a) - np.float64(b))
        assert error <= 4e-2 * np.linalg.norm(np.float64(b))


PLAIN_FORM = [line for line in inspect.getdoc(transform).splitlines() if line.startswith("    ")][:5]


def plain_form(params, x, only):
    """The lines of `transform`'s docstring, executed with NumPy and SciPy in float64."""

    def linear(name):
        return lambda x: x @ params[name]["kernel"] + params[name]["bias"]

    def norm(name):
        def normed(x):
            unit = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
            return unit * params[name]["scale"] + params[name]["bias"]

        return normed

    assert PLAIN_FORM[-1].strip() == "return only(x)" and len(PLAIN_FORM) == 5
    scope = {name: linear(name) for name in ("qkv", "mlp_in", "mlp_out")}
    scope |= {name: norm(name) for name in ("norm_attention", "norm_mlp")}
    scope |= {
        "split_heads": lambda y: np.moveaxis(y.reshape(*y.shape[:2], 3, SIZES.heads, -1), 2, 0),
        "attention_out": lambda y: linear("attention_out")(y.reshape(*y.shape[:2], -1)),
        "softmax": functools.partial(special.softmax, axis=-1), "gelu": lambda y: y * special.ndtr(y),
        "einsum": np.einsum, "sqrt": np.sqrt, "c": SIZES.width // SIZES.heads,
        "only": only or (lambda y: y),
    }  # fmt: skip
    exec("def block(x):\n" + "\n".join(PLAIN_FORM), scope)
    return scope["block"](x)


@pytest.mark.parametrize(
    "case", [("float32", "xla"), *(("bfloat16", name) for name in ("xla", "pallas", "cudnn"))]
)
@pytest.mark.parametrize("only", [None, lambda x: x[:, ::3]])
def test_a_block_is_the_plain_form_of_its_docstring(case, only, monkeypatch):
    if not CUDNN:
        stand_ins = {"fused_attention": dict(implementation="xla"), "short_attention": dict(interpret=True)}
        for name, how in stand_ins.items():
            monkeypatch.setattr(block_module, name, functools.partial(getattr(block_module, name), **how))
    x, block = jax.random.normal(jax.random.key(0), (2, 14, SIZES.width)), Block(SIZES, Compute(*case))
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(block.init, jax.random.key(1), x)["params"]
    params = jax.tree.map(lambda p: rng.normal(0, 0.2, p.shape), shapes)
    given = jax.tree.map(jnp.float32, params)

    @jax.jit
    def run(given, x):
        maps = block.apply({"params": given}, method="maps")
        return transform(maps, x.astype(case[0]), SIZES, block.compute, only=only)

    ours = run(given, x)
    exact = plain_form(params, np.float64(x), only)
    assert (ours.dtype, ours.shape) == (case[0], exact.shape)
    error = np.linalg.norm(np.float64(ours) - exact) / np.linalg.norm(exact)
    assert error <= (1e-5 if case[0] == "float32" else 2e-2)


@pytest.mark.fast
@pytest.mark.parametrize(("attention", "results"), [("xla", 0), ("pallas", 1)])
def test_remat_products_keeps_products_moments_and_short_attention(attention, results, capsys):
    """And of the activations nothing else but the block's input."""
    x = jnp.ones((2, 53, 32), "bfloat16")
    params = jax.jit(Block(SIZES, Compute("bfloat16")).init)(jax.random.key(0), x)
    block = Block(SIZES, Compute("bfloat16", attention))

    def run(x):
        return block.apply(params, x).sum()

    jax.ad_checkpoint.print_saved_residuals(jax.checkpoint(run, policy=kept_by_products), x)
    kept = [line for line in capsys.readouterr().out.splitlines() if "from a constant" not in line]
    named = {name: sum(f"named '{name}'" in line for line in kept) for name in (PRODUCT, MOMENT, RESULT)}
    assert named == {PRODUCT: 3, MOMENT: 4, RESULT: results}
    assert len(kept) == 1 + sum(named.values())


@pytest.mark.fast
@pytest.mark.parametrize(("attention", "pinned"), [("xla", 0), ("pallas", 1), ("cudnn", 1)])
def test_tokens_lie_row_by_row_for_fused_attention(attention, pinned, monkeypatch):
    """Elsewhere, as on TPUs, XLA chooses how they lie."""
    # cuDNN's call cannot be traced without a GPU; what is before it can.
    monkeypatch.setattr(block_module, "fused_attention", lambda q, k, v, _: plain_attention(q, k, v))
    x = jnp.ones((2, 54, 32), "bfloat16")
    params = jax.jit(Block(SIZES, Compute("bfloat16")).init)(jax.random.key(0), x)
    block = Block(SIZES, Compute("bfloat16", attention))
    assert str(jax.make_jaxpr(block.apply)(params, x)).count("layout_constraint") == pinned


SPREAD = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from sparse_vis.models.attention import short_attention
from sparse_vis.train.mesh import make_mesh

mesh = make_mesh((2, 2))
qkv = jax.random.normal(jax.random.key(0), (8, 21, 3, 2, 16), "bfloat16")
change = jax.random.normal(jax.random.key(1), (8, 21, 2, 16), "bfloat16")

def both(qkv, change):
    value, pull = jax.vjp(lambda qkv: short_attention(qkv, interpret=True), qkv)
    return value, pull(change)[0]

def spread(qkv, change):
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        return both(qkv, change)

batch = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
program = jax.jit(spread, in_shardings=batch, out_shardings=batch).lower(qkv, change).compile()
assert not any(name in program.as_text() for name in ("all-gather", "all-reduce", "all-to-all"))
for ours, expected in zip(program(*jax.device_put((qkv, change), batch)), jax.jit(both)(qkv, change)):
    assert len(ours.sharding.device_set) == 4
    np.testing.assert_array_equal(np.float32(ours), np.float32(expected))
print("equal")
"""


def test_short_attention_splits_along_the_batch():
    """On four devices each computes its own images, and nothing is sent."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PJRT_NPROC": "32"}
    done = subprocess.run([sys.executable, "-c", SPREAD], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "equal", done.stderr
