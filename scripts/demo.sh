#!/bin/sh
# Boots a small Linux machine and looks into it. What it starts it ends, also on
# Ctrl-C. DEMO_KERNEL chooses the kernel (5.10, 6.1, 6.12, 7.2), DEMO_MEMORY its
# RAM in MiB.
set -eu
cd "$(dirname "$0")/.."

kernel=${DEMO_KERNEL:-6.1}
name=demo
work=$(mktemp -d)
keeper=""

cleanup() {
	status=$?
	# Make passes a signal on a second time: it must not end the clearing up.
	trap - EXIT
	trap '' INT TERM HUP
	if [ -n "$keeper" ]; then
		kill "$keeper" 2>/dev/null || true
		wait "$keeper" 2>/dev/null || true
	fi
	rm -rf "$work"
	exit "$status"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

say() { printf '%s\n' "$*"; }
run() {
	say
	say "\$ umbra $*"
	# Status 3 is an answer that came with findings.
	bin/umbra "$@" || [ $? -eq 3 ]
}

# Where there is no terminal to tell its width, lines still end somewhere.
[ -t 1 ] || export COLUMNS="${COLUMNS:-110}"

# What the compiler leaves behind when it is interrupted goes with the rest.
export GOTMPDIR="$work"

scripts/setup.sh
say "demo: building umbra"
CGO_ENABLED=0 go build -trimpath -o bin/umbra ./cmd/umbra
CGO_ENABLED=0 go build -trimpath -o bin/labctl ./internal/lab/labctl

say "demo: booting a machine with Debian's $kernel kernel"
bin/labctl boot -kernel "$kernel" -mem "${DEMO_MEMORY:-384}" -name "$name" >"$work/boot" 2>&1 &
keeper=$!
waited=0
until grep -qs '^accel ' "$work/boot"; do
	if ! kill -0 "$keeper" 2>/dev/null; then
		cat "$work/boot" >&2
		say "demo: the machine did not boot" >&2
		exit 1
	fi
	waited=$((waited + 1))
	if [ "$waited" -gt 600 ]; then
		say "demo: the machine did not boot within 5 minutes" >&2
		exit 1
	fi
	sleep 0.5
done
say "demo: it runs ($(sed -n 's/^kernel //p; s/^accel //p' "$work/boot" | paste -sd' ')). Nothing of umbra is in it; from here on it is watched from outside."

run vms
run info "$name"
run ps "$name" --sort -rss
run sockets "$name"

say
say "demo: done; the machine is gone again. To watch one of your own: bin/umbra vms, then bin/umbra ps NAME"
