"""The smallest configuration that has every part: seconds to compile, milliseconds a step."""

from sparse_vis.config.defaults import default_config


def get_config():
    config = default_config()
    config.name = "tiny"
    config.model.update(image_size=24, patch=6, width=16, layers=1, heads=2, mlp_dim=32, tokens=4)
    config.model.decoder.update(width=16, layers=1, heads=2, mlp_dim=32)
    config.model.prototypes.update(count=16, dim=8, hidden=16)
    config.views.update(global_count=2, local_count=1, local_size=12, masking_ratio=0.5)
    config.teacher.enabled = True
    config.data.update(canvas=24, threads=1)
    config.data.scenes.size = 24
    config.optimizer.peak_lr = 1e-2
    config.train.update(batch=4, steps=24, log_every=1, save_every=6)
    config.efficiency.dtype = "float32"
    config.eval.update(train_records=40, test_records=40, batch=40)
    return config
