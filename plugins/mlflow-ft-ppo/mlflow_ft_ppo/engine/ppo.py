"""The loop: sample answers, judge them, compute advantages, learn from them in clipped steps.

A step is one round of these, as in TRL's PPOTrainer: it samples per_device_train_batch_size x
gradient_accumulation_steps x num_mini_batches answers on each process and takes num_iterations x num_mini_batches
optimizer steps on them. Dropout is off throughout, so that answers are learned from the probabilities that produced
them.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import TrainerControl, TrainerState, TrainingArguments, set_seed
from transformers.trainer_callback import CallbackHandler, DefaultFlowCallback

from mlflow_ft import Data, Example, Job, Model, Trained
from mlflow_ft.engine import ranks
from mlflow_ft.engine.checkpoints.own_loop import Checkpoints, checkpoints
from mlflow_ft.engine.models import loading
from mlflow_ft.engine.rewards import reward_judges
from mlflow_ft.engine.rewards.reward_watch import RewardWatch
from mlflow_ft.engine.training import loop
from mlflow_ft_ppo import settings as ppo_settings
from mlflow_ft_ppo.engine import experience, heldout, reference, rollout
from mlflow_ft_ppo.engine.learning import Learner
from mlflow_ft_ppo.engine.objective import KLController
from mlflow_ft_ppo.engine.policy import PolicyWithValue
from mlflow_ft_ppo.engine.rollout import Sampled
from mlflow_ft_ppo.settings import PPOSettings


def train(job: Job, data: Data, model: Model) -> Trained:
    """Train with PPO, and write the adapter or the whole model, and the value head, to the stage's folder.

    Raises:
        RefusedError: a reward function raised, or the loss is NaN or infinite. DataError: no prompt is short enough.
        StoppedError: a signal was received; the step in progress was finished.
    """
    settings = ppo_settings.read(job.config)
    args = _arguments(job, settings)
    with ExitStack() as bars, job.run.deferring_stop():
        run = PPO(job, data, model, settings=settings, args=args, bars=bars)
        run.all_steps()
    if run.state.is_world_process_zero:
        run.policy.save_head(job.folder / "train")
    trained = loop.keep(job, data, model, steps=run.state.global_step, loss=run.mean_loss)
    return replace(trained, findings=run.watch.findings())


def _arguments(job: Job, settings: PPOSettings) -> TrainingArguments:
    """The `training` section as other methods read it; `objective.options` holds PPO's own settings."""
    objective = job.config.objective.model_copy(update={"options": None})
    without_options = replace(job, config=job.config.model_copy(update={"objective": objective}))
    adam = {name: getattr(settings, name) for name in ("adam_beta1", "adam_beta2", "adam_epsilon")}
    return loop.arguments(TrainingArguments, without_options, job.folder / "train", adam)


