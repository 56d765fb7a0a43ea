"""Peers of equal budget: DINO, SimCLR and MAE of the PyTorch package lightly, evaluated as our models are.

    pip install lightly "torch==2.13.*"      # only for this
    python -m benchmarks.evidence.peers --peer=dino --config=configs/fashion.py --workdir=DIR

    --peer=dino       dino, simclr or mae: benchmarks/evidence/lightly_methods.py has their settings
    --config=FILE     an experiment of configs/ or a file; read are config.model, views, data, optimizer,
                      train, seed and eval, except eval.beside: nothing is measured beside a peer
    --workdir=DIR     folder of the run; started again with it, a run continues where it was

A peer sees the same images as main.py's model in the same order, batches and learning rates. Its encoder is
then read as an MAE backbone, compared with torch's features, and evaluated by the tasks of config.eval.
"""

import json
import math
import pathlib
import re
import sys

from sparse_vis.runtime import host

if __name__ == "__main__":
    host.prepare()

import jax
import numpy as np
import torch
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags
from PIL import Image

from sparse_vis.build import build_source
from sparse_vis.config import arguments, settings
from sparse_vis.data.loader import train_batches
from sparse_vis.evals import command
from sparse_vis.evals.encoders import OWN, backbone_encoder
from sparse_vis.evals.features import Encoder, encode
from sparse_vis.interop import mae
from sparse_vis.interop.formats import write_safetensors
from sparse_vis.models.encoder import IMAGENET_MEAN, IMAGENET_STD
from sparse_vis.runtime.errors import UserError, command_line
from sparse_vis.runtime.files import whole
from sparse_vis.train.log import RunLog
from sparse_vis.train.optimizer import learning_rate
from sparse_vis.train.stop import StopSignal

PEERS = ("dino", "simclr", "mae")
SAVED, ENCODER = "peer.pt", "encoder.safetensors"
TOLERANCE, COMPARED = 1e-4, 16  # largest difference of features, relative to the largest; images compared
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


def learning_rates(config: ConfigDict) -> np.ndarray:
    """The rate of every step, (steps,)."""
    o = {name: config.optimizer[name] for name in ("peak_lr", "final_lr", "warmup", "schedule")}
    return np.asarray(jax.vmap(learning_rate(**o, steps=config.train.steps))(np.arange(config.train.steps)))


def mae_tensors(vit: torch.nn.Module) -> dict[str, np.ndarray]:
    """Tensors of torchvision's VisionTransformer, or of a module of its form, by the original MAE's names."""
    tensors = {}
    for name, tensor in vit.state_dict().items():
        for pattern, new in NAMES:
            name = re.sub(pattern, new, name)
        tensors[name] = tensor.detach().numpy().copy()
    return tensors


def update(method, optimizer, batch, step: int, seed: int, clip: float) -> float:
    """One step of the optimizer, 0 the first; returns the loss. Its randomness depends on (seed, step)."""
    torch.manual_seed((seed << 32) + step)
    sizes = zip(batch.image, batch.height, batch.width, strict=True)
    images = [Image.fromarray(canvas[:height, :width]) for canvas, height, width in sizes]
    views = [torch.stack(found) for found in zip(*map(method.views, images), strict=True)]
    optimizer.zero_grad(set_to_none=True)
    loss = method.loss(views, step)
    loss.backward()
    method.after_backward(step)
    torch.nn.utils.clip_grad_norm_(method.parameters(), clip)
    optimizer.step()
    return loss.item()


