"""Peers of equal budget: DINO, SimCLR and MAE of the PyTorch package lightly, evaluated like our models.

    pip install lightly "torch==2.13.*"      # only for this
    python -m benchmarks.evidence.peers --peer=dino --config=configs/fashion.py --workdir=DIR

    --peer=dino       dino, simclr or mae: benchmarks/evidence/lightly_methods.py has their settings
    --config=FILE     an experiment of configs/ or a file, of which config.model, views, data, optimizer,
                      train, seed and eval (without eval.beside) are used
    --workdir=DIR     folder of the run; an interrupted run continues from it

A peer gets the same images as main.py's model, in the same order and batches, with the same learning rates.
Its encoder is then read as an MAE backbone, compared with torch's features, and evaluated by the tasks of
config.eval.
"""

import pathlib
import re

from sparse_vis.runtime import host

if __name__ == "__main__":
    host.prepare()

import numpy as np
import torch
from absl import flags
from ml_collections import ConfigDict, config_flags

from benchmarks.evidence.peer_training import train
from benchmarks.speed.command import run_with_flags
from sparse_vis.config import arguments, settings
from sparse_vis.evals import command
from sparse_vis.evals.encoders import OWN, backbone_encoder
from sparse_vis.evals.features import Encoder, encode
from sparse_vis.interop import backbones
from sparse_vis.interop.formats import write_safetensors
from sparse_vis.models.encoder import IMAGENET_MEAN, IMAGENET_STD
from sparse_vis.runtime.errors import UserError
from sparse_vis.runtime.files import whole
from sparse_vis.train.stop import StopSignal

PEERS = ("dino", "simclr", "mae")
ENCODER = "encoder.safetensors"
TOLERANCE, COMPARED = 1e-4, 16  # largest difference / largest feature; number of images compared
ASPECT = (3 / 4, 4 / 3)  # of the crops of lightly's transforms
# Names of torchvision's ViT -> those of the original MAE, which interop/ reads.
NAMES = (
    (r"^class_token", "cls_token"),
    (r"^conv_proj", "patch_embed.proj"),
    (r"^encoder\.pos_embedding", "pos_embed"),
    (r"^encoder\.ln", "norm"),
    (r"^encoder\.layers\.encoder_layer_(\d+)", r"blocks.\1"),
    (r"self_attention\.in_proj_", "attn.qkv."),
    (r"self_attention\.out_proj", "attn.proj"),
    (r"\.ln_(\d)", r".norm\1"),
    (r"mlp\.0", "mlp.fc1"),
    (r"mlp\.3", "mlp.fc2"),
)


def mae_tensors(vit: torch.nn.Module) -> dict[str, np.ndarray]:
    """Tensors of torchvision's VisionTransformer, by the original MAE's names."""
    tensors = {}
    for name, tensor in vit.state_dict().items():
        for pattern, new in NAMES:
            name = re.sub(pattern, new, name)
        tensors[name] = tensor.detach().numpy().copy()
    return tensors


def as_encoder(method, config: ConfigDict, workdir: pathlib.Path, about: dict) -> Encoder:
    """A trained backbone as an encoder for our evaluations; written to the workdir too, for config.init."""
    with whole(workdir / ENCODER) as partial:
        write_safetensors(mae_tensors(method.backbone.vit), partial)
    encoder = backbone_encoder(OWN, config, backbones.read_backbone(workdir / ENCODER, config), about)
    size = config.model.image_size
    images = np.random.default_rng(0).integers(0, 256, (COMPARED, size, size, 3), np.uint8)
    ours = encode(encoder, images, ("cls", "dense"), config.eval.batch)
    with torch.no_grad():
        pixels = torch.from_numpy((images / np.float32(255) - IMAGENET_MEAN) / IMAGENET_STD).float()
        theirs = method.backbone.eval().encode(pixels.permute(0, 3, 1, 2)).numpy()
    apart = np.abs(np.concatenate([ours["cls"], ours["dense"]], axis=1) - theirs).max() / np.abs(theirs).max()
    if not apart < TOLERANCE:
        raise UserError(
            f"the encoder's features differ by {apart:.1e} from torch's (config.eval.dtype="
            f"{config.eval.dtype}); they would not be the peer's, so nothing is measured."
        )
    print(f"features are torch's, to {apart:.1e}", flush=True)
    return encoder


def main(given: flags.FlagValues) -> None:
    config, workdir = given.config, given.workdir
    if config is None or workdir is None or given.peer is None:
        raise UserError("give --peer=dino, simclr or mae, --config=configs/NAME.py, and --workdir.")
    settings.check(config)
    if not np.allclose(config.views.aspect, ASPECT):
        raise UserError("lightly's crops have aspects of 3/4 to 4/3; set config.views.aspect to these.")
    try:
        from benchmarks.evidence import lightly_methods
    except ImportError as error:
        raise UserError(
            f'{error.name} is missing; install the peers\' packages: pip install lightly "torch==2.13.*".'
        ) from None
    config.eval.beside = ()
    config.model.norm_epsilon = 1e-6  # of the original MAE, by whose names the encoder is written
    plan = command.make_plan(config)
    workdir.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    method = lightly_methods.METHODS[given.peer](config)
    with StopSignal() as stop:
        if train(method, config, given.peer, workdir, stop):
            stop.message = (
                "during the evaluation: finished tasks are saved; repeat the command to run the others."
            )
            about = {"from": str(workdir), "peer": given.peer, "step": config.train.steps}
            command.evaluate(config, workdir, plan, (as_encoder(method, config, workdir, about), None))
        stop.end()


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "An experiment of configs/.")
    flags.DEFINE(arguments.PathParser(), "workdir", None, "Folder of the run.")
    flags.DEFINE_enum("peer", None, PEERS, "Which peer.")
    run_with_flags(main, __doc__)
