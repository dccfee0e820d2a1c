"""The sections on what a reader does next: how the model is loaded, and under which licence it stands."""

from __future__ import annotations

import json
import shlex

from mlflow_ft.forms.card.facts import About
from mlflow_ft.forms.card.licence import Licence
from mlflow_ft.forms.card.markdown import block, code, plain
from mlflow_ft.values import MLFLOW_URIS

WEIGHTS = "/artifacts/model"


def load(about: About) -> str:
    """By MLflow, as a server, and the files by other tools."""
    if not about.served:
        return f"These are files for another program: {plain(about.form.summary)}.\n\n{code(_download(about))}"
    alias = f"models:/{about.name}@{about.config.registry.alias}"
    server = "As a server" if about.scores_answers else "As a server that gives OpenAI's chat completions"
    parts = [
        f"{code(about.uri)} is this very model; {code(alias)} is the version with the alias, maybe a later one.",
        block("python", _by_mlflow(about)),
        f"{server}: {code(f'mlflow models serve -m {shlex.quote(about.uri)} --env-manager local -p 5001')}",
    ]
    if about.is_adapter:
        note = "It holds no weights of its base, which MLflow looks for where it was in training, or where "
        return "\n\n".join([*parts, f"{note}`MLFLOW_FT_BASE_MODEL` says. With PEFT:", block("python", _by_peft(about))])
    parts += ["With transformers:", block("python", _by_transformers(about))]
    if not (about.scores_answers or about.exported):
        parts.append("vLLM takes the same folder (`vllm serve`).")
    return "\n\n".join(parts)


def _download(about: About) -> str:
    return f"mlflow artifacts download -u {shlex.quote(about.uri)} -d out"


def _by_mlflow(about: About) -> list[str]:
    turns = [{"role": "user", "content": "..."}]
    answer = 'answer["choices"][0]["message"]["content"]'
    if about.scores_answers:
        turns.append({"role": "assistant", "content": "..."})
        answer = 'answer["score"]'
    return [
        "import mlflow",
        "",
        f"model = mlflow.pyfunc.load_model({_quoted(about.uri)})",
        f"answer = model.predict({json.dumps({'messages': turns})})",
        answer,
    ]


def _by_transformers(about: About) -> list[str]:
    kind = _kind(about)
    return [
        "import mlflow",
        f"from transformers import {kind}, AutoTokenizer",
        "",
        _folder(about),
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
        f"model = {kind}.from_pretrained(folder)",
    ]


def _by_peft(about: About) -> list[str]:
    kind, base = _kind(about), about.base
    if about.fits_whole and about.parts:
        kind = about.parts.whole
    place = _quoted(base.name_or_path)
    if base.name_or_path.startswith(MLFLOW_URIS):
        place = f"mlflow.artifacts.download_artifacts({place}) + {_quoted(WEIGHTS)}"
    arguments = [place]
    if base.revision and not base.revision.startswith("sha256:"):
        arguments.append(f"revision={_quoted(base.revision)}")
    if about.scores_answers:
        arguments.append("num_labels=1")
    also, held, extra = "", [], []
    note = json.loads((about.folder / "base.json").read_text(encoding="utf-8"))
    if note["quantization"] and not note["quantized_files"]:  # the base as the adapter knows it
        plain = bool(note["quantization"].get("dequantize"))  # of a make that is read as plain weights
        kind_of = "AutoQuantizationConfig" if plain else "BitsAndBytesConfig"
        also = "" if plain else f", {kind_of}"
        extra = ["from transformers.quantizers.auto import AutoQuantizationConfig"] if plain else []
        held = ['held = json.load(open(folder + "/base.json"))["quantization"]']
        arguments.append(f"quantization_config={kind_of}.from_dict(held)")
    return [
        *(["import json", ""] if held else []),
        "import mlflow",
        "from peft import PeftModel",
        f"from transformers import {kind}, AutoTokenizer{also}",
        *extra,
        "",
        _folder(about),
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
        *held,
        f"base = {kind}.from_pretrained({', '.join(arguments)})",
        *(["base.resize_token_embeddings(len(tokenizer))"] if about.config.model.add_tokens else []),
        "model = PeftModel.from_pretrained(base, folder)",
    ]


def _kind(about: About) -> str:
    return "AutoModelForSequenceClassification" if about.scores_answers else "AutoModelForCausalLM"


def _folder(about: About) -> str:
    return f"folder = mlflow.artifacts.download_artifacts({_quoted(about.uri)}) + {_quoted(WEIGHTS)}"


def _quoted(text: str) -> str:
    """A text as Python writes it, in one line."""
    return json.dumps(text.encode("utf-8", "replace").decode("utf-8"), ensure_ascii=False)


def licence(found: Licence) -> str:
    """What is known of the base's licence, and what is not."""
    if not found.told_by:
        told = "The licence of the base model is not known: its folder names none."
    elif found.identifier and found.identifier != "other":
        told = f"The base model's licence is {code(found.identifier)}, as {plain(found.told_by)} has it."
    else:
        link = f", {plain(found.link)}" if found.link else ""
        told = f"The base model's licence is {plain(found.name or 'a licence of its own')}{link}, as "
        told += f"{plain(found.told_by)} has it."
    return f"{told} What it asks of models that are made from it, and the licence of the data, are for you to check."
