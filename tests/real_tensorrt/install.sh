#!/usr/bin/env bash
# install.sh VERSION FOLDER [PYTHON]: NVIDIA TensorRT for tests/real_tensorrt, as FOLDER to be put on PYTHONPATH.
# VERSION is 10.6, 10.15 or 11.2. The libraries come from Maven's org.bytedeco:tensorrt, the bindings of PYTHON
# (default: python3) from pip; 2 minutes, once. They need an x86-64 Linux, and no GPU and no driver.
# Everything is NVIDIA's, under the TensorRT licence: for tests; never changed, never committed.
set -euo pipefail
version=${1:-} folder=${2:-} python=${3:-python3}
case $version in
  10.6) jar=10.6-1.5.11 wheel=tensorrt-cu12-bindings==10.6.0 ;;
  10.15) jar=10.15-1.5.13 wheel=tensorrt-cu13-bindings==10.15.1.29 ;;
  11.2) jar=11.2-1.5.14 wheel=tensorrt-cu13-bindings==11.2.1.2 ;;
  *) echo "usage: install.sh 10.6|10.15|11.2 FOLDER [PYTHON]" >&2; exit 2 ;;
esac
[ -n "$folder" ] || { echo "usage: install.sh $version FOLDER [PYTHON]" >&2; exit 2; }
[ ! -e "$folder/tensorrt" ] || exit 0
for tool in mvn unzip; do
  command -v $tool >/dev/null || { echo "TensorRT for the tests is fetched with $tool, which is not installed" >&2; exit 3; }
done
mkdir -p "$(dirname "$folder")"
part=$(mktemp -d "$folder.XXXXXX")
trap 'rm -rf "$part"' EXIT
mkdir "$part/tensorrt" "$part/tensorrt_libs"
mvn -q -B dependency:copy "-Dartifact=org.bytedeco:tensorrt:$jar:jar:linux-x86_64-redist" "-DoutputDirectory=$part"
unzip -qj "$part"/*-redist.jar '*.so.*' -x '*vc_plugin*' -d "$part/tensorrt_libs"
rm "$part"/*-redist.jar
"$python" -m pip --disable-pip-version-check -q install --no-deps --only-binary :all: --target "$part" "$wheel"
# NVIDIA's package `tensorrt` would install its libraries once more; the bindings need no more than this.
printf 'from tensorrt_bindings import *\nfrom tensorrt_bindings import __version__\n' > "$part/tensorrt/__init__.py"
cat > "$part/tensorrt_libs/__init__.py" <<'P'
import ctypes
import pathlib

for name in ("libnvinfer.so.*", "libnvinfer_plugin.so.*", "libnvonnxparser.so.*"):
    for path in pathlib.Path(__file__).parent.glob(name):
        ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
P
rm -rf "$folder"
mv "$part" "$folder" # in one step: a folder that is there is complete
