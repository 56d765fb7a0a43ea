"""Time attention alone, forward and with its gradient, by every implementation that this machine can run.

    python -m benchmarks.speed.attention --json=benchmarks/results/h100/attention.json

The input has q, k and v side by side, as the QKV projection writes them, in bfloat16 on GPUs and in float32
on CPUs. Shapes are those of the views of B/16 with 128 images and of H/14 with 32, or --images. "xla" is
`plain_attention`, "jax.nn" is jax.nn.dot_product_attention; "cudnn" and "pallas" need an NVIDIA GPU.
"""

from sparse_vis.runtime import host

if __name__ == "__main__":
    host.prepare()

import jax
import jax.numpy as jnp

from benchmarks.speed.command import check_file, script_parser, write_json
from benchmarks.speed.measure import compiled, timed
from sparse_vis.models.attention import LONGEST, fused_attention, plain_attention, short_attention
from sparse_vis.runtime.errors import command_line
from sparse_vis.runtime.tools import positive

# Images, views of each, tokens, heads, channels.
SHAPES = {
    "B/16, masked views": (128, 8, 56, 12, 64),
    "B/16, local views": (128, 8, 53, 12, 64),
    "B/16, whole image": (128, 1, 213, 12, 64),
    "H/14, masked views": (32, 8, 68, 16, 80),
    "H/14, local views": (32, 8, 53, 16, 80),
    "H/14, whole image": (32, 1, 273, 16, 80),
}


def kernels(tokens: int, on_gpu: bool) -> dict:
    """Name -> function of qkv (B, T, 3, h, c), for this number of tokens."""

    def cut(attention):
        return lambda qkv: attention(*jnp.unstack(qkv, axis=2))

    def cudnn(q, k, v):
        more = ((0, 0), (0, tokens % 2), (0, 0), (0, 0))  # its gradient needs an even length
        return fused_attention(*(jnp.pad(x, more) for x in (q, k, v)), tokens)[:, :tokens]

    found = {"xla": cut(plain_attention), "jax.nn": cut(jax.nn.dot_product_attention)}
    if on_gpu:
        found["cudnn"] = cut(cudnn)
        if tokens <= LONGEST:
            found["pallas"] = short_attention
    return found


def measure(shape: tuple[int, ...], name: str, attention, dtype: str, repeats: int) -> dict:
    """Least seconds of `repeats` calls, and of calls with the gradient; `shape` is (B, T, h, c)."""
    batch, tokens, heads, channels = shape
    qkv = jax.random.normal(jax.random.key(0), (batch, tokens, 3, heads, channels), dtype)
    change = jax.random.normal(jax.random.key(1), (batch, tokens, heads, channels), dtype)

    def both(qkv, change):
        y, back = jax.vjp(attention, qkv)
        return y, *back(change)

    # On a GPU a single call would take less time than Python needs to start it.
    found, calls = {"kernel": name}, 20 if jax.default_backend() == "gpu" else 1
    for what, function, *given in (("forward", attention, qkv), ("forward and back", both, qkv, change)):
        call = compiled(function, *given).call
        several = timed(lambda call=call, given=given: [call(*given) for _ in range(calls)], repeats)
        found[what] = several["min"] / calls
    return found


def main() -> None:
    parser = script_parser(__spec__, __doc__)
    parser.add_argument("--images", type=positive, metavar="N", help="instead of 128 and 32")
    parser.add_argument("--repeats", type=positive, default=9, metavar="N", help="timed runs (%(default)s)")
    parser.add_argument("--json", metavar="FILE", help="file for the numbers")
    arguments = parser.parse_args()
    check_file(arguments.json)
    on_gpu = jax.default_backend() == "gpu"
    dtype, rows = "bfloat16" if on_gpu else "float32", []
    print("| views | images x tokens x heads x channels | kernel | forward, µs | forward and back, µs |")
    print("|---|---|---|---|---|", flush=True)
    for views, (images, count, *rest) in SHAPES.items():
        shape = ((arguments.images or images) * count, *rest)
        for name, attention in kernels(rest[0], on_gpu).items():
            row = measure(shape, name, attention, dtype, arguments.repeats)
            rows.append({"views": views, "shape": shape, **row})
            times = " | ".join(f"{1e6 * row[what]:.1f}" for what in ("forward", "forward and back"))
            print(f"| {views} | {' x '.join(map(str, shape))} | {name} | {times} |", flush=True)
            write_json(arguments.json, {"dtype": dtype, "rows": rows})


if __name__ == "__main__":
    command_line(main)
