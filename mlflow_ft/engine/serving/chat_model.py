"""The MLflow model itself, logged as code: messages in, one OpenAI chat completion out. It needs no mlflow-ft.

A reward model takes the messages of a whole conversation and returns the score of its last answer.
The folder `model` next to it has a whole model, or an adapter with `base.json`. An adapter's base (a folder, a Hub id
or `models:/NAME/3`) comes from `MLFLOW_FT_BASE_MODEL`, else the model config `base_model_path`, else `base.json`.
"""

import hashlib
import json
import logging
import math
import os
import re
import time
import uuid
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

# Idle OpenMP threads would spin and slow down everything else on the machine; read when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import mlflow
import torch
from jinja2 import TemplateError
from mlflow.exceptions import MlflowException
from mlflow.pyfunc.model import PythonModel
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, GenerationConfig
from transformers.quantizers.auto import AutoQuantizationConfig
from transformers.utils.logging import disable_progress_bar

# On a CPU, bitsandbytes logs that a faster package is missing, and LLM.int8() logs its float16 at every layer.
for module in ("bitsandbytes.backends.cpu.ops", "bitsandbytes.autograd._functions"):
    logging.getLogger(module).setLevel(logging.ERROR)
# PEFT warns that the model counts positions, of layers without a rank (AdaLoRA), and of its own patterns (experts).
warnings.filterwarnings("ignore", message=r"Position ids are|Adapter .* LoRA tensor|The following \w+_pattern keys")
DEFAULT_MAX_TOKENS, LOWEST, AS_TENSORS = 256, 1e-6, {"return_dict": True, "return_tensors": "pt"}
WHOLE = {"max_tokens": (1, math.inf), "max_completion_tokens": (1, math.inf), "top_k": (0, math.inf), "n": (1, 1)}
BOUNDS = {"temperature": (0, 1e9), "top_p": (0, 1), **WHOLE}
OTHERS = ("stop_strings", "token_healing", "prompt_lookup_num_tokens", "assistant_early_exit", "penalty_alpha")
ONE = {"num_beams": 1, "num_return_sequences": 1, "return_dict_in_generate": False, **dict.fromkeys(OTHERS)}
NOT_OFFERED = ("stream", "logprobs", "frequency_penalty", "presence_penalty", "logit_bias")
refused = MlflowException.invalid_parameter_value  # MLflow's servers answer with status 400 and the message


