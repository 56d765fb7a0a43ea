"""Which checkpoints stay."""

import jax.numpy as jnp
import pytest

from sparse_vis.config import default_config
from sparse_vis.train import checkpoint
from sparse_vis.train.step import TrainState


def state(step):
    zero = jnp.zeros((), jnp.int32)
    return TrainState(zero + step, {"w": jnp.full(3, step, jnp.float32)}, (), None, zero)


@pytest.mark.fast
@pytest.mark.parametrize("keep,kept", [(2, [3, 4]), (1, [4])])
def test_the_newest_stay(tmp_path, keep, kept):
    checkpoint.prepare(tmp_path)
    with checkpoint.open_manager(tmp_path, keep) as manager:
        for step in range(1, 5):
            checkpoint.save(manager, state(step), {"next_index": 10 * step}, default_config())
        checkpoint.finish(manager)
        assert sorted(manager.all_steps()) == kept
        assert checkpoint.find_step(tmp_path).name == str(kept[-1])


@pytest.mark.fast
def test_the_rest_of_a_killed_save_is_cleaned_up(tmp_path):
    checkpoint.prepare(tmp_path)
    left = tmp_path / "checkpoints" / "7.orbax-checkpoint-tmp"
    left.mkdir()
    with checkpoint.open_manager(tmp_path, 1) as manager:
        checkpoint.save(manager, state(8), {"next_index": 0}, default_config())
        checkpoint.finish(manager)
        assert manager.all_steps() == [8] and not left.exists()
