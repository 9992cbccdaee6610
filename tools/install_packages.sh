#!/usr/bin/env bash
# Installs the Debian packages that the build needs, if any is missing. Needs root or sudo for that;
# without them it says in one line what to install. Usage: install_packages.sh [PACKAGE...]
set -euo pipefail

packages=(
  g++ cmake ninja-build make pkg-config python3 python3-venv
  libabsl-dev libfaiss-dev libopenblas-dev libhwy-dev
  libcli11-dev nlohmann-json3-dev libpcre2-dev
  libgtest-dev libgmock-dev libbenchmark-dev libboost-context-dev
  "$@"
)

missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0

sudo=()
if [ "$(id -u)" -ne 0 ]; then
  if ! command -v sudo > /dev/null || ! sudo -n true 2> /dev/null; then
    echo "semkv needs packages that only root can install: apt-get install ${missing[*]}" >&2
    exit 2
  fi
  sudo=(sudo)
fi
echo "semkv: installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
if ! { "${sudo[@]}" apt-get update -qq && "${sudo[@]}" apt-get install -y -qq "${missing[@]}"; } > "$log" 2>&1; then
  tail -20 "$log" >&2
  echo "semkv: apt-get failed (log: $log)" >&2
  exit 2
fi
rm -f "$log"
