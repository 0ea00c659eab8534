#!/bin/sh
# Fills /opt/venv with what the extras of pyproject.toml named as arguments require, without what only building on it and
# testing it need. TORCH_INDEX_URL: where torch may come from besides PyPI, whose wheels bring CUDA along.
set -eu

python requirements.py pyproject.toml "$@" > requirements.txt
python -m pip --python /opt/venv/bin/python install --no-cache-dir --disable-pip-version-check \
  -c constraints.txt -r requirements.txt ${TORCH_INDEX_URL:+--extra-index-url "$TORCH_INDEX_URL"}

cd "$(/opt/venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
find . \( -path ./torch/include -o -path ./torch/test -o -path ./pyarrow/include -o -path ./pyarrow/tests \
  -o -path ./Crypto/SelfTest -o -path ./grpc_tools -o -path './numpy/*/tests' \
  -o -name '*.a' -o -name '*.pyx' -o -name '*.pxi' \) -prune -exec rm -rf {} +

# Half of the gateway's image is Arrow, one library of it three times, with clients of services that are never called.
rm -f pyarrow/*flight* pyarrow/*s3fs* pyarrow/libarrow_s3* pyarrow/libarrow_python.so pyarrow/libarrow_python.so.*.*
# These come with their symbols.
find pyarrow Crypto -name '*.so*' -exec strip --strip-unneeded {} +
