"""The MLflow model itself, logged as code: messages in, one OpenAI chat completion out. It needs no mlflow-ft.

A reward model takes the messages of a whole conversation and gives back the score of its last answer.

The folder `model` beside it holds a whole model, or an adapter with `base.json`. The base of an adapter is looked for
where `MLFLOW_FT_BASE_MODEL` or the model config `base_model_path` says, else where it was when the adapter was trained:
a folder, the Hub, or a model in MLflow (`models:/NAME/3`).
"""

import hashlib
import json
import logging
import os
import time
import uuid
import warnings
from pathlib import Path
from typing import Any

# Idle OpenMP threads would spin, and slow down everything else on the machine; read when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import mlflow
import torch
from mlflow.pyfunc.model import PythonModel
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
)
from transformers.utils.logging import disable_progress_bar

# When it is loaded on a CPU, bitsandbytes warns that an optional package for faster inference is not there.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
# PEFT lets the model count the positions, a learned prompt in front, and warns of it at every answer.
warnings.filterwarnings("ignore", message="Position ids are not supported for parameter efficient tuning")
DEFAULT_MAX_TOKENS = 256


class ChatModel(PythonModel):
    """Loads on the first GPU where there is one. Greedy unless a temperature above 0 is asked for."""

    def load_context(self, context: Any) -> None:
        folder = Path(context.artifacts["model"])
        verify(folder)
        disable_progress_bar()  # a server's log is no terminal
        config = context.model_config or {}
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.scores = False
        if (folder / "base.json").is_file():
            self.model: Any = load_adapter(folder, config.get("base_model_path"))
            self.scores = not self.model.get_base_model().can_generate()
        else:
            names = json.loads((folder / "config.json").read_text()).get("architectures") or [""]
            self.scores = names[0].endswith("ForSequenceClassification")
            kind: Any = AutoModelForSequenceClassification if self.scores else AutoModelForCausalLM
            self.model = kind.from_pretrained(
                folder, dtype=compute_dtype(), device_map={"": device()}, trust_remote_code=False
            )
        self.model.eval()
        if self.scores:
            self.model.config.pad_token_id = self.tokenizer.pad_token_id
            return
        settings = json.loads((folder / "generation_config.json").read_text())
        ends = settings.get("eos_token_id", self.tokenizer.eos_token_id)
        self.end_tokens = ends if isinstance(ends, list) else [ends]

    def predict(self, context: Any, model_input: Any, params: Any = None) -> Any:
        requests = as_requests(model_input, params)
        answers = [self.score(request) if self.scores else self.complete(request) for request in requests]
        return answers[0] if len(answers) == 1 else answers

    @torch.no_grad()
    def score(self, request: dict[str, Any]) -> dict[str, float]:
        """How good the last answer of a conversation is, without bounds; higher is better."""
        messages = [{key: value for key, value in turn.items() if value is not None} for turn in request["messages"]]
        inputs = self.tokenize(messages, request.get("tools"), add_generation_prompt=False).to(self.model.device)
        return {"score": float(self.model(**inputs).logits[0, 0])}

    @torch.no_grad()
    def complete(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer one request: `messages`, and optionally temperature, top_p, max_tokens, stop, tools."""
        messages = [{key: value for key, value in turn.items() if value is not None} for turn in request["messages"]]
        inputs = self.tokenize(messages, request.get("tools")).to(self.model.device)
        length = inputs["input_ids"].shape[1]
        limit = int(request.get("max_tokens") or request.get("max_completion_tokens") or DEFAULT_MAX_TOKENS)
        temperature = float(request.get("temperature") or 0.0)
        sampling = {"do_sample": True, "temperature": temperature, "top_p": float(request.get("top_p") or 1.0)}
        greedy = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        stops = request.get("stop") or []
        stops = [stops] if isinstance(stops, str) else [str(stop) for stop in stops]
        output = self.model.generate(
            **inputs,
            max_new_tokens=limit,
            eos_token_id=self.end_tokens,
            pad_token_id=self.tokenizer.pad_token_id,
            **({"stop_strings": stops, "tokenizer": self.tokenizer} if stops else {}),
            **(sampling if temperature > 0 else greedy),
        )
        new = output[0, length:].tolist()
        ended = bool(new) and new[-1] in self.end_tokens
        text = self.tokenizer.decode(new, skip_special_tokens=True)
        cut = min((place for place in (text.find(stop) for stop in stops) if place >= 0), default=None)
        return self.envelope(text[:cut].strip(), length, len(new), ended=ended or cut is not None)

    def tokenize(self, messages: list[dict[str, Any]], tools: Any, *, add_generation_prompt: bool = True) -> Any:
        """The prompt, by the template that was trained; arguments of a call as an object, which most templates want."""
        options = {"tools": tools, "return_dict": True, "return_tensors": "pt"}
        options["add_generation_prompt"] = add_generation_prompt
        try:
            return self.tokenizer.apply_chat_template([with_objects(turn) for turn in messages], **options)
        except TypeError:  # some templates want them as OpenAI writes them, as text
            return self.tokenizer.apply_chat_template(messages, **options)

    def envelope(self, text: str, prompt_tokens: int, completion_tokens: int, *, ended: bool) -> dict[str, Any]:
        """The OpenAI chat completion around an answer."""
        return {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": "mlflow-ft",
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": text},
                    "finish_reason": "stop" if ended else "length",
                }
            ],
            "usage": {
                "prompt_tokens": prompt_tokens,
                "completion_tokens": completion_tokens,
                "total_tokens": prompt_tokens + completion_tokens,
            },
        }


def with_objects(turn: dict[str, Any]) -> dict[str, Any]:
    """A turn whose tool calls have their arguments as objects, where they are JSON written as text."""
    calls = [dict(call, function=dict(call["function"])) for call in turn.get("tool_calls") or () if "function" in call]
    if len(calls) != len(turn.get("tool_calls") or ()):
        return turn
    for call in calls:
        arguments = call["function"].get("arguments")
        if isinstance(arguments, str):
            try:
                call["function"]["arguments"] = json.loads(arguments)
            except ValueError:
                continue
    return {**turn, "tool_calls": calls} if calls else turn


def as_requests(model_input: Any, params: Any) -> list[dict[str, Any]]:
    """A request, a list of requests or a table with a column `messages`, as a list of requests."""
    if hasattr(model_input, "to_dict"):
        model_input = model_input.to_dict(orient="records")
    requests = model_input if isinstance(model_input, list) else [model_input]
    return [{**(params or {}), **plain(request)} for request in requests]


def plain(value: Any) -> Any:
    """Lists and dicts where a table holds arrays; what is not given (None, NaN) is left out of dicts."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if hasattr(value, "model_dump"):
        value = value.model_dump(exclude_none=True)
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items() if one is not None and one == one}
    return [plain(one) for one in value] if isinstance(value, list) else value


