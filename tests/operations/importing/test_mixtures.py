"""TRL's mixtures of data sets, and those of the alignment handbook."""

from __future__ import annotations

from tests.operations.importing.conftest import Import

MIXTURE = """
model_name_or_path: m
dataset_mixture:
  seed: 0
  test_split_size: 0.1
  datasets:
  - {id: who/a, config: small, split: extra, columns: [messages], weight: 1.0}
  - {id: who/b, config: small, split: extra, weight: 1.0}
"""
MIXER = "model_name_or_path: m\ndataset_mixer: {who/a: 1.0}\ndataset_splits: [train_prefs, test_prefs]\n"


def test_whole_sets_are_no_mixture(imports: Import) -> None:
    result = imports(MIXTURE, tool="trl")
    expected = {"data.path": ["who/a", "who/b"], "data.split": "extra", "data.subset": "small", "data.test_size": 0.1}
    assert {path: result.flat[path] for path in expected} == expected
    assert "refused" not in result.status.values()


def test_a_part_of_a_set_is_a_share_of_the_mixture(imports: Import) -> None:
    result = imports(MIXTURE.replace("b, config: small, split: extra, weight: 1.0", "b, weight: 0.5"), tool="trl")
    assert result.flat["data.path"] == {"who/a": 1.0, "who/b": 0.5}
    assert result.status["dataset_mixture.datasets[1].weight"] == "approximated"
    mixer = imports("model_name_or_path: m\ndataset_mixer: {who/a: 1.0, who/b: 0.2}\n", tool="trl")
    assert mixer.flat["data.path"] == {"who/a": 1.0, "who/b": 0.2}
    assert mixer.status["dataset_mixer.who/b"] == "approximated"


def test_two_parts_of_one_set_are_not_one_source_with_the_weight_of_the_second(imports: Import) -> None:
    parts = MIXTURE.replace("who/b, config: small, split: extra, weight: 1.0", "who/a, split: other, weight: 0.25")
    result = imports(parts.replace("columns: [messages], weight: 1.0", "weight: 0.5"), tool="trl")
    assert result.flat["data.path"] == {"who/a": 0.5}
    assert result.status["dataset_mixture.datasets[0].id"] == "mapped"
    assert result.status["dataset_mixture.datasets[1].id"] == "refused"
    twice = imports("base_model: m\ndatasets:\n- {path: who/a, type: alpaca}\n- {path: who/a, type: alpaca}\n")
    assert twice.status["datasets[1].path"] == "refused"


def test_names_of_older_versions(imports: Import) -> None:
    result = imports(
        f"{MIXER}tokenizer_name_or_path: other\nvllm_guided_decoding_regex: a+\nnum_generations: 8\n", tool="trl"
    )
    assert result.status["tokenizer_name_or_path"] == "approximated"
    assert result.flat["objective.options"] == {"vllm_structured_outputs_regex": "a+"}


def test_fractions_of_a_mixture_are_its_weights(imports: Import) -> None:
    text = "model_name_or_path: m\ndatasets:\n- {path: a, fraction: 0.5}\n- {path: b, fraction: 0.5}\n"
    result = imports(text, tool="trl")
    assert (result.flat["data.path"], result.status["datasets[0].fraction"]) == ({"a": 0.5, "b": 0.5}, "mapped")


def test_splits_and_configurations_of_all_sets(imports: Import) -> None:
    result = imports(f"{MIXER}dataset_configs: [all]\n", tool="trl")
    expected = {"data.path": "who/a", "data.split": "train_prefs", "data.subset": "all"}
    assert {path: result.flat[path] for path in expected} == expected
    assert (result.status["dataset_splits"], result.status["dataset_configs"]) == ("approximated", "mapped")
    assert imports(f"{MIXER}dataset_configs: [a, b]\n", tool="trl").status["dataset_configs"] == "refused"
    assert imports(MIXER.replace("test_", "train_"), tool="trl").status["dataset_splits"] == "refused"
