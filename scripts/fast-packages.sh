#!/bin/sh
# Lists the packages whose tests boot no machine: those that do not use the lab
# (nor start QEMU) in their tests.
set -eu
cd "$(dirname "$0")/.."
for dir in $(go list -f '{{.Dir}}' ./...); do
	if ! grep -qsE 'umbra/internal/lab"|qemu-system' "$dir"/*_test.go && [ "$(basename "$dir")" != lab ]; then
		echo "./${dir#"$PWD"/}"
	fi
done | sed "s|^\./$PWD\$|.|"