def load_adapter(folder: Path, base_model_path: str | None) -> Any:
    """Load the base model as the adapter was trained on it, and put the adapter on."""
    from peft import PeftModel

    base = json.loads((folder / "base.json").read_text())
    name = os.environ.get("MLFLOW_FT_BASE_MODEL") or base_model_path or base["name_or_path"]
    name = fetched(name)
    local = Path(name).is_dir()
    if not local and name.startswith(("/", "~", ".")):
        raise FileNotFoundError(
            f"the adapter's base model ({base['origin']}) is not at {name}; set MLFLOW_FT_BASE_MODEL to its folder"
        )
    if local and base["revision"].startswith("sha256:") and weights_hash(Path(name)) != base["revision"]:
        raise ValueError(f"{name} is not the base model that the adapter was trained on: its weights differ")
    options = {"dtype": getattr(torch, base["dtype"]), "device_map": {"": device()}, "trust_remote_code": False}
    if not local:
        options["revision"] = base["revision"]
    if base["quantization"]:
        options["quantization_config"] = BitsAndBytesConfig.from_dict(base["quantization"])
    kind: Any = AutoModelForCausalLM
    if base.get("task") == "score":  # its head comes with the adapter
        kind, options["num_labels"] = AutoModelForSequenceClassification, 1
    model: Any = kind.from_pretrained(name, **options)
    if (base.get("tokens") or 0) > len(model.get_input_embeddings().weight):
        model.resize_token_embeddings(base["tokens"], mean_resizing=False)  # the adapter holds the new rows
    for module in model.modules():  # bitsandbytes would compute in bfloat16 on some CPUs, as training did not
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return PeftModel.from_pretrained(model, folder)


def fetched(name: str) -> str:
    """The folder of a base model that is itself kept in MLflow; any other name as it is."""
    if not name.startswith(("models:/", "runs:/", "mlflow-artifacts:/")):
        return name
    root = Path(mlflow.artifacts.download_artifacts(name))
    files = sorted(root.rglob("config.json"), key=lambda file: (len(file.parts), str(file)))
    if not files:
        raise FileNotFoundError(f"{name}, the adapter's base, holds no model")
    return str(files[0].parent)


def weights_hash(folder: Path) -> str:
    """Sha256 over the names and hashes of a folder's weight files, as the adapter's `base.json` has it."""
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        digest.update(f"{file.name}:{file_hash(file)}\n".encode())
    return f"sha256:{digest.hexdigest()}"


def file_hash(file: Path) -> str:
    """Sha256 of one file, as hex digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def verify(folder: Path) -> None:
    """Refuse a folder that is not what was logged: a file that changed, is missing or was added, code or pickles."""
    listed = json.loads((folder / "manifest.json").read_text())["files"]
    present = {str(file.relative_to(folder)): file for file in folder.rglob("*") if file.is_file()}
    present.pop("manifest.json")
    if set(listed) != set(present):
        raise ValueError(f"the model's files are not those of its manifest: {sorted(set(listed) ^ set(present))}")
    for name, file in present.items():
        if file.suffix.lower() in (".py", ".bin", ".pt", ".pth", ".pkl", ".pickle"):
            raise ValueError(f"{name} can run code when it is loaded; only safetensors are read")
        if file_hash(file) != listed[name]["sha256"]:
            raise ValueError(f"{name} is not the file that was logged: its sha256 differs from the manifest")


def device() -> torch.device:
    """The first GPU where there is one, else the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def compute_dtype() -> torch.dtype:
    """bfloat16 on a GPU that has it, float32 elsewhere: a CPU without bfloat16 units is several times slower in it."""
    on_gpu = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return torch.bfloat16 if on_gpu else torch.float32


mlflow.models.set_model(ChatModel())
