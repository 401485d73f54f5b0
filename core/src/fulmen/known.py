"""Which package is known to provide a name, so that an error can say how to install it. Data, nothing else."""

from __future__ import annotations

KNOWN: dict[str, dict[str, str]] = {
    "accelerator": {"cuda": "cuda", "gpu": "cuda", "mps": "mps", "xla": "xla", "tpu": "xla"},
    "strategy": {
        "ddp": "ddp",
        "ddp_spawn": "ddp",
        "ddp_notebook": "ddp",
        "ddp_fork": "ddp",
        "ddp_find_unused_parameters_true": "ddp",
        "ddp_find_unused_parameters_false": "ddp",
        "dp": "dp",
        "xla": "xla",
    },
    "precision": {"16-mixed": "precision", "bf16-mixed": "precision", "16-true": "precision"},
    "logger": {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow", "comet": "comet"},
    "callback": {
        "checkpoint": "checkpoint",
        "early_stopping": "early-stopping",
        "pruning": "pruning",
        "swa": "swa",
        "ema": "swa",
        "optuna": "optuna",
    },
    "exporter": {"onnx": "onnx", "torchscript": "torchscript", "torch_export": "torchscript"},
}
"""Kind of part -> name -> extra: ``cuda`` is in ``fulmen-cuda``, which ``fulmen[cuda]`` installs too."""

CLASSES: dict[str, str] = {
    "ModelCheckpoint": "checkpoint",
    "EarlyStopping": "early-stopping",
    "ModelPruning": "pruning",
    "StochasticWeightAveraging": "swa",
    "EMAWeightAveraging": "swa",
    "OptunaPruning": "optuna",
    "TensorBoardLogger": "tensorboard",
    "WandbLogger": "wandb",
    "MLFlowLogger": "mlflow",
    "CometLogger": "comet",
    "DDPStrategy": "ddp",
    "DataParallelStrategy": "dp",
    "XLAStrategy": "xla",
}
"""Class name, as in ``from fulmen.callbacks import EarlyStopping``, -> extra."""

COUNTERPARTS: dict[str, str] = {
    "LightningModule": "Module",
    "LightningDataModule": "DataModule",
    "Fabric": "Runtime",
    "TQDMProgressBar": "ConsoleProgress",
    "RichProgressBar": "ConsoleProgress",
    "RichModelSummary": "ModelSummary",
    "OnExceptionCheckpoint": "RecoveryCheckpoint",
    "WeightAveraging": "EMAWeightAveraging",
    "SingleDeviceStrategy": "SingleDevice",
    "PyTorchLightningPruningCallback": "OptunaPruning",
}
"""Name in PyTorch Lightning -> what does the same here."""


def _each(names: str, text: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), text)


_NOT_SHARDED = "it does not exist here: a model that is divided among devices is not supported; 'ddp' has a copy on each"
_HALF = "half precision is '16-mixed', or '16-true' for the parameters too"

