"""The options of `onnxeqx train` beside those of other trainers.

    python benchmarks/training_options.py > docs/training-options.md

The names of others were read in their source: `train.py` of timm 1.0.29.dev0 (commit aa4b5850), `training_args.py` of
transformers (commit 00349ae8) with PEFT's `LoraConfig`, and Keras 3's `compile`, `fit` and callbacks.
"""

import dataclasses

from onnxeqx.training import TrainConfig
from onnxeqx.training.options import DATA, MODEL, REGULARISATION, RUN, SCHEDULE

NONE = "-"
OTHERS: dict[str, tuple[str, str, str]] = {
    # option: timm, Hugging Face Trainer (and PEFT), Keras
    "model": ("`--model` (by name), `--pretrained-path`", "`Trainer(model=)`", "`load_model`"),
    "data": ("`--data-dir`, `--dataset`", "`Trainer(train_dataset=)`", "`fit(x, y)`, `image_dataset_from_directory`"),
    "output": ("`--output`, `--experiment`", "`output_dir`", "`ModelCheckpoint(filepath)`"),
    "task": ("classification alone", "one script for each", "by loss and model"),
    "loss": ("`--bce-loss`, `--jsd-loss`", "`compute_loss_func`", "`compile(loss=)`"),
    "metrics": ("top-1, top-5", "`compute_metrics`", "`compile(metrics=)`"),
    "classes": ("`--num-classes`", "`num_labels`", "in the model"),
    "head": ("`--num-classes` makes one", "`AutoModelFor…`", "in the model"),
    "teacher": ("`--kd-model-name`", NONE, NONE),
    "distill": ("`--distill-loss-weight`", NONE, NONE),
    "temperature": ("`--kd-temperature`", NONE, NONE),
    "trainable": (NONE, "`requires_grad`", "`layer.trainable`"),
    "freeze": (NONE, "`requires_grad`", "`layer.trainable`"),
    "unfreeze": (NONE, NONE, NONE),
    "lora": (NONE, "PEFT `r`", "`enable_lora(rank)`"),
    "lora_layers": (NONE, "PEFT `target_modules`", "by layer"),
    "lora_alpha": (NONE, "PEFT `lora_alpha`", "`lora_alpha`"),
    "batch_norm": ("`--bn-momentum`, `--sync-bn`", "in the model", "`layer.trainable`"),
    "dropout": ("`--drop`", "in the model", "in the model"),
    "dropout_layers": ("in the model", "in the model", "in the model"),
    "epochs": ("`--epochs`", "`num_train_epochs`", "`fit(epochs=)`"),
    "batch_size": ("`--batch-size`", "`per_device_train_batch_size`", "`fit(batch_size=)`"),
    "lr": ("`--lr`", "`learning_rate`", "`learning_rate`"),
    "lr_scale": (NONE, "own `create_optimizer`", NONE),
    "layer_decay": ("`--layer-decay`", NONE, NONE),
    "weight_decay": ("`--weight-decay`", "`weight_decay`", "`weight_decay`"),
    "warmup_epochs": ("`--warmup-epochs`", "`warmup_steps`", "`warmup_steps` of a schedule"),
    "opt": ("`--opt`", "`optim`", "`compile(optimizer=)`"),
    "opt_args": ("`--opt-kwargs`", "`optim_args`", "of the optimiser"),
    "sched": ("`--sched`", "`lr_scheduler_type`", "`LearningRateSchedule`"),
    "clip_grad": ("`--clip-grad`", "`max_grad_norm`", "`global_clipnorm`"),
    "grad_accum_steps": ("`--grad-accum-steps`", "`gradient_accumulation_steps`", "`gradient_accumulation_steps`"),
    "precision": ("`--amp`, `--amp-dtype`", "`bf16`, `fp16`", "`mixed_precision` policy"),
    "smoothing": ("`--smoothing`", "`label_smoothing_factor`", "`label_smoothing` of a loss"),
    "class_weights": (NONE, "own loss", "`fit(class_weight=)`"),
    "model_ema": ("`--model-ema`", NONE, "`use_ema`"),
    "model_ema_decay": ("`--model-ema-decay`", NONE, "`ema_momentum`"),
    "eval_metric": ("`--eval-metric`", "`metric_for_best_model`", "`ModelCheckpoint(monitor=)`"),
    "patience": (NONE, "`EarlyStoppingCallback`", "`EarlyStopping(patience=)`"),
    "image_size": ("`--img-size`", "image processor", "`Resizing`"),
    "mean": ("`--mean`", "image processor", "`Normalization`"),
    "std": ("`--std`", "image processor", "`Normalization`"),
    "crop_scale": ("`--scale`", NONE, "`RandomCrop`, `RandomZoom`"),
    "flip": ("`--hflip`", NONE, "`RandomFlip`"),
    "color_jitter": ("`--color-jitter`", NONE, "`RandomColorJitter`"),
    "rand_augment": ("`--aa rand-…`", NONE, "`RandAugment`"),
    "mixup": ("`--mixup`", NONE, "`MixUp`"),
    "cutmix": ("`--cutmix`", NONE, "`CutMix`"),
    "text_column": (NONE, "of the scripts", NONE),
    "label_column": ("`--target-key`", "`label_names`", NONE),
    "feature_columns": (NONE, NONE, "`FeatureSpace`"),
    "standardize": (NONE, NONE, "`Normalization`"),
    "tokenizer": (NONE, "`processing_class`", "`Tokenizer` of KerasHub"),
    "max_length": (NONE, "of the tokenizer", "`sequence_length`"),
    "mask_share": (NONE, "`mlm_probability` of the collator", "`MaskedLMMaskGenerator`"),
    "validation_share": ("a split of its own", "a split of its own", "`fit(validation_split=)`"),
    "limit": ("`--train-num-samples`", "of the scripts", "`steps_per_epoch`"),
    "workers": ("`--workers`", "`dataloader_num_workers`", "`PyDataset(workers=)`"),
    "worker_processes": ("`--workers`", "`dataloader_num_workers`", "`PyDataset(use_multiprocessing=)`"),
    "devices": ("`torchrun`", "`torchrun`", "`distribution`"),
    "scan_layers": (NONE, NONE, NONE),
    "remat": ("`--grad-checkpointing`", "`gradient_checkpointing`", "`RematScope`"),
    "checkpoint_steps": ("`--recovery-interval`", "`save_steps`", "`BackupAndRestore(save_freq=)`"),
    "keep_best": ("`--checkpoint-hist`", "`save_total_limit`", "`ModelCheckpoint(save_best_only=)`"),
    "tensorboard": (NONE, '`report_to="tensorboard"`', "`TensorBoard`"),
    "seed": ("`--seed`", "`seed`, `data_seed`", "`set_random_seed`"),
}

