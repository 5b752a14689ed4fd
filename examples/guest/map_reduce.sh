#!/bin/sh
# How many primes are there below 20,000? Map: each clone counts those in its part. Reduce: the VM
# that cloned adds up.
# usage: map_reduce.sh [MINVMS [MAXCPUS]]

primes_in() { # PART PARTS
    awk -v part="$1" -v parts="$2" 'BEGIN {
        for (n = 2 + part; n < 20000; n += parts) {
            for (d = 2; d * d <= n && n % d; d++) { }
            if (d * d > n) primes++
        }
        print primes + 0
    }'
}

# The exit code of such a line is that of awk. Where gc was refused it has said why, and there is no
# ticket.
TICKET=$(gc rt "${2:-4}" "${1:-2}" 1 60000 | awk '{print $2}')
[ -n "$TICKET" ] || exit 1
DIR=$(mktemp -d) || exit

# From here on this script runs in every VM: VMID is 0 in the one that was cloned, and a number in
# each clone.
VMID=$(gc clone "$TICKET") || exit

if [ "$VMID" = 0 ]; then
    # Whatever happens now: no clone is left over.
    trap 'gc kill --ticket "$TICKET"; rm -r "$DIR"' EXIT
    gc sync "$TICKET" 120000 && gc sync "$TICKET" 120000 || exit
    gc join "$TICKET" 120000 --data-dir "$DIR/parts" > "$DIR/ends" || exit
    # A line a clone: its vmid, how it ended, its status.
    if grep -v ' joined 0$' "$DIR/ends" >&2; then exit 1; fi
    awk '{ primes += $1 } END { print primes }' "$DIR/parts"/*
else
    # All are there; and none goes to work, and ends, before all have seen who is there.
    { gc sync && gc list --ticket "$TICKET" > "$DIR/clones" && gc sync; } || gc join --status 1
    part=$(awk -v me="$VMID" '$1 < me { before++ } END { print before + 0 }' "$DIR/clones")
    primes_in "$part" "$(wc -l < "$DIR/clones")" > "$DIR/part"
    gc join --status "$?" --data "$DIR/part" # Ends this VM, and does not return.
fi
