# The project with all its dependencies, in the tested versions (constraints.txt).
#
#   docker build -t mlflow-ft .
#   docker run --rm --gpus all -v "$PWD:/data" -e MLFLOW_TRACKING_URI=http://HOST:5000 mlflow-ft \
#       mlflow-ft train qlora --model MODEL --data /data/rows.jsonl --run.output_dir /data/outputs
#
# There is no entry point: MLflow's `docker_env` runs `bash -c COMMAND` in the image. Without a GPU the same image runs
# on the CPU. torch's wheel brings its own CUDA libraries, so the host needs only the NVIDIA driver.
FROM python:3.11.7-slim-bookworm

# gcc: Triton compiles kernels on first use. git: the run records the commit it was started from.
# These are Debian's packages for this release; pinned versions would break the build when Debian updates them.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc git libc6-dev \
    && rm -rf /var/lib/apt/lists/*

ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONUNBUFFERED=1 \
    HF_HOME=/cache/huggingface \
    XDG_CACHE_HOME=/cache

WORKDIR /opt/mlflow-ft

# Third-party packages first: this large layer is rebuilt only when a version changes.
COPY constraints.txt conda.yaml ./
RUN sed -n 's/^      - //p' conda.yaml > requirements.txt \
    && pip install --constraint constraints.txt --requirement requirements.txt

COPY pyproject.toml README.md LICENSE MLproject ./
COPY mlflow_ft ./mlflow_ft
COPY plugins ./plugins
RUN pip install --constraint constraints.txt '.[gguf]' \
    && for plugin in plugins/*/; do pip install --no-deps "./$plugin"; done

RUN useradd --create-home --uid 1000 trainer \
    && mkdir --parents /cache /data \
    && chown trainer:trainer /cache /data
USER 1000
WORKDIR /data

CMD ["mlflow-ft", "--help"]
