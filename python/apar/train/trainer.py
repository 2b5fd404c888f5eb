"""transformers.Trainer for packed trees: their loss, their evaluation, checkpoints that are whole or not there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers import Trainer, TrainingArguments
from transformers.trainer import TRAINING_ARGS_NAME

from apar.grammar import Grammar
from apar.train.dataset import RowDataset, collate
from apar.train.loss import HeldoutSums, target_logits, target_losses
from apar.train.resume import RUN_FILE
from apar.train.saving import WRITE_ERRORS, begin_folder, checkpoints, discard_folder, end_folder, unfinished_name


class TreeTrainer(Trainer):
    """Trains on rows of packed trees.

    The loss of a step is the weighted mean over all targets of all its micro-batches and devices. A checkpoint that
    cannot be written (a full disk) is reported and left out, training goes on, and the checkpoints there are stay. A
    loss or a gradient that is no number ends the run, with the step's data saved in ``output_dir``.

    facts: written beside every checkpoint, see `resume.py`.
    """

    def __init__(
        self,
        model: Any,
        args: TrainingArguments,
        *,
        rows: RowDataset,
        heldout: RowDataset | None,
        grammar: Grammar,
        tokenizer: Any,
        implementation: str,
        keep_checkpoints: int,
        facts: dict[str, Any],
        optimizer_and_options: tuple[Callable[..., Any], dict[str, Any]] | None = None,
        callbacks: Sequence[Any] = (),
    ) -> None:
        super().__init__(
            model,
            args,
            data_collator=collate,
            train_dataset=rows,
            eval_dataset=heldout,
            callbacks=list(callbacks),
            # Trainer calls what it takes for a class, and what comes of that with the model and the options.
            optimizer_cls_and_kwargs=optimizer_and_options
            and (lambda: optimizer_and_options[0], optimizer_and_options[1]),
        )
        self.model_accepts_loss_kwargs = True  # the loss is divided by the sum of weights, not by Trainer
        self.tokenizer = tokenizer
        self._grammar = grammar
        self._implementation = implementation
        self._keep_checkpoints = keep_checkpoints
        self._facts = facts
        self._attention_dtype = torch.bfloat16 if args.bf16 else next(model.parameters()).dtype
        self._batches_of_step: tuple[int, list[dict[str, torch.Tensor]]] = (-1, [])
        self._saving_to: Path | None = None
        self.save_errors: list[str] = []

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The batch's part of the step's loss. num_items_in_batch: the sum of all weights of the step."""
        self._remember(inputs)
        logits = target_logits(model, inputs, self._implementation, self._attention_dtype)
        weights = inputs["weights"]
        losses = target_losses(logits, inputs["targets"])
        total = weights.sum() if num_items_in_batch is None else num_items_in_batch
        loss = (losses * weights).sum() / total.clamp(min=1e-8)
        if not torch.isfinite(loss):
            self._stop_at_no_number("loss", loss.item())
        # Gradients of the devices are averaged, their losses were divided by the weights of all.
        return loss * self.accelerator.num_processes

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Losses of trunk and details, precision and recall of forks, on the held-out rows."""
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in self._heldout_metrics().items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    @torch.no_grad()
    def _heldout_metrics(self) -> dict[str, float]:
        if self.eval_dataset is None:
            return {}
        model = self.model_wrapped
        model.eval()
        sums = HeldoutSums()
        processes, process = self.accelerator.num_processes, self.accelerator.process_index
        per_device = self.args.per_device_eval_batch_size
        for begin in range(0, len(self.eval_dataset), per_device * processes):
            own = range(begin + process * per_device, min(begin + (process + 1) * per_device, len(self.eval_dataset)))
            # Devices have to take part in every pass even where nothing is left for them.
            batch = self._prepare_inputs(collate([self.eval_dataset[row] for row in own or range(1)]))
            with self.compute_loss_context_manager():
                logits = target_logits(model, batch, self._implementation, self._attention_dtype)
            if own:
                sums.add(batch, logits, self._grammar)
        model.train()
        total = self.accelerator.reduce(sums.to_tensor(self.args.device), reduction="sum")
        return HeldoutSums(*total.tolist()).metrics()

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler:
        return torch.utils.data.SequentialSampler(self.train_dataset)  # the rows are in their order already

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> torch.Tensor | None:
        if not batch_samples:
            return None
        total = torch.stack([batch["weights"].sum() for batch in batch_samples]).sum().to(device)
        return self.accelerator.gather(total).sum() if self.accelerator.num_processes > 1 else total

    # Checkpoints

    def _get_output_dir(self, trial: Any) -> str:
        return super()._get_output_dir(trial) if self._saving_to is None else str(self._saving_to)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        stages = (
            lambda: begin_folder(folder) if self.args.should_save else None,
            lambda: self._write_into(unfinished_name(folder), model, trial),
            lambda: self._end_checkpoint(folder) if self.args.should_save else None,
        )
        try:
            error = next((error for stage in stages if (error := self._write_error(stage))), None)
        except BaseException:
            if self.args.should_save:
                discard_folder(folder)
            raise
        if error is not None:
            if self.args.should_save:
                discard_folder(folder)
            message = (
                f"step {self.state.global_step}: the checkpoint could not be written ({error}); the last one stays"
            )
            self.save_errors.append(message)
            self.log({"save_error": message})
        elif self.args.should_save:
            for old in checkpoints(folder.parent)[: -max(1, self._keep_checkpoints)]:
                shutil.rmtree(old, ignore_errors=True)

    def _write_error(self, stage: Callable[[], Any]) -> str | None:
        """Do a part of the writing. What went wrong in any of the processes, after all of them have done theirs."""
        error = None
        try:
            stage()
        except WRITE_ERRORS as caught:
            error = str(caught)
        if self.accelerator.num_processes > 1:
            error = next((found for found in gather_object([error]) if found is not None), None)
        return error

    def _write_into(self, unfinished: Path, model: Any, trial: Any) -> None:
        """Let Trainer write its folder into ``unfinished``."""
        self._saving_to = unfinished
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._saving_to = None

    def _end_checkpoint(self, folder: Path) -> None:
        """Lift the files out of Trainer's own folder."""
        unfinished = unfinished_name(folder)
        inner = unfinished / folder.name
        for path in inner.iterdir():
            path.rename(unfinished / path.name)
        inner.rmdir()
        (unfinished / RUN_FILE).write_text(json.dumps(self._facts, indent=1) + "\n", encoding="utf-8")
        end_folder(folder)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        """Weights under the names that they have in memory, by which Trainer looks for them: the names of published
        models, which are written otherwise, differ where experts are one tensor here and many there.
        """
        if not self.args.should_save:
            return
        folder = self.args.output_dir if output_dir is None else output_dir
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        model.save_pretrained(folder, state_dict=state_dict, save_original_format=False)
        torch.save(self.args, Path(folder) / TRAINING_ARGS_NAME)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """An error, where Trainer warns: a weight that is not in the checkpoint would be that of the first step."""
        weights = self.model.state_dict(keep_vars=True)
        missing = set(load_result.missing_keys)
        loaded = {id(weight) for name, weight in weights.items() if name not in missing}
        missing = {name for name in missing if id(weights[name]) not in loaded}  # a tied weight is there once
        if missing or load_result.unexpected_keys:
            raise ValueError(
                f"resume: the checkpoint has the weights of another model: missing {_some(missing)}, "
                f"unexpected {_some(load_result.unexpected_keys)}"
            )

    # Numbers that are none

    def _remember(self, inputs: dict[str, torch.Tensor]) -> None:
        if self.model.training:
            step, batches = self._batches_of_step
            batches = batches if step == self.state.global_step else []
            self._batches_of_step = (self.state.global_step, [*batches, inputs])

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if norm is not None and not torch.isfinite(torch.as_tensor(norm)).all():
            self._stop_at_no_number("norm of the gradient", float(norm))
        return norm

    def _stop_at_no_number(self, what: str, value: float) -> None:
        step, batches = self.state.global_step, self._batches_of_step[1]
        folder = Path(self.args.output_dir) / f"not-a-number-step-{step}"
        try:
            self._save_batches(batches, folder)
            data = f"the step's data is in {folder}"
        except WRITE_ERRORS as error:
            data = f"the step's data could not be written ({error})"
        # What lies there before the first step is done is of a run that this one was to replace.
        found = checkpoints(folder.parent) if step else []
        before = f"the last checkpoint is {found[-1]}" if found else "there is no checkpoint"
        raise FloatingPointError(
            f"step {step}: the {what} is {value}, expected a number; {data}; {before}. "
            "A lower learning_rate or max_grad_norm may help"
        )

    def _save_batches(self, batches: list[dict[str, torch.Tensor]], folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        suffix = f"-{self.accelerator.process_index}" if self.accelerator.num_processes > 1 else ""
        torch.save(
            [{name: value.cpu() for name, value in batch.items()} for batch in batches], folder / f"batches{suffix}.pt"
        )
        texts = [
            self.tokenizer.decode(ids) for batch in batches for ids in batch["input_ids"].view(batch["ends"].shape)
        ]
        (folder / f"rows{suffix}.json").write_text(json.dumps(texts, ensure_ascii=False, indent=1), encoding="utf-8")


def _some(names: Collection[str]) -> str:
    """The first names of many."""
    shown = ", ".join(sorted(names)[:3]) or "none"
    return shown + (f" and {len(names) - 3} more" if len(names) > 3 else "")
