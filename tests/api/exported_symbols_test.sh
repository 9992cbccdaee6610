#!/usr/bin/env bash
# What the library exports = the committed list = what the header declares.
# Usage: exported_symbols_test.sh LIBRARY LIST HEADER
set -euo pipefail
exported=$(nm -D --defined-only "$1" | awk '$2 ~ /[TBDRVW]/ {print $3}' | grep -v '^__' | sort)
declared=$(tr '\n' ' ' < "$3" | grep -oE 'SEMKV_EXPORT [^;]*\(' | grep -oE 'semkv_[a-z_]+ ?\(' |
  grep -oE 'semkv_[a-z_]+' | sort)
diff <(echo "$exported") "$2" || { echo "exported symbols differ from $2"; exit 1; }
diff <(echo "$declared") "$2" || { echo "the header's declarations differ from $2"; exit 1; }
echo "$(wc -l < "$2") symbols"
