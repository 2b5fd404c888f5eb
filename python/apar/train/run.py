"""A training run from its configuration to a folder that `apar.load` takes."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, SchedulerType, TrainerCallback, TrainingArguments, get_scheduler
from transformers.utils import logging

from apar.data import TreeRecord, read_trees
from apar.train import muon
from apar.train.attention import implementation_for, register
from apar.train.config import TrainConfig, nearest
from apar.train.dataset import RowDataset, TreeStore
from apar.train.encoding import TreeEncoder
from apar.train.log import RunLog
from apar.train.model_setup import load_model, load_tokenizer, prepare_generation
from apar.train.resume import check_resumed, run_facts
from apar.train.saving import WRITE_ERRORS, checkpoints, whole_files, write_text_whole
from apar.train.trainer import TreeTrainer

_TRAINING_FIELDS = {field.name: field for field in dataclasses.fields(TrainingArguments) if field.init}
# What Trainer would do with these, TreeTrainer does not: rows and their order are made beforehand, the loss, the
# evaluation and the checkpoints are its own, and a resumed run is the one that was interrupted.
_WITHOUT_EFFECT = (
    *("auto_find_batch_size", "batch_eval_metrics", "bf16_full_eval", "data_seed", "dataloader_drop_last", "deepspeed"),
    *("do_eval", "do_predict", "do_train", "eval_accumulation_steps", "eval_do_concat_batches", "fp16"),
    *("eval_use_gather_object", "fp16_full_eval", "group_by_length", "ignore_data_skip", "include_for_metrics"),
    *("label_names", "label_smoothing_factor", "length_column_name", "load_best_model_at_end", "num_train_epochs"),
    *("prediction_loss_only", "resume_from_checkpoint", "save_only_model", "train_sampling_strategy"),
    *("use_liger_kernel", "liger_kernel_config", "use_cache"),
)
# transformers passes over options for these without a word.
_SCHEDULES_WITHOUT_OPTIONS = (SchedulerType.CONSTANT, SchedulerType.CONSTANT_WITH_WARMUP)
SUMMARY_FILE = "training.json"


def train(config: TrainConfig, *, resume: bool = False, overwrite: bool = False) -> Path:
    """Run a training and return the folder of the model.

    resume: go on from the newest checkpoint in ``config.output``. overwrite: remove what stands in ``config.output``.

    Raises:
        ValueError: the configuration cannot be followed; nothing has been written.
        OSError: an input cannot be read, or the model cannot be written at the end (checkpoints stay).
        FloatingPointError: the loss or the gradient is no number; the data of the step is saved.
    """
    output = Path(config.output)
    arguments = _arguments_beside(config)
    last = _output_state(config, resume, overwrite)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    register()
    started_at = time.perf_counter()
    tokenizer, grammar = load_tokenizer(config)
    model = load_model(config, tokenizer, grammar)
    stores, counts = _read_data(config, tokenizer, grammar)
    prepare_generation(model, grammar, tokenizer, counts["train"]["depth"])
    rows_per_step = config.rows * config.accumulate * int(os.environ.get("WORLD_SIZE", "1"))
    rows = RowDataset(stores["train"], seed=config.seed, weighting=config.weighting, detail_weight=config.detail_weight)
    steps = config.steps
    if steps is None:
        steps = max(1, math.ceil(len(rows) * config.epochs / rows_per_step))
    rows.resize(steps * rows_per_step)
    control_tokens = tokenizer.convert_ids_to_tokens([grammar.fork_id, grammar.child_id])
    facts = run_facts(config, model, control_tokens, stores["train"], rows_per_step)
    if last is not None:
        check_resumed(last, facts, steps)
    heldout = RowDataset(stores["heldout"]) if len(stores["heldout"]) else None
    arguments = _training_arguments(config, steps, heldout is not None, arguments)
    implementation = implementation_for(arguments.device, model.config, config.attention)
    model.set_attn_implementation(implementation)
    _check_optimizer(arguments, model)
    progress = sys.stderr.isatty()
    if not progress:
        logging.disable_progress_bar()
    log = RunLog(output, rows_per_step * config.length, shown=not progress)
    muon_options = {name: getattr(config, name) for name in ("learning_rate", "weight_decay", "beta2")}
    trainer = TreeTrainer(
        model,
        arguments,
        rows=rows,
        heldout=heldout,
        grammar=grammar,
        tokenizer=tokenizer,
        implementation=implementation,
        keep_checkpoints=config.keep_checkpoints,
        facts=facts,
        optimizer_and_options=(muon.make_muon, muon_options) if config.optimizer == muon.NAME else None,
        callbacks=[log, _Replacing(checkpoints(output) if overwrite else [])],
    )
    trainer.remove_callback(PrinterCallback)  # the log says the same
    if trainer.is_world_process_zero():
        _print_facts(model, counts, stores, rows, steps)
    trainer.train(resume_from_checkpoint=None if last is None else str(last))
    if heldout is not None and not config.evaluate_every:
        trainer.evaluate()
    _save(trainer, config, output, tokenizer)
    if trainer.is_world_process_zero():
        summary = {
            "config": dataclasses.asdict(config),
            "data": counts,
            "steps": steps,
            "rows_per_epoch": rows.rows_per_epoch,
        }
        summary["seconds"] = round(time.perf_counter() - started_at, 1)
        summary["save_errors"] = trainer.save_errors
        write_text_whole(output / SUMMARY_FILE, json.dumps(summary, indent=2, default=str) + "\n")
        if not config.keep_checkpoints:
            for folder in checkpoints(output):
                shutil.rmtree(folder, ignore_errors=True)
    return output


class _Replacing(TrainerCallback):
    """Removes the checkpoints of the run that this one replaces when this one is known to work: after a step."""

    def __init__(self, folders: list[Path]) -> None:
        self._folders = folders

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            for folder in self._folders:
                shutil.rmtree(folder)
        self._folders = []


def _read_data(config: TrainConfig, tokenizer: Any, grammar: Any) -> tuple[dict[str, TreeStore], dict[str, Any]]:
    heldout: list[TreeRecord] = []
    for path in config.heldout:
        for record in read_trees(path):
            if len(heldout) < config.heldout_limit:
                heldout.append(record)

    def learned() -> Iterator[TreeRecord]:
        for path in config.data:
            for record in read_trees(path):
                if record.split == "train":
                    yield record
                elif len(heldout) < config.heldout_limit:
                    heldout.append(record)

    stores, counts = {}, {}

    def encode(split: str, records: Iterable[TreeRecord]) -> None:
        encoder = TreeEncoder(tokenizer, grammar)
        stores[split] = TreeStore(encoder.encode(records), config.length, config.too_long, config.share_prompts)
        counts[split] = dataclasses.asdict(encoder.counts) | dataclasses.asdict(stores[split].counts)

    encode("train", learned())
    encode("heldout", heldout)  # all of them are known only when the data have been read
    if not len(stores["train"]):
        raise ValueError(f"data: no tree to learn from in {', '.join(config.data)} ({counts['train']})")
    return stores, counts


def _arguments_beside(config: TrainConfig) -> dict[str, Any]:
    """What the config says of TrainingArguments by its own name. Raises ValueError for what it cannot say."""
    ours = set(_arguments_of(config, 1, False))
    for name in config.trainer:
        if name not in _TRAINING_FIELDS:
            raise ValueError(f"trainer.{name}: unknown key{nearest(str(name), _TRAINING_FIELDS)}")
        if name in ours:
            raise ValueError(f"trainer.{name}: is set by the keys of the config itself, expected none")
        if name in _WITHOUT_EFFECT:
            raise ValueError(f"trainer.{name}: cannot be followed here, expected none")
        choices = _TRAINING_FIELDS[name].metadata.get("choices")
        if choices is not None and config.trainer[name] not in list(choices):
            raise ValueError(
                f"trainer.{name}: expected one of {', '.join(map(str, choices))}, got {config.trainer[name]!r}"
            )
    if config.trainer.get("fsdp"):
        if config.lora is not None:
            raise ValueError("lora: cannot be merged from shards, expected no trainer.fsdp")
        if config.optimizer == muon.NAME:
            raise ValueError("optimizer: muon needs whole matrices, expected no trainer.fsdp")
    return {name: _number_if_asked(name, value) for name, value in config.trainer.items()}


def _number_if_asked(name: str, value: Any) -> Any:
    """YAML reads 1e-8 as a text."""
    if isinstance(value, str) and "float" in str(_TRAINING_FIELDS[name].type):
        try:
            return float(value)
        except ValueError as error:
            raise ValueError(f"trainer.{name}: expected a number, got {value!r}") from error
    return value


def _arguments_of(config: TrainConfig, steps: int, has_heldout: bool) -> dict[str, Any]:
    warmup = config.warmup_steps if config.warmup_steps is not None else math.ceil(config.warmup_ratio * steps)
    schedule, schedule_options = config.schedule, config.schedule_options
    if config.min_learning_rate and schedule == "cosine":
        schedule, schedule_options = "cosine_with_min_lr", schedule_options | {"min_lr": config.min_learning_rate}
    has_gpu = torch.cuda.is_available()
    # transformers is changing the name.
    checkpointing = next(
        name for name in ("activation_checkpointing", "gradient_checkpointing") if name in _TRAINING_FIELDS
    )
    return {
        "output_dir": config.output,
        "max_steps": steps,
        "per_device_train_batch_size": config.rows,
        "per_device_eval_batch_size": config.rows,
        "gradient_accumulation_steps": config.accumulate,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": schedule,
        "lr_scheduler_kwargs": schedule_options,
        "warmup_steps": warmup,
        "weight_decay": config.weight_decay,
        "adam_beta2": config.beta2,
        "max_grad_norm": config.max_grad_norm,
        "optim": "adamw_torch_fused" if config.optimizer == muon.NAME else config.optimizer,
        "bf16": config.precision == "bfloat16",
        "torch_compile": config.compile,
        **({checkpointing: True} if config.activation_checkpointing else {}),
        "seed": config.seed,
        "use_cpu": not has_gpu,
        "dataloader_pin_memory": has_gpu,
        "logging_strategy": "steps" if config.log_every else "no",
        "logging_steps": max(1, config.log_every),
        "logging_nan_inf_filter": False,
        "eval_strategy": "steps" if config.evaluate_every and has_heldout else "no",
        "eval_steps": max(1, config.evaluate_every),
        "save_strategy": "steps" if config.save_every else "no",
        "save_steps": max(1, config.save_every),
        "save_total_limit": None,
        "report_to": "none",
        "remove_unused_columns": False,
        "disable_tqdm": not sys.stderr.isatty(),
    }


def _training_arguments(
    config: TrainConfig, steps: int, has_heldout: bool, beside: dict[str, Any]
) -> TrainingArguments:
    try:
        beside = {"ddp_find_unused_parameters": False, **beside}  # a pass more that a dense model has no use for
        arguments = TrainingArguments(**_arguments_of(config, steps, has_heldout), **beside)
    except (ValueError, TypeError) as error:
        raise ValueError(f"config: transformers.TrainingArguments does not take it ({error})") from error
    _check_schedule(arguments, steps)
    arguments._n_gpu = min(1, arguments.n_gpu)  # a batch is one sequence, which DataParallel cannot cut; use torchrun
    return arguments


def _check_schedule(arguments: TrainingArguments, steps: int) -> None:
    """Raise ValueError where the schedule lacks an option or has one that it does not know, which Trainer finds when it
    begins.
    """
    if arguments.lr_scheduler_kwargs and arguments.lr_scheduler_type in _SCHEDULES_WITHOUT_OPTIONS:
        raise ValueError(f"schedule, schedule_options: {arguments.lr_scheduler_type.value} takes none")
    weight = torch.nn.Parameter(torch.zeros(1))
    try:
        get_scheduler(
            arguments.lr_scheduler_type,
            torch.optim.SGD([weight], arguments.learning_rate),
            num_warmup_steps=arguments.get_warmup_steps(steps),
            num_training_steps=steps,
            scheduler_specific_kwargs=arguments.lr_scheduler_kwargs,
        )
    except (ValueError, TypeError) as error:
        raise ValueError(f"schedule, schedule_options: the schedule cannot be made ({error})") from error


def _check_optimizer(arguments: TrainingArguments, model: Any) -> None:
    """Raise ValueError where the optimizer needs a package that is not there, or an option."""
    try:
        TreeTrainer.get_optimizer_cls_and_kwargs(arguments, model)
    except (ValueError, ImportError, RuntimeError) as error:
        raise ValueError(f"optimizer: it cannot be made ({error})") from error


def _output_state(config: TrainConfig, resume: bool, overwrite: bool) -> Path | None:
    """The checkpoint to go on from. Raises ValueError where the folder holds another run, or what this one reads."""
    if resume and overwrite:
        raise ValueError("resume, overwrite: expected at most one of them")
    output = Path(config.output)
    found = checkpoints(output)
    if resume:
        if not found:
            raise ValueError(f"resume: there is no checkpoint in {output}")
        return found[-1]
    if overwrite:
        for name, read in (("model", config.model), ("tokenizer", config.tokenizer)):
            if isinstance(read, str) and os.path.exists(read) and Path(read).resolve().is_relative_to(output.resolve()):
                raise ValueError(
                    f"{name}: {read} lies in the output, which --overwrite replaces, expected another place"
                )
        return None
    if found or (output / "config.json").exists():
        raise ValueError(f"output: {output} holds a run already; --resume goes on with it, --overwrite replaces it")
    return None


def _save(trainer: TreeTrainer, config: TrainConfig, output: Path, tokenizer: Any) -> None:
    """The model beside its checkpoints; the files are moved there when all of them are written."""
    model = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
    if config.lora is not None:
        model = model.merge_and_unload()
    model.config.use_cache = True  # which training does without
    state = trainer.accelerator.get_state_dict(trainer.model) if trainer.is_fsdp_enabled else model.state_dict()
    if not trainer.is_world_process_zero():
        return
    state = _cast(state, getattr(torch, config.save_precision))
    try:
        with whole_files(output) as unfinished:
            model.save_pretrained(unfinished, state_dict=state)
            tokenizer.save_pretrained(unfinished)
            saved = json.loads((unfinished / "config.json").read_text(encoding="utf-8"))
            saved["dtype"] = config.save_precision
            (unfinished / "config.json").write_text(json.dumps(saved, indent=2) + "\n", encoding="utf-8")
    except WRITE_ERRORS as error:
        found = checkpoints(output)
        stays = f"the last checkpoint is {found[-1]}" if found else "there is no checkpoint (see save_every)"
        raise OSError(f"{output}: the model could not be written ({error}); {stays}") from error


def _cast(state: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Weights that are one tensor stay one, by which they are known as tied and saved once."""
    done: dict[tuple[Any, ...], torch.Tensor] = {}
    for value in state.values():
        if value.is_floating_point():
            done.setdefault(_place(value), value.to(dtype))
    return {name: done.get(_place(value), value) for name, value in state.items()}


