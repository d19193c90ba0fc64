# A decode worker on TensorRT-LLM. Build from the repository's root:
#   docker build -f deploy/docker/worker-trtllm.Dockerfile -t penstock-worker-trtllm .
# Run (these flags are the package's, not ours: NCCL and MPI need the memory):
#   docker run --rm --gpus all --ipc host --ulimit memlock=-1 --ulimit stack=67108864 \
#     -v $PWD/deploy/trtllm/llama-8b-eagle3.yaml:/etc/penstock/trtllm.yaml:ro \
#     -v penstock-models:/home/penstock/.cache -e HF_TOKEN \
#     -e PENSTOCK_WORKER_LISTEN=0.0.0.0:50061 -p 127.0.0.1:50061:50061 \
#     penstock-worker-trtllm
# Other arguments: behind the image's name `python3 -m penstock_worker ...`, or any other command.
# 1.2.1 or newer: 1.2.0 corrupts its KV cache where prefixes are reused.
FROM nvcr.io/nvidia/tensorrt-llm/release:1.2.1

WORKDIR /opt/penstock
COPY pyproject.toml README.md ./
COPY protos protos
COPY services services
COPY router router
COPY batch batch

# Whatever TensorRT-LLM was built with stays as it is: torch, CUDA and all that transformers pins. The package
# itself is not imported: it wants libcuda.so.1, which the driver brings when a container runs.
RUN python3 -m pip list --format=freeze --exclude-editable \
      | grep -iE '^(torch|torchvision|tensorrt|tensorrt[_-].*|triton|nvidia-.*|cuda-.*|numpy|transformers|tokenizers|huggingface[_-]hub|safetensors|mpi4py)==' \
      > /tmp/kept.txt \
 && python3 -m pip install --no-cache-dir --constraint /tmp/kept.txt '.[server,text]' 'pyyaml>=6' \
 && python3 -m pip list --format=freeze --exclude-editable > /tmp/now.txt \
 && grep -qiE '^tensorrt[_-]llm==' /tmp/kept.txt && grep -qi '^torch==' /tmp/kept.txt \
 && ! grep -vxFf /tmp/now.txt /tmp/kept.txt \
 && python3 -c "import penstock_worker.__main__, penstock_worker.trtllm; from importlib.metadata import version; from penstock_engine.trtllm.package import check_version; check_version(version('tensorrt-llm'))" \
 || { echo 'the installed packages do not go together' >&2; exit 1; }

# Not root: OpenMPI refuses root, and nothing here needs it.
USER root
RUN useradd --uid 10001 --create-home penstock \
 && install -d -o penstock -g penstock /home/penstock/.cache /etc/penstock /run/penstock
USER penstock
# Everything that is compiled or downloaded on the way goes below one folder: mount a volume there.
ENV PYTHONUNBUFFERED=1 \
    TRITON_CACHE_DIR=/home/penstock/.cache/triton \
    TORCHINDUCTOR_CACHE_DIR=/home/penstock/.cache/inductor \
    CUDA_CACHE_PATH=/home/penstock/.cache/cuda \
    PENSTOCK_SECRETS_DIR=/run/penstock

EXPOSE 50061
STOPSIGNAL SIGTERM
# NVIDIA's own entrypoint stays: it checks the driver, and executes the command in its place.
CMD ["python3", "-m", "penstock_worker", "--engine", "trtllm", "--config", "/etc/penstock/trtllm.yaml"]