class ChatModel(PythonModel):
    """Loads on the first GPU if there is one. Greedy unless a request sets a temperature above 0."""

    def load_context(self, context: Any) -> None:
        folder = Path(context.artifacts["model"])
        verify(folder)
        disable_progress_bar()  # a server's log is not a terminal
        elsewhere = (context.model_config or {}).get("base_model_path")
        self.adopt(load_adapter(folder, elsewhere) if (folder / "base.json").is_file() else load_whole(folder), folder)

    def adopt(self, model: Any, folder: Path) -> None:
        """Answer with a loaded model; tokenizer, template and end tokens come from the folder."""
        self.model: Any = model.eval()
        self.model.config.get_text_config().output_router_logits = False  # generation fails if a base has it on
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        self.scores = not (model.get_base_model() if hasattr(model, "get_base_model") else model).can_generate()
        if self.scores:
            self.model.config.pad_token_id = self.tokenizer.pad_token_id
        ends = generation(folder).get("eos_token_id", self.tokenizer.eos_token_id)
        self.end_tokens = ends if isinstance(ends, list) else [ends]

    def predict(self, context: Any, model_input: Any, params: Any = None) -> Any:
        answers = [(self.score if self.scores else self.complete)(given) for given in as_requests(model_input, params)]
        return answers[0] if len(answers) == 1 else answers

    @torch.no_grad()
    def score(self, request: dict[str, Any]) -> dict[str, float]:
        """The score of the last answer of a conversation, unbounded; higher is better."""
        inputs = self.tokenize(turns(request), request.get("tools"), prompt=False).to(self.model.device)
        return {"score": float(self.model(**inputs).logits[0, 0])}

    @torch.no_grad()
    def complete(self, request: dict[str, Any], watch: Any = None) -> dict[str, Any]:
        """Answer a request. `watch` gets the text so far after each token, and ends the answer by returning true."""
        limit, stops, sampling = checked(request)
        inputs = self.tokenize(turns(request), request.get("tools")).to(self.model.device)
        length = inputs["input_ids"].shape[1]
        adapters = getattr(self.model, "peft_config", {}).values()
        learned = max((getattr(adapter, "num_virtual_tokens", 0) or 0 for adapter in adapters), default=0)
        most = getattr(self.model.config.get_text_config(), "max_position_embeddings", None) or 2**31
        if (room := most - length - learned) < 1:
            raise refused(f"the messages are {length} tokens long; the model reads {most}, including its answer")
        limit = min(limit, room)

        def ends(ids: Any, scores: Any, **_: Any) -> Any:
            text = self.tokenizer.decode(ids[0, length:], skip_special_tokens=True)
            ended = bool(watch and watch(text)) or any(stop in text for stop in stops)
            return torch.full((len(ids),), ended, device=ids.device)

        how: Any = {"stopping_criteria": [ends] if stops or watch else None, **ONE, **sampling}
        how |= {"eos_token_id": self.end_tokens, "pad_token_id": self.tokenizer.pad_token_id}
        output = self.model.generate(**inputs, max_new_tokens=limit, **how)
        new = output[0, length:].tolist()
        text = self.tokenizer.decode(new, skip_special_tokens=True)
        ended = new[-1] in self.end_tokens or len(new) < limit or any(stop in text for stop in stops)
        message = {"role": "assistant", "content": shown(text, stops)}
        choices = [{"index": 0, "message": message, "finish_reason": "stop" if ended else "length"}]
        usage = {"prompt_tokens": length, "completion_tokens": len(new), "total_tokens": length + len(new)}
        about = {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": "chat.completion", "created": int(time.time())}
        return {**about, "model": "mlflow-ft", "choices": choices, "usage": usage}

    def tokenize(self, messages: list[dict[str, Any]], tools: Any, *, prompt: bool = True) -> Any:
        """The prompt, by the template of training; arguments of a call as an object, which most templates need."""
        if tools and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
            raise refused(f"`tools` is {tools!r}; it must be a list of objects")
        options = {"tools": tools or None, "add_generation_prompt": prompt, **AS_TENSORS}
        try:
            with suppress(TypeError):  # some templates need them as text, as in OpenAI's API
                return self.tokenizer.apply_chat_template([with_objects(turn) for turn in messages], **options)
            return self.tokenizer.apply_chat_template(messages, **options)
        except (TemplateError, TypeError, ValueError, AttributeError, KeyError) as error:
            raise refused(f"the chat template rejects these messages: {error}") from error


def shown(text: str, stops: list[str]) -> str:
    """An answer up to its first stop text."""
    return text[: min((place for place in map(text.find, stops) if place >= 0), default=None)].strip()


def checked(request: dict[str, Any]) -> tuple[int, list[str], dict[str, Any]]:
    """The maximum length of an answer, its stop texts, and how it is sampled; unsupported settings are refused."""
    values = {name: request[name] for name in BOUNDS if request.get(name) is not None}
    for name, value in values.items():
        (low, high), integer = BOUNDS[name], name in WHOLE
        number = isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
        if not number or (integer and value % 1):
            most = "up" if high > 1 else "to 1"
            raise refused(f"`{name}` is {value!r}; it must be a {'whole ' * integer}number from {low} {most}")
        values[name] = int(value) if integer else float(value)  # as transformers requires
    if 0 < (temperature := values.get("temperature", 0.0)) < LOWEST:
        raise refused(f"`temperature` is {temperature}; it must be 0, which is greedy, or at least {LOWEST}")
    for name in filter(request.get, NOT_OFFERED):
        raise refused(f"`{name}` is not supported")
    stops = [request["stop"]] if isinstance(request.get("stop"), str) else request.get("stop") or []
    if not isinstance(stops, list) or not all(isinstance(stop, str) and stop for stop in stops):
        raise refused(f"`stop` is {stops!r}; it must be a string, or a list of strings")
    limit = values.get("max_tokens") or values.get("max_completion_tokens") or DEFAULT_MAX_TOKENS
    if not temperature:
        return limit, stops, {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    among = {"top_p": values.get("top_p", 1.0), "top_k": values.get("top_k", 0)}  # 0: all; transformers' own is 50
    return limit, stops, {"do_sample": True, "temperature": temperature, **among}


def turns(request: dict[str, Any]) -> list[dict[str, Any]]:
    """The messages of a request, without null values; OpenAI's role `developer` is `system`, as in training data."""
    given = request["messages"] if isinstance(request.get("messages"), list) else []
    known = (turn for turn in given if isinstance(turn, dict) and isinstance(turn.get("role"), str))
    said = [turn for turn in known if turn.get("tool_calls") or isinstance(turn.get("content"), str)]
    if not said or len(said) < len(given):
        raise refused("`messages` must be a non-empty list of objects with role and content, which are text")
    named = ({**turn, "role": "system" if turn["role"] == "developer" else turn["role"]} for turn in said)
    return [{key: value for key, value in turn.items() if value is not None} for turn in named]


def with_objects(turn: dict[str, Any]) -> dict[str, Any]:
    """A turn with the arguments of its tool calls as objects, if they are JSON text."""
    calls = [dict(call, function=dict(call["function"])) for call in turn.get("tool_calls") or () if "function" in call]
    if len(calls) != len(turn.get("tool_calls") or ()):
        return turn
    for call in calls:
        with suppress(ValueError, TypeError):  # not JSON, or already an object
            call["function"]["arguments"] = json.loads(call["function"].get("arguments"))
    return {**turn, "tool_calls": calls} if calls else turn


def as_requests(model_input: Any, params: Any) -> list[dict[str, Any]]:
    """A request, a list of requests or a table with a column `messages`, as a list of requests."""
    given = model_input.to_dict(orient="records") if hasattr(model_input, "to_dict") else model_input
    return [plain(params or {}) | plain(request) for request in (given if isinstance(given, list) else [given])]


def plain(value: Any) -> Any:
    """A table's values as lists and dicts; missing values (None, NaN) are removed from dicts."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if hasattr(value, "model_dump"):
        value = value.model_dump(exclude_none=True)
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items() if item is not None and item == item}
    return [plain(item) for item in value] if isinstance(value, list) else value


def load_whole(folder: Path, **options: Any) -> Any:
    """Load a complete model from a folder; `options` go to `from_pretrained`."""
    names = json.loads((folder / "config.json").read_text()).get("architectures") or [""]
    scores = names[0].endswith("ForSequenceClassification")
    kind: Any = AutoModelForSequenceClassification if scores else AutoModelForCausalLM
    options |= {"dtype": compute_dtype(), "device_map": {"": device()}, "trust_remote_code": False}
    return exact(kind.from_pretrained(folder, **options))


def load_adapter(folder: Path, base_model_path: str | None) -> Any:
    """Load the base model as it was in training, and the adapter onto it; every weight must match."""
    from peft import PeftModel, get_peft_model_state_dict

    base = json.loads((folder / "base.json").read_text())
    name = fetched(os.environ.get("MLFLOW_FT_BASE_MODEL") or base_model_path or base["name_or_path"])
    local = Path(name).is_dir()
    if not local and name.startswith(("/", "~", ".")):
        raise FileNotFoundError(f"the base model ({base['origin']}) is not at {name}; set MLFLOW_FT_BASE_MODEL to it")
    if local and base["revision"].startswith("sha256:") and weights_hash(Path(name)) != base["revision"]:
        raise ValueError(f"{name} is not the base model that the adapter was trained on: its weights differ")
    whole, part = base.get("renamed") or ("", "")  # the adapter has names of the whole model; this is its text part
    mapping = {f"^{re.escape(whole)}": part} if whole else None
    settings = GenerationConfig.from_dict(generation(folder))  # the base's, repaired if necessary
    model = PeftModel.from_pretrained(load_base(name, base, generation_config=settings), folder, key_mapping=mapping)
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        saved = {re.sub(f"(?<=^base_model.model.){re.escape(whole)}", part, key) for key in file.offset_keys()}
    wanted = set(get_peft_model_state_dict(model, save_embedding_layers=False))
    if apart := sorted((wanted - saved) | (saved - wanted - set(model.state_dict()))):  # PEFT only warns
        raise ValueError(f"the adapter does not fit {name}: {len(apart)} weights do not match, such as {apart[:3]}")
    return model


def load_base(name: str, base: dict[str, Any], **options: Any) -> Any:
    """Load an adapter's base as recorded in `base.json`; `options` go to `from_pretrained`."""
    options |= {"dtype": getattr(torch, base["dtype"]), "device_map": {"": device()}, "trust_remote_code": False}
    if not Path(name).is_dir():
        options["revision"] = base["revision"]
    if base["quantization"] and not base.get("quantized_files"):
        options["quantization_config"] = AutoQuantizationConfig.from_dict(base["quantization"])
    kind: Any = AutoModelForCausalLM
    if base.get("task") == "score":  # its head comes with the adapter
        kind, options["num_labels"] = AutoModelForSequenceClassification, 1
    model = kind.from_pretrained(name, **options)
    if (base.get("tokens") or 0) > len(model.get_input_embeddings().weight):
        model.resize_token_embeddings(base["tokens"], mean_resizing=False)  # the adapter holds the new rows
    return exact(model, options["dtype"] if base.get("quantized_files") else None)


def generation(folder: Path) -> dict[str, Any]:
    """The generation settings in a folder; empty if it has none."""
    return json.loads(file.read_text()) if (file := folder / "generation_config.json").is_file() else {}


def exact(model: Any, dtype: Any = None) -> Any:
    """Make the model compute as in training: not as bitsandbytes would on some CPUs, nor in the types of its files."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
            module.compute_dtype, module.compute_type_is_set = dtype or module.compute_dtype, True
    for weight in model.parameters() if dtype else ():
        if type(weight) is torch.nn.Parameter and weight.is_floating_point():
            weight.data = weight.data.to(dtype)
    return model


def fetched(name: str) -> str:
    """The folder of a base model that is stored in MLflow; any other name is returned unchanged."""
    if not name.startswith(("models:/", "runs:/", "mlflow-artifacts:/")):
        return name
    configs = Path(mlflow.artifacts.download_artifacts(name)).rglob("config.json")
    if not (files := sorted(configs, key=lambda file: (len(file.parts), str(file)))):
        raise FileNotFoundError(f"{name}, the adapter's base, does not contain a model")
    return str(files[0].parent)


def weights_hash(folder: Path) -> str:
    """Sha256 over the names and hashes of a folder's weight files, as in the adapter's `base.json`."""
    lines = (f"{file.name}:{file_hash(file)}\n" for file in sorted(folder.glob("*.safetensors")))
    return f"sha256:{hashlib.sha256(''.join(lines).encode()).hexdigest()}"


def file_hash(file: Path) -> str:
    """Sha256 of one file, as hex digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def verify(folder: Path) -> None:
    """Refuse a folder with a file that was changed, added or removed after logging, or with code or pickles."""
    listed = json.loads((folder / "manifest.json").read_text())["files"]
    present = {str(file.relative_to(folder)): file for file in folder.rglob("*") if file.is_file()}
    present.pop("manifest.json")
    if set(listed) != set(present):
        raise ValueError(f"the model's files differ from its manifest: {sorted(set(listed) ^ set(present))}")
    for name, file in present.items():
        if file.suffix.lower() in (".py", ".bin", ".pt", ".pth", ".pkl", ".pickle"):
            raise ValueError(f"{name} can run code when it is loaded; only safetensors files are allowed")
        if file_hash(file) != listed[name]["sha256"]:
            raise ValueError(f"{name} is not the file that was logged: its sha256 differs from the manifest")


def device() -> torch.device:
    """The first GPU if there is one, else the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def compute_dtype() -> torch.dtype:
    """bfloat16 on a GPU that has it, float32 elsewhere: a CPU without bfloat16 units is several times slower in it."""
    return torch.bfloat16 if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else torch.float32


mlflow.models.set_model(ChatModel())
