"""Batch -> Views on the accelerator: random resized crops, flips, colour and masks, pure functions of a key.

The key of each draw is the step's key folded with the image's global index, a purpose and the view's number.
Draws do not depend on how the batch is split over devices or microbatches (docs/method.md section 6).
"""

from __future__ import annotations

import dataclasses
import enum
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PRNGKeyArray

from sparse_vis.config.ranges import check_fields
from sparse_vis.runtime.errors import UserError
from sparse_vis.types import Batch, Views
from sparse_vis.views import colour as augment
from sparse_vis.views.crops import crop_and_flip, sample_box
from sparse_vis.views.masking import visible_patches


class Purpose(enum.IntEnum):
    """What a random draw is for; the numbers are part of the random streams, so never renumber them."""

    BOX = 0
    FLIP = 1
    COLOUR = 2
    MASK = 3
    MIXUP = 4


@dataclasses.dataclass(frozen=True)
class ViewSpec:
    """How the views are drawn; the defaults are the published recipe at patch 16 (docs/method.md section 6).

    Sizes are in pixels a side. Scales are ranges of crop area / image area, `aspect` of width / height. The
    jitter's first three factors are uniform in 1 ± brightness, 1 ± contrast and 1 ± saturation, the hue's
    shift in ± hue (1 is the full circle). With colour_per="batch", as published, all masked views share one
    draw, and all local views another. `mixup` is the strength of `mix`, in fine-tuning.
    """

    size: int = 224
    global_count: int = 8
    global_scale: tuple[float, float] = (0.36, 1.0)
    local_count: int = 8
    local_size: int = 96
    local_scale: tuple[float, float] = (0.06, 0.36)
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    flip_probability: float = 0.5
    colour_per: str = "view"
    jitter_probability: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    grey_probability: float = 0.2
    blur_probability: float = 0.5
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    masking_ratio: float = 0.8
    mask_kind: str = "gaussian"
    focus_probability: float = 0.5
    patch_size: int = 16
    mixup: float = 0.0

    def __post_init__(self):
        check_fields("views", vars(self))
        sizes = {"size": self.size} | ({"local_size": self.local_size} if self.local_count else {})
        for name, size in sizes.items():
            # At least 5 px, because the blur reflects four pixels at the border.
            if size < max(self.patch_size, 5):
                raise UserError(
                    f"{name}={size} is too small: use at least a patch of {self.patch_size} and 5 px"
                )

    @property
    def grid(self) -> tuple[int, int]:
        """Number of patches in each column and in each row of a global view."""
        return (self.size // self.patch_size,) * 2


def sample_colour(key: PRNGKeyArray, spec: ViewSpec) -> augment.Colour:
    uniform = jax.random.uniform(key, (12,), jnp.float32)
    # In the order of augment.BRIGHTNESS ... HUE: three factors around 1 and a shift around 0.
    reach = jnp.array([spec.brightness, spec.contrast, spec.saturation, spec.hue], jnp.float32)
    return augment.Colour(
        jitter=uniform[0] < spec.jitter_probability,
        grey=uniform[1] < spec.grey_probability,
        blur=uniform[2] < spec.blur_probability,
        order=jnp.argsort(uniform[3:7]).astype(jnp.int32),
        strength=jnp.array([1.0, 1.0, 1.0, 0.0], jnp.float32) + reach * (2 * uniform[7:11] - 1),
        sigma=spec.blur_sigma[0] + (spec.blur_sigma[1] - spec.blur_sigma[0]) * uniform[11],
    )


def _views_of_image(key, batch_key, canvas, height, width, spec: ViewSpec) -> Views:
    """All views of one image; `key` belongs to the image. Views are numbered global first, then local."""
    fold = jax.vmap(jax.random.fold_in, (None, 0))
    purposes, views = jnp.arange(Purpose.MASK + 1), jnp.arange(spec.global_count + spec.local_count)
    keys = jax.vmap(fold, (0, None))(fold(key, purposes), views)
    ranges = (jnp.array(scale, jnp.float32) for scale in (spec.global_scale, spec.local_scale))
    scales = jnp.where(views[:, None] < spec.global_count, *ranges)

    def box(key, scale):
        return sample_box(key, height, width, scale, spec.aspect)

    def visible(key):
        return visible_patches(key, spec.grid, spec.masking_ratio, spec.mask_kind, spec.focus_probability)

    boxes = jax.vmap(box)(keys[Purpose.BOX], scales)
    uniform = jax.vmap(functools.partial(jax.random.uniform, dtype=jnp.float32))(keys[Purpose.FLIP])
    flips = uniform < spec.flip_probability
    # DEVIATION: the published code draws one colour change per batch; we draw one per view.
    colour_keys = keys[Purpose.COLOUR]
    if spec.colour_per == "batch":
        colour_keys = fold(batch_key, (views >= spec.global_count).astype(jnp.int32))
    colours = jax.vmap(lambda key: sample_colour(key, spec))(colour_keys)

    def crops_and_colour(part: slice, size: int):
        own_boxes, own_flips, own_colours = jax.tree.map(lambda draws: draws[part], (boxes, flips, colours))
        crops = jax.vmap(lambda box, flip: crop_and_flip(canvas, box, flip, size))(own_boxes, own_flips)
        return crops, jax.vmap(augment.recolour)(crops, own_colours)

    crops, masked = crops_and_colour(slice(None, spec.global_count), spec.size)
    _, local = crops_and_colour(slice(spec.global_count, None), spec.local_size)
    return Views(crops[0], masked, jax.vmap(visible)(keys[Purpose.MASK, : spec.global_count]), local)


def make_views(key: PRNGKeyArray, batch: Batch, spec: ViewSpec) -> Views:
    """All views of a batch, drawn with the key of this step; call it inside jit, with `spec` static."""
    # Folded more often than any key of an image, so that their random streams differ.
    batch_key = functools.reduce(jax.random.fold_in, (0, Purpose.COLOUR, 0), key)

    def one(canvas, height, width, index):
        return _views_of_image(jax.random.fold_in(key, index), batch_key, canvas, height, width, spec)

    views = jax.vmap(one)(batch.image, batch.height, batch.width, batch.index)
    views = views.replace(label=batch.label)
    if not spec.mixup:
        return views
    keys = jax.vmap(lambda index: jax.random.fold_in(jax.random.fold_in(key, index), Purpose.MIXUP))
    return mix(keys(batch.index), views, spec.mixup)


def mix(keys: Key[Array, " B"], views: Views, strength: float) -> Views:
    """Mixup: `image` becomes share * image + (1 - share) * the image half a batch away.

    One share per image is drawn from Beta(strength, strength). The views get `share`, the weight of their
    own label, and `other`, the class of the image mixed in. Microbatches take every k-th image of a batch, so
    they mix the same pairs.

    Source: Zhang et al. 2018, "mixup: Beyond Empirical Risk Minimization".

    Args:
        keys: (B,), one for each image. B must be even.
    """
    count = views.image.shape[0]
    share: Float[Array, " B"] = jax.vmap(lambda key: jax.random.beta(key, strength, strength))(keys)
    other = jnp.roll(views.image, count // 2, axis=0)
    part = share[:, None, None, None]
    return views.replace(
        image=part * views.image + (1 - part) * other, other=jnp.roll(views.label, count // 2), share=share
    )
