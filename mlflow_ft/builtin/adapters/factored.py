"""Adapters whose update is a product of small matrices, like LoRA's."""

from __future__ import annotations

from mlflow_ft import Adapter
from mlflow_ft.builtin.adapters.tuners import FLOAT, LIKE_LORA, RANK, RATE, TARGETS, TINY, Tuner, record

RANK_AND_ALPHA = RANK | {"lora_alpha": "alpha"}
RECORDS: tuple[Adapter, ...] = (
    record(
        "loha",
        "Hadamard product of two low-rank updates: rank up to r squared",
        Tuner(config="LoHaConfig", settings=RANK_AND_ALPHA, quantised=("int8",)),
        paper="https://arxiv.org/abs/2108.06098",
        use_for="updates of higher rank than LoRA's from as many weights",
        memory="as LoRA of twice the rank",
        ranges={"adapter.r": "4 to 32", RATE: "1e-4 to 1e-3"},
    ),
    record(
        "lokr",
        "Kronecker product of a small matrix and a low-rank one",
        Tuner(config="LoKrConfig", settings=RANK_AND_ALPHA, quantised=("int8",)),
        paper="https://arxiv.org/abs/2309.14859",
        use_for="very small adapters",
        memory=TINY,
        ranges={"adapter.r": "8 to 64", RATE: "5e-4 to 5e-3"},
    ),
    record(
        "hira",
        "Hadamard product of the weights and a low-rank update: a full-rank update",
        Tuner(config="HiraConfig", settings=RANK | {"lora_dropout": "hira_dropout"}),
        paper="https://openreview.net/forum?id=TwJrTz9cRS",
        use_for="knowledge that does not fit in a low rank",
        memory=LIKE_LORA,
        ranges={"adapter.r": "16 to 64", RATE: "1e-3 to 1e-2"},
    ),
    record(
        "miss",
        "one matrix of r rows, shared by the shards of the weights (`init_weights: bat` makes it depend on them)",
        Tuner(config="MissConfig", settings=RANK | {"lora_dropout": "miss_dropout"}),
        paper="https://arxiv.org/abs/2409.15371",
        use_for="half of LoRA's weights at its speed",
        memory="less than LoRA of that rank",
        ranges={"adapter.r": "16 to 64", RATE: "2e-5 to 2e-4"},
    ),
    record(
        "gralora",
        "LoRA in blocks: each part of a layer has its own low-rank update",
        Tuner(config="GraloraConfig", settings=RANK_AND_ALPHA | {"lora_dropout": "gralora_dropout"}),
        paper="https://arxiv.org/abs/2505.20355",
        use_for="high ranks (64 and more), where LoRA stops gaining",
        memory=LIKE_LORA,
        ranges={"adapter.r": "32 to 256", RATE: "5e-5 to 5e-4"},
    ),
    record(
        "delora",
        "a low-rank update whose strength (`delora_lambda`) is separate from its direction",
        Tuner(config="DeloraConfig", settings=RANK, quantised=FLOAT),
        paper="https://arxiv.org/abs/2503.18225",
        use_for="high learning rates and long training without losing what the base can do",
        memory=LIKE_LORA,
        ranges={"adapter.r": "8 to 32", RATE: "1e-4 to 1e-3"},
    ),
    record(
        "deft",
        "replaces a low-rank subspace of the weights by a trained one",
        Tuner(
            config="DeftConfig",
            settings=RANK | {"lora_alpha": "alpha", "lora_dropout": "deft_dropout"},
            quantised=FLOAT,
        ),
        use_for="experiments",
        memory="as LoRA of that rank, and a copy of a layer's weights while it computes",
        ranges={"adapter.r": "4 to 32", RATE: "1e-4 to 1e-3"},
    ),
    record(
        "glora",
        "scales and shifts of weights and biases, with a low-rank update",
        Tuner(config="GloraConfig", settings=TARGETS | {"r": "r"}, quantised=FLOAT),
        paper="https://arxiv.org/abs/2306.07967",
        use_for="experiments",
        memory="as LoRA of twice the rank",
        ranges={"adapter.r": "4 to 16", RATE: "1e-4 to 1e-3"},
    ),
    record(
        "peanut",
        "an update that a small network computes from the weights themselves",
        Tuner(config="PeanutConfig", settings=RANK, quantised=FLOAT),
        paper="https://arxiv.org/abs/2410.01870",
        use_for="experiments",
        memory=LIKE_LORA,
        ranges={"adapter.r": "8 to 64", RATE: "1e-4 to 1e-3"},
    ),
    record(
        "psoft",
        "an orthogonal rotation within the principal subspace of the weights",
        Tuner(
            config="PsoftConfig",
            settings=RANK | {"lora_alpha": "psoft_alpha", "lora_dropout": "psoft_dropout"},
            quantised=FLOAT,
        ),
        paper="https://arxiv.org/abs/2505.11235",
        use_for="few weights that keep the geometry of the base",
        memory=TINY,
        ranges={"adapter.r": "32 to 256", RATE: "1e-4 to 1e-3"},
    ),
)
"""The adapters of this module."""
