#!/bin/sh
# Installs what demo and tests need and a Debian machine with Go may lack. It says
# what it installs and why, and does nothing when nothing is missing.
set -eu

missing=""
need() { # COMMAND PACKAGE WHY
	if ! command -v "$1" >/dev/null 2>&1; then
		echo "setup: $2 is missing: $3"
		missing="$missing $2"
	fi
}

need qemu-system-x86_64 qemu-system-x86 "it runs the virtual machines that demo and tests watch"
need xz xz-utils "it unpacks kernel modules for those machines"
need readelf binutils "tests let it read the dumps that umbra writes"
if [ "${1:-}" = matrix ]; then # for make test-matrix
	need debootstrap debootstrap "it makes the Debian system that some of the matrix's machines run"
fi

if ! command -v go >/dev/null 2>&1; then
	echo "setup: Go is missing: install Go 1.26 or later from https://go.dev/dl" >&2
	exit 1
fi
echo "setup: the machines run Debian's kernels, which are fetched from its archive when first used and kept in ${UMBRA_LAB_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/umbra/lab}"
if [ -z "$missing" ]; then
	echo "setup: qemu, xz and readelf, which the virtual machines and tests need, are installed"
	exit 0
fi

if [ "$(id -u)" -ne 0 ]; then
	echo "setup: run this as root, or install them yourself: apt-get install$missing" >&2
	exit 1
fi
echo "setup: apt-get install$missing"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
export DEBIAN_FRONTEND=noninteractive
# shellcheck disable=SC2086 # the list is words on purpose
if ! { apt-get update && apt-get install -y --no-install-recommends $missing; } >"$log" 2>&1; then
	tail -n 20 "$log" >&2
	echo "setup: the packages could not be installed" >&2
	exit 1
fi
