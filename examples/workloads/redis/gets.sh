#!/bin/sh
# Random gets, with a figure for every 20,000.
while redis-benchmark -t get -n 20000 -r 100000 -P 4 --csv; do :; done
