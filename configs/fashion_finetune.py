"""Fine-tuning of the model of configs/fashion.py as a classifier of Fashion-MNIST, all weights trained.

Command:   python main.py --config=configs/fashion.py
           python main.py --config=configs/fashion_finetune.py --mode=finetune
Hardware:  CPU cores suffice.
Result:    docs/classifiers.md: .884 of the 10,000 test images (linear probe of the frozen encoder: .829).

At the end it prints the accuracy of the classifier on the official test images, and kNN and linear probe of
the encoder before and after fine-tuning.
"""

from sparse_vis.config.experiments import experiment


def get_config():
    config = experiment("fashion")
    config.name = "fashion_finetune"
    config.init = "runs/fashion"
    config.views.update(global_scale=(0.6, 1.0))  # a weak crop; colour changes and masks are for pretraining
    config.optimizer.update(peak_lr=1e-3, final_lr=1e-6, weight_decay=0.05)
    config.train.update(batch=128, steps=5000, log_every=250, save_every=500)
    config.eval.update(tasks=("classifier", "knn", "linear"), beside=("runs/fashion",))
    return config
