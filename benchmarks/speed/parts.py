"""Time the parts of a training step one by one, and their shares of the whole step.

    python -m benchmarks.speed.parts --config=configs/imagenet_b16.py --config.train.batch=64

    --config=FILE       an experiment of configs/ without teacher, with any setting changed
    --repeats=9         timed runs of every part, after two that are not
    --json=FILE         file for the numbers, with device, versions and date

The parts are the encoder for each shape of view, factorization and decoder, heads and losses, Sinkhorn,
matching, views, tokenizer, optimizer; each gets the same inputs as in the step. With
config.efficiency.microbatches, parts and step are of one microbatch. Pixels and weights are random.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable

from sparse_vis.runtime import host

if __name__ == "__main__":
    host.prepare()

import jax
import jax.numpy as jnp
import optax

from benchmarks.speed import command, step
from benchmarks.speed.flops import step_flops
from benchmarks.speed.measure import compiled, report, timed
from benchmarks.speed.synthetic import random_batch, random_state, random_tokenizer, recipe_of
from sparse_vis.losses.objective import objective
from sparse_vis.losses.targets import balance, make_targets, match_tokens
from sparse_vis.models.stellar import Stellar, fold
from sparse_vis.runtime.errors import UserError
from sparse_vis.train.recipe import Recipe
from sparse_vis.train.step import TrainState
from sparse_vis.types import Batch, Outputs, Views
from sparse_vis.views.make import make_views


@dataclasses.dataclass(frozen=True)
class Part:
    """`forward(trained, *rest)` and its arguments; `backward`: whether `trained` gets gradients."""

    forward: Callable
    arguments: tuple
    backward: bool = True

    def both(self) -> tuple[Callable, tuple]:
        """A function of forward and backward pass, given gradients of the outputs; and its arguments."""
        out = jax.eval_shape(self.forward, *self.arguments)
        ones = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), out)

        def run(gradients, trained, *rest):
            return jax.vjp(lambda trained: self.forward(trained, *rest), trained)[1](gradients)

        return run, (ones, *self.arguments)


def encoders(model: Stellar, params: dict, views: Views) -> dict[str, Part]:
    """One call of the encoder per shape of view, with the outputs that the losses use."""
    given = {"params": {"encoder": params["encoder"]}}
    calls = {
        "encoder, image": (None, (views.image,)),
        "encoder, masked": ("S", (fold(views.masked), fold(views.visible))),
    }
    if views.local.shape[1]:
        calls["encoder, local"] = ("cls", (fold(views.local),))
    return {
        name: Part(functools.partial(model.apply, method="encode", only=only), (given, *inputs))
        for name, (only, inputs) in calls.items()
    }


def decoding(model: Stellar, params: dict, outputs: Outputs, image: jax.Array) -> Part:
    """Factorization and decoder."""

    def run(trained, image):
        (params, tokens), grid = trained, model.grid(*image.shape[1:3])
        return model.apply({"params": params}, method=lambda m: m.decode(m.factorize(tokens).Z, grid))

    given = {name: params[name] for name in ("factorizer", "decoder")}
    return Part(run, ((given, outputs.tokens), image))


def heads(recipe: Recipe, params: dict, outputs: Outputs, views: Views, cls: tuple) -> Part:
    """Both heads and all losses except reconstruction; potentials and matches are given.

    `cls`: CLS tokens of masked and of local views, (B, V, d) each.
    """
    spec = dataclasses.replace(recipe.loss, reconstruction=0.0)
    targets = make_targets(recipe.model, spec, views, outputs)
    empty = jax.tree.map(lambda x: None, outputs)

    def run(trained, targets):
        params, (tokens, masked_S, masked_cls, local_cls) = trained

        def losses(model):
            part = empty.replace(
                tokens=tokens, embeddings=model.heads(tokens), masked_S=masked_S,
                masked_S_embedding=model.sparse_head(masked_S),
                masked_cls_embedding=model.cls_head(masked_cls),
                local_cls_embedding=model.cls_head(local_cls),
            )  # fmt: skip
            detached = jax.lax.stop_gradient(part.embeddings)
            return objective(part, targets.replace(embeddings=detached), spec)[0]

        return recipe.model.apply({"params": params}, method=losses)

    given = {name: params[name] for name in ("sparse_head", "cls_head")}
    small = targets.replace(reconstruction=jnp.zeros(()))
    return Part(run, ((given, (outputs.tokens, outputs.masked_S, *cls)), small))


def all_parts(recipe: Recipe, state: TrainState, batch: Batch, tokenizer: dict | None) -> dict[str, Part]:
    """All parts by name; together they are the step, except for what XLA fuses between them."""
    model, spec, params = recipe.model, recipe.loss, state.params
    views = functools.partial(make_views, spec=recipe.views)
    made = jax.jit(views)(jax.random.key(3), batch)
    outputs = jax.jit(model.apply)({"params": params}, made)

    def cls_like(views):
        return jnp.broadcast_to(outputs.tokens.cls, (*views.shape[:2], outputs.tokens.cls.shape[-1]))

    def update(gradients, opt_state, params):
        updates, opt_state = recipe.optimizer.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    cls = cls_like(made.masked), cls_like(made.local)
    ones = jax.tree.map(jnp.ones_like, params)
    masked = fold(outputs.masked_S)
    own = jnp.repeat(outputs.tokens.S, made.masked.shape[1], axis=0)
    found = {
        "views": Part(views, (jax.random.key(3), batch), backward=False),
        **encoders(model, params, made),
        "decoder": decoding(model, params, outputs, made.image),
        "heads and losses": heads(recipe, params, outputs, made, cls),
        "Sinkhorn": Part(functools.partial(balance, spec=spec), (outputs.embeddings,), backward=False),
        "matching": Part(functools.partial(match_tokens, spec=spec), (masked, own), backward=False),
        "optimizer": Part(update, (ones, state.opt_state, params), backward=False),
    }
    if tokenizer is not None:
        codes = functools.partial(model.apply, method="codes")
        found["tokenizer"] = Part(codes, ({"params": {"tokenizer": tokenizer}}, made.image), backward=False)
    return found


def one_part(part: Part, repeats: int) -> dict:
    """Times of the forward pass and, with gradients, of forward and backward pass together."""
    forward = compiled(part.forward, *part.arguments)
    found = {"forward": timed(lambda: forward.call(*part.arguments), repeats), "xla": forward.xla}
    found["products"] = forward.products
    if part.backward:
        function, arguments = part.both()
        both = compiled(function, *arguments)
        found["both"] = timed(lambda: both.call(*arguments), repeats)
        found["products"] = both.products
    return found


def measure(config, repeats: int, keep: Callable[[dict], None]) -> dict:
    """Numbers of the step and all parts, for JSON; after each part, `keep` is called with all so far."""
    if config.teacher.enabled:
        raise UserError("parts.py cannot time a teacher; set config.teacher.enabled=False.")
    with config.unlocked():
        config.train.batch //= config.efficiency.microbatches
        config.efficiency.microbatches = 1
    result = step.measure(config, repeats)
    recipe, batch = recipe_of(config), random_batch(config)
    state, tokenizer = random_state(recipe), random_tokenizer(recipe.model.tokenizer)
    flops, found = step_flops(config), {}
    for name, part in all_parts(recipe, state, batch, tokenizer).items():
        print(f"{name} ...", file=sys.stderr, flush=True)
        found[name] = {**one_part(part, repeats), "flops": flops.get(name, 0.0) * config.train.batch}
        keep(result | {"parts": found})
    jax.clear_caches()
    return result | {"parts": found}


def table(r: dict) -> str:
    """Parts, sorted by their share of the step; shares of peak refer to FLOPs by formula."""
    whole, lines = r["seconds"]["median"], []
    times = {name: p.get("both", p["forward"])["median"] for name, p in r["parts"].items()}
    for name, seconds in sorted(times.items(), key=lambda item: -item[1]):
        p = r["parts"][name]
        reached = f"{p['flops'] / seconds / r['measured_peak']:.0%}" if p["flops"] else "-"
        both = f"{1e3 * seconds:.1f}" if "both" in p else "-"
        lines.append(
            f"| {name} | {1e3 * p['forward']['median']:.1f} | {both} | {p['flops'] / r['images'] / 1e9:.1f} "
            f"| {reached} | {seconds / whole:.1%} |"
        )
    rest = whole - sum(times.values())
    return "\n".join([
        "| part | forward, ms | forward + backward, ms | GFLOP per image | of measured peak | of the step |",
        "|---|---|---|---|---|---|",
        *lines,
        f"| remainder | | | | | {rest / whole:.1%} |",
    ])  # fmt: skip


def main(given):
    keep = functools.partial(command.write_json, given.json)
    result = measure(command.checked_config(given), given.repeats, keep)
    print(f"{step.heading(result)}\n{report(result)}\n{table(result)}", flush=True)


if __name__ == "__main__":
    command.run(main, __doc__)
