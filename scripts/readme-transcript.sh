#!/bin/sh
# Runs the demo and puts what it printed into README.md, between the lines marked
# for it. Long answers are cut, and the cut says so. The demo runs in a process
# namespace of its own, so that the host's other machines stay out of the README.
set -eu
cd "$(dirname "$0")/.."

out=$(mktemp)
trap 'rm -f "$out" "$out.md"' EXIT
COLUMNS=112 unshare --pid --fork --mount-proc scripts/demo.sh >"$out"

awk '
	function end() { if (n > most) printf "… %d more lines\n", n - most; n = 0 }
	/^\$ umbra/ { end(); if (shown) print ""; print; shown = most = 14; next }
	/^demo: done/ { end(); most = 0; exit }
	most == 0 || $0 == "" { next }
	{ if (++n <= most) print }
' "$out" >"$out.md"

awk -v file="$out.md" '
	/<!-- transcript/ { print; print "```console"; while ((getline line < file) > 0) print line; print "```"; skip = 1; next }
	/<!-- end of transcript/ { skip = 0 }
	!skip
' README.md >"$out.new"
mv "$out.new" README.md
