"""Adapters with few weights that reach far: shared random matrices, spectra, sparse choices of the weights."""

from __future__ import annotations

from mlflow_ft import Adapter
from mlflow_ft.builtin.tuners import FLOAT, LIKE_LORA, NAMED, RANK, RATE, TARGETS, TINY, Tuner, at_most, divide, record


def records() -> list[Adapter]:
    """Few weights that reach far: shared random matrices, spectra, sparse entries."""
    return [
        record(
            "vera",
            "random matrices shared by all layers, with trained scales; wants a high rank",
            Tuner(config="VeraConfig", settings=RANK | {"lora_dropout": "vera_dropout"}),
            paper="https://arxiv.org/abs/2310.11454",
            use_for="adapters ten times smaller than LoRA's",
            memory=TINY,
            ranges={"adapter.r": "128 to 1024", RATE: "1e-3 to 1e-2"},
        ),
        record(
            "pvera",
            "VeRA with a learned spread, sampled while it trains",
            Tuner(config="PveraConfig", settings=RANK | {"lora_dropout": "pvera_dropout"}),
            paper="https://arxiv.org/abs/2512.07703",
            use_for="as vera, with little data",
            memory=TINY,
            ranges={"adapter.r": "128 to 1024", RATE: "1e-3 to 1e-2"},
        ),
        record(
            "randlora",
            "a trained mixture of random low-rank matrices: an update of full rank",
            Tuner(config="RandLoraConfig", settings=RANK | {"lora_dropout": "randlora_dropout"}),
            paper="https://arxiv.org/abs/2502.00987",
            use_for="updates of full rank at LoRA's size; here a smaller r trains more weights",
            memory="as LoRA, and more time",
            ranges={"adapter.r": "8 to 64", RATE: "1e-4 to 1e-3"},
        ),
        record(
            "vblora",
            "all updates are mixed from one bank of vectors",
            Tuner(
                config="VBLoRAConfig",
                settings=RANK | {"lora_dropout": "vblora_dropout"},
                fit=divide("vector_length", 256),
            ),
            paper="https://arxiv.org/abs/2405.15179",
            use_for="tiny adapters, to store thousands of",
            memory=LIKE_LORA,
            ranges={"adapter.r": "4 to 8", RATE: "1e-3 to 1e-2"},
        ),
        record(
            "unilora",
            "every LoRA weight is a projection of one short vector (`theta_d_length`)",
            Tuner(config="UniLoraConfig", settings=RANK | {"lora_dropout": "unilora_dropout"}, quantised=FLOAT),
            paper="https://arxiv.org/abs/2506.00799",
            use_for="the smallest adapters there are",
            memory=LIKE_LORA,
            ranges={"adapter.r": "4 to 16", RATE: "1e-3 to 1e-1"},
        ),
        record(
            "tinylora",
            "a handful of trained numbers, spread over all layers by fixed projections",
            Tuner(config="TinyLoraConfig", settings=RANK | {"lora_dropout": "tinylora_dropout"}, quantised=FLOAT),
            paper="https://arxiv.org/abs/2602.04118",
            use_for="learning from rewards with nearly nothing to train",
            memory=TINY,
            ranges={"adapter.r": "2 to 4", RATE: "1e-4 to 1e-2"},
        ),
        record(
            "frod",
            "trained scales and a few rotations in a basis that all layers share",
            Tuner(
                config="FrodConfig",
                settings=NAMED | {"lora_dropout": "frod_dropout"},
                fixed={"progressbar": False},
                quantised=FLOAT,
            ),
            use_for="experiments",
            memory="few weights that train; the shared basis is as large as the layers",
            ranges={RATE: "1e-3 to 1e-2"},
        ),
        record(
            "fourierft",
            "few trained frequencies of each layer's update (`n_frequency`)",
            Tuner(config="FourierFTConfig", settings=NAMED, fit=at_most("n_frequency", 1000)),
            paper="https://arxiv.org/abs/2405.03003",
            use_for="adapters ten times smaller than LoRA's",
            memory="few weights, large activations",
            ranges={"adapter.options n_frequency": "200 to 2000", RATE: "1e-3 to 1e-1"},
        ),
        record(
            "waveft",
            "few trained wavelet coefficients of each layer's update (`n_frequency`)",
            Tuner(config="WaveFTConfig", settings=NAMED, fit=at_most("n_frequency", 2592)),
            paper="https://arxiv.org/abs/2505.12532",
            use_for="as fourierft",
            memory="few weights, large activations",
            ranges={"adapter.options n_frequency": "500 to 5000", RATE: "1e-4 to 1e-2"},
        ),
        record(
            "shira",
            "trains a sparse choice of the weights themselves, as many as LoRA of rank r has",
            Tuner(config="ShiraConfig", settings=TARGETS | {"r": "r"}),
            paper="https://arxiv.org/abs/2406.13175",
            use_for="adapters that are switched in place, or several at once",
            memory=LIKE_LORA,
            ranges={"adapter.r": "8 to 64", RATE: "1e-4 to 1e-3"},
        ),
        record(
            "supertuning",
            "trains the largest weights alone (`sparsity`)",
            Tuner(config="SupertuningConfig", settings=TARGETS, quantised=FLOAT),
            paper="https://arxiv.org/abs/2607.09287",
            use_for="experiments",
            memory=TINY,
            ranges={"adapter.options sparsity": "0.9 to 0.999", RATE: "1e-4 to 1e-3"},
        ),
        record(
            "adamss",
            "clusters the subspaces of each layer and trains a small update in each (`num_subspaces`)",
            Tuner(config="AdamssConfig", settings=RANK, quantised=FLOAT),
            use_for="experiments",
            memory=TINY,
            ranges={"adapter.r": "16 to 128", RATE: "1e-3 to 1e-2"},
        ),
    ]
