#!/usr/bin/env bash
# Installs the build into a fresh prefix and builds the consumers against it, once through
# find_package and once through pkg-config. Usage: run.sh BUILD_DIR SOURCE_DIR
set -euo pipefail
build=$1
source=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cmake --install "$build" --prefix "$work/prefix" > "$work/install.log"
cmake -S "$source" -B "$work/consumer" -DCMAKE_PREFIX_PATH="$work/prefix" > "$work/configure.log"
cmake --build "$work/consumer" > "$work/build.log"
"$work/consumer/consumer_c"
"$work/consumer/consumer_cc"

# The .pc file carries the prefix it was configured for; this one is elsewhere.
pc=$(dirname "$(find "$work/prefix" -name semkv.pc)")
flags=$(PKG_CONFIG_PATH=$pc pkg-config --define-variable=prefix="$work/prefix" --cflags --libs semkv)
# shellcheck disable=SC2086
gcc -std=c11 -Wall -Wextra -Werror "$source/consumer.c" $flags -o "$work/consumer_pc"
LD_LIBRARY_PATH=$(dirname "$(find "$work/prefix" -name libsemkv.so)") "$work/consumer_pc"

# The program in docs/c.md is what it says it is.
sed -n '/^```c$/,/^```$/{/^```/d;p}' "$source/../../docs/c.md" > "$work/page.c"
# shellcheck disable=SC2086
gcc -std=c11 -Wall -Wextra -Werror "$work/page.c" $flags -o "$work/page"
LD_LIBRARY_PATH=$(dirname "$(find "$work/prefix" -name libsemkv.so)") "$work/page"
