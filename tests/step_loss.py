"""The loss of a training step, composed as `train_step` does, with the parts that tests look at."""

from sparse_vis.losses.objective import objective
from sparse_vis.losses.targets import make_targets


def loss_fn(params, model, spec, views, teacher=None, tokenizer=None, potentials=None):
    """(total, (terms, outputs, targets)); arguments as in `make_targets`."""
    outputs = model.apply({"params": params}, views)
    targets = make_targets(model, spec, views, outputs, teacher, tokenizer, potentials)
    total, terms = objective(outputs, targets, spec)
    return total, (terms, outputs, targets)
