#!/bin/sh
# A database for each guest, by the guest's name: 315 and 110 MB, in order and without compression.
set -eu
for database in large:310000 small:110000; do
    db_bench --db="/srv/${database%:*}" --benchmarks=fillseq,compact --num="${database#*:}" --value_size=1000 \
        --compression_type=none --disable_wal
done