def _place(value: torch.Tensor) -> tuple[Any, ...]:
    return value.data_ptr(), value.shape, value.stride()


def _print_facts(
    model: Any, counts: dict[str, Any], stores: dict[str, TreeStore], rows: RowDataset, steps: int
) -> None:
    parameters = sum(parameter.numel() for parameter in model.parameters())
    found = counts["train"]
    print(
        f"{parameters / 1e6:.1f}M parameters; {found['trees']:,} trees, {found['forks']:,} forks, "
        f"{found['tokens']:,} tokens, {counts['heldout']['trees']:,} trees held out; "
        f"{rows.rows_per_epoch[0]:,} rows in an epoch, {steps:,} steps",
        file=sys.stderr,
    )
    for name, what in (
        ("unusable", "records could not be encoded"),
        ("changed_texts", "answers are changed by the tokenizer"),
        ("shared_tokens", "tokens of prompts are shared with the tree before"),
        ("split_trees", "trees were longer than a row and were split"),
        ("dropped_trees", "trees were longer than a row and were dropped"),
        ("dropped_branches", "branches were longer than a row and were dropped"),
    ):
        if found[name]:
            print(f"{found[name]:,} {what}", file=sys.stderr)
    if found["refused"]:
        print(f"the chat template refuses some of them: {found['refused']}", file=sys.stderr)