ELSEWHERE: dict[str, dict[str, str]] = {
    "argument": {
        "gpus": "use accelerator='gpu', devices=...",
        "tpu_cores": "use accelerator='tpu', devices=...",
        "num_processes": "use accelerator='cpu', devices=...",
        "auto_select_gpus": "use accelerator='gpu', devices=...",
        "ipus": "there is no accelerator for IPUs",
        "distributed_backend": "use strategy=...",
        "sync_batchnorm": "use strategy='ddp?sync_batchnorm=true'",
        "find_unused_parameters": "use strategy='ddp?find_unused_parameters=true'",
        "replace_sampler_ddp": "use use_distributed_sampler=...",
        "amp_backend": "use precision='16-mixed', which is PyTorch's own",
        "amp_level": "use precision='16-mixed' or '16-true'",
        "checkpoint_callback": "use enable_checkpointing=...",
        "weights_save_path": "use default_root_dir=..., or ModelCheckpoint(dirpath=...) among callbacks=",
        "resume_from_checkpoint": "use fit(..., ckpt_path=...)",
        "progress_bar_refresh_rate": "pass a progress bar among callbacks=",
        "process_position": "pass a progress bar among callbacks=",
        "weights_summary": "use enable_model_summary=...",
        "barebones": "use logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False",
        "log_gpu_memory": "pass DeviceStatsMonitor among callbacks=",
        "flush_logs_every_n_steps": "it belongs to the logger: logger='csv?flush_logs_every_n_steps=...'",
        "track_grad_norm": "log it: self.log('grad_norm', ...) in on_before_optimizer_step",
        "terminate_on_nan": "use detect_anomaly=True",
        "move_metrics_to_cpu": "leave it out: of what is logged, single numbers stay on the device",
        "multiple_trainloader_mode": "use fit(model, fulmen.CombinedLoader(loaders, mode=...))",
        "prepare_data_per_node": "leave it out: prepare_data runs once on each node",
        "truncated_bptt_steps": "use manual optimization, with a step for each part of the sequence",
        "enable_autolog_hparams": "use save_hyperparameters(logger=False) in the module",
        "model_registry": "leave it out: there is none",
        "auto_lr_find": "there is no learning-rate finder",
        "auto_scale_batch_size": "there is no batch-size finder",
        "stochastic_weight_avg": "pass StochasticWeightAveraging among callbacks=",
        "automatic_optimization": "set self.automatic_optimization = False in the module",
    },
    "attribute": {
        "state": "use trainer.status, trainer.stage and trainer.phase",
        "fit_loop": "use trainer.progress, trainer.current_epoch, trainer.max_epochs and trainer.request_stop(reason)",
        "received_sigterm": "use trainer.interrupted and trainer.stop_reason",
        "distributed_sampler_kwargs": "use trainer.strategy.sampler_arguments()",
        "scaler": "use trainer.precision_plugin",
        "tune": "there is no tuner",
        "from_argparse_args": "use Trainer(**vars(args)), with the arguments that are the trainer's",
        "add_argparse_args": "use parser.add_argument for each argument that the program takes",
    },
    "accelerator": _each("hpu ipu npu", "no package provides it; your own can (docs/plugins.md)"),
    "strategy": {
        **_each("fsdp fsdp_native fsdp_cpu_offload model_parallel ddp_sharded ddp_sharded_spawn", _NOT_SHARDED),
        **_each("deepspeed deepspeed_stage_1 deepspeed_stage_2 deepspeed_stage_3", _NOT_SHARDED),
        **_each("deepspeed_stage_2_offload deepspeed_stage_3_offload deepspeed_stage_3_nvme colossalai", _NOT_SHARDED),
        **_each("horovod bagua hivemind", "it does not exist here; use 'ddp'"),
        "ddp2": "use 'ddp'",
        "ddp_cpu": "use 'ddp' with accelerator='cpu', devices=...",
        **_each("single_tpu tpu_spawn single_xla", "leave it at 'auto', with accelerator='tpu'"),
    },
    "precision": {
        **_each("fp16 float16 half f16", _HALF),
        **_each("bfloat16 brain", "bfloat16 is 'bf16-mixed', or 'bf16-true' for the parameters too"),
        **_each("double float64 fp64", "double precision is '64-true'"),
        **_each("single float32 fp32 float full", "single precision is '32-true'"),
        **_each("transformer-engine transformer-engine-float16 8 fp8", "it does not exist here: use 'bf16-mixed'"),
    },
    "class": {
        "LambdaCallback": "it does not exist here: derive a class from fulmen.Callback",
        "BasePredictionWriter": "it does not exist here: write in on_predict_batch_end of a Callback",
        **_each(
            "BaseFinetuning BackboneFinetuning",
            "it does not exist here: freeze parameters in the module's constructor, and unfreeze them in on_train_epoch_start",
        ),
        "BatchSizeFinder": "there is no batch-size finder",
        "LearningRateFinder": "there is no learning-rate finder",
        "ThroughputMonitor": "it does not exist here: Trainer(profiler='simple') measures where time is spent",
        "SpikeDetection": "it does not exist here: Trainer(detect_anomaly=True) stops at a loss that is not finite",
        **_each("AdvancedProfiler PyTorchProfiler XLAProfiler", "it does not exist here: run torch.profiler around fit"),
        "PassThroughProfiler": "it does not exist here: leave profiler out",
        **_each("FSDPStrategy DeepSpeedStrategy ModelParallelStrategy", _NOT_SHARDED),
        **_each("NeptuneLogger LitLogger", "no package provides it; your own can (docs/plugins.md)"),
    },
    "fulmen": {
        "pytorch": "its names are in fulmen itself",
        "utilities": "rank_zero_only is in fulmen.loggers, CombinedLoader in fulmen",
        **_each("rank_zero_only rank_zero_info rank_zero_warn", "rank_zero_only is in fulmen.loggers"),
        "accelerators": "accelerators are given by name: Trainer(accelerator='gpu')",
        "tuner": "there is no tuner",
        "Tuner": "there is no tuner",
        **_each("LightningCLI LightningArgumentParser", "there is no command line interface for trainings: use argparse"),
    },
}
"""What other libraries have: kind of part, or where the name is looked for -> name -> what to do instead."""


def advice(kind: str, name: str) -> str | None:
    """What to do about a name of :data:`ELSEWHERE`; ``None`` for others.

    >>> advice("strategy", "ddp2")
    "use 'ddp'"
    """
    return ELSEWHERE.get(kind, {}).get(name)


def install_line(extra: str) -> str:
    """The line that installs the package behind an extra."""
    return f"pip install fulmen-{extra}"


def extra_for(name: str, kind: str | None = None) -> str | None:
    """The extra that is known to bring a part, a class or a plugin of that name; ``None`` where none is known.

    >>> extra_for("early_stopping"), extra_for("EarlyStopping"), extra_for("early-stopping")
    ('early-stopping', 'early-stopping', 'early-stopping')
    """
    if kind is not None:
        return KNOWN.get(kind, {}).get(name)
    tables = (*KNOWN.values(), CLASSES)
    found = next((table[name] for table in tables if name in table), None)
    return name if found is None and any(name in table.values() for table in tables) else found
