"""Train a peer on the images, batches and learning rates of main.py; an interrupted training continues."""

import json
import math
import pathlib

import jax
import numpy as np
import torch
from ml_collections import ConfigDict
from PIL import Image

from sparse_vis.build import build_source
from sparse_vis.config import settings
from sparse_vis.data.loader import train_batches
from sparse_vis.runtime.errors import UserError
from sparse_vis.runtime.files import whole
from sparse_vis.train.log import RunLog
from sparse_vis.train.optimizer import learning_rate
from sparse_vis.train.stop import StopSignal

SAVED = "peer.pt"


def learning_rates(config: ConfigDict) -> np.ndarray:
    """The learning rate of every step, (steps,)."""
    o = {name: config.optimizer[name] for name in ("peak_lr", "final_lr", "warmup", "schedule")}
    return np.asarray(jax.vmap(learning_rate(**o, steps=config.train.steps))(np.arange(config.train.steps)))


def update(method, optimizer, batch, step: int, seed: int, clip: float) -> float:
    """One step of the optimizer, counted from 0; returns the loss. Random numbers depend on (seed, step)."""
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
    """Load into method and optimizer what `save` wrote, if anything; returns the number of steps done."""
    path = workdir / SAVED
    if not path.exists():
        return 0
    try:
        saved = torch.load(path, weights_only=True)
        held, begun = (saved["peer"], saved["seed"]), json.loads(saved["config"])
    except Exception as error:  # on damage, of any type
        what = f"{path} cannot be read ({type(error).__name__})"
        raise UserError(f"{what}; remove it to start again.") from None
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