class PPO:
    """One training run: its state and its steps."""

    def __init__(
        self, job: Job, data: Data, model: Model, *, settings: PPOSettings, args: TrainingArguments, bars: ExitStack
    ) -> None:
        self._job, self._data, self._settings, self._args = job, data, settings, args
        section = job.config.rollout
        self._judges = reward_judges.load(job.config, job.registry, model=job.reward_model)
        self._accelerator = Accelerator(mixed_precision=args.mixed_precision, cpu=args.use_cpu)
        module = model.module.eval()
        loading.as_float32(module)
        self.policy = PolicyWithValue(module, temperature=section.temperature)
        if settings.value_head:
            self.policy.load_head(Path(settings.value_head).expanduser())
        beta = job.config.objective.beta
        self.watch = RewardWatch(section, job.progress)
        self._kl = KLController(
            beta=ppo_settings.BETA if beta is None else beta, target=settings.kl_target, horizon=settings.kl_horizon
        )
        self._prompts = rollout.prompts(job, data, module)
        first = self._prompts.ids(next(self._prompts.examples(job.config.run.seed)))
        self._reference = reference.of_start(self.policy, first) if self._kl.beta else None
        self._answers = settings.answers_per_step(job.config)
        self._everywhere = self._answers * self._accelerator.num_processes
        self.state = self._state()
        self._learner = Learner(
            self.policy,
            args,
            settings,
            rollout=section,
            max_steps=self.state.max_steps,
            accelerator=self._accelerator,
            notify=self._call,
        )
        self._control = TrainerControl()
        self._callbacks = CallbackHandler(self._callback_list(bars), module, data.tokenizer, None, None)
        self._since: dict[str, list[float]] = defaultdict(list)
        self._losses: list[float] = []
        self._evaluation_due = False

    def _state(self) -> TrainerState:
        """The initial state of the training; an epoch is a pass over the prompts."""
        config = self._job.config
        prompts = self._everywhere / config.rollout.num_generations
        per_epoch = len(self._prompts) / prompts
        steps = config.training.max_steps
        if steps <= 0:
            steps = max(1, math.ceil(config.training.num_train_epochs * per_epoch))
        state = TrainerState(
            max_steps=steps,
            num_train_epochs=math.ceil(steps / per_epoch),
            epoch=0.0,
            is_world_process_zero=self._accelerator.is_main_process,
            is_local_process_zero=self._accelerator.is_local_main_process,
        )
        state.compute_steps(self._args, steps)
        return state

    def _callback_list(self, bars: ExitStack) -> list[Any]:
        common = loop.callbacks(
            self._job,
            self._data,
            self.policy.model,
            bars,
            judges=self._judges,
            tells=self._accelerator.is_main_process,
        )
        return [DefaultFlowCallback(), *common]

    @property
    def mean_loss(self) -> float:
        return sum(self._losses) / len(self._losses) if self._losses else math.nan

    def all_steps(self) -> None:
        """Take every step, or stop after a signal."""
        seed = self._job.config.run.seed
        set_seed(seed + self._accelerator.process_index)
        self._call("on_train_begin")
        with checkpoints(self._job, self, writes=self._accelerator.is_main_process) as kept:
            restored = kept.restore()
            if self._evaluation_due or (self._args.eval_on_start and not restored):
                self._evaluate()
            self._remaining_steps(kept)
        self._call("on_train_end")

    def _remaining_steps(self, kept: Checkpoints) -> None:
        stream = self._prompts.examples(self._job.config.run.seed, skip=self.state.global_step * self._prompts_per_step)
        while self.state.global_step < self.state.max_steps and not self._control.should_training_stop:
            self._call("on_step_begin")
            metrics = self._step(stream)
            self._note(metrics)
            self._call("on_step_end")
            # logged at once, since the next step could not sample
            broken = not math.isfinite(metrics["loss"] + metrics["grad_norm"])
            if self._control.should_log or broken:
                self._log()
            (stopping,) = ranks.any_of(self._job.run.stopping)
            self._evaluation_due = stopping and self._control.should_evaluate  # the checkpoint comes first
            if self._control.should_evaluate and not stopping:
                self._evaluate()
            if kept.after_step(self.state.global_step, self.state.max_steps):
                break

    # --- checkpoints

    def weights(self) -> dict[str, Tensor]:
        """The weights that train: of the policy, and of the value head."""
        return {name: weight for name, weight in self.policy.named_parameters() if weight.requires_grad}

    def state_dict(self) -> dict[str, Any]:
        """The rest of the state: see `mlflow_ft.engine.checkpoints.own_loop`."""
        return {
            "learner": self._learner.state_dict(),
            "trainer": asdict(self.state),
            "beta": self._kl.beta,
            "since": dict(self._since),
            "losses": self._losses,
            "watch": self.watch.state_dict(),
            "evaluation_due": self._evaluation_due,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self._learner.load_state_dict(state["learner"])
        for name, value in state["trainer"].items():
            setattr(self.state, name, value)
        self._kl.beta, self._losses = state["beta"], list(state["losses"])
        self._since.update(state["since"])
        self.watch.load_state_dict(state["watch"])
        self._evaluation_due = state["evaluation_due"]

    @property
    def _prompts_per_step(self) -> int:
        return self._everywhere // self._job.config.rollout.num_generations

    def _step(self, stream: Iterator[Example]) -> dict[str, float]:
        """Sample, judge and learn; return the step's metrics."""
        section = self._job.config.rollout
        examples = rollout.take(
            stream,
            prompts=self._answers // section.num_generations,
            generations=section.num_generations,
            process=self._accelerator.process_index,
            processes=self._accelerator.num_processes,
        )
        batch_size = self._job.config.evaluation.per_device_eval_batch_size
        with self._accelerator.autocast():
            sampled = rollout.sample(
                self.policy.model, self._data, self._prompts, examples, settings=section, batch_size=batch_size
            )
        judged = experience.judge(self._judges, sampled, self._settings)
        self._watch(sampled, judged)
        answers = rollout.tensors(
            sampled, pad_token_id=self._data.tokenizer.pad_token_id, device=self.policy.value_head.weight.device
        )
        beta = self._kl.beta
        with self._accelerator.autocast():
            step = experience.collect(
                self.policy,
                self._reference,
                answers,
                judged,
                settings=self._settings,
                beta=beta,
                batch_size=self._args.per_device_train_batch_size,
            )
        rate = self._learner.learning_rate
        metrics = experience.metrics(step, judged, beta=beta) | self._learner.learn(step)
        metrics["val/num_eos_tokens"] = float(sum(sample.answer.finished for sample in sampled))
        metrics = self._over_processes(metrics)
        self._kl.update(metrics["objective/kl"], answers=self._everywhere)
        return metrics | {"learning_rate": rate, "lr": rate}

    def _watch(self, sampled: Sequence[Sampled], judged: experience.Judged) -> None:
        """Pass the answers to the reward watch, as one group: the value head compares all answers of a step."""
        scores = zip(judged.scores.tolist(), judged.known.tolist(), strict=True)
        rewards_of_step = [score if known else None for score, known in scores]
        self.watch.see([rewards_of_step], cut=[not sample.answer.finished for sample in sampled])

    def _over_processes(self, values: dict[str, float]) -> dict[str, float]:
        """The means over all processes; with one process, the values themselves."""
        if self._accelerator.num_processes == 1:
            return values
        together = torch.tensor(list(values.values()), device=self._accelerator.device)
        means = self._accelerator.reduce(together, reduction="mean").tolist()
        return dict(zip(values, means, strict=True))

    def _note(self, metrics: dict[str, float]) -> None:
        self.state.global_step += 1
        answered = self.state.global_step * self._everywhere / self._job.config.rollout.num_generations
        self.state.epoch = answered / len(self._prompts)
        self._losses.append(metrics["loss"])
        for name, value in metrics.items():
            self._since[name].append(value)

    def _log(self) -> None:
        """Log the means since the last call."""
        means = {name: sum(values) / len(values) for name, values in self._since.items()}
        self._since.clear()
        means["episode"] = float(self.state.global_step * self._everywhere)
        self._call("on_log", logs=means | {"epoch": self.state.epoch})

    def _evaluate(self) -> None:
        """Score greedy answers to held-out prompts; the callbacks of this event log some of them."""
        with self._accelerator.autocast():
            metrics = heldout.scores(self._job, self._data, self.policy.model, self._judges)
            if metrics:
                self._call("on_log", logs=metrics)
            self._call("on_evaluate", metrics=metrics)

    def _call(self, event: str, **more: Any) -> None:
        """Call every callback of an event."""
        self._control = getattr(self._callbacks, event)(self._args, self.state, self._control, **more)
