"""Commands of the pages that are not run as they stand: excused with the reason, or given options that shorten them."""

from __future__ import annotations

NETWORK = "downloads packages"
DOCKER = "needs a Docker daemon"
GPU = "needs an NVIDIA GPU"
GPUS = "needs several GPUs or machines; tests/training/test_train_processes.py trains on several processes"
SERVER = "starts or asks a service; tests/examples/test_service.py does both"
TRITON_SERVER = "starts or asks a Triton Inference Server; tests/integrations/test_triton_server.py does both"
RAY = "needs Ray; tests/integrations/test_ray_examples.py runs and asks both programs"
MINUTES = "takes minutes"
RTX = f"{MINUTES}; tests/export builds with TensorRT-RTX, and with --max-drop and --score-on"

EXCUSED = {
    "make test": f"{MINUTES}, and runs this test",
    "pip install 'isnet-trt[cpu]'": NETWORK,
    "pip install 'isnet-trt[completion]'": NETWORK,
    "pip uninstall --yes onnxruntime && pip install 'isnet-trt[gpu-ort]'": NETWORK,
    "pip install numpy tqdm onnxruntime opencv-python-headless": NETWORK,
    "pip install --no-deps isnet-trt": NETWORK,
    "isnet-trt predict bundles/city rtsp://camera.example.org/1 --out out.mp4 --show-every 3": "asks a camera",
    "pip install torch --index-url ADDRESS": NETWORK,
    "pip install '.[cpu,build]'": NETWORK,
    "pip install --constraint constraints.txt --editable '.[cpu,build,train]'": NETWORK,
    "pip download --dest packages --constraint constraints.txt --only-binary=:all: torch "
    "'.[cpu,build,train,bench,rtx,dev]' setuptools wheel": NETWORK,
    "pip install --no-index --find-links packages setuptools wheel": "installs what the line before it downloads",
    "pip install --no-index --find-links packages --no-build-isolation --editable "
    "'.[cpu,build,train,bench,rtx,dev]'": "installs what the lines before it download",
    "docker build --file docker/Dockerfile --tag isnet-trt .": DOCKER,
    'docker run --rm --volume "$PWD":/data isnet-trt predict bundles/ade pictures --out results': DOCKER,
    "make test-gpu": GPU,
    'make test-gpu PYTEST_ARGS="--quick --minutes 8 --work /tmp/gpu"': GPU,
    'make test-gpu PYTEST_ARGS="--resume --work /tmp/gpu"': GPU,
    "make test-gpu PYTEST_ARGS=\"--quick --work /tmp/gpu --minutes 9 -k '$TRT'\"": GPU,
    "make test-gpu PYTEST_ARGS=\"--quick --work /tmp/gpu --resume -k '$TRT'\"": GPU,
    "python -m benchmarks.kernels --out benchmarks/results/<gpu>.json": GPU,
    "python -m pytest tests/gpu -m gpu --quick": GPU,
    "torchrun --nproc-per-node 8 -m isnet_trt.training.train --recipe isnet_resnet101os8_cityscapes "
    "--data CityScapes --out runs/city": GPUS,
    "torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 "
    "-m isnet_trt.training.train …": GPUS,
    "isnet-trt train --recipe isnet_resnet50os8_ade20k --data ADE20k --pretrained resnet50_v1c.pth": (
        f"{MINUTES}, and memory; tests/training trains the published recipes with narrow networks"
    ),
    "isnet-trt build --ckpt model.pth --precision fp16 --engine tensorrt-rtx --calib street/ --out bundles/half": RTX,
    "isnet-trt build --ckpt model.pth --precision int8 --engine tensorrt-rtx --calib street/ --max-drop 0.5 "
    "--score-on my_set.yaml --data my_set/ --out bundles/mixed": RTX,
    "python -m benchmarks.precision --max-drop 0.5 0.05 --qat runs/isnet_demo_int8.pth --work runs/precision "
    "--out benchmarks/results/precision-demo": f"{MINUTES}; tests/benchmarks/test_precision_table.py makes its tables",
    "python examples/service/service.py bundles/ade --port 8000": SERVER,
    "curl --fail --data-binary @photo.jpg --output labels.png http://127.0.0.1:8000/labels": SERVER,
    "curl --fail --data-binary @photo.jpg http://127.0.0.1:8000/shares": SERVER,
    "curl --fail http://127.0.0.1:8000/metrics": SERVER,
    "pip install --no-deps nvidia-pytriton==0.7.0": NETWORK,
    "pip install 'tritonclient[grpc]' opencv-python-headless": NETWORK,
    "isnet-trt triton-server models": TRITON_SERVER,
    "isnet-trt triton-server models -- --exit-on-error=false --strict-readiness=false": TRITON_SERVER,
    "python examples/triton/client.py 127.0.0.1:8001 ade photo.jpg --out labels": TRITON_SERVER,
    "pip install '.[cpu,ray]'": NETWORK,
    "python examples/ray/segment.py bundles/ade masks pictures": RAY,
    "python examples/ray/service.py bundles/ade --port 8000": RAY,
    "curl --fail --data-binary @photo.jpg --output labels.png 'http://127.0.0.1:8000/segment?preset=ms-flip'": RAY,
    "docker build --file examples/triton/Dockerfile --tag isnet-triton .": DOCKER,
    "docker run --rm --gpus all --shm-size 1g --publish 8000-8002:8000-8002 "
    '--volume "$PWD/models":/models isnet-triton': DOCKER,
}
"""Command → why it is not run."""

SHORTER = {
    r"isnet-trt (qat|train --qat) ": "--scenes 2 --repeats 1 --calibration 1 --batch 2 --workers 1",
    r"train --recipe isnet_demo": "--scenes 2 --repeats 1 --batch 2 --workers 1 --stop-after 1",
    r"train --recipe": "--batch 2 --workers 1 --stop-after 1",
    r"benchmarks.training --recipe": "--batch 2 --crop 64 64 --iterations 1 --rounds 1 --variants float32",
    r"build .*--(precision int8|tune)": "--calib-inputs 2 --gate-inputs 1",
    r"evaluate .*--dataset scenes": "--limit 1",
}
"""What a command matches → options that it is given so that it takes seconds; the first match counts."""
