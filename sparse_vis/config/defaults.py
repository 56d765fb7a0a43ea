"""The complete configuration with the published values; files in configs/ change what they need.

Sections `model`, `loss`, `views`, `teacher`, `optimizer`, `data` and `train` change results. Section
`efficiency` changes speed and memory only.
"""

from __future__ import annotations

from ml_collections import ConfigDict


def _model() -> ConfigDict:
    return ConfigDict(
        dict(
            image_size=224,  # pixels; side of the global views and of the position table's image
            patch=16,
            width=768,
            layers=12,
            heads=12,
            mlp_dim=3072,
            tokens=16,  # r
            init_std=0.02,  # of random ViT weights; narrow models need about width**-0.5
            spatial_temperature=0.06,  # tau of L
            target="pixel",  # "pixel" or "vq"
            bottleneck="factors",  # "factors": Z = L S is decoded; "dense": U itself, a baseline
            decoder=dict(width=512, layers=6, heads=8, mlp_dim=2048),
            prototypes=dict(count=16384, dim=256, hidden=2048),
            # MaskGIT-VQGAN weights, for target="vq"; bfloat16 is faster and changes some codes
            tokenizer=dict(path="", codes=1024, dtype="float32"),
        )
    )


def _loss() -> ConfigDict:
    return ConfigDict(
        dict(
            reconstruction=10.0,  # published: 10 for pixels, 0.05 for VQ codes
            token_clustering=1.0,
            cls_clustering=1.0,
            set_alignment=1.0,
            cls_masked=1.0,
            cls_local=1.0,
            koleo_image=0.1,
            koleo_masked=0.1,
            inpainting=0.0,  # not published: hidden patches of masked views from U, as MAE
            student_temperature=0.12,
            sinkhorn_temperature=0.06,
            sinkhorn_iterations=3,  # 0: plain softmax targets
            sinkhorn_epsilon=0.0,  # published: 1e-8, which shrinks some rows
            balance_over="batch",  # or "microbatch": as the published gradient accumulation
            matching="entropic",  # "entropic" (published) or "exact" (one to one)
            match_epsilon=0.1,
            match_iterations=5,
        )
    )


def _views() -> ConfigDict:
    return ConfigDict(
        dict(
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
            focus_probability=0.5,  # share of gaussian masks pulled to a centre, the rest are uniform
        )
    )


def _data() -> ConfigDict:
    return ConfigDict(
        dict(
            source="scenes",  # "scenes", "folder", "packed" or "tfds:<name>"
            path="",  # folder of images or shards, or TFDS data_dir
            split="train",  # scenes: train, validation, test; folder, packed: subfolder or ""; TFDS: any
            canvas=512,  # side of the uint8 canvas; larger images are reduced to fit
            on_error="stop",  # or "skip": take the next image that can be used, count, name in skipped.txt
            max_pixels=2**27,  # of an image; larger ones are refused before they are decoded
            workers=0,
            threads=4,
            seed=0,  # of the scenes' content
            scenes=dict(
                size=64,
                digits="many",
                colours="random",  # or "white": on black, as MNIST
                max_digits=4,
                digit_scale=(0.35, 0.55),
                train_records=50_000,
                eval_records=2_000,
            ),
        )
    )


def _eval() -> ConfigDict:
    return ConfigDict(
        dict(
            tasks=(),  # names of evaluations: docs/evaluation.md
            beside=(),  # measured too: "untrained", "pixels", "mean_colour", "pca", or what `load` accepts
            train_split="train",  # as data.split
            test_split="test",
            holdout=0.0,  # share of the records that are test, where both splits are the same folder
            train_records=2000,  # evenly spread over the split; 0: all
            test_records=1000,
            batch=250,  # images per call of the encoder
            dtype="float32",  # of encoders and probes; the published probes computed in "bfloat16", mixed
            seed=0,  # of probes, crops and held-out rows
            masks="",  # folder of PNG label maps with the images' names; 255: pixels that do not count
            mask_classes=0,  # number of classes in them
            mask_shift=0,  # or -1 (published for ADE20K and VOC): 0 becomes 255, the others count from 0
            resize="antialiased",  # of test images by Pillow, or "published": bicubic without antialiasing
            expected=(),  # published figures: rows (task, of, metric, figure, tolerance); docs/evaluation.md
            inception="",  # file of the 2015 Inception-v3, for rFID
            lpips=dict(alexnet="", heads=""),  # files of LPIPS
            # Released constants of the probes that train, to be changed only where they cannot be afforded.
            # None has a schedule: rates are constant. validation: share of train that is held out.
            reconstruction_probe=dict(
                target="pixel",  # or "vq" (published), which needs model.tokenizer.path
                learning_rate=1e-4,
                weight_decay=1e-4,
                clip=5.0,  # largest norm of the whole gradient
                batch_size=128,
                epochs=20,
                validation=0.1,
                scale=(0.36, 1.0),  # of the random crops' area, as in views
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
        )
    )


def default_config() -> ConfigDict:
    """The published recipe of B/16 with the pixel target, as a locked ConfigDict."""
    config = ConfigDict(
        dict(
            name="default",
            seed=0,
            init="",  # weights to start from: MAE or released file or folder, hf:// address, our workdir
            init_name="",  # of the model, where `init` is a release of several
            init_heads="keep",  # or "fresh": random prototype heads instead of those of `init`
            model=_model(),
            loss=_loss(),
            views=_views(),
            teacher=dict(enabled=False, momentum=0.996, final_momentum=0.996),  # cosine if they differ
            data=_data(),
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
                health_every=250,  # steps between measures of health, taken with the next report; 0: never
                keep=2,  # newest checkpoints kept
                max_bad_steps=3,  # non-finite steps in a row before the run stops
            ),
            efficiency=dict(
                dtype="bfloat16",
                remat="none",  # computed again on the way back: all but matrix "products", or whole "blocks"
                unroll=1,  # layers laid out one after the other: all of them, and less is computed and copied
                attention="xla",  # on NVIDIA GPUs also "cudnn", or "pallas": our kernel for short sequences
                microbatches=1,
                mesh=(-1, 1),  # devices along (data, fsdp); -1 takes what is left
                prototype_chunk=1024,
            ),
            eval=_eval(),
        )
    )
    return config.lock()
