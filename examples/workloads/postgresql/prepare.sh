#!/bin/sh
# A database for each guest, by the guest's name: 340 and 145 MB. pgbench -s: 15 MB for each unit.
set -eu
pg() { runuser -u postgres -- "$@"; }
pg_conftool 17 main set shared_buffers 4MB      # all else is the kernel's page cache
pg_conftool 17 main set max_connections 20
pg_conftool 17 main set autovacuum off          # pgbench -i has vacuumed; later it would read in some runs only
pg_ctlcluster 17 main start -o '-c fsync=off'
for database in large:22 small:9; do
    pg createdb "${database%:*}"
    pg pgbench -i -q -s "${database#*:}" "${database%:*}"
done
pg psql -c checkpoint
pg_ctlcluster 17 main stop
