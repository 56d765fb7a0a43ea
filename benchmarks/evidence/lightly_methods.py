"""DINO, SimCLR and MAE from parts of the package lightly (1.6), around torchvision's ViT.

The encoder has the sizes of config.model, CLS, a position table (fixed sines and cosines, lightly's default)
and no queries. Crops, flips and colours are those of config.views; greyscale, blur and solarization are off.
Further settings:

    SimCLR  two views; head width -> hidden -> 128 with BatchNorm, temperature 0.2
    DINO    two global views, and config.views.local_count local ones, which the student alone sees; head
            width -> hidden -> hidden -> dim -> 1024 outputs, whose last layer is fixed during the first
            hundredth of the steps; temperatures 0.04 (teacher) and 0.1; teacher momentum 0.996 to 1 (cosine)
    MAE     one view, without change of colours, as published; 3/4 of the patches hidden; a decoder of the
            sizes of config.model.decoder; squared error of the hidden pixels, not normalised per patch

hidden and dim are those of config.model.prototypes. Imported by peers.py only, as it needs lightly.
"""

import functools

import torch

try:
    import torchvision  # noqa: F401
except RuntimeError:
    # With PyPI's torchvision and a torch for CPUs, torchvision's compiled operators cannot be loaded. None is
    # used here, but importing torchvision needs these two to be defined.
    OPERATORS = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        OPERATORS.define(f"{name}(Tensor boxes, Tensor scores, float threshold) -> Tensor")

from lightly.loss import DINOLoss, NTXentLoss
from lightly.models import utils
from lightly.models.modules import (
    DINOProjectionHead,
    MAEDecoder,
    MaskedVisionTransformerTorchvision,
    SimCLRProjectionHead,
)
from lightly.transforms import MAETransform
from lightly.transforms.dino_transform import DINOViewTransform
from lightly.transforms.multi_view_transform import MultiViewTransform
from lightly.utils.scheduler import cosine_schedule
from ml_collections import ConfigDict
from torch import nn
from torchvision.models.vision_transformer import VisionTransformer

GLOBAL_VIEWS = 2
SIMCLR_OUTPUTS, SIMCLR_TEMPERATURE = 128, 0.2
DINO_OUTPUTS, DINO_MOMENTUM = 1024, 0.996
HIDDEN = 0.75  # share of the patches that MAE's encoder does not see


def backbone(config: ConfigDict) -> MaskedVisionTransformerTorchvision:
    """The encoder of config.model, without queries; it returns CLS."""
    m = config.model
    norm = functools.partial(nn.LayerNorm, eps=m.norm_epsilon)
    vit = VisionTransformer(
        m.image_size, m.patch, m.layers, m.heads, m.width, m.mlp_dim, num_classes=1, norm_layer=norm
    )
    vit.heads = nn.Identity()
    return MaskedVisionTransformerTorchvision(vit)


def view(config: ConfigDict, size: int, scale: tuple[float, float]) -> DINOViewTransform:
    """lightly's view of DINO, also used for SimCLR: the only one with both ends of the range of crops."""
    v = config.views
    return DINOViewTransform(
        crop_size=size, crop_scale=scale, hf_prob=v.flip_probability, cj_prob=v.jitter_probability,
        cj_strength=1.0, cj_bright=v.brightness, cj_contrast=v.contrast, cj_sat=v.saturation, cj_hue=v.hue,
        random_gray_scale=0.0, gaussian_blur=0.0, solarization_prob=0.0,
    )  # fmt: skip


def global_views(config: ConfigDict) -> list[DINOViewTransform]:
    return [view(config, config.model.image_size, config.views.global_scale)] * GLOBAL_VIEWS


class Method(nn.Module):
    """A method that peers.py trains; `backbone` is the encoder, `views`: Pillow image -> views (3, h, w)."""

    def loss(self, views: list[torch.Tensor], step: int) -> torch.Tensor:
        """The loss of a batch of views, (B, 3, h, w) each, at a step, counted from 0."""
        raise NotImplementedError

    def after_backward(self, step: int) -> None:
        """Called between backward pass and optimizer; may change gradients."""


class SimCLR(Method):
    def __init__(self, config: ConfigDict):
        super().__init__()
        self.backbone = backbone(config)
        self.head = SimCLRProjectionHead(config.model.width, config.model.prototypes.hidden, SIMCLR_OUTPUTS)
        self.criterion = NTXentLoss(SIMCLR_TEMPERATURE)
        self.views = MultiViewTransform(global_views(config))

    def loss(self, views, step):
        return self.criterion(*self.head(self.backbone(torch.cat(views))).chunk(GLOBAL_VIEWS))


class DINO(Method):
    def __init__(self, config: ConfigDict):
        super().__init__()
        m, v = config.model, config.views
        self.steps = config.train.steps
        self.backbone, self.teacher = (backbone(config) for _ in range(2))
        sizes = m.width, m.prototypes.hidden, m.prototypes.dim, DINO_OUTPUTS
        self.head, self.teacher_head = (DINOProjectionHead(*sizes, freeze_last_layer=1) for _ in range(2))
        for student, teacher in self.pairs():
            teacher.load_state_dict(student.state_dict())
            utils.deactivate_requires_grad(teacher)
        self.criterion = DINOLoss(DINO_OUTPUTS)
        local = [view(config, v.local_size, v.local_scale)] * v.local_count
        self.views = MultiViewTransform([*global_views(config), *local])

    def pairs(self):
        return (self.backbone, self.teacher), (self.head, self.teacher_head)

    def loss(self, views, step):
        momentum = cosine_schedule(step, self.steps, DINO_MOMENTUM, 1.0)
        for student, teacher in self.pairs():
            utils.update_momentum(student, teacher, momentum)
        both = torch.cat(views[:GLOBAL_VIEWS])
        with torch.no_grad():
            target = self.teacher_head(self.teacher(both)).chunk(GLOBAL_VIEWS)
        found = list(self.head(self.backbone(both)).chunk(GLOBAL_VIEWS))
        if local := views[GLOBAL_VIEWS:]:
            found += self.head(self.backbone(torch.cat(local))).chunk(len(local))
        return self.criterion(list(target), found)

    def after_backward(self, step):
        self.head.cancel_last_layer_gradients(100 * step // self.steps)  # as if of 100 epochs


class MAE(Method):
    def __init__(self, config: ConfigDict):
        super().__init__()
        m, d = config.model, config.model.decoder
        self.patch, self.backbone = m.patch, backbone(config)
        self.length = self.backbone.sequence_length
        self.mask_token = nn.Parameter(0.02 * torch.randn(1, 1, d.width))
        self.decoder = MAEDecoder(
            self.length, d.layers, d.heads, m.width, d.width, d.mlp_dim, out_dim=3 * m.patch**2
        )
        self.views = MAETransform(m.image_size, min_scale=config.views.global_scale[0])

    def loss(self, views, step):
        (images,) = views
        keep, hidden = utils.random_token_mask((len(images), self.length), HIDDEN)
        seen = self.decoder.embed(self.backbone.encode(images, idx_keep=keep))
        tokens = utils.repeat_token(self.mask_token, (len(images), self.length))
        decoded = self.decoder.decode(utils.set_at_index(tokens, keep, seen))
        found = self.decoder.predict(utils.get_at_index(decoded, hidden))
        patches = utils.patchify(images, self.patch)
        return nn.functional.mse_loss(found, utils.get_at_index(patches, hidden - 1))  # no patch for CLS


METHODS = {"dino": DINO, "simclr": SimCLR, "mae": MAE}
