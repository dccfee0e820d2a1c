"""The sections on using the model: how to load it, and its licence."""

from __future__ import annotations

import json
import shlex

from mlflow_ft.forms.card.facts import About
from mlflow_ft.forms.card.licence import Licence
from mlflow_ft.forms.card.markdown import block, code, plain
from mlflow_ft.values import MLFLOW_URIS

WEIGHTS = "/artifacts/model"


def load(about: About) -> str:
    """With MLflow, as a server, and the files with other tools."""
    if not about.served:
        return f"These are files for another program: {plain(about.form.summary)}.\n\n{code(_download(about))}"
    alias = f"models:/{about.name}@{about.config.registry.alias}"
    server = "As a server" if about.scores_answers else "As a server with OpenAI's chat completions API"
    parts = [
        f"{code(about.uri)} is always this model; {code(alias)} is the version that currently has the alias.",
        block("python", _by_mlflow(about)),
        f"{server}: {code(f'mlflow models serve -m {shlex.quote(about.uri)} --env-manager local -p 5001')}",
    ]
    if about.is_adapter:
        note = (
            "The base model's weights are not included. MLflow looks for them where they were in training; set "
            "`MLFLOW_FT_BASE_MODEL` to another place. With PEFT:"
        )
        return "\n\n".join([*parts, note, block("python", _by_peft(about))])
    parts += ["With transformers:", block("python", _by_transformers(about))]
    if not (about.scores_answers or about.exported):
        parts.append("vLLM can serve the same folder (`vllm serve`).")
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
    import_also, read_config, extra = "", [], []
    note = json.loads((about.folder / "base.json").read_text(encoding="utf-8"))
    if note["quantization"] and not note["quantized_files"]:  # the base as it was quantised in training
        dequantised = bool(note["quantization"].get("dequantize"))  # a format that is read as plain weights
        kind_of = "AutoQuantizationConfig" if dequantised else "BitsAndBytesConfig"
        import_also = "" if dequantised else f", {kind_of}"
        extra = ["from transformers.quantizers.auto import AutoQuantizationConfig"] if dequantised else []
        read_config = ['held = json.load(open(folder + "/base.json"))["quantization"]']
        arguments.append(f"quantization_config={kind_of}.from_dict(held)")
    return [
        *(["import json", ""] if read_config else []),
        "import mlflow",
        "from peft import PeftModel",
        f"from transformers import {kind}, AutoTokenizer{import_also}",
        *extra,
        "",
        _folder(about),
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
        *read_config,
        f"base = {kind}.from_pretrained({', '.join(arguments)})",
        *(["base.resize_token_embeddings(len(tokenizer))"] if about.config.model.add_tokens else []),
        "model = PeftModel.from_pretrained(base, folder)",
    ]


def _kind(about: About) -> str:
    return "AutoModelForSequenceClassification" if about.scores_answers else "AutoModelForCausalLM"


def _folder(about: About) -> str:
    return f"folder = mlflow.artifacts.download_artifacts({_quoted(about.uri)}) + {_quoted(WEIGHTS)}"


def _quoted(text: str) -> str:
    """A text as a Python literal on one line."""
    return json.dumps(text.encode("utf-8", "replace").decode("utf-8"), ensure_ascii=False)


def licence(known: Licence) -> str:
    """What is known about the base's licence, and what is not."""
    if not known.source:
        sentence = "The licence of the base model is unknown: its folder names none."
    else:
        name = plain(known.name or "a custom licence")
        if known.identifier and known.identifier != "other":
            name = code(known.identifier)
        elif known.link:
            name += f", {plain(known.link)}"
        sentence = f"The base model's licence is {name}, according to {plain(known.source)}."
    return f"{sentence} Check what the licence requires of derived models, and check the licence of the data."
