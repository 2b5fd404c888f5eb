"""What a training run is asked to do, as it stands in a YAML file."""

from __future__ import annotations

import dataclasses
import difflib
import os
import types
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from apar.templates import TEMPLATES
from apar.train import muon
from apar.train.dataset import TOO_LONG, WEIGHTINGS

PRECISIONS = ("float32", "bfloat16")
ATTENTIONS = ("auto", "apar_tiles", "flex_attention")
AT_LEAST_ZERO = (
    *("log_every", "evaluate_every", "save_every", "keep_checkpoints", "detail_weight", "seed", "max_grad_norm"),
    *("learning_rate", "min_learning_rate", "warmup_steps", "warmup_ratio", "weight_decay", "beta2"),
)


@dataclasses.dataclass
class LoraConfig:
    """Tuning of low-rank additions (peft), merged into the weights at the end. ``modules``: names of the layers that
    get one; None: all linear layers. The embeddings of the control tokens are trained as they are.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    modules: list[str] | None = None

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"lora.rank: expected 1 or more, got {self.rank}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"lora.dropout: expected 0 or more and less than 1, got {self.dropout}")


@dataclasses.dataclass
class TrainConfig:
    """One run. Paths are relative to the folder of the YAML file.

    What is trained:
        model: a model folder or hub id, or ``{config: {model_type: llama, hidden_size: ..., ...}}``, a new model with
            random weights (the vocabulary's size and the special tokens come from the tokenizer).
        tokenizer: a folder or hub id; by default the model's.
        chat_template: for a tokenizer that has none, or to replace it: "vicuna" or a file.
        fork_token, child_token: names of the control tokens; by default a pair that the tokenizer has already, else
            "[Fork]" and "[Child]".
        lora: see LoraConfig; by default all weights are trained.
    On what:
        data: files of trees (`apar data build`). Records whose split is "heldout" are for evaluation.
        heldout: more files, of which every record is for evaluation.
        heldout_limit: records that an evaluation looks at.
        too_long: trees longer than ``length``: "split" (details spread over several rows) or "drop".
        share_prompts: whether records that follow each other and begin alike have that beginning once in a row (see
            apar.train.sharing).
        weighting: "token", every target counts the same, or "branch", every branch counts the same.
        detail_weight: factor of the targets below the trunk.
    How:
        length: tokens of a row, into which several trees are packed. rows: rows of a micro-batch and device.
        accumulate: micro-batches of a step. steps, or epochs: how long (one of them).
        learning_rate, schedule, warmup_steps, warmup_ratio, weight_decay, beta2, max_grad_norm, optimizer: as in
            transformers.TrainingArguments (``schedule`` is its lr_scheduler_type, ``optimizer`` its optim, or "muon":
            see apar.train.muon, for models trained from nothing).
        schedule_options: what the schedule takes besides (num_decay_steps of warmup_stable_decay ...).
        min_learning_rate: where the schedule ends (0: as the schedule says); with ``schedule: cosine``.
        precision: "bfloat16" computes in mixed precision, weights stay float32. attention: see apar.train.attention.
        compile: compile the model with torch.compile.
        activation_checkpointing: forget activations and compute them again, which saves memory.
        seed: of the order of the data, dropout and new weights. threads: of torch on a CPU.
    What comes out:
        output: the folder of the model, with checkpoints in it while training runs.
        save_precision: of the weights in ``output``.
        log_every, evaluate_every, save_every: steps; 0: never (evaluation and saving at the end still happen).
        keep_checkpoints: the newest ones are kept; 0: one while training runs, none is left after the end.
        trainer: anything else of transformers.TrainingArguments, by its name there (fsdp, dataloader_num_workers ...).
    """

    model: str | dict[str, Any]
    data: list[str]
    output: str
    tokenizer: str | None = None
    chat_template: str | None = None
    fork_token: str | None = None
    child_token: str | None = None
    lora: LoraConfig | None = None
    heldout: list[str] = dataclasses.field(default_factory=list)
    heldout_limit: int = 1000
    too_long: str = "split"
    share_prompts: bool = True
    weighting: str = "token"
    detail_weight: float = 1.0
    length: int = 2048
    rows: int = 1
    accumulate: int = 1
    steps: int | None = None
    epochs: float | None = None
    learning_rate: float = 2e-5
    schedule: str = "cosine"
    schedule_options: dict[str, Any] = dataclasses.field(default_factory=dict)
    min_learning_rate: float = 0.0
    warmup_steps: int | None = None
    warmup_ratio: float = 0.03
    weight_decay: float = 0.0
    beta2: float = 0.999
    max_grad_norm: float = 1.0
    optimizer: str = "adamw_torch_fused"
    precision: str = "bfloat16"
    attention: str = "auto"
    compile: bool = False
    activation_checkpointing: bool = False
    seed: int = 0
    threads: int | None = None
    save_precision: str = "bfloat16"
    log_every: int = 10
    evaluate_every: int = 0
    save_every: int = 0
    keep_checkpoints: int = 2
    trainer: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, allowed in (
            ("too_long", TOO_LONG),
            ("weighting", WEIGHTINGS),
            ("precision", PRECISIONS),
            ("save_precision", PRECISIONS),
            ("attention", ATTENTIONS),
        ):
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(f"{name}: expected one of {', '.join(allowed)}, got {value!r}")
        for name in ("length", "rows", "accumulate", "heldout_limit"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected 1 or more, got {getattr(self, name)}")
        for name in AT_LEAST_ZERO:
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"{name}: expected 0 or more, got {getattr(self, name)}")
        for name, limit in (("beta2", 1), ("warmup_ratio", 1), ("seed", 1 << 32)):
            if getattr(self, name) >= limit:
                raise ValueError(f"{name}: expected less than {limit}, got {getattr(self, name)}")
        if self.min_learning_rate and (self.schedule != "cosine" or self.min_learning_rate > self.learning_rate):
            raise ValueError(
                f"min_learning_rate: expected at most learning_rate, and schedule cosine; got {self.min_learning_rate} "
                f"with learning_rate={self.learning_rate}, schedule={self.schedule}"
            )
        if (self.steps is None) == (self.epochs is None):
            raise ValueError(f"steps, epochs: expected one of them, got steps={self.steps}, epochs={self.epochs}")
        for name in ("steps", "epochs", "threads"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise ValueError(f"{name}: expected more than 0, got {getattr(self, name)}")
        if (self.fork_token is None) != (self.child_token is None):
            raise ValueError(
                "fork_token, child_token: expected both or neither, "
                f"got fork_token={self.fork_token!r}, child_token={self.child_token!r}"
            )
        if not self.data:
            raise ValueError("data: expected at least one file")
        if self.lora is not None and self.optimizer == muon.NAME:
            raise ValueError("optimizer: muon is for whole matrices, expected another one with lora")
        self.schedule_options = _with_numbers(self.schedule_options)
        if isinstance(self.model, dict):
            self.model = _with_numbers(self.model)
            _check_new_model(self.model)
            if self.tokenizer is None:
                raise ValueError("tokenizer: expected a folder, since a new model brings none")


def load_config(path: str | os.PathLike[str], changes: Iterable[str] = ()) -> TrainConfig:
    """Read a YAML file, whose paths are meant from its folder.

    changes: "key=value" each, in place of what the file says, the value in YAML; paths from where one is.

    Raises:
        ValueError: it is no YAML, or a key is unknown, missing, there twice or of the wrong kind; the text names it.
        OSError: the file cannot be read.
    """
    import yaml

    path = Path(path)
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _yaml_loader())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a YAML file ({error})") from error
    try:
        config = from_dict(TrainConfig, values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    config = _with_paths(config, path.parent)
    changed = dict(map(_change, changes))
    return from_dict(TrainConfig, dataclasses.asdict(config) | changed) if changed else config


def _change(text: str) -> tuple[str, Any]:
    import yaml

    key, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"{text}: expected KEY=VALUE")
    try:
        return key, yaml.load(value, _yaml_loader())
    except yaml.YAMLError as error:
        raise ValueError(f"{text}: the value is not YAML ({error})") from error


def _yaml_loader() -> type[Any]:
    import yaml

    class UniqueKeys(yaml.SafeLoader):
        """YAML forbids a key twice in a mapping; the loaders of yaml take the last one."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            keys = [key.value for key, _ in node.value]
            for number, key in enumerate(keys):
                if key in keys[:number]:
                    where = node.value[number][0].start_mark
                    raise yaml.constructor.ConstructorError(problem=f"{key}: is there twice", problem_mark=where)
            return super().construct_mapping(node, deep)

    return UniqueKeys


def from_dict(kind: type[Any], values: Any, prefix: str = "") -> Any:
    """A dataclass of plain data. Raises ValueError, which names the key."""
    if not isinstance(values, dict):
        raise ValueError(f"{prefix.rstrip('.') or 'config'}: expected keys and values, got {values!r:.60}")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for key in values:
        if key not in fields:
            raise ValueError(f"{prefix}{key}: unknown key{nearest(str(key), fields)}")
    missing = [
        prefix + field.name
        for field in fields.values()
        if field.name not in values
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ValueError(f"{', '.join(missing)}: missing, expected {'it' if len(missing) == 1 else 'them'} to be given")
    hints = typing.get_type_hints(kind)
    return kind(**{key: _convert(value, hints[key], prefix + key) for key, value in values.items()})


def nearest(key: str, known: Iterable[str]) -> str:
    """ ", did you mean ...?", or the known keys where none is near."""
    known = list(known)
    found = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    return f", did you mean {found[0]}?" if found else f", expected one of {', '.join(sorted(known))}"


def _convert(value: Any, hint: Any, key: str) -> Any:
    """The value as the type asks; YAML reads 2e-5 as a text, and a single file may stand for a list."""
    options = typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
    if value is None and type(None) in options:
        return None
    for option in options:
        origin = typing.get_origin(option) or option
        if dataclasses.is_dataclass(option):
            return from_dict(option, value, key + ".")
        if origin is bool and isinstance(value, bool):
            return value
        if origin in (int, float) and not isinstance(value, bool):
            number = _number(value)
            if number is not None and (origin is float or number == int(number)):
                return origin(number)
        if origin is str and isinstance(value, str):
            return value
        if origin is list and isinstance(value, str):
            return [value]
        if origin is list and isinstance(value, list) and all(isinstance(item, str) for item in value):
            return value
        if origin is dict and isinstance(value, dict):
            return value
    names = {str: "a text", int: "an integer", float: "a number", bool: "true or false", list: "a list of texts"}
    expected = [names.get(typing.get_origin(option) or option, "keys and values") for option in options]
    expected = [name for option, name in zip(options, expected, strict=True) if option is not type(None)]
    raise ValueError(f"{key}: expected {' or '.join(expected)}, got {value!r:.60}")


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if number == number and abs(number) != float("inf") else None


def _with_numbers(value: Any) -> Any:
    """The same value with numbers for the texts in it that are numbers: YAML reads 1e-6 as a text."""
    if isinstance(value, dict):
        return {key: _with_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_numbers(item) for item in value]
    if not isinstance(value, str):
        return value
    try:
        return int(value)
    except ValueError:
        number = _number(value)
        return value if number is None else number


def _check_new_model(model: dict[str, Any]) -> None:
    for key in model:
        if key != "config":
            raise ValueError(f"model.{key}: unknown key{nearest(str(key), ['config'])}")
    if not isinstance(model.get("config"), dict) or not isinstance(model["config"].get("model_type"), str):
        raise ValueError("model.config.model_type: missing, expected a model type of transformers, such as llama")


def _with_paths(config: TrainConfig, folder: Path) -> TrainConfig:
    def resolved(path: str) -> str:
        return os.path.normpath(folder / Path(path).expanduser())

    def resolved_if_there(path: str | None) -> str | None:
        """Model names may also be ids of the hub."""
        return path if path is None or not (folder / Path(path).expanduser()).exists() else resolved(path)

    return dataclasses.replace(
        config,
        data=[resolved(path) for path in config.data],
        heldout=[resolved(path) for path in config.heldout],
        output=resolved(config.output),
        model=config.model if isinstance(config.model, dict) else resolved_if_there(config.model),
        tokenizer=resolved_if_there(config.tokenizer),
        chat_template=config.chat_template
        if config.chat_template in TEMPLATES
        else resolved_if_there(config.chat_template),
    )