def restore(method, optimizer, config: ConfigDict, peer: str, workdir: pathlib.Path) -> int:
    """Load what `save` wrote into method and optimizer, if there is anything; returns the steps done.

    Raises:
        UserError: a damaged file, or one of another peer, seed or architecture.
    """
    path = workdir / SAVED
    if not path.exists():
        return 0
    try:
        saved = torch.load(path, weights_only=True)
        held, begun = (saved["peer"], saved["seed"]), json.loads(saved["config"])
    except Exception as error:  # on damage, of any type
        raise UserError(
            f"{path} cannot be read ({type(error).__name__}); remove it to start again."
        ) from None
    if held != (peer, config.seed):
        raise UserError(
            f"{workdir} holds a run of --peer={held[0]} with config.seed={held[1]}; give another "
            "--workdir, or these to continue."
        )
    for line in settings.check_resume(begun, settings.plain(config), workdir):
        print(f"note: setting changed since the last checkpoint: {line}", flush=True)
    method.load_state_dict(saved["method"])
    optimizer.load_state_dict(saved["optimizer"])
    print(f"continuing {workdir} at step {saved['step']}", flush=True)
    return saved["step"]


def save(method, optimizer, config: ConfigDict, peer: str, workdir: pathlib.Path, step: int) -> None:
    """Write all that a run needs to continue, atomically."""
    content = {
        "peer": peer, "seed": config.seed, "step": step, "config": json.dumps(settings.plain(config)),
        "method": method.state_dict(), "optimizer": optimizer.state_dict(),
    }  # fmt: skip
    with whole(workdir / SAVED) as partial:
        torch.save(content, partial)


def train(method, config: ConfigDict, peer: str, workdir: pathlib.Path, stop: StopSignal) -> bool:
    """Train up to the last step, or until a signal; returns whether the last step was reached."""
    o, t, data = config.optimizer, config.train, config.data
    trained = [parameter for parameter in method.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.0, betas=(o.b1, o.b2), weight_decay=o.weight_decay)
    rates, step = learning_rates(config), restore(method, optimizer, config, peer, workdir)
    if step >= t.steps:
        print(f"{workdir} is already finished (step {step} of {t.steps}).", flush=True)
        return True
    batches = train_batches(
        build_source(config, data.split), global_batch=t.batch, seed=config.seed, steps=t.steps - step,
        start_index=step * t.batch, canvas=data.canvas, min_side=config.model.patch, workers=data.workers,
        threads=data.threads, on_error=data.on_error, process_index=0, process_count=1,
    )  # fmt: skip
    log, losses = RunLog(workdir, t.steps, t.batch, step, active=True), []
    for batch, _ in batches:
        for group in optimizer.param_groups:
            group["lr"] = float(rates[step])
        losses.append(update(method, optimizer, batch, step, config.seed, o.clip))
        step, stop.keep = step + 1, True
        if not math.isfinite(losses[-1]):
            raise UserError(f"the loss is not finite at step {step}; lower config.optimizer.peak_lr.")
        ends = stop.at(step) or step == t.steps
        if step in (1, t.steps) or step % t.log_every == 0:
            log.report(step, {"total": float(np.mean(losses))}, {})
            losses = []
        if ends or step % t.save_every == 0:
            log.sync()
            save(method, optimizer, config, peer, workdir, step)
        if ends:
            break
    log.close()
    stop.keep = False
    return step == t.steps


def as_encoder(method, config: ConfigDict, workdir: pathlib.Path, about: dict) -> Encoder:
    """A trained backbone as an encoder of our evaluations; also written to the workdir, for config.init.

    Raises:
        UserError: its features are not those that torch computes.
    """
    with whole(workdir / ENCODER) as partial:
        write_safetensors(mae_tensors(method.backbone.vit), partial)
    encoder = backbone_encoder(OWN, config, mae.read_backbone(workdir / ENCODER, config), about)
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


def parse(argv: list[str]) -> list[str]:
    """Parse the flags; --help prints this file's docstring."""
    if {"-h", "--help", "-help"} & set(argv):
        print(__doc__)
        sys.exit(0)
    return arguments.parse(argv)


def main(_) -> None:
    """Train, then evaluate; see the docstring of this file."""
    given, stop = flags.FLAGS, StopSignal().listen()
    logging.set_verbosity(logging.WARNING)
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
    plan = command.make_plan(config)
    workdir.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    method = lightly_methods.METHODS[given.peer](config)
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
    flags.DEFINE_enum("peer", None, PEERS, "Which one.")
    command_line(lambda: app.run(main, flags_parser=parse))
