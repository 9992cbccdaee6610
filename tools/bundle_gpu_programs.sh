#!/usr/bin/env bash
# Puts the GPU tests and the GPU benchmark of a build into a folder that runs on a machine with a
# GPU, its driver and Python, and nothing of ours: stripped, with the libraries that they need.
# Usage: bundle_gpu_programs.sh BUILD FOLDER
set -euo pipefail
build=$1 folder=$2

rm -rf "$folder"
mkdir -p "$folder/lib"
cp "$build"/tests/cuda/*_cuda_test "$build/semkv_bench" "$folder"
cp tools/gpu_check.py tools/gpu_goals.py benchmarks/gpu_peers.py "$folder"
strip "$folder"/*_cuda_test "$folder/semkv_bench"
# All but the C library's own, which every machine has.
ldd "$folder"/*_cuda_test "$folder/semkv_bench" | awk '$2 == "=>" {print $3}' | sort -u |
  grep -vE '/(libc|libm|libpthread|libdl|librt)\.so' | xargs -I{} cp -L {} "$folder/lib"
# Machine code for a GPU, and OpenBLAS, which FAISS asks for, pack to a third.
(cd "$folder" && tar -cJf programs.tar.xz *_cuda_test semkv_bench lib && rm -r *_cuda_test semkv_bench lib)
git describe --always --dirty > "$folder/COMMIT"
du -sh "$folder" | awk '{print "gpu-build: " $2 " has " $1}'
