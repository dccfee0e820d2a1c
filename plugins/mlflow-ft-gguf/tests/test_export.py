"""GGUF files, read by llama.cpp and by the `gguf` package, and compared with their model."""

from __future__ import annotations

import json
import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

import gguf
import mlflow_ft_gguf
import pytest
from gguf import GGMLQuantizationType as Type
from mlflow_ft_gguf.engine import converter, exporting, kquants, llamacpp
from mlflow_ft_gguf.engine.llamacpp import LlamaCpp
from transformers import AutoTokenizer

from mlflow_ft.engine.judging import parity, reference
from mlflow_ft.engine.tokens import clock
from mlflow_ft.errors import ModelError, RefusedError, ResourceError
from mlflow_ft.testing import make_tiny_model

pytestmark = pytest.mark.slow  # the converter takes seconds to begin


def test_contract(plugin_contract: Any, known: Path) -> None:
    plugin_contract(mlflow_ft_gguf, settings={"model": known, "package.exports": "[gguf-f16]"})


def test_sixteen_bits_are_the_model(f16: Path, server: LlamaCpp, said: Path) -> None:
    comparison = parity.measure(server, said)
    assert comparison.numbers["kl_mean"] < 1e-3
    assert comparison.numbers["top1_agreement"] > 0.95
    assert comparison.numbers["tokens"] == 3 * reference.LENGTH
    assert {file.name for file in f16.iterdir()} == {"model-f16.gguf", "Modelfile"}


def test_another_model_is_not(known: Path, server: LlamaCpp, tmp_path: Path) -> None:
    from transformers import LlamaForCausalLM

    other = LlamaForCausalLM.from_pretrained(known)
    other.model.layers[1].mlp.down_proj.weight.data.mul_(3)
    tokenizer: Any = AutoTokenizer.from_pretrained(known)
    reference.keep_answers(other.eval(), tokenizer, ["Name a colour."], tmp_path / "reference")
    limit = next(kind.max_kl for kind in mlflow_ft_gguf.KINDS if kind.name == "q4_k_m")
    assert parity.measure(server, tmp_path / "reference").numbers["kl_mean"] > limit


@pytest.mark.long
def test_fewer_bits_where_llama_cpp_puts_them(known: Path, f16: Path, said: Path, tmp_path: Path) -> None:
    sizes = {"f16": (f16 / "model-f16.gguf").stat().st_size}
    for kind in ("q8_0", "q4_k_m"):
        exporting.export(known, tmp_path / kind, kind=kind)
        sizes[kind] = (tmp_path / kind / f"model-{kind}.gguf").stat().st_size
        with llamacpp.opened(tmp_path / kind) as form:
            numbers = parity.measure(form, said).numbers
        assert 0 < numbers["kl_mean"] < (0.1 if kind == "q8_0" else 2.0)
    assert sizes["f16"] > 1.7 * sizes["q8_0"] > 1.7 * sizes["q4_k_m"]
    reader = gguf.GGUFReader(tmp_path / "q4_k_m" / "model-q4_k_m.gguf")
    types = {tensor.name: tensor.tensor_type for tensor in reader.tensors}
    assert types["token_embd.weight"] is Type.Q6_K  # it is the output layer, too
    assert types["blk.0.attn_q.weight"] is Type.Q4_K
    assert types["blk.1.attn_v.weight"] is Type.Q6_K  # the last eighth
    assert types["blk.0.attn_norm.weight"] is Type.F32
    assert reader.get_field("general.file_type").contents() == gguf.LlamaFileType.MOSTLY_Q4_K_M
    tokens = gguf.GGUFReader(f16 / "model-f16.gguf").get_field("tokenizer.ggml.tokens").contents()
    assert reader.get_field("tokenizer.ggml.tokens").contents() == tokens


def test_a_template_that_writes_the_date(known: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """llama.cpp gives it the current date; the Modelfile keeps the run's, with a warning."""
    tokenizer: Any = AutoTokenizer.from_pretrained(known)
    dated = shutil.copytree(known, tmp_path / "dated")
    tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }}\n" + str(tokenizer.chat_template)
    tokenizer.save_pretrained(dated)
    with clock.held(datetime.fromisoformat("2020-05-06")):
        exporting.export(dated, tmp_path / "f16", kind="f16")
    assert "06 May 2020" in (tmp_path / "f16" / "Modelfile").read_text()
    assert "the Modelfile fixes it at 06 May 2020" in caplog.text


def test_which_layers_get_more_bits() -> None:
    assert [layer for layer in range(32) if kquants.more_bits(layer, 32)] == [
        *(0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27),
        *(28, 29, 30, 31),
    ]


def test_rows_that_do_not_fit_stay_in_eight_bits() -> None:
    class Tensor:
        name = "blk.0.attn_q.weight"
        shape = (576, 576)
        tensor_type = Type.F32

    assert kquants.chosen(Tensor, kind="q4_k_m", layers=30, tied=True) is Type.Q8_0


def test_prompts_are_written_and_read_as_they_were_trained(known: Path, server: LlamaCpp) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(known)
    exporting.check(server, tokenizer)
    tokenizer.chat_template = tokenizer.chat_template.replace("assistant\n", "assistant: ")
    with pytest.raises(RefusedError, match="renders a different prompt from training"):
        exporting.check(server, tokenizer)


def test_special_tokens_that_are_lost_are_refused(known: Path, server: LlamaCpp, tmp_path: Path) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(known)
    tokenizer.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "tokenizer.json").read_text())
    settings["added_tokens"] = [token for token in settings["added_tokens"] if token["content"] != "<|im_start|>"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(settings))
    names = json.loads((tmp_path / "tokenizer_config.json").read_text())
    kept = {key: value for key, value in names.items() if value != "<|im_start|>" and "special_tokens" not in key}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(kept))
    with pytest.raises(RefusedError, match="differently from training, from token 0 on"):
        exporting.check(server, AutoTokenizer.from_pretrained(tmp_path))


def test_an_unknown_tokenizer_is_reported_before_training(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "tiny")
    reason = mlflow_ft_gguf.missing("q8_0", model)
    assert reason is not None
    assert "llama.cpp does not know this tokenizer" in reason


def test_a_known_one_is_not(known: Path) -> None:
    assert mlflow_ft_gguf.missing("q4_k_m", known) is None


def test_a_converter_that_is_another_file_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_FT_TOOLS", str(tmp_path / "tools"))
    monkeypatch.setattr(converter, "SHA256", "0" * 64)
    with pytest.raises(ResourceError, match="cannot be fetched"):
        converter.ensure()
    assert not any((tmp_path / "tools").iterdir())


def test_an_invalid_gguf_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(ModelError, match=r"llama\.cpp cannot read"), llamacpp.opened(tmp_path):
        pass
