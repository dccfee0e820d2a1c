"""A real server on a Unix socket that answers as vLLM's does, slowly, with transformers and PEFT.

Only what the plugin asks for; `test_real_vllm.py` asks vLLM itself. A model whose folder has a file `wrong` computes
something else, and one with a file `fails` does not start.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
from pathlib import Path
from typing import Any

import torch
import uvicorn
from peft import PeftModel
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from transformers import AutoModelForCausalLM, AutoTokenizer

parser = argparse.ArgumentParser()
for name in ("uds", "model", "served-model-name", "dtype", "generation-config"):
    parser.add_argument(f"--{name}", required=True)
for name in ("max-logprobs", "max-lora-rank", "max-loras", "max-cpu-loras"):
    parser.add_argument(f"--{name}", type=int, default=0)
for name in ("trust-request-chat-template", "disable-uvicorn-access-log", "enable-lora"):
    parser.add_argument(f"--{name}", action="store_true")
asked = parser.parse_args()

if (Path(asked.model) / "fails").exists():
    sys.exit(f"ValueError: {(Path(asked.model) / 'fails').read_text()}")
tokenizer: Any = AutoTokenizer.from_pretrained(asked.model)
held: dict[str, Any] = {"model": AutoModelForCausalLM.from_pretrained(asked.model).eval()}
if (Path(asked.model) / "wrong").exists():
    held["model"].model.layers[0].mlp.down_proj.weight.data.mul_(9)
loras: dict[str, str] = {}
lock = threading.Lock()


def choose(name: str) -> Any:
    """The model, with the adapter of this name or without one."""
    model = held["model"]
    if name == asked.served_model_name:
        return model.disable_adapter() if loras else torch.no_grad()
    model.set_adapter(loras[name])
    return torch.no_grad()


def known(name: str) -> bool:
    return name == asked.served_model_name or name in loras


def refusal(text: str, status: int = 400) -> Response:
    return JSONResponse({"error": {"message": text, "type": "BadRequestError", "code": status}}, status)


@torch.no_grad()
def next_tokens(name: str, ids: list[int], count: int, ends: list[int]) -> list[int]:
    new: list[int] = []
    with choose(name):
        while len(new) < count and not (new and new[-1] in ends):
            new.append(int(held["model"](torch.tensor([ids + new])).logits[0, -1].argmax()))
    return new


@torch.no_grad()
def top(name: str, ids: list[int], count: int) -> dict[str, float]:
    with choose(name):
        logprobs = held["model"](torch.tensor([ids])).logits[0, -1].float().log_softmax(-1)
    values, places = logprobs.topk(min(count, len(logprobs)))
    return {f"token_id:{place}": value for place, value in zip(places.tolist(), values.tolist(), strict=True)}


async def completions(request: Request) -> Response:
    body = await request.json()
    if not known(body["model"]):
        return refusal(f"The model `{body['model']}` does not exist.", 404)
    if body.get("logprobs", 0) > asked.max_logprobs:
        return refusal(f"Requested {body['logprobs']} logprobs, which is greater than {asked.max_logprobs}")
    prompts = body["prompt"] if isinstance(body["prompt"][0], list) else [body["prompt"]]
    choices = []
    with lock:
        for index, ids in enumerate(prompts):
            new = next_tokens(body["model"], ids, body["max_tokens"], body.get("stop_token_ids", []))
            choice: dict[str, Any] = {"index": index, "text": tokenizer.decode(new), "token_ids": new}
            if body.get("logprobs"):
                choice["logprobs"] = {"top_logprobs": [top(body["model"], ids, body["logprobs"])]}
            choices.append(choice)
    return JSONResponse({"model": body["model"], "choices": choices})


def prompt_of(body: dict[str, Any]) -> list[int]:
    template = body.get("chat_template") or tokenizer.chat_template
    options = {"chat_template": template, "add_generation_prompt": True, "return_dict": False}
    ids: list[int] = tokenizer.apply_chat_template(body["messages"], **options)
    return ids


async def chat(request: Request) -> Response:
    body = await request.json()
    if not known(body["model"]):
        return refusal(f"The model `{body['model']}` does not exist.", 404)
    with lock:
        new = next_tokens(body["model"], prompt_of(body), body["max_tokens"], body["stop_token_ids"])
    text = tokenizer.decode(new, skip_special_tokens=True)
    about = {"model": body["model"], "asked": body}
    if body.get("stream"):
        chunks = [about | {"choices": [{"index": 0, "delta": {"content": word}}]} for word in text.split(" ")]
        return StreamingResponse((f"data: {json.dumps(chunk)}\n\n" for chunk in chunks), media_type="text/event-stream")
    return JSONResponse(about | {"choices": [{"index": 0, "message": {"role": "assistant", "content": text}}]})


async def tokenize(request: Request) -> Response:
    return JSONResponse({"tokens": prompt_of(await request.json())})


async def load(request: Request) -> Response:
    body = await request.json()
    if body["lora_name"] in loras:
        return refusal(f"The lora adapter '{body['lora_name']}' has already been loaded.")
    with lock:
        key = f"lora{len(loras)}"
        if isinstance(held["model"], PeftModel):
            held["model"].load_adapter(body["lora_path"], adapter_name=key)
        else:
            held["model"] = PeftModel.from_pretrained(held["model"], body["lora_path"], adapter_name=key)
        held["model"].eval()
        loras[body["lora_name"]] = key
    return PlainTextResponse("Success")


async def unload(request: Request) -> Response:
    with lock:
        del loras[(await request.json())["lora_name"]]
    return PlainTextResponse("Success")


async def metrics(request: Request) -> Response:
    return PlainTextResponse(f"vllm:loaded_loras {len(loras)}\n")


async def health(request: Request) -> Response:
    return Response()


routes = [
    Route("/v1/completions", completions, methods=["POST"]),
    Route("/v1/chat/completions", chat, methods=["POST"]),
    Route("/tokenize", tokenize, methods=["POST"]),
    Route("/v1/load_lora_adapter", load, methods=["POST"]),
    Route("/v1/unload_lora_adapter", unload, methods=["POST"]),
    Route("/health", health),
    Route("/metrics", metrics),
]
uvicorn.run(Starlette(routes=routes), uds=asked.uds, access_log=False)
