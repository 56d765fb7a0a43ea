"""The complete configuration with the published values; files in configs/ change some of them.

Sections `model`, `loss`, `views`, `teacher`, `optimizer`, `data`, `train` and `finetune` change results.
Section `efficiency` and `workers`, `threads` and `cache` of `data` change speed and memory only.
"""

from ml_collections import ConfigDict

from sparse_vis.runtime.skipped import MAX_PIXELS

_CONFIG = dict(
    name="default",
    seed=0,
    init="",  # initial weights: file or folder of a backbone or of a STELLAR model, hf:// address, workdir
    init_name="",  # which model, if `init` is a release of several
    init_heads="keep",  # or "fresh": random prototype heads instead of those of `init`
    model=dict(
        image_size=224,  # pixels; side of the global views, for which the position table is made
        patch=16,
        width=768,
        layers=12,
        heads=12,
        mlp_dim=3072,
        tokens=16,  # r
        init_std=0.02,  # of initial ViT weights; narrow models need about width**-0.5
        norm_epsilon=1e-12,  # of the encoder's LayerNorms; backbones of `init` may need 1e-6
        spatial_temperature=0.06,  # tau of L
        target="pixel",  # "pixel" or "vq"
        decoder=dict(width=512, layers=6, heads=8, mlp_dim=2048),
        prototypes=dict(count=16384, dim=256, hidden=2048),
        # MaskGIT-VQGAN weights, for target="vq"; bfloat16 is faster and changes some codes
        tokenizer=dict(path="", codes=1024, dtype="float32"),
    ),
    loss=dict(
        reconstruction=10.0,  # published: 10 for pixels, 0.05 for VQ codes
        token_clustering=1.0,
        cls_clustering=1.0,
        set_alignment=1.0,
        cls_masked=1.0,
        cls_local=1.0,
        koleo_image=0.1,
        koleo_masked=0.1,
        student_temperature=0.12,
        sinkhorn_temperature=0.06,
        sinkhorn_iterations=3,  # 0: plain softmax targets
        sinkhorn_epsilon=0.0,  # published: 1e-8, which shrinks some rows
        balance_over="batch",  # Sinkhorn over the global batch, or over each "microbatch" (published)
        matching="entropic",  # "entropic" (published) or "exact" (one to one)
        match_epsilon=0.1,
        match_iterations=5,
    ),
    views=dict(
        global_count=8,
        global_scale=(0.36, 1.0),
        local_count=8,
        local_size=96,
        local_scale=(0.06, 0.36),
        aspect=(3 / 4, 4 / 3),
        flip_probability=0.5,
        colour_per="view",  # or "batch" (published): one draw for all masked, one for all local views
        jitter_probability=0.8,
        brightness=0.4,
        contrast=0.4,
        saturation=0.2,
        hue=0.1,
        grey_probability=0.2,
        blur_probability=0.5,
        blur_sigma=(0.1, 2.0),  # pixels
        masking_ratio=0.8,
        mask_kind="gaussian",  # "gaussian", "uniform" or "block"
        focus_probability=0.5,  # share of gaussian masks that favour a random centre; others are uniform
    ),
    teacher=dict(enabled=False, momentum=0.996, final_momentum=0.996),  # cosine if they differ
    data=dict(
        source="scenes",  # "scenes", "pictures", "folder", "packed" or an address (docs/your_images.md)
        path="",  # folder of images, shards or pictures; for an address see docs/your_images.md
        split="train",  # scenes, pictures: train, validation, test; folder, packed: subfolder or ""
        canvas=512,  # pixels; side of the uint8 canvas; larger images are downscaled to fit
        on_error="stop",  # or "skip": replace a bad image by the next good one, list it in skipped.txt
        max_pixels=MAX_PIXELS,  # of an image; larger ones are refused before they are decoded
        workers=0,
        threads=4,
        cache=0,  # MiB of decoded images that each process keeps for later epochs
        seed=0,  # of the content of scenes and pictures
        scenes=dict(
            size=64,
            digits="many",
            colours="random",  # or "white": on black, as MNIST
            max_digits=4,
            digit_scale=(0.35, 0.55),
            train_records=50_000,
            eval_records=2_000,
        ),
        pictures=dict(
            size=64,
            photographs=0.25,  # share of pictures that are photographs without objects
            plain=0.25,  # share of scenes on one colour; the others are on photographs
            max_objects=4,
            object_scale=(0.3, 0.6),
            train_records=50_000,
            eval_records=2_000,
        ),
    ),
    optimizer=dict(
        peak_lr=1.5e-4,
        final_lr=1e-6,
        warmup=0.1,
        # Cosine after warm-up is our choice: as released, every recipe has schedule="constant".
        schedule="cosine",
        weight_decay=0.04,
        b1=0.9,
        b2=0.999,
        clip=3.0,
    ),
    train=dict(
        batch=2048,
        steps=93_750,
        log_every=50,
        save_every=1000,
        health_every=250,  # steps between health checks, each made with the next log row; 0: never
        probe_every=0,  # steps between probes: kNN, PSNR and pictures of some images; 0: never
        probe_images=500,  # images that are probed, and as many others for kNN
        trackers=(),  # services that get all metrics too: "wandb", "mlflow"
        keep=2,  # newest checkpoints kept
        max_bad_steps=3,  # non-finite steps in a row before the run stops
    ),
    finetune=dict(  # of --mode=finetune
        classes=(),  # names; (): those of the data, which are then saved with the run
        pool="mean_S",  # what the classifier reads: "mean_S", "cls", or "concat_S", all of S
        layer_decay=0.75,  # rate of each layer relative to the next one
        label_smoothing=0.1,
        mixup=0.0,  # blend pairs of images, with a share drawn from Beta(mixup, mixup); 0: none
    ),
    efficiency=dict(
        dtype="bfloat16",
        remat="none",  # what is recomputed in the backward pass: all but matrix "products", or whole "blocks"
        unroll=1,  # layers that are unrolled in the scan over layers; unrolling all saves time
        attention="xla",  # on NVIDIA GPUs also "cudnn", or "pallas": our kernel for short sequences
        microbatches=1,
        mesh=(-1, 1),  # devices along (data, fsdp); -1: all remaining devices
        prototype_chunk=1024,  # prototypes whose logits are in memory at a time
    ),
    eval=dict(
        tasks=(),  # names of evaluations: docs/evaluation.md
        beside=(),  # to compare with: "untrained", "pixels", "mean_colour", "pca", or a path for `load`
        train_split="train",
        test_split="test",  # as data.split
        holdout=0.0,  # share of the records used as test set, if train_split equals test_split
        train_records=2000,
        test_records=1000,  # evenly spread over the split; 0: all
        batch=250,  # images per call of the encoder
        dtype="float32",  # of encoders and probes; published probes: "bfloat16" mixed precision
        seed=0,  # of probes, crops and held-out rows
        masks="",  # folder of PNG label maps that are named like the images; label 255 is ignored
        mask_classes=0,  # number of classes in the label maps
        mask_shift=0,  # added to labels; -1 (published for ADE20K and VOC) turns label 0 into 255
        # Of images before the centre crop, relative to model.image_size; at 1, square images are not cropped.
        short_side=256 / 224,
        resize="antialiased",  # test images: Pillow's resize, or "published": bicubic, no antialiasing
        expected=(),  # rows (task, what is measured, metric, figure, tolerance): docs/evaluation.md
        inception="",  # weights file of the 2015 Inception-v3, for rFID
        lpips=dict(alexnet="", heads=""),  # weights files of LPIPS
        # Released hyperparameters of the trained probes; change them only to save compute. Learning rates
        # are constant. clip: maximum global gradient norm. validation: share of the training images held out.
        # scale: of the random crops' area, as in views.
        reconstruction_probe=dict(
            target="pixel",  # or "vq" (published), which needs model.tokenizer.path
            learning_rate=1e-4,
            weight_decay=1e-4,
            clip=5.0,
            batch_size=128,
            epochs=20,
            validation=0.1,
            scale=(0.36, 1.0),
            width=512,
            layers=6,
            heads=8,
            mlp_dim=2048,
        ),
        segmentation=dict(batch=2048, epochs=80, scale=(0.25, 1.0)),  # published for VOC: (0.5, 1.0)
        linear_published=dict(
            learning_rate=1e-3,
            weight_decay=1e-4,
            clip=5.0,
            batch_size=2048,
            epochs=30,
            validation=0.1,
            scale=(0.2, 1.0),
        ),
    ),
)


def default_config() -> ConfigDict:
    """The published recipe of B/16 with the pixel target, as a locked ConfigDict."""
    return ConfigDict(_CONFIG).lock()