BESIDE = """## Of the command line alone

| `onnxeqx` | timm | Hugging Face Trainer, PEFT | Keras |
|---|---|---|---|
| `--config FILE` | `--config` | `HfArgumentParser` | - |
| `--amp` | `--amp` | `bf16` | `mixed_precision` policy |
| `--resume` | `--resume` | `resume_from_checkpoint` | `BackupAndRestore` |
| `--force` | - | - | - |
| `--dry-run` | - | - | - |
| `--overfit-one-batch` | - | - | - |
| `--find-lr` | - | - | - |
| `onnxeqx evaluate RUN` | `validate.py` | `trainer.evaluate()` | `model.evaluate()` |
| `onnxeqx export RUN` | `onnx_export.py` | Optimum | `model.export()` |
| SIGTERM saves, then ends | - | `enable_jit_checkpoint` | `BackupAndRestore` |
| a loss that is not finite names its step | - | `logging_nan_inf_filter` hides it | `TerminateOnNaN` |
| `results.png`, `confusion_matrix.png`, `report.html` | - | - | - |
"""

LACKING: list[tuple[str, str, str]] = [
    # option, who has it, why it is not here
    (
        "many hosts, FSDP, tensor parallelism (`--device-modules`, `fsdp`, `deepspeed`, `parallelism_config`, "
        "`distribution`)",
        "all",
        "later work: the step runs under a `jax.sharding.Mesh`, and data is read in shards by process, so "
        "that the door is open",
    ),
    (
        "Weights & Biases, MLflow, Comet, … (`--log-wandb`, `report_to`)",
        "timm, Hugging Face",
        "a callback of `fit` is one function; `history.jsonl` and TensorBoard cover the rest",
    ),
    (
        "pushing to a hub (`push_to_hub`, `hub_…`)",
        "Hugging Face",
        "a run is a folder: any tool uploads it",
    ),
    (
        "evaluation, logging and length by steps (`eval_steps`, `logging_steps`, `max_steps`)",
        "Hugging Face",
        "epochs are what fine-tuning counts in; `--limit` and fractions of `--warmup-epochs` help; `fit` "
        "takes callbacks for each step",
    ),
    (
        "step, plateau, polynomial and cyclic schedules, noise, cool-down (`--lr-noise`, `--lr-cycle-…`, "
        "`--decay-milestones`, `ReduceLROnPlateau`)",
        "all",
        "three schedules fit fine-tuning; any Optax schedule works with `fit`",
    ),
    (
        "learning rate by batch size (`--lr-base`, `--lr-base-scale`)",
        "timm",
        "a number that changes behind one's back",
    ),
    (
        "AutoAugment, AugMix, random erasing, vertical flips, blur, greyscale, repeated augmentation (`--aa`, "
        "`--reprob`, `--vflip`, `--aug-repeats`, `--jsd-loss`)",
        "timm, Keras",
        "for training from scratch rather than fine-tuning; a data source of your own may do anything to its examples",
    ),
    (
        "binary cross entropy for classes with thresholds (`--bce-…`)",
        "timm",
        "`--task multi-label`, or a loss of a plugin",
    ),
    (
        "stochastic depth, DropBlock (`--drop-path`, `--drop-block`)",
        "timm",
        "they act inside residual blocks, which an ONNX graph does not mark; `--dropout-layers` drops outputs of chosen layers",
    ),
    (
        "split BatchNorm, its momentum and eps (`--split-bn`, `--bn-momentum`, `--bn-eps`)",
        "timm",
        "momentum is PyTorch's 0.1; eps is the file's",
    ),
    (
        "several image sizes in a run (`--train-img-sizes`, NaFlex), test-time augmentation (`--tta`), "
        "evaluation crops (`--crop-pct`)",
        "timm",
        "one size compiles once; images are resized without a crop",
    ),
    (
        "feature and token distillation (`--kd-distill-type`)",
        "timm",
        "distillation is of outputs",
    ),
    (
        "8-bit and paged optimisers, GaLore, LOMO, schedule-free ones by name (`optim`)",
        "Hugging Face",
        "what Optax has by name is there; others work with `fit`",
    ),
    (
        "DoRA, rsLoRA, other initialisations, quantised bases (PEFT)",
        "Hugging Face",
        "LoRA alone so far",
    ),
    (
        "grouping by length, packing, dynamic padding (`group_by_length`, `padding_free`)",
        "Hugging Face",
        "shapes are fixed, so that nothing compiles twice",
    ),
    (
        "finding a batch size that fits (`auto_find_batch_size`)",
        "Hugging Face",
        "the largest memory of a short run stands in its report",
    ),
    (
        "NEFTune, Liger kernels, `torch.compile` modes",
        "Hugging Face",
        "of PyTorch's models; every step here is compiled",
    ),
    (
        "sample weights (`fit(sample_weight=)`)",
        "Keras",
        "classes have weights, examples not yet",
    ),
    (
        "hyper-parameter search (`hyperparameter_search`, KerasTuner)",
        "Hugging Face, Keras",
        "a run is a function of its configuration: any search tool can call it",
    ),
    (
        "streamed data sets (`--dataset wds/…`, `IterableDataset`)",
        "timm, Hugging Face",
        "exact resuming needs random access to the examples",
    ),
]


