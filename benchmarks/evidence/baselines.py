"""Two baselines of equal budget: an autoencoder of U without S and L, and a masked autoencoder.

    python -m benchmarks.evidence.baselines --baseline=masked --config=configs/digits.py --workdir=DIR

    --baseline=dense    the decoder reads U itself; the prototype terms of CLS are as configured
    --baseline=masked   the same model, trained only to reconstruct the hidden patches of masked views

The other flags are those of main.py. `sparse_vis.load` cannot load these models, so this program also
evaluates them after training.
"""

import dataclasses
import functools
import math

import jax.numpy as jnp
from absl import flags
from jaxtyping import Array, Float, Integer

from benchmarks.speed.command import run_with_flags
from sparse_vis.commands import train
from sparse_vis.config import settings
from sparse_vis.evals import command
from sparse_vis.evals.encoders import OWN, stellar_encoder
from sparse_vis.losses.objective import objective
from sparse_vis.models.encoder import patchify
from sparse_vis.models.stellar import Stellar, fold
from sparse_vis.runtime.errors import UserError
from sparse_vis.train.loop import Run
from sparse_vis.train.recipe import Recipe, build_recipe
from sparse_vis.types import Factors, Outputs, Tokens, Views


class DenseAutoencoder(Stellar):
    """Decodes U itself, without L and S."""

    def factorize(self, tokens: Tokens) -> Factors:
        return self.factorizer(tokens.U, tokens.S).replace(Z=tokens.U)


class MaskedAutoencoder(DenseAutoencoder):
    """Its output `reconstruction` is the error of hidden patches, decoded from visible ones and zeros."""

    def __call__(self, views: Views) -> Outputs:
        visible, masked = fold(views.visible), fold(views.masked)
        U, grid = self.encode(masked, visible).U, self.grid(*masked.shape[1:3])
        rows = jnp.arange(len(U))[:, None]
        whole = jnp.zeros((len(U), grid[0] * grid[1], U.shape[-1]), U.dtype).at[rows, visible].set(U)
        error = hidden_mse(self.decode(whole, grid), masked, visible, grid[0] * grid[1])
        return super().__call__(views).replace(reconstruction=error)


def hidden_mse(
    x_hat: Float[Array, "B H W 3"], x: Float[Array, "B H W 3"], visible: Integer[Array, "B keep"], n: int
) -> Float[Array, ""]:
    """Mean squared error of pixels in [0, 1], over those of the n patches of a square view that are hidden.

    Source: He et al. 2022, "Masked autoencoders are scalable vision learners", without normalised patches.
    """
    error = (x_hat - x).astype(jnp.float32)
    squares = jnp.mean(patchify(error, x.shape[1] // math.isqrt(n)) ** 2, axis=-1)
    hidden = jnp.ones_like(squares).at[jnp.arange(len(squares))[:, None], visible].set(0.0)
    return jnp.sum(hidden * squares) / jnp.sum(hidden)


def hidden_patches(outputs: Outputs, _, spec) -> tuple[Array, dict[str, Array]]:
    """Objective of the masked autoencoder: the weighted error, and the error itself as a term."""
    return spec.reconstruction * outputs.reconstruction, {"reconstruction": outputs.reconstruction}


BASELINES = {"dense": (DenseAutoencoder, objective), "masked": (MaskedAutoencoder, hidden_patches)}


def baseline_recipe(baseline: str, config, tokenizer: None = None) -> Recipe:
    """`build_recipe` with the baseline's objective, and its model, made of the same parts."""
    recipe, (model, loss) = build_recipe(config, tokenizer), BASELINES[baseline]
    parts = {f.name: getattr(recipe.model, f.name) for f in dataclasses.fields(Stellar) if f.name != "parent"}
    return dataclasses.replace(recipe, model=model(**parts), objective=loss)


def main(given: flags.FlagValues) -> None:
    config, workdir, build = given.config, given.workdir, functools.partial(baseline_recipe, given.baseline)
    if config is None or workdir is None or config.model.target != "pixel":
        raise UserError("give --config=configs/NAME.py, of the pixel target, and --workdir.")
    settings.check(config)
    plan, run = command.make_plan(config), Run(config, workdir, build=build)
    run.train()
    config.efficiency.update(dtype=config.eval.dtype, remat="none", attention="xla")
    about = {"from": str(workdir), "step": run.step, "baseline": given.baseline}
    encoder = stellar_encoder(OWN, build(config).model, run.state.params, about)
    # S and L are neither trained nor decoded.
    encoder = dataclasses.replace(encoder, gives=("cls", "dense", "reconstruction"), decode=None)
    command.evaluate(config, workdir, plan, (encoder, None))


if __name__ == "__main__":
    train.define_flags()
    flags.DEFINE_enum("baseline", "dense", list(BASELINES), "Which baseline.")
    run_with_flags(main, __doc__)
