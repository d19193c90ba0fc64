# A decode worker on TensorRT-LLM. Build from the repository's root:
#   docker build -f deploy/docker/worker-trtllm.Dockerfile -t penstock-worker-trtllm .
# Run (these flags are the package's, not ours: NCCL and MPI need the memory):
#   docker run --rm --gpus all --ipc host --ulimit memlock=-1 --ulimit stack=67108864 \
#     -v $PWD/deploy/trtllm/llama-8b-eagle3.yaml:/etc/penstock/trtllm.yaml:ro \
#     -v penstock-models:/home/penstock/.cache -e PENSTOCK_WORKER_LISTEN=0.0.0.0:50061 -p 50061:50061 \
#     penstock-worker-trtllm
# 1.2.1 or newer: 1.2.0 corrupts its KV cache where prefixes are reused.
FROM nvcr.io/nvidia/tensorrt-llm/release:1.2.1

WORKDIR /opt/penstock
COPY pyproject.toml README.md ./
COPY protos protos
COPY services services
COPY router router
COPY batch batch

# Whatever TensorRT-LLM was built with stays as it is: torch, CUDA and all that transformers pins.
RUN python3 -m pip freeze --exclude-editable \
      | grep -iE '^(torch|torchvision|tensorrt|tensorrt[_-].*|triton|nvidia-.*|cuda-.*|numpy|transformers|tokenizers|huggingface[_-]hub|safetensors|mpi4py)==' \
      > /tmp/kept.txt \
 && python3 -m pip install --no-cache-dir --constraint /tmp/kept.txt '.[server,text]' 'pyyaml>=6' \
 && python3 -c "import tensorrt_llm, penstock_worker.__main__; from penstock_engine.trtllm.package import check_version; check_version(tensorrt_llm.__version__)" \
 || { echo 'the installed packages do not go together' >&2; exit 1; }

# Not root: OpenMPI refuses root, and nothing here needs it.
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
ENTRYPOINT ["python3", "-m", "penstock_worker"]
CMD ["--engine", "trtllm", "--config", "/etc/penstock/trtllm.yaml"]
