-- A few rows are asked for most of the time; they lie anywhere in the table.
\set rows 100000 * :scale
\set aid 1 + permute(random_zipfian(1, :rows, 1.1) - 1, :rows)
SELECT abalance FROM pgbench_accounts WHERE aid = :aid;