def page() -> str:
    """The document.

    **Raises:** `ValueError` if an option is missing here, or gone there.
    """
    options = {field.name: field for field in dataclasses.fields(TrainConfig)}
    if options.keys() != OTHERS.keys():
        raise ValueError(f"These options are in one place only: {', '.join(sorted(options.keys() ^ OTHERS.keys()))}.")
    parts = [
        "# Options of training, beside those of other trainers\n",
        "Generated by `python benchmarks/training_options.py`. Names of others: timm 1.0.29.dev0 (`train.py`), Hugging Face's",
        "`TrainingArguments` (transformers, commit 00349ae8) with PEFT's `LoraConfig`, Keras 3. A dash: there is none.\n",
    ]
    for panel in (MODEL, DATA, SCHEDULE, REGULARISATION, RUN):
        parts += [
            f"## {panel}\n",
            "| `onnxeqx train` | timm | Hugging Face Trainer, PEFT | Keras |",
            "|---|---|---|---|",
        ]
        for name, field in options.items():
            if field.metadata["panel"] == panel:
                shown = "MODEL" if name == "model" else "--" + name.replace("_", "-")
                parts.append(f"| `{shown}` | {' | '.join(OTHERS[name])} |")
        parts.append("")
    parts += [
        BESIDE,
        "## What the others have and we do not\n",
        "| option | who has it | why not here |",
        "|---|---|---|",
    ]
    parts += [f"| {' | '.join(row)} |" for row in LACKING]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    print(page(), end="")
