#!/bin/sh
# Runs every fuzz target of the project for a few seconds each (FUZZTIME, 5000x). It
# fails when a target does, and when there is none. A number of inputs rather than a
# time: go test ends a timed run, now and then, with "context deadline exceeded".
set -eu
cd "$(dirname "$0")/.."
found=0
for file in $(grep -rlE --include='*_test.go' '^func Fuzz[A-Za-z0-9_]*\(' . | sort); do
	for target in $(sed -nE 's/^func (Fuzz[A-Za-z0-9_]*)\(.*/\1/p' "$file"); do
		found=$((found + 1))
		echo "fuzz: $(dirname "$file") $target"
		go test -run='^$' -fuzz="^$target\$" -fuzztime="${FUZZTIME:-5000x}" -fuzzminimizetime=10x "$(dirname "$file")" >"${TMPDIR:-/tmp}/umbra-fuzz.$$" 2>&1 || {
			cat "${TMPDIR:-/tmp}/umbra-fuzz.$$" >&2
			rm -f "${TMPDIR:-/tmp}/umbra-fuzz.$$"
			exit 1
		}
		rm -f "${TMPDIR:-/tmp}/umbra-fuzz.$$"
	done
done
[ "$found" -gt 0 ] || { echo "fuzz: no fuzz target found" >&2; exit 1; }
echo "fuzz: $found targets"
